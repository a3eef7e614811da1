//! HTTP/2 from the server's side, made for many small calls.
//!
//! Decides what the protocol decides and nothing else: no socket, no clock, no task. Whoever drives
//! a connection puts in the bytes that came, takes out what the client did, tells it what to answer,
//! and writes what is in the output: once for everything that came together.
//!
//! ```text
//!   bytes --> frame --> connection --> Event                      driver
//!              hpack, huffman -> fields    |                         |
//!                                       streams, limits              |
//!                                          |                         |
//!   bytes <-- frame <-- sending <----------+---- answer, send, finish
//!              encode
//! ```
//!
//! Invariants
//! - P1 However the bytes are cut, the events are the same.
//! - P2 What a client can make us keep is bounded: fields of a request, content per stream and per
//!   connection by their windows, output by [`OUTPUT_BYTES_MAX`] and what its frames ask for, and
//!   answers that it does not take by refusing its further requests.
//! - P3 No bytes of a client make anything here panic.
//!
//! Deliberately absent: priorities (read and ignored), pushes, the client's side.
//!
//! Source: RFC 9113 and RFC 7541.

mod connection;
mod encode;
mod fields;
mod frame;
mod hpack;
mod huffman;
mod limits;
mod sending;
mod streams;
#[cfg(test)]
pub(super) mod tests;

pub(super) use connection::{Connection, Event, Settings};
pub(super) use fields::Fields;
pub(super) use frame::{Code, PREFACE};
pub(super) use sending::OUTPUT_BYTES_MAX;
pub(super) use streams::{End, Key};
