//! The edge's own metrics.
//!
//! Decides when a call counts. The gRPC series of the services that etcd registers at once exist
//! from the start with every code; Election and Lock appear with their first call, as with etcd.
//! A call finds its counters by position, without hashing labels. Called by `dispatch` and `gate`.
//!
//! Source: go-grpc-middleware's `prometheus` provider, etcd
//! `server/etcdserver/api/v3rpc/metrics.go` and `server/etcdserver/metrics.go`.

use std::{
    cell::RefCell,
    sync::{LazyLock, OnceLock},
    time::Duration,
};

use tonic::Code;

use super::rpc::{Kind, Rpc};
use crate::base::metrics::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, counters, histograms,
};

/// The codes in the order of their numbers, as grpc-go spells them.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// The counters of one call.
#[derive(Debug)]
pub struct Counters {
    started: IntCounter,
    received: IntCounter,
    sent: IntCounter,
    handled: [IntCounter; CODES.len()],
    /// Only with `--metrics=extensive`.
    seconds: Option<Histogram>,
}

static STARTED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "grpc_server_started_total",
        "Total number of RPCs started on the server.",
        &["grpc_type", "grpc_service", "grpc_method"],
    )
});

static HANDLED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "grpc_server_handled_total",
        "Total number of RPCs completed on the server, regardless of success or failure.",
        &["grpc_type", "grpc_service", "grpc_method", "grpc_code"],
    )
});

static RECEIVED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "grpc_server_msg_received_total",
        "Total number of RPC stream messages received on the server.",
        &["grpc_type", "grpc_service", "grpc_method"],
    )
});

static SENT: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "grpc_server_msg_sent_total",
        "Total number of gRPC stream messages sent by the server.",
        &["grpc_type", "grpc_service", "grpc_method"],
    )
});

static CLIENT_REQUESTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "etcd_server_client_requests_total",
        "The total number of client requests per client version.",
        &["type", "client_api_version"],
    )
});

static STREAM_FAILURES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "etcd_network_server_stream_failures_total",
        "The total number of stream failures from the local server.",
        &["Type", "API"],
    )
});

static REQUEST_SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    histograms(
        "etcd_server_request_duration_seconds",
        "Response latency distribution in seconds for each type.",
        0.001,
        14,
        &["type", "success"],
    )
});

static RANGE_SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    histograms(
        "etcd_server_range_duration_seconds",
        "The latency distributions of txn.Range",
        0.0001,
        20,
        &["success"],
    )
});

static TABLE: [OnceLock<Counters>; Rpc::ALL.len()] = [const { OnceLock::new() }; Rpc::ALL.len()];

/// Set once at start: whether calls are timed by histograms.
static EXTENSIVE: OnceLock<bool> = OnceLock::new();

/// Makes every series exist that etcd has from the start. `extensive` adds histograms of how long
/// calls take.
pub fn register_metrics(extensive: bool) {
    EXTENSIVE.get_or_init(|| extensive);
    super::codec::register_metrics();
    super::watch::register_metrics();
    crate::watch::register_metrics();
    for vector in [&CLIENT_REQUESTS, &STREAM_FAILURES] {
        LazyLock::force(vector);
    }
    for vector in [&REQUEST_SECONDS, &RANGE_SECONDS] {
        LazyLock::force(vector);
    }
    for rpc in Rpc::ALL {
        if rpc.service().starts_with("etcdserverpb.") || rpc.service().starts_with("grpc.") {
            of(*rpc);
        }
    }
}

/// The counters of a call.
pub fn of(rpc: Rpc) -> &'static Counters {
    // The position in `Rpc::ALL` is the discriminant.
    TABLE[rpc as usize].get_or_init(|| Counters::new(rpc))
}

impl Counters {
    fn new(rpc: Rpc) -> Self {
        let labels = [rpc.kind().name(), rpc.service(), rpc.method()];
        let [kind, service, method] = labels;
        let extensive = EXTENSIVE.get().is_some_and(|extensive| *extensive);
        Self {
            started: STARTED.with_label_values(&labels),
            received: RECEIVED.with_label_values(&labels),
            sent: SENT.with_label_values(&labels),
            handled: CODES.map(|code| HANDLED.with_label_values(&[kind, service, method, code])),
            seconds: extensive.then(|| handling_seconds().with_label_values(&labels)),
        }
    }

