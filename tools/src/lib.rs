//! Tools around oxetcd: the benchmark that compares it with official etcd.

pub mod bench;
