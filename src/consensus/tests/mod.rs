//! Tests of the core as a whole, one file per way of testing it.

mod chaos;
mod cluster;
mod interaction;
mod single;
mod traps;
