//! Snapshots in a row of files that are written over and cut meanwhile. A snapshot of a large tree: taken while others create, then the tree is written over, appended to,
//! moved and deleted, while servers die. The snapshot stays as it was. When it and the tree are
//! deleted, the disks are as empty as before; so they are after as many creates and deletes again.

use super::outcome::Outcome;
use super::strike::whole;
use crate::cluster::{Cluster, Spec};
use anyhow::{Context, bail};
use client::{Client, Config};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Files of the tree, files of a directory, bytes of a file.
const FILES: u64 = 100_000;
const DIRECTORY: u64 = 1000;
const FILE_BYTES: usize = 300;
/// Who works at a time.
const WORKERS: u64 = 32;
/// Files that are written over and over while snapshots of them are taken.
const REWRITTEN: u64 = 40;
/// Snapshots that are taken of them, one after another.
const IN_A_ROW: u64 = 20;
/// What is deleted is gone from the disks within this.
const GONE_WITHIN: Duration = Duration::from_secs(120);

fn path(tree: &str, n: u64) -> Vec<u8> {
    format!("{tree}/{}/{n}", n / DIRECTORY).into_bytes()
}

fn bytes(n: u64) -> Vec<u8> {
    let mut bytes = vec![];
    super::load::fill(&mut bytes, n, FILE_BYTES);
    bytes
}

/// What becomes of a file once the snapshot is taken: one in ten each.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Overwritten,
    Appended,
    Deleted,
    Moved,
    Stays,
}

fn fate(n: u64) -> Fate {
    match n % 10 {
        0 => Fate::Overwritten,
        1 => Fate::Appended,
        2 => Fate::Deleted,
        3 => Fate::Moved,
        _ => Fate::Stays,
    }
}

/// Has workers do something with each file.
async fn with_each<F>(
    config: &Config,
    work: impl Fn(Client, u64) -> F + Copy + Send + 'static,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>> + Send,
{
    let next = Arc::new(AtomicU64::new(0));
    let mut workers = vec![];
    for _ in 0..WORKERS {
        let (client, next) = (Client::connect(config.clone()).await?, next.clone());
        workers.push(tokio::spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= FILES {
                    return anyhow::Ok(());
                }
                work(client.clone(), n).await.with_context(|| format!("file {n}"))?;
            }
        }));
    }
    for worker in workers {
        worker.await??;
    }
    Ok(())
}

async fn fill(config: &Config, tree: &'static str) -> anyhow::Result<()> {
    let client = Client::connect(config.clone()).await?;
    for n in 0..FILES.div_ceil(DIRECTORY) {
        client.mkdir(&format!("{tree}/{n}").into_bytes(), true, 0o755).await?;
    }
    with_each(
        config,
        move |client, n| async move { Ok(client.create_with(&path(tree, n), &bytes(n)).await?) },
    )
    .await
}

async fn change(client: Client, n: u64) -> anyhow::Result<()> {
    match fate(n) {
        Fate::Overwritten => client.write_at(&path("/tree", n), 0, &bytes(n + FILES)).await?,
        Fate::Appended => {
            client.appender(&path("/tree", n)).await?.append(&bytes(n + FILES)).await?;
        }
        Fate::Deleted => client.unlink(&path("/tree", n), false).await?,
        Fate::Moved => {
            client.rename(&path("/tree", n), &format!("/moved/{n}").into_bytes(), false).await?;
        }
        Fate::Stays => {}
    }
    Ok(())
}

async fn holds(client: &Client, path: &[u8], wanted: &[u8]) -> anyhow::Result<()> {
    let shown = || String::from_utf8_lossy(path).into_owned();
    let file = client.open(path).await.with_context(shown)?;
    if file.len() != wanted.len() as u64 || file.read_at(0, u64::MAX).await? != wanted {
        bail!("{} is corrupt", shown());
    }
    Ok(())
}

/// The snapshot's file is as it was, and the live one as it has become.
async fn verify(client: Client, n: u64) -> anyhow::Result<()> {
    holds(&client, &path("/tree/.snapshot/before", n), &bytes(n)).await?;
    let live = path("/tree", n);
    match fate(n) {
        Fate::Overwritten => holds(&client, &live, &bytes(n + FILES)).await,
        Fate::Appended => holds(&client, &live, &[bytes(n), bytes(n + FILES)].concat()).await,
        Fate::Moved => holds(&client, &format!("/moved/{n}").into_bytes(), &bytes(n)).await,
        Fate::Stays => holds(&client, &live, &bytes(n)).await,
        Fate::Deleted => match client.lookup(&live).await {
            Err(_) => Ok(()),
            Ok(_) => bail!("a deleted file is there"),
        },
    }
}

/// Creates, one after another, until told to stop: the longest wait.
async fn creates(client: Client, stop: Arc<AtomicBool>) -> anyhow::Result<Duration> {
    let mut longest = Duration::ZERO;
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        let began = Instant::now();
        client.create(&format!("/creates/{n}").into_bytes(), true).await?;
        longest = longest.max(began.elapsed());
    }
    Ok(longest)
}

