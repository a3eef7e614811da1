//! `.snap` files: what a raft snapshot says of itself, for members that are older than 3.7.
//!
//! Decides how such a file is written (whole or not at all), found and removed. The state itself is
//! in the backend; etcd 3.7 writes these files, and reads none of them but to go back to 3.6. Used
//! by `replica::snapshot` and exchange.
//!
//! ```text
//!   <term %016x>-<index %016x>.snap
//!     snappb.Snapshot { crc: CRC-32C of data, data: raftpb.Snapshot }
//! ```
//!
//! Source: etcd `server/etcdserver/api/snap/snapshotter.go`.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use prost::Message;
use proto::{
    raftpb::{Snapshot, SnapshotMetadata},
    snappb,
};

use super::metrics;
use crate::base::{clock::Clock, file::Disk};

const SUFFIX: &str = ".snap";
/// etcd removes files of this beginning when it starts.
const TEMPORARY_PREFIX: &str = "tmp-";

/// A file or directory that could not be used.
#[derive(Debug)]
pub struct SnapError {
    /// Which one.
    pub file: PathBuf,
    /// The system's reason.
    pub source: io::Error,
}

impl fmt::Display for SnapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot use {}", self.file.display())
    }
}

impl std::error::Error for SnapError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Writes `snapshot` to `dir`, durably. An empty one, at entry 0, is not written.
///
/// # Errors
/// - [`SnapError`] if the file cannot be written; a temporary file may stay until [`purge`].
pub fn save(disk: &Disk, dir: &Path, snapshot: &Snapshot) -> Result<(), SnapError> {
    let clock = Clock::system();
    let Some(name) = name_of(snapshot) else { return Ok(()) };
    let bytes = encode(snapshot);
    let encoded = clock.now();
    metrics::SNAP_MARSHAL_SECONDS.observe(encoded.as_secs_f64());
    let path = dir.join(&name);
    let temporary = dir.join(format!("{TEMPORARY_PREFIX}{name}"));
    let written = disk.replace(&path, &temporary, &bytes);
    metrics::SNAP_FSYNC_SECONDS.observe((clock.now() - encoded).as_secs_f64());
    written.map_err(|source| SnapError { file: path, source })?;
    metrics::SNAP_SAVE_SECONDS.observe(clock.now().as_secs_f64());
    Ok(())
}

/// The newest snapshot in `dir` that is whole and that `wanted` accepts. One that is not whole gets
/// the suffix `.broken`.
///
/// # Errors
/// - [`SnapError`] if the directory or a file cannot be read.
pub fn load(
    disk: &Disk,
    dir: &Path,
    wanted: impl Fn(&SnapshotMetadata) -> bool,
) -> Result<Option<Snapshot>, SnapError> {
    for name in names(disk, dir)?.into_iter().rev() {
        let path = dir.join(&name);
        let bytes = disk.read(&path);
        let bytes = bytes.map_err(|source| SnapError { file: path.clone(), source })?;
        match decode(&bytes) {
            Some(snapshot) if snapshot.metadata.as_ref().is_some_and(&wanted) => {
                return Ok(Some(snapshot));
            }
            Some(_) => {}
            None => set_aside(disk, dir, &name)?,
        }
    }
    Ok(None)
}

/// Removes the oldest files until `keep_files_max` are left (0: removes none), and what an
/// interrupted [`save`] left behind. For the thread that saves.
///
/// # Errors
/// - [`SnapError`] if a file cannot be removed.
pub fn purge(disk: &Disk, dir: &Path, keep_files_max: usize) -> Result<(), SnapError> {
    let all = list(disk, dir)?;
    for name in all.iter().filter(|name| name.starts_with(TEMPORARY_PREFIX)) {
        remove(disk, &dir.join(name))?;
    }
    let names = names(disk, dir)?;
    let kept = if keep_files_max == 0 { names.len() } else { keep_files_max };
    for name in &names[..names.len().saturating_sub(kept)] {
        let path = dir.join(name);
        remove(disk, &path)?;
        tracing::info!(path = %path.display(), "purged");
    }
    Ok(())
}

fn remove(disk: &Disk, path: &Path) -> Result<(), SnapError> {
    disk.remove(path).map_err(|source| SnapError { file: path.to_owned(), source })
}

fn list(disk: &Disk, dir: &Path) -> Result<Vec<String>, SnapError> {
    disk.list(dir).map_err(|source| SnapError { file: dir.to_owned(), source })
}

/// A file's content.
#[must_use]
pub fn encode(snapshot: &Snapshot) -> Vec<u8> {
    let data = snapshot.encode_to_vec();
    let crc = crc32c::crc32c(&data);
    snappb::Snapshot { crc: Some(crc), data: Some(data.into()) }.encode_to_vec()
}

