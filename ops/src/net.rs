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

/// The bridge of hosts behind a trunk.
const FAR_BRIDGE: &str = "cairn1";
/// The ends of the trunk, at either bridge.
const TRUNK: [&str; 2] = ["trunk0", "trunk1"];
/// What a shaped link sends at once, in bytes: above any packet.
const BURST: &str = "64kb";
/// What does not get onto a shaped link within this is dropped, as by a switch whose buffer is full.
const QUEUE: &str = "25ms";

/// How much goes through a network's links, in each direction.
#[derive(Clone, Copy, Debug)]
pub struct Links {
    /// Each host's, Mbit/s.
    pub host_mbit: u32,
    /// That between the two bridges, Mbit/s.
    pub trunk_mbit: u32,
}

/// Hosts on a bridge; this process is on it, too.
pub struct Net {
    hosts: Vec<String>,
    bridges: Vec<&'static str>,
}

impl Net {
    /// Makes a host for each name.
    pub fn new(hosts: Vec<String>) -> anyhow::Result<Net> {
        let mut net = Net { hosts: vec![], bridges: vec![] };
        net.bridge(BRIDGE)?;
        tool("ip", &["addr", "add", &format!("{}/24", address(0)), "dev", BRIDGE])?;
        hosts.into_iter().try_for_each(|host| net.host(host, BRIDGE))?;
        Ok(net)
    }

    /// The same, and more hosts on a bridge of their own, behind a trunk; all links are held to a rate by
    /// token buckets at both ends.
    pub fn shaped(near: Vec<String>, far: Vec<String>, links: Links) -> anyhow::Result<Net> {
        let mut net = Net::new(near)?;
        net.bridge(FAR_BRIDGE)?;
        tool("ip", &["link", "add", TRUNK[0], "type", "veth", "peer", "name", TRUNK[1]])?;
        for (end, bridge) in TRUNK.into_iter().zip([BRIDGE, FAR_BRIDGE]) {
            tool("ip", &["link", "set", end, "master", bridge, "up"])?;
            shape(&[], end, links.trunk_mbit)?;
        }
        far.into_iter().try_for_each(|host| net.host(host, FAR_BRIDGE))?;
        for host in &net.hosts {
            shape(&["-n", host], "eth0", links.host_mbit)?;
            shape(&[], &cable(host), links.host_mbit)?;
        }
        Ok(net)
    }

    fn bridge(&mut self, name: &'static str) -> anyhow::Result<()> {
        tool("ip", &["link", "add", name, "type", "bridge"])?;
        self.bridges.push(name);
        tool("ip", &["link", "set", name, "up"])
    }

    fn host(&mut self, host: String, bridge: &str) -> anyhow::Result<()> {
        self.hosts.push(host.clone());
        let (addr, cable) = (format!("{}/24", self.addr(&host)), cable(&host));
        tool("ip", &["netns", "add", &host])?;
        tool("ip", &["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &host])?;
        tool("ip", &["link", "set", &cable, "master", bridge, "up"])?;
        tool("ip", &["-n", &host, "addr", "add", &addr, "dev", "eth0"])?;
        tool("ip", &["-n", &host, "link", "set", "eth0", "up"])?;
        tool("ip", &["-n", &host, "link", "set", "lo", "up"])
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
        let bridges = self.bridges.iter().filter_map(|bridge| delete(&["link", "del", bridge]));
        for error in failed.into_iter().chain(bridges) {
            tracing::warn!(%error, "a part of the drill's network stays until this process ends");
        }
    }
}

/// Holds what leaves a device to a rate.
fn shape(at: &[&str], device: &str, mbit: u32) -> anyhow::Result<()> {
    let rate = format!("{mbit}mbit");
    let bucket =
        ["qdisc", "add", "dev", device, "root", "tbf", "rate", &rate, "burst", BURST, "latency", QUEUE];
    tool("tc", &[at, &bucket[..]].concat())
}

fn address(n: usize) -> IpAddr {
    Ipv4Addr::new(10, 77, 0, n as u8 + 1).into()
}

fn cable(host: &str) -> String {
    format!("v-{host}")
}
