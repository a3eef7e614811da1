//! Damage to the files of a server at rest, and its undoing.
//!
//! Decides nothing about servers. Tests damage a data directory, see that the server refuses it,
//! undo the damage and see that the refusal has changed nothing.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};

/// Copies a directory with everything in it.
///
/// # Errors
/// If the file system refuses.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Replaces the directory `to` by a copy of `from`.
///
/// # Errors
/// If the file system refuses.
pub fn replace(from: &Path, to: &Path) -> io::Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    copy(from, to)
}

/// The segments of the write-ahead log of a data directory, oldest first.
///
/// # Errors
/// If the directory cannot be read.
pub fn segments(data_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(data_dir.join("member/wal"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "wal") {
            found.push(path);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Turns one bit of a file; the same call again turns it back.
///
/// # Errors
/// If the file cannot be changed there.
pub fn flip(path: &Path, offset: u64, mask: u8) -> anyhow::Result<()> {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).with_context(|| format!("no byte {offset}"))?;
    byte[0] ^= mask;
    file.write_all_at(&byte, offset)?;
    Ok(())
}

/// Where `pattern` stands in a file; a database may hold old copies of a page.
///
/// # Errors
/// If it stands nowhere.
pub fn find(path: &Path, pattern: &[u8]) -> anyhow::Result<Vec<u64>> {
    let bytes = fs::read(path)?;
    let windows = bytes.windows(pattern.len()).enumerate();
    let at = windows.filter(|(_, window)| *window == pattern).map(|(at, _)| at as u64);
    let at = at.collect::<Vec<_>>();
    ensure!(!at.is_empty(), "{} lacks {pattern:?}", path.display());
    Ok(at)
}
