//! Round trips, bytes of etcd's own encoders, and bytes of nobody.

use bytes::{BufMut as _, Bytes, BytesMut};
use proptest::{collection::vec, prelude::*};
use proto::raftpb::{
    ConfState, Entry, EntryType, Message, MessageType, Snapshot, SnapshotMetadata,
};

use super::{DecodeError, Decoder, Encoder, FRAME_BYTES_MAX};
use crate::{
    model::MemberId,
    transport::kind::{StreamKind, link_heartbeat},
};

const SENDER: u64 = 1;
const RECEIVER: u64 = 2;

fn decoder(kind: StreamKind) -> Decoder {
    Decoder::new(kind, MemberId(RECEIVER), MemberId(SENDER))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn entry(term: u64, index: u64, data: &'static str) -> Entry {
    Entry {
        term: Some(term),
        index: Some(index),
        r#type: Some(EntryType::EntryNormal.into()),
        data: Some(data).filter(|data| !data.is_empty()).map(Bytes::from),
    }
}

fn append(term: u64, log_term: u64, index: u64, commit: u64, entries: Vec<Entry>) -> Message {
    Message {
        r#type: Some(MessageType::MsgApp.into()),
        from: Some(SENDER),
        to: Some(RECEIVER),
        term: Some(term),
        log_term: Some(log_term),
        index: Some(index),
        commit: Some(commit),
        entries,
        ..Message::default()
    }
}

/// A message to the usual receiver, with what `change` adds.
fn message(kind: MessageType, change: impl FnOnce(&mut Message)) -> Message {
    let mut message = Message {
        r#type: Some(kind.into()),
        from: Some(SENDER),
        to: Some(RECEIVER),
        term: Some(7),
        ..Message::default()
    };
    change(&mut message);
    message
}

/// Encodes `messages` as etcd 3.7.1 did, and decodes them again.
fn check_golden(kind: StreamKind, messages: &[(Message, &str)]) {
    let mut encoder = Encoder::new(kind);
    let mut decoder = decoder(kind);
    for (message, golden) in messages {
        let mut bytes = BytesMut::new();
        encoder.encode(message, &mut bytes);
        assert_eq!(hex(&bytes), *golden, "{message:?}");
        let decoded = decoder.decode(&mut bytes).expect("well-formed");
        assert_eq!(decoded.as_ref(), Some(message));
        assert!(bytes.is_empty(), "left after {message:?}");
    }
}

#[test]
fn the_append_stream_has_the_bytes_of_etcd() {
    check_golden(
        StreamKind::Append,
        &[
            (link_heartbeat(), "00"),
            (
                append(5, 4, 10, 9, vec![entry(5, 11, "first"), entry(5, 12, "")]),
                "02000000000000002508031002180120052804300a3a0d08001005180b220566697273743a0608001005\
                 180c4009",
            ),
            (
                append(5, 5, 12, 11, vec![entry(5, 13, "x"), entry(5, 14, "yy")]),
                "010000000000000002000000000000000908001005180d220178000000000000000a08001005180e2202\
                 7979000000000000000b",
            ),
            (append(5, 5, 14, 14, vec![]), "010000000000000000000000000000000e"),
            (
                append(5, 5, 13, 14, vec![entry(5, 14, "again")]),
                "02000000000000001d08031002180120052805300d3a0d08001005180e2205616761696e400e",
            ),
            (
                append(6, 5, 14, 14, vec![entry(6, 15, "z")]),
                "02000000000000001908031002180120062805300e3a0908001006180f22017a400e",
            ),
            (link_heartbeat(), "00"),
        ],
    );
}

#[test]
fn the_message_stream_has_the_bytes_of_etcd() {
    let conf_state = ConfState { voters: vec![1, 2], learners: vec![3], ..ConfState::default() };
    let metadata =
        SnapshotMetadata { conf_state: Some(conf_state), index: Some(100), term: Some(6) };
    let snapshot = Snapshot { data: Some(Bytes::from_static(b"d")), metadata: Some(metadata) };
    check_golden(
        StreamKind::Message,
        &[
            (link_heartbeat(), "00000000000000020808"),
            (
                message(MessageType::MsgVoteResp, |message| {
                    message.from = Some(0xfedc_ba98_7654_3210);
                    message.reject = Some(true);
                }),
                "0000000000000013080610021890e4d0b287d3aeeefe0120075001",
            ),
            (
                message(MessageType::MsgHeartbeat, |message| {
                    message.commit = Some(300);
                    message.context = Some(Bytes::from_static(b"ctx"));
                }),
                "0000000000000010080810021801200740ac026203637478",
            ),
            (
                message(MessageType::MsgAppResp, |message| {
                    message.log_term = Some(6);
                    message.index = Some(9);
                    message.reject = Some(true);
                    message.reject_hint = Some(8);
                    message.vote = Some(3);
                }),
                "0000000000000012080410021801200728063009500158086803",
            ),
            (
                message(MessageType::MsgSnap, |message| message.snapshot = Some(snapshot)),
                "000000000000001b08071002180120074a110a0164120c0a0608010802100310641806",
            ),
        ],
    );
}

#[test]
fn a_claimed_length_reserves_nothing() {
    for (kind, head) in [(StreamKind::Append, &[2_u8][..]), (StreamKind::Message, &[])] {
        let mut input = BytesMut::from(head);
        input.put_u64(FRAME_BYTES_MAX);
        input.put_slice(b"some");
        let mut decoder = decoder(kind);
        assert_eq!(decoder.decode(&mut input), Ok(None));
        assert!(input.capacity() < 1 << 10, "{} bytes are reserved", input.capacity());

        let mut input = BytesMut::from(head);
        input.put_u64(FRAME_BYTES_MAX + 1);
        let too_large = DecodeError::TooLarge { bytes: FRAME_BYTES_MAX + 1 };
        assert_eq!(self::decoder(kind).decode(&mut input), Err(too_large));
    }
}

#[test]
fn many_empty_entries_are_a_large_frame() {
    let mut decoder = decoder(StreamKind::Append);
    let mut input = BytesMut::from(&[1_u8][..]);
    input.put_u64(u64::MAX);
    let mut entries = 0_u64;
    let refused = loop {
        input.put_bytes(0, 8 << 10);
        match decoder.decode(&mut input) {
            Ok(message) => assert_eq!(message, None, "after {entries}"),
            Err(refused) => break refused,
        }
        entries += 1 << 10;
        assert!(entries * 8 < FRAME_BYTES_MAX, "no limit");
    };
    assert_eq!(refused, DecodeError::TooLarge { bytes: 0 });
}

#[test]
fn an_unknown_frame_ends_the_stream() {
    let mut input = BytesMut::from(&[3_u8, 0, 0][..]);
    let refused = decoder(StreamKind::Append).decode(&mut input);
    assert_eq!(refused, Err(DecodeError::Unknown { kind: 3 }));
}

fn any_entry() -> impl Strategy<Value = Entry> {
    (1..4_u64, any::<u64>(), vec(any::<u8>(), 0..40)).prop_map(|(term, index, data)| Entry {
        term: Some(term),
        index: Some(index),
        r#type: Some(0),
        data: Some(data.into()),
    })
}

/// Appends as raft sends them: most go on where the one before ended.
fn any_appends() -> impl Strategy<Value = Vec<Message>> {
    vec((vec(any_entry(), 0..4), 0..4_u64, 0..10_u8, any::<u64>()), 0..20).prop_map(|parts| {
        let (mut term, mut index) = (1, 10);
        let append = |(mut entries, jump, odd, commit): (Vec<Entry>, u64, u8, u64)| {
            let log_term = term;
            match odd {
                0 => return link_heartbeat(),
                1 => index += jump,
                2 => term += jump,
                _ => {}
            }
            let begin = index;
            for entry in &mut entries {
                index += 1;
                (entry.term, entry.index) = (Some(term), Some(index));
            }
            append(term, log_term, begin, commit, entries)
        };
        parts.into_iter().map(append).collect()
    })
}

/// Sends `messages` in pieces of `piece` bytes.
fn check_round_trip(kind: StreamKind, messages: &[Message], piece: usize) {
    let mut encoder = Encoder::new(kind);
    let mut bytes = BytesMut::new();
    for message in messages {
        encoder.encode(message, &mut bytes);
    }
    let mut decoder = decoder(kind);
    let mut input = BytesMut::new();
    let mut decoded = Vec::new();
    for part in bytes.chunks(piece) {
        input.extend_from_slice(part);
        while let Some(message) = decoder.decode(&mut input).expect("well-formed") {
            decoded.push(message);
        }
    }
    assert_eq!(decoded, messages);
    assert!(input.is_empty(), "{} bytes are left", input.len());
}

proptest! {
    #[test]
    fn messages_survive_a_stream_in_any_pieces(
        messages in any_appends(),
        piece in 1..100_usize,
    ) {
        for kind in StreamKind::ALL {
            check_round_trip(kind, &messages, piece);
        }
    }

    #[test]
    fn bytes_of_nobody_end_a_stream_at_worst(bytes in vec(any::<u8>(), 0..200)) {
        for kind in StreamKind::ALL {
            let mut decoder = decoder(kind);
            let mut input = BytesMut::from(bytes.as_slice());
            while let Ok(Some(_)) = decoder.decode(&mut input) {}
            prop_assert!(input.capacity() < 1 << 10, "{} bytes are reserved", input.capacity());
        }
    }

    #[test]
    fn damaged_streams_end_at_worst(
        messages in any_appends(),
        at in any::<prop::sample::Index>(),
        with in any::<u8>(),
    ) {
        for kind in StreamKind::ALL {
            let mut encoder = Encoder::new(kind);
            let mut bytes = BytesMut::new();
            for message in &messages {
                encoder.encode(message, &mut bytes);
            }
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = with;
            }
            let mut decoder = decoder(kind);
            while let Ok(Some(_)) = decoder.decode(&mut bytes) {}
        }
    }
}
