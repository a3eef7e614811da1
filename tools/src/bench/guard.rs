//! Ends a server when the bench ends without having done so.
//!
//! A bench that is interrupted, by a signal of any kind, cannot end what it started. So each server
//! has a guard beside it: a shell that reads from a pipe which nobody writes. When the bench goes,
//! the pipe ends, and the guard kills the server and removes its directory. A bench that has ended
//! the server itself dismisses the guard first. Used by `server`.

use std::{
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::Context;

/// What the shell does; its arguments are a process and a directory.
const SCRIPT: &str = "trap '' HUP INT TERM; read -r line; kill -9 \"$1\"; rm -rf \"$2\"";

/// A guard at work. Dropped, it is dismissed.
#[derive(Debug)]
pub(super) struct Guard(Child);

impl Guard {
    /// Sets a guard beside the process `pid`, a child of this one, which uses `dir`.
    ///
    /// # Errors
    /// If there is no shell.
    pub(super) fn of(pid: u32, dir: &Path) -> anyhow::Result<Self> {
        let guard = Command::new("sh")
            .args(["-c", SCRIPT, "guard", &pid.to_string()])
            .arg(dir)
            // What a terminal sends to the group of the bench does not reach it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        guard.map(Self).context("cannot start a shell")
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Killed while the pipe is open, it has nothing to do; it cannot be gone before that.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::Guard;

    fn sleeper() -> std::process::Child {
        Command::new("sleep").arg("1000").spawn().unwrap()
    }

    #[test]
    fn server_ends_with_the_bench_unless_the_guard_was_dismissed() {
        let dir = std::env::temp_dir().join(format!("guard-{}", std::process::id()));
        fs::create_dir_all(dir.join("data")).unwrap();
        let mut server = sleeper();
        drop(Guard::of(server.id(), &dir).unwrap());
        assert!(server.try_wait().unwrap().is_none() && dir.exists(), "dismissed");
        let mut guard = Guard::of(server.id(), &dir).unwrap();
        // As the end of this process would do.
        drop(guard.0.stdin.take());
        guard.0.wait().unwrap();
        assert!(!server.wait().unwrap().success(), "the server was not killed");
        assert!(!dir.exists(), "the directory was left");
    }
}
