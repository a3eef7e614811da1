//! The header fields that we send.
//!
//! Decides how an answer begins and ends on the wire. Nearly all answers have the same two blocks:
//! status 200 with gRPC's content type, and a gRPC status of 0. Their two fields are put into the
//! peer's table with the first answer, and from then on a block is one or two bytes long. All other
//! fields are written out. Used by `connection`.
//!
//! Invariants
//! - E1 The peer's table holds at most our two fields, the content type first.
//!
//! Source: RFC 7541; gRPC over HTTP/2, the section on responses.

use bytes::BufMut;

use super::hpack::ENTRY_OVERHEAD_BYTES;

const CONTENT_TYPE: (&[u8], &[u8]) = (b"content-type", b"application/grpc");
const GRPC_STATUS: &[u8] = b"grpc-status";
const GRPC_MESSAGE: &[u8] = b"grpc-message";

/// Positions in the static table.
const INDEX_STATUS_200: u8 = 8;
const INDEX_CONTENT_TYPE: u8 = 31;

/// The position of what was added last.
const INDEX_NEWEST: u8 = 62;

/// A field of the table, by its position.
const INDEXED: u8 = 0x80;
/// A field to be added to the table.
const ADDED: u8 = 0x40;
/// The table's new size follows.
const RESIZED: u8 = 0x20;

/// What our two fields take in the peer's table.
const TABLE_BYTES: usize =
    2 * ENTRY_OVERHEAD_BYTES + CONTENT_TYPE.0.len() + CONTENT_TYPE.1.len() + GRPC_STATUS.len() + 1;

/// Writes blocks of fields.
#[derive(Debug)]
pub(super) struct Encoder {
    table: PeerTable,
}

/// What we know of the peer's table, where the newest field has position 62.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PeerTable {
    /// It has nothing of ours yet.
    Empty,
    /// It has the content type.
    Begun,
    /// It has the content type and, newer, the status.
    Filled,
    /// It became too small, which has to be said in the next block.
    Shrinking,
    /// It is not used.
    Unused,
}

impl Encoder {
    pub(super) const fn new() -> Self {
        Self { table: PeerTable::Empty }
    }

    /// The peer's table may hold this much from now on. Once it was too small it is left alone.
    pub(super) fn resize(&mut self, bytes_max: u32) {
        if (bytes_max as usize) < TABLE_BYTES && self.table != PeerTable::Unused {
            self.table = PeerTable::Shrinking;
        }
    }

    /// What stands at the start of every block.
    fn start(&mut self, out: &mut Vec<u8>) {
        if self.table == PeerTable::Shrinking {
            out.put_u8(RESIZED);
            self.table = PeerTable::Unused;
        }
    }

    /// The start of an answer to a gRPC call: status 200 and the content type.
    pub(super) fn grpc_head(&mut self, out: &mut Vec<u8>) {
        self.start(out);
        out.put_u8(INDEXED | INDEX_STATUS_200);
        match self.table {
            PeerTable::Filled => out.put_u8(INDEXED | (INDEX_NEWEST + 1)),
            PeerTable::Begun => out.put_u8(INDEXED | INDEX_NEWEST),
            PeerTable::Empty => {
                out.put_u8(ADDED | INDEX_CONTENT_TYPE);
                put_string(CONTENT_TYPE.1, out);
                self.table = PeerTable::Begun;
            }
            PeerTable::Shrinking | PeerTable::Unused => {
                put_number(0, 4, INDEX_CONTENT_TYPE.into(), out);
                put_string(CONTENT_TYPE.1, out);
            }
        }
    }

    /// The end of a gRPC call that succeeded.
    pub(super) fn grpc_ok(&mut self, out: &mut Vec<u8>) {
        self.start(out);
        match self.table {
            PeerTable::Filled => out.put_u8(INDEXED | INDEX_NEWEST),
            PeerTable::Begun => {
                out.put_u8(ADDED);
                put_string(GRPC_STATUS, out);
                put_string(b"0", out);
                self.table = PeerTable::Filled;
            }
            PeerTable::Empty | PeerTable::Shrinking | PeerTable::Unused => {
                put_field(GRPC_STATUS, b"0", out);
            }
        }
    }

