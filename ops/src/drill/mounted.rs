//! Programs write through a mount while a chunkserver and the leading master are killed: how long a call waits. Others
//! read along through a second mount, most of it off the disks of this machine's stores: nothing that they see is from
//! before what had been synced, or closed, when they opened the file.

use super::load::fill;
use super::outcome::Outcome;
use super::strike::whole;
use super::{report_exit, store_of};
use crate::cluster::{Cluster, Spec, signal};
use anyhow::{Context, bail};
use client::Client;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a program does: blocks of a size, one after another and around again, with `fdatasync` after so many; and
/// whether it closes the file then, and opens it again.
struct Program {
    name: &'static str,
    block: usize,
    sync_every: u64,
    blocks: u64,
    closes: bool,
}

const PROGRAMS: [Program; 3] = [
    Program { name: "4k", block: 4096, sync_every: 1, blocks: 1024, closes: false },
    Program { name: "1m", block: 1024 * 1024, sync_every: 16, blocks: 128, closes: false },
    Program { name: "closed", block: 1024 * 1024, sync_every: 8, blocks: 96, closes: true },
];

impl Program {
    /// Whether who opens the file sees what was synced: of the last chunk at once, of others when it was closed.
    fn is_seen(&self) -> bool {
        self.closes || self.blocks * (self.block as u64) < common::limits::CHUNK_BYTES_MAX
    }
}

/// What is written is seen as a whole, or not at all.
const PART: usize = 4096;

/// The blows, and what waits are called then.
const BLOWS: [(&str, [&str; 3]); 2] = [
    ("server", ["4 KiB synced, server", "1 MiB, server", "1 MiB and open, server"]),
    ("leader", ["4 KiB synced, leader", "1 MiB, leader", "1 MiB and open, leader"]),
];
/// Programs run for so long before a blow, and after it.
const SETTLE: Duration = Duration::from_secs(2);
const AFTER: Duration = Duration::from_secs(4);
/// The mount stands within this.
const MOUNTED_WITHIN: Duration = Duration::from_secs(10);

const CALM: u8 = 0;
const STRUCK: u8 = 1;
const OVER: u8 = 2;

/// What a program saw: how many blocks it wrote, and its longest call before and after the blow.
struct Seen {
    written: u64,
    calm: Duration,
    struck: Duration,
}

/// A mount of a cluster, in a process of its own.
pub(super) struct Mount {
    point: PathBuf,
    process: Child,
}

impl Mount {
    pub(super) fn new(home: &Path, name: &str, cluster: &Cluster, binary: &Path) -> anyhow::Result<Mount> {
        Mount::with(home, name, cluster, binary, &[])
    }

