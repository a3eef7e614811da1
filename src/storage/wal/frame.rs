//! Records of the log as bytes.
//!
//! Decides the frame: etcd's, bit for bit. Used by the writer and by recovery.
//!
//! ```text
//!   | length LE8 | walpb.Record{type, crc, data} | 0-7 zeros |     always a multiple of 8 bytes
//!     length: low 56 bits = bytes of the record; top byte = 0x80 | zeros, if there are any
//!     crc:    CRC-32C over the data of all records of the log so far
//! ```
//!
//! A length of zero ends the file: segments are made of zeros before they are written.

use bytes::BufMut;
use prost::{
    Message,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_varint, skip_field},
};

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Metadata = 1,
    Entry = 2,
    State = 3,
    /// The checksum so far; begins a segment.
    Crc = 4,
    Snapshot = 5,
}

impl Kind {
    pub(super) const fn from_wire(kind: i64) -> Option<Self> {
        Some(match kind {
            1 => Self::Metadata,
            2 => Self::Entry,
            3 => Self::State,
            4 => Self::Crc,
            5 => Self::Snapshot,
            _ => return None,
        })
    }
}

pub(super) const LENGTH_BYTES: usize = 8;
const LENGTH_MASK: u64 = (1 << 56) - 1;
const TYPE_TAG: u8 = 0x08;
const CRC_TAG: u8 = 0x10;
const DATA_TAG: u8 = 0x1a;

/// Appends records to a buffer, keeping the checksum of the log.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    pub(super) crc: u32,
    pub(super) buffer: Vec<u8>,
    /// Reused for the record at hand.
    data: Vec<u8>,
}

impl Encoder {
    /// An encoder that continues a log whose checksum is `crc`.
    pub(super) fn new(crc: u32) -> Self {
        Self { crc, ..Self::default() }
    }

    /// Appends a record with the message as its data.
    pub(super) fn message(&mut self, kind: Kind, message: &impl Message) {
        self.data.clear();
        message.encode(&mut self.data).expect("a vector grows");
        self.crc = crc32c::crc32c_append(self.crc, &self.data);
        let Self { crc, buffer, data } = self;
        push(buffer, kind, *crc, Some(data));
    }

    /// Appends the record that begins a segment.
    pub(super) fn checksum(&mut self) {
        push(&mut self.buffer, Kind::Crc, self.crc, None);
    }
}

fn push(buffer: &mut Vec<u8>, kind: Kind, crc: u32, data: Option<&[u8]>) {
    let start = buffer.len();
    buffer.put_u64_le(0);
    buffer.put_u8(TYPE_TAG);
    buffer.put_u8(kind as u8);
    buffer.put_u8(CRC_TAG);
    encode_varint(u64::from(crc), buffer);
    if let Some(data) = data {
        buffer.put_u8(DATA_TAG);
        encode_varint(u64::try_from(data.len()).expect("lengths fit"), buffer);
        buffer.extend_from_slice(data);
    }
    let record_bytes = buffer.len() - start - LENGTH_BYTES;
    let zeros = record_bytes.next_multiple_of(8) - record_bytes;
    buffer.put_bytes(0, zeros);
    let mut length = u64::try_from(record_bytes).expect("lengths fit");
    if 0 < zeros {
        length |= (0x80 | u64::try_from(zeros).expect("less than eight")) << 56;
    }
    buffer[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
}

/// A record, borrowed from its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record<'s> {
    pub(super) kind: Kind,
    pub(super) crc: u32,
    pub(super) data: &'s [u8],
    /// The bytes of the frame.
    pub(super) bytes: usize,
}

/// What stands at a place of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame<'s> {
    /// A well-formed record; its checksum is for the caller to check.
    Record(Record<'s>),
    /// Nothing: zeros, or the end of the file.
    End,
    /// The file ends before the record does.
    CutShort,
    /// A frame of this many bytes with something else in it.
    Malformed(usize),
}

