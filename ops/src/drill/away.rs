//! A chunkserver is away for a minute, in which much is written elsewhere, and comes back: it gets
//! what it missed, and of each chunk what it did not know to be committed, and no more.

use super::load::block;
use super::outcome::Outcome;
use super::strike::whole;
use crate::cluster::{Cluster, Spec};
use anyhow::{Context, bail};
use client::Client;
use std::path::Path;
use std::time::{Duration, Instant};

/// Who is away, and for how long: longer than a store is waited for.
const VICTIM: &str = "cs2";
const AWAY: Duration = Duration::from_secs(60);
/// Files before, and writes of one.
const FILES: u64 = 8;
const BLOCKS: u64 = 128;
/// Of each so many writes one is written over meanwhile.
const EVERY: u64 = 8;
/// A copy takes whole pieces where less was written over, and what was written while it was made ...
const SLACK_PERCENT: u64 = 20;
/// ... and of each chunk what the victim did not know to be committed when it was killed: what a put has under way. (After five quiet
/// seconds, when a checkpoint says so, that is nothing.)
const UNDER_WAY_BYTES: u64 = 8 * 1024 * 1024;

fn path(n: u64) -> Vec<u8> {
    format!("/away-{n}").into_bytes()
}

async fn put(client: &Client, n: u64) -> anyhow::Result<u64> {
    let mut file = client.put(&path(n)).await?;
    let mut bytes = 0;
    for i in 0..BLOCKS {
        let data = block(n * BLOCKS + i);
        bytes += data.len() as u64;
        file.write_block(data.into()).await?;
    }
    file.finish(0o644, 0, false).await?;
    Ok(bytes)
}

/// Bytes that a chunkserver says it has copied as a new member, since its log had so many bytes.
fn copied(cluster: &Cluster, since: usize) -> anyhow::Result<u64> {
    let log = std::fs::read_to_string(cluster.dir().join(VICTIM).join("log.txt"))?;
    let lines = log[since..].lines().filter(|l| l.contains("copied as a new member"));
    let bytes = lines.filter_map(|l| l.split("bytes=").nth(1)?.split(' ').next()?.parse::<u64>().ok());
    Ok(bytes.sum())
}

/// All repeats, on one cluster: of three servers, so that nobody takes its place.
pub(super) async fn run(
    home: &Path,
    binary: &Path,
    repeats: u32,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let mut cluster = Cluster::open(home, &Spec::small(3, 3), binary)?;
    cluster.start_all()?;
    cluster.healthy().await?;
    for round in 0..repeats as u64 {
        one(&mut cluster, round, outcome).await.with_context(|| format!("round {round}"))?;
    }
    cluster.stop()
}

async fn one(cluster: &mut Cluster, round: u64, outcome: &mut Outcome) -> anyhow::Result<()> {
    let client = cluster.healthy().await?;
    // Names of this round: what was written over in another is not what a put would write.
    let (first, last) = (round * (FILES + 1), round * (FILES + 1) + FILES);
    let mut held = 0;
    for n in first..last {
        held += put(&client, n).await?;
    }
    cluster.kill(VICTIM)?;
    super::report_exit(&cluster.config_of(VICTIM)).await?;
    let gone = Instant::now();
    let mut missed = put(&client, last).await?;
    let other = |i: u64| block(1_000_000 + i);
    for n in first..last {
        for i in (0..BLOCKS).step_by(EVERY as usize) {
            let data = other(n * BLOCKS + i);
            client.write_at(&path(n), i * data.len() as u64, &data).await?;
            missed += data.len() as u64;
        }
    }
    tokio::time::sleep(AWAY.saturating_sub(gone.elapsed())).await;
    let log = std::fs::metadata(cluster.dir().join(VICTIM).join("log.txt"))?.len() as usize;
    let back = Instant::now();
    cluster.start(VICTIM)?;
    whole(&cluster.healthy().await?).await?;
    outcome.whole.push(back.elapsed());
    // It tells with a heartbeat.
    let deadline = Instant::now() + Duration::from_secs(10);
    while copied(cluster, log)? < missed {
        if Instant::now() > deadline {
            bail!("it was given {} bytes, and missed {missed}", copied(cluster, log)?);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let bytes = copied(cluster, log)?;
    outcome.notes.push(format!(
        "held {} MiB, missed {} MiB in {} s, was given {} MiB ({bytes} bytes)",
        held >> 20,
        missed >> 20,
        AWAY.as_secs(),
        bytes >> 20
    ));
    let chunks = held.div_ceil(common::limits::CHUNK_BYTES_MAX);
    if bytes > missed * (100 + SLACK_PERCENT) / 100 + chunks * UNDER_WAY_BYTES {
        bail!("it was given {bytes} bytes, and had missed {missed} of {held}");
    }
    // All of it can be read with the others away.
    for name in ["cs1", "cs3"] {
        cluster.kill(name)?;
        super::report_exit(&cluster.config_of(name)).await?;
        for n in first..=last {
            let file = client.open(&path(n)).await?;
            for i in 0..BLOCKS {
                let over = n < last && i.is_multiple_of(EVERY);
                let wanted = if over { other(n * BLOCKS + i) } else { block(n * BLOCKS + i) };
                if file.read_at(i * wanted.len() as u64, wanted.len() as u64).await? != wanted {
                    bail!("file {n} is corrupt in block {i}");
                }
            }
            outcome.count("files verified", 1);
        }
        cluster.start(name)?;
        whole(&cluster.healthy().await?).await?;
    }
    for n in first..=last {
        client.unlink(&path(n), false).await?;
    }
    Ok(client.empty_trash().await?)
}
