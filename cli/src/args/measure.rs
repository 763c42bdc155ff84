//! The command line of `cairn bench`.

use bench::{Job, Plan};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// What to measure, and what to do with the figures.
#[derive(Debug, Args)]
pub struct Bench {
    #[command(subcommand)]
    pub what: What,
    /// Write a page of tables and plots (HTML) there
    #[arg(long, global = true, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum What {
    /// Write files, durably, one a client
    Put {
        /// MiB in all
        #[arg(long, default_value_t = 1024)]
        mib: u64,
        /// Clients at a time
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        clients: u32,
    },
    /// Read files, twice: the second time they are hot
    Get {
        /// MiB in all
        #[arg(long, default_value_t = 1024)]
        mib: u64,
        /// Clients at a time
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        clients: u32,
    },
    /// Append records to one file, durably
    Append {
        /// Bytes of a record
        #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=RECORD_BYTES_MAX))]
        bytes: u32,
        #[command(flatten)]
        load: Load,
    },
    /// Read anywhere in files, then write there, durably
    Random {
        #[command(flatten)]
        blocks: Blocks,
        #[command(flatten)]
        load: Load,
    },
    /// Read (four of five) and write (one of five, durably) anywhere in files
    Mixed {
        #[command(flatten)]
        blocks: Blocks,
        #[command(flatten)]
        load: Load,
    },
    /// Make small files, durably; read them; remove them
    Small {
        /// Bytes of a file
        #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=RECORD_BYTES_MAX))]
        bytes: u32,
        #[command(flatten)]
        load: Load,
    },
    /// Make empty files, durably; look them up; rename them; remove them
    Meta {
        #[command(flatten)]
        load: Load,
    },
    /// What the masters' state takes in memory, a file and a chunk. Needs no cluster
    Memory {
        /// Files, and as many with a chunk
        #[arg(long, default_value_t = 1_000_000)]
        files: u64,
    },
    /// The experiment of the GFS paper: clients and servers on hosts of their own (network namespaces) with
    /// equal links. Makes its own cluster; needs root
    Gfs {
        /// Chunkservers
        #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(3..=100))]
        servers: u32,
        /// Clients at a time, one measurement each
        #[arg(long, value_delimiter = ',', default_value = "1,4,16", value_parser = clap::value_parser!(u32).range(1..=100))]
        clients: Vec<u32>,
        /// Seconds of each measurement
        #[arg(long, default_value_t = 20)]
        seconds: u64,
        /// Mbit/s of each host's link
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        link: u32,
        /// Mbit/s of the link between servers and clients
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
        trunk: u32,
        /// Where its cluster lives meanwhile; the system's temporary directory if not given
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// A client of that experiment
    #[command(hide = true)]
    GfsPart {
        part: String,
        #[arg(long)]
        round: u32,
        #[arg(long)]
        client: u32,
        #[arg(long)]
        of: u32,
        #[arg(long)]
        seconds: u64,
    },
    /// All of these that need a running cluster
    All,
}

/// A record or small file is one write.
const RECORD_BYTES_MAX: i64 = common::limits::WRITE_BYTES_MAX as i64;

/// How the load comes.
#[derive(Clone, Copy, Debug, Args)]
pub struct Load {
    /// Clients at a time, each with connections of its own
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    clients: u32,
    /// Seconds of each part
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Operations that become due a second, of all clients together; one that must wait for its client counts
    /// from when it was due. Without it each client asks again when it was answered
    #[arg(long, value_parser = rate)]
    rate: Option<f64>,
}

/// Where operations are done.
#[derive(Clone, Copy, Debug, Args)]
pub struct Blocks {
    /// MiB of files in all
    #[arg(long, default_value_t = 256)]
    mib: u64,
    /// Bytes of an operation
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=RECORD_BYTES_MAX))]
    bytes: u32,
}

/// More than a rate of operations that anything could reach.
const RATE_MAX: f64 = 1e7;

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "a number of operations a second".to_string())?;
    if rate > 0.0 && rate <= RATE_MAX { Ok(rate) } else { Err(format!("above 0, and at most {RATE_MAX}")) }
}

impl Load {
    fn plan(self) -> Plan {
        Plan { clients: self.clients, seconds: self.seconds, rate: self.rate }
    }
}

impl What {
    /// The job and how its load comes; none if it is not a load on a running cluster.
    pub fn job(&self) -> Option<(Job, Plan)> {
        let whole = |clients: &u32| Plan { clients: *clients, seconds: 0, rate: None };
        Some(match self {
            What::Put { mib, clients } => (Job::Put { mib: *mib }, whole(clients)),
            What::Get { mib, clients } => (Job::Get { mib: *mib }, whole(clients)),
            What::Append { bytes, load } => (Job::Append { bytes: *bytes }, load.plan()),
            What::Random { blocks, load } => {
                (Job::Random { mib: blocks.mib, bytes: blocks.bytes }, load.plan())
            }
            What::Mixed { blocks, load } => {
                (Job::Mixed { mib: blocks.mib, bytes: blocks.bytes }, load.plan())
            }
            What::Small { bytes, load } => (Job::Small { bytes: *bytes }, load.plan()),
            What::Meta { load } => (Job::Meta, load.plan()),
            What::All => (Job::All, whole(&1)),
            What::Memory { .. } | What::Gfs { .. } | What::GfsPart { .. } => return None,
        })
    }
}
