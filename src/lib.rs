//! oxetcd: an etcd v3 server.
//!
//! Decides nothing itself: it lists the modules, in reading order. `ARCHITECTURE.md` beside this
//! file has the map, the threads, the rules of who may use whom, and the glossary. The binaries in
//! `bin/` are the only callers outside of tests and tools.

pub mod model;
pub mod consensus;
pub mod mvcc;
pub mod lease;
pub mod auth;
pub mod cluster;
pub mod state;
pub mod replica;
pub mod watch;
pub mod api;
pub mod http;
pub mod serve;
pub mod storage;
pub mod bolt;
pub mod exchange;
pub mod transport;
pub mod config;
pub mod base;
pub mod offline;
pub mod boot;
