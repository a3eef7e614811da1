//! The machine as the backend holds it, at boot.
//!
//! Decides whether a stored state can be served. Called once, before the log is replayed from the
//! position after [`RecoveredAt::applied`].

use std::{error::Error, fmt, sync::Arc};

use proto::raftpb::{ConfState, Entry, EntryType};

use super::{Alarms, Machine, Settings, conf_state, log};
use crate::{
    auth,
    cluster::{ClusterGauges, Membership, MembershipError, Version},
    lease::{LeaseError, LeaseTable},
    model::{Command, LogIndex, Request, Term, entry_index, entry_kind},
    mvcc::{Store, StoreError},
    storage::{
        Backend, BackendError, Reader, Table,
        tables::{CONF_STATE, STORAGE_VERSION, TERM},
    },
};

/// Where in the log the recovered state stands.
#[derive(Clone, Debug, PartialEq)]
pub struct RecoveredAt {
    /// The last entry that the state holds; 0 if it is new.
    pub applied: LogIndex,
    /// Its term; 0 if it is new or older than etcd 3.5.
    pub term: Term,
    /// The raft configuration at that entry; absent if the state is new or older than etcd 3.5.
    pub conf_state: Option<ConfState>,
}

/// Why a stored state cannot be served.
#[derive(Debug)]
pub enum RecoverError {
    /// The backend cannot be read.
    Backend(BackendError),
    /// The key history cannot be rebuilt.
    Store(StoreError),
    /// A lease is unreadable.
    Lease(LeaseError),
    /// The membership is unreadable.
    Membership(MembershipError),
    /// An alarm is unreadable.
    Alarm(prost::DecodeError),
    /// The raft configuration is unreadable.
    ConfState(serde_json::Error),
    /// The cluster runs a version that this server does not have.
    ClusterTooNew(Version),
    /// Authentication is on, which this version cannot enforce.
    AuthEnabled,
    /// An entry that is not in the backend yet changes users or permissions, which this version
    /// cannot do.
    AuthInLog {
        /// The entry.
        index: LogIndex,
        /// The name of its request.
        request: &'static str,
    },
}

impl fmt::Display for RecoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Backend(_) => f.write_str("the backend cannot be read"),
            Self::Store(_) => f.write_str("the key history cannot be rebuilt"),
            Self::Lease(_) => f.write_str("a stored lease is unreadable"),
            Self::Membership(_) => f.write_str("the stored membership is unreadable"),
            Self::Alarm(_) => f.write_str("a stored alarm is unreadable"),
            Self::ConfState(_) => f.write_str("the stored raft configuration is unreadable"),
            Self::ClusterTooNew(version) => write!(
                f,
                "invalid downgrade; server version is lower than determined cluster version {}",
                version.cluster_text()
            ),
            Self::AuthEnabled => f.write_str(
                "the data directory has authentication enabled, which this version cannot \
                 enforce; disable it with official etcd first (etcdctl auth disable)",
            ),
            Self::AuthInLog { index, request } => write!(
                f,
                "entry {index} of the log is {request}, which this version cannot apply; start \
                 official etcd on this directory, disable authentication (etcdctl auth disable) \
                 and stop it with SIGTERM, so that its database holds the whole log"
            ),
        }
    }
}

impl Error for RecoverError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Backend(source) => Some(source),
            Self::Store(source) => Some(source),
            Self::Lease(source) => Some(source),
            Self::Membership(source) => Some(source),
            Self::Alarm(source) => Some(source),
            Self::ConfState(source) => Some(source),
            Self::ClusterTooNew(_) | Self::AuthEnabled | Self::AuthInLog { .. } => None,
        }
    }
}

impl From<BackendError> for RecoverError {
    fn from(source: BackendError) -> Self {
        Self::Backend(source)
    }
}

