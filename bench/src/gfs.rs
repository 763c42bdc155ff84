//! The experiment of the GFS paper (section 6.1, "Micro-benchmarks"), with hosts in network namespaces: 16
//! chunkservers and the masters on one switch, 16 clients on another, 100 Mbit/s to each host and 1 Gbit/s between
//! the switches. What is stated as a limit is the paper's: the links alone, without headers of any protocol.

use anyhow::{Context, bail};
use client::{Client, Config};
use common::limits::WRITE_BYTES_MAX;
use ops::cluster::{Cluster, Spec};
use ops::net::{Links, Net};
use rand::RngExt;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Bytes of a region that is read: as in the paper.
const REGION_BYTES: u64 = 4 << 20;
/// Bytes of a record that is appended, at most a quarter of a write: as in the paper, a chunk holds many.
const RECORD_BYTES: usize = WRITE_BYTES_MAX / 4;
/// MiB of each file that is read.
const FILE_MIB: u64 = 128;
/// Files that are read.
const FILES: u32 = 16;
/// Replicas of each chunk.
const REPLICAS: f64 = 3.0;
/// Masters: one leads, as the paper's master has two replicas.
const MASTERS: u32 = 3;

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Write the files that are read later; not measured.
    Prepare,
    /// Read regions of files, at random.
    Read,
    /// Write a file of one's own.
    Write,
    /// Append to one file, all of them.
    Append,
}

impl Part {
    /// Those that are measured, with what the paper measured with 16 clients: percent of its stated limit (figure 3).
    const MEASURED: [(Part, f64); 3] = [(Part::Read, 75.0), (Part::Write, 52.0), (Part::Append, 38.0)];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Part::Prepare => "prepare",
            Part::Read => "read",
            Part::Write => "write",
            Part::Append => "append",
        }
    }

    /// The part of a name.
    pub fn named(name: &str) -> Option<Part> {
        let measured = Part::MEASURED.into_iter().map(|(part, _)| part);
        measured.chain([Part::Prepare]).find(|part| part.name() == name)
    }
}

/// The experiment.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// Chunkservers.
    pub servers: u32,
    /// Numbers of clients, one after the other.
    pub clients: Vec<u32>,
    /// The links.
    pub links: Links,
    /// Seconds of each measurement.
    pub seconds: u64,
}

impl Experiment {
    /// The stated limit, MB/s.
    fn limit(&self, part: Part, clients: u32) -> f64 {
        let mbs = |mbit: u32| f64::from(mbit) / 8.0;
        let (link, trunk) = (mbs(self.links.host_mbit), mbs(self.links.trunk_mbit));
        let all = (f64::from(clients) * link).min(trunk);
        match part {
            Part::Read => all,
            // Each byte goes into as many servers as it has replicas.
            Part::Prepare | Part::Write => all.min(f64::from(self.servers) * link / REPLICAS),
            // All records go into the few servers of one chunk.
            Part::Append => all.min(link),
        }
    }

    /// Makes network, cluster and clients below `dir`, measures, prints; everything goes away again. Must run in
    /// a network of its own.
    pub async fn run(&self, dir: &Path, binary: &Path, json: bool) -> anyhow::Result<()> {
        let home = dir.join(format!("cairn-gfs-{:08x}", rand::random::<u32>()));
        let done = tokio::select! {
            done = self.measure(&home, binary, json) => done,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        };
        std::fs::remove_dir_all(&home).with_context(|| format!("remove {}", home.display()))?;
        done
    }

    async fn measure(&self, home: &Path, binary: &Path, json: bool) -> anyhow::Result<()> {
        // One rack, as in the paper.
        let spec = Spec { racks: 1, ..Spec::small(MASTERS, self.servers) };
        let most = self.clients.iter().copied().max().context("no clients")?;
        let hosts: Vec<String> = (1..=most).map(|n| format!("c{n}")).collect();
        let net = Net::shaped(spec.names(), hosts.clone(), self.links)?;
        let mut cluster = Cluster::open_on(home, &spec, binary, Some(net))?;
        cluster.start_all()?;
        let client = cluster.healthy().await?;
        client.mkdir(b"/gfs", false, 0o755).await?;
        self.together(&cluster, binary, &hosts, Part::Prepare)?;
        if !json {
            println!(
                "{:<8} {:>7} {:>9} {:>9} {:>8} {:>7}  {:>15}",
                "", "clients", "MB/s", "limit", "percent", "paper", "MB/s a client"
            );
        }
        for (part, paper) in Part::MEASURED {
            for clients in &self.clients {
                let rates = self.together(&cluster, binary, &hosts[..*clients as usize], part)?;
                let mbs: f64 = rates.iter().sum();
                let slowest = rates.iter().copied().fold(f64::MAX, f64::min);
                let fastest = rates.iter().copied().fold(0.0, f64::max);
                let limit = self.limit(part, *clients);
                let percent = 100.0 * mbs / limit;
                let paper = (*clients == 16).then_some(paper);
                if json {
                    println!(
                        "{}",
                        json!({"part": part.name(), "clients": clients, "servers": self.servers, "mb_per_s": mbs,
                        "limit_mb_per_s": limit, "percent": percent, "paper_percent": paper,
                        "slowest_client_mb_per_s": slowest, "fastest_client_mb_per_s": fastest,
                        "host_mbit": self.links.host_mbit, "trunk_mbit": self.links.trunk_mbit})
                    );
                } else {
                    let paper = paper.map_or("-".into(), |p| format!("{p:.0}"));
                    println!(
                        "{:<8} {clients:>7} {mbs:>9.1} {limit:>9.1} {percent:>8.1} {paper:>7}  {slowest:>6.2} - {fastest:<6.2}",
                        part.name()
                    );
                }
            }
        }
        client.close().await;
        cluster.stop()
    }

