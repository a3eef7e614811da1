//! Probes: `/health`, `/livez` and `/readyz`.
//!
//! Decides when a member is healthy, live and ready. `/health` is the old one, with an answer in
//! JSON and alarms in it; the others run named checks, all of them or the one in the path. Reads
//! are of an empty key, so they cost nothing and need no permission.
//!
//! Source: etcd `server/etcdserver/api/etcdhttp/health.go`.

use std::{collections::BTreeSet, fmt::Write, sync::LazyLock, time::Duration};

use http::{Response, StatusCode};
use proto::etcdserverpb::{AlarmType, RangeRequest};
use serde_json::json;
use tracing::{debug, error as log_error, warn};

use super::{NO_SNIFF, TEXT, body::Body, content, error};
use crate::{
    api::{
        Edge,
        member::{self, Member, State},
        status::CallError,
    },
    base::metrics::{IntCounter, IntCounterVec, IntGaugeVec, counter, counters, gauges},
    model::{MemberId, Unavailable},
};

static HEALTH_SUCCESS: LazyLock<IntCounter> = LazyLock::new(|| {
    counter("etcd_server_health_success", "The total number of successful health checks")
});

static HEALTH_FAILURES: LazyLock<IntCounter> = LazyLock::new(|| {
    counter("etcd_server_health_failures", "The total number of failed health checks")
});

static CHECK_RESULT: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    gauges("etcd_server_healthcheck", "The result of each kind of healthcheck.", &["type", "name"])
});

static CHECKS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "etcd_server_healthchecks_total",
        "The total number of each kind of healthcheck.",
        &["type", "name", "status"],
    )
});

pub(super) fn register_metrics() {
    LazyLock::force(&HEALTH_SUCCESS);
    LazyLock::force(&HEALTH_FAILURES);
    LazyLock::force(&CHECK_RESULT);
    LazyLock::force(&CHECKS);
}

/// A probe, as its path names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    Health,
    Checks { kind: &'static str, checks: &'static [Check], all: bool },
}

/// A check that a probe runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

const LIVE: &[Check] = &[Check::SerializableRead];

const READY: &[Check] =
    &[Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner];

impl Check {
    const fn name(self) -> &'static str {
        match self {
            Self::DataCorruption => "data_corruption",
            Self::SerializableRead => "serializable_read",
            Self::LinearizableRead => "linearizable_read",
            Self::NonLearner => "non_learner",
        }
    }

    async fn run<M: Member>(self, edge: &Edge<M>) -> Result<(), String> {
        let state = edge.member.published();
        match self {
            Self::DataCorruption => {
                let corrupt = i32::from(AlarmType::Corrupt);
                if state.alarms().iter().any(|alarm| alarm.alarm == corrupt) {
                    return Err("alarm activated: CORRUPT".to_owned());
                }
                Ok(())
            }
            Self::SerializableRead => read(edge, true).await.map_err(|error| error.to_string()),
            Self::LinearizableRead => read(edge, false).await.map_err(|error| error.to_string()),
            Self::NonLearner => match state.is_learner(edge.member.position().member) {
                Some(true) => Err("not supported for learner".to_owned()),
                Some(false) | None => Ok(()),
            },
        }
    }
}

impl Probe {
    /// The probe at `path`.
    pub(super) fn at(path: &str) -> Option<Self> {
        if path == "/health" {
            return Some(Self::Health);
        }
        for (kind, checks) in [("livez", LIVE), ("readyz", READY)] {
            let Some(rest) = path.strip_prefix('/').and_then(|path| path.strip_prefix(kind)) else {
                continue;
            };
            if rest.is_empty() {
                return Some(Self::Checks { kind, checks, all: true });
            }
            let name = rest.strip_prefix('/')?;
            let position = checks.iter().position(|check| check.name() == name)?;
            let checks = &checks[position..=position];
            return Some(Self::Checks { kind, checks, all: false });
        }
        None
    }

    /// Runs it; `query` is what follows the question mark.
    pub(super) async fn run<M: Member>(self, edge: &Edge<M>, query: &str) -> Response<Body> {
        match self {
            Self::Health => health(edge, query).await,
            Self::Checks { kind, checks, all } => {
                let excluded = if all { values(query, "exclude") } else { BTreeSet::new() };
                run_checks(edge, kind, checks, excluded, query).await
            }
        }
    }
}

async fn health<M: Member>(edge: &Edge<M>, query: &str) -> Response<Body> {
    let reason = sickness(edge, query).await;
    let health = if reason.is_empty() { "true" } else { "false" };
    let text = json!({ "health": health, "reason": reason }).to_string();
    if reason.is_empty() {
        HEALTH_SUCCESS.inc();
        debug!("status-code" = 200, "/health OK");
        return content(TEXT, text);
    }
    HEALTH_FAILURES.inc();
    warn!(output = text, "status-code" = 503, "/health error");
    error(StatusCode::SERVICE_UNAVAILABLE, &text)
}

