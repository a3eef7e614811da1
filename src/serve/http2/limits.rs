//! What a client may do how often.
//!
//! Decides when a connection is ended because its client keeps the server busy with nothing: too
//! many frames that have to be answered, too many requests that are taken back, and pings more often
//! than the operator allows. Asked by `connection` for each such frame.
//!
//! Source: grpc-go `internal/transport/http2_server.go`, `handlePing`; the bounds on other frames
//! are ours.

use std::time::Duration;

/// Settings and empty frames that may come at once, and how many more per second. A client in good
/// order sends a few of either in its life. Pings have a rule of their own: Go's clients send one
/// after each answer that they measure, thousands in a second.
const CONTROLS: Rate = Rate { burst: 1_000, per_second: 100 };

/// Requests that may be taken back at once, and how many more per second: all watches of a large
/// client, again and again.
const RESETS: Rate = Rate { burst: 20_000, per_second: 2_000 };

/// Pings in a row that may come too early.
const STRIKES_MAX: u32 = 2;

/// The time between pings of a client that has no call open.
const IDLE_PING_INTERVAL: Duration = Duration::from_hours(2);

/// How often something may happen.
#[derive(Clone, Copy, Debug)]
struct Rate {
    burst: u64,
    per_second: u64,
}

/// How much of a rate is left.
#[derive(Clone, Copy, Debug)]
struct Budget {
    rate: Rate,
    left: u64,
    filled_at: Duration,
}

impl Budget {
    const fn new(rate: Rate) -> Self {
        Self { rate, left: rate.burst, filled_at: Duration::ZERO }
    }

    /// Takes one; false if there is none left.
    fn take(&mut self, now: Duration) -> bool {
        if self.left == 0 {
            let elapsed = now.saturating_sub(self.filled_at);
            let earned = elapsed.as_millis() * u128::from(self.rate.per_second) / 1000;
            if earned == 0 {
                return false;
            }
            self.left = self.rate.burst.min(u64::try_from(earned).unwrap_or(u64::MAX));
            self.filled_at = now;
        }
        self.left -= 1;
        true
    }
}

/// What is left of every limit of one connection.
#[derive(Debug)]
pub(super) struct Limits {
    controls: Budget,
    resets: Budget,
    ping_interval_min: Duration,
    pinged_at: Option<Duration>,
    strikes: u32,
    /// The server has sent something since the last ping, which pings may follow.
    forgiven: bool,
}

impl Limits {
    pub(super) const fn new(ping_interval_min: Duration) -> Self {
        Self {
            controls: Budget::new(CONTROLS),
            resets: Budget::new(RESETS),
            ping_interval_min,
            pinged_at: None,
            strikes: 0,
            forgiven: false,
        }
    }

    /// A frame has come that has to be answered. False if it is one too many.
    pub(super) fn control(&mut self, now: Duration) -> bool {
        self.controls.take(now)
    }

    /// A request has been taken back. False if it is one too many.
    pub(super) fn reset(&mut self, now: Duration) -> bool {
        self.resets.take(now)
    }

    /// Fields or content leave for the client.
    pub(super) const fn forgive(&mut self) {
        self.forgiven = true;
    }

    /// A ping has come on a connection with this many calls. False if it is one too many.
    pub(super) fn ping(&mut self, now: Duration, calls: usize) -> bool {
        let last = self.pinged_at.replace(now);
        if std::mem::take(&mut self.forgiven) {
            self.strikes = 0;
            return true;
        }
        let interval = if calls == 0 { IDLE_PING_INTERVAL } else { self.ping_interval_min };
        if last.is_some_and(|last| now < last + interval) {
            self.strikes += 1;
        }
        self.strikes <= STRIKES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn third_early_ping_in_a_row_is_one_too_many() {
        let mut limits = Limits::new(5 * SECOND);
        let pings = |limits: &mut Limits, times: [u32; 5], calls| {
            times.map(|time| limits.ping(time * SECOND, calls))
        };
        assert_eq!(pings(&mut limits, [0, 4, 8, 12, 16], 1), [true, true, true, false, false]);
        let mut limits = Limits::new(5 * SECOND);
        assert_eq!(pings(&mut limits, [0, 5, 10, 15, 20], 1), [true; 5], "as often as allowed");
        let mut limits = Limits::new(5 * SECOND);
        assert_eq!(pings(&mut limits, [0, 9, 18, 27, 36], 0), [true, true, true, false, false]);
    }

    #[test]
    fn pings_between_answers_are_forgiven() {
        let mut limits = Limits::new(5 * SECOND);
        for time in 0..20 {
            if time % 3 == 0 {
                limits.forgive();
            }
            assert!(limits.ping(time * SECOND, 1), "at {time}");
        }
    }

    #[test]
    fn budget_is_spent_and_earned_again() {
        let mut budget = Budget::new(Rate { burst: 3, per_second: 2 });
        let now = 10 * SECOND;
        assert_eq!([0; 3].map(|_| budget.take(now)), [true; 3]);
        // Time that passed before the first use counts as well.
        assert_eq!([0; 4].map(|_| budget.take(now)), [true, true, true, false]);
        assert_eq!([0; 3].map(|_| budget.take(now + SECOND)), [true, true, false]);
    }
}
