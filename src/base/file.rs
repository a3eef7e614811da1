//! Files as something that can fail: write, sync, rename.
//!
//! Decides how durable files are touched, so that a test can stand between a module and the disk:
//! fail the nth write or sync, cut a write short, and lose at a "crash" whatever was not synced.
//! Used by the log and by snapshot files; LMDB has files of its own.
//!
//! Invariants
//! - F1 After a failed write or sync a faulty disk refuses everything: no caller can go on.
//! - F2 A crash undoes only bytes that no sync covered, sector by sector, in any combination.
//!
//! Deliberately absent: undoing renames and lengths; journalling file systems keep both in order
//! once the directory or the file was synced, and callers sync before they depend on them.

mod memory;

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::fs::FallocateFlags;

use super::random::Random;

/// What a disk writes as a whole or not at all, in bytes.
const SECTOR_BYTES: u64 = 512;

/// Where files live. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Disk(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Faulty(Arc<Mutex<Faults>>),
    /// Faulty, too.
    Memory(memory::Files, Arc<Mutex<Faults>>),
}

/// Where a file's bytes are. Cloning shares them.
#[derive(Clone, Debug)]
enum Inner {
    System(Arc<fs::File>),
    Memory(memory::Content),
}

/// A file that is open for reading and writing.
#[derive(Debug)]
pub struct File {
    inner: Inner,
    path: PathBuf,
    disk: Disk,
}

#[derive(Debug, Default)]
struct Faults {
    /// Writes (syncs) until one fails; `None` for never.
    writes_left: Option<u64>,
    syncs_left: Option<u64>,
    /// Changes of any kind until one does not happen; `None` for never.
    steps_left: Option<u64>,
    /// Bytes of the failing write that arrive.
    short_bytes: usize,
    dead: bool,
    /// What a crash may undo, oldest first.
    unsynced: Vec<Undo>,
}

#[derive(Debug)]
struct Undo {
    file: Inner,
    offset: u64,
    before: Vec<u8>,
}

impl Disk {
    /// The operating system's files.
    #[must_use]
    pub const fn system() -> Self {
        Self(Source::System)
    }

    /// Real files, with faults to be injected.
    #[must_use]
    pub fn faulty() -> Self {
        Self(Source::Faulty(Arc::default()))
    }

    /// An empty disk in memory, with faults to be injected.
    #[must_use]
    pub fn memory() -> Self {
        Self(Source::Memory(memory::Files::default(), Arc::default()))
    }

    /// The same files after a crash, or a restart: everything that is there counts as durable.
    #[must_use]
    pub fn restarted(&self) -> Self {
        Self(match &self.0 {
            Source::System => Source::System,
            Source::Faulty(_) => Source::Faulty(Arc::default()),
            Source::Memory(files, _) => Source::Memory(files.clone(), Arc::default()),
        })
    }

    /// Lets `writes` more writes succeed; of the one after, `short_bytes` bytes arrive, less what
    /// does not fill a sector: systems copy whole pages.
    pub fn fail_write_after(&self, writes: u64, short_bytes: usize) {
        let mut faults = self.faults().expect("only a faulty disk fails on demand");
        faults.writes_left = Some(writes);
        faults.short_bytes = short_bytes;
    }

    /// Lets `syncs` more syncs succeed; the one after fails.
    pub fn fail_sync_after(&self, syncs: u64) {
        self.faults().expect("only a faulty disk fails on demand").syncs_left = Some(syncs);
    }

    /// Lets `steps` more changes happen, of files, names and lengths, and syncs; the one after does
    /// not.
    pub fn fail_after(&self, steps: u64) {
        self.faults().expect("only a faulty disk fails on demand").steps_left = Some(steps);
    }

    /// Cuts the power: of what was not synced, an arbitrary part stays. The disk is dead after
    /// that; its files are opened again through another.
    ///
    /// # Errors
    /// If the test's own files cannot be changed back.
    pub fn crash(&self, random: &mut Random) -> io::Result<()> {
        let mut faults = self.faults().expect("only a faulty disk crashes on demand");
        faults.dead = true;
        let mut settled = HashSet::new();
        for undo in std::mem::take(&mut faults.unsynced).into_iter().rev() {
            undo.roll_back(&mut settled, random)?;
        }
        drop(faults);
        Ok(())
    }

