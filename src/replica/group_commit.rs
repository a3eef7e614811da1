//! When a write of the log waits for company.
//!
//! Decides, from counts alone, whether the replica thread sleeps a moment before it writes what has
//! arrived. A write costs a sync and four wake-ups whatever is in it. Under a heavy load it carries
//! dozens of proposals, because they arrive during the write before; at some thousand proposals per
//! second from many clients, that come whether or not earlier ones are answered, it carries one.
//! Then a wait makes one write of ten. Owned by the replica thread.
//!
//! ```text
//!            looks promising                LOOK proposals, as many per second as before  
//!   Free ---------------------> Waiting ----------------------------+
//!    ^                            |  ^                              |
//!    |   fewer per second, or     |  +------------------------------+
//!    +--- time for another look --+
//! ```
//!
//! Clients that send again only when they are answered must not wait: they would become slower and
//! their batches no larger. They show it: with waiting, fewer proposals arrive per second than
//! without. So each round of waiting is compared with a stretch without it, and after a failure the
//! next trial is twice as many proposals away.
//!
//! Invariants
//! - G1 A proposal waits at most once, for at most [`WAIT_MAX`].
//! - G2 A client alone never waits: its writes carry one proposal each.
//!
//! Measured in an open loop of 10,000 puts per second, together with `serve/rest.rs`: 2.9 times less
//! processor time per put, a twentieth of the syncs; a put takes 1.5 ms at the median instead of
//! 0.35, and 2.8 ms instead of 1.5 at the 99th percentile.

use std::time::Duration;

/// How long a write waits for company at most: then a put takes about as long as with official etcd
/// at the rates at which it pays to wait, 1.0 to 2.3 ms. With 1 ms it cost a fifth more processor
/// time at 10,000 per second.
const WAIT_MAX: Duration = Duration::from_micros(1_500);

/// A batch of so many proposals is written at once, and no wait is longer than it takes to get one.
const BATCH_ENOUGH: u64 = 18;

/// How many times larger waiting must make a batch to be worth its while.
const GAIN_MIN: u64 = 4;

/// Proposals after which a stretch is judged. Their number per second is known to a sixteenth.
const LOOK: u64 = 256;

/// Proposals for which waiting goes on before it is compared with not waiting again. With a quarter
/// of it, the comparisons were a tenth of all cost.
const WAITING_MAX: u64 = 64 * LOOK;

/// Proposals after which a stretch of waiting is given up if it is clearly bad.
const GLANCE: u64 = 64;

/// Proposals without a trial after the first failed one.
const REST_MIN: u64 = LOOK;

/// Proposals without a trial after many failed ones: less than one in a hundred is in a trial.
const REST_MAX: u64 = 128 * LOOK;

/// Nothing is said about the rate of proposals by a stretch in which none came for so long.
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// What is to be done with the proposals that have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// Write them.
    Write,
    /// Sleep for so long, then write them with what arrived meanwhile.
    Wait(Duration),
}

/// The state of the decision.
#[derive(Debug, Default)]
pub(super) struct GroupCommit {
    phase: Phase,
    stretch: Stretch,
    /// Proposals until the next trial.
    rest: u64,
    /// What `rest` was after the last failed trial; 0 after a successful one.
    rested: u64,
}

#[derive(Clone, Copy, Debug, Default)]
enum Phase {
    /// Writes go out at once.
    #[default]
    Free,
    /// Small ones wait.
    Waiting {
        /// For how long.
        time: Duration,
        /// Proposals per second before.
        free_rate: u64,
        /// Proposals until the next comparison.
        left: u64,
    },
}

/// What is counted for one judgement.
#[derive(Clone, Copy, Debug, Default)]
struct Stretch {
    begun: Duration,
    last: Duration,
    writes: u64,
    proposals: u64,
}

impl Stretch {
    fn per_second(&self) -> u64 {
        let micros = (self.last - self.begun).as_micros().max(1);
        u64::try_from(u128::from(self.proposals) * 1_000_000 / micros).unwrap_or(u64::MAX)
    }

    /// How long a write should wait: until it carries enough, if some proposals came during a
    /// write (G2) and waiting would gather many more.
    fn wait(&self) -> Option<Duration> {
        let rate = self.per_second();
        let time = WAIT_MAX.min(Duration::from_micros(BATCH_ENOUGH * 1_000_000 / rate.max(1)));
        let gained = u128::from(rate) * time.as_micros() * u128::from(self.writes) / 1_000_000;
        let overlapping = self.writes + self.writes / 16 < self.proposals;
        let gain_min = u128::from((GAIN_MIN - 1) * self.proposals);
        (overlapping && gain_min <= gained).then_some(time)
    }
}

impl GroupCommit {
    /// A batch of `proposals` has been taken at `now` and is about to be written.
    pub(super) fn advise(&mut self, proposals: usize, now: Duration) -> Advice {
        let proposals = u64::try_from(proposals).unwrap_or(u64::MAX);
        if self.stretch.last + PAUSE_MAX < now {
            self.phase = Phase::Free;
            self.begin(now);
            return Advice::Write;
        }
        self.stretch.last = now;
        self.stretch.writes += 1;
        self.stretch.proposals += proposals;
        if LOOK <= self.stretch.proposals || self.is_clearly_bad() {
            self.judge();
            self.begin(now);
        }
        match self.phase {
            Phase::Waiting { time, .. } if proposals < BATCH_ENOUGH => Advice::Wait(time),
            Phase::Waiting { .. } | Phase::Free => Advice::Write,
        }
    }

    /// So many proposals more came while the batch waited.
    pub(super) fn joined(&mut self, proposals: usize) {
        self.stretch.proposals += u64::try_from(proposals).unwrap_or(u64::MAX);
    }

