//! Who votes, who only follows, and how that changes.
//!
//! Decides which changes of membership are legal and what they make of the tracked members. A
//! change takes effect when it is applied. Changes of one voter replace the membership directly;
//! changes of several go through a joint membership in which old and new majorities must agree.
//!
//! Invariants
//! - C1 Everybody in the membership has a progress, and nobody else has.
//! - C2 A learner is not a voter of either half.
//! - C3 Whoever is to become a learner on leaving the joint membership still votes in its old half.
//! - C4 Without an old half there is nobody to become a learner, and nothing to leave.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use proto::raftpb::{
    ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
};

use super::{
    progress::{Progress, Start},
    quorum::Voters,
};
use crate::model::{LogIndex, MemberId};

/// Why a change of membership is not possible. A committed change is input, so this is an answer
/// and never a panic; the membership stays as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfChangeError {
    /// Nobody would vote any more.
    NoVoters,
    /// Several voters change without a joint membership.
    SeveralVoters,
    /// The membership is joint and must be left first.
    Joint,
    /// The membership is not joint and cannot be left.
    NotJoint,
    /// A kind of change or of transition that nobody knows.
    UnknownKind(i32),
    /// A stored membership contradicts itself.
    Contradiction,
}

impl fmt::Display for ConfChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVoters => f.write_str("the change removes all voters"),
            Self::SeveralVoters => {
                f.write_str("the change replaces more than one voter without a joint membership")
            }
            Self::Joint => f.write_str("the membership is joint and must be left first"),
            Self::NotJoint => f.write_str("the membership is not joint and cannot be left"),
            Self::UnknownKind(kind) => write!(f, "membership changes of kind {kind} are unknown"),
            Self::Contradiction => f.write_str("the membership contradicts itself"),
        }
    }
}

impl std::error::Error for ConfChangeError {}

/// `change` in the form that may hold several.
pub(super) fn several(change: &ConfChange) -> ConfChangeV2 {
    let single = ConfChangeSingle {
        r#type: Some(change.r#type.unwrap_or(0)),
        node_id: Some(change.node_id.unwrap_or(0)),
    };
    ConfChangeV2 { transition: None, changes: vec![single], context: change.context.clone() }
}

/// What a change asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Simple,
    EnterJoint { auto_leave: bool },
    LeaveJoint,
}

/// How `change` is to be carried out.
///
/// # Errors
/// [`ConfChangeError::UnknownKind`].
pub(super) fn step_of(change: &ConfChangeV2) -> Result<Step, ConfChangeError> {
    let wire = change.transition.unwrap_or(0);
    let transition = ConfChangeTransition::try_from(wire)
        .map_err(|_unknown| ConfChangeError::UnknownKind(wire))?;
    Ok(match transition {
        ConfChangeTransition::Auto => match change.changes.len() {
            0 => Step::LeaveJoint,
            1 => Step::Simple,
            _ => Step::EnterJoint { auto_leave: true },
        },
        ConfChangeTransition::JointImplicit => Step::EnterJoint { auto_leave: true },
        ConfChangeTransition::JointExplicit => Step::EnterJoint { auto_leave: false },
    })
}

/// The members of the group in their roles.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Membership {
    pub(super) voters: Voters,
    learners: BTreeSet<MemberId>,
    /// Voters of the old half that become learners when it is left.
    learners_next: BTreeSet<MemberId>,
    /// A leader leaves the joint membership by itself as soon as it can.
    pub(super) auto_leave: bool,
}

/// The members of the group and what is known of each.
#[derive(Clone, Debug)]
pub(super) struct Members {
    pub(super) membership: Membership,
    pub(super) progress: BTreeMap<MemberId, Progress>,
    appends_in_flight_max: usize,
}

impl Members {
    /// Nobody.
    pub(super) fn new(appends_in_flight_max: usize) -> Self {
        Self { membership: Membership::default(), progress: BTreeMap::new(), appends_in_flight_max }
    }

