//! Waiting for a data directory that a server may have.
//!
//! Decides when to give up: a tool in a script must not wait for ever by default. Used by every
//! command that opens a backend.
//!
//! Source: etcd `etcdutl/ctl.go`, `--timeout`; bbolt `errors.ErrTimeout`.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

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
    // Opening takes the lock for good, and would wait for ever.
    drop(take(&dir, timeout)?);
    Ok(Backend::open(&BackendOptions::new(dir))?)
}

/// Keeps everybody else out of the backend in `dir` while the result lives; `None` if nobody ever
/// opened it.
#[expect(clippy::disallowed_methods, reason = "the kernel wakes nobody before a deadline")]
pub(super) fn take(dir: &Path, timeout: LockTimeout) -> Result<Option<File>, OfflineError> {
    let owner = match File::open(dir.join(OWNER_FILE)) {
        Ok(owner) => owner,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(OfflineError::Io(error)),
    };
    let clock = Clock::system();
    loop {
        match rustix::fs::flock(&owner, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(owner)),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(error) => return Err(OfflineError::Io(error.into())),
        }
        if timeout.0 != Duration::ZERO && timeout.0 <= clock.now() {
            return Err(OfflineError::Refused("timeout".to_owned()));
        }
        thread::sleep(RETRY);
    }
}