    fn faults(&self) -> Option<MutexGuard<'_, Faults>> {
        match &self.0 {
            Source::System => None,
            Source::Faulty(faults) | Source::Memory(_, faults) => {
                Some(faults.lock().unwrap_or_else(PoisonError::into_inner))
            }
        }
    }

    /// Whether the next change happens.
    fn step(&self) -> io::Result<()> {
        self.faults().map_or(Ok(()), |mut faults| faults.step())
    }

    /// Creates `path` for its owner only, or empties it.
    ///
    /// # Errors
    /// Those of the system.
    pub fn create(&self, path: &Path) -> io::Result<File> {
        self.step()?;
        if let Source::Memory(files, _) = &self.0 {
            return Ok(self.file(Inner::Memory(files.create(path)?), path));
        }
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        Ok(self.file(Inner::System(Arc::new(options.open(path)?)), path))
    }

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open(&self, path: &Path) -> io::Result<File> {
        self.step()?;
        let inner = if let Source::Memory(files, _) = &self.0 {
            Inner::Memory(files.open(path)?)
        } else {
            Inner::System(Arc::new(fs::OpenOptions::new().read(true).write(true).open(path)?))
        };
        Ok(self.file(inner, path))
    }

    fn file(&self, inner: Inner, path: &Path) -> File {
        File { inner, path: path.to_owned(), disk: self.clone() }
    }

    /// Whether there is a file or directory of this name.
    #[must_use]
    pub fn exists(&self, path: &Path) -> bool {
        match &self.0 {
            Source::System | Source::Faulty(_) => path.exists(),
            Source::Memory(files, _) => files.exists(path),
        }
    }

    /// Creates the directory `path`, and its parents, for their owner only.
    ///
    /// # Errors
    /// Those of the system.
    pub fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        if let Source::Memory(files, _) = &self.0 {
            files.create_directory(path);
            return Ok(());
        }
        fs::DirBuilder::new().mode(0o700).recursive(true).create(path)
    }

    /// Renames a file or directory, replacing the target.
    ///
    /// # Errors
    /// Those of the system.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        match &self.0 {
            Source::System | Source::Faulty(_) => fs::rename(from, to),
            Source::Memory(files, _) => files.rename(from, to),
        }
    }

    /// Removes a file.
    ///
    /// # Errors
    /// Those of the system.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        match &self.0 {
            Source::System | Source::Faulty(_) => fs::remove_file(path),
            Source::Memory(files, _) => files.remove(path),
        }
    }

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// Those of the system.
    pub fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        if let Source::Memory(..) = self.0 {
            return Ok(());
        }
        // The parent of a bare name is the empty path.
        let path = if path == Path::new("") { Path::new(".") } else { path };
        fs::File::open(path)?.sync_all()
    }

    /// The names in a directory, in order.
    ///
    /// # Errors
    /// Those of the system.
    pub fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        if let Source::Memory(files, _) = &self.0 {
            return files.list(path);
        }
        let names = fs::read_dir(path)?
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
        let mut names = names.collect::<io::Result<Vec<_>>>()?;
        names.sort_unstable();
        Ok(names)
    }

    /// The whole of a file.
    ///
    /// # Errors
    /// Those of the system.
    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        if let Source::Memory(files, _) = &self.0 {
            return Ok(memory::bytes(&files.open(path)?).clone());
        }
        fs::read(path)
    }

    /// Writes `bytes` to `path` so that a reader finds the old file or the new one: by way of a
    /// temporary file beside it.
    ///
    /// # Errors
    /// Those of the system; the old file is still there.
    pub fn replace(&self, path: &Path, temporary: &Path, bytes: &[u8]) -> io::Result<()> {
        assert!(path.parent() == temporary.parent(), "a rename stays in its directory");
        let file = self.create(temporary)?;
        file.write_at(bytes, 0)?;
        file.sync()?;
        self.rename(temporary, path)?;
        self.sync_directory(path.parent().unwrap_or(Path::new("")))
    }
}

