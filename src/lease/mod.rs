//! Placeholder header of lease.
