//! A mount: what the kernel asks through FUSE is asked of the cluster. An inode number is the file's id, for
//! the whole cluster and for good, so that the kernel's inodes are the masters'; paths are made of it
//! (`common::wire::path`).
//!
//! What a program gets (`Cache::CloseToOpen`): who opens a file sees all that was written by whoever closed it
//! before, on any machine; `fsync` returns when everything is durable on every replica; errors are told by
//! `fsync` and `close`.

mod asked;
mod attr;
mod bare;
mod caller;
mod contents;
mod directories;
mod errno;
mod handles;
mod kernel;
mod listing;
mod locks;
mod names;
mod reads;
mod set_ids;
mod shared;
mod shown;

use asked::Gateway;
use client::{Client, FileKind};
use fuser::{Config, MountOption, SessionACL};
use shared::Shared;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Files that are open are held this often, in case they have no name any more.
const HOLD_EVERY: Duration = Duration::from_millis(common::limits::UNHELD_MS / 4);
/// Requests that the kernel may have under way without a program waiting for each.
const BACKGROUND_MAX: u16 = 64;
/// What a write or a read of the kernel has at most, in bytes.
const REQUEST_BYTES_MAX: u32 = 1024 * 1024;

/// Cores of the machine for each thread that takes requests from the kernel, and most of those.
const CORES_A_THREAD: usize = 4;
const THREADS_MAX: usize = 8;
/// Cores of the machine for each thread that talks to servers.
const CORES_A_WORKER: usize = 2;

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Threads that take requests from the kernel, unless somebody says how many. A thread that is done with one request takes
/// the next without sleeping, and no core has to be woken for it; nothing they do waits for a disk or for a server.
pub fn threads() -> usize {
    (cores() / CORES_A_THREAD).clamp(1, THREADS_MAX)
}

/// A runtime for a mount. It has fewer threads than the machine has cores: each answer that comes would wake one more, to
/// see whether it can help.
pub fn runtime() -> io::Result<Runtime> {
    let workers = (cores() / CORES_A_WORKER).max(1);
    tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()
}

/// For so long the kernel may believe names and attributes.
const TTL: Duration = Duration::from_secs(1);

/// What the kernel may remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Names and attributes for a second; bytes until a file is opened again and has changed.
    CloseToOpen,
    /// Nothing: every read, and every look at a name, sees what is so now, on any machine.
    Strict,
}

impl Cache {
    fn ttl(self) -> Duration {
        match self {
            Cache::CloseToOpen => TTL,
            Cache::Strict => Duration::ZERO,
        }
    }
}

/// Ends a mount from outside.
pub use fuser::SessionUnmounter as Unmounter;
pub use kernel::is_mounted;

/// How to mount.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory of the cluster that is seen.
    pub root: Vec<u8>,
    /// What the kernel may remember.
    pub cache: Cache,
    /// Whether other users than the one that mounts may use it.
    pub allow_other: bool,
    /// What tables of mounts show as its source.
    pub source: String,
    /// Whether locks hold among the programs of this machine only: the kernel keeps them, at no cost.
    pub local_locks: bool,
    /// Threads that take requests from the kernel.
    pub threads: usize,
    /// KiB that the kernel reads ahead in a file that is read in sequence.
    pub read_ahead_kib: u32,
    /// Further options, as mount(8) has them.
    pub mount: Vec<MountOption>,
}

/// Mounts, and serves until it is unmounted; `mounted` is called in between, with what unmounts it.
pub async fn mount(
    client: Client,
    point: &Path,
    options: Options,
    mounted: impl FnOnce(Unmounter),
) -> io::Result<()> {
    let root = client.lookup(&options.root).await.map_err(io::Error::other)?;
    if root.kind != FileKind::Directory {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "what is to be mounted is no directory"));
    }
    let shared = Arc::new(Shared::new(client, root.file, &options, kernel::name(point)));
    let holding = tokio::spawn(hold(shared.clone()));
    let gateway = Gateway::new(shared.clone())?;
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName(options.source), MountOption::DefaultPermissions];
    config.mount_options.extend(options.mount);
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(options.threads);
    config.clone_fd = options.threads > 1;
    let mut session = fuser::Session::new(gateway, point, &config)?;
    if let Err(error) = kernel::read_ahead(point, options.read_ahead_kib) {
        tracing::warn!(%error, "the kernel reads ahead less than it should: streams are slower");
    }
    shared.notifier.get_or_init(|| session.notifier());
    mounted(session.unmount_callable());
    let served = tokio::task::spawn_blocking(move || session.run()).await;
    holding.abort();
    // The kernel does not wait for the last word about a file that it lets go.
    let mut flushed = Ok(());
    for file in shared.handles.files().into_iter().filter_map(|file| shared.handles.get(file)) {
        let (synced, reported) = (file.sync().await, file.report().await);
        flushed = flushed.and(synced).and(reported);
    }
    let flushed = flushed.and(shared.client.tell_reports().await);
    shared.end_locks().await;
    served.map_err(io::Error::other)??;
    flushed.map_err(io::Error::other)
}

/// An option as mount(8) writes it; nothing if there is no such option.
pub fn mount_option(name: &str) -> Option<MountOption> {
    Some(match name {
        "ro" => MountOption::RO,
        "rw" => MountOption::RW,
        "suid" => MountOption::Suid,
        "nosuid" => MountOption::NoSuid,
        "dev" => MountOption::Dev,
        "nodev" => MountOption::NoDev,
        "exec" => MountOption::Exec,
        "noexec" => MountOption::NoExec,
        "atime" => MountOption::Atime,
        "noatime" => MountOption::NoAtime,
        "sync" => MountOption::Sync,
        "async" => MountOption::Async,
        "dirsync" => MountOption::DirSync,
        _ => return None,
    })
}

/// Files that are open stay, though they lose their names.
async fn hold(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(HOLD_EVERY).await;
        if let Err(error) = shared.client.hold(&shared.handles.files()).await {
            tracing::warn!(%error, "cannot hold open files that have no name; they go after a minute, or ten if they were held before");
        }
    }
}
