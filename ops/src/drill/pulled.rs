//! The disk of one chunkserver hangs, or is slow; or it answers every request with an error: then the
//! store goes out of service by itself, its chunks get new members, and it comes back when the disk does. Or that of
//! the leading master hangs: two others' disks are enough.

use super::disk::LoopDisk;
use super::load::Load;
use super::strike::{SLOW_UNNOTICED, whole};
use super::{WHOLE_WITHIN, store_of};
use crate::cluster::Cluster;
use anyhow::{Context, bail};
use client::Client;
use std::time::{Duration, Instant};

/// Bytes of the disk.
pub(super) const DISK_BYTES: u64 = 8 << 30;
/// Bytes of a master's.
pub(super) const MASTER_DISK_BYTES: u64 = 1 << 30;
/// Whose disk it is.
pub(super) const VICTIM: &str = "cs1";

/// It hangs for so long: nothing that writes comes to an end, and nothing fails.
const HANGS: Duration = Duration::from_secs(6);

/// New chunks are placed on it so soon after it is doubted no more.
const USED_AGAIN: Duration = Duration::from_secs(1);

/// A slow one does so many writes a second.
const SLOW_WRITES_PER_S: u32 = 20;

/// Waits until the store is used again: after another round nobody needs it for a while.
async fn used_again(cluster: &Cluster, client: &Client) -> anyhow::Result<()> {
    let store = store_of(cluster, VICTIM)?;
    let began = Instant::now();
    while client.stores().await?.iter().any(|s| s.store == store && s.doubted) {
        if began.elapsed() > WHOLE_WITHIN {
            bail!("{store} is still doubted");
        }
        tokio::time::sleep(USED_AGAIN).await;
    }
    Ok(())
}

pub(super) async fn hang(cluster: &Cluster, disk: &LoopDisk, client: &Client) -> anyhow::Result<()> {
    used_again(cluster, client).await?;
    let _frozen = disk.freeze()?;
    tokio::time::sleep(HANGS).await;
    Ok(())
}

/// Another shall lead, long before anybody would hold an election, and go on while this one's disk hangs.
pub(super) async fn hang_leader(disk: &LoopDisk, client: &Client) -> anyhow::Result<String> {
    let before = client.status().await?.leader;
    let (_frozen, began) = (disk.freeze()?, Instant::now());
    let mut changed = None;
    while began.elapsed() < HANGS {
        if changed.is_none() && client.status().await?.leader != before {
            changed = Some(began.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let after = changed.context("the master whose disk hangs leads on")?;
    Ok(format!("another leads after {} ms", after.as_millis()))
}

/// What is measured is what is felt of it once it should have been noticed.
pub(super) async fn slow(
    cluster: &Cluster,
    disk: &LoopDisk,
    client: &Client,
    load: &Load,
) -> anyhow::Result<()> {
    used_again(cluster, client).await?;
    let pid = cluster.worker_pid(VICTIM).context("the worker does not run")?;
    let _throttled = disk.throttle(pid, SLOW_WRITES_PER_S)?;
    tokio::time::sleep(SLOW_UNNOTICED).await;
    load.mark();
    tokio::time::sleep(HANGS).await;
    Ok(())
}

pub(super) async fn run(cluster: &mut Cluster, disk: &LoopDisk, client: &Client) -> anyhow::Result<String> {
    let store = store_of(cluster, VICTIM)?;
    let began = Instant::now();
    disk.pull()?;
    while client.stores().await?.iter().any(|s| s.store == store && s.up) {
        if began.elapsed() > WHOLE_WITHIN {
            bail!("{store} is still in service");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let out = began.elapsed();
    while cluster.exited().is_none_or(|name| name != VICTIM) {
        if began.elapsed() > WHOLE_WITHIN {
            bail!("{VICTIM} does not end without its disk");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    whole(client).await?;
    disk.plug()?;
    cluster.start(VICTIM)?;
    Ok(format!("out of service after {} ms", out.as_millis()))
}
