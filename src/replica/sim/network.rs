//! The links between simulated members.
//!
//! Decides when a message arrives, if at all. As on etcd's streams, messages of one link keep their
//! order unless the weather says otherwise, and a forwarded proposal is never doubled: each would be
//! applied. Owned by the world.

use std::collections::{BTreeMap, BTreeSet};

use proto::raftpb::{Message, MessageType};

use super::{Micros, TICK, Weather};
use crate::{base::random::Random, model::MemberId};

type Link = (MemberId, MemberId);

/// Who can talk to whom, and how well.
#[derive(Debug, Default)]
pub(super) struct Network {
    /// Cut in this direction.
    cut: BTreeSet<Link>,
    /// When the last message of a link arrives.
    arrivals: BTreeMap<Link, Micros>,
    is_calm: bool,
}

impl Network {
    pub(super) fn cut(&mut self, from: MemberId, to: MemberId) {
        self.cut.insert((from, to));
    }

    pub(super) fn heal(&mut self) {
        self.cut.clear();
    }

    /// From now on everything arrives.
    pub(super) fn calm_down(&mut self) {
        self.heal();
        self.is_calm = true;
    }

    pub(super) fn is_cut(&self, from: MemberId, to: MemberId) -> bool {
        self.cut.contains(&(from, to))
    }

    /// When the message arrives: never, once, or twice.
    pub(super) fn carry(
        &mut self,
        message: &Message,
        now: Micros,
        weather: Weather,
        random: &mut Random,
    ) -> Vec<Micros> {
        let link = ends(message);
        if self.is_cut(link.0, link.1) {
            return Vec::new();
        }
        let mut one_in = |count| random.below(count) == 0;
        let is_calm = self.is_calm;
        if !is_calm && weather.loss && one_in(15) {
            return Vec::new();
        }
        // Elections are rare, and what goes wrong in them is a matter of moments.
        let is_vote = message.r#type == Some(MessageType::MsgVote.into());
        let is_late = !is_calm && weather.delay && one_in(if is_vote { 3 } else { 12 });
        let overtakes = !is_calm && weather.reorder && one_in(4);
        let is_proposal = message.r#type == Some(MessageType::MsgProp.into());
        let is_doubled = !is_calm && weather.duplicates && !is_proposal && one_in(12);
        let mut when = now + 50 + random.below(600);
        if message.snapshot.is_some() {
            when += random.below(2 * TICK);
        }
        if is_late {
            when += random.below(15 * TICK);
        }
        // A snapshot has a connection of its own, and what is late waits alone.
        if !overtakes && !is_late && message.snapshot.is_none() {
            let last = self.arrivals.entry(link).or_default();
            when = when.max(*last);
            *last = when;
        }
        if is_doubled { vec![when, when + random.below(3 * TICK)] } else { vec![when] }
    }
}

/// Where a message comes from and goes to.
pub(super) fn ends(message: &Message) -> Link {
    (MemberId(message.from.unwrap_or(0)), MemberId(message.to.unwrap_or(0)))
}
