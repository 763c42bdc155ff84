//! The command line.

pub mod measure;

use clap::{Args, Parser, Subcommand};
use ops::drill::FileSystem;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

/// Cairn, a distributed file system: what is acknowledged is never lost.
///
/// Exit status: 0 done; 1 not done, the reason is on standard error; 2 the command line is wrong.
#[derive(Parser)]
#[command(name = "cairn", version)]
pub struct Cairn {
    /// The cluster: addresses of masters (host:port,host:port), or a file or directory that
    /// `cairn up` made.
    #[arg(long, global = true, env = "CAIRN_CLUSTER")]
    pub cluster: Option<String>,
    /// Print JSON.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run a cluster of real processes on this machine.
    Up(Up),
    /// Stop the cluster that `up` started.
    Down {
        /// Its directory; if not given, that of --cluster, else ./cairn-data.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Run a master.
    Master(Server),
    /// Run a chunkserver: a small parent, and the worker that it watches.
    Chunkserver(Server),
    /// Mount the cluster as a directory of this machine.
    Mount(Mount),
    #[command(flatten)]
    Fs(Fs),
    /// Keep what a directory's tree holds now, and look at it later.
    Snapshot {
        #[command(subcommand)]
        command: Snapshot,
    },
    /// Look after a cluster.
    Admin {
        #[command(subcommand)]
        command: Admin,
    },
    /// Measure a running cluster, and this machine beside it.
    Bench(measure::Bench),
    /// Kill or pause parts of a fresh cluster under load, and check every acknowledged byte.
    Drill(Drill),
    /// Simulate clusters under disasters drawn from seeds, and check every promise in each.
    Sim(Sim),
    /// Speak the JSON-lines protocol on standard input and output.
    Node,
    /// Print completions for a shell.
    Completions {
        /// Which.
        shell: clap_complete::Shell,
    },
}

/// Which drill, and how.
#[derive(Args)]
pub struct Drill {
    /// Which; `list` names them, `all` runs them all. Each makes a cluster of its own.
    pub name: String,
    /// How often.
    #[arg(long, default_value_t = 1)]
    pub repeats: u32,
    /// Where its cluster lives meanwhile; the system's temporary directory if not given.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// What file system the disks have that it makes: ext4, xfs, or btrfs, which cannot be pulled.
    #[arg(long, default_value = "ext4")]
    pub file_system: FileSystem,
    /// Write what came of them into the table in this Markdown file; rows of other drills stay.
    #[arg(long)]
    pub table: Option<PathBuf>,
}

/// What is mounted where, and how.
#[derive(Args)]
pub struct Mount {
    /// The directory on which it is mounted; it must exist.
    pub point: PathBuf,
    /// The directory of the cluster that is seen there.
    #[arg(long, default_value = "/")]
    pub root: OsString,
    /// Remember nothing: every read and every look at a name sees what is so now, and a write is
    /// durable when it returns. Else programs see what was written by whoever closed the file
    /// before they opened it, and `fsync` or `close` make it durable.
    #[arg(long)]
    pub strict: bool,
    /// Let other users use it too; permissions are checked as on any file system.
    #[arg(long)]
    pub allow_other: bool,
    /// Change nothing.
    #[arg(long)]
    pub read_only: bool,
    /// Options as mount(8) has them: `ro`, `nosuid`, `nodev`, `noexec`, `noatime`, `sync`, `dirsync`, `allow_other`, `strict`, `local_locks`
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// Let `flock` and `fcntl` locks hold among the programs of this machine only. Else they hold between all machines;
    /// what one locks of a file that others do not lock costs a question of the masters the first time only.
    #[arg(long)]
    pub local_locks: bool,
    /// Threads that take requests from the kernel [default: one for each four cores, at most eight]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub threads: Option<u16>,
    /// KiB that are read ahead in a file that is read in sequence.
    #[arg(long, value_name = "KIB", default_value_t = 8192)]
    pub read_ahead: u32,
    /// Read over the network, also from servers on this machine, whose files are read directly else.
    #[arg(long)]
    pub no_local_reads: bool,
    /// End when the process with this id, the parent, ends.
    #[arg(long, hide = true)]
    pub die_with_parent: Option<u32>,
    /// What tables of mounts show as its source.
    #[arg(long, default_value = "cairn", hide = true)]
    pub source: String,
    /// Return when it is mounted, and go on in the background.
    #[arg(long)]
    pub detach: bool,
    /// With `--detach`: where the background process writes what goes wrong.
    #[arg(long)]
    pub log: Option<PathBuf>,
}

#[derive(Args)]
pub struct Sim {
    /// Which scenario; all in turn if not given. `list` names them.
    #[arg(long, default_value = "all")]
    pub scenario: String,
    /// How many seeds of each.
    #[arg(long, default_value_t = 100)]
    pub seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Threads; as many as there are processors if not given.
    #[arg(long)]
    pub jobs: Option<usize>,
    /// Where the plan of a run that fails is written, made small, with its trace beside it.
    #[arg(long, default_value = ".")]
    pub save: PathBuf,
    /// Run the plan of this file once, and print its trace.
    #[arg(long, conflicts_with_all = ["scenario", "seeds", "seed"])]
    pub replay: Option<PathBuf>,
}

#[derive(Args)]
pub struct Up {
    /// Where the cluster lives; made if it does not exist.
    #[arg(long, default_value = "./cairn-data")]
    pub dir: PathBuf,
    /// Masters of a new cluster.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=7))]
    pub masters: u32,
    /// Chunkservers of a new cluster.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub chunkservers: u32,
    /// Racks over which they are spread.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub racks: u32,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    pub bind: IpAddr,
    /// Bytes of a segment of extents in a new cluster, for small disks.
    #[arg(long)]
    pub segment_bytes: Option<u64>,
    /// Bytes of a segment of a store's log in a new cluster, for small disks.
    #[arg(long)]
    pub log_segment_bytes: Option<u64>,
    /// Stretch all timeouts of the masters, for slow machines.
    #[arg(long, default_value_t = 1)]
    pub time_scale: u64,
    /// Return when the cluster is healthy; it goes on in the background.
    #[arg(long)]
    pub detach: bool,
}

#[derive(Args)]
pub struct Server {
    /// The configuration, a TOML file.
    #[arg(long)]
    pub config: PathBuf,
    /// Check the configuration, print it with all defaults, and end.
    #[arg(long)]
    pub print_config: bool,
    /// End when the process with this id, the parent, ends.
    #[arg(long, hide = true)]
    pub die_with_parent: Option<u32>,
    /// This is the worker of a chunkserver.
    #[arg(long, hide = true)]
    pub worker: bool,
}

#[derive(Subcommand)]
pub enum Fs {
    /// Store local files. `-` is standard input.
    Put {
        /// Directories too, with all that is in them.
        #[arg(short, long)]
        recursive: bool,
        /// Local files, then the path in Cairn.
        #[arg(required = true, num_args = 2..)]
        paths: Vec<OsString>,
    },
    /// Fetch files. `-` is standard output.
    Get {
        /// Directories too, with all that is in them.
        #[arg(short, long)]
        recursive: bool,
        /// Paths in Cairn, then the local one.
        #[arg(required = true, num_args = 2..)]
        paths: Vec<OsString>,
    },
    /// Print files.
    Cat {
        /// The files.
        #[arg(required = true)]
        paths: Vec<OsString>,
    },
    /// List a directory.
    Ls {
        /// With modes, sizes and times.
        #[arg(short, long)]
        long: bool,
        /// Directories too, with all that is in them.
        #[arg(short = 'R', long)]
        recursive: bool,
        /// The path.
        #[arg(default_value = "/")]
        path: OsString,
    },
    /// Show what is known of files.
    Stat {
        /// The paths.
        #[arg(required = true)]
        paths: Vec<OsString>,
    },
    /// Make directories.
    Mkdir {
        /// Parents too, and no error if it exists.
        #[arg(short, long)]
        parents: bool,
        /// The paths.
        #[arg(required = true)]
        paths: Vec<OsString>,
    },
    /// Copy files within the cluster. Large parts are not copied, but named once more
    Cp {
        /// Directories, with all that is in them.
        #[arg(short, long)]
        recursive: bool,
        /// Files and directories, and last where they go: a path, or a directory that is there.
        #[arg(required = true, num_args = 2..)]
        paths: Vec<OsString>,
    },
    /// Rename a file or directory.
    Mv {
        /// Do not replace what is there.
        #[arg(short, long)]
        no_clobber: bool,
        /// From.
        from: OsString,
        /// To.
        to: OsString,
    },
    /// Give a file one more name, or make a symbolic link.
    Ln {
        /// Make a symbolic link: the target is taken as it is written.
        #[arg(short, long)]
        symbolic: bool,
        /// The file, or what the link points to.
        target: OsString,
        /// The new name.
        name: OsString,
    },
    /// Delete: into the trash, from which `undelete` brings back.
    Rm {
        /// Directories too, with all that is in them.
        #[arg(short, long)]
        recursive: bool,
        /// No error if it does not exist.
        #[arg(short, long)]
        force: bool,
        /// The paths.
        #[arg(required = true)]
        paths: Vec<OsString>,
    },
    /// Show a directory as a tree.
    Tree {
        /// The path.
        #[arg(default_value = "/")]
        path: OsString,
    },
    /// Show the bytes and entries below a path: they are counted as they change.
    Du {
        /// The path.
        #[arg(default_value = "/")]
        path: OsString,
    },
    /// Append standard input, or a text, as one record (or one a line).
    Append {
        /// Each line of the input is a record of its own.
        #[arg(short, long)]
        lines: bool,
        /// The file; made if it does not exist.
        path: OsString,
        /// The record; standard input if not given.
        text: Option<OsString>,
    },
    /// Make empty files, or set their time to now.
    Touch {
        /// The paths.
        #[arg(required = true)]
        paths: Vec<OsString>,
    },
    /// Cut a file, or extend it with zeros.
    Truncate {
        /// The path.
        path: OsString,
        /// Bytes.
        length: u64,
    },
    /// Bring the newest deleted file or directory of this path back; without a path, list them.
    Undelete {
        /// The path it had.
        path: Option<OsString>,
        /// The path it shall have.
        to: Option<OsString>,
    },
}

/// Snapshots of directories. One is seen as DIR/.snapshot/NAME, which `ls`, `get`, `cat`, `stat`, `du`
/// and `tree` take like any path. It costs nothing to take; later, what is written over or deleted
/// stays as long as a snapshot needs it.
#[derive(Subcommand)]
pub enum Snapshot {
    /// Take one: all that was acknowledged before is in it, nothing that is written after.
    Create {
        /// The directory.
        dir: OsString,
        /// Its name; the time if not given.
        name: Option<OsString>,
    },
    /// List them, oldest first, with what only they keep.
    List {
        /// Those of this directory only.
        dir: Option<OsString>,
    },
    /// Give some up: what only they needed is deleted.
    Delete {
        /// The directory.
        dir: OsString,
        /// Their names.
        names: Vec<OsString>,
    },
}

#[derive(Subcommand)]
pub enum Admin {
    /// Show the masters, and what they hold.
    Status,
    /// Show the chunkservers.
    Servers,
    /// Show the chunks of a file, and how each stands at each of its replicas.
    Chunks {
        /// The file.
        path: OsString,
    },
    /// Tell all that is known of a chunk: where it belongs, who holds it, what is done about it and why.
    Explain {
        /// Which, as `admin chunks` and the logs name it: ch_00042.
        #[arg(value_parser = chunk_handle)]
        chunk: u64,
    },
    /// Compare the replicas of every chunk with each other, byte by byte. Scrubs find a copy that does not
    /// match its own checksums; this finds copies that match theirs, and differ.
    Audit {
        /// A file, or a directory with all that is below it.
        #[arg(default_value = "/")]
        path: OsString,
        /// Begin at this path: where an audit that was interrupted said it had come to.
        #[arg(long)]
        from: Option<OsString>,
        /// Read at most so many MiB a second, of all replicas together.
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=65536))]
        rate: u64,
        /// Have replicas that most others disagree with made anew.
        #[arg(long)]
        repair: bool,
    },
    /// Show where a byte of a file lies.
    Locate {
        /// The file.
        path: OsString,
        /// Which byte.
        #[arg(default_value_t = 0)]
        offset: u64,
    },
    /// Show or set the policy of a directory.
    Policy {
        /// The directory.
        path: OsString,
        /// Replicas, 1-5.
        #[arg(long)]
        replication: Option<u8>,
        /// Bytes of a chunk, in MiB.
        #[arg(long)]
        chunk_mib: Option<u64>,
        /// Only racks whose name begins so.
        #[arg(long)]
        label: Option<String>,
        /// Whether what is deleted lies in the trash for a day: `on` or `off`.
        #[arg(long, value_name = "on|off", value_parser = on_or_off)]
        trash: Option<bool>,
    },
    /// Show or limit what a directory may hold, with all that is below it.
    Quota {
        /// The directory.
        path: OsString,
        /// Most files, directories and symlinks.
        #[arg(long)]
        entries: Option<u64>,
        /// Most bytes of files: 500M, 10GiB. A file may outgrow it by what fits its last chunk.
        #[arg(long, value_parser = bytes)]
        bytes: Option<u64>,
        /// No limits any more.
        #[arg(long, conflicts_with_all = ["entries", "bytes"])]
        remove: bool,
    },
    /// Change the group of masters.
    Master {
        #[command(subcommand)]
        command: MasterCommand,
    },
    /// Show the chunks that lack members: what is done about them, and why those wait that wait.
    Repair {
        /// Do not end before every chunk has all its members.
        #[arg(long)]
        wait: bool,
    },
    /// Move everything off a server, so that it can be stopped for good; says what is left.
    Drain {
        /// Which, as `admin servers` shows it: cs2; all that are drained if not given.
        #[arg(value_parser = server_id)]
        server: Option<u32>,
        /// Take it back: the server is used again.
        #[arg(long, requires = "server")]
        undo: bool,
        /// Do not end before nothing is left.
        #[arg(long)]
        wait: bool,
    },
    /// Say that a server will be stopped for a while and come back: nothing of it is copied elsewhere
    /// meanwhile. Says whether it can be stopped without harm.
    Maintenance {
        /// Which, as `admin servers` shows it: cs2; all that are maintained if not given.
        #[arg(value_parser = server_id)]
        server: Option<u32>,
        /// For so many minutes, at most a week.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=10_080))]
        minutes: u64,
        /// It is over.
        #[arg(long, requires = "server")]
        end: bool,
    },
    /// Show which mounts have locked what, or may: mostly all of a file that nobody else locks.
    Locks,
    /// Say that a store will never come back, so that chunks that too few live stores hold go on without
    /// it. Without `--yes` it only says what that would mean.
    AcceptLoss {
        /// Which, as `admin servers` shows it: s3.
        #[arg(value_parser = store_id)]
        store: u32,
        /// Do it: what nobody else holds is lost.
        #[arg(long)]
        yes: bool,
    },
    /// Delete what is in the trash for good.
    EmptyTrash,
}

