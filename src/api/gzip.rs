//! Messages that clients send compressed.
//!
//! Decides how large one may become, which its sender does not decide: it is unpacked as far as a
//! plain message may reach and one byte more, and what is longer is refused. Called by `wire` for a
//! message whose flag says so; all others pass by.
//!
//! Deliberately absent: the way back. An answer may be plain whatever the question was.
//!
//! Source: grpc-go `rpc_util.go`, `decompress`, and `encoding/gzip`.

use std::io::{self, ErrorKind, Read as _};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use tonic::Code;

use super::status::Failure;

/// How etcd's clients call it.
pub(super) const ENCODING: &[u8] = b"gzip";

/// The bytes that every header has.
const HEADER_BYTES: usize = 10;

/// Unpacks a message of at most `message_bytes_max`.
///
/// # Errors
/// With grpc-go's text if it is damaged, or larger.
pub(super) fn unpacked(packed: &[u8], message_bytes_max: usize) -> Result<Bytes, Failure> {
    let decoder = MultiGzDecoder::new(packed);
    if decoder.header().is_none() {
        let why = match packed.len() {
            0 => "EOF",
            1..HEADER_BYTES => "unexpected EOF",
            _ => "gzip: invalid header",
        };
        let text = format!("grpc: failed to decompress the message: {why}");
        return Err(Failure::new(Code::Internal, text));
    }
    let limit = u64::try_from(message_bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    let mut message = Vec::new();
    let read = decoder.take(limit).read_to_end(&mut message);
    read.map_err(|error| damaged(&error))?;
    if message_bytes_max < message.len() {
        let text = format!(
            "grpc: received message after decompression larger than max {message_bytes_max}"
        );
        return Err(Failure::new(Code::ResourceExhausted, text));
    }
    // Keys and values that are kept share these bytes, and must not keep more.
    message.shrink_to_fit();
    Ok(message.into())
}

fn damaged(error: &io::Error) -> Failure {
    let why = if error.kind() == ErrorKind::UnexpectedEof {
        "unexpected EOF".to_owned()
    } else {
        error.to_string()
    };
    Failure::new(Code::Internal, format!("grpc: failed to read decompressed data: {why}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn packed(message: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(message).expect("memory takes it");
        encoder.finish().expect("memory takes it")
    }

    #[track_caller]
    fn refused(packed: &[u8], bytes_max: usize, code: Code, text: &str) {
        let failure = unpacked(packed, bytes_max).expect_err("refused");
        assert_eq!((failure.code, failure.text.as_ref()), (code, text));
    }

    // The expectations were read off a running etcd 3.7.1.
    #[test]
    fn damaged_messages_are_refused_with_the_texts_of_grpc_go() {
        let whole = packed(b"message");
        let header = "grpc: failed to decompress the message: ";
        refused(b"", 9, Code::Internal, &format!("{header}EOF"));
        refused(&whole[..9], 9, Code::Internal, &format!("{header}unexpected EOF"));
        refused(b"no gzip at all", 9, Code::Internal, &format!("{header}gzip: invalid header"));
        let short = "grpc: failed to read decompressed data: unexpected EOF";
        for end in [HEADER_BYTES, whole.len() - 1] {
            refused(&whole[..end], 9, Code::Internal, short);
        }
        let mut other_checksum = whole;
        let at = other_checksum.len() - 8;
        other_checksum[at] ^= 1;
        let failure = unpacked(&other_checksum, 9).expect_err("refused");
        assert!(
            failure.text.starts_with("grpc: failed to read decompressed data: "),
            "{failure:?}"
        );
    }

    #[test]
    fn a_message_may_be_as_large_as_a_plain_one_and_no_larger() {
        let whole = packed(&[7; 100]);
        assert_eq!(unpacked(&whole, 100), Ok(Bytes::from(vec![7; 100])));
        let text = "grpc: received message after decompression larger than max 99";
        refused(&whole, 99, Code::ResourceExhausted, text);
        let twice = [packed(b"one "), packed(b"message")].concat();
        assert_eq!(unpacked(&twice, 11), Ok(Bytes::from_static(b"one message")), "two members");
        let text = "grpc: received message after decompression larger than max 10";
        refused(&twice, 10, Code::ResourceExhausted, text);
    }

    #[test]
    fn a_bomb_is_unpacked_no_further_than_allowed() {
        let bomb = packed(&vec![0; 64 << 20]);
        assert!(bomb.len() < 70_000, "a bomb is small: {}", bomb.len());
        let text = "grpc: received message after decompression larger than max 1000";
        refused(&bomb, 1000, Code::ResourceExhausted, text);
    }

    proptest! {
        #[test]
        fn messages_survive_and_noise_hurts_nobody(
            message in prop::collection::vec(any::<u8>(), 0..2000),
            flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 0..4),
        ) {
            let mut sent = packed(&message);
            prop_assert_eq!(unpacked(&sent, 2000), Ok(Bytes::from(message)));
            for (at, bits) in flips {
                let at = at.index(sent.len());
                sent[at] ^= bits;
            }
            if let Ok(read) = unpacked(&sent, 2000) {
                prop_assert!(read.len() <= 2000, "{} bytes", read.len());
            }
        }
    }
}
