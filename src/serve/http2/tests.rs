//! A connection under every kind of client.

use std::{collections::HashMap, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::{
    Connection, End, Event, Key, PREFACE, Settings,
    frame::{self, Code, Frame, Last, Setting, StreamId},
};

const SETTINGS: Settings = Settings {
    streams_max: 100,
    stream_window: 1 << 20,
    connection_window: 8 << 20,
    fields_bytes_max: 4 << 10,
    ping_interval_min: Duration::from_secs(5),
};

/// `POST http /a`, as indexed and plain literals.
const REQUEST: &[u8] = b"\x83\x86\x04\x02/a\x00\x02te\x08trailers";

/// A server's end and what it heard and said.
struct Server {
    connection: Connection,
    input: BytesMut,
    now: Duration,
    events: Vec<String>,
    keys: HashMap<StreamId, Key>,
    broken: Option<&'static str>,
}

impl Server {
    fn new() -> Self {
        Self::with(SETTINGS)
    }

    fn with(settings: Settings) -> Self {
        Self {
            connection: Connection::new(settings),
            input: BytesMut::new(),
            now: Duration::ZERO,
            events: Vec::new(),
            keys: HashMap::new(),
            broken: None,
        }
    }

    /// A server that has greeted a client.
    fn open() -> Self {
        let mut server = Self::new();
        server.hear(&greeting());
        server.say();
        server
    }

    fn hear(&mut self, bytes: &[u8]) {
        self.input.put_slice(bytes);
        while self.broken.is_none() {
            match self.connection.next(&mut self.input, self.now) {
                Ok(Some(event)) => self.note(event),
                Ok(None) => return,
                Err(reason) => self.broken = Some(reason),
            }
        }
    }

    fn note(&mut self, event: Event) {
        let text = match event {
            Event::Request { key, last, .. } => {
                self.keys.insert(key.id, key);
                let count = self.connection.fields().iter().count();
                format!("{} request of {count} fields{}", key.id.0, end(last))
            }
            Event::Data { key, data, last } => {
                let bytes = u32::try_from(data.len()).expect("frames are small");
                self.connection.release(key, bytes);
                format!("{} {:?}{}", key.id.0, data, end(last))
            }
            Event::End { key } => format!("{} end", key.id.0),
            Event::Reset { key } => format!("{} reset", key.id.0),
            Event::Room { key } => format!("{} room", key.id.0),
        };
        self.events.push(text);
    }

    /// What it sends, as frames.
    fn say(&mut self) -> Vec<Frame> {
        let mut output = BytesMut::from(&std::mem::take(self.connection.output())[..]);
        let mut frames = Vec::new();
        while let Some(frame) = frame::next(&mut output).expect("we speak the protocol") {
            frames.push(frame);
        }
        assert!(output.is_empty(), "half a frame is left");
        frames
    }

    fn take_events(&mut self) -> Vec<String> {
        std::mem::take(&mut self.events)
    }
}

const fn end(last: bool) -> &'static str {
    if last { ", the last" } else { "" }
}

fn bytes(put: impl FnOnce(&mut Vec<u8>)) -> BytesMut {
    let mut out = Vec::new();
    put(&mut out);
    BytesMut::from(&out[..])
}

fn greeting() -> BytesMut {
    bytes(|out| {
        out.put_slice(PREFACE);
        frame::put_settings(&[], out);
    })
}

fn request(id: u32, last: Last) -> BytesMut {
    bytes(|out| frame::put_headers(StreamId(id), REQUEST, last, out))
}

