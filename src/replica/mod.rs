//! Placeholder header of replica.
