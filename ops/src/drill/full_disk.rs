//! The disk fills up: a small file system of its own, on a loop device, with a whole cluster on
//! it. What was acknowledged stays, what is refused is refused at once, and space comes back: when others on that disk
//! give some, and when files are deleted. In the end even the masters, on that disk too, have no room.

use super::disk::{FileSystem, LoopDisk};
use super::load::block;
use super::outcome::Outcome;
use crate::cluster::{Cluster, Spec};
use anyhow::{Context, bail};
use client::{Client, Error};
use common::Code;
use rustix::fs::FallocateFlags;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes of the file system.
const DISK_BYTES: u64 = 1200 << 20;
/// Bytes that somebody else has on it.
const OTHERS_BYTES: u64 = 300 << 20;
/// Writes of one file.
const BLOCKS: u64 = 8;
/// The disk is full before so many files.
const FILES_MAX: u64 = 200;
/// Masters without room refuse before so many names.
const NAMES_MAX: u64 = 20_000;
/// A refusal comes within this, and writes go again within this after space is made.
const WITHIN: Duration = Duration::from_secs(20);
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(10);

fn path(n: u64) -> Vec<u8> {
    format!("/full-{n}").into_bytes()
}

async fn put(client: &Client, n: u64) -> client::Result<()> {
    let mut file = client.put(&path(n)).await?;
    for i in 0..BLOCKS {
        file.write_block(block(n * BLOCKS + i).into()).await?;
    }
    file.finish(0o644, 0, false).await.map(drop)
}

async fn verify(client: &Client, n: u64) -> anyhow::Result<()> {
    let file = client.open(&path(n)).await?;
    for i in 0..BLOCKS {
        let wanted = block(n * BLOCKS + i);
        if file.read_at(i * wanted.len() as u64, wanted.len() as u64).await? != wanted {
            bail!("file {n} is corrupt in block {i}");
        }
    }
    Ok(())
}

/// Puts files until one is refused; says how long that took.
async fn fill(client: &Client, acked: &mut u64) -> anyhow::Result<Duration> {
    loop {
        let began = Instant::now();
        match put(client, *acked).await {
            Ok(()) => *acked += 1,
            Err(Error::Refused(r)) if matches!(r.code, Code::DiskFull | Code::NoServers) => {
                return Ok(began.elapsed());
            }
            // The disk filled up between a write and its answer: the file was not published.
            Err(Error::Unknown { last, .. }) if last.contains(Code::DiskFull.text()) => {
                return Ok(began.elapsed());
            }
            Err(error) => return Err(error).context("a full disk is answered with another error"),
        }
        if *acked > FILES_MAX {
            bail!("{acked} files fit on a disk of {DISK_BYTES} bytes");
        }
    }
}

/// Puts one more file, as soon as there is room for it; says how long that took.
async fn put_again(client: &Client, acked: &mut u64, after: &str) -> anyhow::Result<Duration> {
    let began = Instant::now();
    while let Err(error) = put(client, *acked).await {
        if began.elapsed() > WITHIN {
            return Err(error).with_context(|| format!("nothing can be written after {after}"));
        }
        tokio::time::sleep(AGAIN).await;
    }
    *acked += 1;
    Ok(began.elapsed())
}