    /// The members that `state` names, where new ones are first sent the entry at `last`.
    ///
    /// # Errors
    /// [`ConfChangeError::Contradiction`] and whatever the single changes run into.
    pub(super) fn restore(
        state: &ConfState,
        last: LogIndex,
        appends_in_flight_max: usize,
    ) -> Result<Self, ConfChangeError> {
        use ConfChangeType::{ConfChangeAddLearnerNode, ConfChangeAddNode, ConfChangeRemoveNode};
        let all = |ids: &[u64], kind| -> Vec<ConfChangeSingle> {
            ids.iter().map(|id| single(kind, MemberId(*id))).collect()
        };
        let mut incoming = all(&state.voters, ConfChangeAddNode);
        incoming.extend(all(&state.learners, ConfChangeAddLearnerNode));
        incoming.extend(all(&state.learners_next, ConfChangeAddLearnerNode));

        let mut members = Self::new(appends_in_flight_max);
        if state.voters_outgoing.is_empty() {
            for change in incoming {
                members = members.simple(&[change], last)?;
            }
        } else {
            for change in all(&state.voters_outgoing, ConfChangeAddNode) {
                members = members.simple(&[change], last)?;
            }
            let mut changes = all(&state.voters_outgoing, ConfChangeRemoveNode);
            changes.append(&mut incoming);
            members = members.enter_joint(state.auto_leave.unwrap_or(false), &changes, last)?;
        }
        if members.conf_state() == sorted(state) {
            Ok(members)
        } else {
            Err(ConfChangeError::Contradiction)
        }
    }

    /// The members after `change`.
    ///
    /// # Errors
    /// Any [`ConfChangeError`]; `self` is what it was.
    pub(super) fn changed(
        &self,
        change: &ConfChangeV2,
        last: LogIndex,
    ) -> Result<Self, ConfChangeError> {
        let changed = match step_of(change)? {
            Step::LeaveJoint => self.leave_joint()?,
            Step::EnterJoint { auto_leave } => {
                self.enter_joint(auto_leave, &change.changes, last)?
            }
            Step::Simple => self.simple(&change.changes, last)?,
        };
        changed.check();
        Ok(changed)
    }

    pub(super) fn simple(
        &self,
        changes: &[ConfChangeSingle],
        last: LogIndex,
    ) -> Result<Self, ConfChangeError> {
        if self.membership.voters.is_joint() {
            return Err(ConfChangeError::Joint);
        }
        let mut changed = self.clone();
        changed.apply(changes, last)?;
        let before = &self.membership.voters.incoming;
        if 1 < before.symmetric_difference(&changed.membership.voters.incoming).count() {
            return Err(ConfChangeError::SeveralVoters);
        }
        Ok(changed)
    }

    pub(super) fn enter_joint(
        &self,
        auto_leave: bool,
        changes: &[ConfChangeSingle],
        last: LogIndex,
    ) -> Result<Self, ConfChangeError> {
        if self.membership.voters.is_joint() {
            return Err(ConfChangeError::Joint);
        }
        if self.membership.voters.incoming.is_empty() {
            return Err(ConfChangeError::NoVoters);
        }
        let mut changed = self.clone();
        changed.membership.voters.outgoing = changed.membership.voters.incoming.clone();
        changed.apply(changes, last)?;
        changed.membership.auto_leave = auto_leave;
        Ok(changed)
    }

    pub(super) fn leave_joint(&self) -> Result<Self, ConfChangeError> {
        if !self.membership.voters.is_joint() {
            return Err(ConfChangeError::NotJoint);
        }
        let mut changed = self.clone();
        let membership = &mut changed.membership;
        for id in std::mem::take(&mut membership.learners_next) {
            membership.learners.insert(id);
            changed.progress.get_mut(&id).expect("C1").is_learner = true;
        }
        for id in std::mem::take(&mut membership.voters.outgoing) {
            if !membership.voters.incoming.contains(&id) && !membership.learners.contains(&id) {
                changed.progress.remove(&id);
            }
        }
        membership.auto_leave = false;
        Ok(changed)
    }

    fn apply(
        &mut self,
        changes: &[ConfChangeSingle],
        last: LogIndex,
    ) -> Result<(), ConfChangeError> {
        for change in changes {
            let id = MemberId(change.node_id.unwrap_or(0));
            // A change that the state machine refused arrives without a member.
            if id.0 == 0 {
                continue;
            }
            let wire = change.r#type.unwrap_or(0);
            match ConfChangeType::try_from(wire)
                .map_err(|_unknown| ConfChangeError::UnknownKind(wire))?
            {
                ConfChangeType::ConfChangeAddNode => self.make_voter(id, last),
                ConfChangeType::ConfChangeAddLearnerNode => self.make_learner(id, last),
                ConfChangeType::ConfChangeRemoveNode => self.remove(id),
                ConfChangeType::ConfChangeUpdateNode => {}
            }
        }
        if self.membership.voters.incoming.is_empty() {
            return Err(ConfChangeError::NoVoters);
        }
        Ok(())
    }

    fn make_voter(&mut self, id: MemberId, last: LogIndex) {
        self.membership.learners.remove(&id);
        self.membership.learners_next.remove(&id);
        self.membership.voters.incoming.insert(id);
        match self.progress.get_mut(&id) {
            Some(progress) => progress.is_learner = false,
            None => self.track(id, last, false),
        }
    }

