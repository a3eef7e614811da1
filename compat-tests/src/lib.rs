//! Black-box checks.
