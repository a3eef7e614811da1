//! Placeholder header of cluster.
