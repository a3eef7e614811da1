//! The file of a database that was replaced, on its way out.
//!
//! Decides how its blocks are given back: some megabytes at a time, once nobody reads it any more.
//! Given back at once, as by the last close of a removed file, they keep the disk busy: 200 MB for
//! 54 ms, in which syncs of the log took up to 15 ms. In steps, none took longer than without.
//! Owned by the flusher, which does one step between others. A process that ends meanwhile leaves
//! the rest to the system.

use std::{
    fs::{File, OpenOptions},
    io,
    path::Path,
    sync::{Arc, Weak},
};

use super::environment::Environment;

/// What a step gives back, in bytes: less than a millisecond of the file system's work.
const STEP_BYTES: u64 = 2 << 20;

/// A file without a name.
#[derive(Debug)]
pub(super) struct Remains {
    file: File,
    bytes: u64,
    /// Alive as long as somebody reads the file, whose map must not lose its end.
    environment: Weak<Environment>,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RemainsStep {
    /// Somebody still reads.
    InUse,
    /// There is more.
    More,
    /// Nothing is left.
    Gone,
}

impl Remains {
    /// What will remain of `environment`, which lies at `file` and is about to be replaced there.
    pub(super) fn of(environment: &Arc<Environment>, file: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).open(file)?;
        let bytes = file.metadata()?.len();
        Ok(Self { file, bytes, environment: Arc::downgrade(environment) })
    }

    /// Gives the next blocks back.
    pub(super) fn step(&mut self) -> io::Result<RemainsStep> {
        if 0 < self.environment.strong_count() {
            return Ok(RemainsStep::InUse);
        }
        self.bytes = self.bytes.saturating_sub(STEP_BYTES);
        self.file.set_len(self.bytes)?;
        Ok(if self.bytes == 0 { RemainsStep::Gone } else { RemainsStep::More })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::environment::DATA_FILE;

    #[test]
    fn file_shrinks_in_steps_once_nobody_reads_it() {
        let place = tempfile::TempDir::new().unwrap();
        let environment = Arc::new(Environment::open(place.path(), 1 << 20).unwrap());
        let path = place.path().join(DATA_FILE);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(2 * STEP_BYTES + 1).unwrap();
        let mut remains = Remains::of(&environment, &path).unwrap();
        assert_eq!(remains.step().unwrap(), RemainsStep::InUse);
        assert_eq!(file.metadata().unwrap().len(), 2 * STEP_BYTES + 1, "somebody reads it");
        drop(environment);
        let steps = [(); 3].map(|()| remains.step().unwrap());
        assert_eq!(steps, [RemainsStep::More, RemainsStep::More, RemainsStep::Gone]);
        assert_eq!(file.metadata().unwrap().len(), 0, "all of it is given back");
    }
}
