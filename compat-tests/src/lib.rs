//! Black-box checks of a server that speaks etcd's API.
//!
//! Decides what "the same as etcd" means: the same requests, sent to official etcd and to
//! oxetcd, get the same answers after ids and times are made equal. Nothing here knows how either
//! of them works inside. Used by the tests of this crate and by its binaries: `compat` (etcd's own
//! suites, and Kubernetes on a group whose members are killed), `fault` (crashes under a ledger of
//! acknowledged writes), `partition` (the same with a network that is cut) and `dns` (members that
//! find one another by name).
//!
//! ```text
//!   Script --run--> official etcd --> Transcript --+
//!          --run--> oxetcd        --> Transcript --+--> equal, line by line
//! ```
#![expect(clippy::disallowed_methods, reason = "servers under test run on real time")]

pub mod dns;
pub mod fault;
pub mod files;
pub mod group;
pub mod kubernetes;
pub mod ledger;
pub mod network;
pub mod partition;
pub mod random;
pub mod raw;
pub mod robustness;
pub mod script;
pub mod server;
pub mod transcript;
