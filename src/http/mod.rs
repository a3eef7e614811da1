//! Placeholder header of http.
