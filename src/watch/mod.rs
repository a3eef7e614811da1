//! Placeholder header of watch.
