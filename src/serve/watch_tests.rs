//! Watching clients over real sockets; the history is a fake one, the hubs are real.

use futures::{StreamExt, channel::mpsc};
use proto::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
    watch_client::WatchClient, watch_request::RequestUnion,
};
use tonic::{Code, Request, Streaming};

use super::tests::{Served, run};
use crate::{model::MemberId, watch::fake::Service};

/// A client's side of one stream.
struct Watching {
    requests: Option<mpsc::Sender<WatchRequest>>,
    responses: Streaming<WatchResponse>,
}

impl Watching {
    async fn open(served: &Served) -> Self {
        Self::open_with(served, |_| {}).await
    }

    async fn open_with(
        served: &Served,
        adjust: impl FnOnce(&mut Request<mpsc::Receiver<WatchRequest>>),
    ) -> Self {
        let (requests, queue) = mpsc::channel(16);
        let mut request = Request::new(queue);
        adjust(&mut request);
        let mut client = WatchClient::new(served.channel().await);
        let answer = client.watch(request).await.expect("watching is served");
        Self { requests: Some(requests), responses: answer.into_inner() }
    }

    fn ask(&mut self, request: Option<RequestUnion>) {
        let requests = self.requests.as_mut().expect("the client may still ask");
        requests.try_send(WatchRequest { request_union: request }).expect("there is room");
    }

    fn create(&mut self, key: &'static str, start_revision: i64) {
        let create = WatchCreateRequest { key: key.into(), start_revision, ..Default::default() };
        self.ask(Some(RequestUnion::CreateRequest(create)));
    }

    async fn next(&mut self) -> WatchResponse {
        self.responses.next().await.expect("the stream goes on").expect("the stream is fine")
    }
}

fn serve_watches(served: &Served) -> Service {
    let service = Service::start(1, 20);
    served.fake.with(|inner| inner.watch = Some(service.handle.streams().clone()));
    service
}

#[test]
fn watching_client_hears_of_creation_events_progress_and_cancellation() {
    run(async |served| {
        let mut service = serve_watches(served);
        let mut watching = Watching::open(served).await;
        watching.create("a", 0);
        let created = watching.next().await;
        assert!(created.created && created.watch_id == 0, "{created:?}");
        service.write("b");
        service.write("a");
        let told = watching.next().await;
        assert_eq!(told.header.expect("a header").revision, 3);
        assert_eq!(told.events.len(), 1);
        watching.ask(Some(RequestUnion::ProgressRequest(WatchProgressRequest {})));
        let progress = watching.next().await;
        assert_eq!((progress.watch_id, progress.header.expect("a header").revision), (-1, 3));
        watching.ask(Some(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 0 })));
        assert!(watching.next().await.canceled);
        drop(watching);
        service.stop();
    });
}

#[test]
fn request_without_a_known_union_is_ignored_and_a_negative_start_refused() {
    run(async |served| {
        let service = serve_watches(served);
        let mut watching = Watching::open(served).await;
        watching.ask(None);
        watching.create("a", -1);
        let refused = watching.next().await;
        assert_eq!((refused.watch_id, refused.created, refused.canceled), (-1, true, true));
        assert_eq!(refused.cancel_reason, "etcdserver: mvcc: required revision has been compacted");
        drop(watching);
        service.stop();
    });
}

#[test]
fn client_that_asks_no_more_still_hears_of_events() {
    run(async |served| {
        let mut service = serve_watches(served);
        let mut watching = Watching::open(served).await;
        watching.create("a", 0);
        assert!(watching.next().await.created);
        watching.requests = None;
        for revision in 2..10 {
            service.write("a");
            assert_eq!(watching.next().await.header.expect("a header").revision, revision);
        }
        drop(watching);
        service.stop();
    });
}

#[test]
fn large_history_arrives_whole_at_a_client_that_reads_late() {
    run(async |served| {
        let mut service = serve_watches(served);
        let mut watching = Watching::open(served).await;
        for _ in 0..2 {
            watching.create("a", 0);
            assert!(watching.next().await.created);
        }
        for _ in 0..500 {
            service.write("a");
        }
        let mut next = [2, 2];
        while next != [502, 502] {
            let response = watching.next().await;
            let watcher = usize::try_from(response.watch_id).expect("ids are small");
            for event in response.events {
                let revision = event.kv.expect("a row").mod_revision;
                assert_eq!(revision, next[watcher], "watcher {watcher}");
                next[watcher] += 1;
            }
        }
        drop(watching);
        service.stop();
    });
}

#[test]
fn only_streams_that_insist_on_a_leader_end_without_one() {
    run(async |served| {
        let mut service = serve_watches(served);
        let mut calm = Watching::open(served).await;
        let mut strict = Watching::open_with(served, |request| {
            request.metadata_mut().insert("hasleader", "true".parse().expect("ASCII"));
        })
        .await;
        for watching in [&mut calm, &mut strict] {
            watching.create("a", 0);
            assert!(watching.next().await.created);
        }
        served.fake.with(|inner| inner.leader = MemberId(0));
        let status = strict.responses.next().await.expect("a status").expect_err("no leader");
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
        service.write("a");
        assert_eq!(calm.next().await.events.len(), 1);
        drop((calm, strict));
        service.stop();
    });
}

#[test]
fn stream_ends_when_the_member_stops_or_the_deadline_passes() {
    run(async |served| {
        let service = serve_watches(served);
        let mut watching = Watching::open(served).await;
        let mut short = Watching::open_with(served, |request| {
            request.metadata_mut().insert("grpc-timeout", "20m".parse().expect("ASCII"));
        })
        .await;
        let status = short.responses.next().await.expect("a status").expect_err("too late");
        assert_eq!(status.code(), Code::DeadlineExceeded);
        watching.create("a", 0);
        assert!(watching.next().await.created);
        service.stop();
        let status = watching.responses.next().await.expect("a status").expect_err("stopped");
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unavailable, "etcdserver: server stopped")
        );
    });
}