#[derive(Subcommand)]
pub enum MasterCommand {
    /// Add a master that is running with an empty directory.
    Add {
        /// Its id.
        id: u64,
        /// Its address.
        addr: String,
    },
    /// Remove a master.
    Remove {
        /// Its id.
        id: u64,
    },
    /// Make another master lead.
    Transfer {
        /// Its id.
        id: u64,
    },
}

/// The number of a server: `cs2`, or `2`.
fn server_id(text: &str) -> Result<u32, String> {
    let number = text.strip_prefix("cs").unwrap_or(text);
    number.parse().map_err(|_| "a server is named as `admin servers` shows it: cs2".into())
}

/// A number of bytes: 4096, 500M, 10GiB; units are powers of 1024.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text[digits.len()..].trim().trim_end_matches(['B', 'b']).trim_end_matches('i');
    let power = match unit.to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        "P" => 5,
        _ => return Err("a number of bytes is written like 4096, 500M or 10GiB".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "a number of bytes begins with a number")?;
    number.checked_mul(1 << (10 * power)).ok_or_else(|| "so many bytes there are not".into())
}

/// The number of a store: `s3`, or `3`.
fn store_id(text: &str) -> Result<u32, String> {
    let number = text.strip_prefix('s').unwrap_or(text);
    number.parse().map_err(|_| "a store is named as `admin servers` shows it: s3".into())
}

/// The number of a chunk: `ch_00042`, or `42`.
fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("`on` or `off`".into()),
    }
}

fn chunk_handle(text: &str) -> Result<u64, String> {
    let number = text.strip_prefix("ch_").unwrap_or(text);
    number.parse().map_err(|_| "a chunk is named as `admin chunks` shows it: ch_00042".into())
}
