//! The file that describes a raft snapshot, as etcd 3.6 and older want it beside the database.
//!
//! Decides its name and its checksum. Used by `restore` and `verify`.
//!
//! Source: etcd `server/etcdserver/api/snap/snapshotter.go`.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use prost::Message;
use proto::{raftpb, snappb};

/// Why a file is not a whole one.
#[derive(Debug)]
pub(super) enum SnapFault {
    /// It cannot be read.
    Unreadable(io::Error),
    /// Its bytes are no snapshot.
    Shape,
    /// Its bytes are not those that were written.
    Checksum,
}

/// A `.snap` file that is damaged.
#[derive(Debug)]
pub(super) struct SnapError {
    file: PathBuf,
    fault: SnapFault,
}

impl fmt::Display for SnapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fault = match &self.fault {
            SnapFault::Unreadable(_) => "cannot be read",
            SnapFault::Shape => "is damaged: its bytes are no snapshot",
            SnapFault::Checksum => "is damaged: the checksum at offset 0 does not match",
        };
        write!(f, "{} {fault}", self.file.display())
    }
}

impl std::error::Error for SnapError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.fault {
            SnapFault::Unreadable(source) => Some(source),
            SnapFault::Shape | SnapFault::Checksum => None,
        }
    }
}

/// Writes `snapshot` into `dir`, durably.
pub(super) fn save(dir: &Path, snapshot: &raftpb::Snapshot) -> io::Result<()> {
    let metadata = snapshot.metadata.clone().unwrap_or_default();
    let (term, index) = (metadata.term.unwrap_or(0), metadata.index.unwrap_or(0));
    let data = Bytes::from(snapshot.encode_to_vec());
    let envelope = snappb::Snapshot { crc: Some(crc32c::crc32c(&data)), data: Some(data) };
    let path = dir.join(format!("{term:016x}-{index:016x}.snap"));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&envelope.encode_to_vec())?;
    file.sync_all()
}

/// Checks the file at `path`.
pub(super) fn check(path: &Path) -> Result<(), SnapError> {
    let failed = |fault| SnapError { file: path.to_owned(), fault };
    let bytes = fs::read(path).map_err(|error| failed(SnapFault::Unreadable(error)))?;
    let envelope = snappb::Snapshot::decode(&bytes[..]).map_err(|_| failed(SnapFault::Shape))?;
    let data = envelope.data.unwrap_or_default();
    if envelope.crc != Some(crc32c::crc32c(&data)) {
        return Err(failed(SnapFault::Checksum));
    }
    match raftpb::Snapshot::decode(data) {
        Ok(_) => Ok(()),
        Err(_) => Err(failed(SnapFault::Shape)),
    }
}
