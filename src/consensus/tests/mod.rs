//! Tests of the core as a whole, one file per way of testing it.

mod chaos;
mod cluster;
mod interaction;
mod single;
mod traps;

/// A variable of the environment.
#[expect(clippy::disallowed_methods, reason = "tests are configured by the environment alone")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
