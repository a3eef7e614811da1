//! The watch threads with real threads around them.

use std::{future::poll_fn, task::Poll, thread::ScopedJoinHandle};

use futures::executor::block_on;

use super::{
    CreateWatch, History, Request, Revision, WatchResponse, decode, events, revision, single,
};
use crate::watch::{
    fake::Service,
    link::{End, WatchStream},
    request::NO_WATCH_ID,
};

fn ask(stream: &mut WatchStream, request: Request) {
    block_on(poll_fn(|context| stream.poll_ready(context)));
    stream.send(request);
}

fn next(stream: &mut WatchStream) -> Result<WatchResponse, End> {
    block_on(poll_fn(|context| stream.poll_frame(context))).map(|frame| decode(&frame))
}

fn hear_until(stream: &mut WatchStream, last: i64) -> Vec<i64> {
    let mut heard: Vec<i64> = Vec::new();
    while heard.last() != Some(&last) {
        let response = next(stream).expect("the service runs");
        heard.extend(events(&response).iter().map(|(_, revision)| revision));
    }
    heard
}

#[test]
fn whoever_saw_a_revision_watches_from_the_next_one() {
    let mut service = Service::start(2, 100);
    for _ in 0..200 {
        service.write("a");
        let mut stream = service.handle.streams().open();
        ask(&mut stream, Request::Create(single("a")));
        let created = next(&mut stream).expect("the service runs");
        assert_eq!(revision(&created), service.history.revision().0);
    }
    service.stop();
}

#[test]
fn slow_and_fast_readers_hear_everything_while_writes_go_on() {
    const LAST: i64 = 3000;
    let mut service = Service::start(2, 3);
    std::thread::scope(|scope| {
        let streams = service.handle.streams().clone();
        let read = |start: i64| {
            let streams = streams.clone();
            move || {
                let mut stream = streams.open();
                let create = CreateWatch { start: Revision(start), ..single("a") };
                ask(&mut stream, Request::Create(create));
                assert!(next(&mut stream).expect("the service runs").created);
                hear_until(&mut stream, LAST)
            }
        };
        let readers: Vec<ScopedJoinHandle<'_, Vec<i64>>> =
            [2, 2, 2, 1500, 2999].map(|start| scope.spawn(read(start))).into();
        while service.history.revision().0 < LAST {
            service.write("a");
        }
        for (reader, start) in readers.into_iter().zip([2, 2, 2, 1500, 2999]) {
            let heard = reader.join().expect("readers do not panic");
            assert!(heard.iter().copied().eq(start..=LAST), "{heard:?} from {start}");
        }
    });
    service.stop();
}

#[test]
fn requests_beyond_the_bound_wait_until_answers_are_read() {
    let mut service = Service::start(1, 2);
    let mut stream = service.handle.streams().open();
    ask(&mut stream, Request::Create(single("a")));
    let mut asked = 0;
    let full = |stream: &mut WatchStream| {
        block_on(poll_fn(|context| Poll::Ready(stream.poll_ready(context).is_pending())))
    };
    // The watch thread takes requests until two answers wait; after that they pile up here.
    while !full(&mut stream) {
        stream.send(Request::Progress);
        asked += 1;
    }
    let mut answered = 0;
    while answered < asked {
        let response = next(&mut stream).expect("the service runs");
        answered += i32::from(response.watch_id == NO_WATCH_ID);
    }
    service.write("a");
    assert_eq!(hear_until(&mut stream, 2), [2]);
    service.stop();
}

#[test]
fn dropped_stream_is_forgotten_and_its_number_used_again() {
    let mut service = Service::start(1, 10);
    for _ in 0..50 {
        let mut stream = service.handle.streams().open();
        ask(&mut stream, Request::Create(single("a")));
        assert!(next(&mut stream).expect("the service runs").created);
        service.write("a");
    }
    drop(service.handle.streams().open());
    service.stop();
}

#[test]
fn cut_and_stop_end_streams_with_their_reason() {
    let service = Service::start(1, 10);
    let (mut cut, mut stopped) = (service.handle.streams().open(), service.handle.streams().open());
    ask(&mut cut, Request::Create(single("a")));
    ask(&mut stopped, Request::Create(single("a")));
    assert!(next(&mut stopped).expect("the service runs").created);
    cut.cutter().cut(End::NoLeader);
    let end = loop {
        if let Err(end) = next(&mut cut) {
            break end;
        }
    };
    assert_eq!(end, End::NoLeader);
    service.stop();
    assert_eq!(next(&mut stopped), Err(End::Stopped));
}
