//! A name server for tests: SRV and A records of a few names, over UDP.
//!
//! Decides nothing: it knows the records that it was given, and says of every other name that there
//! is none. It stands on the address that this process's `/etc/resolv.conf` is made to name, so it
//! needs a network and a file system of the process's own (`network::enter`).

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    process::Command,
    sync::{Arc, Mutex},
    thread,
};

use anyhow::{Context, ensure};
use tempfile::NamedTempFile;

const A: u16 = 1;
const SRV: u16 = 33;
const CLASS: [u8; 2] = [0, 1];

/// Response, recursion asked for and available.
const ANSWER: u16 = 0x8180;
const NO_SUCH_NAME: u16 = ANSWER | 3;

/// Records by their type and their names in lower case, as the bytes behind their length.
type Zone = BTreeMap<(u16, String), Vec<Vec<u8>>>;

/// A running name server.
#[derive(Debug)]
pub struct NameServer {
    zone: Arc<Mutex<Zone>>,
    /// What is mounted over `/etc/resolv.conf`.
    _resolv_conf: NamedTempFile,
}

impl NameServer {
    /// Starts one without records, and makes it the only one of this process and its children.
    ///
    /// # Errors
    /// If the process has no network and file system of its own.
    pub fn start() -> anyhow::Result<Self> {
        let resolv_conf = NamedTempFile::new()?;
        fs::write(resolv_conf.path(), "nameserver 127.0.0.1\noptions timeout:2\n")?;
        let mounted = Command::new("mount")
            .arg("--bind")
            .args([resolv_conf.path(), "/etc/resolv.conf".as_ref()])
            .status()?;
        ensure!(mounted.success(), "nothing can be mounted on /etc/resolv.conf");
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).context("port 53 is taken")?;
        let zone = Arc::<Mutex<Zone>>::default();
        let served = Arc::clone(&zone);
        thread::spawn(move || serve(&socket, &served));
        Ok(Self { zone, _resolv_conf: resolv_conf })
    }

    /// Adds an address.
    pub fn add_address(&self, name: &str, address: Ipv4Addr) {
        self.add(A, name, address.octets().to_vec());
    }

    /// Adds a target of a service, such as `_etcd-server._tcp.example.test`.
    pub fn add_service(&self, name: &str, priority: u16, target: &str, port: u16) {
        let mut data = [priority, 0, port].map(u16::to_be_bytes).concat();
        data.extend(encoded(target));
        self.add(SRV, name, data);
    }

    /// Forgets all services; addresses stay.
    pub fn forget_services(&self) {
        let mut zone = self.zone.lock().expect("nobody panics with it");
        zone.retain(|(kind, _), _| *kind != SRV);
    }

    fn add(&self, kind: u16, name: &str, data: Vec<u8>) {
        let mut zone = self.zone.lock().expect("nobody panics with it");
        zone.entry((kind, name.to_lowercase())).or_default().push(data);
    }
}

fn serve(socket: &UdpSocket, zone: &Mutex<Zone>) {
    let mut buffer = [0; 1024];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { return };
        let zone = zone.lock().expect("nobody panics with it");
        if let Some(answer) = answer(&zone, &buffer[..length]) {
            send(socket, &answer, from);
        }
    }
}

fn send(socket: &UdpSocket, answer: &[u8], to: SocketAddr) {
    // Whoever asked may be gone already.
    let _unsent = socket.send_to(answer, to);
}

/// The answer to a question; `None` to what is none.
fn answer(zone: &Zone, query: &[u8]) -> Option<Vec<u8>> {
    let (name, end) = decoded(query, 12)?;
    let kind = u16::from_be_bytes(query.get(end..end + 2)?.try_into().ok()?);
    let question = query.get(12..end + 4)?;
    let none = Vec::new();
    let records = zone.get(&(kind, name.clone())).unwrap_or(&none);
    let is_known = zone.keys().any(|(_, known)| *known == name);
    let count = u16::try_from(records.len()).ok()?;
    let status = if is_known { ANSWER } else { NO_SUCH_NAME };
    let mut answer = query[..2].to_vec();
    answer.extend([status, 1, count, 0, 0].map(u16::to_be_bytes).concat());
    answer.extend(question);
    for data in records {
        // The name of the question, which stands behind the 12 bytes of the header.
        answer.extend([0xc0, 12]);
        answer.extend(kind.to_be_bytes());
        answer.extend(CLASS);
        answer.extend(60_u32.to_be_bytes());
        answer.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
        answer.extend(data);
    }
    Some(answer)
}

/// A name in lower case, and where it ends.
fn decoded(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        let label = message.get(at..at + length)?;
        labels.push(String::from_utf8_lossy(label).to_lowercase());
        at += length;
    }
}

fn encoded(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("labels are short"));
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}
