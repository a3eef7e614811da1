//! The table of flags.
//!
//! Decides which flags there are, in which group of the help each stands, and what its line says.
//! Names, types and defaults are etcd's; the words are ours. Read by the command line, the
//! environment, the file, the help and the list of what is not there yet, so a flag is added here
//! and in [`super::flags`] only.
//!
//! Source: etcd `server/embed/config.go`, `AddFlags`; `server/etcdmain/config.go`.

use super::{flags::Flags, slot::Slot};

/// One flag.
pub(super) struct Flag {
    /// Its name, without dashes.
    pub(super) name: &'static str,
    /// Where its value is kept.
    pub(super) slot: fn(&mut Flags) -> &mut dyn Slot,
    /// What it is for.
    pub(super) help: &'static str,
}

const fn flag(
    name: &'static str,
    slot: fn(&mut Flags) -> &mut dyn Slot,
    help: &'static str,
) -> Flag {
    Flag { name, slot, help }
}

/// The groups of the help with their flags, in the order of the help.
pub(super) const GROUPS: &[(&str, &[Flag])] = &[
    ("Member", MEMBER),
    ("Clustering", CLUSTERING),
    ("Security", SECURITY),
    ("Auth", AUTH),
    ("Profiling and monitoring", PROFILING),
    ("Logging", LOGGING),
    ("Distributed tracing", DISTRIBUTED),
    ("Features", FEATURES),
    ("Unsafe", UNSAFE),
];

/// Flags of the past: they parse as booleans and do nothing.
pub(super) const IGNORED: &[&str] = &[
    "cluster-active-size",
    "cluster-remove-delay",
    "cluster-sync-interval",
    "config",
    "force",
    "max-result-buffer",
    "max-retry-attempts",
    "peer-heartbeat-interval",
    "peer-election-timeout",
    "retry-interval",
    "snapshot",
    "v",
    "vv",
    "test.coverprofile",
    "test.outputdir",
];

/// Every flag that does something.
pub(super) fn all() -> impl Iterator<Item = &'static Flag> {
    GROUPS.iter().flat_map(|(_, flags)| flags.iter())
}

/// The flag of this name, be it one of the past.
pub(super) fn find(name: &str) -> Option<Flag> {
    let known = all().find(|flag| flag.name == name).map(|found| Flag { ..*found });
    known.or_else(|| {
        let name = IGNORED.iter().find(|ignored| **ignored == name)?;
        Some(flag(name, |flags| &mut flags.ignored, ""))
    })
}

