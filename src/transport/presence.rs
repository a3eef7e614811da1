//! Whether the process of a peer is known to have ended.
//!
//! Decides when a peer counts as gone: every stream from it ended, and then each of its URLs refused
//! a connection, as a machine does where nobody listens. A network that is cut answers nothing, and a
//! process that stands still or starts again keeps or takes connections; neither counts. Written by
//! the two readers of a peer, on the `peer` thread.
//!
//! Deliberately absent: what follows from it (`consensus` decides that).

use std::{
    collections::BTreeSet,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::dial::PeerError;

/// What shows that a peer is there, or is not.
#[derive(Debug, Default)]
pub(super) struct Presence(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    streams: usize,
    absence: Absence,
}

/// What is known since the last stream began.
#[derive(Debug, Default)]
enum Absence {
    /// No stream has ever been there, or the end was told already.
    #[default]
    Settled,
    /// The URLs where nobody listens.
    Refused(BTreeSet<String>),
}

/// A stream from the peer, for as long as it is held.
#[derive(Debug)]
pub(super) struct Attached<'a>(&'a Presence);

impl Presence {
    /// A stream from the peer has begun.
    pub(super) fn attach(&self) -> Attached<'_> {
        let mut state = self.lock();
        state.streams += 1;
        state.absence = Absence::Refused(BTreeSet::new());
        Attached(self)
    }

    /// Notes that a connection with `url`, one of `urls_count`, did not come about. True if that
    /// shows the end of the peer's process; once, until a stream begins again.
    pub(super) fn failed(&self, url: &str, error: &PeerError, urls_count: usize) -> bool {
        let refused = matches!(error, PeerError::Io(error)
            if error.kind() == io::ErrorKind::ConnectionRefused);
        let mut state = self.lock();
        let is_detached = state.streams == 0;
        let Absence::Refused(urls) = &mut state.absence else { return false };
        if !refused {
            urls.clear();
            return false;
        }
        urls.insert(url.to_owned());
        let is_gone = is_detached && urls_count <= urls.len();
        if is_gone {
            state.absence = Absence::Settled;
        }
        is_gone
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics half-way through a change, so a poisoned state is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        assert!(0 < state.streams, "a stream ended that had not begun");
        state.streams -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> PeerError {
        PeerError::Io(io::Error::from(io::ErrorKind::ConnectionRefused))
    }

    #[test]
    fn peer_is_gone_when_its_streams_ended_and_nobody_listens() {
        let presence = Presence::default();
        assert!(!presence.failed("a", &refused(), 1), "it was never there");
        let (one, other) = (presence.attach(), presence.attach());
        drop(one);
        assert!(!presence.failed("a", &refused(), 1), "a stream is still there");
        drop(other);
        assert!(presence.failed("a", &refused(), 1));
        assert!(!presence.failed("a", &refused(), 1), "it was told already");
        drop(presence.attach());
        assert!(presence.failed("a", &refused(), 1), "it came back and went again");
    }

    #[test]
    fn every_url_must_refuse() {
        let presence = Presence::default();
        drop(presence.attach());
        assert!(!presence.failed("a", &refused(), 2));
        assert!(!presence.failed("a", &refused(), 2), "the same one again");
        assert!(presence.failed("b", &refused(), 2));
    }

    #[test]
    fn silence_is_no_end() {
        let presence = Presence::default();
        drop(presence.attach());
        assert!(!presence.failed("a", &PeerError::TimedOut, 1));
        assert!(!presence.failed("a", &refused(), 2));
        let reset = PeerError::Io(io::Error::from(io::ErrorKind::ConnectionReset));
        assert!(!presence.failed("b", &reset, 2), "somebody answered");
        assert!(!presence.failed("b", &refused(), 2), "what was refused before counts no more");
    }
}
