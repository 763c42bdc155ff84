//! Clients are killed in the middle of appends and puts, again and again: of each at most the record
//! that it was writing is there without its knowing, a file is there whole or not at all, and nobody
//! else waits for the dead.

use super::load::block;
use super::outcome::Outcome;
use crate::cluster::{Cluster, Spec};
use anyhow::{Context, bail};
use client::{Client, Config};
use common::Code;
use rand::RngExt;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Times that clients are started and killed, in a repeat.
const WAVES: u64 = 8;
/// Clients that append, in a wave; one more puts a new file, and one puts over an old one.
const APPENDERS: u64 = 4;
/// They live for so long, in milliseconds.
const LIVES_MS: std::ops::Range<u64> = 100..1500;
/// Records that a client would append, and bytes of each: more than it has time for.
const RECORDS: u64 = 20_000;
const RECORD_BYTES: usize = 200;
/// Blocks of a file that is put.
const BLOCKS: u64 = 96;
/// The file that is put over.
const OLD: &str = "/clients/old";
/// Who appends and lives.
const BYSTANDER: u64 = 0;

/// A line: who wrote it, and its number.
fn record(client: u64, n: u64) -> String {
    let head = format!("{client} {n} ");
    format!("{head:.<width$}\n", width = RECORD_BYTES - 1)
}

/// The bytes of a file that is put.
fn content(seed: u64) -> Vec<u8> {
    (0..BLOCKS).flat_map(|i| block(seed * BLOCKS + i)).collect()
}

/// All repeats.
pub(super) async fn run(
    home: &Path,
    binary: &Path,
    repeats: u32,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let mut cluster = Cluster::open(&home.join("cluster"), &Spec::small(3, 6), binary)?;
    cluster.start_all()?;
    let client = cluster.healthy().await?;
    client.mkdir(b"/clients", true, 0o755).await?;
    let mut file = client.put(OLD.as_bytes()).await?;
    file.write(&content(0)).await?;
    file.finish(0o644, 0, false).await?;
    let inputs = [home.join("1"), home.join("2")];
    for (seed, file) in (1..).zip(&inputs) {
        std::fs::write(file, content(seed))?;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let config = cluster.client_file()?.config()?;
    let mut clients = Clients { home, binary, cluster: cluster.dir().to_owned(), inputs, started: BYSTANDER };
    for round in 0..repeats {
        let log = format!("/clients/log-{round}");
        let stop = Arc::new(AtomicBool::new(false));
        let one = tokio::spawn(bystander(config.clone(), log.clone(), stop.clone()));
        let mut told = BTreeMap::new();
        for _ in 0..WAVES {
            clients.wave(&client, &log, &mut told, outcome).await?;
        }
        stop.store(true, Ordering::Relaxed);
        let (longest, offsets) = one.await??;
        outcome.gap("appends", longest);
        told.insert(BYSTANDER, offsets);
        verify(&client, &log, told, outcome).await?;
    }
    cluster.stop()
}

/// Somebody who lives: its longest wait, and where its records are.
async fn bystander(
    config: Config,
    log: String,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<(Duration, Vec<u64>)> {
    let client = Client::connect(config).await?;
    let mut appender = client.appender(log.as_bytes()).await?;
    let (mut longest, mut offsets) = (Duration::ZERO, vec![]);
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let offset = appender.append(record(BYSTANDER, offsets.len() as u64).as_bytes()).await;
        offsets.push(offset.context("a client saw an error: append")?);
        longest = longest.max(began.elapsed());
    }
    Ok((longest, offsets))
}

struct Clients<'a> {
    home: &'a Path,
    binary: &'a Path,
    cluster: PathBuf,
    /// What is put: as a new file, and over an old one.
    inputs: [PathBuf; 2],
    started: u64,
}