const MEMBER: &[Flag] = &[
    flag("name", |f| &mut f.name, "The name of this member, unique in its cluster."),
    flag(
        "data-dir",
        |f| &mut f.data_dir,
        "The folder of everything this member stores; by default the name followed by \".etcd\".",
    ),
    flag(
        "wal-dir",
        |f| &mut f.wal_dir,
        "A folder of its own for the write-ahead log, for example on a faster disk.",
    ),
    flag(
        "snapshot-count",
        |f| &mut f.snapshot_count,
        "Committed entries between two raft snapshots.",
    ),
    flag(
        "snapshot-catchup-entries",
        |f| &mut f.snapshot_catchup_entries,
        "Entries kept behind a snapshot so that a slow follower needs no snapshot.",
    ),
    flag(
        "heartbeat-interval",
        |f| &mut f.heartbeat_interval,
        "Milliseconds between the leader's heartbeats.",
    ),
    flag(
        "election-timeout",
        |f| &mut f.election_timeout,
        "Milliseconds without a heartbeat before a follower stands for election; at least 5 heartbeats.",
    ),
    flag(
        "initial-election-tick-advance",
        |f| &mut f.initial_election_tick_advance,
        "Skip most of the first election timeout after a start.",
    ),
    flag("listen-peer-urls", |f| &mut f.listen_peer_urls, "Where to listen for other members."),
    flag(
        "listen-client-urls",
        |f| &mut f.listen_client_urls,
        "Where to listen for clients: gRPC, and HTTP unless --listen-client-http-urls is set.",
    ),
    flag(
        "listen-client-http-urls",
        |f| &mut f.listen_client_http_urls,
        "Where to serve HTTP apart from gRPC.",
    ),
    flag(
        "max-snapshots",
        |f| &mut f.max_snapshots,
        "Raft snapshot files to keep; 0 keeps all. Deprecated by etcd.",
    ),
    flag("max-wals", |f| &mut f.max_wals, "Log files to keep for inspection; 0 keeps all."),
    flag("memory-mlock", |f| &mut f.memory_mlock, "Keep the process's memory out of swap."),
    flag(
        "quota-backend-bytes",
        |f| &mut f.quota_backend_bytes,
        "Size at which writes are refused until space is freed; 0 means 2 GiB, a negative number no limit.",
    ),
    flag(
        "backend-bbolt-freelist-type",
        |f| &mut f.backend_bbolt_freelist_type,
        "Accepted for compatibility; the store here has no free list to choose.",
    ),
    flag(
        "backend-batch-interval",
        |f| &mut f.backend_batch_interval,
        "Accepted for compatibility; the store decides by itself when to write back.",
    ),
    flag(
        "backend-batch-limit",
        |f| &mut f.backend_batch_limit,
        "Accepted for compatibility; the store decides by itself when to write back.",
    ),
    flag("max-txn-ops", |f| &mut f.max_txn_ops, "Operations allowed in one transaction."),
    flag(
        "max-request-bytes",
        |f| &mut f.max_request_bytes,
        "Largest request a client may send, in bytes.",
    ),
    flag(
        "max-concurrent-streams",
        |f| &mut f.max_concurrent_streams,
        "Concurrent streams a client may open on one connection.",
    ),
    flag(
        "grpc-keepalive-min-time",
        |f| &mut f.grpc_keepalive_min_time,
        "Shortest time a client must wait between two pings.",
    ),
    flag(
        "grpc-keepalive-interval",
        |f| &mut f.grpc_keepalive_interval,
        "Time between the server's pings to an idle client; 0 sends none.",
    ),
    flag(
        "grpc-keepalive-timeout",
        |f| &mut f.grpc_keepalive_timeout,
        "Time to wait for the answer to a ping before the connection is closed; 0 waits for ever.",
    ),
    flag(
        "socket-reuse-port",
        |f| &mut f.socket_reuse_port,
        "Let several processes listen on one port (SO_REUSEPORT).",
    ),
    flag(
        "socket-reuse-address",
        |f| &mut f.socket_reuse_address,
        "Allow binding to an address in TIME_WAIT (SO_REUSEADDR).",
    ),
    flag("enable-grpc-gateway", |f| &mut f.enable_grpc_gateway, "Serve the JSON form of the API."),
    flag(
        "raft-read-timeout",
        |f| &mut f.raft_read_timeout,
        "Longest silence on a connection to a peer when reading; at least 5s.",
    ),
    flag(
        "raft-write-timeout",
        |f| &mut f.raft_write_timeout,
        "Longest stall on a connection to a peer when writing; at least 5s.",
    ),
    flag(
        "feature-gates",
        |f| &mut f.feature_gates,
        "Features that are not settled, as NAME=true,NAME=false; see the list below.",
    ),
    flag(
        "config-file",
        |f| &mut f.config_file,
        "A YAML file to read instead of all other flags and the environment. Durations in it are integers: nanoseconds.",
    ),
    flag("version", |f| &mut f.version, "Print the version and exit."),
];

