//! The URLs of a peer, and which of them to try.
//!
//! Decides that the URL that worked is used until it does not. Used by everything that dials.
//!
//! Source: etcd `server/etcdserver/api/rafthttp/urlpick.go`.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The URLs of one peer.
#[derive(Debug)]
pub(super) struct Picker(Mutex<State>);

#[derive(Debug)]
struct State {
    urls: Vec<String>,
    picked: usize,
}

impl Picker {
    pub(super) const fn new(urls: Vec<String>) -> Self {
        Self(Mutex::new(State { urls, picked: 0 }))
    }

    /// Forgets the URLs for others; whether they are others.
    pub(super) fn update(&self, urls: Vec<String>) -> bool {
        let mut state = self.lock();
        let differs = state.urls != urls;
        if differs {
            *state = State { urls, picked: 0 };
        }
        differs
    }

    /// The URL to try; empty for a peer without any.
    pub(super) fn pick(&self) -> String {
        let state = self.lock();
        state.urls.get(state.picked).cloned().unwrap_or_default()
    }

    /// How many URLs there are.
    pub(super) fn count(&self) -> usize {
        self.lock().urls.len()
    }

    /// Goes on to the next URL, unless that was done already.
    pub(super) fn unreachable(&self, url: &str) {
        let mut state = self.lock();
        if state.urls.get(state.picked).is_some_and(|picked| picked == url) {
            state.picked = (state.picked + 1) % state.urls.len();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics half-way through a change, so a poisoned state is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_url_is_tried_once_one_fails() {
        let picker = Picker::new(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(picker.pick(), "a");
        picker.unreachable("a");
        picker.unreachable("a");
        assert_eq!(picker.pick(), "b", "the second report was of a URL that was left already");
        picker.unreachable("b");
        assert_eq!(picker.pick(), "a");
        assert!(!picker.update(vec!["a".to_owned(), "b".to_owned()]));
        assert!(picker.update(Vec::new()));
        picker.unreachable("a");
        assert_eq!(picker.pick(), "");
    }
}