    /// One with options of its own.
    pub(super) fn with(
        home: &Path,
        name: &str,
        cluster: &Cluster,
        binary: &Path,
        options: &[&str],
    ) -> anyhow::Result<Mount> {
        let point = home.join(name);
        std::fs::create_dir(&point)?;
        let mut command = Command::new(binary);
        command
            .arg("--cluster")
            .arg(cluster.dir())
            .arg("mount")
            .args(options)
            .arg(&point)
            .stdout(Stdio::null());
        command.arg("--die-with-parent").arg(std::process::id().to_string());
        let mut mount = Mount { process: command.spawn().context("start the mount")?, point };
        let began = Instant::now();
        while !mount.stands()? {
            if let Some(status) = mount.process.try_wait()? {
                bail!("the mount ended: {status}");
            }
            if began.elapsed() > MOUNTED_WITHIN {
                bail!("the mount does not come to stand");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(mount)
    }

    pub(super) fn point(&self) -> &Path {
        &self.point
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    fn stands(&self) -> anyhow::Result<bool> {
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        Ok(mounts.lines().any(|line| line.split(' ').nth(1) == self.point.to_str()))
    }

    pub(super) fn end(mut self) -> anyhow::Result<()> {
        signal(self.process.id(), "TERM")?;
        let status = self.process.wait()?;
        if !status.success() {
            bail!("the mount ended: {status}");
        }
        Ok(std::fs::remove_dir(&self.point)?)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // It has ended already if all was well.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if self.stands().unwrap_or(false) {
            let _ = Command::new("umount").arg("-l").arg(&self.point).status();
        }
    }
}

/// How far a program is, for whoever reads along.
#[derive(Default)]
struct Progress {
    /// Blocks that it has begun to write.
    begun: AtomicU64,
    /// Blocks that are durable.
    synced: AtomicU64,
}

fn write(path: &Path, program: &Program, phase: &AtomicU8, progress: &Progress) -> anyhow::Result<Seen> {
    let mut file = File::create(path)?;
    let mut seen = Seen { written: 0, calm: Duration::ZERO, struck: Duration::ZERO };
    let mut bytes = vec![];
    loop {
        let n = seen.written;
        bytes.clear();
        fill(&mut bytes, n, program.block);
        let began = Instant::now();
        progress.begun.store(n + 1, Ordering::Release);
        file.write_all_at(&bytes, n % program.blocks * program.block as u64)?;
        if (n + 1).is_multiple_of(program.sync_every) {
            file.sync_data()?;
            if program.closes {
                drop(file);
                file = File::options().write(true).open(path)?;
            }
            progress.synced.store(n + 1, Ordering::Release);
        }
        seen.written += 1;
        let now = phase.load(Ordering::Relaxed);
        let longest = if now == CALM { &mut seen.calm } else { &mut seen.struck };
        *longest = began.elapsed().max(*longest);
        if now == OVER {
            file.sync_all()?;
            return Ok(seen);
        }
    }
}

/// Opens the file again and again, and reads one of the blocks that were synced last: how many were read.
fn read_along(path: &Path, program: &Program, phase: &AtomicU8, progress: &Progress) -> anyhow::Result<u64> {
    let (mut read, mut bytes, mut found) = (0, vec![], vec![0; program.block]);
    while phase.load(Ordering::Relaxed) != OVER {
        let synced = progress.synced.load(Ordering::Acquire);
        if synced == 0 {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        // Mostly the last one, where old bytes would show at once.
        let back = if read % 4 == 0 { read % synced.min(program.blocks) } else { 0 };
        let (first, slot) = (synced - 1 - back, (synced - 1 - back) % program.blocks);
        let file = File::open(path)?;
        file.read_exact_at(&mut found, slot * program.block as u64).with_context(|| {
            let bytes = file.metadata().map(|m| m.len());
            format!("{}: read block {slot}, of {synced} synced: it has {bytes:?} bytes", path.display())
        })?;
        let begun = progress.begun.load(Ordering::Acquire);
        // It may have been overwritten meanwhile, in part, by what was begun by now.
        let mut fits = vec![false; program.block / PART];
        for n in (first..begun).step_by(program.blocks as usize) {
            bytes.clear();
            fill(&mut bytes, n, program.block);
            let parts = bytes.chunks(PART).zip(found.chunks(PART));
            fits.iter_mut().zip(parts).for_each(|(fits, (one, other))| *fits |= one == other);
        }
        if fits.contains(&false) {
            bail!("{}: block {slot} is not write {first}, which was synced, nor a later one", path.display());
        }
        read += 1;
    }
    Ok(read)
}

/// What is in the file, read beside the mount, is what was written last.
async fn verify(client: &Client, path: &[u8], program: &Program, written: u64) -> anyhow::Result<u64> {
    let file = client.open(path).await?;
    let slots = written.min(program.blocks);
    for slot in 0..slots {
        let last = slot + (written - 1 - slot) / program.blocks * program.blocks;
        let mut bytes = vec![];
        fill(&mut bytes, last, program.block);
        if file.read_at(slot * program.block as u64, program.block as u64).await? != bytes {
            bail!("{}: block {slot}: it is not what was written last", String::from_utf8_lossy(path));
        }
    }
    Ok(slots)
}

/// All repeats, on one cluster.
pub(super) async fn run(
    home: &Path,
    binary: &Path,
    repeats: u32,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    std::fs::create_dir_all(home)?;
    let mut cluster = Cluster::open(&home.join("cluster"), &Spec::small(3, 4), binary)?;
    cluster.start_all()?;
    cluster.healthy().await?;
    // The grace after a start, in which members that have not registered are not removed.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for round in 0..repeats {
        for (blow, kinds) in BLOWS {
            let mount = Mount::new(home, "mnt", &cluster, binary)?;
            let second = Mount::new(home, "second", &cluster, binary)?;
            let points = (&*mount.point, &*second.point);
            let done = one(&mut cluster, points, round, blow, kinds, outcome).await;
            done.with_context(|| format!("round {round}: {blow}"))?;
            mount.end()?;
            second.end()?;
        }
    }
    cluster.stop()
}

async fn one(
    cluster: &mut Cluster,
    (point, second): (&Path, &Path),
    round: u32,
    blow: &str,
    kinds: [&'static str; 3],
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let name = |program: &Program| format!("{}-{blow}-{round}", program.name);
    let phase = Arc::new(AtomicU8::new(CALM));
    let (mut running, mut reading) = (vec![], vec![]);
    for program in &PROGRAMS {
        let (path, along) = (point.join(name(program)), second.join(name(program)));
        let (ours, theirs) = (phase.clone(), phase.clone());
        let progress = Arc::new(Progress::default());
        let seen = progress.clone();
        running.push(tokio::task::spawn_blocking(move || write(&path, program, &ours, &seen)));
        if program.is_seen() {
            reading
                .push(tokio::task::spawn_blocking(move || read_along(&along, program, &theirs, &progress)));
        }
    }
    tokio::time::sleep(SETTLE).await;
    let client = cluster.healthy().await?;
    let victim = match blow {
        "leader" => format!("m{}", client.status().await?.leader.context("nobody leads")?),
        _ => primary_of(cluster, &client, format!("/{}", name(&PROGRAMS[0])).as_bytes()).await?,
    };
    phase.store(STRUCK, Ordering::Relaxed);
    cluster.kill(&victim)?;
    if blow == "server" {
        // As `cairn up` does when it sees the end of a parent.
        report_exit(&cluster.config_of(&victim)).await?;
    }
    tokio::time::sleep(AFTER).await;
    phase.store(OVER, Ordering::Relaxed);
    for reader in reading {
        outcome.count("reads through a second mount", reader.await??);
    }
    for ((program, kind), seen) in PROGRAMS.iter().zip(kinds).zip(running) {
        let Seen { written, calm, struck } = seen.await??;
        outcome.calm(kind, calm);
        outcome.gap(kind, struck);
        outcome.count("writes acknowledged", written);
        let path = format!("/{}", name(program));
        outcome.count("blocks verified", verify(&client, path.as_bytes(), program, written).await?);
        std::fs::remove_file(point.join(name(program)))?;
    }
    cluster.start(&victim)?;
    whole(&cluster.healthy().await?).await
}

/// The chunkserver that is the primary of a file's first chunk.
async fn primary_of(cluster: &Cluster, client: &Client, path: &[u8]) -> anyhow::Result<String> {
    let layout = client.layout(client.lookup(path).await?.file).await?;
    let primary = layout.chunks().first().context("the file has no chunk yet")?.config.primary;
    for name in cluster.names()?.into_iter().filter(|name| name.starts_with("cs")) {
        if store_of(cluster, &name)? == primary {
            return Ok(name);
        }
    }
    bail!("nobody serves {primary}")
}