/// Why the member is not healthy; empty if it is.
async fn sickness<M: Member>(edge: &Edge<M>, query: &str) -> String {
    let excluded = values(query, "exclude");
    for alarm in edge.member.published().alarms() {
        let (name, reason) = match AlarmType::try_from(alarm.alarm) {
            Ok(AlarmType::Nospace) => ("NOSPACE", "ALARM NOSPACE"),
            Ok(AlarmType::Corrupt) => ("CORRUPT", "ALARM CORRUPT"),
            Ok(AlarmType::None) => ("NONE", "ALARM UNKNOWN"),
            Err(_) => ("", "ALARM UNKNOWN"),
        };
        if !excluded.contains(name) {
            warn!(alarm = name, "serving /health false due to an alarm");
            return reason.to_owned();
        }
    }
    let serializable = value(query, "serializable") == Some("true");
    if !serializable && edge.member.position().leader == MemberId(0) {
        warn!("serving /health false; no leader");
        return "RAFT NO LEADER".to_owned();
    }
    match read(edge, serializable).await {
        Ok(()) => String::new(),
        Err(error) => {
            warn!(%error, "serving /health false; Range fails");
            format!("RANGE ERROR:{error}")
        }
    }
}

async fn read<M: Member>(edge: &Edge<M>, serializable: bool) -> Result<(), CallError> {
    let state = if serializable {
        edge.member.published()
    } else {
        let limit: Duration = edge.settings.request_timeout;
        tokio::time::timeout(limit, edge.member.linearizable())
            .await
            .unwrap_or(Err(Unavailable::Timeout))?
    };
    let request = RangeRequest { limit: 1, keys_only: true, ..RangeRequest::default() };
    member::read(&edge.member, state, |state| state.range(&request)).map(drop)
}

async fn run_checks<M: Member>(
    edge: &Edge<M>,
    kind: &str,
    checks: &[Check],
    mut excluded: BTreeSet<&str>,
    query: &str,
) -> Response<Body> {
    let mut report = String::new();
    let mut failed = false;
    for check in checks {
        let name = check.name();
        if excluded.remove(name) {
            continue;
        }
        let result = check.run(edge).await;
        record(kind, name, result.is_ok());
        failed |= result.is_err();
        let line = match result {
            Ok(()) => format_args!("[+]{name} ok\n").to_string(),
            Err(reason) => format!("[-]{name} failed: {reason}\n"),
        };
        report.write_str(&line).expect("a String takes everything");
    }
    if !excluded.is_empty() {
        warn!("missing-health-checks" = ?excluded, "some health checks cannot be excluded");
    }
    if failed {
        log_error!(path = kind, reason = report, "status-code" = 503, "Health check error");
        return error(StatusCode::SERVICE_UNAVAILABLE, &report);
    }
    debug!(path = kind, "status-code" = 200, "Health check OK");
    if value(query, "verbose").is_none() {
        report.clear();
    }
    report.push_str("ok\n");
    let mut response = content(TEXT, report);
    let (name, value) = NO_SNIFF;
    response.headers_mut().insert(name, value);
    response
}

fn record(kind: &str, name: &str, success: bool) {
    CHECK_RESULT.with_label_values(&[kind, name]).set(success.into());
    let status = if success { "success" } else { "error" };
    CHECKS.with_label_values(&[kind, name, status]).inc();
}

fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query
        .split('&')
        .filter(|part| !part.is_empty())
        .map(|part| part.split_once('=').unwrap_or((part, "")))
}

/// The first value of `name`; names and values of probes need no decoding.
fn value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    pairs(query).find(|(key, _)| *key == name).map(|(_, value)| value)
}

fn values<'a>(query: &'a str, name: &str) -> BTreeSet<&'a str> {
    pairs(query)
        .filter(|(key, value)| *key == name && !value.is_empty())
        .map(|(_, value)| value)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_has_a_path_of_its_own() {
        assert_eq!(Probe::at("/health"), Some(Probe::Health));
        let all = Probe::Checks { kind: "readyz", checks: READY, all: true };
        assert_eq!(Probe::at("/readyz"), Some(all));
        let one = Probe::Checks { kind: "readyz", checks: &[Check::NonLearner], all: false };
        assert_eq!(Probe::at("/readyz/non_learner"), Some(one));
        for path in ["/livez/non_learner", "/readyz/", "/readyznon_learner", "/healthy", "/"] {
            assert_eq!(Probe::at(path), None, "{path}");
        }
    }

    #[test]
    fn query_is_read_by_name() {
        let query = "exclude=NOSPACE&exclude=&verbose&exclude=CORRUPT";
        assert_eq!(values(query, "exclude"), BTreeSet::from(["CORRUPT", "NOSPACE"]));
        assert_eq!(value(query, "verbose"), Some(""));
        assert_eq!(value(query, "serializable"), None);
    }
}