/// A client process, killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Clients<'_> {
    fn start(&self, args: &[&str], from: Stdio, to: Stdio) -> anyhow::Result<Process> {
        let mut command = Command::new(self.binary);
        command.arg("--json").args(args).env("CAIRN_CLUSTER", &self.cluster).stdin(from).stdout(to);
        Ok(Process(command.stderr(Stdio::null()).spawn().context("start a client")?))
    }

    /// Starts clients and kills them; looks at the files that they put.
    async fn wave(
        &mut self,
        client: &Client,
        log: &str,
        told: &mut BTreeMap<u64, Vec<u64>>,
        outcome: &mut Outcome,
    ) -> anyhow::Result<()> {
        let mut lives = vec![];
        let mut begin = |process| {
            lives.push((Duration::from_millis(rand::rng().random_range(LIVES_MS)), process));
        };
        let first = self.started + 1;
        for me in first..first + APPENDERS {
            let (input, output) = (self.home.join("in"), self.said(me));
            std::fs::write(&input, (0..RECORDS).map(|n| record(me, n)).collect::<String>())?;
            let (from, to) = (File::open(&input)?.into(), File::create(&output)?.into());
            begin(self.start(&["append", "--lines", log], from, to)?);
        }
        self.started += APPENDERS;
        let new = format!("/clients/new-{first}");
        for (input, path) in self.inputs.iter().zip([&new[..], OLD]) {
            let args = ["put", &input.to_string_lossy(), path];
            begin(self.start(&args, Stdio::null(), Stdio::null())?);
        }
        let began = Instant::now();
        lives.sort_by_key(|(life, _)| *life);
        for (life, process) in lives {
            tokio::time::sleep(life.saturating_sub(began.elapsed())).await;
            drop(process);
            outcome.count("clients killed", 1);
        }
        for me in first..first + APPENDERS {
            let text = std::fs::read_to_string(self.said(me))?;
            // The last line may be cut off: then nobody was told.
            let lines = text.split_inclusive('\n').filter(|l| l.ends_with('\n'));
            let offset =
                |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["offset"].as_u64();
            let offsets: Option<Vec<u64>> = lines.map(offset).collect();
            told.insert(me, offsets.with_context(|| format!("client {me} said: {text}"))?);
        }
        let whole = match client.lookup(new.as_bytes()).await {
            Err(error) if error.code() == Some(Code::NotFound) => 0,
            Err(error) => return Err(error.into()),
            Ok(_) => u64::from(self.is_one_of(client, &new, &[1]).await?),
        };
        outcome.count("files that were there whole before their client was killed", whole);
        self.is_one_of(client, OLD, &[0, 2]).await?;
        Ok(())
    }

    /// What a client has said.
    fn said(&self, client: u64) -> PathBuf {
        self.home.join(format!("out-{client}"))
    }

    /// A file holds one of these, from its beginning to its end.
    async fn is_one_of(&self, client: &Client, path: &str, seeds: &[u64]) -> anyhow::Result<bool> {
        let file = client.open(path.as_bytes()).await?;
        let bytes = file.read_at(0, file.len()).await?;
        match seeds.iter().any(|seed| bytes == content(*seed)) {
            true => Ok(true),
            false => bail!("{path} is none of what was put there: {} bytes", bytes.len()),
        }
    }
}

/// Reads the log: each record is whole and there once; those that were acknowledged are where their
/// clients were told, in order, and of each client that was killed at most one more.
async fn verify(
    client: &Client,
    log: &str,
    told: BTreeMap<u64, Vec<u64>>,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let file = client.open(log.as_bytes()).await?;
    let bytes = file.read_at(0, file.len()).await?;
    let mut found = BTreeMap::<(u64, u64), u64>::new();
    for (i, line) in bytes.chunks(RECORD_BYTES).enumerate() {
        let offset = (i * RECORD_BYTES) as u64;
        let text = String::from_utf8_lossy(line);
        let mut words = text.split(' ').map_while(|w| w.parse::<u64>().ok());
        let key =
            words.next().zip(words.next()).with_context(|| format!("a torn record at {offset}: {text}"))?;
        if text != record(key.0, key.1) {
            bail!("a torn record at {offset}: {text}");
        }
        if let Some(first) = found.insert(key, offset) {
            bail!("record {key:?} lies at {first} and at {offset}");
        }
    }
    for (me, offsets) in &told {
        for (n, offset) in offsets.iter().enumerate() {
            let lies = found.remove(&(*me, n as u64));
            if lies != Some(*offset) {
                bail!("record {me}/{n} was acknowledged at {offset}; it lies at {lies:?}");
            }
        }
        outcome.count("records acknowledged, each found once", offsets.len() as u64);
        // It was under way.
        let more = found.remove(&(*me, offsets.len() as u64));
        outcome.count("records that their killed client was not told of", u64::from(more.is_some()));
        if *me == BYSTANDER && more.is_some() {
            bail!("a record lies at {more:?}, and its client was not told, which lives");
        }
    }
    match found.first_key_value() {
        Some((key, offset)) => bail!("record {key:?} at {offset}: its client had not come so far"),
        None => Ok(()),
    }
}
