//! What goes wrong in a simulated group, and when.
//!
//! Decides the next trouble. It knows more than an operator, and changes members only where the
//! group can survive it: quorums are of members that will run again.

use proto::raftpb::ConfChangeType;

use super::{
    TICK, Weather, index_below, mix,
    node::Fate,
    world::{Event, World, change},
};
use crate::{consensus::Role, model::MemberId, replica::Input};

/// More members than a group ever has at a time.
const MEMBERS_MAX: u64 = 5;
/// Members that a run ever has.
const IDS_MAX: u64 = 9;

impl World {
    /// One piece of trouble, and the time of the next.
    pub(super) fn weather(&mut self) {
        if self.plan.calm_from <= self.now {
            return;
        }
        let at = self.now + 1 + self.random.below(16 * TICK);
        self.schedule(at, Event::Weather);
        let Weather {
            crashes,
            torn_writes,
            partitions,
            pauses,
            members,
            transfers,
            obituaries,
            ..
        } = self.plan.weather;
        match self.random.below(24) {
            0..5 if crashes => self.crash_one(),
            5 if crashes => self.crash_all(),
            6..9 if torn_writes => self.tear_a_write(),
            9..13 if partitions => self.cut_links(),
            13..15 if pauses => self.pause(),
            15..18 if members => self.change_members(),
            18..20 if transfers => self.hand_over(),
            20..24 if obituaries => self.mourn_the_living(),
            _ => {}
        }
    }

    /// A member that has voted for another one and has not heard of a leader may forget it all.
    pub(super) fn crash_voter(&mut self, id: MemberId) {
        if !self.plan.weather.voters_crash || self.plan.calm_from <= self.now {
            return;
        }
        let node = &self.nodes[&id];
        let (life, running) = (node.life, node.running.as_ref());
        let has_voted = running.is_some_and(|running| {
            let raft = running.core.raft();
            let vote = raft.hard_state().vote.unwrap_or(0);
            vote != 0 && vote != id.0 && raft.leader() == MemberId(0)
        });
        if has_voted && self.random.below(6) == 0 {
            let at = self.now + 500 + self.random.below(TICK / 4);
            self.schedule(at, Event::CrashBriefly(id, life));
        }
    }

    /// A member that begins to ask for votes may not be heard by another one, which asks as well.
    pub(super) fn part_rivals(&mut self, id: MemberId) {
        if !self.plan.weather.rivals || self.plan.calm_from <= self.now {
            return;
        }
        let running = self.nodes[&id].running.as_ref();
        let asks = running.is_some_and(|running| {
            let role = running.core.raft().role();
            matches!(role, Role::PreCandidate | Role::Candidate)
        });
        if asks && self.random.below(4) == 0 {
            let ids: Vec<MemberId> = self.nodes.keys().copied().collect();
            let rival = ids[index_below(&mut self.random, ids.len())];
            self.network.cut(id, rival);
            self.network.cut(rival, id);
            self.partition += 1;
            self.schedule(self.now + 3 * TICK, Event::Heal(self.partition));
        }
    }

    fn leader(&self) -> Option<MemberId> {
        let leaders = self.nodes.values().filter_map(|node| {
            let raft = node.running.as_ref().filter(|running| running.is_leader())?.core.raft();
            Some((raft.term(), node.id))
        });
        leaders.max().map(|(_, id)| id)
    }

    /// A leader, often, or anybody.
    fn victim(&mut self) -> Option<MemberId> {
        let leader = self.leader();
        if self.random.below(3) == 0 && leader.is_some() { leader } else { self.any_up() }
    }

    fn crash_one(&mut self) {
        if let Some(id) = self.victim() {
            self.crash(id);
        }
    }

    fn crash_all(&mut self) {
        let ids: Vec<MemberId> = self.nodes.keys().copied().collect();
        for id in ids {
            self.crash(id);
        }
    }

    /// One of the next writes or syncs of a log fails half-way, and the member with it.
    fn tear_a_write(&mut self) {
        let Some(id) = self.victim() else { return };
        let (after, bytes) = (self.random.below(3), index_below(&mut self.random, 2000));
        let fails_at_sync = self.random.below(2) == 0;
        self.note(mix(20, id.0), || format!("{id} is going to tear a write"));
        let disk = &self.nodes[&id].disk;
        if fails_at_sync {
            disk.fail_sync_after(after);
        } else {
            disk.fail_write_after(after, bytes);
        }
    }

    fn cut_links(&mut self) {
        let ids: Vec<MemberId> = self.nodes.keys().copied().collect();
        let Some(first) = self.victim() else { return };
        let style = self.random.below(5);
        self.note(mix(21, style), || format!("links are cut in style {style}, first {first}"));
        self.network.heal();
        self.checks.counts.partitions += 1;
        match style {
            // One member is alone; it may still hear the others, or be heard.
            0..3 => {
                for other in ids {
                    if style != 1 {
                        self.network.cut(first, other);
                    }
                    if style != 2 {
                        self.network.cut(other, first);
                    }
                }
            }
            // Two groups.
            3 => {
                let mask = self.random.next();
                let side = |id: &MemberId| mask >> id.0 & 1;
                for from in &ids {
                    for to in ids.iter().filter(|to| side(from) != side(to)) {
                        self.network.cut(*from, *to);
                    }
                }
            }
            // Two members do not see each other.
            _ => {
                let second = ids[index_below(&mut self.random, ids.len())];
                self.network.cut(first, second);
                self.network.cut(second, first);
            }
        }
        self.partition += 1;
        let at = self.now + self.random.below(50 * TICK);
        self.schedule(at, Event::Heal(self.partition));
    }