/// Reads a file's content; `None` if it is not what was written.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<Snapshot> {
    let envelope = snappb::Snapshot::decode(bytes).ok()?;
    let data = envelope.data?;
    if envelope.crc != Some(crc32c::crc32c(&data)) {
        return None;
    }
    Snapshot::decode(data).ok()
}

/// The names of the snapshots in `dir`, oldest first.
fn names(disk: &Disk, dir: &Path) -> Result<Vec<String>, SnapError> {
    let mut names = list(disk, dir)?;
    names.retain(|name| name.ends_with(SUFFIX) && !name.starts_with(TEMPORARY_PREFIX));
    Ok(names)
}

fn name_of(snapshot: &Snapshot) -> Option<String> {
    let metadata = snapshot.metadata.as_ref()?;
    let (term, index) = (metadata.term.unwrap_or(0), metadata.index.unwrap_or(0));
    (index != 0).then(|| format!("{term:016x}-{index:016x}{SUFFIX}"))
}

fn set_aside(disk: &Disk, dir: &Path, name: &str) -> Result<(), SnapError> {
    let path = dir.join(name);
    let broken = dir.join(format!("{name}.broken"));
    tracing::warn!(
        path = %path.display(),
        "broken-path" = %broken.display(),
        "renamed to a broken snap file"
    );
    disk.rename(&path, &broken).map_err(|source| SnapError { file: path, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::raftpb::ConfState;
    use std::fs;
    use tempfile::TempDir;

    fn snapshot(term: u64, index: u64) -> Snapshot {
        let conf_state = ConfState { voters: vec![7], ..ConfState::default() };
        let metadata =
            SnapshotMetadata { conf_state: Some(conf_state), index: Some(index), term: Some(term) };
        Snapshot { data: Some(b"{}".as_slice().into()), metadata: Some(metadata) }
    }

    fn any(_: &SnapshotMetadata) -> bool {
        true
    }

    #[test]
    fn newest_whole_and_wanted_snapshot_is_loaded() {
        let dir = TempDir::new().unwrap();
        let disk = Disk::system();
        assert_eq!(load(&disk, dir.path(), any).unwrap(), None);
        for (term, index) in [(2, 5), (2, 40), (3, 9)] {
            save(&disk, dir.path(), &snapshot(term, index)).unwrap();
        }
        assert_eq!(load(&disk, dir.path(), any).unwrap(), Some(snapshot(3, 9)));
        let older = |metadata: &SnapshotMetadata| metadata.term == Some(2);
        assert_eq!(load(&disk, dir.path(), older).unwrap(), Some(snapshot(2, 40)));
    }

    #[test]
    fn broken_snapshot_is_set_aside() {
        let dir = TempDir::new().unwrap();
        let disk = Disk::system();
        save(&disk, dir.path(), &snapshot(2, 5)).unwrap();
        save(&disk, dir.path(), &snapshot(2, 6)).unwrap();
        let path = dir.path().join("0000000000000002-0000000000000006.snap");
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert_eq!(decode(&bytes), None, "byte {at}");
        }
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(load(&disk, dir.path(), any).unwrap(), Some(snapshot(2, 5)));
        assert!(!path.exists() && path.with_extension("snap.broken").exists());
    }

    #[test]
    fn oldest_files_go_first() {
        let dir = TempDir::new().unwrap();
        let disk = Disk::system();
        fs::write(dir.path().join("db"), "").unwrap();
        for index in 1..=5 {
            save(&disk, dir.path(), &snapshot(2, index)).unwrap();
        }
        purge(&disk, dir.path(), 0).unwrap();
        assert_eq!(names(&disk, dir.path()).unwrap().len(), 5);
        purge(&disk, dir.path(), 2).unwrap();
        let left = names(&disk, dir.path()).unwrap();
        assert_eq!(left, [4, 5].map(|index| name_of(&snapshot(2, index)).unwrap()));
        assert!(dir.path().join("db").exists());
    }

    #[test]
    fn failed_write_leaves_the_snapshots_that_were_there() {
        let dir = TempDir::new().unwrap();
        let disk = Disk::faulty();
        save(&disk, dir.path(), &snapshot(2, 5)).unwrap();
        disk.fail_sync_after(0);
        assert!(save(&disk, dir.path(), &snapshot(2, 6)).is_err());
        let disk = Disk::system();
        assert_eq!(load(&disk, dir.path(), any).unwrap(), Some(snapshot(2, 5)));
        purge(&disk, dir.path(), 0).unwrap();
        assert_eq!(disk.list(dir.path()).unwrap().len(), 1, "an unfinished file stays for ever");
    }

    #[test]
    fn snapshot_of_nothing_is_not_written() {
        let dir = TempDir::new().unwrap();
        save(&Disk::system(), dir.path(), &Snapshot::default()).unwrap();
        assert_eq!(names(&Disk::system(), dir.path()).unwrap().len(), 0);
    }
}
