//! Very many who use a cluster at a time: chunks, clients with connections of their own, files that are open on a
//! mount. What all that takes of the servers' memory, and of the mount's, is bounded.

use super::load::fill;
use super::many::make_files;
use super::mounted::Mount;
use super::outcome::Outcome;
use crate::cluster::{Cluster, Spec};
use anyhow::{Context, bail};
use client::{Client, Config};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Chunks, of one small file each.
const CHUNKS: u64 = 100_000;
/// Clients, each with connections of its own, that append records to a file each.
const CLIENTS: u64 = 1000;
/// Files that are open on a mount at a time.
const OPEN_FILES: u64 = 10_000;
/// Bytes of a small file, a record, and a write to an open file.
const SMALL_BYTES: usize = 256;
const RECORD_BYTES: usize = 4096;
/// Files of a directory.
const DIRECTORY: u64 = 1000;
/// What a mount may take of memory, and a chunkserver: what was written in small pieces is in memory until the next
/// checkpoint, and a chunk takes half a kilobyte.
const MOUNT_MAX: u64 = 256 << 20;
const CHUNKSERVER_MAX: u64 = 256 << 20;
/// Memory is looked at so often.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Clients append for so long, and so often each.
const APPENDING: Duration = Duration::from_secs(15);
const EVERY: Duration = Duration::from_millis(500);

/// Resident bytes of a process.
pub(super) fn resident(pid: u32) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// The processes that serve: a chunkserver's worker, a master.
pub(super) fn servers(cluster: &Cluster) -> anyhow::Result<Vec<(String, u32)>> {
    let pid = |name: &str| if name.starts_with("cs") { cluster.worker_pid(name) } else { cluster.pid(name) };
    let of = |name: String| Ok((name.clone(), pid(&name).with_context(|| format!("{name} does not run"))?));
    cluster.names()?.into_iter().map(of).collect()
}

