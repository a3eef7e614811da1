//! Placeholder header of storage.
