//! Placeholder header of transport.
