//! Header fields as HTTP/2 compresses them.
//!
//! Decides how a block of fields is read: numbers, strings, the table that both ends keep of fields
//! they have seen, and how much of it we keep. One reader per connection, fed with every block in
//! the order of their arrival, whatever becomes of the request. Used by `connection`.
//!
//! ```text
//!   1 index                    a field of the table
//!   01 index value             a field with a name of the table (or of its own), to be added
//!   0000 / 0001 index value    the same, not to be added
//!   001 size                   the table shrinks or grows
//! ```
//!
//! Invariants
//! - T1 The table never holds more than it may, nor more than was announced.
//!
//! Source: RFC 7541.

use std::collections::VecDeque;

use super::{fields::Fields, huffman};

/// How much of the table we keep: the default, which needs no announcement.
const TABLE_BYTES_MAX: usize = 4096;

/// What a field of the table counts beyond its text.
pub(super) const ENTRY_OVERHEAD_BYTES: usize = 32;

/// The fields that everybody has from the start, by position from 1.
const STATIC: [(&[u8], &[u8]); 61] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
];

/// The block is none; the tables of both ends cannot be the same any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl From<huffman::Malformed> for Malformed {
    fn from(_: huffman::Malformed) -> Self {
        Self
    }
}

/// Reads blocks of fields.
#[derive(Debug)]
pub(super) struct Decoder {
    table: Table,
    /// The name and the value that are being read.
    name: Vec<u8>,
    value: Vec<u8>,
}

#[derive(Debug)]
struct Table {
    /// The newest first.
    entries: VecDeque<Entry>,
    bytes: usize,
    bytes_max: usize,
    /// How often it has changed.
    changes: u64,
}

#[derive(Debug)]
struct Entry {
    text: Box<[u8]>,
    name_len: usize,
}

impl Entry {
    fn field(&self) -> (&[u8], &[u8]) {
        self.text.split_at(self.name_len)
    }

    fn bytes(&self) -> usize {
        self.text.len() + ENTRY_OVERHEAD_BYTES
    }
}

impl Decoder {
    pub(super) const fn new() -> Self {
        let table =
            Table { entries: VecDeque::new(), bytes: 0, bytes_max: TABLE_BYTES_MAX, changes: 0 };
        Self { table, name: Vec::new(), value: Vec::new() }
    }

    /// How often blocks have changed the table: between two changes, equal blocks are equal fields.
    pub(super) const fn changes(&self) -> u64 {
        self.table.changes
    }

    /// Reads one block to its end and adds its fields to `fields`.
    ///
    /// # Errors
    /// - [`Malformed`], after which no block can be read any more.
    pub(super) fn decode(&mut self, block: &[u8], fields: &mut Fields) -> Result<(), Malformed> {
        let mut input = Input(block);
        let mut at_start = true;
        while let Some(first) = input.peek() {
            if first & 0x80 != 0 {
                let (name, value) = self.table.get(input.number(7)?)?;
                fields.push(name, value);
            } else if first & 0xe0 == 0x20 {
                let bytes_max = input.number(5)?;
                if !at_start || TABLE_BYTES_MAX < bytes_max {
                    return Err(Malformed);
                }
                self.table.resize(bytes_max);
                continue;
            } else if first & 0x40 != 0 {
                self.literal(&mut input, 6)?;
                fields.push(&self.name, &self.value);
                self.table.add(&self.name, &self.value);
            } else {
                self.literal(&mut input, 4)?;
                fields.push(&self.name, &self.value);
            }
            at_start = false;
        }
        Ok(())
    }

    fn literal(&mut self, input: &mut Input<'_>, prefix_bits: u8) -> Result<(), Malformed> {
        self.name.clear();
        match input.number(prefix_bits)? {
            0 => input.string(&mut self.name)?,
            index => self.name.extend_from_slice(self.table.get(index)?.0),
        }
        self.value.clear();
        input.string(&mut self.value)
    }
}

impl Table {
    fn get(&self, index: usize) -> Result<(&[u8], &[u8]), Malformed> {
        let index = index.checked_sub(1).ok_or(Malformed)?;
        if let Some(field) = STATIC.get(index) {
            return Ok(*field);
        }
        self.entries.get(index - STATIC.len()).map(Entry::field).ok_or(Malformed)
    }

