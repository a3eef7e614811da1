//! A new data directory from a backup: `snapshot restore`.
//!
//! Decides the identity of the new cluster, and that the directory appears only when it is whole
//! (O2). What the backup says of its own cluster's members is dropped; everything else stays.
//! Called by the binary.
//!
//! ```text
//!   backup --hash--> pages --> member.restoring/snap/db.lmdb   keys, leases, users, alarms
//!                              member.restoring/snap/*.snap    the new members
//!                              member.restoring/wal/*.wal      one entry for each new member
//!                                      |
//!                                      +-- rename --> member/
//! ```
//!
//! Source: etcd `etcdutl/snapshot/v3_snapshot.go`, `Restore`.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use proto::raftpb::{ConfState, HardState, Snapshot, SnapshotMetadata};

use super::{
    OfflineError, Progress,
    members::{Members, members},
};
use crate::{
    base::{error::chain, file::Disk},
    cluster::{BOOTSTRAP_TERM, Bootstrap, Membership, v2_store_json},
    exchange::{EtcdFile, Trailer, conf_state_json, import_into},
    model::{LogIndex, MemberId, Revision, Row, RowRevision},
    storage::{
        Backend, BackendOptions, Table, Transaction, Writer,
        backend::BACKEND_DIRECTORY,
        keys, snap,
        tables::{CONF_STATE, CONSISTENT_INDEX, SCHEDULED_COMPACT_REVISION, TERM},
        wal::{Wal, WalOptions, WalSnapshot},
    },
};

/// The name under which a member's directory is built.
const UNFINISHED: &str = "member.restoring";

/// What to restore, and as whom.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// The backup.
    pub snapshot: PathBuf,
    /// The directory to make; default: the name and `.etcd`.
    pub data_dir: Option<PathBuf>,
    /// Where the log goes; default: within the data directory.
    pub wal_dir: Option<PathBuf>,
    /// The member's name.
    pub name: String,
    /// All members, `name=url,name=url`.
    pub initial_cluster: String,
    /// What tells this cluster from others with the same URLs.
    pub initial_cluster_token: String,
    /// This member's URLs, as the others will know them.
    pub initial_advertise_peer_urls: String,
    /// Whether a file without a trailing hash, or with a wrong one, is taken.
    pub skip_hash_check: bool,
    /// How far the revision jumps, so that clients never see one twice; 0: it stays.
    pub bump_revision: u64,
    /// Whether everything before the new revision counts as compacted.
    pub mark_compacted: bool,
}

/// Makes a data directory from a backup.
///
/// # Errors
/// - [`OfflineError::Usage`], [`OfflineError::Refused`] if the options make no cluster.
/// - [`OfflineError::NoTrailer`], [`OfflineError::WrongTrailer`] if the file's hash is missing or
///   wrong.
/// - [`OfflineError::Database`] if it is damaged, others if the directory cannot be written.
pub fn restore(options: &RestoreOptions) -> Result<(), OfflineError> {
    if (options.bump_revision == 0) == options.mark_compacted {
        let text = "--mark-compacted required if --revision-bump > 0".to_owned();
        return Err(OfflineError::Usage(text));
    }
    let bootstrap = bootstrap(&members(options)?, &options.initial_cluster_token)?;
    let own = bootstrap.member_named(&options.name).expect("its presence was checked");
    let own = own.id;
    let places = Places::new(options)?;
    tracing::info!(
        path = %options.snapshot.display(),
        "wal-dir" = %places.wal.display(),
        "data-dir" = %places.data_dir.display(),
        "snap-dir" = %places.data_dir.join("member").join("snap").display(),
        "restoring snapshot"
    );
    check_trailer(options)?;
    let made = make(options, &bootstrap, own, &places);
    if made.is_err() {
        places.undo();
    }
    made?;
    tracing::info!(
        path = %options.snapshot.display(),
        "wal-dir" = %places.wal.display(),
        "data-dir" = %places.data_dir.display(),
        "restored snapshot"
    );
    Ok(())
}

/// Where everything goes.
struct Places {
    data_dir: PathBuf,
    /// Whether the data directory is ours to remove.
    data_dir_is_new: bool,
    unfinished: PathBuf,
    /// Where the log will be in the end.
    wal: PathBuf,
    /// Where it is made: the same place, unless that is within the unfinished directory.
    wal_made: PathBuf,
}

