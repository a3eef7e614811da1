//! A sentence for each promise of the watch service; the order is that of the hub's inputs.

use super::{
    Bench,
    Change::{Delete, Put},
    CreateWatch, Duration, KeyRange, NOTIFY_INTERVAL, Request, Revision, StreamId, WatchResponse,
    events, revision, single, watch,
};
use crate::watch::request::NO_WATCH_ID;

fn shape(response: &WatchResponse) -> (i64, bool, bool, i64, &str) {
    (
        response.watch_id,
        response.created,
        response.canceled,
        response.compact_revision,
        &response.cancel_reason,
    )
}

fn created(bench: &mut Bench, create: CreateWatch) -> StreamId {
    let stream = bench.open();
    bench.create(stream, create);
    let answers = bench.drain(stream);
    assert!(answers[0].created && !answers[0].canceled, "{answers:?}");
    stream
}

fn all() -> KeyRange {
    KeyRange::From("\0".into())
}

#[test]
fn range_without_keys_is_created_and_canceled_at_once() {
    let mut bench = Bench::new();
    let stream = bench.open();
    bench.create(stream, watch(KeyRange::Between("b".into(), "b".into())));
    let answers = bench.drain(stream);
    assert_eq!(shape(&answers[0]), (-1, true, true, 0, "mvcc: watcher range is empty"));
    assert_eq!(revision(&answers[0]), 1);
}

#[test]
fn refusal_found_at_the_edge_is_answered_in_turn() {
    let mut bench = Bench::new();
    let stream = bench.open();
    bench.create(stream, single("a"));
    bench.ask(stream, Request::Refuse { reason: "no".to_owned() });
    let answers = bench.drain(stream);
    assert_eq!(shape(&answers[0]), (0, true, false, 0, ""));
    assert_eq!(shape(&answers[1]), (-1, true, true, 0, "no"));
}

#[test]
fn ids_count_from_zero_and_skip_those_that_clients_took() {
    let mut bench = Bench::new();
    let stream = bench.open();
    for watch_id in [0, 1, 0, 0] {
        bench.create(stream, CreateWatch { watch_id, ..single("a") });
    }
    let ids: Vec<_> = bench.drain(stream).iter().map(|answer| answer.watch_id).collect();
    assert_eq!(ids, [0, 1, 2, 3]);
    bench.ask(stream, Request::Cancel { watch_id: 2 });
    bench.create(stream, single("a"));
    let ids: Vec<_> = bench.drain(stream).iter().map(|answer| answer.watch_id).collect();
    assert_eq!(ids, [2, 4], "the counter does not go back");
}

#[test]
fn taken_id_is_refused() {
    let mut bench = Bench::new();
    let stream = bench.open();
    bench.create(stream, CreateWatch { watch_id: 5, ..single("a") });
    bench.create(stream, CreateWatch { watch_id: 5, ..single("b") });
    let answers = bench.drain(stream);
    assert_eq!(
        shape(&answers[1]),
        (-1, true, true, 0, "mvcc: duplicate watch ID provided on the WatchStream")
    );
}

#[test]
fn creation_is_told_before_any_event_and_states_the_head() {
    let mut bench = Bench::new();
    bench.write(&[Put("a")]);
    let stream = bench.open();
    bench.create(stream, CreateWatch { start: Revision(2), ..single("a") });
    bench.catch_up();
    bench.write(&[Put("a")]);
    let answers = bench.drain(stream);
    assert_eq!(shape(&answers[0]), (0, true, false, 0, ""));
    assert_eq!(revision(&answers[0]), 2);
    let told: Vec<_> = answers[1..].iter().flat_map(events).collect();
    assert_eq!(told, [("a".to_owned(), 2), ("a".to_owned(), 3)]);
}

