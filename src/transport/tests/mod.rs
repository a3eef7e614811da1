//! Services that talk to each other over the loopback.

mod endpoints;
mod fake;
mod talk;
