//! Compressed headers (RFC 7541), as far as a load generator needs them.
//!
//! Decides how a request's headers are written (the first of a kind on a connection with their
//! text, every later one as seven constant bytes, as gRPC clients do) and reads the answers'
//! headers, with their dynamic table and Huffman code. Called by `connection` only.
//!
//! Invariants
//! - H1 The encoder never evicts: what it adds stays far below the peer's table limit.
//! - H2 The decoder's table holds at most [`TABLE_BYTES`], counted as the RFC counts.

use std::collections::VecDeque;

use anyhow::{Context, bail, ensure};

/// The default table size of the RFC; we never announce another.
const TABLE_BYTES: usize = 4096;

/// What the RFC charges per entry beside its text.
const ENTRY_OVERHEAD_BYTES: usize = 32;

/// How many entries the static table has.
const STATIC_ENTRIES: usize = 61;

/// Names of the static table from index 1, space separated; values are never asked for but for
/// `:status`, which is told by its index.
const STATIC_NAMES: &str = ":authority :method :method :path :path :scheme :scheme :status \
     :status :status :status :status :status :status accept-charset accept-encoding \
     accept-language accept-ranges accept access-control-allow-origin age allow authorization \
     cache-control content-disposition content-encoding content-language content-length \
     content-location content-range content-type cookie date etag expect expires from host \
     if-match if-modified-since if-none-match if-range if-unmodified-since last-modified link \
     location max-forwards proxy-authenticate proxy-authorization range referer refresh \
     retry-after server set-cookie strict-transport-security transfer-encoding user-agent vary via \
     www-authenticate";

/// Values of the static table for `:status`, from index 8.
const STATIC_STATUS: [&str; 7] = ["200", "204", "206", "304", "400", "404", "500"];

/// Writes request headers.
#[derive(Debug)]
pub(super) struct Encoder {
    authority: String,
    /// What was added to the peer's dynamic table, oldest first.
    added: Vec<(&'static str, String)>,
}

impl Encoder {
    pub(super) const fn new(authority: String) -> Self {
        Self { authority, added: Vec::new() }
    }

    /// Appends the headers of a call of `path` to `out`.
    pub(super) fn request(&mut self, path: &'static str, out: &mut Vec<u8>) {
        // :method POST and :scheme http stand in the static table.
        out.extend_from_slice(&[0x83, 0x86]);
        let authority = self.authority.clone();
        self.field(4, ":path", path, out);
        self.field(1, ":authority", &authority, out);
        self.field(31, "content-type", "application/grpc", out);
        self.field(0, "te", "trailers", out);
    }

    fn field(&mut self, name_index: u8, name: &'static str, value: &str, out: &mut Vec<u8>) {
        let known = self.added.iter().position(|(one, text)| *one == name && text == value);
        if let Some(position) = known {
            let index = STATIC_ENTRIES + self.added.len() - position;
            integer(0x80, 7, index, out);
            return;
        }
        integer(0x40, 6, usize::from(name_index), out);
        if name_index == 0 {
            text(name, out);
        }
        text(value, out);
        self.added.push((name, value.to_owned()));
        let bytes: usize =
            self.added.iter().map(|(n, v)| n.len() + v.len() + ENTRY_OVERHEAD_BYTES).sum();
        assert!(bytes <= TABLE_BYTES, "H1: {bytes} bytes were added to the peer's table");
    }
}

fn text(value: &str, out: &mut Vec<u8>) {
    integer(0, 7, value.len(), out);
    out.extend_from_slice(value.as_bytes());
}

/// Appends `value` as an integer with a prefix of `bits` under the flags `first`.
fn integer(first: u8, bits: u32, value: usize, out: &mut Vec<u8>) {
    let limit = (1_usize << bits) - 1;
    if value < limit {
        out.push(first | u8::try_from(value).expect("below the prefix's limit of 127"));
        return;
    }
    out.push(first | u8::try_from(limit).expect("a prefix has at most 7 bits"));
    let mut rest = value - limit;
    while 128 <= rest {
        out.push(u8::try_from(rest % 128 + 128).expect("seven bits and the mark"));
        rest /= 128;
    }
    out.push(u8::try_from(rest).expect("below 128"));
}

/// What a header block says about the call it belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The value of `grpc-status`, if the block has one.
    pub(super) grpc_status: Option<u32>,
    /// The value of `grpc-message`, as sent (percent-encoded).
    pub(super) grpc_message: String,
    /// The value of `:status`, if the block has one.
    pub(super) http_status: Option<u32>,
}