impl Places {
    fn new(options: &RestoreOptions) -> Result<Self, OfflineError> {
        let data_dir = options
            .data_dir
            .clone()
            .unwrap_or_else(|| PathBuf::from(format!("{}.etcd", options.name)));
        let shown = data_dir.display().to_string();
        let content = match fs::read_dir(&data_dir) {
            Ok(mut entries) => Some(entries.next().is_some()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(_unreadable) => Some(true),
        };
        if content == Some(true) {
            let text = format!("data-dir {shown:?} not empty or could not be read");
            return Err(OfflineError::Refused(text));
        }
        let unfinished = data_dir.join(UNFINISHED);
        let usual = data_dir.join("member").join("wal");
        let wal = options.wal_dir.clone().unwrap_or_else(|| usual.clone());
        if wal.exists() {
            let text = format!("wal-dir {:?} exists", wal.display().to_string());
            return Err(OfflineError::Refused(text));
        }
        let wal_made = if wal == usual { unfinished.join("wal") } else { wal.clone() };
        Ok(Self { data_dir, data_dir_is_new: content.is_none(), unfinished, wal, wal_made })
    }

    /// Removes what was made of an attempt that failed. The failure itself is what gets reported.
    fn undo(&self) {
        for dir in [&self.unfinished, &self.wal_made] {
            drop(fs::remove_dir_all(dir));
        }
        if self.data_dir_is_new {
            drop(fs::remove_dir(&self.data_dir));
        }
    }
}

fn bootstrap(members: &Members, token: &str) -> Result<Bootstrap, OfflineError> {
    let text = |urls: &Vec<_>| urls.iter().map(ToString::to_string).collect::<Vec<String>>();
    let urls: BTreeMap<String, Vec<String>> =
        members.iter().map(|(name, urls)| (name.clone(), text(urls))).collect();
    Bootstrap::new(&urls, token).map_err(|error| OfflineError::Refused(error.to_string()))
}

fn check_trailer(options: &RestoreOptions) -> Result<(), OfflineError> {
    let path = &options.snapshot;
    let failed = |source| OfflineError::Path { operation: "open", path: path.clone(), source };
    let mut file = File::open(path).map_err(failed)?;
    if options.skip_hash_check {
        return Ok(());
    }
    let bytes = file.metadata().map_err(OfflineError::Io)?.len();
    let progress = Progress::new("checking", bytes);
    let trailer = Trailer::check(&mut file, bytes, |read| progress.add(read));
    match trailer.map_err(OfflineError::Io)? {
        Trailer::Matches => Ok(()),
        Trailer::Absent => Err(OfflineError::NoTrailer),
        Trailer::Differs { expected, actual } => {
            Err(OfflineError::WrongTrailer { expected, actual })
        }
    }
}

fn make(
    options: &RestoreOptions,
    bootstrap: &Bootstrap,
    own: MemberId,
    places: &Places,
) -> Result<(), OfflineError> {
    let snap_dir = places.unfinished.join("snap");
    create(&snap_dir)?;
    let membership = write_backend(options, bootstrap, &snap_dir)?;
    write_log(bootstrap, own, &membership, &snap_dir, &places.wal_made)?;
    let member = places.data_dir.join("member");
    fs::rename(&places.unfinished, &member).map_err(|source| OfflineError::Path {
        operation: "rename",
        path: places.unfinished.clone(),
        source,
    })?;
    let synced = File::open(&places.data_dir).and_then(|dir| dir.sync_all());
    synced.map_err(OfflineError::Io)
}

fn create(dir: &Path) -> Result<(), OfflineError> {
    let created = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    created.map_err(|source| OfflineError::Path {
        operation: "mkdir",
        path: dir.to_owned(),
        source,
    })
}

/// Imports the backup and makes it the state of the new cluster.
fn write_backend(
    options: &RestoreOptions,
    bootstrap: &Bootstrap,
    snap_dir: &Path,
) -> Result<Membership, OfflineError> {
    let file = EtcdFile::open(&options.snapshot)?;
    let target = BackendOptions::new(snap_dir.join(BACKEND_DIRECTORY));
    let (backend, mut writer) = Backend::open(&target)?;
    let progress = Progress::new("restoring", file.bytes_total());
    let imported = import_into(&file, &mut writer, |bytes| progress.add(bytes))?;
    let last = imported.last_row.map_or(Revision(1), |last| last.main);
    rewrite(options, bootstrap, &backend, &mut writer, last)
}

fn rewrite(
    options: &RestoreOptions,
    bootstrap: &Bootstrap,
    backend: &Backend,
    writer: &mut Writer,
    last: Revision,
) -> Result<Membership, OfflineError> {
    tracing::info!("Trimming membership information from the backend...");
    let stale = stale_members(backend)?;
    let mut transaction = writer.begin()?;
    for (table, key) in stale {
        transaction.delete(table, &key)?;
    }
    for member in &bootstrap.members {
        let key = member.id.to_string();
        transaction.put(Table::Members, key.as_bytes(), &member.to_json())?;
    }
    let count = bootstrap.members.len() as u64;
    transaction.put(Table::Meta, CONSISTENT_INDEX, &keys::number(count))?;
    transaction.put(Table::Meta, TERM, &keys::number(BOOTSTRAP_TERM.0))?;
    transaction.put(Table::Meta, CONF_STATE, &conf_state_json(&conf_state(bootstrap)))?;
    if 0 < options.bump_revision {
        bump(&mut transaction, last, options.bump_revision)?;
    }
    transaction.commit()?;
    membership(backend)
}

fn stale_members(backend: &Backend) -> Result<Vec<(Table, Bytes)>, OfflineError> {
    let reader = backend.reader()?;
    let mut stale = Vec::new();
    for table in [Table::Members, Table::MembersRemoved] {
        for record in reader.scan(table)? {
            let (key, _) = record?;
            stale.push((table, Bytes::copy_from_slice(key)));
        }
    }
    Ok(stale)
}

/// What the tables now say of the cluster, for the `.snap` file.
fn membership(backend: &Backend) -> Result<Membership, OfflineError> {
    let reader = backend.reader()?;
    let mut membership = Membership::default();
    for table in [Table::Members, Table::Cluster] {
        for record in reader.scan(table)? {
            let (key, value) = record?;
            membership
                .restore(table, key, value)
                .map_err(|error| OfflineError::Refused(error.to_string()))?;
        }
    }
    Ok(membership)
}

/// Adds an empty change at a later revision and marks everything before it as compacted, so that
/// watchers of the old cluster start afresh instead of missing what was lost.
fn bump(transaction: &mut Transaction<'_>, last: Revision, by: u64) -> Result<(), OfflineError> {
    let too_far = || OfflineError::Refused("--bump-revision is too large".to_owned());
    let by = i64::try_from(by).map_err(|_too_large| too_far())?;
    let main = Revision(last.0.checked_add(by).ok_or_else(too_far)?);
    tracing::info!(
        "latest-revision" = last.0,
        "bump-amount" = by,
        "new-latest-revision" = main.0,
        "bumping latest revision"
    );
    let revision = RowRevision { main, sub: 0 };
    transaction.append(&Row { revision, tombstone: false, value: Bytes::new() })?;
    tracing::info!(revision = main.0, "marking revision compacted");
    let stored = keys::etcd_revision(revision);
    transaction.put(Table::Meta, SCHEDULED_COMPACT_REVISION, &stored)?;
    Ok(())
}

/// Writes the log of a cluster that was just founded, with a snapshot of its first state.
fn write_log(
    bootstrap: &Bootstrap,
    own: MemberId,
    membership: &Membership,
    snap_dir: &Path,
    wal_dir: &Path,
) -> Result<(), OfflineError> {
    let conf_state = conf_state(bootstrap);
    let index = LogIndex(conf_state.voters.len() as u64);
    let hard_state = HardState {
        term: Some(BOOTSTRAP_TERM.0),
        vote: conf_state.voters.first().copied(),
        commit: Some(index.0),
    };
    let log = |error: &dyn std::error::Error| OfflineError::Refused(chain(error));
    let options = WalOptions::new(wal_dir.to_owned());
    let mut wal = Wal::create(&options, own, bootstrap.cluster).map_err(|error| log(&error))?;
    wal.append(Some(&hard_state), &bootstrap.entries(), true).map_err(|error| log(&error))?;
    let snapshot = Snapshot {
        data: Some(v2_store_json(membership)),
        metadata: Some(SnapshotMetadata {
            conf_state: Some(conf_state.clone()),
            index: Some(index.0),
            term: Some(BOOTSTRAP_TERM.0),
        }),
    };
    snap::save(&Disk::system(), snap_dir, &snapshot).map_err(|error| log(&error))?;
    let record = WalSnapshot { index, term: BOOTSTRAP_TERM, conf_state: Some(conf_state) };
    wal.append_snapshot(&record).map_err(|error| log(&error))
}

/// Every member of the list, as a voter.
fn conf_state(bootstrap: &Bootstrap) -> ConfState {
    let voters = bootstrap.members.iter().map(|member| member.id.0).collect();
    ConfState { voters, ..ConfState::default() }
}