/// Refuses a log with entries after `applied` that change users or permissions. Another member
/// acknowledged them; to reject them at apply would open what they protect.
///
/// # Errors
/// - [`RecoverError::AuthInLog`] for the first such entry.
pub fn check_log(entries: &[Entry], applied: LogIndex) -> Result<(), RecoverError> {
    for entry in entries {
        let index = entry_index(entry);
        if index <= applied || entry_kind(entry) != Some(EntryType::EntryNormal) {
            continue;
        }
        let Some(data) = entry.data.clone() else { continue };
        // An entry that is no command is rejected at apply, as on every other member.
        let request = Command::decode(data).ok().and_then(|command| command.request);
        if let Some(request) = request.filter(changes_auth) {
            return Err(RecoverError::AuthInLog { index, request: request.name() });
        }
    }
    Ok(())
}

/// Whether etcd would change users, roles or permissions. Switching off what cannot be on changes
/// nothing.
const fn changes_auth(request: &Request) -> bool {
    match request {
        Request::AuthEnable(_)
        | Request::AuthUserAdd(_)
        | Request::AuthUserDelete(_)
        | Request::AuthUserChangePassword(_)
        | Request::AuthUserGrantRole(_)
        | Request::AuthUserRevokeRole(_)
        | Request::AuthRoleAdd(_)
        | Request::AuthRoleDelete(_)
        | Request::AuthRoleGrantPermission(_)
        | Request::AuthRoleRevokePermission(_) => true,
        Request::Range(_)
        | Request::Put(_)
        | Request::DeleteRange(_)
        | Request::Txn(_)
        | Request::Compaction(_)
        | Request::LeaseGrant(_)
        | Request::LeaseRevoke(_)
        | Request::LeaseCheckpoint(_)
        | Request::Alarm(_)
        | Request::ClusterVersionSet(_)
        | Request::ClusterMemberAttrSet(_)
        | Request::DowngradeInfoSet(_)
        | Request::DowngradeVersionTest(_)
        | Request::AuthStatus(_)
        | Request::AuthDisable(_)
        | Request::Authenticate(_)
        | Request::AuthUserGet(_)
        | Request::AuthUserList(_)
        | Request::AuthRoleList(_)
        | Request::AuthRoleGet(_) => false,
    }
}

impl Machine {
    /// Rebuilds the machine from `backend`.
    ///
    /// # Errors
    /// - [`RecoverError::AuthEnabled`] and [`RecoverError::ClusterTooNew`] if the state is sound but
    ///   not one for this version.
    /// - Any other [`RecoverError`] if it is damaged.
    pub fn recover(
        backend: &Backend,
        settings: Settings,
    ) -> Result<(Self, RecoveredAt), RecoverError> {
        let leases = LeaseTable::new(settings.leases);
        Self::rebuild(backend.clone(), settings, leases)
    }

    /// Forgets everything and rebuilds the machine from its backend, which holds another state now.
    /// Whoever has the lessor keeps it; what was not taken out is lost, and watchers find what they
    /// have missed in the rows.
    ///
    /// # Errors
    /// As [`Machine::recover`]; the member must stop.
    pub fn recover_again(&mut self) -> Result<(), RecoverError> {
        let leases = LeaseTable::with_lessor(self.leases.lessor());
        let (machine, _) = Self::rebuild(self.backend.clone(), self.settings.clone(), leases)?;
        *self = machine;
        Ok(())
    }

    /// The machine that `backend` holds, with `leases`, which are none yet.
    fn rebuild(
        backend: Backend,
        settings: Settings,
        leases: LeaseTable,
    ) -> Result<(Self, RecoveredAt), RecoverError> {
        let tables = Tables::read(&backend.reader()?, leases)?;
        let (store, recovery) = Store::recover(&backend).map_err(RecoverError::Store)?;
        let Tables { mut leases, membership, alarms, auth, auth_is_new, storage_version, at } =
            tables;
        for (key, lease) in &recovery.attachments {
            if leases.attach(key, *lease).is_err() {
                tracing::error!("lease-id" = %lease, "failed to attach a lease");
            }
        }
        let mut gauges = ClusterGauges::new(settings.member);
        gauges.show(&membership);
        log::recovered(&settings, &membership);
        let machine = Self {
            settings,
            backend,
            store,
            leases,
            membership: Arc::new(membership),
            alarms: Arc::new(alarms),
            auth,
            storage_version,
            conf_state: at.conf_state.clone().unwrap_or_default(),
            conf_state_changed: false,
            applied: at.applied,
            applied_term: at.term,
            writes: if auth_is_new { vec![auth.first_write()] } else { Vec::new() },
            events: Vec::new(),
            gauges,
            may_have_background_work: true,
        };
        Ok((machine, at))
    }
}