#[test]
fn watcher_without_a_start_hears_what_comes_after_its_creation() {
    let mut bench = Bench::new();
    bench.write(&[Put("a")]);
    let stream = created(&mut bench, single("a"));
    assert!(!bench.hub.is_behind());
    bench.write(&[Put("a")]);
    let told: Vec<_> = bench.drain(stream).iter().flat_map(events).collect();
    assert_eq!(told, [("a".to_owned(), 3)]);
}

#[test]
fn future_start_hides_events_and_progress_until_it_is_reached() {
    let mut bench = Bench::new();
    let future = CreateWatch { start: Revision(4), progress_notify: true, ..single("a") };
    let stream = created(&mut bench, future);
    bench.write(&[Put("a")]);
    bench.write(&[Put("a")]);
    bench.ask(stream, Request::Progress);
    bench.now += NOTIFY_INTERVAL * 2;
    bench.hub.tick(bench.now);
    assert_eq!(bench.drain(stream), []);
    bench.write(&[Put("a")]);
    bench.ask(stream, Request::Progress);
    let answers = bench.drain(stream);
    assert_eq!(events(&answers[0]), [("a".to_owned(), 4)]);
    assert_eq!((answers[1].watch_id, revision(&answers[1])), (NO_WATCH_ID, 4));
}

#[test]
fn start_below_the_compaction_is_canceled_with_the_compaction_and_no_revision() {
    let mut bench = Bench::new();
    for _ in 0..4 {
        bench.write(&[Put("a")]);
    }
    bench.history.compacted = Revision(4);
    let stream = created(&mut bench, CreateWatch { start: Revision(3), ..single("a") });
    bench.catch_up();
    let answers = bench.drain(stream);
    assert_eq!(shape(&answers[0]), (0, false, true, 4, ""));
    assert_eq!(revision(&answers[0]), 0);
    assert_eq!(answers.len(), 1);
}

#[test]
fn start_at_the_compaction_itself_is_served() {
    let mut bench = Bench::new();
    for _ in 0..3 {
        bench.write(&[Put("a")]);
    }
    bench.history.compacted = Revision(3);
    let stream = created(&mut bench, CreateWatch { start: Revision(3), ..single("a") });
    bench.catch_up();
    let told: Vec<_> = bench.drain(stream).iter().flat_map(events).collect();
    assert_eq!(told, [("a".to_owned(), 3), ("a".to_owned(), 4)]);
}

#[test]
fn watcher_with_compacted_history_keeps_its_id_and_blocks_progress_until_canceled() {
    let mut bench = Bench::new();
    bench.write(&[Put("a")]);
    bench.write(&[Put("a")]);
    bench.history.compacted = Revision(3);
    let stream = created(&mut bench, CreateWatch { start: Revision(2), ..single("a") });
    bench.catch_up();
    bench.drain(stream);
    bench.create(stream, CreateWatch { watch_id: 0, ..single("b") });
    assert_eq!(bench.drain(stream)[0].watch_id, 1);
    bench.ask(stream, Request::Progress);
    assert_eq!(bench.drain(stream), []);
    bench.ask(stream, Request::Cancel { watch_id: 0 });
    bench.ask(stream, Request::Progress);
    let ids: Vec<_> = bench.drain(stream).iter().map(|answer| answer.watch_id).collect();
    assert_eq!(ids, [0, NO_WATCH_ID]);
}

#[test]
fn cancel_of_a_known_id_is_confirmed_and_of_an_unknown_one_ignored() {
    let mut bench = Bench::new();
    let stream = created(&mut bench, single("a"));
    bench.ask(stream, Request::Cancel { watch_id: 9 });
    bench.ask(stream, Request::Cancel { watch_id: 0 });
    bench.write(&[Put("a")]);
    let answers = bench.drain(stream);
    assert_eq!(answers.len(), 1);
    assert_eq!(shape(&answers[0]), (0, false, true, 0, ""));
    assert_eq!(revision(&answers[0]), 1);
}

