//! A local cluster of real processes in one directory: made, started, watched, stopped.

use crate::net::Net;
use anyhow::{Context, bail};
use client::{Client, Config};
use common::{ClusterId, StoreId};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The cluster is healthy within this after its start, or `up` gives up.
pub const HEALTHY_WITHIN: Duration = Duration::from_secs(60);
/// The port of masters that have an address each.
const MASTER_PORT: u16 = 4600;
/// Processes that were asked to stop have so long.
const STOP_WITHIN: Duration = Duration::from_secs(15);

/// What a new cluster is made of.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Masters: 1, 3 or 5.
    pub masters: u32,
    /// Chunkservers.
    pub chunkservers: u32,
    /// Racks, over which the chunkservers are spread in turn.
    pub racks: u32,
    /// Address that everything listens on.
    pub bind: IpAddr,
    /// Lines for each chunkserver's configuration.
    pub chunkserver_extra: String,
    /// Stretches the masters' timeouts.
    pub time_scale: u64,
}

impl Spec {
    /// The names of its servers, masters first.
    pub fn names(&self) -> Vec<String> {
        let masters = (1..=self.masters).map(|n| format!("m{n}"));
        masters.chain((1..=self.chunkservers).map(|n| format!("cs{n}"))).collect()
    }

    /// A cluster on loopback whose stores begin small: for tests and drills.
    pub fn small(masters: u32, chunkservers: u32) -> Spec {
        Spec {
            masters,
            chunkservers,
            racks: 3.min(chunkservers),
            bind: [127, 0, 0, 1].into(),
            chunkserver_extra: "segment_bytes = 33554432\nlog_segment_bytes = 8388608\n".into(),
            time_scale: 1,
        }
    }
}

/// The file that clients find a cluster by: `cluster.toml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientFile {
    /// The cluster: 16 hexadecimal digits.
    pub cluster: String,
    /// Addresses of the masters.
    pub masters: Vec<String>,
}

impl ClientFile {
    /// Reads one.
    pub fn read(path: &Path) -> anyhow::Result<ClientFile> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("read {}", path.display()))
    }

    /// How to connect.
    pub fn config(&self) -> anyhow::Result<Config> {
        let cluster = u64::from_str_radix(&self.cluster, 16).context("cluster: 16 hexadecimal digits")?;
        Ok(Config { cluster: Some(ClusterId(cluster)), ..Config::new(self.masters.clone()) })
    }
}

/// What a process of the cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A master.
    Master,
    /// A chunkserver (its parent; the worker is its child).
    Chunkserver,
}

/// A process that runs.
pub struct Process {
    /// Its name: m1, cs2.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// It.
    pub child: Child,
}

/// A cluster whose processes this process starts.
pub struct Cluster {
    dir: PathBuf,
    binary: PathBuf,
    /// Who runs.
    pub processes: Vec<Process>,
    /// Where each server has a host of its own, if it has.
    pub net: Option<Net>,
    _lock: File,
}

impl Cluster {
    /// Makes a cluster in a directory, or finds the one that is there.
    pub fn open(dir: &Path, spec: &Spec, binary: &Path) -> anyhow::Result<Cluster> {
        Cluster::open_on(dir, spec, binary, None)
    }

    /// The same, with each server on a host of that network.
    pub fn open_on(dir: &Path, spec: &Spec, binary: &Path, net: Option<Net>) -> anyhow::Result<Cluster> {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        let path = dir.join("up.lock");
        let mut lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        if lock.try_lock().is_err() {
            bail!("a cluster is running in {} already; `cairn down --dir {0}` stops it", dir.display());
        }
        lock.set_len(0)?;
        writeln!(lock, "{}", std::process::id())?;
        if !dir.join("cluster.toml").exists() {
            make(&dir, spec, net.as_ref())?;
        }
        Ok(Cluster { dir, binary: binary.into(), processes: vec![], net, _lock: lock })
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The names of all its servers, masters first.
    pub fn names(&self) -> anyhow::Result<Vec<String>> {
        let mut names = vec![];
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.path().join("config.toml").exists() {
                names.push(name);
            }
        }
        names.sort_by_key(|n| {
            (n.starts_with("cs"), n.trim_start_matches(char::is_alphabetic).parse::<u32>().unwrap_or(0))
        });
        Ok(names)
    }

