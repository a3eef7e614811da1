//! Placeholder header of files.
