//! Services that talk to each other over the loopback.

mod endpoints;
mod fake;
mod odd_peers;
mod talk;
