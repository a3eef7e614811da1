//! Placeholder header of config.
