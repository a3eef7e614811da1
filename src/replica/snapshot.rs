//! The whole state of a member, to a peer and from one.
//!
//! Decides which state answers raft's wish to send a snapshot: the backend as it is then, so that
//! its position, term and membership are those of the database that follows; and in which order a
//! received one replaces this member's. Sending is asked for by the replica thread and runs on a
//! thread of its own; installing is done by the apply thread.
//!
//! ```text
//!   MsgSnap --> sync the backend --> one read transaction --+--> message with its position
//!                                                           +--> database, in parts --> Transport
//!
//!   <index>.snap.db --> check (before raft hears of it) --> raft, log --> import --> swap --> Machine
//! ```
//!
//! Source: etcd `server/etcdserver/snapshot_merge.go`, `server.go` (`applySnapshot`).

use std::{
    error::Error,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use proto::raftpb::{Message, Snapshot, SnapshotMetadata};
use tokio::sync::mpsc;

use crate::{
    base::{
        queue::Sender,
        thread::{self, Priority},
    },
    cluster::v2_store_json,
    consensus::SnapshotReport,
    exchange::{self, About, EtcdFile, ExchangeError, Gone, Part, give_backup, snapshot_file},
    model::{LogIndex, MemberId},
    state::{self, Machine, RecoverError},
    storage::{
        backend::Backend,
        flusher::{FlusherHandle, Stopped},
        received_dir,
    },
    transport::{SnapshotBody, Transport},
};

use super::{Input, shared::Shared};

/// Parts of a database between the thread that makes them and the transport.
const PARTS_MAX: usize = 4;

/// The position that a snapshot is of.
pub(super) fn position(snapshot: &Snapshot) -> LogIndex {
    LogIndex(snapshot.metadata.as_ref().and_then(|metadata| metadata.index).unwrap_or(0))
}

/// Sends this member's state to others.
#[derive(Clone, Debug)]
pub(super) struct SnapshotSender {
    pub(super) shared: Arc<Shared>,
    pub(super) backend: Backend,
    pub(super) flusher: FlusherHandle,
    pub(super) transport: Transport,
    /// Where a failure before the first byte is reported.
    pub(super) replica: Sender<Input>,
}

impl SnapshotSender {
    /// Sends the state that `message` announces, or a later one.
    pub(super) fn send(&self, message: Message) {
        let sender = self.clone();
        let to = MemberId(message.to.unwrap_or(0));
        let spawned = thread::spawn("snapshot", Priority::Background, move || sender.run(message));
        if let Err(error) = spawned {
            tracing::error!(%error, "cannot start a thread for a snapshot");
            self.failed(to);
        }
    }

    fn failed(&self, to: MemberId) {
        let input = Input::SnapshotSent(to, SnapshotReport::Failed);
        // A replica that is gone needs no report.
        drop(self.replica.send_reserved(input));
    }

    fn run(&self, message: Message) {
        let to = MemberId(message.to.unwrap_or(0));
        // What raft has seen applied may still be on its way to the backend. A flusher that is gone
        // ends the process by itself.
        if self.flusher.sync().is_err() {
            return self.failed(to);
        }
        let mut message = Some(message);
        let mut parts = None;
        give_backup(&self.backend, &mut |part| match part {
            Part::Begin(about) => {
                let message = message.take().ok_or(Gone)?;
                let begun = self.begin(message, &about).inspect_err(|error| {
                    tracing::error!(%error, "cannot send the state of the member");
                });
                parts = Some(begun.map_err(|_logged| Gone)?);
                Ok(())
            }
            Part::Data(bytes) => deliver(parts.as_ref(), Ok(bytes)),
            Part::Failed(error) => deliver(parts.as_ref(), Err(io::Error::other(error))),
            Part::End => Ok(()),
        });
        if parts.is_none() {
            self.failed(to);
        }
    }

    fn begin(
        &self,
        mut message: Message,
        about: &About,
    ) -> Result<mpsc::Sender<io::Result<bytes::Bytes>>, serde_json::Error> {
        let membership = Arc::clone(&self.shared.published.load().membership);
        message.snapshot = Some(Snapshot {
            data: Some(v2_store_json(&membership)),
            metadata: Some(SnapshotMetadata {
                conf_state: Some(state::parse_conf_state(&about.conf_state)?),
                index: Some(about.index.0),
                term: Some(about.term.0),
            }),
        });
        let (parts, receiver) = mpsc::channel(PARTS_MAX);
        let body = SnapshotBody { bytes_total: about.bytes_total, parts: receiver };
        self.transport.send_snapshot(message, body);
        Ok(parts)
    }
}

fn deliver(
    parts: Option<&mpsc::Sender<io::Result<bytes::Bytes>>>,
    part: io::Result<bytes::Bytes>,
) -> Result<(), Gone> {
    parts.ok_or(Gone)?.blocking_send(part).map_err(|_left| Gone)
}

/// Why the state that a leader sent cannot be this member's.
#[derive(Debug)]
pub enum InstallError {
    /// The database cannot be read or copied.
    Exchange(ExchangeError),
    /// The database does not reach to where the leader said it does.
    Behind {
        /// How far it reaches.
        database: LogIndex,
        /// How far it should.
        snapshot: LogIndex,
    },
    /// The flush thread is gone.
    Stopped(Stopped),
    /// The state in it cannot be served.
    Recover(RecoverError),
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot go on from the state that the leader sent")?;
        if let Self::Behind { database, snapshot } = self {
            write!(f, ": it holds entries up to {database}, not {snapshot}")?;
        }
        Ok(())
    }
}

impl Error for InstallError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Exchange(error) => Some(error),
            Self::Stopped(error) => Some(error),
            Self::Recover(error) => Some(error),
            Self::Behind { .. } => None,
        }
    }
}

impl From<ExchangeError> for InstallError {
    fn from(error: ExchangeError) -> Self {
        Self::Exchange(error)
    }
}

/// Opens the database that came with the snapshot at `index`, every page checked.
///
/// # Errors
/// - [`InstallError::Exchange`] and [`InstallError::Behind`] if it is not what it should be.
pub fn open_received(snap_dir: &Path, index: LogIndex) -> Result<EtcdFile, InstallError> {
    let file = EtcdFile::open(&snap_dir.join(snapshot_file(index)))?;
    let database = file.consistent_index()?;
    if database < index {
        return Err(InstallError::Behind { database, snapshot: index });
    }
    Ok(file)
}

/// Replaces this member's state by received ones.
#[derive(Debug)]
pub(super) struct Installer {
    pub(super) snap_dir: PathBuf,
    pub(super) flusher: FlusherHandle,
}

impl Installer {
    /// Makes the received state of `snapshot` the backend's and the machine's. A crash on the way
    /// is made up for at the next start, from the same file.
    pub(super) fn install(
        &self,
        snapshot: &Snapshot,
        machine: &mut Machine,
    ) -> Result<(), InstallError> {
        let index = position(snapshot);
        tracing::info!(
            "current-applied-index" = machine.applied().0,
            "incoming-leader-snapshot-index" = index.0,
            "applying snapshot"
        );
        let file = open_received(&self.snap_dir, index)?;
        let ready = received_dir(&self.snap_dir);
        exchange::import(&file, &ready, |_bytes| {})?;
        self.flusher.install(ready).map_err(InstallError::Stopped)?;
        machine.recover_again().map_err(InstallError::Recover)?;
        let path = self.snap_dir.join(snapshot_file(index));
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "could not remove a received database");
        }
        tracing::info!("current-applied-index" = machine.applied().0, "applied snapshot");
        Ok(())
    }
}
