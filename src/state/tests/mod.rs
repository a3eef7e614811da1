//! The machine under scripts, random logs and restarts.
//!
//! Every test reaches the machine through [`member::Member`]: one member's apply and flush threads
//! rolled into one, on a real backend in a temporary directory.

pub(crate) mod member;
mod official;
mod property;
mod refusal;
mod script;
