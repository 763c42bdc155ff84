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
/// Those beside them whose mounts have `--strict`: they change through either mount what they have open through the other.
const STRICT_PROGRAMS: u64 = 2;
/// Their files have chunks of this, so that a small one has several.
const CHUNK_BYTES: u64 = 1024 * 1024;
/// Servers that are killed in a repeat: chunkservers and the leading master in turn. Each is back after so long,
/// and the next one is killed after as long again.
const KILLS: usize = 4;
const AWAY: Duration = Duration::from_secs(2);
const BETWEEN: Duration = Duration::from_secs(3);

fn number(name: &str, default: impl FnOnce() -> u64) -> anyhow::Result<u64> {
    match std::env::var(name) {
        Ok(number) => number.parse().with_context(|| format!("{name} is a number")),
        Err(_) => Ok(default()),
    }
}

/// All repeats, on one cluster. `SEED` in the environment says what the first program does, and the next ones follow it;
/// `STRICT` how many have strict mounts.
pub(super) async fn run(
    home: &Path,
    binary: &Path,
    repeats: u32,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let seed = number("SEED", || rand::random::<u32>().into())?;
    let strict = number("STRICT", || STRICT_PROGRAMS)?;
    outcome.notes.push(format!("seed {seed}"));
    std::fs::create_dir_all(home)?;
    let mut cluster = Cluster::open(&home.join("cluster"), &Spec::small(3, 4), binary)?;
    cluster.start_all()?;
    let client = cluster.healthy().await?;
    client.mkdir(b"/files", true, 0o755).await?;
    let policy = Policy { chunk_bytes: Some(CHUNK_BYTES), ..Policy::default() };
    client.set_policy(b"/files", policy).await?;
    let two = |names: [&str; 2], options: &[&str]| {
        let [first, second] = names.map(|name| Mount::with(home, name, &cluster, binary, options));
        anyhow::Ok([first?, second?])
    };
    let mounts = [two(["mnt", "second"], &[])?, two(["strict", "second-strict"], &["--strict"])?];
    for round in 0..u64::from(repeats) {
        let seed = seed + round * (PROGRAMS + strict);
        let done = one(home, &mut cluster, &mounts, seed, strict, outcome).await;
        done.with_context(|| format!("SEED={seed}"))?;
    }
    mounts.into_iter().flatten().try_for_each(Mount::end)?;
    cluster.stop()
}

async fn one(
    home: &Path,
    cluster: &mut Cluster,
    mounts: &[[Mount; 2]; 2],
    seed: u64,
    strict: u64,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let over = Arc::new(AtomicBool::new(false));
    let mut running = vec![];
    for n in 0..PROGRAMS + strict {
        let client = Client::connect(cluster.client_file()?.config()?).await?;
        let is_strict = n >= PROGRAMS;
        let mounts = mounts[usize::from(is_strict)].each_ref().map(|mount| mount.point().to_owned());
        let mut program = Program::new(seed + n, mounts, is_strict, "files", home, client)?;
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
