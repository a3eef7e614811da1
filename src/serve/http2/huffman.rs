//! The Huffman code of header fields.
//!
//! Decides how compressed text is read: four bits at a time through a table of states, made once
//! from the lengths of the codes alone. The code is canonical: codes of one length are consecutive
//! numbers in the order of their symbols, and longer ones continue where shorter ones end. Used by
//! `hpack`.
//!
//! Deliberately absent: compression. What we send is short and mostly one byte long.
//!
//! Source: RFC 7541, section 5.2 and appendix B.

use std::sync::LazyLock;

/// How many bits each byte takes; the last is the end of the string, which is never sent.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

const END: usize = 256;

/// The text is none, or not ended as it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// A place in the tree of codes.
type State = u16;

/// What four more bits lead to.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Further into a code.
    On(State),
    /// A byte ends, and the bits after it lead into the next code.
    Byte(u8, State),
    /// No byte has such a code.
    Nowhere,
}

struct Table {
    /// By state, then by four bits.
    steps: Vec<[Step; 16]>,
    /// Whether a string may end here: within fewer than eight bits, all of them 1.
    may_end: Vec<bool>,
}

static TABLE: LazyLock<Table> = LazyLock::new(Table::new);

/// Appends what `text` stands for to `out`.
///
/// # Errors
/// - [`Malformed`]; `out` may then have grown.
pub(super) fn decode(text: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let table = &*TABLE;
    let mut state = 0;
    for byte in text {
        for bits in [byte >> 4, byte & 15] {
            state = match table.steps[usize::from(state)][usize::from(bits)] {
                Step::On(state) => state,
                Step::Byte(byte, state) => {
                    out.push(byte);
                    state
                }
                Step::Nowhere => return Err(Malformed),
            };
        }
    }
    if table.may_end[usize::from(state)] { Ok(()) } else { Err(Malformed) }
}

/// The code of each symbol and its length, shortest first.
fn codes() -> Vec<(usize, u32, u8)> {
    let mut symbols: Vec<usize> = (0..LENGTHS.len()).collect();
    symbols.sort_by_key(|symbol| LENGTHS[*symbol]);
    let (mut code, mut length) = (0, LENGTHS[symbols[0]]);
    let code_of = |symbol: usize| {
        code <<= LENGTHS[symbol] - length;
        length = LENGTHS[symbol];
        code += 1;
        (symbol, code - 1, length)
    };
    symbols.into_iter().map(code_of).collect()
}

/// An inner node of the tree of codes: what a 0 and what a 1 leads to.
type Node = [Option<Branch>; 2];

#[derive(Clone, Copy, Debug)]
enum Branch {
    Node(State),
    Symbol(usize),
}

fn tree() -> Vec<Node> {
    let mut nodes: Vec<Node> = vec![[None; 2]];
    for (symbol, code, length) in codes() {
        let mut at = 0;
        for shift in (0..length).rev() {
            let bit = usize::from(code >> shift & 1 == 1);
            if shift == 0 {
                nodes[at][bit] = Some(Branch::Symbol(symbol));
                continue;
            }
            at = match nodes[at][bit] {
                Some(Branch::Node(state)) => usize::from(state),
                Some(Branch::Symbol(other)) => unreachable!("{other} is a prefix of {symbol}"),
                None => {
                    nodes.push([None; 2]);
                    let state = State::try_from(nodes.len() - 1).expect("there are 256 nodes");
                    nodes[at][bit] = Some(Branch::Node(state));
                    usize::from(state)
                }
            };
        }
    }
    nodes
}

impl Table {
    fn new() -> Self {
        let nodes = tree();
        let step = |from: usize, bits: usize| {
            let (mut at, mut byte) = (from, None);
            for shift in (0..4).rev() {
                match nodes[at][bits >> shift & 1] {
                    Some(Branch::Node(state)) => at = usize::from(state),
                    Some(Branch::Symbol(END)) | None => return Step::Nowhere,
                    Some(Branch::Symbol(symbol)) => {
                        byte = Some(u8::try_from(symbol).expect("END is matched above"));
                        at = 0;
                    }
                }
            }
            let state = State::try_from(at).expect("there are 256 nodes");
            byte.map_or(Step::On(state), |byte| Step::Byte(byte, state))
        };
        let steps: Vec<[Step; 16]> =
            (0..nodes.len()).map(|from| std::array::from_fn(|bits| step(from, bits))).collect();
        let mut may_end = vec![false; nodes.len()];
        let mut at = 0;
        for _ in 0..8 {
            may_end[at] = true;
            let Some(Branch::Node(state)) = nodes[at][1] else { break };
            at = usize::from(state);
        }
        Self { steps, may_end }
    }
}

/// Compresses, for tests.
#[cfg(test)]
pub(super) fn encode(text: &[u8], out: &mut Vec<u8>) {
    let codes: std::collections::HashMap<usize, (u32, u8)> =
        codes().into_iter().map(|(symbol, code, length)| (symbol, (code, length))).collect();
    let (mut bits, mut held) = (0u64, 0u8);
    for byte in text {
        let (code, length) = codes[&usize::from(*byte)];
        bits = bits << length | u64::from(code);
        held += length;
        while 8 <= held {
            held -= 8;
            out.push(u8::try_from(bits >> held & 0xff).expect("eight bits"));
        }
    }
    if 0 < held {
        let padded = bits << (8 - held) | (0xff >> held);
        out.push(u8::try_from(padded & 0xff).expect("eight bits"));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    use super::*;

    // Rows of the RFC's appendix B, from all over the table.
    #[test]
    fn codes_are_those_of_the_table_in_the_standard() {
        let codes = codes();
        for (symbol, code, length) in [
            (0, 0x1ff8, 13),
            (1, 0x7f_ffd8, 23),
            (10, 0x3fff_fffc, 30),
            (usize::from(b' '), 0x14, 6),
            (usize::from(b'0'), 0x0, 5),
            (usize::from(b'a'), 0x3, 5),
            (usize::from(b'X'), 0xfc, 8),
            (usize::from(b'~'), 0x1ffd, 13),
            (127, 0xfff_fffc, 28),
            (128, 0xf_ffe6, 20),
            (249, 0xfff_fffe, 28),
            (255, 0x3ff_ffee, 26),
            (END, 0x3fff_ffff, 30),
        ] {
            assert!(codes.contains(&(symbol, code, length)), "symbol {symbol}");
        }
    }

    #[test]
    fn padding_is_short_and_all_ones() {
        let decoded = |text: &[u8]| {
            let mut out = Vec::new();
            decode(text, &mut out).map(|()| out)
        };
        assert_eq!(decoded(&[0x1f]), Ok(b"a".to_vec()), "`a` and three ones");
        assert_eq!(decoded(&[0x18]), Err(Malformed), "padded with zeros");
        assert_eq!(decoded(&[0x1f, 0xff]), Err(Malformed), "a whole byte of padding");
        assert_eq!(decoded(&[0xff; 4]), Err(Malformed), "the end of the string");
    }

    proptest! {
        #[test]
        fn text_survives_compression(text in prop::collection::vec(any::<u8>(), 0..100)) {
            let (mut packed, mut read) = (Vec::new(), Vec::new());
            encode(&text, &mut packed);
            decode(&packed, &mut read).expect("well formed");
            prop_assert_eq!(read, text);
        }

        #[test]
        fn no_bytes_are_too_odd(text in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut out = Vec::new();
            let read = decode(&text, &mut out);
            let bits_max = text.len() * 8;
            prop_assert_eq!(out.len() * 5 <= bits_max, true, "five bits at least: {:?}", read);
        }
    }
}
