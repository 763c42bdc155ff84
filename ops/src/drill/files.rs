//! Programs change files as chance has it, each through two mounts: write, cut, clone, replace, link and unlink them, some
//! of them open all the while; and take snapshots, while servers die. All that can be read is what a model of it says.

mod program;

use super::mounted::Mount;
use super::outcome::Outcome;
use super::report_exit;
use super::strike::whole;
use crate::cluster::{Cluster, Spec};
use anyhow::Context;
use client::{Client, Policy};
use program::Program;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Programs of a repeat.
const PROGRAMS: u64 = 3;
/// Their files have chunks of this, so that a small one has several.
const CHUNK_BYTES: u64 = 1024 * 1024;
/// Servers that are killed in a repeat: chunkservers and the leading master in turn. Each is back after so long,
/// and the next one is killed after as long again.
const KILLS: usize = 4;
const AWAY: Duration = Duration::from_secs(2);
const BETWEEN: Duration = Duration::from_secs(3);

/// All repeats, on one cluster. `SEED` in the environment says what the first program does, and the next ones follow it.
pub(super) async fn run(
    home: &Path,
    binary: &Path,
    repeats: u32,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let seed: u64 = match std::env::var("SEED") {
        Ok(seed) => seed.parse().context("SEED is a number")?,
        Err(_) => rand::random::<u32>().into(),
    };
    outcome.notes.push(format!("seed {seed}"));
    std::fs::create_dir_all(home)?;
    let mut cluster = Cluster::open(&home.join("cluster"), &Spec::small(3, 4), binary)?;
    cluster.start_all()?;
    let client = cluster.healthy().await?;
    client.mkdir(b"/files", true, 0o755).await?;
    let policy = Policy { chunk_bytes: Some(CHUNK_BYTES), ..Policy::default() };
    client.set_policy(b"/files", policy).await?;
    let mounts = ["mnt", "second"].map(|name| Mount::new(home, name, &cluster, binary));
    let [first, second] = mounts;
    let mounts = [first?, second?];
    for round in 0..u64::from(repeats) {
        let seed = seed + round * PROGRAMS;
        let done = one(home, &mut cluster, &mounts, seed, outcome).await;
        done.with_context(|| format!("SEED={seed}"))?;
    }
    mounts.into_iter().try_for_each(Mount::end)?;
    cluster.stop()
}

async fn one(
    home: &Path,
    cluster: &mut Cluster,
    mounts: &[Mount; 2],
    seed: u64,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let over = Arc::new(AtomicBool::new(false));
    let mut running = vec![];
    for seed in seed..seed + PROGRAMS {
        let client = Client::connect(cluster.client_file()?.config()?).await?;
        let mounts = mounts.each_ref().map(|mount| mount.point().to_owned());
        let mut program = Program::new(seed, mounts, "files", home, client)?;
        let over = over.clone();
        running.push(tokio::task::spawn_blocking(move || {
            while !over.load(Ordering::Relaxed) {
                program.step()?;
            }
            program.end()
        }));
    }
    for n in 0..KILLS {
        tokio::time::sleep(BETWEEN).await;
        let victim = match n % 2 {
            0 => format!("cs{}", seed as usize % 4 + 1),
            _ => format!("m{}", cluster.healthy().await?.status().await?.leader.context("nobody leads")?),
        };
        cluster.kill(&victim)?;
        if n % 2 == 0 {
            report_exit(&cluster.config_of(&victim)).await?;
        }
        tokio::time::sleep(AWAY).await;
        cluster.start(&victim)?;
        if running.iter().any(|program| program.is_finished()) {
            break;
        }
    }
    over.store(true, Ordering::Relaxed);
    for program in running {
        let told = program.await??;
        outcome.count("changes acknowledged", told.changes);
        outcome.count("files verified", told.verified);
    }
    whole(&cluster.healthy().await?).await
}