const CLUSTERING: &[Flag] = &[
    flag(
        "initial-advertise-peer-urls",
        |f| &mut f.initial_advertise_peer_urls,
        "Where the other members reach this one.",
    ),
    flag(
        "initial-cluster",
        |f| &mut f.initial_cluster,
        "Every member of a new cluster as NAME=PEER-URL, separated by commas.",
    ),
    flag(
        "initial-cluster-state",
        |f| &mut f.initial_cluster_state,
        "\"new\" to found a cluster, \"existing\" to join one. Ignored once this member has data.",
    ),
    flag(
        "initial-cluster-token",
        |f| &mut f.initial_cluster_token,
        "Keeps clusters apart that are founded with the same URLs.",
    ),
    flag(
        "advertise-client-urls",
        |f| &mut f.advertise_client_urls,
        "Where clients reach this member; required with --listen-client-urls.",
    ),
    flag(
        "discovery-token",
        |f| &mut f.discovery_token,
        "Discovery: the token of the cluster to be founded.",
    ),
    flag(
        "discovery-endpoints",
        |f| &mut f.discovery_endpoints,
        "Discovery: the members of the cluster that serves discovery.",
    ),
    flag(
        "discovery-dial-timeout",
        |f| &mut f.discovery_dial_timeout,
        "Discovery: time to connect.",
    ),
    flag(
        "discovery-request-timeout",
        |f| &mut f.discovery_request_timeout,
        "Discovery: time for one request.",
    ),
    flag(
        "discovery-keepalive-time",
        |f| &mut f.discovery_keepalive_time,
        "Discovery: time between pings.",
    ),
    flag(
        "discovery-keepalive-timeout",
        |f| &mut f.discovery_keepalive_timeout,
        "Discovery: time to wait for the answer to a ping.",
    ),
    flag(
        "discovery-insecure-transport",
        |f| &mut f.discovery_insecure_transport,
        "Discovery: connect without TLS.",
    ),
    flag(
        "discovery-insecure-skip-tls-verify",
        |f| &mut f.discovery_insecure_skip_tls_verify,
        "Discovery: do not verify the server; for tests only.",
    ),
    flag("discovery-cert", |f| &mut f.discovery_cert, "Discovery: the client's certificate."),
    flag(
        "discovery-key",
        |f| &mut f.discovery_key,
        "Discovery: the key of the client's certificate.",
    ),
    flag(
        "discovery-cacert",
        |f| &mut f.discovery_cacert,
        "Discovery: the authorities that servers are verified with.",
    ),
    flag("discovery-user", |f| &mut f.discovery_user, "Discovery: user name, or name:password."),
    flag(
        "discovery-password",
        |f| &mut f.discovery_password,
        "Discovery: password, if not given with the name.",
    ),
    flag(
        "discovery-fallback",
        |f| &mut f.discovery_fallback,
        "What to do if discovery fails; only \"exit\" is left.",
    ),
    flag(
        "discovery-srv",
        |f| &mut f.discovery_srv,
        "DNS domain whose SRV records name the members of a new cluster.",
    ),
    flag(
        "discovery-srv-name",
        |f| &mut f.discovery_srv_name,
        "Suffix of the service name in those SRV records.",
    ),
    flag(
        "strict-reconfig-check",
        |f| &mut f.strict_reconfig_check,
        "Refuse membership changes that would lose the quorum.",
    ),
    flag(
        "pre-vote",
        |f| &mut f.pre_vote,
        "Ask whether an election could be won before starting one, so that a member that was cut off does not disturb.",
    ),
    flag(
        "auto-compaction-retention",
        |f| &mut f.auto_compaction_retention,
        "History to keep: a duration such as 5m or a number of hours, or a number of revisions; 0 compacts nothing.",
    ),
    flag(
        "auto-compaction-mode",
        |f| &mut f.auto_compaction_mode,
        "Whether the retention is a time (\"periodic\") or counts revisions (\"revision\").",
    ),
    flag(
        "v2-deprecation",
        |f| &mut f.v2_deprecation,
        "Deprecated by etcd; checked and then ignored.",
    ),
];