/// The small tables as one read transaction finds them.
struct Tables {
    leases: LeaseTable,
    membership: Membership,
    alarms: Alarms,
    auth: auth::Status,
    auth_is_new: bool,
    storage_version: Option<Version>,
    at: RecoveredAt,
}

impl Tables {
    fn read(reader: &Reader<'_>, mut leases: LeaseTable) -> Result<Self, RecoverError> {
        let (enabled_key, revision_key) = auth::Status::keys();
        let revision = reader.get(Table::Auth, revision_key)?;
        let auth = auth::Status::recover(reader.get(Table::Auth, enabled_key)?, revision);
        if auth.enabled {
            return Err(RecoverError::AuthEnabled);
        }
        let membership = read_membership(reader)?;
        if let Some(version) = membership.version()
            && !version.is_supported_cluster()
        {
            return Err(RecoverError::ClusterTooNew(version));
        }
        read_leases(reader, &mut leases)?;
        Ok(Self {
            leases,
            membership,
            alarms: read_alarms(reader)?,
            auth,
            auth_is_new: revision.is_none(),
            storage_version: reader.get(Table::Meta, STORAGE_VERSION)?.and_then(parse_version),
            at: read_position(reader)?,
        })
    }
}

fn read_position(reader: &Reader<'_>) -> Result<RecoveredAt, RecoverError> {
    let stored = reader.get(Table::Meta, CONF_STATE)?;
    let conf_state = stored.map(conf_state::from_json).transpose();
    Ok(RecoveredAt {
        applied: reader.consistent_index()?,
        term: Term(reader.number(Table::Meta, TERM)?.unwrap_or(0)),
        conf_state: conf_state.map_err(RecoverError::ConfState)?,
    })
}

fn read_leases(reader: &Reader<'_>, leases: &mut LeaseTable) -> Result<(), RecoverError> {
    for record in reader.scan(Table::Lease)? {
        let (key, value) = record?;
        leases.restore(key, value).map_err(RecoverError::Lease)?;
    }
    Ok(())
}

fn read_membership(reader: &Reader<'_>) -> Result<Membership, RecoverError> {
    let mut membership = Membership::default();
    for table in [Table::Members, Table::MembersRemoved, Table::Cluster] {
        for record in reader.scan(table)? {
            let (key, value) = record?;
            membership.restore(table, key, value).map_err(RecoverError::Membership)?;
        }
    }
    Ok(membership)
}

fn read_alarms(reader: &Reader<'_>) -> Result<Alarms, RecoverError> {
    let mut alarms = Alarms::default();
    for record in reader.scan(Table::Alarm)? {
        let (key, _) = record?;
        alarms.restore(key).map_err(RecoverError::Alarm)?;
    }
    Ok(alarms)
}

fn parse_version(text: &[u8]) -> Option<Version> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proto::etcdserverpb::{AuthDisableRequest, AuthEnableRequest};

    use super::*;
    use crate::model::RequestId;

    fn entry(index: u64, request: Request) -> Entry {
        let command =
            Command { id: RequestId(index), request: Some(request), ..Command::default() };
        Entry { index: Some(index), data: Some(command.encode()), ..Entry::default() }
    }

    #[test]
    fn log_that_would_switch_authentication_on_is_refused() {
        let entries = [
            entry(7, Request::AuthDisable(AuthDisableRequest::default())),
            entry(8, Request::AuthEnable(AuthEnableRequest::default())),
        ];
        let refused = check_log(&entries, LogIndex(7)).unwrap_err().to_string();
        assert!(refused.starts_with("entry 8 of the log is AuthEnable"), "{refused}");
        let applied = check_log(&entries, LogIndex(8));
        assert!(applied.is_ok(), "the backend tells what became of it: {applied:?}");
    }
}
