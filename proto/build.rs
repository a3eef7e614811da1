//! Compiles the `.proto` files with protox, so that no protoc is needed, and keeps the descriptor
//! set for whoever needs the schema at run time.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

/// Everything else is reached through imports.
const ROOTS: [&str; 11] = [
    "etcd/api/etcdserverpb/rpc.proto",
    "etcd/api/etcdserverpb/raft_internal.proto",
    "etcd/api/etcdserverpb/etcdserver.proto",
    "etcd/api/membershippb/membership.proto",
    "etcd/server/etcdserver/api/snap/snappb/snap.proto",
    "etcd/server/etcdserver/api/v3election/v3electionpb/v3election.proto",
    "etcd/server/etcdserver/api/v3lock/v3lockpb/v3lock.proto",
    "etcd/server/lease/leasepb/lease.proto",
    "etcd/server/storage/wal/walpb/record.proto",
    "grpc/health/v1/health.proto",
    "raftpb/raft.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=etcd");
    println!("cargo:rerun-if-changed=grpc");
    println!("cargo:rerun-if-changed=raftpb");
    let descriptors = protox::compile(ROOTS, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
