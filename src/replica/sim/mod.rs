//! Whole members in one thread, in simulated time, under everything that can go wrong.
//!
//! Decides nothing about members: it runs the real core, log writer, write-ahead log, read rounds
//! and snapshot policy on disks in memory, and chooses from a seed what happens when. A seed gives
//! the same run, bit for bit. Test code only.
//!
//! ```text
//!   seed --> Plan --> World: one event after the other, in simulated time
//!                       |--- Weather: crash, tear a write, cut links, pause, change members ...
//!                       |--- Network: delay, reorder, double, lose
//!                       |--- Node (one per member): Core, LogWriter, State, checkpoint
//!                       |--- clients: writes of unique values, linearizable reads
//!                       +--> Checks (at once), history (at the end), liveness (after the weather)
//! ```
//!
//! Each run has two parts: weather, then calm. In the calm everything works again, and the group
//! must elect a leader, take writes at every member, and bring all members to the same state.
//!
//! Known bugs can be planted ([`Bug`]); each must be found within a few seeds, which shows that the
//! checks see something. A failing seed prints how to repeat it, with the last events of the run.
//!
//! The state is a few registers; in some runs the real state machine on a real backend stands beside
//! it and must agree (`machine`).
//!
//! Deliberately absent: sockets (`transport`), and time that passes while a thread computes.

mod checks;
mod clients;
mod history;
mod machine;
mod network;
mod node;
mod run;
mod state;
mod weather;
mod world;

use crate::base::random::Random;

/// Microseconds of simulated time.
type Micros = u64;

/// One raft tick, before skew. Everything else is chosen in relation to it.
const TICK: Micros = 10_000;

/// A mistake that is made on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    /// A write to the log counts as durable without a sync.
    UnsyncedCountsAsPersisted,
    /// A leader answers a write when it has it in its own log.
    AnswersBeforeQuorum,
    /// A leader serves linearizable reads without asking anybody.
    ReadsWithoutRound,
    /// The only voter reads without a round even if learners have applied more than it has.
    LoneVoterReadsAtOnce,
    /// Whom a member voted for is not read back.
    VoteIsForgotten,
    /// After a restart raft is told of changes of members again that it has made already.
    ChangesAreReplayed,
}

/// What a run is like; drawn from its seed.
#[derive(Clone, Debug)]
struct Plan {
    bug: Option<Bug>,
    /// The members that found the group.
    founders: u64,
    clients: usize,
    /// When the weather ends.
    calm_from: Micros,
    pre_vote: bool,
    append_bytes_max: u64,
    appends_in_flight_max: usize,
    applying_bytes_max: u64,
    catch_up_entries: u64,
    truncate_every_entries: u64,
    snapshot_entries: u64,
    /// Whether the real state machine runs beside the simulated one.
    has_machine: bool,
    weather: Weather,
}

/// What may happen in a run.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a kind of weather of its own")]
struct Weather {
    crashes: bool,
    /// Members crash just after they have voted.
    voters_crash: bool,
    torn_writes: bool,
    partitions: bool,
    loss: bool,
    delay: bool,
    reorder: bool,
    duplicates: bool,
    skew: bool,
    pauses: bool,
    members: bool,
    transfers: bool,
    /// Election timeouts are nearly equal, so that several stand at a time.
    rivals: bool,
    /// Members hear that a process has ended, also of one that has not.
    obituaries: bool,
    slow_disk: bool,
    slow_apply: bool,
}

impl Plan {
    fn draw(random: &mut Random, bug: Option<Bug>) -> Self {
        let mut one_in = |count| random.below(count) == 0;
        let weather = Weather {
            crashes: !one_in(4),
            voters_crash: one_in(3),
            torn_writes: one_in(2),
            partitions: !one_in(4),
            loss: one_in(2),
            delay: one_in(2),
            reorder: one_in(2),
            duplicates: one_in(2),
            skew: one_in(2),
            pauses: one_in(2),
            members: one_in(2),
            transfers: one_in(2),
            rivals: one_in(2),
            obituaries: !one_in(4),
            slow_disk: one_in(3),
            slow_apply: one_in(3),
        };
        let pre_vote = !one_in(4);
        let founders = [3, 3, 3, 3, 5, 1][index_below(random, 6)];
        Self {
            bug,
            founders,
            clients: 3 + index_below(random, 3),
            calm_from: TICK * (150 + random.below(200)),
            pre_vote,
            append_bytes_max: [64, 300, 1 << 20][index_below(random, 3)],
            appends_in_flight_max: [2, 8, 512][index_below(random, 3)],
            applying_bytes_max: [100, 1 << 20][index_below(random, 2)],
            catch_up_entries: [2, 10, 30][index_below(random, 3)],
            truncate_every_entries: [0, 5, 20][index_below(random, 3)],
            snapshot_entries: [8, 20, 60][index_below(random, 3)],
            has_machine: false,
            weather,
        }
    }
}

fn index_below(random: &mut Random, bound: usize) -> usize {
    let bound = u64::try_from(bound).expect("a small number");
    usize::try_from(random.below(bound)).expect("below a small number")
}

/// One step of a digest.
const fn mix(digest: u64, value: u64) -> u64 {
    let mut mixed = (digest.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^= mixed >> 32;
    mixed
}