#[test]
fn manual_progress_speaks_for_the_stream_once_all_its_watchers_are_synced() {
    let mut bench = Bench::new();
    bench.write(&[Put("a")]);
    let stream = created(&mut bench, single("a"));
    bench.create(stream, CreateWatch { start: Revision(2), ..single("a") });
    bench.ask(stream, Request::Progress);
    bench.catch_up();
    bench.write(&[Put("a")]);
    bench.ask(stream, Request::Progress);
    let answers = bench.drain(stream);
    let last = answers.last().expect("there are answers");
    assert_eq!(shape(last), (NO_WATCH_ID, false, false, 0, ""));
    assert_eq!(revision(last), 3);
    let progress = answers.iter().filter(|answer| answer.watch_id == NO_WATCH_ID);
    assert_eq!(progress.count(), 1, "the request that came too early is never answered");
}

#[test]
fn manual_progress_on_a_stream_without_watchers_is_not_answered() {
    let mut bench = Bench::new();
    let stream = bench.open();
    bench.ask(stream, Request::Progress);
    assert_eq!(bench.drain(stream), []);
}

#[test]
fn progress_is_notified_per_period_unless_events_were_sent() {
    let mut bench = Bench::new();
    let notified = CreateWatch { progress_notify: true, ..single("a") };
    let stream = created(&mut bench, notified);
    let due = bench.hub.next_deadline().expect("a notification is due");
    assert!(NOTIFY_INTERVAL <= due && due <= NOTIFY_INTERVAL + NOTIFY_INTERVAL / 10);
    bench.hub.tick(due - Duration::from_nanos(1));
    assert_eq!(bench.drain(stream), []);
    bench.hub.tick(due);
    let answers = bench.drain(stream);
    assert_eq!(shape(&answers[0]), (0, false, false, 0, ""));
    assert_eq!(revision(&answers[0]), 1);

    bench.write(&[Put("a")]);
    assert_eq!(bench.drain(stream).len(), 1);
    bench.hub.tick(due * 2);
    assert_eq!(bench.drain(stream), [], "an event was sent since the last time");
    bench.hub.tick(due * 3);
    assert_eq!(bench.drain(stream).len(), 1);
    bench.ask(stream, Request::Cancel { watch_id: 0 });
    assert_eq!(bench.hub.next_deadline(), None);
}

