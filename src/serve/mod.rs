//! Placeholder header of serve.
