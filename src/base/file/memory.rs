//! Files that are only in memory: the disk of a simulated machine.
//!
//! Decides nothing; it keeps names and bytes, as a file system would. Faults are injected by the
//! [`super::Disk`] around it. Names are flat paths: a directory is there once it was created.
//!
//! Deliberately absent: locks (a simulated machine runs one process at a time) and permissions.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The bytes of one file.
pub(super) type Content = Arc<Mutex<Vec<u8>>>;

/// Every file of one machine. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub(super) struct Files(Arc<Mutex<Names>>);

#[derive(Debug, Default)]
struct Names {
    files: BTreeMap<PathBuf, Content>,
    directories: BTreeSet<PathBuf>,
}

impl Files {
    fn names(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(&self, path: &Path) -> io::Result<Content> {
        self.names().files.get(path).cloned().ok_or_else(|| missing(path))
    }

    /// Creates the file, or empties it.
    pub(super) fn create(&self, path: &Path) -> io::Result<Content> {
        let mut names = self.names();
        if !path.parent().is_some_and(|parent| names.directories.contains(parent)) {
            return Err(missing(path));
        }
        let content = Arc::clone(names.files.entry(path.to_owned()).or_default());
        drop(names);
        bytes(&content).clear();
        Ok(content)
    }

    pub(super) fn create_directory(&self, path: &Path) {
        self.names().directories.extend(path.ancestors().map(Path::to_owned));
    }

    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        self.names().files.remove(path).map(drop).ok_or_else(|| missing(path))
    }

    pub(super) fn exists(&self, path: &Path) -> bool {
        let names = self.names();
        names.files.contains_key(path) || names.directories.contains(path)
    }

    /// Renames a file, or a directory with everything in it.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut names = self.names();
        if let Some(content) = names.files.remove(from) {
            names.files.insert(to.to_owned(), content);
            return Ok(());
        }
        if !names.directories.remove(from) {
            return Err(missing(from));
        }
        names.directories.insert(to.to_owned());
        let moved = names.files.extract_if(.., |path, _| path.starts_with(from));
        let moved: Vec<_> = moved.collect();
        for (path, content) in moved {
            let rest = path.strip_prefix(from).expect("it starts with the prefix");
            names.files.insert(to.join(rest), content);
        }
        Ok(())
    }

    /// The names in a directory, in order.
    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let names = self.names();
        if !names.directories.contains(path) {
            return Err(missing(path));
        }
        let inside = names.files.keys().filter(|file| file.parent() == Some(path));
        let inside = inside.filter_map(|file| file.file_name());
        Ok(inside.map(|name| name.to_string_lossy().into_owned()).collect())
    }
}

/// The bytes of a file, for reading or writing.
pub(super) fn bytes(content: &Content) -> MutexGuard<'_, Vec<u8>> {
    content.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes `new` at `offset`; a gap before it becomes zeros.
pub(super) fn write_at(content: &Content, new: &[u8], offset: u64) {
    let mut bytes = bytes(content);
    let start = position(offset);
    let end = start + new.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[start..end].copy_from_slice(new);
}

/// Fills `buffer` from `offset` as far as the file goes.
pub(super) fn read_at(content: &Content, buffer: &mut [u8], offset: u64) {
    let bytes = bytes(content);
    let rest = bytes.get(position(offset)..).unwrap_or_default();
    let read = rest.len().min(buffer.len());
    buffer[..read].copy_from_slice(&rest[..read]);
}

pub(super) fn position(offset: u64) -> usize {
    usize::try_from(offset).expect("the file is in memory")
}

fn missing(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("there is no {}", path.display()))
}
