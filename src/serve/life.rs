//! The watch over a silent client.
//!
//! Decides when a client from whom nothing is heard is asked for a sign of life, and when it is
//! taken for dead. Anything that it sends counts. Owned by `driver`.
//!
//! Source: grpc-go `internal/transport/http2_server.go`, `keepalive`.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

/// The watch over one client.
#[derive(Debug)]
pub(super) struct Life {
    timer: Pin<Box<Sleep>>,
    interval: Duration,
    timeout: Duration,
    heard_at: Duration,
    /// When it was asked for a sign of life.
    asked_at: Option<Duration>,
}

/// What is to be done about a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Fine,
    /// It is to be pinged.
    Ask,
    /// Its connection ends.
    Dead,
}

impl Life {
    /// A watch that asks after `interval` and waits for `timeout`. None if either is zero.
    pub(super) fn new(interval: Duration, timeout: Duration, now: Duration) -> Option<Self> {
        if interval.is_zero() || timeout.is_zero() {
            return None;
        }
        let timer = Box::pin(sleep(interval));
        Some(Self { timer, interval, timeout, heard_at: now, asked_at: None })
    }

    /// The client has sent something.
    pub(super) const fn hear(&mut self, now: Duration) {
        self.heard_at = now;
    }

    /// Waits for the time to look.
    pub(super) fn poll(&mut self, context: &mut Context<'_>, now: Duration) -> Poll<Verdict> {
        if self.timer.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        let (verdict, left) = self.look(now);
        self.timer.as_mut().reset(Instant::now() + left);
        Poll::Ready(verdict)
    }

    /// What is to be done now, and when to look again.
    fn look(&mut self, now: Duration) -> (Verdict, Duration) {
        let silence = now.saturating_sub(self.heard_at);
        if self.asked_at.is_some_and(|asked_at| self.heard_at <= asked_at) {
            return (Verdict::Dead, self.timeout);
        }
        if silence < self.interval {
            self.asked_at = None;
            return (Verdict::Fine, self.interval - silence);
        }
        self.asked_at = Some(now);
        (Verdict::Ask, self.timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn client_is_asked_after_a_silence_and_dead_without_an_answer() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.expect("a runtime");
        let _entered = runtime.enter();
        let mut life = Life::new(10 * SECOND, 2 * SECOND, SECOND).expect("it is on");
        assert_eq!(life.look(8 * SECOND), (Verdict::Fine, 3 * SECOND));
        life.hear(9 * SECOND);
        assert_eq!(life.look(11 * SECOND), (Verdict::Fine, 8 * SECOND));
        assert_eq!(life.look(19 * SECOND), (Verdict::Ask, 2 * SECOND));
        life.hear(20 * SECOND);
        assert_eq!(life.look(21 * SECOND), (Verdict::Fine, 9 * SECOND));
        assert_eq!(life.look(30 * SECOND), (Verdict::Ask, 2 * SECOND));
        assert_eq!(life.look(32 * SECOND).0, Verdict::Dead);
        assert!(Life::new(Duration::ZERO, SECOND, SECOND).is_none(), "turned off");
    }
}
