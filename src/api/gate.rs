//! What is checked before any call reaches its service.
//!
//! Decides, in etcd's order: is the cluster version known, does a learner serve this call, is the
//! client's version a text, is there a leader if the caller insists on one. Open streams of callers
//! that insist on a leader are watched: three looks in a row without one, an election timeout
//! apart, end them all. Called by `dispatch`; the watching runs as one task of `serve`.
//!
//! Source: etcd `server/etcdserver/api/v3rpc/interceptor.go`.

use tokio::sync::{Notify, watch};

use super::{
    caller::Caller,
    edge::Edge,
    member::{Member, State},
    metadata::Metadata,
    metrics::count_client_request,
    rpc::Kind,
    status::Refusal,
};
use crate::model::MemberId;

/// Looks without a leader after which streams end. New calls are refused at once; ending streams
/// is dearer for everybody, so they get more patience.
const LOOKS_MAX: u32 = 3;

/// Whether a learner answers a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learner {
    /// It does.
    Served,
    /// It does not.
    Refused,
}

/// The verdict on the leader, for streams that need one.
#[derive(Debug, Default)]
pub struct LeaderLosses {
    /// Grows with each loss.
    losses: watch::Sender<u64>,
    /// A stream that needs a leader has come. Without one, nobody looks.
    asked: Notify,
}

/// Lets a call pass, and says on whose behalf it runs.
///
/// # Errors
/// - [`Refusal::NotCapable`], [`Refusal::LearnerUnsupported`], [`Refusal::InvalidClientVersion`],
///   [`Refusal::NoLeader`].
pub fn admit<M: Member>(
    edge: &Edge<M>,
    kind: Kind,
    metadata: &Metadata,
    learner: Learner,
) -> Result<Caller, Refusal> {
    let position = edge.member.position();
    let state = edge.member.published();
    if !edge.capable(&*state) {
        return Err(Refusal::NotCapable);
    }
    if learner == Learner::Refused && state.is_learner(position.member) == Some(true) {
        return Err(Refusal::LearnerUnsupported);
    }
    count_client_request(kind, metadata.client_version()?);
    if position.leader == MemberId(0) && metadata.requires_leader() {
        return Err(Refusal::NoLeader);
    }
    Ok(Caller::default())
}

impl LeaderLosses {
    /// Waits until the leader is lost for good. Without `requires_leader`, for ever.
    pub async fn next(&self, requires_leader: bool) {
        if requires_leader {
            let mut losses = self.losses.subscribe();
            self.asked.notify_one();
            if losses.changed().await.is_ok() {
                return;
            }
        }
        std::future::pending::<()>().await;
    }

    /// Looks for a leader once per election timeout while a stream needs one, for as long as the
    /// process runs.
    pub async fn watch<M: Member>(&self, edge: &Edge<M>) {
        let mut looks = Looks::default();
        loop {
            if self.losses.receiver_count() == 0 {
                self.asked.notified().await;
                looks = Looks::default();
            }
            tokio::time::sleep(edge.settings.election_timeout).await;
            if looks.look(edge.member.position().leader) == Verdict::Lost {
                self.losses.send_modify(|losses| *losses += 1);
            }
        }
    }
}

/// How many looks in a row found no leader.
#[derive(Debug, Default)]
struct Looks(u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Fine,
    Lost,
}

impl Looks {
    fn look(&mut self, leader: MemberId) -> Verdict {
        self.0 = if leader == MemberId(0) { self.0.saturating_add(1) } else { 0 };
        if LOOKS_MAX <= self.0 { Verdict::Lost } else { Verdict::Fine }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        api::{Settings, fake::Fake},
        base::clock::Clock,
    };

    #[test]
    fn streams_end_at_the_third_look_in_a_row_without_a_leader() {
        let mut looks = Looks::default();
        let none = MemberId(0);
        assert_eq!([looks.look(none), looks.look(none)], [Verdict::Fine; 2]);
        assert_eq!(looks.look(MemberId(1)), Verdict::Fine);
        assert_eq!([looks.look(none), looks.look(none)], [Verdict::Fine; 2]);
        assert_eq!([looks.look(none), looks.look(none)], [Verdict::Lost; 2]);
    }

    #[test]
    fn stream_that_comes_after_another_has_gone_hears_of_the_loss() {
        let fake = Fake::default();
        fake.with(|inner| inner.leader = MemberId(0));
        let settings =
            Settings { election_timeout: Duration::from_millis(1), ..Settings::default() };
        let edge = Edge::new(fake, settings, Clock::system());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let mut watching = Box::pin(edge.leader_losses.watch(&edge));
            for _ in 0..2 {
                tokio::select! {
                    () = &mut watching => unreachable!("it goes on for ever"),
                    () = edge.leader_losses.next(true) => {}
                }
            }
        });
    }
}
