//! Sockets that wait for connections.
//!
//! Decides how they are opened: early, before the member is ready, so that clients wait in the
//! kernel instead of being turned away; with Go's settings for TCP; and a Unix socket in place of a
//! file that a dead process left. Called by `boot`, then by `workers`.
//!
//! Source: etcd `client/pkg/transport/listener.go`, `unix_listener.go`.

use std::{
    error::Error,
    fmt, io,
    net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    time::Duration,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

use super::options::{Address, Endpoint, Options, Traffic};

/// Connections that wait to be accepted; the kernel cuts it to its own limit.
const BACKLOG: i32 = 4096;

/// Go's default: probes start after this time of silence and repeat as often.
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);

/// Descriptors that are kept for files and peers.
///
/// Source: etcd `server/embed/etcd.go`, `reservedInternalFDNum`.
const DESCRIPTORS_RESERVED: u64 = 150;

/// Why a socket could not be opened.
#[derive(Debug)]
pub enum SocketError {
    /// The URL asks for TLS.
    Tls {
        /// It.
        url: String,
    },
    /// The URL is not one to listen on.
    Url {
        /// It.
        url: String,
    },
    /// The address is to serve gRPC only and HTTP only.
    Both {
        /// It.
        url: String,
    },
    /// The process may open too few files.
    Descriptors {
        /// How many it may.
        limit: u64,
    },
    /// The system refused.
    System {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
}

impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tls { url } => write!(
                f,
                "TLS key/cert (--cert-file, --key-file) must be provided for client url {url} \
                 with HTTPS scheme"
            ),
            Self::Url { url } => write!(f, "the URL {url} cannot be listened on"),
            Self::Both { url } => write!(
                f,
                "cannot bind both --listen-client-urls and --listen-client-http-urls on the same \
                 url {url}"
            ),
            Self::Descriptors { limit } => write!(
                f,
                "the limit of {limit} open files is too low; it has to be above \
                 {DESCRIPTORS_RESERVED}"
            ),
            Self::System { address, .. } => write!(f, "cannot listen on {address}"),
        }
    }
}

impl Error for SocketError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::System { source, .. } => Some(source),
            Self::Tls { .. } | Self::Url { .. } | Self::Both { .. } | Self::Descriptors { .. } => {
                None
            }
        }
    }
}

/// Opens the sockets of peer URLs, which the transport serves.
///
/// # Errors
/// - [`SocketError`], also for Unix sockets: peers are reached over TCP only.
pub fn bind_peers(urls: &[String], options: &Options) -> Result<Vec<TcpListener>, SocketError> {
    let mut addresses = std::collections::BTreeSet::new();
    for url in urls {
        // The kind of traffic is of no concern here.
        match Endpoint::from_url(url, Traffic::Http)?.address {
            Address::Tcp(address) => addresses.insert(address),
            Address::Unix(_) => return Err(SocketError::Url { url: url.clone() }),
        };
    }
    let bound = addresses.into_iter().map(|address| {
        let socket = bind_tcp(&address, options);
        socket.map_err(|source| SocketError::System { address, source })
    });
    bound.collect()
}

/// Open sockets that nobody serves yet.
#[derive(Debug)]
pub struct Listeners {
    pub(super) listeners: Vec<Listener>,
    pub(super) connections_max: usize,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: Socket,
    pub(super) traffic: Traffic,
    /// As the log shows it.
    pub(super) address: String,
}

#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpListener),
    /// With its path, which is removed at the end.
    Unix(UnixListener, String),
}

/// A connection that was accepted.
#[derive(Debug)]
pub(super) enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl Listeners {
    /// Opens every endpoint.
    ///
    /// # Errors
    /// - [`SocketError::System`], [`SocketError::Descriptors`].
    pub fn bind(endpoints: &[Endpoint], options: &Options) -> Result<Self, SocketError> {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let limit = limit.current.unwrap_or(u64::MAX);
        let free = limit.saturating_sub(DESCRIPTORS_RESERVED);
        if free == 0 {
            return Err(SocketError::Descriptors { limit });
        }
        let connections_max =
            usize::try_from(free).unwrap_or(usize::MAX).min(tokio::sync::Semaphore::MAX_PERMITS);
        let listeners = endpoints.iter().map(|endpoint| Listener::bind(endpoint, options));
        Ok(Self { listeners: listeners.collect::<Result<_, _>>()?, connections_max })
    }

    /// The addresses of the TCP sockets, in order of the endpoints.
    #[must_use]
    pub fn tcp_addresses(&self) -> Vec<SocketAddr> {
        let address = |listener: &Listener| match &listener.socket {
            Socket::Tcp(socket) => socket.local_addr().ok(),
            Socket::Unix(..) => None,
        };
        self.listeners.iter().filter_map(address).collect()
    }
}

impl Listener {
    fn bind(endpoint: &Endpoint, options: &Options) -> Result<Self, SocketError> {
        let (address, socket) = match &endpoint.address {
            Address::Tcp(address) => (address, bind_tcp(address, options).map(Socket::Tcp)),
            Address::Unix(path) => {
                (path, bind_unix(path).map(|socket| Socket::Unix(socket, path.clone())))
            }
        };
        let socket =
            socket.map_err(|source| SocketError::System { address: address.clone(), source })?;
        Ok(Self { socket, traffic: endpoint.traffic, address: address.clone() })
    }
}

fn bind_tcp(address: &str, options: &Options) -> io::Result<TcpListener> {
    // An empty host is every address of the machine, as in Go.
    let address = match address.strip_prefix(':') {
        Some(port) => format!("[::]:{port}"),
        None => address.to_owned(),
    };
    let address = address
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))?;
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, options.reuse_address)?;
    sockopt::set_socket_reuseport(&socket, options.reuse_port)?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

fn bind_unix(path: &str) -> io::Result<UnixListener> {
    match std::fs::remove_file(Path::new(path)) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let socket = UnixListener::bind(path)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Somebody else may have removed it first.
            drop(std::fs::remove_file(path));
        }
    }
}

/// Prepares a client's TCP connection: answers leave at once, and a dead client is noticed.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = stream.as_fd();
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, TCP_KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(socket, TCP_KEEPALIVE)?;
    Ok(())
}
