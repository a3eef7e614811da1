//! Signs of life that are asked for.
//!
//! Decides nothing for the replica: it measures how long a peer takes to answer, and says so in the
//! log if it does not, or if the clocks differ. One for each peer runs on the `peer` thread.
//!
//! Source: etcd `server/etcdserver/api/rafthttp/probing_status.go`, package `xiang90/probing`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt as _, Empty, Limited};
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::{
    dial::{self, Connection, PeerError},
    metrics,
    peer::Peer,
    shared::Shared,
    socket::SILENCE_MAX,
};
use crate::base::duration::Took;

/// The time between two probes. A connection on which nothing happens for longer than
/// [`SILENCE_MAX`] is ended by the peer.
const INTERVAL: Duration = Duration::from_secs(4);

const _: () = assert!(INTERVAL.as_millis() < SILENCE_MAX.as_millis(), "connections are kept");

/// Probes between two observations of a peer that answers.
const PROBES_PER_OBSERVATION: u32 = 7;

/// The round-trip time is smoothed: a new one counts for one part of so many.
const SMOOTHING: u32 = 8;

/// What is read of an answer.
const ANSWER_BYTES_MAX: usize = 4 << 10;

/// What etcd calls the connections that are probed.
const CONNECTION_NAME: &str = "ROUND_TRIPPER_RAFT_MESSAGE";

/// Probes one peer.
#[derive(Debug)]
pub(super) struct Probe {
    pub(super) shared: Arc<Shared>,
    pub(super) peer: Arc<Peer>,
}

type Idle = Connection<Empty<Bytes>>;

impl Probe {
    /// Probes until it is dropped.
    pub(super) async fn run(self) {
        let mut connection = None;
        let mut smoothed: Option<Duration> = None;
        let mut probes = PROBES_PER_OBSERVATION;
        loop {
            sleep(INTERVAL).await;
            let started = self.shared.clock.now();
            let url = self.peer.picker.pick();
            let probed = timeout(SILENCE_MAX, self.probe(&url, connection.take())).await;
            match probed.unwrap_or(Err(PeerError::TimedOut)) {
                Ok(kept) => {
                    connection = Some(kept);
                    let took = self.shared.clock.now().saturating_sub(started);
                    let before = smoothed.unwrap_or(took);
                    smoothed = Some((before * (SMOOTHING - 1) + took) / SMOOTHING);
                    probes += 1;
                }
                Err(error) => {
                    self.tell_unhealthy(&error, smoothed.unwrap_or_default());
                    probes = PROBES_PER_OBSERVATION;
                }
            }
            if PROBES_PER_OBSERVATION <= probes {
                probes = 0;
                self.observe(smoothed.unwrap_or_default());
            }
        }
    }

    async fn probe(&self, url: &str, idle: Option<Idle>) -> Result<Idle, PeerError> {
        let request = dial::request(&self.shared, Method::GET, url, "/raft/probing")
            .body(Empty::new())
            .map_err(|_invalid| PeerError::Url(url.to_owned()))?;
        let mut connection = match idle.filter(|idle| !idle.requests.is_closed()) {
            Some(idle) => idle,
            None => dial::connect(url, SILENCE_MAX).await?,
        };
        connection.requests.ready().await?;
        let answer = connection.requests.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        if !status.is_success() || body.is_err() {
            return Err(PeerError::Status(status));
        }
        Ok(connection)
    }

    fn observe(&self, smoothed: Duration) {
        let histogram = metrics::round_trip_seconds(self.peer.id);
        histogram.observe(smoothed.as_secs_f64());
    }

    fn tell_unhealthy(&self, error: &PeerError, smoothed: Duration) {
        warn!(
            "round-tripper-name" = CONNECTION_NAME,
            "remote-peer-id" = %self.peer.id,
            rtt = %Took(smoothed),
            %error,
            "prober detected unhealthy status"
        );
    }
}
