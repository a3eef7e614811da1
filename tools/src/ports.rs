//! Ports for servers that are started on this machine.
//!
//! Decides that no two servers of one process get the same port, and that none is among those that
//! the system gives to connections: one of these could take it while its server restarts.

use std::{
    io,
    net::TcpListener,
    ops::Range,
    process,
    sync::atomic::{AtomicU32, Ordering},
};

/// Below the ports of connections (from 32,768 on, on Linux), above those of well-known services.
const PORTS: Range<u16> = 10_000..32_000;

/// Ports between the first ones of two processes with neighbouring ids, so that they do not meet.
const STRIDE: u32 = 211;

/// A port of the loopback interface that nobody listens on now.
///
/// # Errors
/// If there is none.
pub fn free_port() -> io::Result<u16> {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let count = u32::from(PORTS.end - PORTS.start);
    let first = process::id().wrapping_mul(STRIDE);
    for _ in 0..count {
        let number = first.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed)) % count;
        let port = PORTS.start + u16::try_from(number).expect("less than the count");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_given_once() {
        let mut ports: Vec<_> = (0..50).map(|_| free_port().unwrap()).collect();
        assert!(ports.iter().all(|port| PORTS.contains(port)), "{ports:?}");
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 50, "{ports:?}");
    }
}
