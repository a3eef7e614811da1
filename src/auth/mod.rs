//! Placeholder header of auth.
