//! Tests of the core as a whole, one file per way of testing it.

mod chaos;
mod cluster;
mod gone;
mod interaction;
mod pure;
mod raft_crate;
mod random_scripts;
mod script;
mod single;
mod traps;
