//! Waiting for a data directory that a server may have.
//!
//! Decides when to give up: a tool in a script must not wait for ever by default. Used by every
//! command that opens a backend.
//!
//! Source: etcd `etcdutl/ctl.go`, `--timeout`; bbolt `errors.ErrTimeout`.

use std::{fs::File, io, path::PathBuf, thread, time::Duration};

use rustix::{fs::FlockOperation, io::Errno};

use super::OfflineError;
use crate::{
    base::clock::Clock,
    storage::{Backend, BackendOptions, Writer},
};

/// The file that whoever has a backend keeps locked.
const OWNER_FILE: &str = "owner.lock";
const RETRY: Duration = Duration::from_millis(50);

/// How long to wait for another process to leave; zero waits for ever. Etcd's default: 10 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockTimeout(pub Duration);

impl Default for LockTimeout {
    fn default() -> Self {
        Self(Duration::from_secs(10))
    }
}

/// Opens the backend in `dir` once nobody else has it.
pub(super) fn open(dir: PathBuf, timeout: LockTimeout) -> Result<(Backend, Writer), OfflineError> {
    if timeout.0 != Duration::ZERO {
        wait(&dir.join(OWNER_FILE), timeout.0)?;
    }
    Ok(Backend::open(&BackendOptions::new(dir))?)
}

/// Returns when the lock could be had; opening the backend then takes it for good.
fn wait(path: &std::path::Path, timeout: Duration) -> Result<(), OfflineError> {
    let owner = match File::open(path) {
        Ok(owner) => owner,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(OfflineError::Io(error)),
    };
    let clock = Clock::system();
    loop {
        match rustix::fs::flock(&owner, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) if timeout <= clock.now() => {
                return Err(OfflineError::Refused("timeout".to_owned()));
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) => thread::sleep(RETRY),
            Err(error) => return Err(OfflineError::Io(error.into())),
        }
    }
}