const SECURITY: &[Flag] = &[
    flag("cert-file", |f| &mut f.cert_file, "Certificate shown to clients."),
    flag("key-file", |f| &mut f.key_file, "Key of that certificate."),
    flag(
        "client-cert-file",
        |f| &mut f.client_cert_file,
        "Certificate for our own client connections, if another one.",
    ),
    flag("client-key-file", |f| &mut f.client_key_file, "Key of that certificate."),
    flag("client-cert-auth", |f| &mut f.client_cert_auth, "Demand a certificate from clients."),
    flag("client-crl-file", |f| &mut f.client_crl_file, "Revoked client certificates."),
    flag(
        "client-cert-allowed-hostname",
        |f| &mut f.client_cert_allowed_hostname,
        "Host names that client certificates may carry.",
    ),
    flag(
        "trusted-ca-file",
        |f| &mut f.trusted_ca_file,
        "Authorities that client certificates are verified with.",
    ),
    flag("auto-tls", |f| &mut f.auto_tls, "Serve clients with a certificate made on the spot."),
    flag("peer-cert-file", |f| &mut f.peer_cert_file, "Certificate shown to peers."),
    flag("peer-key-file", |f| &mut f.peer_key_file, "Key of that certificate."),
    flag(
        "peer-client-cert-file",
        |f| &mut f.peer_client_cert_file,
        "Certificate for connections to peers, if another one.",
    ),
    flag("peer-client-key-file", |f| &mut f.peer_client_key_file, "Key of that certificate."),
    flag(
        "peer-client-cert-auth",
        |f| &mut f.peer_client_cert_auth,
        "Demand a certificate from peers.",
    ),
    flag(
        "peer-trusted-ca-file",
        |f| &mut f.peer_trusted_ca_file,
        "Authorities that peer certificates are verified with.",
    ),
    flag(
        "peer-cert-allowed-cn",
        |f| &mut f.peer_cert_allowed_cn,
        "Common names that peer certificates may carry.",
    ),
    flag(
        "peer-cert-allowed-hostname",
        |f| &mut f.peer_cert_allowed_hostname,
        "Host names that peer certificates may carry.",
    ),
    flag(
        "peer-auto-tls",
        |f| &mut f.peer_auto_tls,
        "Serve peers with a certificate made on the spot.",
    ),
    flag(
        "peer-skip-client-san-verification",
        |f| &mut f.peer_skip_client_san_verification,
        "Do not compare a peer certificate's names with its address.",
    ),
    flag("peer-crl-file", |f| &mut f.peer_crl_file, "Revoked peer certificates."),
    flag(
        "self-signed-cert-validity",
        |f| &mut f.self_signed_cert_validity,
        "Years that a certificate made on the spot is valid.",
    ),
    flag(
        "cipher-suites",
        |f| &mut f.cipher_suites,
        "TLS 1.2 cipher suites to allow, by the names Go gives them.",
    ),
    flag(
        "tls-min-version",
        |f| &mut f.tls_min_version,
        "Oldest TLS version to accept: TLS1.2 or TLS1.3.",
    ),
    flag(
        "tls-max-version",
        |f| &mut f.tls_max_version,
        "Newest TLS version to accept: TLS1.2 or TLS1.3.",
    ),
    flag("cors", |f| &mut f.cors, "Origins that browsers may call from; * allows all."),
    flag(
        "host-whitelist",
        |f| &mut f.host_whitelist,
        "Host names that HTTP requests may ask for without TLS; * allows all.",
    ),
];

const AUTH: &[Flag] = &[
    flag(
        "auth-token",
        |f| &mut f.auth_token,
        "Kind of token a user gets for a password: \"simple\", or \"jwt\" with its options.",
    ),
    flag("bcrypt-cost", |f| &mut f.bcrypt_cost, "Cost of hashing a password, 4 to 31."),
    flag("auth-token-ttl", |f| &mut f.auth_token_ttl, "Seconds that an unused simple token lives."),
];

