//! The first bytes of a connection.
//!
//! Decides from them which protocol a client speaks: HTTP/2 if it knows beforehand, or else HTTP/1.
//! An upgrade from one to the other is not offered, as with etcd. What was read is not lost. Used by
//! `connection`.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::http2::PREFACE;

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// Reads until the protocol is known, or the client has ended.
///
/// # Errors
/// If reading fails.
pub(super) async fn sniff<IO>(io: &mut IO) -> io::Result<(Protocol, BytesMut)>
where
    IO: AsyncRead + Unpin,
{
    let mut first = BytesMut::new();
    loop {
        if let Some(protocol) = protocol(&first) {
            return Ok((protocol, first));
        }
        if io.read_buf(&mut first).await? == 0 {
            return Ok((Protocol::Http1, first));
        }
    }
}

fn protocol(first: &[u8]) -> Option<Protocol> {
    if first.starts_with(PREFACE) {
        Some(Protocol::Http2)
    } else if PREFACE.starts_with(first) {
        None
    } else {
        Some(Protocol::Http1)
    }
}

/// A connection some bytes of which have been read already.
#[derive(Debug)]
pub(super) struct Sniffed<IO> {
    pub(super) first: BytesMut,
    pub(super) io: IO,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Sniffed<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.io).poll_read(context, buffer);
        }
        let bytes = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first[..bytes]);
        self.first.advance(bytes);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Sniffed<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocol_is_known_as_soon_as_it_can_be() {
        assert_eq!(protocol(b""), None);
        assert_eq!(protocol(b"PRI * HT"), None);
        assert_eq!(protocol(PREFACE), Some(Protocol::Http2));
        for text in [&b"G"[..], b"PRI *  ", b"PUT"] {
            assert_eq!(protocol(text), Some(Protocol::Http1), "{}", text.escape_ascii());
        }
    }
}
