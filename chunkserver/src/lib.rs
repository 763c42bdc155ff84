//! The chunkserver: shells around `chunkserver_core::Node`. One thread and one ring a store
//! ("shard"); the control thread speaks to the masters over ordinary tokio. They decide nothing.

mod buf;
pub mod config;
mod control;
pub mod dir;
mod disk;
mod files;
mod links;
mod local;
mod net;
pub mod parent;
mod ring;
mod shard;
mod sock;

use anyhow::Context;
use config::Config;
use files::Files;
use std::sync::Arc;

pub use disk::Engine;

/// Nanoseconds of the machine's boot-time clock: it goes on while the machine sleeps.
pub fn now() -> common::Time {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    #[expect(unsafe_code, reason = "the only way to the boot-time clock")]
    // SAFETY: `ts` is a valid timespec for the call to fill in.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut ts) };
    assert_eq!(done, 0, "CLOCK_BOOTTIME is there since Linux 2.6.39");
    common::Time(ts.tv_sec as u64 * 1_000_000_000 + ts.tv_nsec as u64)
}

/// Runs a chunkserver until it is told to stop (SIGTERM, SIGINT) or cannot go on.
pub fn run(config: Config) -> anyhow::Result<()> {
    let engine = Engine::choose(config.engine)?;
    let files = Files::allowed(config.data.len());
    let mut dirs = vec![];
    for path in &config.data {
        let dir = dir::open(path, &config, files)
            .with_context(|| format!("open data directory {}", path.display()))?;
        dirs.push(dir);
    }
    let config = Arc::new(config);
    let (shards, threads) = shard::start(dirs, &config, engine, files)?;
    let outcome = control::run(config, shards, files);
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a shard's thread panicked"))?;
    }
    outcome
}
