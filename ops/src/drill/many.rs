//! Very many chunks: what a restart of a chunkserver and a change of leader cost then, and what a
//! chunk costs in memory.

use super::crowd::{resident, servers};
use super::outcome::Outcome;
use super::strike::whole;
use crate::cluster::{Cluster, Spec};
use anyhow::{Context, bail};
use client::{Client, Config};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Files, of one chunk each.
const FILES: u64 = 1_000_000;
/// Files of a directory, and bytes of a file.
const DIRECTORY: u64 = 10_000;
const FILE_BYTES: usize = 256;
/// Who makes them.
const MAKERS: u64 = 64;
/// Time between the blows, and after the last.
const SETTLE: Duration = Duration::from_secs(5);

fn path(n: u64) -> Vec<u8> {
    format!("/many/{}/{n}", n / DIRECTORY).into_bytes()
}

fn bytes(n: u64) -> Vec<u8> {
    let mut bytes = vec![];
    super::load::fill(&mut bytes, n, FILE_BYTES);
    bytes
}

/// Makes small files, many at a time: `what` gives a file's path and its bytes.
pub(super) async fn make_files(
    config: &Config,
    files: u64,
    what: fn(u64) -> (Vec<u8>, Vec<u8>),
) -> anyhow::Result<()> {
    let next = Arc::new(AtomicU64::new(0));
    let mut makers = vec![];
    for _ in 0..MAKERS {
        let (client, next) = (Client::connect(config.clone()).await?, next.clone());
        makers.push(tokio::spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= files {
                    return anyhow::Ok(());
                }
                let (path, bytes) = what(n);
                client.create_with(&path, &bytes).await?;
            }
        }));
    }
    for maker in makers {
        maker.await??;
    }
    Ok(())
}

/// Creates, one after another, until told to stop: the longest wait.
async fn creates(client: Client, stop: Arc<AtomicBool>, name: &'static str) -> anyhow::Result<Duration> {
    let mut longest = Duration::ZERO;
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        let began = Instant::now();
        client.create(&format!("/{name}/{n}").into_bytes(), true).await?;
        longest = longest.max(began.elapsed());
    }
    Ok(longest)
}

/// All repeats, on one cluster.
pub(super) async fn run(
    home: &Path,
    binary: &Path,
    repeats: u32,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let spec = Spec { chunkserver_extra: "segment_bytes = 268435456\n".into(), ..Spec::small(3, 3) };
    let mut cluster = Cluster::open(home, &spec, binary)?;
    cluster.start_all()?;
    let client = cluster.healthy().await?;
    client.mkdir(b"/many", true, 0o755).await?;
    for n in 0..FILES.div_ceil(DIRECTORY) {
        client.mkdir(&format!("/many/{n}").into_bytes(), true, 0o755).await?;
    }
    let memory = memory_of(&cluster)?;
    let began = Instant::now();
    make_files(&cluster.client_file()?.config()?, FILES, |n| (path(n), bytes(n))).await?;
    let took = began.elapsed().as_secs_f64();
    outcome.count("chunks made, with three replicas each", FILES);
    outcome.notes.push(format!("{:.0} files of {FILE_BYTES} bytes made a second", FILES as f64 / took));
    for ((name, before), (_, after)) in memory.into_iter().zip(memory_of(&cluster)?) {
        let each = after.saturating_sub(before) / FILES;
        outcome.notes.push(format!("{name}: {} MiB resident, {each} bytes a chunk", after >> 20));
    }
    for round in 0..repeats {
        one(&mut cluster, round, outcome).await?;
    }
    cluster.stop()
}

fn memory_of(cluster: &Cluster) -> anyhow::Result<Vec<(String, u64)>> {
    servers(cluster)?.into_iter().map(|(name, pid)| Ok((name, resident(pid)?))).collect()
}

/// A metadata loop while nothing happens, while a chunkserver is restarted, and while the leader is
/// killed.
async fn one(cluster: &mut Cluster, round: u32, outcome: &mut Outcome) -> anyhow::Result<()> {
    let client = cluster.healthy().await?;
    for name in ["calm", "server", "leader"] {
        let dir: &'static str = name;
        client.mkdir(&format!("/{dir}").into_bytes(), true, 0o755).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let loader = Client::connect(cluster.client_file()?.config()?).await?;
        let load = tokio::spawn(creates(loader, stop.clone(), dir));
        tokio::time::sleep(SETTLE).await;
        match dir {
            "server" => {
                let began = Instant::now();
                let name = format!("cs{}", round % 3 + 1);
                cluster.kill(&name)?;
                super::report_exit(&cluster.config_of(&name)).await?;
                cluster.start(&name)?;
                whole(&cluster.healthy().await?).await?;
                outcome.whole.push(began.elapsed());
            }
            "leader" => {
                let leader = client.status().await?.leader.context("nobody leads")?;
                cluster.kill(&format!("m{leader}"))?;
                tokio::time::sleep(SETTLE).await;
                cluster.start(&format!("m{leader}"))?;
                cluster.healthy().await?;
            }
            _ => {}
        }
        tokio::time::sleep(SETTLE).await;
        stop.store(true, Ordering::Relaxed);
        let longest = load.await??;
        match dir {
            "calm" => outcome.calm("metadata, server", longest),
            "server" => outcome.gap("metadata, server", longest),
            _ => outcome.gap("metadata, leader", longest),
        }
        client.unlink(&format!("/{dir}").into_bytes(), true).await?;
    }
    // One in a thousand is read.
    for n in (0..FILES).step_by(1000) {
        let file = client.open(&path(n)).await?;
        if file.read_at(0, FILE_BYTES as u64).await? != bytes(n) {
            bail!("file {n} is corrupt");
        }
        outcome.count("files verified", 1);
    }
    Ok(())
}
