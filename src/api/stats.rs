//! The log line about a slow call.
//!
//! Decides how a request reads in the log: like protobuf's text form, but for values, of which only
//! the size is told. Nothing here runs for a call that is fast enough. Called by `dispatch` and `kv`.
//!
//! Source: etcd `server/etcdserver/api/v3rpc/interceptor.go` and
//! `api/etcdserverpb/raft_internal_stringer.go`.

use std::{fmt::Write, net::SocketAddr, time::Duration};

use bytes::Bytes;
use prost::Message;
use proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    compare::TargetUnion, request_op::Request as Operation,
};
use tracing::{Level, debug, enabled, warn};

use super::{answer::Reply, rpc::Rpc, status::Failure};
use crate::{base::clock::Clock, model::Request};

/// A finished unary call.
#[derive(Debug)]
pub(super) struct Finished<'a> {
    /// Which.
    pub(super) rpc: Rpc,
    /// Who called.
    pub(super) remote: Option<SocketAddr>,
    /// The request's message.
    pub(super) request: &'a Bytes,
    /// What became of it.
    pub(super) result: &'a Result<Reply, Failure>,
    /// The time when it began is told by the wall clock, which is looked at only if it is told.
    pub(super) clock: &'a Clock,
    /// How long it took.
    pub(super) took: Duration,
}

/// Logs `call` if it was slow, or if everything is logged.
pub(super) fn log(call: &Finished<'_>, slow: Duration) {
    let slow = slow < call.took;
    if slow || enabled!(Level::DEBUG) {
        write(call, slow);
    }
}

macro_rules! stats {
    ($level:ident, $call:expr, $line:expr) => {{
        let line = &$line;
        $level!(
            "start time" = line.start_time.as_secs_f64(),
            "time spent" = ?$call.took,
            remote = line.remote,
            "response type" = $call.rpc.path(),
            "request count" = line.request_count,
            "request size" = line.request_bytes,
            "response count" = line.response_count,
            "response size" = line.response_bytes,
            "request content" = line.content,
            "request stats"
        );
    }};
}

fn write(call: &Finished<'_>, slow: bool) {
    let line = Line::of(call);
    if enabled!(Level::DEBUG) {
        stats!(debug, call, line);
    } else if slow {
        stats!(warn, call, line);
    }
}

struct Line {
    start_time: Duration,
    remote: String,
    request_count: i64,
    request_bytes: i64,
    response_count: i64,
    response_bytes: i64,
    content: String,
}

impl Line {
    fn of(call: &Finished<'_>) -> Self {
        let remote = call
            .remote
            .map_or_else(|| "No remote client info.".to_owned(), |remote| remote.to_string());
        let unknown = Self {
            start_time: call.clock.unix().saturating_sub(call.took),
            remote,
            request_count: -1,
            request_bytes: -1,
            response_count: -1,
            response_bytes: -1,
            content: String::new(),
        };
        let Some(request) = decode(call.rpc, call.request) else { return unknown };
        let (response_count, response_bytes) = call.result.as_ref().map_or((0, 0), |reply| {
            (reply.count, i64::try_from(reply.message_bytes).unwrap_or(i64::MAX))
        });
        let succeeded = call.result.as_ref().is_ok_and(|reply| reply.succeeded);
        let (request_count, request_bytes) = request_size(&request, call.request, succeeded);
        let content = text(&request);
        Self { request_count, request_bytes, response_count, response_bytes, content, ..unknown }
    }
}

fn decode(rpc: Rpc, bytes: &Bytes) -> Option<Request> {
    let bytes = bytes.clone();
    if rpc == Rpc::Range {
        RangeRequest::decode(bytes).ok().map(Request::Range)
    } else if rpc == Rpc::Put {
        PutRequest::decode(bytes).ok().map(Request::Put)
    } else if rpc == Rpc::DeleteRange {
        DeleteRangeRequest::decode(bytes).ok().map(Request::DeleteRange)
    } else if rpc == Rpc::Txn {
        TxnRequest::decode(bytes).ok().map(Request::Txn)
    } else {
        None
    }
}

/// How many operations a request has and their size in bytes; of a transaction, those of the
/// branch that ran.
fn request_size(request: &Request, bytes: &Bytes, succeeded: bool) -> (i64, i64) {
    let whole = bytes.len();
    let (count, size) = if let Request::Txn(txn) = request {
        let branch = if succeeded { &txn.success } else { &txn.failure };
        (branch.len(), branch.iter().map(Message::encoded_len).sum())
    } else {
        (usize::from(matches!(request, Request::Put(_))), whole)
    };
    (i64::try_from(count).unwrap_or(i64::MAX), i64::try_from(size).unwrap_or(i64::MAX))
}

/// `request` for the log, without values.
pub(super) fn text(request: &Request) -> String {
    let mut out = String::new();
    if let Request::Range(request) = request {
        range(request, &mut out);
    } else if let Request::Put(request) = request {
        put(request, &mut out);
    } else if let Request::DeleteRange(request) = request {
        delete(request, &mut out);
    } else if let Request::Txn(request) = request {
        txn(request, &mut out);
    } else {
        out.push_str(request.name());
    }
    out.truncate(out.trim_end().len());
    out
}

