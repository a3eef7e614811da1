//! Placeholder header of api.

pub mod codec;
