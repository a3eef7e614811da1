//! Listeners, connections and the threads that serve them.
//!
//! Decides which thread a connection lives on (the one with the fewest), how many there may be, and
//! how they end. A connection speaks HTTP/1 or HTTP/2 as its first bytes say; gRPC requests go to
//! `api`, all others to `http`.
//!
//! ```text
//!   accept (one thread) --least loaded--> api-0  \
//!          |                              api-1   > one runtime each: connection --+--> driver --> api
//!          |                              api-N  /                                 +--> hyper --> http
//!          +-- metrics port: served right there, so it answers while the others are busy
//! ```
//!
//! Invariants
//! - V1 A connection never changes its thread.
//! - V2 A listener serves at most `connections_max` connections at once; more wait in the kernel.
//! - V3 After [`Serving::stop`] no task of a connection is left.
//!
//! Deliberately absent: TLS.
//!
//! Source: etcd `server/embed/etcd.go` and `server/embed/serve.go`.

mod calls;
mod connection;
mod driver;
mod http2;
#[cfg(test)]
mod http2_tests;
mod life;
mod listener;
mod options;
mod requests;
mod rest;
mod sniff;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod watch_tests;
mod workers;

pub use listener::{Listeners, SocketError, bind_peers};
pub use options::{Endpoint, Options, Traffic};
pub use workers::{Serving, start};
