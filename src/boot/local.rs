//! The running member, as its peers see it.
//!
//! Decides nothing about messages: it joins what the transport asks for (`transport::Local`) to who
//! has it. A database that a leader sent is checked before raft hears of it, because raft does not
//! go back. Called on the `peer` thread; stands here because the transport must not know the replica.

use std::{path::PathBuf, pin::Pin};

use proto::raftpb::{Message, MessageType};

use crate::{
    base::{
        error::chain,
        thread::{self, Priority},
    },
    consensus::SnapshotReport,
    exchange::snapshot_file,
    model::{LogIndex, MemberId},
    replica::{Handle, open_received},
    transport::{Local, PeerAnswer, PeerCall},
};

use super::{member::LocalMember, peers::answer};

/// What the transport has of this member.
#[derive(Debug)]
pub(super) struct PeerSide {
    pub(super) handle: Handle,
    pub(super) member: LocalMember,
    pub(super) snap_dir: PathBuf,
}

impl Local for PeerSide {
    fn step(&self, message: Message) {
        if message.r#type != Some(MessageType::MsgSnap.into()) {
            return self.handle.step(message);
        }
        let (handle, snap_dir) = (self.handle.clone(), self.snap_dir.clone());
        let check = move || step_snapshot(&handle, &snap_dir, message);
        if let Err(error) = thread::spawn("snapshot-check", Priority::Background, check) {
            tracing::error!(%error, "cannot start a thread for a received snapshot");
        }
    }

    fn unreachable(&self, member: MemberId) {
        self.handle.unreachable(member);
    }

    fn gone(&self, member: MemberId) {
        self.handle.gone(member);
    }

    fn snapshot_sent(&self, member: MemberId, report: SnapshotReport) {
        self.handle.snapshot_sent(member, report);
    }

    fn is_removed(&self, member: MemberId) -> bool {
        self.handle.published().membership.is_removed(member)
    }

    fn snapshot_path(&self, index: LogIndex) -> PathBuf {
        self.snap_dir.join(snapshot_file(index))
    }

    fn removed(&self) {
        self.handle.told_removed();
    }

    fn call(&self, call: PeerCall) -> Pin<Box<dyn Future<Output = PeerAnswer> + Send>> {
        Box::pin(answer(self.member.clone(), call))
    }
}

/// Tells raft of a snapshot whose database is sound; another one is as good as lost on the way.
fn step_snapshot(handle: &Handle, snap_dir: &std::path::Path, message: Message) {
    let metadata = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
    let index = LogIndex(metadata.and_then(|metadata| metadata.index).unwrap_or(0));
    match open_received(snap_dir, index) {
        Ok(_file) => handle.step(message),
        Err(error) => {
            let path = snap_dir.join(snapshot_file(index));
            tracing::error!(
                path = %path.display(),
                error = chain(&error),
                "a received snapshot is not sound; it is dropped"
            );
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "could not remove a file");
            }
        }
    }
}
