//! The effective configuration in the log.
//!
//! Decides the fields of the line `starting an etcd server`, which operators and etcd's own tests
//! read: their names and forms are etcd's. Called by `boot` once the listeners are bound.
//!
//! Source: etcd `server/embed/etcd.go`, `print`.

use std::thread;

use serde_json::{Value, json};

use super::{
    AutoCompaction, COMMIT, Config, ETCD_VERSION, VERSION,
    help::{arch, os},
    slot::Slot as _,
    url::Url,
};
use crate::base::{
    duration::{self, Took},
    log::{self, Level},
};

impl Config {
    /// Logs the effective configuration. `member_initialized` tells whether the data directory
    /// held a member before this start.
    #[track_caller]
    pub fn report(&self, member_initialized: bool) {
        log::write(Level::Info, "starting an etcd server", &self.reported(member_initialized));
    }

    fn reported(&self, member_initialized: bool) -> Vec<(&'static str, Value)> {
        let mut fields = self.reported_process(member_initialized);
        fields.extend(self.reported_member());
        fields.extend(self.reported_cluster());
        fields.extend(self.reported_rest());
        fields
    }

    fn reported_process(&self, member_initialized: bool) -> Vec<(&'static str, Value)> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        vec![
            ("etcd-version", json!(ETCD_VERSION)),
            ("oxetcd-version", json!(VERSION)),
            ("git-sha", json!(COMMIT)),
            ("go-version", json!("none")),
            ("go-os", json!(os())),
            ("go-arch", json!(arch())),
            ("max-cpu-set", json!(cores)),
            ("max-cpu-available", json!(cores)),
            ("member-initialized", json!(member_initialized)),
            ("name", json!(self.name)),
        ]
    }

    fn reported_member(&self) -> Vec<(&'static str, Value)> {
        let flags = &self.flags;
        vec![
            ("data-dir", json!(self.data_dir.to_string_lossy())),
            ("wal-dir", json!(flags.wal_dir)),
            ("wal-dir-dedicated", json!(flags.wal_dir)),
            ("member-dir", json!(self.member_dir().to_string_lossy())),
            ("force-new-cluster", json!(self.force_new_cluster)),
            ("heartbeat-interval", json!(Took(self.heartbeat_interval).to_string())),
            ("election-timeout", json!(Took(self.election_timeout()).to_string())),
            ("initial-election-tick-advance", json!(self.initial_election_tick_advance)),
            ("snapshot-count", json!(self.snapshot_count)),
            ("max-wals", json!(flags.max_wals)),
            ("max-snapshots", json!(flags.max_snapshots)),
            ("snapshot-catchup-entries", json!(self.snapshot_catchup_entries)),
            ("initial-advertise-peer-urls", urls(&self.initial_advertise_peer_urls)),
            ("listen-peer-urls", urls(&self.listen_peer_urls)),
            ("advertise-client-urls", urls(&self.advertise_client_urls)),
            ("listen-client-urls", urls(&self.listen_client_urls)),
            ("listen-metrics-urls", urls(&self.listen_metrics_urls)),
            ("local-address", json!("")),
            ("cors", json!(self.cors)),
            ("host-whitelist", json!(self.host_whitelist)),
        ]
    }

    fn reported_cluster(&self) -> Vec<(&'static str, Value)> {
        let quota =
            self.quota_backend_bytes.map_or(json!(self.flags.quota_backend_bytes), |b| json!(b));
        let (retention, interval) = match self.auto_compaction {
            AutoCompaction::Off => ("0s".to_owned(), "0s".to_owned()),
            AutoCompaction::Periodic(period) => {
                (Took(period).to_string(), Took(period).to_string())
            }
            // etcd shows the number of revisions as if it were nanoseconds.
            AutoCompaction::Revision(count) => (duration::format(count), duration::format(count)),
        };
        vec![
            ("initial-cluster", json!(self.initial_members_shown())),
            ("initial-cluster-state", json!(self.initial_cluster_state.name())),
            ("initial-cluster-token", json!(self.initial_cluster_token)),
            ("quota-backend-bytes", quota),
            ("max-request-bytes", json!(self.max_request_bytes)),
            ("max-concurrent-streams", json!(self.max_concurrent_streams)),
            ("pre-vote", json!(self.pre_vote)),
            ("feature-gates", json!(self.feature_gates.shown())),
            ("initial-corrupt-check", json!(false)),
            ("corrupt-check-time-interval", json!(self.flags.corrupt_check_time.show())),
            ("compact-check-time-interval", json!(self.flags.compact_hash_check_time.show())),
            ("auto-compaction-mode", json!(self.flags.auto_compaction_mode)),
            ("auto-compaction-retention", json!(retention)),
            ("auto-compaction-interval", json!(interval)),
        ]
    }

    fn reported_rest(&self) -> Vec<(&'static str, Value)> {
        let flags = &self.flags;
        vec![
            ("discovery-token", json!(flags.discovery_token)),
            ("discovery-endpoints", json!(flags.discovery_endpoints.show())),
            ("discovery-dial-timeout", json!(flags.discovery_dial_timeout.show())),
            ("discovery-request-timeout", json!(flags.discovery_request_timeout.show())),
            ("discovery-keepalive-time", json!(flags.discovery_keepalive_time.show())),
            ("discovery-keepalive-timeout", json!(flags.discovery_keepalive_timeout.show())),
            ("discovery-insecure-transport", json!(flags.discovery_insecure_transport)),
            ("discovery-insecure-skip-tls-verify", json!(flags.discovery_insecure_skip_tls_verify)),
            ("discovery-cert", json!(flags.discovery_cert)),
            ("discovery-key", json!(flags.discovery_key)),
            ("discovery-cacert", json!(flags.discovery_cacert)),
            ("discovery-user", json!(flags.discovery_user)),
            ("downgrade-check-interval", json!(Took(self.downgrade_check_time).to_string())),
            ("max-learners", json!(self.max_learners)),
            ("v2-deprecation", json!(flags.v2_deprecation.value)),
        ]
    }
}

fn urls(urls: &[Url]) -> Value {
    urls.iter().map(Url::as_str).collect()
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, flags::Flags};

    #[test]
    fn the_report_has_the_fields_that_etcd_s_tests_look_for() {
        let flags = Flags { snapshot_catchup_entries: 1000, ..Flags::default() };
        let reported = Config::of(flags).unwrap().reported(false);
        let shown: Vec<_> =
            reported.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        for field in [
            "\"snapshot-catchup-entries\":1000",
            "\"v2-deprecation\":\"write-only\"",
            "\"data-dir\":\"default.etcd\"",
            "\"quota-backend-bytes\":2147483648",
            "\"listen-client-urls\":[\"http://localhost:2379\"]",
            "\"election-timeout\":\"1s\"",
        ] {
            assert!(shown.iter().any(|one| one == field), "{field} is missing");
        }
    }
}