#[test]
fn deletion_tells_only_the_key_and_its_revision() {
    let mut bench = Bench::new();
    bench.write(&[Put("a")]);
    let stream = created(&mut bench, single("a"));
    bench.write(&[Delete("a")]);
    let event = bench.drain(stream)[0].events[0].clone();
    assert_eq!(event.r#type, 1);
    let row = event.kv.expect("there is a row");
    assert_eq!((row.mod_revision, row.version, row.value.len()), (3, 0, 0));
    assert_eq!(event.prev_kv, None);
}

#[test]
fn previous_row_comes_with_every_event_but_a_creation() {
    let mut bench = Bench::new();
    let stream = created(&mut bench, CreateWatch { previous: true, ..single("a") });
    bench.write(&[Put("a")]);
    bench.write(&[Put("a")]);
    bench.write(&[Delete("a")]);
    bench.write(&[Put("a")]);
    let previous: Vec<_> = bench
        .drain(stream)
        .into_iter()
        .flat_map(|answer| answer.events)
        .map(|event| event.prev_kv.map(|row| row.mod_revision))
        .collect();
    assert_eq!(previous, [None, Some(2), Some(3), None]);
}

#[test]
fn previous_row_is_left_out_where_the_state_before_was_compacted() {
    let mut bench = Bench::new();
    for _ in 0..3 {
        bench.write(&[Put("a")]);
    }
    bench.history.compacted = Revision(3);
    let create = CreateWatch { previous: true, start: Revision(3), ..single("a") };
    let stream = created(&mut bench, create);
    bench.catch_up();
    let answers = bench.drain(stream);
    let previous: Vec<_> = answers
        .iter()
        .flat_map(|answer| &answer.events)
        .map(|event| event.prev_kv.as_ref().map(|row| row.mod_revision))
        .collect();
    assert_eq!(previous, [None, Some(3)]);
}

#[test]
fn filtered_events_make_no_response() {
    let mut bench = Bench::new();
    let stream = bench.open();
    bench.create(stream, CreateWatch { no_put: true, ..single("a") });
    bench.create(stream, CreateWatch { no_delete: true, ..single("a") });
    bench.drain(stream);
    bench.write(&[Put("a")]);
    bench.write(&[Delete("a")]);
    let told: Vec<_> =
        bench.drain(stream).iter().map(|answer| (answer.watch_id, revision(answer))).collect();
    assert_eq!(told, [(1, 2), (0, 3)]);
}

#[test]
fn synced_watcher_gets_one_response_per_revision_that_states_it() {
    let mut bench = Bench::new();
    let stream = created(&mut bench, watch(KeyRange::Between("a".into(), "c".into())));
    bench.history.write(&[Put("b"), Put("z"), Put("a")]);
    bench.history.write(&[Put("a")]);
    bench.publish();
    let answers = bench.drain(stream);
    assert_eq!(events(&answers[0]), [("b".to_owned(), 2), ("a".to_owned(), 2)]);
    assert_eq!(events(&answers[1]), [("a".to_owned(), 3)]);
    assert_eq!((revision(&answers[0]), revision(&answers[1])), (2, 3));
}

#[test]
fn history_is_told_under_the_revision_of_the_head() {
    let mut bench = Bench::new();
    for _ in 0..3 {
        bench.write(&[Put("a")]);
    }
    let stream = created(&mut bench, CreateWatch { start: Revision(1), ..watch(all()) });
    bench.catch_up();
    let answers = bench.drain(stream);
    let told: Vec<_> =
        answers.iter().map(|answer| (answer.events.len(), revision(answer))).collect();
    assert_eq!(told, [(2, 4), (1, 4)], "two revisions at a time");
}

#[test]
fn full_queue_makes_a_watcher_lag_and_loses_nothing() {
    let mut bench = Bench::with_queue(2);
    let slow = created(&mut bench, single("a"));
    let fast = created(&mut bench, single("a"));
    let mut heard = Vec::new();
    for _ in 0..6 {
        bench.write(&[Put("a")]);
        heard.extend(bench.drain(fast).iter().flat_map(events));
    }
    let expected: Vec<_> = (2..=7).map(|revision| ("a".to_owned(), revision)).collect();
    assert_eq!(heard, expected, "others are not held up");
    assert!(!bench.hub.is_behind(), "a watcher without room does not read history");
    assert!(!bench.hub.accepts(slow));
    let mut heard: Vec<_> = bench.drain(slow).iter().flat_map(events).collect();
    assert_eq!(heard, expected[..2]);
    while bench.hub.is_behind() {
        bench.catch_up();
        heard.extend(bench.drain(slow).iter().flat_map(events));
    }
    assert_eq!(heard, expected);
}

#[test]
fn slow_watcher_whose_history_was_compacted_meanwhile_is_canceled() {
    let mut bench = Bench::with_queue(1);
    let stream = created(&mut bench, single("a"));
    for _ in 0..4 {
        bench.write(&[Put("a")]);
    }
    bench.history.compacted = Revision(5);
    bench.drain(stream);
    bench.catch_up();
    assert_eq!(shape(&bench.drain(stream)[0]), (0, false, true, 5, ""));
}

#[test]
fn missed_batches_are_read_from_history() {
    let mut bench = Bench::new();
    let stream = created(&mut bench, single("a"));
    bench.write(&[Put("a")]);
    bench.history.write(&[Put("a")]);
    bench.publish_without_batches();
    bench.history.write(&[Put("a")]);
    bench.publish();
    bench.catch_up();
    let told: Vec<_> = bench.drain(stream).iter().flat_map(events).collect();
    assert_eq!(told, [("a".to_owned(), 2), ("a".to_owned(), 3), ("a".to_owned(), 4)]);
}

#[test]
fn only_watchers_that_asked_for_it_get_large_responses_in_fragments() {
    let mut bench = Bench::new();
    let stream = bench.open();
    bench.create(stream, CreateWatch { fragment: true, ..watch(all()) });
    bench.create(stream, watch(all()));
    bench.drain(stream);
    bench.write(&["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"].map(Put));
    let answers = bench.drain(stream);
    let (split, whole): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.watch_id == 0);
    assert_eq!((whole.len(), whole[0].events.len(), whole[0].fragment), (1, 12, false));
    assert!(1 < split.len(), "{split:?}");
    let (last, others) = split.split_last().expect("there are parts");
    assert!(!last.fragment && others.iter().all(|part| part.fragment));
    assert!(split.iter().all(|part| part.header == last.header));
    let parts: Vec<_> = split.iter().flat_map(|part| part.events.clone()).collect();
    assert_eq!(parts, whole[0].events);
}