/// Writes small files, one after another, in place and to new chunks, until told to stop: the longest wait. They hold
/// what was written last.
async fn rewrites(client: Client, stop: Arc<AtomicBool>) -> anyhow::Result<Duration> {
    let path = |n: u64| format!("/writes/{}", n % REWRITTEN).into_bytes();
    for n in 0..REWRITTEN {
        client.create_with(&path(n), &bytes(n)).await?;
    }
    let mut longest = Duration::ZERO;
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        let began = Instant::now();
        if n % 3 == 0 {
            client.truncate(&path(n), 0).await?;
        }
        client.write_at(&path(n), 0, &bytes(n)).await?;
        longest = longest.max(began.elapsed());
    }
    for last in n.saturating_sub(REWRITTEN) + 1..=n {
        holds(&client, &path(last), &bytes(last)).await?;
    }
    Ok(longest)
}

async fn used(client: &Client) -> anyhow::Result<u64> {
    Ok(client.stores().await?.iter().map(|s| s.used).sum())
}

/// Waits until the disks hold no more than that; gives how long it took.
async fn gone(client: &Client, limit: u64) -> anyhow::Result<Duration> {
    let began = Instant::now();
    loop {
        let now = used(client).await?;
        if now <= limit {
            return Ok(began.elapsed());
        }
        if began.elapsed() > GONE_WITHIN {
            bail!("{now} bytes stay on the disks; at first there were {limit}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

const MIB: u64 = 1 << 20;

/// All repeats, on one cluster.
pub(super) async fn run(
    home: &Path,
    binary: &Path,
    repeats: u32,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let mut cluster = Cluster::open(home, &Spec::small(3, 4), binary)?;
    cluster.start_all()?;
    cluster.healthy().await?;
    for round in 0..repeats {
        one(&mut cluster, outcome).await.with_context(|| format!("round {round}"))?;
    }
    cluster.stop()
}

async fn one(cluster: &mut Cluster, outcome: &mut Outcome) -> anyhow::Result<()> {
    let client = cluster.healthy().await?;
    let config = cluster.client_file()?.config()?;
    for dir in ["/tree", "/moved", "/creates", "/writes"] {
        client.mkdir(dir.as_bytes(), true, 0o755).await?;
    }
    let at_first = used(&client).await?;
    fill(&config, "/tree").await.context("fill the tree")?;
    let full = used(&client).await?;

    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(creates(Client::connect(config.clone()).await?, stop.clone()));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let began = Instant::now();
    client.take_snapshot(b"/tree", b"before").await?;
    let took = began.elapsed();
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    outcome.gap("metadata, snapshot", load.await??);

    // A snapshot may come between a chunk and its first write, or between any two writes.
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(rewrites(Client::connect(config.clone()).await?, stop.clone()));
    for n in 0..IN_A_ROW {
        client.take_snapshot(b"/writes", format!("s{n}").as_bytes()).await?;
    }
    stop.store(true, Ordering::Relaxed);
    outcome.gap("small writes, snapshots in a row", load.await??);
    for n in 0..IN_A_ROW {
        client.delete_snapshot(b"/writes", format!("s{n}").as_bytes()).await?;
    }

    let changing = tokio::spawn({
        let config = config.clone();
        async move { with_each(&config, change).await }
    });
    tokio::time::sleep(Duration::from_millis(1500)).await;
    cluster.kill("cs2")?;
    super::report_exit(&cluster.config_of("cs2")).await?;
    cluster.start("cs2")?;
    let leader = client.status().await?.leader.context("nobody leads")?;
    cluster.kill(&format!("m{leader}"))?;
    cluster.start(&format!("m{leader}"))?;
    changing.await?.context("change the tree")?;
    whole(&client).await?;
    let changed = used(&client).await?;
    with_each(&config, verify).await.context("verify the snapshot")?;
    outcome.count("files verified, in the snapshot and out of it", FILES);

    client.delete_snapshot(b"/tree", b"before").await?;
    for dir in ["/tree", "/moved", "/creates", "/writes"] {
        client.unlink(dir.as_bytes(), true).await?;
    }
    client.empty_trash().await?;
    let emptied = gone(&client, at_first).await.context("after the snapshot was deleted")?;
    outcome.notes.push(format!(
        "snapshot of {FILES} files taken after {} ms; on the disks {} MiB at first, {} with the tree, {} with the snapshot and the changed tree, and as at first {} s after all was deleted",
        took.as_millis(),
        at_first / MIB,
        full / MIB,
        changed / MIB,
        emptied.as_secs()
    ));
    fill(&config, "/storm").await.context("storm")?;
    with_each(&config, |client, n| async move { Ok(client.unlink(&path("/storm", n), false).await?) })
        .await?;
    client.unlink(b"/storm", true).await?;
    client.empty_trash().await?;
    let emptied = gone(&client, at_first).await.context("after the storm")?;
    let (chunks, files) = client.status().await.map(|s| (s.chunks, s.files))?;
    outcome.notes.push(format!(
        "{FILES} files created and deleted again: the disks are as before after {} s; {chunks} chunks, {files} names left",
        emptied.as_secs()
    ));
    Ok(())
}
