//! Delivers applied changes to watchers.

mod bodies;
pub mod frame;
pub mod history;
pub mod hub;
mod interest;
mod interval;
mod ledger;
pub mod request;
mod slab;
#[cfg(test)]
mod tests;
