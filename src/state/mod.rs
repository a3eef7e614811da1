//! Placeholder header of state.
