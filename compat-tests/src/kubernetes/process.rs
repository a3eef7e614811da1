//! The API server's process.
//!
//! Decides its flags. Its certificate is the one that it makes for itself; the key of that signs
//! service accounts too, since nobody here has one. Whoever has the one token may do everything.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::Context;
use oxetcd_tools::ports::free_port;
use tempfile::TempDir;

/// What the token file gives the drill.
pub(super) const TOKEN: &str = "drill";

/// How long an event lives.
pub(super) const EVENT_TTL_SECONDS: u64 = 30;

/// How often the API server drops the history that is older than one such time, so that it does so
/// during the drill.
const COMPACTION_INTERVAL: &str = "15s";

/// It wants an address that is not loopback for others to reach it at. Nobody does: this one is for
/// documentation.
const ADVERTISED: &str = "--advertise-address=192.0.2.1";

/// An API server that runs, or ran.
#[derive(Debug)]
pub(super) struct ApiServer {
    program: PathBuf,
    endpoints: String,
    child: Option<Child>,
    dir: TempDir,
    /// Where it listens on loopback.
    pub(super) port: u16,
}

impl ApiServer {
    /// Starts `program` on the members at `endpoints`; it is ready later.
    pub(super) fn start(program: &Path, endpoints: &str) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let port = free_port()?;
        fs::write(dir.path().join("tokens.csv"), format!("{TOKEN},drill,1,system:masters\n"))?;
        let (program, endpoints) = (program.to_path_buf(), endpoints.to_owned());
        let mut server = Self { program, endpoints, child: None, dir, port };
        server.resume()?;
        Ok(server)
    }

    /// Starts the process, with the certificate that it made before if it did.
    pub(super) fn resume(&mut self) -> anyhow::Result<()> {
        assert!(self.child.is_none(), "the API server runs already");
        let (dir, port) = (self.dir.path(), self.port);
        let (tokens, key) = (dir.join("tokens.csv"), dir.join("apiserver.key"));
        let log = File::options().create(true).append(true).open(dir.join("log"))?;
        let child = Command::new(&self.program)
            .arg(format!("--etcd-servers={}", self.endpoints))
            .arg(format!("--etcd-compaction-interval={COMPACTION_INTERVAL}"))
            .arg(format!("--event-ttl={EVENT_TTL_SECONDS}s"))
            .args(["--bind-address=127.0.0.1", ADVERTISED])
            .arg(format!("--secure-port={port}"))
            .arg(format!("--cert-dir={}", dir.display()))
            .arg(format!("--token-auth-file={}", tokens.display()))
            .arg("--service-cluster-ip-range=10.0.0.0/24")
            .arg("--service-account-issuer=https://localhost")
            .arg(format!("--service-account-signing-key-file={}", key.display()))
            .arg(format!("--service-account-key-file={}", key.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// The certificate that it made, with that of its authority.
    pub(super) fn certificate(&self) -> PathBuf {
        self.dir.path().join("apiserver.crt")
    }

    pub(super) fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// The end of its log, newest first.
    pub(super) fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        log.lines().rev().take(12).collect::<Vec<_>>().join("\n")
    }

    /// Ends it at once: its state is in the members.
    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A process that is gone already needs no killing.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.kill();
    }
}