    /// Starts a server. Must be called on the thread that lives as long as the cluster.
    pub fn start(&mut self, name: &str) -> anyhow::Result<()> {
        let home = self.dir.join(name);
        let role = if name.starts_with("cs") { Role::Chunkserver } else { Role::Master };
        let verb = if role == Role::Master { "master" } else { "chunkserver" };
        let log = OpenOptions::new().create(true).append(true).open(home.join("log.txt"))?;
        let mut command = match &self.net {
            Some(_) => Net::command(name, &self.binary),
            None => Command::new(&self.binary),
        };
        let child = command
            .arg(verb)
            .arg("--config")
            .arg(home.join("config.toml"))
            .arg("--die-with-parent")
            .arg(std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        self.processes.retain(|p| p.name != name);
        self.processes.push(Process { name: name.into(), role, child });
        Ok(())
    }

    /// Starts all servers. A new chunkserver is registered before the next is started, so that masters
    /// number the servers as their names do: who reads `cs1` means the same one everywhere.
    pub fn start_all(&mut self) -> anyhow::Result<()> {
        let end = Instant::now() + HEALTHY_WITHIN;
        for name in self.names()? {
            self.start(&name)?;
            let runs = |c: &mut Cluster| {
                matches!(c.processes.last_mut().map(|p| p.child.try_wait()), Some(Ok(None)))
            };
            while name.starts_with("cs") && self.store(&name)?.is_none() && Instant::now() < end && runs(self)
            {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    /// The store of a chunkserver, once masters have given it a number.
    pub fn store(&self, name: &str) -> anyhow::Result<Option<StoreId>> {
        let text = match std::fs::read_to_string(self.dir.join(name).join("data/meta.toml")) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("read meta.toml of {name}"))?,
        };
        let id = text.lines().find_map(|l| l.strip_prefix("store = ")).filter(|id| *id != "0");
        Ok(id.map(|id| id.parse().map(StoreId)).transpose()?)
    }

    /// How clients reach it.
    pub fn client_file(&self) -> anyhow::Result<ClientFile> {
        ClientFile::read(&self.dir.join("cluster.toml"))
    }

    /// Waits until a leader is there and all stores are in session.
    pub async fn healthy(&mut self) -> anyhow::Result<Client> {
        let stores = self.names()?.iter().filter(|n| n.starts_with("cs")).count();
        let config = self.client_file()?.config()?;
        let began = Instant::now();
        loop {
            if let Some(dead) = self.exited() {
                let log = std::fs::read_to_string(self.dir.join(&dead).join("log.txt")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(5).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                bail!("{dead} ended at once:\n{}", tail.join("\n"));
            }
            if began.elapsed() > HEALTHY_WITHIN {
                bail!(
                    "the cluster is not healthy after {} s; see {}/*/log.txt",
                    HEALTHY_WITHIN.as_secs(),
                    self.dir.display()
                );
            }
            let quick = Config { deadline: Duration::from_secs(2), ..config.clone() };
            if let Ok(client) = Client::connect(quick).await {
                let up = client.stores().await.map_or(0, |s| s.iter().filter(|s| s.up).count());
                if up >= stores {
                    return Ok(Client::connect(config).await?);
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A process that has ended, if any; it is taken off the list.
    pub fn exited(&mut self) -> Option<String> {
        let at = self.processes.iter_mut().position(|p| matches!(p.child.try_wait(), Ok(Some(_))))?;
        Some(self.processes.remove(at).name)
    }

    /// The configuration file of a server.
    pub fn config_of(&self, name: &str) -> PathBuf {
        self.dir.join(name).join("config.toml")
    }

    /// The process of a server: of a chunkserver, the parent.
    pub fn pid(&self, name: &str) -> Option<u32> {
        self.processes.iter().find(|p| p.name == name).map(|p| p.child.id())
    }

    /// The worker of a chunkserver, if it runs.
    pub fn worker_pid(&self, name: &str) -> Option<u32> {
        child_of(self.pid(name)?)
    }

    /// Kills a server at once, worker and parent, and waits for its end.
    pub fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        let at = self
            .processes
            .iter()
            .position(|p| p.name == name)
            .with_context(|| format!("{name} does not run"))?;
        let mut process = self.processes.remove(at);
        process.child.kill()?;
        process.child.wait()?;
        Ok(())
    }

    /// Makes one more chunkserver, like those of this specification, and starts it.
    pub fn grow(&mut self, spec: &Spec) -> anyhow::Result<()> {
        let n = self.names()?.iter().filter(|n| n.starts_with("cs")).count() as u32 + 1;
        make_chunkserver(&self.dir, spec, n, &self.client_file()?.masters, self.net.as_ref())?;
        self.start(&format!("cs{n}"))
    }

    /// Asks a server to stop, and waits; if it does not, it is killed.
    pub fn end(&mut self, name: &str) -> anyhow::Result<()> {
        self.end_those(|p| p.name == name)
    }

    /// Asks all servers to stop, chunkservers first, and waits; who does not stop is killed.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.end_those(|p| p.role == Role::Chunkserver)?;
        self.end_those(|p| p.role == Role::Master)
    }

    fn end_those(&mut self, which: impl Fn(&Process) -> bool) -> anyhow::Result<()> {
        let mut ending: Vec<Process> = self.processes.extract_if(.., |p| which(p)).collect();
        for p in &ending {
            signal(p.child.id(), "TERM")?;
        }
        let began = Instant::now();
        for p in &mut ending {
            while p.child.try_wait()?.is_none() {
                if began.elapsed() > STOP_WITHIN {
                    p.child.kill()?;
                    p.child.wait()?;
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Nothing is left behind, whatever ended this.
        for p in &mut self.processes {
            let _ = p.child.kill();
            let _ = p.child.wait();
        }
    }
}

/// The child of a process, if it has just one.
pub fn child_of(pid: u32) -> Option<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    std::fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}

/// Sends a signal to a process by its pid.
pub fn signal(pid: u32, name: &str) -> anyhow::Result<()> {
    let done =
        Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).stderr(Stdio::null()).status()?;
    if !done.success() {
        tracing::debug!(pid, name, "the process has ended already");
    }
    Ok(())
}

/// The process that runs a cluster, if one does.
pub fn running(dir: &Path) -> anyhow::Result<Option<u32>> {
    let path = dir.join("up.lock");
    let Ok(lock) = File::open(&path) else { bail!("there is no cluster in {}", dir.display()) };
    if lock.try_lock().is_ok() {
        return Ok(None);
    }
    Ok(std::fs::read_to_string(&path)?.trim().parse().ok())
}

/// The addresses of masters: on loopback, ports that are free now.
fn master_addrs(spec: &Spec, net: Option<&Net>) -> anyhow::Result<Vec<String>> {
    if let Some(net) = net {
        let addr = |n| SocketAddr::new(net.addr(&format!("m{n}")), MASTER_PORT).to_string();
        return Ok((1..=spec.masters).map(addr).collect());
    }
    // All are bound at a time, so that no port is given twice.
    let held: Vec<TcpListener> = (0..spec.masters)
        .map(|_| TcpListener::bind(SocketAddr::new(spec.bind, 0)))
        .collect::<Result<_, _>>()?;
    Ok(held.iter().map(|l| l.local_addr().map(|a| a.to_string())).collect::<Result<_, _>>()?)
}

fn make(dir: &Path, spec: &Spec, net: Option<&Net>) -> anyhow::Result<()> {
    let cluster: u64 = rand::random::<u64>().max(1);
    let addrs = master_addrs(spec, net)?;
    let initial: Vec<String> =
        addrs.iter().zip(1..).map(|(addr, id)| format!("{{ id = {id}, addr = \"{addr}\" }}")).collect();
    for (addr, id) in addrs.iter().zip(1..) {
        let home = dir.join(format!("m{id}"));
        std::fs::create_dir_all(&home)?;
        let text = format!(
            "id = {id}\ncluster = \"{cluster:016x}\"\nlisten = \"{addr}\"\ndir = {:?}\ntime_scale = {}\ninitial = [{}]\n",
            home.join("data"),
            spec.time_scale,
            initial.join(", ")
        );
        std::fs::write(home.join("config.toml"), text)?;
    }
    for n in 1..=spec.chunkservers {
        make_chunkserver(dir, spec, n, &addrs, net)?;
    }
    let client = ClientFile { cluster: format!("{cluster:016x}"), masters: addrs };
    let tmp = dir.join("cluster.toml.tmp");
    std::fs::write(&tmp, toml::to_string(&client)?)?;
    std::fs::rename(tmp, dir.join("cluster.toml"))?;
    Ok(())
}

fn make_chunkserver(
    dir: &Path,
    spec: &Spec,
    n: u32,
    masters: &[String],
    net: Option<&Net>,
) -> anyhow::Result<()> {
    let home = dir.join(format!("cs{n}"));
    std::fs::create_dir_all(home.join("data"))?;
    let rack = (n - 1) % spec.racks + 1;
    let masters: Vec<String> = masters.iter().map(|a| format!("\"{a}\"")).collect();
    let text = format!(
        "masters = [{}]\ndata = [{:?}]\nrack = \"r{rack}\"\nbind = \"{}\"\n{}",
        masters.join(", "),
        home.join("data"),
        net.map_or(spec.bind, |net| net.addr(&format!("cs{n}"))),
        spec.chunkserver_extra
    );
    Ok(std::fs::write(home.join("config.toml"), text)?)
}
