//! Word to the service manager that the server is ready.
//!
//! Decides the protocol: systemd's, one datagram to the socket that `NOTIFY_SOCKET` names. `boot`
//! calls it once clients are served.
//!
//! Source: `sd_notify(3)`; etcd `server/etcdmain/main.go`.

use std::{
    env, io,
    os::{linux::net::SocketAddrExt as _, unix::net::SocketAddr, unix::net::UnixDatagram},
};

const MESSAGE: &[u8] = b"READY=1";

/// Tells the service manager that started this process, if one did and asked to be told.
///
/// # Errors
/// If the socket it named cannot be written to.
pub fn notify() -> io::Result<()> {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let path = path.to_string_lossy().into_owned();
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&path)?,
    };
    send(&address)
}

fn send(address: &SocketAddr) -> io::Result<()> {
    UnixDatagram::unbound()?.send_to_addr(MESSAGE, address).map(|_sent| ())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use super::{MESSAGE, send};

    #[test]
    fn the_service_manager_hears_that_we_are_ready() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        send(&SocketAddr::from_pathname(&path).unwrap()).unwrap();
        let mut buffer = [0; 64];
        let length = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], MESSAGE, "one datagram with systemd's words");
    }
}
