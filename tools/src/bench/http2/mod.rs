//! A gRPC client over HTTP/2 that costs next to nothing.
//!
//! Decides how bytes go to a server and come back; knows nothing of etcd. It exists because a
//! generator must not use the processor that the server under test needs: a general client costs
//! more per call than a fast server. One thread owns all connections of a [`Poller`]; it sleeps in
//! `ppoll` and never spins.
//!
//! ```text
//!   load, caller --send--> Connection --frames, hpack--> socket
//!        ^                     |
//!        +----- Handler <------+   message(stream, bytes), ended(stream, status)
//! ```
//!
//! Windows for what we receive are as large as the protocol allows, so a server is never held up by
//! us; windows for what we send are respected, and what does not fit waits in the connection.
//!
//! Deliberately absent: TLS, compression, server push, priorities, reconnecting.

mod connection;
mod frame;
mod hpack;
mod streams;

pub use self::{
    connection::{Connection, Poller},
    streams::{Answer, Handler, StreamId},
};