    /// A process stands still, as under a debugger or on a machine without time for it.
    fn pause(&mut self) {
        let Some(id) = self.victim() else { return };
        self.note(mix(22, id.0), || format!("{id} stands still"));
        let until = self.now + self.random.below(25 * TICK);
        self.due.get_mut(&id).expect("every member has its schedule").paused_until = until;
    }

    fn hand_over(&mut self) {
        let (Some(leader), Some(to)) = (self.leader(), self.any_up()) else { return };
        self.note(mix(23, to.0), || format!("{leader} is to hand over to {to}"));
        self.checks.counts.transfers += 1;
        self.ask(leader, Input::TransferLeader(to));
    }

    /// A member hears that another one's process has ended, most often its leader's. It has not, or
    /// has and runs again.
    fn mourn_the_living(&mut self) {
        let (Some(mourner), Some(gone)) = (self.any_up(), self.victim()) else { return };
        let led_by = self.nodes[&mourner].running.as_ref().map(|one| one.core.raft().leader());
        let gone = led_by.filter(|leader| leader.0 != 0).unwrap_or(gone);
        self.note(mix(25, mourner.0), || format!("{mourner} hears wrongly that {gone} is gone"));
        self.checks.counts.obituaries += 1;
        self.ask(mourner, Input::LeaderGone(gone));
    }

    /// The others hear, sooner or later, that a process has ended.
    pub(super) fn announce_end(&mut self, gone: MemberId) {
        if !self.plan.weather.obituaries {
            return;
        }
        let others: Vec<(MemberId, u64)> = self
            .nodes
            .values()
            .filter(|node| node.id != gone && node.running.is_some())
            .map(|node| (node.id, node.life))
            .collect();
        for (id, life) in others {
            if self.random.below(4) != 0 {
                let at = self.now + self.random.below(3 * TICK);
                self.schedule(at, Event::Gone(id, life, gone));
            }
        }
    }

    fn ask(&mut self, id: MemberId, input: Input) {
        let node = self.nodes.get_mut(&id).expect("every member is known");
        let life = node.life;
        if let Some(running) = &mut node.running {
            running.push(input);
            // The next turn is never far.
            self.schedule(self.now, Event::Unreachable(id, life, MemberId(0)));
        }
    }

    fn change_members(&mut self) {
        let Some(proposer) = self.any_up().filter(|_| self.change.is_none()) else { return };
        let Some((kind, id, is_promote)) = self.next_change(proposer) else { return };
        self.note(mix(24, id.0), || format!("{proposer} is asked for {kind:?} of {id}"));
        let mut change = Box::new(change(kind, id, is_promote));
        let now = self.now;
        let node = self.nodes.get_mut(&proposer).expect("every member is known");
        let life = node.life;
        let Some(running) = &mut node.running else { return };
        let request = running.propose(now, |id| {
            change.id = Some(id.0);
            Input::ProposeConfChange(change)
        });
        self.change = Some(request);
        self.schedule(self.now, Event::Unreachable(proposer, life, MemberId(0)));
    }

    /// What the proposer's view of the group allows.
    fn next_change(&mut self, proposer: MemberId) -> Option<(ConfChangeType, MemberId, bool)> {
        let running = self.nodes[&proposer].running.as_ref()?;
        let (voters, learners) =
            (running.state.conf_state.voters.clone(), running.state.conf_state.learners.clone());
        let count = |members: &[u64]| u64::try_from(members.len()).expect("a small number");
        let (voting, learning) = (count(&voters), count(&learners));
        let ids = u64::try_from(self.nodes.len()).expect("a small number");
        let may_add = voting + learning + self.changes_unknown < MEMBERS_MAX && ids < IDS_MAX;
        // The last of two cannot do without the one that goes, and what is unknown may still come.
        let may_remove = 3 + self.changes_unknown <= voting;
        let started = |id: &&u64| self.nodes[&MemberId(**id)].fate == Fate::Alive;
        let all_started = voters.iter().filter(started).count() == voters.len();
        match self.random.below(6) {
            0 | 1 if may_add && all_started => {
                self.add_node(MemberId(ids + 1));
                Some((ConfChangeType::ConfChangeAddNode, MemberId(ids + 1), false))
            }
            2 if may_add => {
                self.add_node(MemberId(ids + 1));
                Some((ConfChangeType::ConfChangeAddLearnerNode, MemberId(ids + 1), false))
            }
            3 => {
                let learner = *learners.first()?;
                Some((ConfChangeType::ConfChangeAddNode, MemberId(learner), true))
            }
            4 if may_remove => {
                let leader = self.leader().filter(|leader| voters.contains(&leader.0));
                let chosen = voters[index_below(&mut self.random, voters.len())];
                let gone = leader.filter(|id| id.0 % 2 == 0).unwrap_or(MemberId(chosen));
                Some((ConfChangeType::ConfChangeRemoveNode, gone, false))
            }
            5 if !learners.is_empty() => {
                let learner = learners[index_below(&mut self.random, learners.len())];
                Some((ConfChangeType::ConfChangeRemoveNode, MemberId(learner), false))
            }
            _ => None,
        }
    }
}
