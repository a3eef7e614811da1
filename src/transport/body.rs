//! The bodies of requests.
//!
//! Decides that they are read as they come, up to a limit, and that a sender that stops sending is
//! given up. Used by everything that takes a body.

use std::{fmt, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::{sync::Semaphore, time::timeout};

use super::socket::SILENCE_MAX;

/// A body that is larger than this needs a place.
const LARGE_BYTES: usize = 64 << 10;

/// Large bodies that are read at a time; the others wait, in the sockets. There are more connections
/// than there is memory for the largest body of each.
pub(super) const LARGE_BODIES_MAX: usize = 8;

/// A body that has not come in full by then is given up.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a body did not come.
#[derive(Debug)]
pub(super) enum BodyError {
    /// It has more bytes than were asked for.
    TooLarge,
    /// The peer stopped sending.
    Silence,
    /// The connection ended first.
    Cut,
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => f.write_str("http: request body too large"),
            Self::Silence => f.write_str("i/o timeout"),
            // Whatever it was, this is what a reader of Go's library sees.
            Self::Cut => f.write_str("unexpected EOF"),
        }
    }
}

/// The next part of `body`; `None` at its end.
///
/// # Errors
/// - [`BodyError::Silence`], [`BodyError::Cut`].
pub(super) async fn next_part(body: &mut Incoming) -> Result<Option<Bytes>, BodyError> {
    loop {
        let frame = match timeout(SILENCE_MAX, body.frame()).await {
            Err(_) => return Err(BodyError::Silence),
            Ok(None) => return Ok(None),
            Ok(Some(frame)) => frame.map_err(|_cut| BodyError::Cut)?,
        };
        // Anything else is a trailer, which nobody wants.
        if let Ok(bytes) = frame.into_data()
            && !bytes.is_empty()
        {
            return Ok(Some(bytes));
        }
    }
}

/// All of `body`, if it has at most `bytes_max` bytes. A large one waits until `room` has a place
/// for it.
///
/// # Errors
/// - [`BodyError`].
pub(super) async fn read_body(
    body: Incoming,
    bytes_max: usize,
    room: &Semaphore,
) -> Result<Bytes, BodyError> {
    let reading = timeout(BODY_TIMEOUT, read_all(body, bytes_max, room));
    reading.await.unwrap_or(Err(BodyError::Silence))
}

async fn read_all(
    mut body: Incoming,
    bytes_max: usize,
    room: &Semaphore,
) -> Result<Bytes, BodyError> {
    let mut all = BytesMut::new();
    let mut place = None;
    while let Some(part) = next_part(&mut body).await? {
        if LARGE_BYTES < all.len() + part.len() && place.is_none() {
            place = Some(room.acquire().await.map_err(|_closed| BodyError::Cut)?);
        }
        if bytes_max - all.len() < part.len() {
            return Err(BodyError::TooLarge);
        }
        all.extend_from_slice(&part);
    }
    Ok(all.freeze())
}
