//! `cairn bench`: loads on a running cluster, beside the machine's own limits in the same run.

mod limits;
mod load;
mod memory;
mod report;

use client::Config;
use std::path::PathBuf;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub enum Job {
    /// Write files, durably.
    Put {
        /// MiB in all.
        mib: u64,
        /// Files at a time.
        streams: u32,
    },
    /// Read them, twice.
    Get {
        /// MiB in all.
        mib: u64,
        /// Readers at a time.
        streams: u32,
    },
    /// Append records, durably.
    Append {
        /// Bytes of a record.
        bytes: u32,
        /// Clients at a time.
        clients: u32,
        /// Seconds.
        seconds: u64,
    },
    /// Make small files, and look them up.
    Meta {
        /// Clients at a time.
        clients: u32,
        /// Bytes of a file.
        bytes: u32,
        /// Seconds of each part.
        seconds: u64,
    },
    /// All of these, with their defaults.
    All,
}

/// What the masters' state takes in memory; needs no cluster.
pub fn memory(files: u64, json: bool) -> anyhow::Result<()> {
    memory::run(files, json)
}

/// Measures, and prints a table or JSON.
pub async fn run(config: Config, dir: Option<PathBuf>, job: Job, json: bool) -> anyhow::Result<()> {
    let jobs = match job {
        Job::All => vec![
            Job::Put { mib: 1024, streams: 1 },
            Job::Get { mib: 1024, streams: 1 },
            Job::Append { bytes: 4096, clients: 1, seconds: 3 },
            Job::Append { bytes: 4096, clients: 16, seconds: 3 },
            Job::Meta { clients: 16, bytes: 1024, seconds: 3 },
        ],
        one => vec![one],
    };
    let scratch = dir.unwrap_or_else(std::env::temp_dir);
    let mut rows = vec![];
    for job in jobs {
        rows.extend(load::run(&config, job).await?);
    }
    let limits = tokio::task::spawn_blocking(move || limits::measure(&scratch)).await??;
    report::print(&rows, &limits, json);
    Ok(())
}
