//! Tools around oxetcd: the benchmark that compares it with official etcd, and where the official
//! programs and free ports come from.

pub mod bench;
pub mod official;
pub mod ports;