impl File {
    /// The name under which the file was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// Those of the system; part of the bytes may have arrived.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let arriving = self.before_write(bytes.len(), offset)?;
        self.inner.write_at(&bytes[..arriving.unwrap_or(bytes.len())], offset)?;
        match arriving {
            None => Ok(()),
            Some(_) => Err(injected()),
        }
    }

    /// Makes the bytes, and as much of the length as reading them takes, durable.
    ///
    /// # Errors
    /// Those of the system. What was written since the last sync may then be lost, whatever a
    /// later sync says: never retry.
    pub fn sync(&self) -> io::Result<()> {
        if let Some(mut faults) = self.disk.faults() {
            faults.sync(&self.inner)?;
        }
        match &self.inner {
            Inner::System(file) => file.sync_data(),
            Inner::Memory(_) => Ok(()),
        }
    }

    /// Cuts or extends the file.
    ///
    /// # Errors
    /// Those of the system.
    pub fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.disk.step()?;
        match &self.inner {
            Inner::System(file) => file.set_len(bytes),
            Inner::Memory(content) => {
                memory::bytes(content).resize(memory::position(bytes), 0);
                Ok(())
            }
        }
    }

    /// Reserves room for `bytes` bytes and extends the file to them, with zeros.
    ///
    /// # Errors
    /// Those of the system, for example that there is no room.
    pub fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.disk.step()?;
        if let Inner::System(file) = &self.inner {
            match rustix::fs::fallocate(&**file, FallocateFlags::empty(), 0, bytes) {
                Ok(()) => return Ok(()),
                // File systems without extents: the zeros come as a hole.
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if self.len()? < bytes { self.set_len(bytes) } else { Ok(()) }
    }

    /// The length in bytes.
    ///
    /// # Errors
    /// Those of the system.
    pub fn len(&self) -> io::Result<u64> {
        match &self.inner {
            Inner::System(file) => Ok(file.metadata()?.len()),
            Inner::Memory(content) => {
                Ok(u64::try_from(memory::bytes(content).len()).expect("lengths fit"))
            }
        }
    }

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// Those of the system.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Locks the file (as `flock` does) until it is closed; whether nobody else had it.
    ///
    /// # Errors
    /// Those of the system.
    pub fn try_lock(&self) -> io::Result<bool> {
        let Inner::System(file) = &self.inner else { return Ok(true) };
        match file.try_lock() {
            Ok(()) => Ok(true),
            Err(fs::TryLockError::WouldBlock) => Ok(false),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// Keeps what a crash would bring back; the bytes that arrive, if the write is to fail.
    fn before_write(&self, bytes: usize, offset: u64) -> io::Result<Option<usize>> {
        let Some(mut faults) = self.disk.faults() else { return Ok(None) };
        let arriving = faults.write(bytes)?.map(|short| whole_sectors(short, offset));
        let mut before = vec![0; arriving.unwrap_or(bytes)];
        self.inner.read_or_zero(&mut before, offset)?;
        faults.unsynced.push(Undo { file: self.inner.clone(), offset, before });
        drop(faults);
        Ok(arriving)
    }
}

impl Inner {
    /// Tells files apart.
    fn address(&self) -> usize {
        match self {
            Self::System(file) => Arc::as_ptr(file).addr(),
            Self::Memory(content) => Arc::as_ptr(content).addr(),
        }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self {
            Self::System(file) => file.write_all_at(bytes, offset),
            Self::Memory(content) => {
                memory::write_at(content, bytes, offset);
                Ok(())
            }
        }
    }

    /// Fills `buffer`; what lies behind the end stays as it is.
    fn read_or_zero(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let file = match self {
            Self::System(file) => file,
            Self::Memory(content) => {
                memory::read_at(content, buffer, offset);
                return Ok(());
            }
        };
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + u64::try_from(done).expect("a write fits a file");
            match file.read_at(&mut buffer[done..], at)? {
                0 => break,
                read => done += read,
            }
        }
        Ok(())
    }
}

impl Faults {
    fn step(&mut self) -> io::Result<()> {
        if let Some(left) = &mut self.steps_left {
            match left.checked_sub(1) {
                Some(fewer) => *left = fewer,
                None => self.dead = true,
            }
        }
        if self.dead { Err(injected()) } else { Ok(()) }
    }

    fn write(&mut self, bytes: usize) -> io::Result<Option<usize>> {
        self.step()?;
        match &mut self.writes_left {
            None => Ok(None),
            Some(0) => {
                self.dead = true;
                Ok(Some(self.short_bytes.min(bytes)))
            }
            Some(left) => {
                *left -= 1;
                Ok(None)
            }
        }
    }

    fn sync(&mut self, file: &Inner) -> io::Result<()> {
        self.step()?;
        match &mut self.syncs_left {
            Some(0) => {
                self.dead = true;
                return Err(injected());
            }
            Some(left) => *left -= 1,
            None => {}
        }
        self.unsynced.retain(|undo| undo.file.address() != file.address());
        Ok(())
    }
}

impl Undo {
    /// Brings back some of the sectors. One that keeps a newer write keeps the older ones too.
    fn roll_back(self, settled: &mut HashSet<(usize, u64)>, random: &mut Random) -> io::Result<()> {
        let file = self.file.address();
        let mut done = 0;
        while done < self.before.len() {
            let offset = self.offset + u64::try_from(done).expect("a write fits a file");
            let room = SECTOR_BYTES - offset % SECTOR_BYTES;
            let room = usize::try_from(room).expect("a sector is small");
            let piece = &self.before[done..self.before.len().min(done + room)];
            done += piece.len();
            if settled.contains(&(file, offset / SECTOR_BYTES)) {
                continue;
            }
            if random.below(2) == 0 {
                settled.insert((file, offset / SECTOR_BYTES));
            } else {
                self.file.write_at(piece, offset)?;
            }
        }
        Ok(())
    }
}

/// The part of `bytes` bytes at `offset` that ends with a sector.
fn whole_sectors(bytes: usize, offset: u64) -> usize {
    let end = offset + u64::try_from(bytes).expect("a write fits a file");
    let end = end - end % SECTOR_BYTES;
    usize::try_from(end.saturating_sub(offset)).expect("not above bytes")
}

fn injected() -> io::Error {
    io::Error::other("injected fault")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup() -> (tempfile::TempDir, Disk, File) {
        let dir = tempfile::TempDir::new().unwrap();
        let disk = Disk::faulty();
        let file = disk.create(&dir.path().join("file")).unwrap();
        (dir, disk, file)
    }

    #[test]
    fn crash_keeps_what_was_synced_and_some_of_the_rest() {
        let mut kept = HashSet::new();
        for seed in 0..64 {
            let (dir, disk, file) = setup();
            file.write_at(&[1; 1024], 0).unwrap();
            file.sync().unwrap();
            file.write_at(&[2; 1024], 512).unwrap();
            disk.crash(&mut Random::from_seed(seed)).unwrap();
            let bytes = fs::read(dir.path().join("file")).unwrap();
            assert_eq!(bytes[..512], [1; 512], "seed {seed}: a synced sector changed");
            kept.insert((bytes[512], bytes[1024]));
        }
        assert_eq!(kept, HashSet::from([(1, 0), (1, 2), (2, 0), (2, 2)]));
    }

    #[test]
    fn memory_behaves_like_a_directory() {
        let disk = Disk::memory();
        let (dir, moved) = (Path::new("/a/b"), Path::new("/a/c"));
        assert!(disk.create(&dir.join("file")).is_err(), "there is no directory");
        disk.create_directory(dir).unwrap();
        let (path, temporary) = (dir.join("file"), dir.join("file.tmp"));
        disk.replace(&path, &temporary, b"new").unwrap();
        disk.rename(dir, moved).unwrap();
        assert!(disk.list(dir).is_err() && !disk.exists(&path));
        assert_eq!(disk.list(moved).unwrap(), ["file"]);
        let file = disk.open(&moved.join("file")).unwrap();
        file.write_at(b"er", 3).unwrap();
        file.allocate(7).unwrap();
        assert_eq!(disk.read(&moved.join("file")).unwrap(), b"newer\0\0");
        disk.remove(&moved.join("file")).unwrap();
        assert_eq!(disk.list(moved).unwrap().len(), 0);
    }

    #[test]
    fn memory_loses_at_a_crash_what_was_not_synced() {
        let mut kept = HashSet::new();
        for seed in 0..16 {
            let disk = Disk::memory();
            disk.create_directory(Path::new("/")).unwrap();
            let path = Path::new("/file");
            let file = disk.create(path).unwrap();
            file.write_at(&[1; 512], 0).unwrap();
            file.sync().unwrap();
            file.write_at(&[2; 512], 512).unwrap();
            disk.crash(&mut Random::from_seed(seed)).unwrap();
            assert!(disk.open(path).is_err(), "the disk is dead");
            let bytes = disk.restarted().read(path).unwrap();
            assert_eq!(bytes[..512], [1; 512], "seed {seed}: a synced sector changed");
            kept.insert(bytes[512]);
        }
        assert_eq!(kept, HashSet::from([0, 2]));
    }

    #[test]
    fn failed_write_may_arrive_in_part_and_ends_the_disk() {
        let (dir, disk, file) = setup();
        disk.fail_write_after(1, 700);
        file.write_at(&[1; 1500], 0).unwrap();
        assert!(file.write_at(&[2; 1000], 500).is_err());
        let bytes = fs::read(dir.path().join("file")).unwrap();
        assert_eq!(bytes[500..1024], [2; 524]);
        assert_eq!(bytes[1024..], [1; 476]);
        assert!(file.sync().is_err() && disk.open(&dir.path().join("file")).is_err());
    }

    #[test]
    fn failed_sync_ends_the_disk() {
        let (_dir, disk, file) = setup();
        disk.fail_sync_after(1);
        file.sync().unwrap();
        assert!(file.sync().is_err() && file.write_at(b"x", 0).is_err());
    }

    #[test]
    fn everything_after_the_last_step_does_not_happen() {
        let (dir, disk, file) = setup();
        let (path, other) = (dir.path().join("file"), dir.path().join("other"));
        disk.fail_after(2);
        file.write_at(b"x", 0).unwrap();
        disk.rename(&path, &other).unwrap();
        assert!(disk.rename(&other, &path).is_err() && file.sync().is_err());
        assert!(other.exists() && !path.exists(), "two changes have happened");
    }

    #[test]
    fn replaced_file_is_whole_and_leaves_no_temporary() {
        let (dir, disk, _file) = setup();
        let (path, temporary) = (dir.path().join("file"), dir.path().join("file.tmp"));
        disk.replace(&path, &temporary, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!(!temporary.exists());
    }
}