    /// All clients do a part together: what each moves, MB/s, from its beginning until its last byte is durable or
    /// here. One that ends later than the others does not make theirs less.
    fn together(
        &self,
        cluster: &Cluster,
        binary: &Path,
        hosts: &[String],
        part: Part,
    ) -> anyhow::Result<Vec<f64>> {
        let round = rand::random::<u32>();
        let start = |(n, host): (usize, &String)| {
            let mut command = Net::command(host, binary);
            command.arg("--cluster").arg(cluster.dir()).args(["bench", "gfs-part", part.name()]);
            command.args(["--round", &round.to_string(), "--client", &n.to_string()]);
            command.args(["--seconds", &self.seconds.to_string(), "--of", &hosts.len().to_string()]);
            Ok(Host::new(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?))
        };
        let mut hosts = hosts.iter().enumerate().map(start).collect::<anyhow::Result<Vec<_>>>()?;
        // All are connected before any begins.
        hosts.iter_mut().try_for_each(|host| host.line().map(drop))?;
        hosts.iter_mut().try_for_each(Host::go)?;
        let rate = |host: &mut Host| {
            let said: Value = serde_json::from_str(&host.line()?).context("what a client says")?;
            Ok(said["bytes"].as_f64().context("bytes")? / said["seconds"].as_f64().context("seconds")? / 1e6)
        };
        hosts.iter_mut().map(rate).collect()
    }
}

/// A client on a host of its own.
struct Host {
    child: Child,
    says: BufReader<std::process::ChildStdout>,
}

impl Host {
    fn new(mut child: Child) -> Host {
        let says = BufReader::new(child.stdout.take().expect("it is piped"));
        Host { child, says }
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.says.read_line(&mut line)? == 0 {
            bail!("a client ended without a word");
        }
        Ok(line)
    }

    fn go(&mut self) -> anyhow::Result<()> {
        Ok(self.child.stdin.as_mut().expect("it is piped").write_all(b"go\n")?)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It has ended, or nobody waits for it any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_path(n: u32) -> Vec<u8> {
    format!("/gfs/read-{n}").into_bytes()
}

/// Which client of which run this is.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Names what it makes.
    pub round: u32,
    /// Its number.
    pub client: u32,
    /// Of how many.
    pub of: u32,
    /// For how long it works.
    pub seconds: u64,
}

/// A client's part: waits for a line, works, says what it moved.
pub async fn part(config: Config, part: Part, run: Run) -> anyhow::Result<()> {
    let Run { round, client: me, of, seconds } = run;
    let client = Client::connect(config).await?;
    println!("ready");
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    let (began, time) = (Instant::now(), Duration::from_secs(seconds));
    let bytes = match part {
        Part::Prepare => {
            let block: bytes::Bytes = vec![7; WRITE_BYTES_MAX].into();
            for n in (me..FILES).step_by(of as usize) {
                let mut file = client.put(&read_path(n)).await?;
                for _ in 0..FILE_MIB {
                    file.write_block(block.clone()).await?;
                }
                file.finish(0o644, 0, false).await?;
            }
            FILE_MIB << 20
        }
        Part::Read => {
            // As in the paper, a client remembers where the chunks of a file are.
            let mut files = vec![];
            for n in 0..FILES {
                files.push(client.open(&read_path(n)).await?);
            }
            let mut bytes = 0;
            while began.elapsed() < time {
                let file = &files[rand::random_range(0..FILES as usize)];
                let regions = (FILE_MIB << 20) / REGION_BYTES;
                let at = rand::rng().random_range(0..regions) * REGION_BYTES;
                bytes += file.read_at(at, REGION_BYTES).await?.len() as u64;
            }
            bytes
        }
        Part::Write => {
            let mut file = client.put(format!("/gfs/write-{round}-{me}").as_bytes()).await?;
            let block: bytes::Bytes = vec![me as u8; WRITE_BYTES_MAX].into();
            while began.elapsed() < time {
                file.write_block(block.clone()).await?;
            }
            file.finish(0o644, 0, false).await?.length
        }
        Part::Append => {
            let mut appender = client.appender(format!("/gfs/append-{round}").as_bytes()).await?;
            let record = vec![me as u8; RECORD_BYTES];
            let mut bytes = 0;
            while began.elapsed() < time {
                appender.append(&record).await?;
                bytes += record.len() as u64;
            }
            bytes
        }
    };
    println!("{}", json!({"bytes": bytes, "seconds": began.elapsed().as_secs_f64()}));
    client.close().await;
    Ok(())
}