/// A header as the decoder keeps it.
type Field = (Vec<u8>, Vec<u8>);

/// Reads headers of answers.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// Newest first, as the RFC numbers them.
    table: VecDeque<Field>,
    table_bytes: usize,
    /// Blocks seen since the table last changed: a server that is asked the same thing a million
    /// times answers with the same few bytes.
    known: Vec<(Vec<u8>, Verdict)>,
}

/// How many blocks the decoder remembers; a unary call has two.
const KNOWN_MAX: usize = 8;

impl Decoder {
    /// Reads one whole block.
    ///
    /// # Errors
    /// If it breaks the RFC.
    pub(super) fn block(&mut self, block: &[u8]) -> anyhow::Result<Verdict> {
        if let Some((_, verdict)) = self.known.iter().find(|(bytes, _)| bytes == block) {
            return Ok(verdict.clone());
        }
        let verdict = self.read(block)?;
        if self.known.len() < KNOWN_MAX && block.iter().all(|byte| byte & 0x80 != 0) {
            self.known.push((block.to_vec(), verdict.clone()));
        }
        Ok(verdict)
    }

    fn read(&mut self, mut block: &[u8]) -> anyhow::Result<Verdict> {
        let mut verdict = Verdict::default();
        while let Some(&first) = block.first() {
            if first & 0x80 != 0 {
                let index = read_integer(&mut block, 7)?;
                let (name, value) = self.entry(index)?;
                verdict.note(&name, &value)?;
            } else if first & 0xe0 == 0x20 {
                let limit = read_integer(&mut block, 5)?;
                self.known.clear();
                self.evict(limit.min(TABLE_BYTES));
            } else {
                let keep = first & 0x40 != 0;
                let index = read_integer(&mut block, if keep { 6 } else { 4 })?;
                let name = match index {
                    0 => read_text(&mut block)?,
                    _ => self.entry(index)?.0,
                };
                let value = read_text(&mut block)?;
                verdict.note(&name, &value)?;
                if keep {
                    self.known.clear();
                    self.add((name, value));
                }
            }
        }
        Ok(verdict)
    }

    fn entry(&self, index: usize) -> anyhow::Result<Field> {
        if index == 0 || index <= STATIC_ENTRIES {
            let name = STATIC_NAMES.split_whitespace().nth(index.wrapping_sub(1));
            let name = name.context("a header without an index")?;
            let status = index.checked_sub(8).and_then(|at| STATIC_STATUS.get(at));
            return Ok((name.into(), status.map_or_else(Vec::new, |text| text.as_bytes().into())));
        }
        let entry = self.table.get(index - STATIC_ENTRIES - 1);
        entry.cloned().with_context(|| format!("no header has index {index}"))
    }

    fn add(&mut self, field: Field) {
        let bytes = field.0.len() + field.1.len() + ENTRY_OVERHEAD_BYTES;
        self.evict(TABLE_BYTES.saturating_sub(bytes));
        if bytes <= TABLE_BYTES {
            self.table_bytes += bytes;
            self.table.push_front(field);
        }
    }

    fn evict(&mut self, limit: usize) {
        while limit < self.table_bytes {
            let (name, value) = self.table.pop_back().expect("bytes are counted of entries only");
            self.table_bytes -= name.len() + value.len() + ENTRY_OVERHEAD_BYTES;
        }
    }
}

impl Verdict {
    fn note(&mut self, name: &[u8], value: &[u8]) -> anyhow::Result<()> {
        match name {
            b"grpc-status" => self.grpc_status = Some(number(value)?),
            b":status" => self.http_status = Some(number(value)?),
            b"grpc-message" => self.grpc_message = String::from_utf8_lossy(value).into_owned(),
            _ => {}
        }
        Ok(())
    }
}

fn number(value: &[u8]) -> anyhow::Result<u32> {
    let text = std::str::from_utf8(value).context("a status is text")?;
    text.parse().with_context(|| format!("a status is a number, not {text:?}"))
}