/// All repeats.
pub(super) async fn run(
    home: &Path,
    binary: &Path,
    repeats: u32,
    disks: FileSystem,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    for round in 0..repeats {
        let home = home.join(round.to_string());
        one(&home, binary, disks, outcome).await.with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

async fn one(home: &Path, binary: &Path, disks: FileSystem, outcome: &mut Outcome) -> anyhow::Result<()> {
    let disk = LoopDisk::new(home, DISK_BYTES, disks)?;
    let others = disk.path().join("others");
    rustix::fs::fallocate(std::fs::File::create(&others)?, FallocateFlags::empty(), 0, OTHERS_BYTES)?;
    let mut cluster = Cluster::open(&disk.path().join("cluster"), &Spec::small(3, 3), binary)?;
    cluster.start_all()?;
    let client = cluster.healthy().await?;
    let mut acked = 0;
    let mut refused_after = fill(&client, &mut acked).await?;
    std::fs::remove_file(&others)?;
    let given_after = put_again(&client, &mut acked, "others have given room back").await?;
    refused_after = refused_after.max(fill(&client, &mut acked).await?);
    if refused_after > WITHIN {
        bail!("the refusal took {} s", refused_after.as_secs());
    }
    for n in 0..acked {
        verify(&client, n).await?;
    }
    for name in cluster.names()? {
        cluster.kill(&name)?;
    }
    cluster.start_all()?;
    let client = cluster.healthy().await.context("after a restart on the full disk")?;
    for n in 0..acked {
        verify(&client, n).await.context("after a restart on the full disk")?;
    }
    let deleted = acked / 2;
    for n in 0..deleted {
        client.unlink(&path(n), false).await?;
    }
    client.empty_trash().await?;
    // Space comes back as the stores carry the deletions out.
    let writable_after = put_again(&client, &mut acked, "half of all was deleted").await?;
    for n in deleted..acked {
        verify(&client, n).await?;
    }
    let (made, names_after) = masters_without_room(&client, &mut cluster, disk.path()).await?;
    for n in deleted..acked {
        verify(&client, n).await.context("after the masters had no room")?;
    }
    cluster.stop()?;
    outcome.count("files verified, before and after a restart on the full disk", acked);
    outcome.gap("refusals", refused_after);
    outcome.gap("room again", writable_after);
    outcome.gap("room of others", given_after);
    outcome.count("names made and deleted before and while masters had no room", made);
    outcome.gap("names again", names_after);
    Ok(())
}

/// Others take all that is left, to the last block.
fn take_all(disk: &Path, others: &Path) -> anyhow::Result<()> {
    let file = std::fs::File::create(others)?;
    let full = rustix::fs::statvfs(disk)?;
    let mut bytes = full.f_bfree * full.f_frsize;
    while bytes > 0 && rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes).is_err() {
        bytes = bytes.saturating_sub(64 * 1024);
    }
    let mut end = bytes;
    while file.write_all_at(&[1; 4096], end).is_ok() && file.sync_data().is_ok() {
        end += 4096;
    }
    Ok(())
}

/// Others take all that is left: names are refused, not lost, no master ends, and chunkservers can be started. How many were
/// made, and how long after there was room again one could be.
async fn masters_without_room(
    client: &Client,
    cluster: &mut Cluster,
    disk: &Path,
) -> anyhow::Result<(u64, Duration)> {
    let others = disk.join("others");
    take_all(disk, &others)?;
    let name = |n: u64| format!("/name-{n}").into_bytes();
    let make = async |n: u64| client.mkdir(&name(n), false, 0o755).await;
    let mut made = 0;
    loop {
        match make(made).await {
            Ok(_) => made += 1,
            Err(Error::Refused(r)) if r.code == Code::MasterFull => break,
            Err(error) => return Err(error).context("masters without room answer with another error"),
        }
        if made > NAMES_MAX {
            bail!("{made} names were made without room");
        }
    }
    for n in 0..made {
        client.stat(&name(n)).await.with_context(|| format!("name {n} is lost"))?;
    }
    // What makes the state smaller is done.
    client.unlink(&name(0), true).await.context("delete while masters have no room")?;
    for server in cluster.names()?.iter().filter(|name| name.starts_with("cs")) {
        cluster.kill(server)?;
        cluster.start(server)?;
    }
    cluster
        .healthy()
        .await
        .context("chunkservers that were started on a disk that is full to the last block")?;
    std::fs::remove_file(&others)?;
    let began = Instant::now();
    while let Err(error) = make(made).await {
        if began.elapsed() > WITHIN {
            return Err(error).context("no name can be made though there is room for the masters");
        }
        tokio::time::sleep(AGAIN).await;
    }
    Ok((made, began.elapsed()))
}
