//! Services that talk to each other over the loopback.

mod fake;
mod talk;