    /// A call has begun.
    pub fn start(&self) {
        self.started.inc();
    }

    /// A message of it has come.
    pub fn receive(&self) {
        self.received.inc();
    }

    /// A message of it has gone.
    pub fn send(&self) {
        self.sent.inc();
    }

    /// How many calls ended with `code`.
    #[cfg(test)]
    pub(super) fn finished(&self, code: Code) -> u64 {
        self.handled[code as usize].get()
    }

    /// Some messages of it have gone.
    pub fn send_many(&self, messages: u64) {
        self.sent.inc_by(messages);
    }

    /// The call is over.
    pub fn finish(&self, code: Code, took: Duration) {
        // A code's number is its place.
        self.handled[code as usize].inc();
        if let Some(seconds) = &self.seconds {
            seconds.observe(took.as_secs_f64());
        }
    }
}

fn handling_seconds() -> &'static HistogramVec {
    static SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
        histograms(
            "grpc_server_handling_seconds",
            "Histogram of response latency (seconds) of gRPC that had been application-level \
             handled by the server.",
            0.005,
            12,
            &["grpc_type", "grpc_service", "grpc_method"],
        )
    });
    &SECONDS
}

/// Counts a call of a client with this library version.
pub fn count_client_request(kind: Kind, version: &str) {
    thread_local! {
        /// By kind, the version seen last: nearly all clients of a thread have the same.
        static LAST: RefCell<[Option<(String, IntCounter)>; 2]> = const { RefCell::new([None, None]) };
    }
    let (position, kind) = if kind == Kind::Unary { (0, "unary") } else { (1, "stream") };
    LAST.with_borrow_mut(|last| match &last[position] {
        Some((known, counter)) if known == version => counter.inc(),
        _ => {
            let counter = CLIENT_REQUESTS.with_label_values(&[kind, version]);
            counter.inc();
            last[position] = Some((version.to_owned(), counter));
        }
    });
}

/// Counts a stream that failed for another reason than the client's will.
pub fn count_stream_failure(direction: &str, api: &str) {
    STREAM_FAILURES.with_label_values(&[direction, api]).inc();
}

/// Records how long a request took.
pub fn observe_request(kind: &'static str, success: bool, took: Duration) {
    thread_local! {
        /// The series that this thread has used: a handful, found without hashing.
        static USED: RefCell<Vec<(&'static str, bool, Histogram)>> = const { RefCell::new(Vec::new()) };
    }
    USED.with_borrow_mut(|used| {
        let known = used.iter().find(|(name, ok, _)| *ok == success && std::ptr::eq(*name, kind));
        if let Some((_, _, histogram)) = known {
            return histogram.observe(took.as_secs_f64());
        }
        let histogram = REQUEST_SECONDS.with_label_values(&[kind, bool_label(success)]);
        histogram.observe(took.as_secs_f64());
        used.push((kind, success, histogram));
    });
}

/// Records how long a read took.
pub fn observe_range(success: bool, took: Duration) {
    static BY_SUCCESS: [LazyLock<Histogram>; 2] = [
        LazyLock::new(|| RANGE_SECONDS.with_label_values(&["false"])),
        LazyLock::new(|| RANGE_SECONDS.with_label_values(&["true"])),
    ];
    BY_SUCCESS[usize::from(success)].observe(took.as_secs_f64());
}

const fn bool_label(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_name_at_its_number() {
        for (number, name) in (0..).zip(CODES) {
            let debug = format!("{:?}", Code::from_i32(number));
            let debug = if debug == "Ok" { "OK".to_owned() } else { debug };
            assert_eq!(debug.replace("Cancelled", "Canceled"), name, "code {number}");
        }
    }

    #[test]
    fn every_call_has_counters_of_its_own() {
        register_metrics(false);
        for (position, rpc) in Rpc::ALL.iter().enumerate() {
            assert_eq!(*rpc as usize, position, "{rpc:?}");
        }
        of(Rpc::UserGet).start();
        let value = STARTED.with_label_values(&["unary", "etcdserverpb.Auth", "UserGet"]).get();
        assert!(0 < value, "the call was not counted");
    }
}