    fn begin(&mut self, now: Duration) {
        self.stretch = Stretch { begun: now, last: now, ..Stretch::default() };
    }

    fn is_clearly_bad(&self) -> bool {
        match self.phase {
            Phase::Waiting { free_rate, .. } => {
                GLANCE <= self.stretch.proposals && self.stretch.per_second() < free_rate / 8 * 5
            }
            Phase::Free => false,
        }
    }

    fn judge(&mut self) {
        let Stretch { proposals, .. } = self.stretch;
        let rate = self.stretch.per_second();
        match &mut self.phase {
            Phase::Free if self.rest < proposals => {
                if let Some(time) = self.stretch.wait() {
                    self.phase = Phase::Waiting { time, free_rate: rate, left: WAITING_MAX };
                }
            }
            Phase::Free => self.rest -= proposals,
            Phase::Waiting { free_rate, .. } if rate < *free_rate / 8 * 7 => {
                self.rested = (2 * self.rested).clamp(REST_MIN, REST_MAX);
                self.rest = self.rested;
                self.phase = Phase::Free;
            }
            Phase::Waiting { left, .. } if proposals < *left => {
                *left -= proposals;
                self.rested = 0;
            }
            Phase::Waiting { .. } => self.phase = Phase::Free,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What a write costs, in microseconds, and how late a sleeper wakes up.
    const WRITE: u64 = 150;
    const LATE: u64 = 50;

    /// What came of a load.
    #[derive(Debug, Default)]
    struct Run {
        proposals: u64,
        writes: u64,
        waits: u64,
        /// When the last write ended.
        micros: u64,
    }

    /// Who proposes.
    #[derive(Clone, Copy)]
    enum Clients {
        /// Whoever is answered proposes again after so many microseconds.
        Closed(u64),
        /// They do not care for answers.
        Open,
    }

    /// Serves proposals that arrive at `arrivals`.
    fn serve(
        mut policy: Option<GroupCommit>,
        mut arrivals: BTreeSet<u64>,
        clients: Clients,
        proposals_max: u64,
    ) -> Run {
        let mut run = Run::default();
        while run.proposals < proposals_max {
            let Some(first) = arrivals.first() else { break };
            run.micros = run.micros.max(*first);
            let take = |arrivals: &mut BTreeSet<u64>, now: u64| {
                let rest = arrivals.split_off(&(now + 1));
                std::mem::replace(arrivals, rest).len()
            };
            let mut batch = take(&mut arrivals, run.micros);
            let now = Duration::from_micros(run.micros);
            if let Some(policy) = &mut policy
                && let Advice::Wait(time) = policy.advise(batch, now)
            {
                assert!(time <= WAIT_MAX, "G1: a wait of {time:?}");
                run.waits += 1;
                run.micros += u64::try_from(time.as_micros()).unwrap() + LATE;
                let more = take(&mut arrivals, run.micros);
                policy.joined(more);
                batch += more;
            }
            run.micros += WRITE;
            run.writes += 1;
            run.proposals += batch as u64;
            if let Clients::Closed(think) = clients {
                // Answers leave one after the other.
                arrivals.extend((0..batch as u64).map(|at| run.micros + think + 4 * at));
            }
        }
        run
    }

    fn closed_loop(policy: Option<GroupCommit>, clients: u64, think: u64) -> Run {
        serve(policy, (0..clients).collect(), Clients::Closed(think), 200_000)
    }

    /// Proposals at irregular times, `per_second` on average.
    fn open_loop(per_second: u64) -> Run {
        let (mut now, mut state) = (0, 1_u64);
        let arrivals = (0..50_000).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            now += 1 + (state >> 33) % (2_000_000 / per_second);
            now
        });
        serve(Some(GroupCommit::default()), arrivals.collect(), Clients::Open, u64::MAX)
    }

    #[test]
    fn client_alone_never_waits() {
        let run = closed_loop(Some(GroupCommit::default()), 1, 60);
        assert_eq!((run.waits, run.writes), (0, run.proposals), "G2: {run:?}");
    }

    #[test]
    fn clients_that_wait_for_answers_are_hardly_slowed_down() {
        for clients in [2, 4, 8, 16, 32, 64, 256] {
            for think in [60, 300, 1_000] {
                let run = closed_loop(Some(GroupCommit::default()), clients, think);
                let free = closed_loop(None, clients, think);
                let case = format!("{clients} clients, {think} us: {run:?}, not {free:?}");
                assert!(run.micros * 100 <= free.micros * 102, "{case}");
            }
        }
    }

    #[test]
    fn proposals_that_come_anyway_share_writes() {
        for (per_second, share) in [(6_000, 4), (10_000, 6), (20_000, 7), (40_000, 5)] {
            let run = open_loop(per_second);
            assert!(run.writes * share < run.proposals, "{per_second} per second: {run:?}");
        }
    }

    #[test]
    fn rare_proposals_do_not_wait() {
        for per_second in [100, 1_000] {
            let run = open_loop(per_second);
            assert_eq!(run.waits, 0, "{per_second} per second: {run:?}");
        }
    }

    #[test]
    fn load_that_ends_leaves_no_wait_behind() {
        let mut policy = GroupCommit::default();
        let mut now = Duration::ZERO;
        let mut waited = false;
        for turn in 0..1_000 {
            now += Duration::from_micros(150);
            let advice = policy.advise(1 + turn % 2, now);
            if let Advice::Wait(time) = advice {
                waited = true;
                now += time;
                policy.joined(8);
            }
        }
        assert!(waited, "such a load is worth waiting");
        assert_eq!(policy.advise(1, now + Duration::from_secs(1)), Advice::Write);
    }
}
