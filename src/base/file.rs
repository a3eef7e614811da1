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
}

/// A file that is open for reading and writing.
#[derive(Debug)]
pub struct File {
    inner: Arc<fs::File>,
    path: PathBuf,
    disk: Disk,
}

#[derive(Debug, Default)]
struct Faults {
    /// Writes (syncs) until one fails; `None` for never.
    writes_left: Option<u64>,
    syncs_left: Option<u64>,
    /// Bytes of the failing write that arrive.
    short_bytes: usize,
    dead: bool,
    /// What a crash may undo, oldest first.
    unsynced: Vec<Undo>,
}

#[derive(Debug)]
struct Undo {
    file: Arc<fs::File>,
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
            Source::Faulty(faults) => Some(faults.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    fn alive(&self) -> io::Result<()> {
        match self.faults() {
            Some(faults) if faults.dead => Err(injected()),
            _ => Ok(()),
        }
    }

    /// Creates `path` for its owner only, or empties it.
    ///
    /// # Errors
    /// Those of the system.
    pub fn create(&self, path: &Path) -> io::Result<File> {
        self.alive()?;
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        self.file(&options, path)
    }

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open(&self, path: &Path) -> io::Result<File> {
        self.alive()?;
        self.file(fs::OpenOptions::new().read(true).write(true), path)
    }

    fn file(&self, options: &fs::OpenOptions, path: &Path) -> io::Result<File> {
        let inner = Arc::new(options.open(path)?);
        Ok(File { inner, path: path.to_owned(), disk: self.clone() })
    }

    /// Creates the directory `path`, and its parents, for their owner only.
    ///
    /// # Errors
    /// Those of the system.
    pub fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.alive()?;
        fs::DirBuilder::new().mode(0o700).recursive(true).create(path)
    }

    /// Renames a file or directory, replacing the target.
    ///
    /// # Errors
    /// Those of the system.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.alive()?;
        fs::rename(from, to)
    }

    /// Removes a file.
    ///
    /// # Errors
    /// Those of the system.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        self.alive()?;
        fs::remove_file(path)
    }

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// Those of the system.
    pub fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.alive()?;
        // The parent of a bare name is the empty path.
        let path = if path == Path::new("") { Path::new(".") } else { path };
        fs::File::open(path)?.sync_all()
    }

    /// The names in a directory, in order.
    ///
    /// # Errors
    /// Those of the system.
    pub fn list(&self, path: &Path) -> io::Result<Vec<String>> {
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
        self.inner.write_all_at(&bytes[..arriving.unwrap_or(bytes.len())], offset)?;
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
        self.inner.sync_data()
    }

    /// Cuts or extends the file.
    ///
    /// # Errors
    /// Those of the system.
    pub fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.disk.alive()?;
        self.inner.set_len(bytes)
    }

    /// Reserves room for `bytes` bytes and extends the file to them, with zeros.
    ///
    /// # Errors
    /// Those of the system, for example that there is no room.
    pub fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.disk.alive()?;
        match rustix::fs::fallocate(&*self.inner, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => Ok(()),
            // File systems without extents: the zeros come as a hole.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                if self.len()? < bytes {
                    self.set_len(bytes)
                } else {
                    Ok(())
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The length in bytes.
    ///
    /// # Errors
    /// Those of the system.
    pub fn len(&self) -> io::Result<u64> {
        Ok(self.inner.metadata()?.len())
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
        match self.inner.try_lock() {
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
        read_or_zero(&self.inner, &mut before, offset)?;
        faults.unsynced.push(Undo { file: Arc::clone(&self.inner), offset, before });
        drop(faults);
        Ok(arriving)
    }
}

impl Faults {
    fn write(&mut self, bytes: usize) -> io::Result<Option<usize>> {
        if self.dead {
            return Err(injected());
        }
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

    fn sync(&mut self, file: &Arc<fs::File>) -> io::Result<()> {
        if self.dead {
            return Err(injected());
        }
        match &mut self.syncs_left {
            Some(0) => {
                self.dead = true;
                return Err(injected());
            }
            Some(left) => *left -= 1,
            None => {}
        }
        self.unsynced.retain(|undo| !Arc::ptr_eq(&undo.file, file));
        Ok(())
    }
}

impl Undo {
    /// Brings back some of the sectors. One that keeps a newer write keeps the older ones too.
    fn roll_back(self, settled: &mut HashSet<(usize, u64)>, random: &mut Random) -> io::Result<()> {
        let file = Arc::as_ptr(&self.file).addr();
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
                self.file.write_all_at(piece, offset)?;
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

fn read_or_zero(file: &fs::File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
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
    fn replaced_file_is_whole_and_leaves_no_temporary() {
        let (dir, disk, _file) = setup();
        let (path, temporary) = (dir.path().join("file"), dir.path().join("file.tmp"));
        disk.replace(&path, &temporary, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!(!temporary.exists());
    }
}
