//! Placeholder header of mvcc.
