//! The methods of etcd's API that are measured, as HTTP/2 paths.
//!
//! Decides nothing; called by everything that sends requests.

/// Range.
pub const RANGE: &str = "/etcdserverpb.KV/Range";
/// RangeStream, of etcd 3.7.
pub const RANGE_STREAM: &str = "/etcdserverpb.KV/RangeStream";
/// Put.
pub const PUT: &str = "/etcdserverpb.KV/Put";
/// DeleteRange.
pub const DELETE_RANGE: &str = "/etcdserverpb.KV/DeleteRange";
/// Txn.
pub const TXN: &str = "/etcdserverpb.KV/Txn";
/// Compact.
pub const COMPACT: &str = "/etcdserverpb.KV/Compact";
/// Watch.
pub const WATCH: &str = "/etcdserverpb.Watch/Watch";
/// LeaseGrant.
pub const LEASE_GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
/// LeaseKeepAlive.
pub const LEASE_KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
/// LeaseLeases.
pub const LEASE_LEASES: &str = "/etcdserverpb.Lease/LeaseLeases";
/// Defragment.
pub const DEFRAGMENT: &str = "/etcdserverpb.Maintenance/Defragment";
/// Status.
pub const STATUS: &str = "/etcdserverpb.Maintenance/Status";
/// Snapshot.
pub const SNAPSHOT: &str = "/etcdserverpb.Maintenance/Snapshot";
