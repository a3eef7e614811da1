//! Placeholder header of exchange.