#[test]
fn lagging_watchers_at_different_places_take_turns() {
    let mut bench = Bench::new();
    for _ in 0..40 {
        bench.write(&[Put("a")]);
    }
    let old = created(&mut bench, CreateWatch { start: Revision(1), ..single("a") });
    let recent = created(&mut bench, CreateWatch { start: Revision(40), ..single("a") });
    bench.hub.catch_up(&bench.history.clone());
    bench.hub.catch_up(&bench.history.clone());
    assert!(!bench.drain(old).is_empty(), "the old one had a turn");
    assert!(!bench.drain(recent).is_empty(), "the recent one does not wait for the old one");
}

#[test]
fn damaged_history_ends_the_streams_that_need_it_and_no_other() {
    let mut bench = Bench::new();
    bench.write(&[Put("a")]);
    let needs = created(&mut bench, CreateWatch { previous: true, ..single("a") });
    bench.create(needs, CreateWatch { previous: true, ..watch(all()) });
    let spared = created(&mut bench, single("a"));
    bench.history.damaged = true;
    bench.write(&[Put("a")]);
    assert_eq!(bench.hub.take_broken(), [needs]);
    assert!(!bench.hub.accepts(needs));
    assert_eq!(bench.drain(spared).len(), 1);
    bench.hub.close(needs);
    let late = created(&mut bench, CreateWatch { start: Revision(2), ..single("a") });
    bench.catch_up();
    assert_eq!(bench.hub.take_broken(), [late]);
}

#[test]
fn closed_stream_takes_its_watchers_along() {
    let mut bench = Bench::with_queue(1);
    let stream = created(&mut bench, single("a"));
    bench.create(stream, CreateWatch { start: Revision(1), progress_notify: true, ..single("a") });
    bench.write(&[Put("a")]);
    bench.write(&[Put("a")]);
    bench.hub.close(stream);
    assert_eq!((bench.hub.streams_len(), bench.hub.next_deadline()), (0, None));
    assert!(!bench.hub.is_behind());
    assert_eq!(bench.hub.take_dirty(), None);
    bench.write(&[Put("a")]);
}

#[test]
fn gap_does_not_send_an_idle_watcher_back_behind_the_compaction() {
    let mut bench = Bench::new();
    let stream = created(&mut bench, single("a"));
    for _ in 0..4 {
        bench.write(&[Put("b")]);
    }
    bench.history.compacted = Revision(5);
    bench.history.write(&[Put("a")]);
    bench.publish_without_batches();
    bench.catch_up();
    let told: Vec<_> = bench.drain(stream).iter().flat_map(events).collect();
    assert_eq!(told, [("a".to_owned(), 6)]);
}