const PROFILING: &[Flag] = &[
    flag("enable-pprof", |f| &mut f.enable_pprof, "Serve profiles at /debug/pprof/."),
    flag("metrics", |f| &mut f.metrics, "\"extensive\" adds histograms of every call."),
    flag(
        "listen-metrics-urls",
        |f| &mut f.listen_metrics_urls,
        "Where to serve metrics and health apart from clients.",
    ),
];

const LOGGING: &[Flag] = &[
    flag("logger", |f| &mut f.logger, "Only \"zap\": structured lines."),
    flag(
        "log-outputs",
        |f| &mut f.log_outputs,
        "\"stderr\", \"stdout\", \"default\" (stderr), or paths of files.",
    ),
    flag("log-level", |f| &mut f.log_level, "debug, info, warn, error, panic or fatal."),
    flag("log-format", |f| &mut f.log_format, "json or console."),
    flag("enable-log-rotation", |f| &mut f.enable_log_rotation, "Rotate the one log file."),
    flag(
        "log-rotation-config-json",
        |f| &mut f.log_rotation_config_json,
        "Sizes and ages for the rotation.",
    ),
    flag(
        "warning-unary-request-duration",
        |f| &mut f.warning_unary_request_duration,
        "Log a warning for a call that takes longer.",
    ),
    flag(
        "warning-apply-duration",
        |f| &mut f.warning_apply_duration,
        "Log a warning for an entry that takes longer to apply.",
    ),
];

const DISTRIBUTED: &[Flag] = &[
    flag(
        "enable-distributed-tracing",
        |f| &mut f.enable_distributed_tracing,
        "Send traces to a collector.",
    ),
    flag("distributed-tracing-address", |f| &mut f.distributed_tracing_address, "The collector."),
    flag(
        "distributed-tracing-service-name",
        |f| &mut f.distributed_tracing_service_name,
        "Service name in traces, the same on every member.",
    ),
    flag(
        "distributed-tracing-instance-id",
        |f| &mut f.distributed_tracing_instance_id,
        "Instance name in traces, different on every member.",
    ),
    flag(
        "distributed-tracing-sampling-rate",
        |f| &mut f.distributed_tracing_sampling_rate,
        "Traces to send per million.",
    ),
];

const FEATURES: &[Flag] = &[
    flag(
        "corrupt-check-time",
        |f| &mut f.corrupt_check_time,
        "Time between comparisons of all data among members; 0 compares never.",
    ),
    flag(
        "compact-hash-check-time",
        |f| &mut f.compact_hash_check_time,
        "Time between comparisons of compaction hashes among members.",
    ),
    flag(
        "compaction-batch-limit",
        |f| &mut f.compaction_batch_limit,
        "Revisions a compaction deletes in one step.",
    ),
    flag(
        "compaction-sleep-interval",
        |f| &mut f.compaction_sleep_interval,
        "Pause between two steps of a compaction.",
    ),
    flag(
        "watch-progress-notify-interval",
        |f| &mut f.watch_progress_notify_interval,
        "Time between progress notices to watchers that asked for them.",
    ),
    flag(
        "downgrade-check-time",
        |f| &mut f.downgrade_check_time,
        "Time between checks whether a downgrade is complete.",
    ),
    flag(
        "bootstrap-defrag-threshold-megabytes",
        |f| &mut f.bootstrap_defrag_threshold_megabytes,
        "Reclaim space at start if at least this much is free; 0 reclaims nothing.",
    ),
    flag("max-learners", |f| &mut f.max_learners, "Learners allowed in the cluster."),
];

const UNSAFE: &[Flag] = &[
    flag(
        "force-new-cluster",
        |f| &mut f.force_new_cluster,
        "Start as the only member of a new cluster with the data at hand. DANGEROUS: for disaster recovery.",
    ),
    flag(
        "unsafe-no-fsync",
        |f| &mut f.unsafe_no_fsync,
        "Do not wait for the disk. DANGEROUS: loses data.",
    ),
];
