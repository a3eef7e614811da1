//! The open streams of a connection, and what each may send and receive.
//!
//! Decides how a stream is found: by its number while frames come in, and by its place once it is
//! known. A place is used again after its stream has ended, so whoever keeps one keeps the number
//! beside it. Owned by `connection`.
//!
//! Invariants
//! - N1 A number leads to the place of the stream that has it.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hasher},
};

use bytes::Bytes;

use super::frame::{StreamId, WINDOW_MAX};
use crate::base::random::Random;

/// A stream, as long as it lasts: nothing happens to a key whose stream has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::serve) struct Key {
    pub(super) place: usize,
    pub(super) id: StreamId,
}

impl Key {
    /// A small number that no other open stream of the connection has.
    pub(in crate::serve) const fn place(self) -> usize {
        self.place
    }
}

/// How our side of a stream ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::serve) enum End {
    /// With the content, as plain HTTP does.
    Content,
    /// A gRPC call has succeeded.
    Ok,
    /// A gRPC call has failed: a code in digits, and a text as gRPC encodes it.
    Failure {
        /// The digits.
        code: &'static str,
        /// The text.
        text: String,
    },
}

/// An open stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: StreamId,
    /// The client has said everything.
    pub(super) heard_all: bool,
    /// The fields at the start of our answer are out.
    pub(super) answered: bool,
    /// What we may send; below zero after the peer has taken room back.
    pub(super) room: i64,
    /// What the client may send.
    pub(super) window: u32,
    /// What the client has sent and nobody has taken yet.
    pub(super) held: u32,
    /// What was taken, but not given back to the client's window.
    pub(super) taken: u32,
    /// What could not be sent yet.
    pub(super) rest: Bytes,
    /// What comes after it.
    pub(super) end: Option<End>,
    /// Whether it stands in the queue of those that wait to send.
    pub(super) queued: bool,
}

impl Stream {
    pub(super) const fn new(id: StreamId, heard_all: bool, room: u32, window: u32) -> Self {
        Self {
            id,
            heard_all,
            answered: false,
            room: room as i64,
            window,
            held: 0,
            taken: 0,
            rest: Bytes::new(),
            end: None,
            queued: false,
        }
    }

    /// The peer lets us send more, or less. False if that is more than there can be.
    pub(super) fn grow(&mut self, by: i64) -> bool {
        self.room += by;
        self.room <= i64::from(WINDOW_MAX)
    }
}

/// Spreads the numbers of streams: one multiplication by a number that clients cannot know.
#[derive(Clone, Debug)]
struct Spread(u64);

#[derive(Debug)]
struct Spreader {
    factor: u64,
    hash: u64,
}

impl Default for Spread {
    fn default() -> Self {
        Self(Random::from_system().next() | 1)
    }
}

impl BuildHasher for Spread {
    type Hasher = Spreader;

    fn build_hasher(&self) -> Spreader {
        Spreader { factor: self.0, hash: 0 }
    }
}

impl Hasher for Spreader {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        let product = (self.hash ^ u64::from(number)).wrapping_mul(self.factor);
        self.hash = product ^ (product >> 32);
    }

    fn finish(&self) -> u64 {
        self.hash
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Streams {
    places: Vec<Option<Stream>>,
    free: Vec<usize>,
    by_id: HashMap<StreamId, usize, Spread>,
    /// The newest: frames mostly follow the one that opened their stream.
    newest: Option<Key>,
}

impl Streams {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn insert(&mut self, stream: Stream) -> Key {
        let id = stream.id;
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        let before = self.places[place].replace(stream);
        assert!(before.is_none(), "N1: {id:?} takes the place of {before:?}");
        self.by_id.insert(id, place);
        let key = Key { place, id };
        self.newest = Some(key);
        key
    }

    pub(super) fn find(&self, id: StreamId) -> Option<Key> {
        if let Some(newest) = self.newest
            && newest.id == id
        {
            return Some(newest);
        }
        self.by_id.get(&id).map(|place| Key { place: *place, id })
    }

    pub(super) fn get(&mut self, key: Key) -> Option<&mut Stream> {
        let stream = self.places.get_mut(key.place)?.as_mut()?;
        (stream.id == key.id).then_some(stream)
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Stream> {
        self.get(key)?;
        if self.newest == Some(key) {
            self.newest = None;
        }
        let place = self.by_id.remove(&key.id);
        assert!(place == Some(key.place), "N1: {key:?} was at {place:?}");
        self.free.push(key.place);
        self.places[key.place].take()
    }

    /// Every stream, with its key.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Key, &mut Stream)> {
        self.places.iter_mut().enumerate().filter_map(|(place, stream)| {
            let stream = stream.as_mut()?;
            Some((Key { place, id: stream.id }, stream))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_of_an_ended_stream_leads_nowhere_although_its_place_is_taken() {
        let mut streams = Streams::default();
        let stream = |id| Stream::new(StreamId(id), false, 10, 10);
        let (one, three) = (streams.insert(stream(1)), streams.insert(stream(3)));
        assert!(streams.remove(one).is_some(), "it was open");
        let five = streams.insert(stream(5));
        assert_eq!(five.place(), one.place(), "places are used again");
        assert!(streams.get(one).is_none() && streams.remove(one).is_none(), "ended");
        assert_eq!(streams.find(StreamId(1)), None);
        assert_eq!([3, 5].map(|id| streams.find(StreamId(id))), [Some(three), Some(five)]);
        assert_eq!(streams.len(), 2);
    }
}
