//! `cairn bench`: loads on a running cluster, beside the machine's own limits in the same run.

pub mod gfs;
mod limits;
mod load;
mod memory;
mod page;
mod report;
mod works;

use anyhow::Context;
use client::Config;
pub use load::Plan;
use std::io::IsTerminal;
use std::path::PathBuf;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub enum Job {
    /// Write files, durably, one a client.
    Put {
        /// MiB in all.
        mib: u64,
    },
    /// Read them, twice.
    Get {
        /// MiB in all.
        mib: u64,
    },
    /// Append records to one file, durably.
    Append {
        /// Bytes of a record.
        bytes: u32,
    },
    /// Read anywhere in files, then write there, durably.
    Random {
        /// MiB in all.
        mib: u64,
        /// Bytes of an operation.
        bytes: u32,
    },
    /// Read and write anywhere in files.
    Mixed {
        /// MiB in all.
        mib: u64,
        /// Bytes of an operation.
        bytes: u32,
    },
    /// Make small files, durably, read them, remove them.
    Small {
        /// Bytes of a file.
        bytes: u32,
    },
    /// Make empty files, look them up, rename them, remove them.
    Meta,
    /// All of these, with their defaults.
    All,
}

/// What is done with what was measured.
#[derive(Clone, Debug)]
pub struct Show {
    /// Print JSON.
    pub json: bool,
    /// Write a page of tables and plots there.
    pub report: Option<PathBuf>,
    /// Where the disk is measured.
    pub scratch: PathBuf,
}

/// What the masters' state takes in memory; needs no cluster.
pub fn memory(files: u64, json: bool) -> anyhow::Result<()> {
    memory::run(files, json)
}

/// What `All` measures.
fn all() -> Vec<(Job, Plan)> {
    let closed = |clients| Plan { clients, seconds: 3, rate: None };
    vec![
        (Job::Put { mib: 1024 }, closed(1)),
        (Job::Get { mib: 1024 }, closed(1)),
        (Job::Append { bytes: 4096 }, closed(1)),
        (Job::Append { bytes: 4096 }, closed(64)),
        (Job::Append { bytes: 4096 }, Plan { rate: Some(1000.0), ..closed(16) }),
        (Job::Random { mib: 256, bytes: 4096 }, closed(1)),
        (Job::Random { mib: 256, bytes: 4096 }, closed(16)),
        (Job::Mixed { mib: 256, bytes: 4096 }, Plan { rate: Some(1000.0), ..closed(16) }),
        (Job::Small { bytes: 1024 }, closed(16)),
        (Job::Meta, closed(256)),
    ]
}

/// Measures, and shows what came of it.
pub async fn run(config: Config, job: Job, plan: Plan, show: Show) -> anyhow::Result<()> {
    let jobs = if let Job::All = job { all() } else { vec![(job, plan)] };
    if let Some(path) = &show.report {
        // Not after minutes of measuring.
        std::fs::write(path, "").with_context(|| format!("write {}", path.display()))?;
    }
    let mut rows = vec![];
    for (n, (job, plan)) in jobs.iter().enumerate() {
        if std::io::stderr().is_terminal() {
            eprintln!("{} of {}: {job:?}, {} clients", n + 1, jobs.len(), plan.clients);
        }
        rows.extend(works::run(&config, *job, plan).await?);
    }
    let scratch = show.scratch;
    let limits = tokio::task::spawn_blocking(move || limits::measure(&scratch)).await??;
    report::print(&rows, &limits, show.json);
    if let Some(path) = &show.report {
        std::fs::write(path, page::render(&rows, &limits)?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