    fn add(&mut self, name: &[u8], value: &[u8]) {
        self.changes += 1;
        let entry = Entry { text: [name, value].concat().into(), name_len: name.len() };
        let bytes = entry.bytes();
        self.shrink(self.bytes_max.saturating_sub(bytes));
        // An entry that does not fit empties the table and is not added.
        if bytes <= self.bytes_max {
            self.entries.push_front(entry);
            self.bytes += bytes;
        }
        assert!(self.bytes <= self.bytes_max, "T1: {} of {}", self.bytes, self.bytes_max);
    }

    fn resize(&mut self, bytes_max: usize) {
        self.changes += 1;
        self.bytes_max = bytes_max;
        self.shrink(bytes_max);
    }

    fn shrink(&mut self, bytes_max: usize) {
        while bytes_max < self.bytes {
            let oldest = self.entries.pop_back().expect("an empty table has no bytes");
            self.bytes -= oldest.bytes();
        }
    }
}

/// What is left of a block.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.0.split_first().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*first)
    }

    /// A number that begins in the low bits of the next byte.
    fn number(&mut self, prefix_bits: u8) -> Result<usize, Malformed> {
        let mask = 0xff >> (8 - prefix_bits);
        let first = self.byte()? & mask;
        let mut number = usize::from(first);
        if first < mask {
            return Ok(number);
        }
        // Four more bytes hold far more than any block.
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            number += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Malformed)
    }

    fn string(&mut self, out: &mut Vec<u8>) -> Result<(), Malformed> {
        let packed = self.peek().ok_or(Malformed)? & 0x80 != 0;
        let length = self.number(7)?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        if packed {
            huffman::decode(text, out)?;
        } else {
            out.extend_from_slice(text);
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::{Strategy, any, prop, prop_assert_eq, proptest};

    use super::*;

    pub(in super::super) fn read(decoder: &mut Decoder, block: &[u8]) -> Vec<(String, String)> {
        let mut fields = Fields::new(1 << 20);
        decoder.decode(block, &mut fields).expect("well formed");
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("a text");
        fields.iter().map(|(name, value)| (text(name), text(value))).collect()
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte = |pair: &[u8]| {
            let pair = std::str::from_utf8(pair).expect("ASCII");
            u8::from_str_radix(pair, 16).expect("two digits")
        };
        digits.chunks(2).map(byte).collect()
    }

    #[track_caller]
    fn check(decoder: &mut Decoder, block: &str, fields: &[(&str, &str)], table_bytes: usize) {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let fields: Vec<_> = fields.iter().map(own).collect();
        assert_eq!(read(decoder, &hex(block)), fields, "fields of {block}");
        assert_eq!(decoder.table.bytes, table_bytes, "size of the table after {block}");
    }

    #[test]
    fn numbers_are_those_of_appendix_c_1() {
        let number = |bytes: &[u8], bits| Input(bytes).number(bits);
        assert_eq!(number(&[0x0a], 5), Ok(10));
        assert_eq!(number(&[0x1f, 0x9a, 0x0a], 5), Ok(1337));
        assert_eq!(number(&[42], 8), Ok(42));
        assert_eq!(number(&[0x1f, 0x9a], 5), Err(Malformed), "cut short");
        assert_eq!(number(&[0xff; 9], 5), Err(Malformed), "larger than anything");
    }

    #[test]
    fn fields_are_those_of_appendix_c_2() {
        let literal = "400a637573746f6d2d6b65790d637573746f6d2d686561646572";
        check(&mut Decoder::new(), literal, &[("custom-key", "custom-header")], 55);
        let not_added = "040c2f73616d706c652f70617468";
        check(&mut Decoder::new(), not_added, &[(":path", "/sample/path")], 0);
        let never = "100870617373776f726406736563726574";
        check(&mut Decoder::new(), never, &[("password", "secret")], 0);
        check(&mut Decoder::new(), "82", &[(":method", "GET")], 0);
    }

    const REQUESTS: [&[(&str, &str)]; 3] = [
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "www.example.com"),
        ],
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "www.example.com"),
            ("cache-control", "no-cache"),
        ],
        &[
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/index.html"),
            (":authority", "www.example.com"),
            ("custom-key", "custom-value"),
        ],
    ];

    #[test]
    fn requests_are_those_of_appendices_c_3_and_c_4() {
        let plain = [
            "828684410f7777772e6578616d706c652e636f6d",
            "828684be58086e6f2d6361636865",
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        ];
        let packed = [
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ];
        for blocks in [plain, packed] {
            let mut decoder = Decoder::new();
            for ((block, fields), bytes) in blocks.iter().zip(REQUESTS).zip([57, 110, 164]) {
                check(&mut decoder, block, fields, bytes);
            }
        }
    }

    #[test]
    fn responses_are_those_of_appendices_c_5_and_c_6() {
        let (first, later) = ("Mon, 21 Oct 2013 20:13:21 GMT", "Mon, 21 Oct 2013 20:13:22 GMT");
        let cookie = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
        let location = ("location", "https://www.example.com");
        let private = ("cache-control", "private");
        let responses: [&[(&str, &str)]; 3] = [
            &[(":status", "302"), private, ("date", first), location],
            &[(":status", "307"), private, ("date", first), location],
            &[
                (":status", "200"),
                private,
                ("date", later),
                location,
                ("content-encoding", "gzip"),
                ("set-cookie", cookie),
            ],
        ];
        let plain = [
            "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d\
             546e1768747470733a2f2f7777772e6578616d706c652e636f6d",
            "4803333037c1c0bf",
            "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f\
             6f3d4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d3336303\
             03b2076657273696f6e3d31",
        ];
        let packed = [
            "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad17186\
             3c78f0b97c8e9ae82ae43d3",
            "4883640effc1c0bf",
            "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335\
             dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
        ];
        for blocks in [plain, packed] {
            let mut decoder = Decoder::new();
            decoder.table.resize(256);
            for ((block, fields), bytes) in blocks.iter().zip(responses).zip([222, 222, 215]) {
                check(&mut decoder, block, fields, bytes);
            }
        }
    }

    #[test]
    fn table_stays_within_its_bounds_and_odd_blocks_are_refused() {
        let refused = |block: &[u8]| {
            let mut fields = Fields::new(1000);
            Decoder::new().decode(block, &mut fields).expect_err("malformed");
        };
        refused(&[0x80]);
        refused(&[0xbe]);
        refused(&[0x3f, 0xe2, 0x1f]);
        refused(&[0x82, 0x20]);
        refused(&[0x00, 0x05, b'a']);
        let mut decoder = Decoder::new();
        decoder.table.resize(40);
        decoder.table.add(b"name", b"value");
        assert_eq!(decoder.table.entries.len(), 0, "41 bytes do not fit");
    }

    /// A field and how it is written.
    fn field() -> impl Strategy<Value = (String, String, u8, bool)> {
        ("[a-z]{1,8}", "[ -~]{0,200}", prop::sample::select(vec![0x40, 0x00, 0x10]), any::<bool>())
    }

    fn put_string(text: &str, packed: bool, out: &mut Vec<u8>) {
        let mut bytes = text.as_bytes().to_vec();
        if packed {
            bytes.clear();
            huffman::encode(text.as_bytes(), &mut bytes);
        }
        let flag = if packed { 0x80 } else { 0 };
        match u8::try_from(bytes.len()) {
            Ok(length @ 0..=126) => out.push(flag | length),
            _ => {
                let over = bytes.len() - 127;
                let low = u8::try_from(over % 128).expect("seven bits");
                let high = u8::try_from(over / 128).expect("texts are short");
                out.extend([flag | 127, low | 0x80, high]);
            }
        }
        out.extend(bytes);
    }

    proptest! {
        #[test]
        fn fields_survive_every_way_of_writing_them(
            list in prop::collection::vec(field(), 0..30),
        ) {
            let mut decoder = Decoder::new();
            for (name, value, kind, packed) in list {
                let mut block = vec![kind];
                put_string(&name, packed, &mut block);
                put_string(&value, packed, &mut block);
                prop_assert_eq!(read(&mut decoder, &block), [(name.clone(), value.clone())]);
                if kind == 0x40 && name.len() + value.len() + 32 <= TABLE_BYTES_MAX {
                    prop_assert_eq!(read(&mut decoder, &[0xbe]), [(name, value)]);
                }
            }
        }

        #[test]
        fn no_block_is_too_odd(blocks in prop::collection::vec(
            prop::collection::vec(any::<u8>(), 0..60), 0..20)
        ) {
            let mut decoder = Decoder::new();
            let mut fields = Fields::new(1000);
            for block in blocks {
                let before = fields.iter().count();
                let read = decoder.decode(&block, &mut fields);
                prop_assert_eq!(read.is_ok() || before <= fields.iter().count(), true);
                let bytes: usize = decoder.table.entries.iter().map(Entry::bytes).sum();
                prop_assert_eq!(bytes, decoder.table.bytes, "T1");
            }
        }
    }
}