    fn make_learner(&mut self, id: MemberId, last: LogIndex) {
        let Some(progress) = self.progress.get_mut(&id) else {
            self.membership.learners.insert(id);
            self.track(id, last, true);
            return;
        };
        if progress.is_learner {
            return;
        }
        self.membership.voters.incoming.remove(&id);
        if self.membership.voters.outgoing.contains(&id) {
            self.membership.learners_next.insert(id);
        } else {
            progress.is_learner = true;
            self.membership.learners.insert(id);
        }
    }

    fn remove(&mut self, id: MemberId) {
        self.membership.voters.incoming.remove(&id);
        self.membership.learners.remove(&id);
        self.membership.learners_next.remove(&id);
        if !self.membership.voters.outgoing.contains(&id) {
            self.progress.remove(&id);
        }
    }

    fn track(&mut self, id: MemberId, last: LogIndex, is_learner: bool) {
        let progress = Progress::new(Start {
            // The first probe finds out what the member really has.
            next: last.max(LogIndex(1)),
            is_learner,
            // Or a leader could miss its quorum before the member has had a chance to answer.
            recently_active: true,
            appends_in_flight_max: self.appends_in_flight_max,
        });
        self.progress.insert(id, progress);
    }

    /// Starts every progress anew, for a new term.
    pub(super) fn reset(&mut self, next: LogIndex) {
        for progress in self.progress.values_mut() {
            *progress = Progress::new(Start {
                next,
                is_learner: progress.is_learner,
                recently_active: false,
                appends_in_flight_max: self.appends_in_flight_max,
            });
        }
    }

    /// Whether one voter decides alone.
    pub(super) fn is_singleton(&self) -> bool {
        self.membership.voters.incoming.len() == 1 && !self.membership.voters.is_joint()
    }

    /// Whether `id` is a voter after all changes under way.
    pub(super) fn votes(&self, id: MemberId) -> bool {
        self.membership.voters.incoming.contains(&id)
    }

    /// The membership in the form that is stored and sent.
    pub(super) fn conf_state(&self) -> ConfState {
        let ids = |set: &BTreeSet<MemberId>| set.iter().map(|id| id.0).collect();
        ConfState {
            voters: ids(&self.membership.voters.incoming),
            learners: ids(&self.membership.learners),
            voters_outgoing: ids(&self.membership.voters.outgoing),
            learners_next: ids(&self.membership.learners_next),
            auto_leave: Some(self.membership.auto_leave),
        }
    }

    fn check(&self) {
        let Membership { voters, learners, learners_next, auto_leave } = &self.membership;
        let mut everybody = voters.ids();
        everybody.extend(learners);
        assert!(everybody.iter().eq(self.progress.keys()), "C1: {everybody:?}");
        assert!(!learners.iter().any(|id| voters.contains(*id)), "C2: {:?}", self.membership);
        assert!(learners_next.is_subset(&voters.outgoing), "C3: {:?}", self.membership);
        let is_plain = learners_next.is_empty() && !auto_leave;
        assert!(voters.is_joint() || is_plain, "C4: {:?}", self.membership);
        for (id, progress) in &self.progress {
            assert!(progress.is_learner == learners.contains(id), "C2: the role of {id}");
        }
    }
}

/// Prints the membership as etcd's log lines do.
impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "voters={}", Ids(&self.voters.incoming))?;
        if self.voters.is_joint() {
            write!(f, "&&{}", Ids(&self.voters.outgoing))?;
        }
        if !self.learners.is_empty() {
            write!(f, " learners={}", Ids(&self.learners))?;
        }
        if !self.learners_next.is_empty() {
            write!(f, " learners_next={}", Ids(&self.learners_next))?;
        }
        if self.auto_leave {
            f.write_str(" autoleave")?;
        }
        Ok(())
    }
}

struct Ids<'a>(&'a BTreeSet<MemberId>);

impl fmt::Display for Ids<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(")?;
        for (position, id) in self.0.iter().enumerate() {
            let gap = if position == 0 { "" } else { " " };
            write!(f, "{gap}{id}")?;
        }
        f.write_str(")")
    }
}

fn single(kind: ConfChangeType, id: MemberId) -> ConfChangeSingle {
    ConfChangeSingle { r#type: Some(kind.into()), node_id: Some(id.0) }
}

fn sorted(state: &ConfState) -> ConfState {
    let mut sorted = state.clone();
    sorted.voters.sort_unstable();
    sorted.learners.sort_unstable();
    sorted.voters_outgoing.sort_unstable();
    sorted.learners_next.sort_unstable();
    sorted.auto_leave = Some(state.auto_leave.unwrap_or(false));
    sorted
}