fn read_integer(block: &mut &[u8], bits: u32) -> anyhow::Result<usize> {
    let limit = (1_usize << bits) - 1;
    let (&first, mut rest) = block.split_first().context("a header block ends early")?;
    let mut value = usize::from(first) & limit;
    if value == limit {
        let mut shift = 0;
        loop {
            let (&byte, after) = rest.split_first().context("a header block ends early")?;
            rest = after;
            ensure!(shift <= 21, "an integer of a header is too large");
            value += usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *block = rest;
    Ok(value)
}

fn read_text(block: &mut &[u8]) -> anyhow::Result<Vec<u8>> {
    let coded = block.first().is_some_and(|byte| byte & 0x80 != 0);
    let length = read_integer(block, 7)?;
    let (bytes, rest) = block.split_at_checked(length).context("a header block ends early")?;
    *block = rest;
    if coded { huffman(bytes) } else { Ok(bytes.to_vec()) }
}

/// Lengths in bits of the Huffman codes of all bytes. The code is canonical: codes follow from the
/// lengths.
///
/// Source: RFC 7541, appendix B.
const CODE_BITS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

/// Decodes Huffman text. Headers of answers are few and short, so it looks for each code among all.
fn huffman(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let codes = codes();
    let mut text = Vec::with_capacity(bytes.len() * 2);
    let (mut code, mut bits) = (0_u32, 0_u8);
    for byte in bytes {
        for at in (0..8).rev() {
            code = code << 1 | u32::from(byte >> at & 1);
            bits += 1;
            if let Ok(found) = codes.binary_search_by_key(&(bits, code), |one| (one.0, one.1)) {
                text.push(codes[found].2);
                (code, bits) = (0, 0);
            }
            if 30 <= bits {
                bail!("no byte has this Huffman code");
            }
        }
    }
    ensure!(bits < 8, "Huffman text ends within a byte");
    Ok(text)
}

/// Length, code and byte of all codes, shortest first.
fn codes() -> Vec<(u8, u32, u8)> {
    let mut codes: Vec<_> =
        (0..=u8::MAX).map(|byte| (CODE_BITS[usize::from(byte)], 0, byte)).collect();
    codes.sort_unstable_by_key(|&(bits, _, byte)| (bits, byte));
    let (mut next, mut last) = (0_u32, 0_u8);
    for (bits, code, _) in &mut codes {
        next <<= *bits - last;
        *code = next;
        last = *bits;
        next += 1;
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::{Decoder, Encoder, STATIC_ENTRIES, STATIC_NAMES, huffman, integer, read_integer};

    #[test]
    fn static_table_is_complete() {
        let names: Vec<_> = STATIC_NAMES.split_whitespace().collect();
        assert_eq!(names.len(), STATIC_ENTRIES);
        assert_eq!((names[30], names[60]), ("content-type", "www-authenticate"));
    }

    #[test]
    fn second_request_of_a_kind_is_all_indexes() {
        let mut encoder = Encoder::new("127.0.0.1:2379".to_owned());
        let (mut first, mut second) = (Vec::new(), Vec::new());
        encoder.request("/etcdserverpb.KV/Put", &mut first);
        encoder.request("/etcdserverpb.KV/Put", &mut second);
        assert_eq!(second, [0x83, 0x86, 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62]);
        // A second path shifts the first by one.
        encoder.request("/etcdserverpb.KV/Range", &mut Vec::new());
        let mut third = Vec::new();
        encoder.request("/etcdserverpb.KV/Put", &mut third);
        assert_eq!(third, [0x83, 0x86, 0x80 | 66, 0x80 | 65, 0x80 | 64, 0x80 | 63]);
        assert!(second.len() < first.len());
    }

    #[test]
    fn integers_of_the_rfc_s_examples() {
        let mut out = Vec::new();
        integer(0, 5, 10, &mut out);
        integer(0, 5, 1337, &mut out);
        assert_eq!(out, [10, 31, 154, 10]);
        let mut rest = &out[1..];
        assert_eq!(read_integer(&mut rest, 5).unwrap(), 1337);
        assert!(rest.is_empty());
    }

    #[test]
    fn huffman_text_of_the_rfc_s_example() {
        let coded = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(huffman(&coded).unwrap(), b"www.example.com");
    }

    #[test]
    fn status_is_read_from_literals_and_then_from_the_table() {
        let mut decoder = Decoder::default();
        // grpc-status: 5, added to the table, Huffman coded name as Go writes it.
        let name = [0x9a, 0xca, 0xc8, 0xb2, 0x12, 0x34, 0xda, 0x8f];
        let mut block = vec![0x40, 0x80 | 8];
        block.extend_from_slice(&name);
        block.extend_from_slice(&[1, b'5']);
        assert_eq!(decoder.block(&block).unwrap().grpc_status, Some(5));
        assert_eq!(decoder.block(&[0x88, 0x80 | 62]).unwrap().grpc_status, Some(5));
        assert_eq!(decoder.block(&[0x88]).unwrap().http_status, Some(200));
        assert!(decoder.block(&[0x80 | 63]).is_err(), "the table has one entry");
    }
}