/// Looks at the memory of processes until told to stop: the most that each had.
async fn watch(
    processes: Vec<(String, u32)>,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut most = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        for (name, pid) in &processes {
            let now = resident(*pid).with_context(|| format!("{name} is gone"))?;
            let known: &mut u64 = most.entry(name.clone()).or_default();
            *known = now.max(*known);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(most)
}

fn directory(kind: &str, n: u64) -> String {
    format!("/{kind}-{}", n / DIRECTORY)
}

fn path(kind: &str, n: u64) -> String {
    format!("{}/{n}", directory(kind, n))
}

async fn directories(client: &Client, kind: &str, files: u64) -> anyhow::Result<()> {
    for n in (0..files).step_by(DIRECTORY as usize) {
        client.mkdir(directory(kind, n).as_bytes(), true, 0o755).await?;
    }
    Ok(())
}

fn small_file(n: u64) -> (Vec<u8>, Vec<u8>) {
    let mut bytes = vec![];
    fill(&mut bytes, n, SMALL_BYTES);
    (path("chunk", n).into_bytes(), bytes)
}

/// One client appends until told to stop, and reads back what it wrote: how many records.
async fn append(config: Config, n: u64, stop: Arc<AtomicBool>) -> anyhow::Result<u64> {
    let client = Client::connect(config).await?;
    let path = path("appended", n);
    let mut appender = client.appender(path.as_bytes()).await?;
    let (mut records, mut bytes) = (0, vec![]);
    // Not all at once.
    tokio::time::sleep(EVERY * n as u32 / CLIENTS as u32).await;
    let mut turns = tokio::time::interval(EVERY);
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !stop.load(Ordering::Relaxed) {
        turns.tick().await;
        bytes.clear();
        fill(&mut bytes, n << 32 | records, RECORD_BYTES);
        appender.append(&bytes).await?;
        records += 1;
    }
    appender.close().await?;
    let all = client.open(path.as_bytes()).await?.read_at(0, u64::MAX).await?;
    for (found, record) in all.chunks(RECORD_BYTES).zip(0..) {
        bytes.clear();
        fill(&mut bytes, n << 32 | record, RECORD_BYTES);
        if found != bytes {
            bail!("{path}: record {record} is not what was appended");
        }
    }
    if all.len() as u64 != records * RECORD_BYTES as u64 {
        bail!("{path} has {} bytes, of {records} records", all.len());
    }
    Ok(records)
}

/// Opens very many files, writes to all of them while all are open, and reads them.
fn open_many(point: &Path) -> anyhow::Result<u64> {
    let at = |n: u64| -> PathBuf { point.join(&path("open", n)[1..]) };
    let new = |n: u64| {
        let mut options = File::options();
        options.read(true).write(true).create_new(true).open(at(n)).with_context(|| format!("open file {n}"))
    };
    let files = (0..OPEN_FILES).map(new).collect::<anyhow::Result<Vec<File>>>()?;
    let mut bytes = vec![];
    for (file, n) in files.iter().zip(0..) {
        bytes.clear();
        fill(&mut bytes, n, RECORD_BYTES);
        file.write_all_at(&bytes, 0)?;
    }
    let mut found = vec![0; RECORD_BYTES];
    for (file, n) in files.iter().zip(0..) {
        file.sync_data()?;
        file.read_exact_at(&mut found, 0)?;
        bytes.clear();
        fill(&mut bytes, n, RECORD_BYTES);
        if found != bytes {
            bail!("open file {n} has not what was written to it");
        }
    }
    Ok(OPEN_FILES)
}

/// All repeats, on one cluster.
pub(super) async fn run(
    home: &Path,
    binary: &Path,
    repeats: u32,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    std::fs::create_dir_all(home)?;
    let spec = Spec { chunkserver_extra: "segment_bytes = 268435456\n".into(), ..Spec::small(3, 3) };
    let mut cluster = Cluster::open(&home.join("cluster"), &spec, binary)?;
    cluster.start_all()?;
    let client = cluster.healthy().await?;
    let config = cluster.client_file()?.config()?;
    directories(&client, "chunk", CHUNKS).await?;
    make_files(&config, CHUNKS, small_file).await?;
    outcome.count("chunks made, with three replicas each", CHUNKS);
    for _ in 0..repeats {
        directories(&client, "appended", CLIENTS).await?;
        directories(&client, "open", OPEN_FILES).await?;
        one(&cluster, home, binary, outcome).await?;
        for kind in ["appended", "open"] {
            for n in (0..OPEN_FILES.max(CLIENTS)).step_by(DIRECTORY as usize) {
                // Not all kinds have as many.
                let _ = client.unlink(directory(kind, n).as_bytes(), true).await;
            }
        }
    }
    cluster.stop()
}

async fn one(cluster: &Cluster, home: &Path, binary: &Path, outcome: &mut Outcome) -> anyhow::Result<()> {
    let config = cluster.client_file()?.config()?;
    let mount = Mount::new(home, "mnt", cluster, binary)?;
    let mut watched = servers(cluster)?;
    watched.push(("mount".into(), mount.pid()));
    let (stop_watching, stop_appending) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let watching = tokio::spawn(watch(watched, stop_watching.clone()));
    let appending: Vec<_> =
        (0..CLIENTS).map(|n| tokio::spawn(append(config.clone(), n, stop_appending.clone()))).collect();
    let point = mount.point().to_owned();
    let opening = tokio::task::spawn_blocking(move || open_many(&point));
    tokio::time::sleep(APPENDING).await;
    let opened = opening.await??;
    stop_appending.store(true, Ordering::Relaxed);
    let mut records = 0;
    for client in appending {
        records += client.await??;
    }
    stop_watching.store(true, Ordering::Relaxed);
    let most = watching.await??;
    mount.end()?;
    outcome.count("records appended and verified", records);
    outcome.count("files open at a time, written and verified", opened);
    for (name, bytes) in most {
        outcome.notes.push(format!("{name}: {} MiB resident at most", bytes >> 20));
        let most = match name.as_str() {
            "mount" => MOUNT_MAX,
            name if name.starts_with("cs") => CHUNKSERVER_MAX,
            _ => u64::MAX,
        };
        if bytes > most {
            bail!("{name} took {} MiB of memory, more than {}", bytes >> 20, most >> 20);
        }
    }
    Ok(())
}
