//! A Kubernetes API server on a group of three members that are killed one after the other.
//!
//! Decides what a cluster's control plane must not notice: that members of its store die and come
//! back. The API server is Kubernetes's own, built from its Go modules; everything is asked of it over
//! its own API, as a controller would. Called by the binary `compat`.
//!
//! ```text
//!   workers: create, apply, patch --+                           +--> member 1   kill -9, restart
//!   watcher: list, watch, 410      -+--TLS--> kube-apiserver ---+--> member 2   kill -9, restart
//!   checks:  lists, events         -+                           +--> member 3   kill -9, restart
//! ```
//!
//! What holds at the end
//! - U1 Every object that was acknowledged is there, with what was acknowledged last, at that version
//!   or a later one.
//! - U2 A watch that was kept from the beginning, through 410 and broken streams, has the picture that
//!   a list has.
//! - U3 Events live their time and no object of theirs is left after it.
//! - U4 All members hold the same.
//!
//! Deliberately absent: nodes, schedulers, controllers. They are clients of the API server, and what
//! they send to the store is what the workers make it send.

mod client;
mod drill;
mod picture;
mod process;

pub use drill::{Step, drill};
