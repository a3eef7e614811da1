//! Placeholder header of api.
