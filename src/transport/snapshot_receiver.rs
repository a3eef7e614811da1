//! A database that a peer sends.
//!
//! Decides what is believed of it (nothing, until its bytes are there), and what the sender is told.
//! The message is for the replica only when the database is whole and durable. Called by `routes`.
//!
//! Source: etcd `server/etcdserver/api/rafthttp/http.go`, `snapshotHandler`.

use std::{net::SocketAddr, time::Duration};

use bytes::BytesMut;
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use prost::Message as _;
use proto::raftpb::{Message, MessageType};
use tracing::{info, warn};

use super::{
    body::next_part,
    codec::decode_whole,
    incoming::{check_compatible, learn_of_sender},
    metrics,
    replies::{Reply, empty, error, method_not_allowed, of_cluster},
    shared::{Refused, Shared, UNKNOWN_SENDER},
    snapshot_sender::humane,
    spool::Spool,
};
use crate::{
    base::duration::Took,
    model::{LogIndex, MemberId},
};

/// The largest message of a snapshot; its database comes after it.
///
/// Source: etcd `rafthttp/http.go`, `snapshotLimitByte`.
const MESSAGE_BYTES_MAX: u64 = 64 << 20;

/// Takes a snapshot.
pub(super) async fn receive(
    shared: &Shared,
    remote: SocketAddr,
    request: Request<Incoming>,
) -> Reply {
    let cluster = shared.settings.cluster;
    if request.method() != Method::POST {
        failed(UNKNOWN_SENDER);
        return method_not_allowed("POST");
    }
    if let Err(incompatible) = check_compatible(shared, request.headers()) {
        failed(UNKNOWN_SENDER);
        return of_cluster(incompatible.reply(), cluster);
    }
    learn_of_sender(shared, request.headers());
    let started = shared.clock.now();
    let reply = match take(shared, remote, request.into_body(), started).await {
        Ok(()) => empty(StatusCode::NO_CONTENT),
        Err(reply) => *reply,
    };
    of_cluster(reply, cluster)
}

fn failed(from: &str) {
    metrics::SNAPSHOT_RECEIVE_FAILURES.with_label_values(&[from]).inc();
}

async fn take(
    shared: &Shared,
    remote: SocketAddr,
    mut body: Incoming,
    started: Duration,
) -> Result<(), Box<Reply>> {
    let local = shared.settings.member;
    let mut input = BytesMut::new();
    let message = read_message(&mut body, &mut input).await.map_err(|reason| {
        let from = MemberId(0).to_string();
        warn!(
            "local-member-id" = %local,
            "remote-snapshot-sender-id" = from,
            error = reason,
            "failed to decode Raft message"
        );
        metrics::received_failures_at(remote).inc();
        failed(UNKNOWN_SENDER);
        let text = format!("failed to decode raft message ({reason})");
        Box::new(error(StatusCode::BAD_REQUEST, &text))
    })?;
    let from = MemberId(message.from()).to_string();
    let size = message.encoded_len();
    let label = shared.sender_label(MemberId(message.from()));
    shared.count_received(MemberId(message.from()), size as u64);
    let Some(index) = index_of(&message) else {
        warn!(
            "local-member-id" = %local,
            "remote-snapshot-sender-id" = from,
            "message-type" = message.r#type().as_str_name(),
            "unexpected Raft message type"
        );
        failed(&label);
        return Err(Box::new(error(StatusCode::BAD_REQUEST, "wrong raft message type")));
    };
    // What would be refused afterwards is refused before it takes room on the disk.
    check_addressed(shared, &message).map_err(|refused| not_for_us(&label, refused))?;
    let in_flight = metrics::SNAPSHOT_RECEIVE_INFLIGHTS.with_label_values(&[&label]);
    in_flight.inc();
    info!(
        "local-member-id" = %local,
        "remote-snapshot-sender-id" = from,
        "incoming-snapshot-index" = index.0,
        "incoming-snapshot-message-size-bytes" = size,
        "incoming-snapshot-message-size" = humane(size as u64),
        "receiving database snapshot"
    );
    let saved = save(shared, index, body, input).await;
    in_flight.dec();
    let bytes = saved.map_err(|reason| {
        warn!(
            "local-member-id" = %local,
            "remote-snapshot-sender-id" = from,
            "incoming-snapshot-index" = index.0,
            error = reason,
            "failed to save incoming database snapshot"
        );
        failed(&label);
        let text = format!("failed to save KV snapshot ({reason})");
        Box::new(error(StatusCode::INTERNAL_SERVER_ERROR, &text))
    })?;
    shared.count_received(MemberId(message.from()), bytes);
    let took = shared.clock.now().saturating_sub(started);
    info!(
        "local-member-id" = %local,
        "remote-snapshot-sender-id" = from,
        "incoming-snapshot-index" = index.0,
        "incoming-snapshot-size-bytes" = bytes,
        "incoming-snapshot-size" = humane(bytes),
        "download-took" = %Took(took),
        "received and saved database snapshot"
    );
    shared.receive(message).map_err(|refused| not_for_us(&label, refused))?;
    metrics::SNAPSHOT_RECEIVE.with_label_values(&[&label]).inc();
    metrics::SNAPSHOT_RECEIVE_SECONDS.with_label_values(&[&label]).observe(took.as_secs_f64());
    Ok(())
}

fn not_for_us(from: &str, refused: Refused) -> Box<Reply> {
    failed(from);
    let text = format!("failed to process raft message ({})", refused.text());
    Box::new(error(StatusCode::INTERNAL_SERVER_ERROR, &text))
}

/// The message at the start of `body`. What came of the database stays in `input`.
async fn read_message(body: &mut Incoming, input: &mut BytesMut) -> Result<Message, String> {
    loop {
        match decode_whole(input, MESSAGE_BYTES_MAX) {
            Ok(Some(message)) => return Ok(message),
            Ok(None) => {}
            Err(error) => return Err(error.to_string()),
        }
        match next_part(body).await {
            Ok(Some(part)) => input.extend_from_slice(&part),
            Ok(None) if input.is_empty() => return Err("EOF".to_owned()),
            Ok(None) => return Err("unexpected EOF".to_owned()),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Where the snapshot stands; `None` if there is none.
fn index_of(message: &Message) -> Option<LogIndex> {
    if message.r#type() != MessageType::MsgSnap {
        return None;
    }
    let metadata = message.snapshot.as_ref()?.metadata.as_ref()?;
    Some(LogIndex(metadata.index()))
}

fn check_addressed(shared: &Shared, message: &Message) -> Result<(), Refused> {
    if shared.local().is_removed(MemberId(message.from())) {
        return Err(Refused::Removed);
    }
    if message.to() != shared.settings.member.0 {
        return Err(Refused::Mismatch);
    }
    Ok(())
}

/// Writes the database to its place, and returns its length.
async fn save(
    shared: &Shared,
    index: LogIndex,
    mut body: Incoming,
    input: BytesMut,
) -> Result<u64, String> {
    let _place = shared.room_for_snapshots.try_acquire().map_err(|error| error.to_string())?;
    let path = shared.local().snapshot_path(index);
    let spool = Spool::start(path, shared.clock.clone()).map_err(|error| error.to_string())?;
    if !input.is_empty() {
        spool.write(input.freeze()).await;
    }
    while let Some(part) = next_part(&mut body).await.map_err(|error| error.to_string())? {
        spool.write(part).await;
    }
    spool.finish().await.map_err(|error| error.to_string())
}
