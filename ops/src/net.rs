//! A network of a drill's own: each server in a network namespace, all on one bridge, so that
//! cables can be pulled and directions cut. Needs `unshare`, `ip` and `nsenter`; everything of it
//! is gone when the process that made it ends.

use anyhow::{Context, bail};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Set in a process that runs in a network of its own.
const INSIDE: &str = "CAIRN_OWN_NETWORK";
/// Where `ip netns` names namespaces; the process has a mount table of its own, and there its own.
const NAMES: &str = "/run/netns";
const BRIDGE: &str = "cairn0";
/// A neighbour that nobody is: what is sent there is lost without a word.
const NOBODY: &str = "02:00:00:00:00:fe";

/// Starts this program again, with the same arguments, in a network and a mount table of its own.
/// Returns at once if it is there already; otherwise only if that fails.
pub fn enter() -> anyhow::Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        std::fs::create_dir_all(NAMES).with_context(|| format!("make {NAMES}"))?;
        tool("mount", &["-t", "tmpfs", "tmpfs", NAMES])?;
        return tool("ip", &["link", "set", "lo", "up"]);
    }
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount"]);
    if !is_root() {
        command.arg("--map-root-user");
    }
    command.arg("--").arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(INSIDE, "1");
    Err(command.exec()).context("start unshare (of util-linux): this drill needs a network of its own")
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// Runs a tool to its end.
pub fn tool(name: &str, args: &[&str]) -> anyhow::Result<()> {
    let out = Command::new(name).args(args).output().with_context(|| format!("start {name}"))?;
    if !out.status.success() {
        let why = String::from_utf8_lossy(&out.stderr);
        bail!("{name} {}: {}; this drill needs root", args.join(" "), why.trim());
    }
    Ok(())
}

/// Hosts on a bridge; this process is on it, too.
pub struct Net {
    hosts: Vec<String>,
}

impl Net {
    /// Makes a host for each name.
    pub fn new(hosts: Vec<String>) -> anyhow::Result<Net> {
        let net = Net { hosts };
        tool("ip", &["link", "add", BRIDGE, "type", "bridge"])?;
        tool("ip", &["addr", "add", &format!("{}/24", address(0)), "dev", BRIDGE])?;
        tool("ip", &["link", "set", BRIDGE, "up"])?;
        for host in &net.hosts {
            let (addr, cable) = (format!("{}/24", net.addr(host)), cable(host));
            tool("ip", &["netns", "add", host])?;
            tool("ip", &["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", host])?;
            tool("ip", &["link", "set", &cable, "master", BRIDGE, "up"])?;
            tool("ip", &["-n", host, "addr", "add", &addr, "dev", "eth0"])?;
            tool("ip", &["-n", host, "link", "set", "eth0", "up"])?;
            tool("ip", &["-n", host, "link", "set", "lo", "up"])?;
        }
        Ok(net)
    }

    /// The address of a host.
    pub fn addr(&self, host: &str) -> IpAddr {
        let at = self.hosts.iter().position(|h| h == host).expect("a host of this network");
        address(at + 1)
    }

    /// A command that is to be run on a host.
    pub fn command(host: &str, binary: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={NAMES}/{host}")).arg(binary);
        command
    }

    /// Pulls the cable of a host.
    pub fn pull(&self, host: &str) -> anyhow::Result<()> {
        tool("ip", &["link", "set", &cable(host), "down"])
    }

    /// Puts it in again.
    pub fn plug(&self, host: &str) -> anyhow::Result<()> {
        tool("ip", &["link", "set", &cable(host), "up"])
    }

    /// What a host sends to another is lost from now on; the other direction goes on.
    pub fn lose(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let to = self.addr(to).to_string();
        tool(
            "ip",
            &["-n", from, "neigh", "replace", &to, "lladdr", NOBODY, "dev", "eth0", "nud", "permanent"],
        )
    }

    /// It arrives again.
    pub fn find(&self, from: &str, to: &str) -> anyhow::Result<()> {
        tool("ip", &["-n", from, "neigh", "del", &self.addr(to).to_string(), "dev", "eth0"])
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let delete = |args: &[&str]| tool("ip", args).err();
        let hosts = self.hosts.iter().filter_map(|host| delete(&["netns", "del", host]));
        let failed: Vec<_> = hosts.collect();
        for error in failed.into_iter().chain(delete(&["link", "del", BRIDGE])) {
            tracing::warn!(%error, "a part of the drill's network stays until this process ends");
        }
    }
}

fn address(n: usize) -> IpAddr {
    Ipv4Addr::new(10, 77, 0, n as u8 + 1).into()
}

fn cable(host: &str) -> String {
    format!("v-{host}")
}