fn bytes_field(name: &str, value: &[u8], out: &mut String) {
    if !value.is_empty() {
        push(out, format_args!("{name}:\"{}\" ", value.escape_ascii()));
    }
}

fn int_field(name: &str, value: i64, out: &mut String) {
    if value != 0 {
        push(out, format_args!("{name}:{value} "));
    }
}

fn bool_field(name: &str, value: bool, out: &mut String) {
    if value {
        push(out, format_args!("{name}:true "));
    }
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a String takes everything");
}

fn range(request: &RangeRequest, out: &mut String) {
    bytes_field("key", &request.key, out);
    bytes_field("range_end", &request.range_end, out);
    int_field("limit", request.limit, out);
    int_field("revision", request.revision, out);
    if request.sort_order != 0 {
        push(out, format_args!("sort_order:{} ", request.sort_order().as_str_name()));
    }
    if request.sort_target != 0 {
        push(out, format_args!("sort_target:{} ", request.sort_target().as_str_name()));
    }
    bool_field("serializable", request.serializable, out);
    bool_field("keys_only", request.keys_only, out);
    bool_field("count_only", request.count_only, out);
    int_field("min_mod_revision", request.min_mod_revision, out);
    int_field("max_mod_revision", request.max_mod_revision, out);
    int_field("min_create_revision", request.min_create_revision, out);
    int_field("max_create_revision", request.max_create_revision, out);
}

fn put(request: &PutRequest, out: &mut String) {
    bytes_field("key", &request.key, out);
    push(out, format_args!("value_size:{} ", request.value.len()));
    int_field("lease", request.lease, out);
    bool_field("prev_kv", request.prev_kv, out);
    bool_field("ignore_value", request.ignore_value, out);
    bool_field("ignore_lease", request.ignore_lease, out);
}

fn delete(request: &DeleteRangeRequest, out: &mut String) {
    bytes_field("key", &request.key, out);
    bytes_field("range_end", &request.range_end, out);
    bool_field("prev_kv", request.prev_kv, out);
}

fn txn(request: &TxnRequest, out: &mut String) {
    out.push_str("compare:<");
    for (position, item) in request.compare.iter().enumerate() {
        out.push_str(if position == 0 { "" } else { " " });
        compare(item, out);
    }
    out.push_str("> ");
    for (name, branch) in [("success", &request.success), ("failure", &request.failure)] {
        push(out, format_args!("{name}:<"));
        for (position, item) in branch.iter().enumerate() {
            out.push_str(if position == 0 { "" } else { " " });
            operation(item, out);
        }
        out.push_str("> ");
    }
}

fn operation(item: &RequestOp, out: &mut String) {
    let Some(request) = &item.request else { return };
    let mut body = String::new();
    let name = match request {
        Operation::RequestRange(request) => {
            range(request, &mut body);
            "request_range"
        }
        Operation::RequestPut(request) => {
            put(request, &mut body);
            "request_put"
        }
        Operation::RequestDeleteRange(request) => {
            delete(request, &mut body);
            "request_delete_range"
        }
        Operation::RequestTxn(request) => {
            txn(request, &mut body);
            "request_txn"
        }
    };
    push(out, format_args!("{name}:<{}>", body.trim_end()));
}

fn compare(item: &Compare, out: &mut String) {
    let mut body = String::new();
    if item.result != 0 {
        push(&mut body, format_args!("result:{} ", item.result().as_str_name()));
    }
    if item.target != 0 {
        push(&mut body, format_args!("target:{} ", item.target().as_str_name()));
    }
    bytes_field("key", &item.key, &mut body);
    match &item.target_union {
        None => {}
        Some(TargetUnion::Version(value)) => push(&mut body, format_args!("version:{value} ")),
        Some(TargetUnion::CreateRevision(value)) => {
            push(&mut body, format_args!("create_revision:{value} "));
        }
        Some(TargetUnion::ModRevision(value)) => {
            push(&mut body, format_args!("mod_revision:{value} "));
        }
        Some(TargetUnion::Value(value)) => {
            push(&mut body, format_args!("value_size:{} ", value.len()));
        }
        Some(TargetUnion::Lease(value)) => push(&mut body, format_args!("lease:{value} ")),
    }
    bytes_field("range_end", &item.range_end, &mut body);
    out.push_str(body.trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_do_not_reach_the_log() {
        let put = PutRequest { key: "k\n".into(), value: "secret".into(), ..Default::default() };
        assert_eq!(text(&Request::Put(put.clone())), r#"key:"k\n" value_size:6"#);
        let compare = Compare {
            target: 3,
            key: "k".into(),
            target_union: Some(TargetUnion::Value("secret".into())),
            ..Default::default()
        };
        let success = vec![RequestOp { request: Some(Operation::RequestPut(put)) }];
        let txn = TxnRequest { compare: vec![compare], success, failure: Vec::new() };
        let expected = "compare:<target:VALUE key:\"k\" value_size:6> \
                        success:<request_put:<key:\"k\\n\" value_size:6>> failure:<>";
        assert_eq!(text(&Request::Txn(txn)), expected);
    }
}