/// Reads the frame at the beginning of `bytes`, which go to the end of the file.
pub(super) fn read(bytes: &[u8]) -> Frame<'_> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return if bytes.is_empty() { Frame::End } else { Frame::CutShort };
    };
    let length = u64::from_le_bytes(*length);
    if length == 0 {
        return Frame::End;
    }
    let zeros = if length >> 63 == 1 { (length >> 56) & 7 } else { 0 };
    let (Ok(record_bytes), Ok(zeros)) =
        (usize::try_from(length & LENGTH_MASK), usize::try_from(zeros))
    else {
        return Frame::CutShort;
    };
    let Some(frame_bytes) = record_bytes.checked_add(zeros).filter(|&all| all <= rest.len()) else {
        return Frame::CutShort;
    };
    let bytes = LENGTH_BYTES + frame_bytes;
    match parse(&rest[..record_bytes], bytes) {
        Some(record) => Frame::Record(record),
        None => Frame::Malformed(bytes),
    }
}

/// Reads a `walpb.Record` without copying its data; `None` if it is something else.
fn parse(mut record: &[u8], bytes: usize) -> Option<Record<'_>> {
    let (mut kind, mut crc, mut data) = (0, 0, &[][..]);
    while !record.is_empty() {
        match decode_key(&mut record).ok()? {
            (1, WireType::Varint) => kind = decode_varint(&mut record).ok()?,
            // As everywhere in the wire format, a number that is too long is cut.
            (2, WireType::Varint) => crc = decode_varint(&mut record).ok()? & u64::from(u32::MAX),
            (3, WireType::LengthDelimited) => {
                let length = usize::try_from(decode_varint(&mut record).ok()?).ok()?;
                (data, record) = record.split_at_checked(length)?;
            }
            (1..=3, _) => return None,
            (tag, other) => skip_field(other, tag, &mut record, DecodeContext::default()).ok()?,
        }
    }
    let kind = Kind::from_wire(kind.cast_signed())?;
    Some(Record { kind, crc: u32::try_from(crc).expect("cut above"), data, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{
        collection::vec,
        prelude::{any, prop_assert_eq, proptest},
    };
    use proto::raftpb::Entry;

    fn entry(data: Vec<u8>) -> Entry {
        Entry { index: Some(7), term: Some(2), r#type: Some(0), data: Some(data.into()) }
    }

    #[test]
    fn frames_are_multiples_of_eight_bytes_and_say_their_padding() {
        let mut encoder = Encoder::new(0);
        encoder.checksum();
        assert_eq!(encoder.buffer, [4, 0, 0, 0, 0, 0, 0, 0x84, 8, 4, 16, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn ends_and_cuts_are_told_apart() {
        let mut encoder = Encoder::new(0);
        encoder.message(Kind::Entry, &entry(vec![1; 50]));
        let whole = encoder.buffer;
        assert_eq!(read(&[]), Frame::End);
        assert_eq!(read(&[0; 64]), Frame::End);
        for length in 1..whole.len() {
            assert_eq!(read(&whole[..length]), Frame::CutShort, "{length} bytes");
        }
        let mut huge = whole;
        huge[..8].copy_from_slice(&(u64::MAX >> 9).to_le_bytes());
        assert_eq!(read(&huge), Frame::CutShort, "a length beyond every file");
    }

    proptest! {
        #[test]
        fn records_read_back_with_their_checksum(
            first in vec(any::<u8>(), 0..100), second in vec(any::<u8>(), 0..100), seed in any::<u32>(),
        ) {
            let mut encoder = Encoder::new(seed);
            encoder.message(Kind::Entry, &entry(first.clone()));
            encoder.message(Kind::Entry, &entry(second.clone()));
            let mut crc = seed;
            let mut at = 0;
            for data in [first, second] {
                let Frame::Record(record) = read(&encoder.buffer[at..]) else { panic!("no record") };
                crc = crc32c::crc32c_append(crc, record.data);
                prop_assert_eq!((record.kind, record.crc), (Kind::Entry, crc));
                prop_assert_eq!(Entry::decode(record.data).unwrap(), entry(data));
                prop_assert_eq!(record.bytes % 8, 0);
                at += record.bytes;
            }
            prop_assert_eq!((at, encoder.crc), (encoder.buffer.len(), crc));
        }
    }
}
