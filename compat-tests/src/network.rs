//! Members that each have an address of their own, and a network between them that can be cut.
//!
//! Decides how: every member runs in a network namespace, joined by a bridge to the namespace of the
//! test, so that clients reach all of them whatever is cut between members. A cut is a route into
//! nothing in the sender's namespace, so it works in one direction. All of it lives in a namespace of
//! the process's own, and is gone with it. Needs `unshare` and `ip`, and the right to use them.

use std::{env, os::unix::process::CommandExt, process::Command};

use anyhow::{Context, ensure};

/// Set in the process that has its own namespaces.
const INSIDE: &str = "OXETCD_OWN_NETWORK";

/// Continues in namespaces of this process's own: the first call replaces the process by one that
/// starts over inside of them.
///
/// # Errors
/// If that is not allowed here.
pub fn enter() -> anyhow::Result<()> {
    if env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    // Names of namespaces are files, which must not be seen from outside either.
    let script = "mkdir -p /run/netns && mount -t tmpfs none /run/netns && ip link set lo up \
                  && exec \"$@\"";
    let error = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "sh", "-c", script, "sh"])
        .arg(env::current_exe()?)
        .args(env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(error).context("cannot run `unshare`")
}

/// The network of a group.
#[derive(Debug)]
pub struct Network {
    members: usize,
}

impl Network {
    /// A whole network for that many members.
    ///
    /// # Errors
    /// If a command fails.
    pub fn new(members: usize) -> anyhow::Result<Self> {
        ip("link add br0 type bridge")?;
        ip("addr add 10.77.0.254/24 dev br0")?;
        ip("link set br0 up")?;
        for member in 0..members {
            let name = namespace(member);
            ip(&format!("netns add {name}"))?;
            ip(&format!("link add v{member} type veth peer name eth0 netns {name}"))?;
            ip(&format!("link set v{member} master br0 up"))?;
            ip(&format!("-n {name} addr add {}/24 dev eth0", address(member)))?;
            ip(&format!("-n {name} link set eth0 up"))?;
            ip(&format!("-n {name} link set lo up"))?;
        }
        Ok(Self { members })
    }

    /// The words before a member's command that run it in its place.
    #[must_use]
    pub fn wrapper(member: usize) -> Vec<String> {
        ["ip", "netns", "exec", &namespace(member)].map(str::to_owned).to_vec()
    }

    /// Lets nothing through that `from` sends to `to`.
    ///
    /// # Errors
    /// If the command fails.
    pub fn cut(&self, from: usize, to: usize) -> anyhow::Result<()> {
        let (name, to) = (namespace(from), address(to));
        ip(&format!("-n {name} route replace blackhole {to}/32"))?;
        // Connections remember the way that they took.
        ip(&format!("-n {name} route flush cache"))
    }

    /// Undoes every cut.
    ///
    /// # Errors
    /// If a command fails.
    pub fn heal(&self) -> anyhow::Result<()> {
        for member in 0..self.members {
            let name = namespace(member);
            ip(&format!("-n {name} route flush type blackhole"))?;
            ip(&format!("-n {name} route flush cache"))?;
        }
        Ok(())
    }
}

/// A member's address.
#[must_use]
pub fn address(member: usize) -> String {
    format!("10.77.0.{}", member + 1)
}

fn namespace(member: usize) -> String {
    format!("m{member}")
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output().context("no `ip`")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {arguments}: {errors}");
    Ok(())
}