    /// The end of a gRPC call that failed: `code` in digits, and a text as gRPC encodes it. After
    /// [`Encoder::grpc_head`] in one block, or in a block of its own.
    pub(super) fn grpc_failure(&mut self, code: &str, text: &str, out: &mut Vec<u8>) {
        self.start(out);
        put_field(GRPC_STATUS, code.as_bytes(), out);
        put_field(GRPC_MESSAGE, text.as_bytes(), out);
    }

    /// The start of any other answer.
    pub(super) fn status(&mut self, status: &str, out: &mut Vec<u8>) {
        self.start(out);
        put_number(0, 4, INDEX_STATUS_200.into(), out);
        put_string(status.as_bytes(), out);
    }

    /// A field after [`Encoder::status`].
    pub(super) fn field(&mut self, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
        assert!(self.table != PeerTable::Shrinking, "a field comes after the start of a block");
        put_field(name, value, out);
    }
}

/// A field that is not added to the table.
fn put_field(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.put_u8(0);
    put_string(name, out);
    put_string(value, out);
}

fn put_string(text: &[u8], out: &mut Vec<u8>) {
    put_number(0, 7, text.len(), out);
    out.put_slice(text);
}

/// A number in the low bits of a byte, whose high bits are `flags`, and of further bytes.
fn put_number(flags: u8, prefix_bits: u8, number: usize, out: &mut Vec<u8>) {
    let mask = 0xff >> (8 - prefix_bits);
    match u8::try_from(number) {
        Ok(number) if number < mask => out.put_u8(flags | number),
        _ => {
            out.put_u8(flags | mask);
            let mut rest = number - usize::from(mask);
            loop {
                let low = u8::try_from(rest & 0x7f).expect("seven bits");
                rest >>= 7;
                out.put_u8(if rest == 0 { low } else { low | 0x80 });
                if rest == 0 {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::hpack::{Decoder, tests::read},
        Encoder,
    };

    /// A block, its size, and what the peer reads.
    fn block(
        decoder: &mut Decoder,
        put: impl FnOnce(&mut Vec<u8>),
    ) -> (usize, Vec<(String, String)>) {
        let mut out = Vec::new();
        put(&mut out);
        (out.len(), read(decoder, &out))
    }

    fn own(fields: &[(&str, &str)]) -> Vec<(String, String)> {
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn answers_shrink_to_three_bytes_once_the_peer_knows_them() {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        let head = own(&[(":status", "200"), ("content-type", "application/grpc")]);
        let ok = own(&[("grpc-status", "0")]);
        for sizes in [(19, 15), (2, 1), (2, 1)] {
            let sent = block(&mut decoder, |out| encoder.grpc_head(out));
            assert_eq!(sent, (sizes.0, head.clone()));
            let early = block(&mut decoder, |out| encoder.grpc_head(out));
            assert_eq!(early, (2, head.clone()), "of a call that overtakes");
            let sent = block(&mut decoder, |out| encoder.grpc_ok(out));
            assert_eq!(sent, (sizes.1, ok.clone()));
        }
        let failed = block(&mut decoder, |out| encoder.grpc_failure("14", "no leader", out));
        assert_eq!(failed.1, own(&[("grpc-status", "14"), ("grpc-message", "no leader")]));
    }

    #[test]
    fn peer_with_a_small_table_is_told_to_empty_it() {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        let head = own(&[(":status", "200"), ("content-type", "application/grpc")]);
        block(&mut decoder, |out| encoder.grpc_head(out));
        encoder.resize(100);
        encoder.resize(4096);
        for bytes in [21, 20, 20] {
            assert_eq!(block(&mut decoder, |out| encoder.grpc_head(out)), (bytes, head.clone()));
        }
        let ok = block(&mut decoder, |out| encoder.grpc_ok(out));
        assert_eq!(ok.1, own(&[("grpc-status", "0")]));
    }

    #[test]
    fn long_fields_are_written_out() {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        let value = "v".repeat(100_000);
        let sent = block(&mut decoder, |out| {
            encoder.status("404", out);
            encoder.field(b"name", value.as_bytes(), out);
        });
        assert_eq!(sent.1, own(&[(":status", "404"), ("name", &value)]));
    }
}