/// Any frame at all, by its parts.
fn raw(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> BytesMut {
    bytes(|out| {
        out.put_uint(payload.len() as u64, 3);
        out.put_slice(&[kind, flags]);
        out.put_u32(stream);
        out.put_slice(payload);
    })
}

/// The key of some stream.
pub(in crate::serve) fn first_request() -> Key {
    let mut server = Server::open();
    server.hear(&request(1, Last::Yes));
    server.keys[&StreamId(1)]
}

fn resets(frames: &[Frame]) -> Vec<u32> {
    let id = |frame: &Frame| match frame {
        Frame::Reset { stream } => Some(stream.0),
        Frame::Data { .. }
        | Frame::Headers { .. }
        | Frame::Continuation { .. }
        | Frame::Settings(_)
        | Frame::SettingsAck
        | Frame::Ping(_)
        | Frame::PingAck(_)
        | Frame::GoAway
        | Frame::WindowUpdate { .. }
        | Frame::Ignored => None,
    };
    frames.iter().filter_map(id).collect()
}

#[test]
fn call_with_content_and_its_answer() {
    let mut server = Server::open();
    server.hear(&request(1, Last::No));
    server.hear(&bytes(|out| frame::put_data(StreamId(1), b"ask", Last::Yes, out)));
    assert_eq!(server.take_events(), ["1 request of 4 fields", "1 b\"ask\", the last"]);
    server.connection.answer(server.keys[&StreamId(1)], Bytes::from_static(b"tell"));
    let frames = server.say();
    assert!(matches!(frames[0], Frame::Headers { last: false, complete: true, .. }), "{frames:?}");
    let data = Bytes::from_static(b"tell");
    let expected = Frame::Data { stream: StreamId(1), data, flow_bytes: 4, last: false };
    assert_eq!(frames[1], expected);
    assert!(matches!(frames[2], Frame::Headers { last: true, complete: true, .. }), "{frames:?}");
    assert_eq!(frames.len(), 3, "the stream has ended on both sides");
}

#[test]
fn answer_before_the_end_of_the_question_stops_the_client() {
    let mut server = Server::open();
    server.hear(&request(1, Last::No));
    let end = End::Failure { code: "8", text: "too large".to_owned() };
    server.connection.finish(server.keys[&StreamId(1)], end);
    let frames = server.say();
    assert!(matches!(frames[0], Frame::Headers { last: true, .. }), "{frames:?}");
    assert_eq!(resets(&frames), [1]);
    server.hear(&bytes(|out| frame::put_data(StreamId(1), b"late", Last::Yes, out)));
    assert_eq!((server.events.len(), server.broken), (1, None), "late content is ignored");
}

#[test]
fn blocks_in_pieces_padding_and_priorities_are_read() {
    let mut server = Server::open();
    let padded = [&[3, 0, 0, 0, 0, 9][..], &REQUEST[..5], &[0; 3]].concat();
    server.hear(&raw(1, 0x28, 1, &padded));
    server.hear(&raw(9, 0, 1, &REQUEST[5..9]));
    server.hear(&raw(9, 4, 1, &REQUEST[9..]));
    server.hear(&raw(2, 0, 1, &[0; 5]));
    server.hear(&raw(0, 9, 1, b"\x02hi\0\0"));
    server.hear(&raw(77, 0, 1, b"unknown"));
    assert_eq!(server.take_events(), ["1 request of 4 fields", "1 b\"hi\", the last"]);
    assert_eq!(server.broken, None);
}

#[test]
fn request_that_is_the_same_as_before_is_told_so() {
    let mut server = Server::open();
    let added = b"\x83\x86\x44\x02/b";
    let indexed = b"\x83\x86\xbe";
    let mut path_of = |id, block: &[u8]| {
        server.input.put_slice(&raw(1, 5, id, block));
        let event = server.connection.next(&mut server.input, Duration::ZERO).expect("fine");
        let Some(Event::Request { repeated, .. }) = event else { panic!("{event:?}") };
        let path = server.connection.fields().pseudo().path.to_vec();
        (String::from_utf8(path).expect("a text"), repeated)
    };
    let is = |path: &str, repeated| (path.to_owned(), repeated);
    assert_eq!(path_of(1, REQUEST), is("/a", false));
    assert_eq!(path_of(3, REQUEST), is("/a", true));
    assert_eq!(path_of(5, added), is("/b", false));
    assert_eq!(path_of(7, added), is("/b", false), "it changes the table");
    assert_eq!(path_of(9, indexed), is("/b", false));
    assert_eq!(path_of(11, indexed), is("/b", true));
    assert_eq!(path_of(13, b"\x83\x86\x44\x02/c"), is("/c", false));
    assert_eq!(path_of(15, indexed), is("/c", false), "the same block means another path");
}

#[test]
fn trailers_of_a_client_end_its_question() {
    let mut server = Server::open();
    server.hear(&request(1, Last::No));
    server.hear(&raw(1, 5, 1, b"\x00\x01a\x01b"));
    assert_eq!(server.take_events(), ["1 request of 4 fields", "1 end"]);
}

#[test]
fn mistakes_that_end_a_connection() {
    let open = |bytes: BytesMut| {
        let mut server = Server::open();
        server.hear(&request(1, Last::No));
        server.hear(&bytes);
        assert!(matches!(server.say().last(), Some(Frame::GoAway)), "{:?}", server.events);
        server.broken.expect("over")
    };
    for (frame, reason) in [
        (raw(0, 0, 0, b""), "a frame of a stream names the connection"),
        (raw(0, 0, 3, b"x"), "a frame names a stream that was never opened"),
        (raw(0, 8, 1, b""), "a padded frame has no length of its padding"),
        (raw(0, 8, 1, b"\x05abc"), "a frame has more padding than bytes"),
        (raw(0, 0, 1, &[0; 16_385]), "a frame is larger than allowed"),
        (raw(1, 4, 2, REQUEST), "a client opens a stream with an even number"),
        (raw(1, 4, 3, b"\xff"), "a block of fields cannot be read"),
        (raw(1, 0x24, 3, b"abc"), "a priority is cut short"),
        (raw(3, 0, 1, b"abc"), "a reset has another size than 4"),
        (raw(3, 0, 5, b"abcd"), "a frame names a stream that was never opened"),
        (raw(4, 0, 1, b""), "a frame of the connection names a stream"),
        (raw(4, 1, 0, b"123456"), "an acknowledgement of settings has a payload"),
        (raw(4, 0, 0, b"12345"), "settings are cut short"),
        (raw(4, 0, 0, b"\0\x02\0\0\0\x02"), "a switch is neither on nor off"),
        (raw(4, 0, 0, b"\0\x04\xff\0\0\0"), "a window is too large"),
        (raw(4, 0, 0, b"\0\x05\0\0\0\x01"), "a frame size is out of bounds"),
        (raw(5, 0, 1, b"abcd"), "a client pushes nothing"),
        (raw(6, 0, 0, b"abcd"), "a ping has another size than 8"),
        (raw(7, 0, 0, b"abcd"), "a goodbye is cut short"),
        (raw(8, 0, 0, &[0; 4]), "a window grows by nothing"),
        (raw(8, 0, 0, &[0x7f, 255, 255, 255]), "a window is larger than it can be"),
        (raw(9, 4, 1, b""), "a block of fields continues that has not begun"),
    ] {
        assert_eq!(open(frame.clone()), reason, "{frame:?}");
    }
    let interrupted = [raw(1, 0, 3, REQUEST), raw(6, 0, 0, &[0; 8])].concat();
    assert_eq!(open(BytesMut::from(&interrupted[..])), "a block of fields is interrupted");
    let mut server = Server::new();
    server.hear(b"GET / HTTP/1.1\r\n");
    assert_eq!(server.broken, Some("the client does not speak HTTP/2"));
    let mut server = Server::new();
    server.hear(&[PREFACE, &request(1, Last::Yes)[..]].concat());
    assert_eq!(server.broken, Some("the first frame is not settings"));
}

#[test]
fn mistakes_that_end_a_stream_only() {
    for mistake in [
        raw(1, 4, 1, REQUEST),
        raw(2, 0, 1, &[0; 4]),
        raw(8, 0, 1, &[0; 4]),
        raw(8, 0, 1, &[0x7f, 255, 255, 255]),
    ] {
        let mut server = Server::open();
        server.hear(&request(1, Last::No));
        server.hear(&mistake);
        assert_eq!(server.take_events()[1..], ["1 reset"], "{mistake:?}");
        assert_eq!((resets(&server.say()), server.broken), (vec![1], None), "{mistake:?}");
        server.hear(&request(3, Last::Yes));
        assert_eq!(server.take_events(), ["3 request of 4 fields, the last"], "it goes on");
    }
    let mut server = Server::open();
    server.hear(&request(1, Last::Yes));
    server.hear(&bytes(|out| frame::put_data(StreamId(1), b"more", Last::No, out)));
    assert_eq!(resets(&server.say()), [1], "content after the end");
    server.hear(&raw(1, 5, 3, b"\x83\x86"));
    assert_eq!(resets(&server.say()), [3], "a request without a path");
    let large = [REQUEST, b"\x00\x01a\x7f\x81\x1f", &[b'x'; 4096]].concat();
    server.hear(&raw(1, 5, 5, &large));
    assert_eq!(resets(&server.say()), [5], "more fields than allowed");
    for id in 0..101 {
        server.hear(&request(7 + 2 * id, Last::Yes));
    }
    assert_eq!(resets(&server.say()), [207], "more streams than allowed");
    assert_eq!(server.broken, None);
}

// Clients of grpc-go measure the way to the server with a ping after each answer that they read.
#[test]
fn client_may_ping_after_each_answer_for_ever() {
    let mut server = Server::open();
    for round in 0..10_000 {
        let id = 1 + 2 * round;
        server.hear(&request(id, Last::Yes));
        server.connection.answer(server.keys[&StreamId(id)], Bytes::from_static(b"tell"));
        server.hear(&raw(6, 0, 0, &[0; 8]));
        assert_eq!(server.broken, None, "after {round} answers");
        assert!(matches!(server.say().last(), Some(Frame::PingAck(_))), "every ping is answered");
        server.take_events();
    }
}

#[test]
fn floods_are_ended() {
    let ended = |frame: &dyn Fn(u32) -> BytesMut| {
        let mut server = Server::open();
        server.hear(&request(1, Last::No));
        for round in 0..100_000 {
            server.hear(&frame(round));
            server.say();
            if let Some(reason) = server.broken {
                return reason;
            }
        }
        panic!("it goes on for ever");
    };
    assert_eq!(ended(&|_| raw(4, 0, 0, b"")), "too much to be answered");
    assert_eq!(ended(&|_| raw(0, 0, 1, b"")), "too much to be answered");
    assert_eq!(ended(&|_| raw(6, 0, 0, &[0; 8])), "too_many_pings");
    let endless = |round| if round == 0 { raw(1, 0, 3, b"") } else { raw(9, 0, 3, b"") };
    assert_eq!(ended(&endless), "a block of fields is endless");
    let rapid = |round| {
        let id = 3 + 2 * round;
        let reset = bytes(|out| frame::put_reset(StreamId(id), Code::NO_ERROR, out));
        BytesMut::from(&[request(id, Last::Yes), reset].concat()[..])
    };
    assert_eq!(ended(&rapid), "too many requests are taken back");
}

#[test]
fn client_that_takes_no_answers_gets_no_more_of_them() {
    let mut server = Server::open();
    let mut refused = Vec::new();
    for round in 0..70 {
        let id = 1 + 2 * round;
        server.hear(&request(id, Last::Yes));
        if let Some(key) = server.keys.get(&StreamId(id)) {
            server.connection.send(*key, vec![0; 1 << 20].into());
        }
        refused.extend(resets(&server.say()));
    }
    assert_eq!(refused, [131, 133, 135, 137, 139], "after 65 answers of a megabyte");
    server.hear(&bytes(|out| frame::put_reset(StreamId(1), Code::NO_ERROR, out)));
    server.hear(&bytes(|out| frame::put_reset(StreamId(3), Code::NO_ERROR, out)));
    server.hear(&request(141, Last::Yes));
    assert!(server.keys.contains_key(&StreamId(141)), "there is room again");
}

#[test]
fn streams_that_end_while_they_wait_leave_nothing_behind() {
    let mut server = Server::open();
    for round in 0..5000 {
        let id = 1 + 2 * round;
        server.hear(&request(id, Last::Yes));
        server.connection.send(server.keys[&StreamId(id)], vec![0; 70_000].into());
        server.say();
        if 0 < round {
            server.hear(&bytes(|out| frame::put_reset(StreamId(id), Code::NO_ERROR, out)));
        }
        server.take_events();
    }
    assert_eq!(server.broken, None);
    let waiting = server.connection.waiting.len();
    assert!(waiting <= 1002, "{waiting} streams wait, of which one is open");
    assert_eq!(server.connection.unsent_bytes, 70_000 - 65_535, "of the one that is open");
}

#[test]
fn end_of_a_connection_is_announced_and_open_calls_are_answered() {
    let mut server = Server::open();
    server.hear(&request(1, Last::Yes));
    server.connection.drain();
    let frames = server.say();
    let [Frame::GoAway, Frame::Ping(payload)] = frames[..] else { panic!("{frames:?}") };
    server.hear(&request(3, Last::Yes));
    assert_eq!(server.take_events().len(), 2, "the client did not know");
    server.hear(&raw(6, 1, 0, &payload));
    assert!(matches!(server.say()[..], [Frame::GoAway]), "now it does");
    server.hear(&request(5, Last::Yes));
    assert!(server.take_events().is_empty(), "it was told");
    for id in [1, 3] {
        assert!(!server.connection.is_drained(), "stream {id} is open");
        server.connection.finish(server.keys[&StreamId(id)], End::Ok);
    }
    assert!(server.connection.is_drained(), "nothing is left");
}

/// Something that clients do.
fn frames() -> impl Strategy<Value = BytesMut> {
    let id = || prop::sample::select(vec![0u32, 1, 1, 3, 5, 7, 9, 2]);
    let window = (id(), any::<u32>())
        .prop_map(|(id, by)| bytes(|out| frame::put_window_update(StreamId(id), by, out)));
    let data = (id(), prop::collection::vec(any::<u8>(), 0..40), any::<bool>()).prop_map(
        |(id, data, last)| {
            let last = if last { Last::Yes } else { Last::No };
            bytes(|out| frame::put_data(StreamId(id), &data, last, out))
        },
    );
    prop_oneof![
        4 => id().prop_map(|id| request(id, Last::No)),
        4 => data,
        1 => window,
        1 => id().prop_map(|id| bytes(|out| frame::put_reset(StreamId(id), Code::NO_ERROR, out))),
        1 => any::<[u8; 8]>().prop_map(|payload| raw(6, 0, 0, &payload)),
        1 => (1..6u16, any::<u32>())
            .prop_map(|setting| bytes(|out| frame::put_settings(&[setting], out))),
        1 => (any::<u8>(), any::<u8>(), id(), prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(kind, flags, id, payload)| raw(kind, flags, id, &payload)),
    ]
}

proptest! {
    #[test]
    fn events_are_the_same_however_the_bytes_are_cut(
        frames in prop::collection::vec(frames(), 0..30),
        cuts in prop::collection::vec(1usize..50, 1..10),
    ) {
        let all = [greeting(), frames.concat().as_slice().into()].concat();
        let (mut whole, mut cut) = (Server::new(), Server::new());
        whole.hear(&all);
        let mut rest = &all[..];
        for length in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at((*length).min(rest.len()));
            cut.hear(now);
            rest = later;
        }
        prop_assert_eq!(&whole.events, &cut.events);
        prop_assert_eq!(whole.broken, cut.broken);
        prop_assert_eq!(whole.say(), cut.say());
    }

    #[test]
    fn content_arrives_whole_within_the_windows_of_the_client(
        sizes in prop::collection::vec(0usize..200_000, 1..6),
        window in 0u32..100_000,
        payload_max in 16_384u32..100_000,
        steps in prop::collection::vec((0usize..7, 1u32..50_000), 0..200),
    ) {
        let mut server = Server::new();
        server.hear(&bytes(|out| {
            out.put_slice(PREFACE);
            frame::put_settings(&[(4, window), (5, payload_max)], out);
        }));
        let mut client = Client::new(payload_max);
        for (stream, size) in (0..).zip(&sizes) {
            let id = StreamId(1 + 2 * stream);
            server.hear(&request(id.0, Last::Yes));
            server.connection.answer(server.keys[&id], vec![7; *size].into());
            client.rooms.insert(id, window.into());
        }
        client.listen(&mut server);
        for (stream, by) in steps {
            let id = u32::try_from(stream).expect("small") * 2;
            let id = StreamId(id.saturating_sub(1));
            client.grant(&mut server, id, by);
        }
        // In the end there is room for everything.
        client.grant(&mut server, StreamId(0), 2_000_000);
        for (stream, size) in (0..).zip(sizes) {
            let id = StreamId(1 + 2 * stream);
            client.grant(&mut server, id, 300_000);
            prop_assert_eq!(client.received.get(&id).copied().unwrap_or(0), size);
            prop_assert!(client.ended.contains(&id), "{:?} has not ended", id);
        }
        prop_assert_eq!(server.broken, None);
    }

    #[test]
    fn settings_of_a_client_are_read_as_they_are(id in 0u16..10, value in any::<u32>()) {
        let payload = bytes(|out| {
            out.put_u16(id);
            out.put_u32(value);
        });
        let read: Vec<_> = frame::settings(payload.freeze()).collect();
        match (id, read.as_slice()) {
            (1, [Ok(setting)]) => prop_assert_eq!(*setting, Setting::HeaderTableBytes(value)),
            (4, [Ok(setting)]) => prop_assert_eq!(*setting, Setting::InitialWindow(value)),
            (5, [Ok(setting)]) => prop_assert_eq!(*setting, Setting::PayloadBytesMax(value)),
            (2 | 4 | 5, [Err(_)]) | (_, []) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A client that keeps to the books of flow control.
struct Client {
    room: i64,
    rooms: HashMap<StreamId, i64>,
    payload_max: usize,
    received: HashMap<StreamId, usize>,
    ended: Vec<StreamId>,
}

impl Client {
    fn new(payload_max: u32) -> Self {
        Self {
            room: frame::WINDOW_DEFAULT.into(),
            rooms: HashMap::new(),
            payload_max: usize::try_from(payload_max).expect("small"),
            received: HashMap::new(),
            ended: Vec::new(),
        }
    }

    fn grant(&mut self, server: &mut Server, id: StreamId, by: u32) {
        if id == StreamId(0) {
            self.room += i64::from(by);
        } else if let Some(room) = self.rooms.get_mut(&id) {
            *room += i64::from(by);
        } else {
            return;
        }
        server.hear(&bytes(|out| frame::put_window_update(id, by, out)));
        self.listen(server);
    }

    fn listen(&mut self, server: &mut Server) {
        loop {
            let output = std::mem::take(server.connection.output());
            let frames = self.read(&mut BytesMut::from(&output[..]));
            server.connection.resume();
            if frames == 0 {
                return;
            }
        }
    }

    /// Reads frames, larger ones than servers take, and checks each against the windows.
    fn read(&mut self, output: &mut BytesMut) -> usize {
        let mut frames = 0;
        while !output.is_empty() {
            let head = output.split_to(frame::HEAD_BYTES);
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let id = StreamId(u32::from_be_bytes([head[5], head[6], head[7], head[8]]));
            let payload = output.split_to(usize::try_from(length).expect("small"));
            frames += 1;
            if head[3] == 1 && head[4] & 1 == 1 {
                self.ended.push(id);
            }
            if head[3] == 0 {
                assert!(payload.len() <= self.payload_max, "a payload of {length} bytes");
                self.room -= i64::from(length);
                let room = self.rooms.get_mut(&id).expect("an open stream");
                *room -= i64::from(length);
                assert!(0 <= self.room && 0 <= *room, "{length} bytes too many on {id:?}");
                *self.received.entry(id).or_default() += payload.len();
            }
        }
        frames
    }
}
