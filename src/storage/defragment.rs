//! Reclaims the space of deleted rows by copying what lives into a new environment.

use std::{fs, io, path::Path};

/// The beginning of the names of directories that an interrupted copy leaves.
const COPY_PREFIX: &str = "copy-";

/// Removes what a copy that was cut short left behind in `dir`.
pub(super) fn remove_leftovers(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(COPY_PREFIX) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
