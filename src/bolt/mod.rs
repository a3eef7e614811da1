//! Placeholder header of bolt.
