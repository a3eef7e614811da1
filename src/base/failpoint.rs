//! Named points where a test can make the process die, wait or fail.
//!
//! Decides nothing in a normal build: without the feature `failpoints` the macro is empty. Names
//! are etcd's, at etcd's places, so that its robustness scenarios apply.

/// Marks a point by etcd's name for it.
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        $crate::base::failpoint::hit($name);
    };
}

/// Acts on the point `name` as `OXETCD_FAILPOINTS` (`name=panic;name=kill;name=sleep(ms)`) says.
#[cfg(feature = "failpoints")]
pub fn hit(name: &str) {
    use std::{env, process, time::Duration};
    let Ok(actions) = env::var("OXETCD_FAILPOINTS") else { return };
    for (point, action) in actions.split(';').filter_map(|item| item.split_once('=')) {
        if point != name {
            continue;
        }
        match action.strip_prefix("sleep(").and_then(|rest| rest.strip_suffix(')')) {
            Some(millis) => {
                std::thread::sleep(Duration::from_millis(millis.parse().unwrap_or(0)));
            }
            None if action == "kill" => process::abort(),
            None => panic!("failpoint {name}"),
        }
    }
}
