//! Programs write through a mount while a chunkserver and the leading master are killed: how long a call waits.

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
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// What a program does: blocks of a size, one after another and around again, with `fdatasync` after so many.
struct Program {
    name: &'static str,
    block: usize,
    sync_every: u64,
    blocks: u64,
}

const PROGRAMS: [Program; 2] = [
    Program { name: "4k", block: 4096, sync_every: 1, blocks: 1024 },
    Program { name: "1m", block: 1024 * 1024, sync_every: 16, blocks: 128 },
];

/// The blows, and what waits are called then.
const BLOWS: [(&str, [&str; 2]); 2] = [
    ("server", ["4 KiB synced, server", "1 MiB, server"]),
    ("leader", ["4 KiB synced, leader", "1 MiB, leader"]),
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
    pub(super) fn new(home: &Path, cluster: &Cluster, binary: &Path) -> anyhow::Result<Mount> {
        let point = home.join("mnt");
        std::fs::create_dir(&point)?;
        let mut command = Command::new(binary);
        command.arg("--cluster").arg(cluster.dir()).arg("mount").arg(&point).stdout(Stdio::null());
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

fn write(file: &File, program: &Program, phase: &AtomicU8) -> anyhow::Result<Seen> {
    let mut seen = Seen { written: 0, calm: Duration::ZERO, struck: Duration::ZERO };
    let mut bytes = vec![];
    loop {
        let n = seen.written;
        bytes.clear();
        fill(&mut bytes, n, program.block);
        let began = Instant::now();
        file.write_all_at(&bytes, n % program.blocks * program.block as u64)?;
        if (n + 1).is_multiple_of(program.sync_every) {
            file.sync_data()?;
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
            let mount = Mount::new(home, &cluster, binary)?;
            let done = one(&mut cluster, &mount.point, round, blow, kinds, outcome).await;
            done.with_context(|| format!("round {round}: {blow}"))?;
            mount.end()?;
        }
    }
    cluster.stop()
}

async fn one(
    cluster: &mut Cluster,
    point: &Path,
    round: u32,
    blow: &str,
    kinds: [&'static str; 2],
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let name = |program: &Program| format!("{}-{blow}-{round}", program.name);
    let phase = Arc::new(AtomicU8::new(CALM));
    let mut running = vec![];
    for program in &PROGRAMS {
        let (path, phase) = (point.join(name(program)), phase.clone());
        running.push(tokio::task::spawn_blocking(move || write(&File::create(path)?, program, &phase)));
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
