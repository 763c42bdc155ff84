//! Many appenders on one file while its primary and the leading master are killed, again and
//! again: every acknowledged record is there exactly once, every other at most once.

use super::load::record_of;
use super::outcome::Outcome;
use super::{report_exit, store_of};
use crate::cluster::{Cluster, Spec, signal};
use anyhow::{Context, bail};
use client::{Client, Config};
use common::limits::PIECE_BYTES_MAX;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Appenders.
const APPENDERS: u64 = 16;
/// Records of a repeat, of all appenders together.
const RECORDS: u64 = 100_000;
/// Bytes of a record.
const RECORD_BYTES: usize = 64;
/// Time between two blows.
const BLOW_EVERY: Duration = Duration::from_secs(3);
const LOG: &[u8] = b"/storm";

fn record(client: u64, n: u64) -> Vec<u8> {
    record_of(client, n, RECORD_BYTES)
}

/// What one appender was told: the offsets of its records, in order, and its longest wait.
type Told = (Vec<u64>, Duration);

async fn append(config: Config, me: u64, left: Arc<AtomicU64>) -> anyhow::Result<Told> {
    let client = Client::connect(config).await?;
    let mut appender = client.appender(LOG).await?;
    let (mut offsets, mut longest) = (vec![], Duration::ZERO);
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
        let began = Instant::now();
        let offset = appender.append(&record(me, offsets.len() as u64)).await;
        offsets.push(offset.context("a client saw an error: append")?);
        longest = longest.max(began.elapsed());
    }
    Ok((offsets, longest))
}

/// All repeats in one course.
pub(super) async fn run(
    home: &Path,
    binary: &Path,
    repeats: u32,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let mut cluster = Cluster::open(home, &Spec::small(3, 6), binary)?;
    cluster.start_all()?;
    let client = cluster.healthy().await?;
    client.appender(LOG).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let config = cluster.client_file()?.config()?;
    let left = Arc::new(AtomicU64::new(RECORDS * repeats as u64));
    let began = Instant::now();
    let tasks: Vec<JoinHandle<_>> =
        (0..APPENDERS).map(|n| tokio::spawn(append(config.clone(), n, left.clone()))).collect();
    let (mut primaries_killed, mut leaders_killed) = (0, 0);
    while left.load(Ordering::Relaxed) > 0 && !tasks.iter().any(|t| t.is_finished()) {
        tokio::time::sleep(BLOW_EVERY).await;
        match (primaries_killed + leaders_killed) % 3 {
            2 => {
                kill_leader(&mut cluster, &client).await?;
                leaders_killed += 1;
            }
            _ => {
                kill_primary(&mut cluster, &client).await?;
                primaries_killed += 1;
            }
        }
    }
    let mut told = vec![];
    for task in tasks {
        told.push(task.await??);
    }
    let took = began.elapsed();
    told.iter().for_each(|(_, longest)| outcome.gap("appends", *longest));
    let acked = verify(&cluster.healthy().await?, &told).await?;
    cluster.stop()?;
    outcome.count("records acknowledged, each found once and nothing else", acked);
    outcome.count("primaries killed", primaries_killed);
    outcome.count("leaders killed", leaders_killed);
    outcome.notes.push(format!("{:.0} records/s", acked as f64 / took.as_secs_f64()));
    Ok(())
}

async fn kill_leader(cluster: &mut Cluster, client: &Client) -> anyhow::Result<()> {
    // Between two leaders nobody knows one.
    let Some(leader) = client.status().await?.leader else { return Ok(()) };
    let name = format!("m{leader}");
    cluster.kill(&name)?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.start(&name)
}

async fn kill_primary(cluster: &mut Cluster, client: &Client) -> anyhow::Result<()> {
    let layout = client.layout(client.lookup(LOG).await?.file).await?;
    let Some(chunk) = layout.chunks().last() else { return Ok(()) };
    for name in cluster.names()?.into_iter().filter(|n| n.starts_with("cs")) {
        if store_of(cluster, &name)? != chunk.config.primary {
            continue;
        }
        if let Some(pid) = cluster.worker_pid(&name) {
            signal(pid, "KILL")?;
        } else {
            cluster.kill(&name)?;
            report_exit(&cluster.config_of(&name)).await?;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Its parent has ended with it.
        return cluster.start(&name);
    }
    bail!("nobody serves {}", chunk.config.primary)
}

/// Reads the whole file, and finds each record where its appender was told it is, once. Gives how
/// many there are.
async fn verify(client: &Client, told: &[Told]) -> anyhow::Result<u64> {
    let file = client.open(LOG).await?;
    let mut found: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    let mut at = 0;
    while at < file.len() {
        let bytes = file.read_at(at, PIECE_BYTES_MAX as u64).await?;
        if bytes.is_empty() || !bytes.len().is_multiple_of(RECORD_BYTES) {
            bail!("{} bytes at {at}: a record is torn", bytes.len());
        }
        for (i, bytes) in bytes.chunks(RECORD_BYTES).enumerate() {
            let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
            let (key, offset) = ((word(0), word(8)), at + (i * RECORD_BYTES) as u64);
            if bytes != record(key.0, key.1) {
                bail!("the record at {offset} is corrupt");
            }
            if let Some(first) = found.insert(key, offset) {
                bail!("record {key:?} lies at {first} and at {offset}");
            }
        }
        at += bytes.len() as u64;
    }
    for (me, (offsets, _)) in told.iter().enumerate() {
        for (n, offset) in offsets.iter().enumerate() {
            let lies = found.remove(&(me as u64, n as u64));
            if lies != Some(*offset) {
                bail!("record {me}/{n} was acknowledged at {offset}; it lies at {lies:?}");
            }
        }
    }
    if let Some((key, offset)) = found.first_key_value() {
        bail!("record {key:?} at {offset}: nobody was told of it, and no client saw an error");
    }
    Ok(told.iter().map(|(offsets, _)| offsets.len() as u64).sum())
}
