//! Placeholder header of consensus.
