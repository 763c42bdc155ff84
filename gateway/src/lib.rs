//! A mount: what the kernel asks through FUSE is asked of the cluster. An inode number is the file's id, for
//! the whole cluster and for good, so that the kernel's inodes are the masters'; paths are made of it
//! (`common::wire::path`).
//!
//! What a program gets (`Cache::CloseToOpen`): who opens a file sees all that was written by whoever closed it
//! before, on any machine; `fsync` returns when everything is durable on every replica; errors are told by
//! `fsync` and `close`.

mod absent;
mod attr;
mod begin;
mod directories;
mod errno;
mod handles;
mod kernel;
mod shown;

use absent::{Absent, Missed};
use attr::{file_attr, file_type, kind_of, nanos};
use begin::begin;
use bytes::Bytes;
use client::{
    Attr, Changes, Client, Error, FileKind, Gathered, Known, Moment, OpenFile, Owner, Seen, SetTime,
};
use common::wire::client_master::Only;
use common::wire::path::{at, name_in};
use common::{Code, FileId, Refusal, Serial};
use directories::Directories;
use errno::errno;
use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, Notifier, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, SessionACL, TimeOrNow, WriteFlags,
};
use handles::Handles;
use shown::Shown;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime::Handle;

/// Files that are open are held this often, in case they have no name any more.
const HOLD_EVERY: Duration = Duration::from_millis(common::limits::NAMELESS_MS / 10);
/// Requests that the kernel may have under way without a program waiting for each.
const BACKGROUND_MAX: u16 = 64;
/// What a write or a read of the kernel has at most, in bytes.
const REQUEST_BYTES_MAX: u32 = 1024 * 1024;
/// The name under which the kernel asks for capabilities of programs before each write. There are none.
const CAPABILITY: &[u8] = b"security.capability";

thread_local! {
    /// Where a thread that is asked by the kernel reads to: pages that are new cost more than the bytes in them.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(vec![]) };
}

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
            Cache::CloseToOpen => Duration::from_secs(1),
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
    let shared = Arc::new(Shared {
        client,
        root: root.file,
        cache: options.cache,
        handles: Handles::default(),
        next_handle: AtomicU64::new(1),
        told: Mutex::default(),
        absent: Absent::default(),
        directories: Directories::default(),
        shown: Shown::default(),
        notifier: OnceLock::new(),
        drops_direct: AtomicBool::new(false),
    });
    let holding = tokio::spawn(hold(shared.clone()));
    let gateway = Gateway { shared: shared.clone(), runtime: Handle::current() };
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
            tracing::warn!(%error, "cannot hold open files that have no name; they go after ten minutes");
        }
    }
}

struct Shared {
    client: Client,
    /// What the kernel calls inode 1.
    root: FileId,
    cache: Cache,
    handles: Handles,
    next_handle: AtomicU64,
    /// What the bytes of a file were when the kernel last opened it.
    told: Mutex<HashMap<FileId, Version>>,
    absent: Absent,
    directories: Directories,
    shown: Shown,
    /// Tells the kernel what it must not believe any more.
    notifier: OnceLock<Notifier>,
    /// What is written past the kernel's pages makes it drop them.
    drops_direct: AtomicBool,
}

/// Time of modification, length, and the last serial of an open last chunk: changes whenever bytes do.
type Version = (i64, u64, Serial);

struct Gateway {
    shared: Arc<Shared>,
    runtime: Handle,
}

type Outcome<T> = Result<T, Errno>;

fn refuse<T>(code: Code) -> Outcome<T> {
    Err(errno(&Error::Refused(Refusal::from(code))))
}

fn owner(req: &Request) -> Owner {
    Owner { uid: req.uid(), gid: req.gid() }
}

/// When a name of what this is was made or moved, if it is no directory: its directory has that time, too.
fn name_changed(attr: &Attr) -> Option<i64> {
    (attr.kind != FileKind::Directory).then_some(attr.ctime_ns)
}

fn set_time(time: Option<TimeOrNow>) -> SetTime {
    match time {
        None => SetTime::Keep,
        Some(TimeOrNow::Now) => SetTime::Now,
        Some(TimeOrNow::SpecificTime(time)) => SetTime::At(nanos(time)),
    }
}

impl Shared {
    fn id(&self, ino: INodeNo) -> FileId {
        if ino == INodeNo::ROOT { self.root } else { FileId(ino.0) }
    }

    fn attr(&self, attr: &Attr) -> FileAttr {
        let attr_of = file_attr(attr);
        if attr.kind == FileKind::File {
            self.shown.told(attr.file, attr.length, Instant::now());
        }
        if attr.file == self.root { FileAttr { ino: INodeNo::ROOT, ..attr_of } } else { attr_of }
    }

    fn name_in(&self, dir: INodeNo, name: &[u8]) -> Outcome<Vec<u8>> {
        match name.len() > common::limits::NAME_BYTES_MAX {
            true => Err(Errno::ENAMETOOLONG),
            false => Ok(name_in(self.id(dir), name)),
        }
    }

    /// The attributes of a path as they are now: of a file that is open here, also what is known here alone.
    async fn see(&self, path: &[u8]) -> Outcome<Seen> {
        self.exactly(self.client.look(path).await.map_err(|e| errno(&e))?).await
    }

    async fn lookup(self: Arc<Self>, parent: INodeNo, name: Vec<u8>) -> Outcome<Attr> {
        let directory = self.id(parent);
        match self.client.look(&self.name_in(parent, &name)?).await {
            Ok(known) => Ok(self.exactly(known).await?.attr),
            Err(e) => {
                let (now, is_missed) = (Instant::now(), e.code() == Some(Code::NotFound));
                let remembers = self.cache != Cache::Strict;
                if remembers && is_missed && self.absent.missed(directory, now) == Missed::List {
                    let shared = self.clone();
                    tokio::spawn(async move { shared.absent.list(&shared.client, directory, now).await });
                }
                Err(errno(&e))
            }
        }
    }

    async fn stat(&self, path: &[u8]) -> Outcome<Attr> {
        Ok(self.see(path).await?.attr)
    }

    /// What the masters say, and what is known here alone.
    async fn exactly(&self, known: Known) -> Outcome<Seen> {
        let file = known.attr.file;
        let here = match self.handles.get(file) {
            Some(file) => file.known().await.map_err(|e| errno(&e))?,
            None => None,
        };
        let (mut seen, written) = match here {
            Some((length, written)) => (Seen::from(Attr { length, ..known.attr }), Some(nanos(written))),
            None => {
                let written = self.client.reported_mtime(file);
                (self.client.exactly(known).await.map_err(|e| errno(&e))?, written)
            }
        };
        if let Some(written) = written {
            seen.attr.mtime_ns = seen.attr.mtime_ns.max(written);
            seen.attr.ctime_ns = seen.attr.ctime_ns.max(written);
        }
        Ok(seen)
    }

    /// Opens a file that was just seen; if it was open here already, after that moment.
    async fn open_file(&self, seen: Seen, since: Option<Moment>, is_new: bool) -> FopenFlags {
        let open = self.handles.open(&self.client, &seen, is_new);
        let attr = &seen.attr;
        let now = (attr.mtime_ns, attr.length, seen.serial);
        let before = self.told.lock().expect("never poisoned").insert(attr.file, now);
        if self.shown.differs(attr.file, attr.length, Instant::now())
            && let Some(notifier) = self.notifier.get()
            // It need not know the file any more.
            && let Err(error) = notifier.inval_inode(INodeNo(attr.file.0), -1, 0)
        {
            tracing::debug!(%error, file = %attr.file, "the kernel had forgotten it already");
        }
        if let Some(file) = open {
            file.revalidate(since.map(|since| (since, seen))).await;
        }
        match self.cache {
            Cache::Strict => FopenFlags::FOPEN_DIRECT_IO,
            Cache::CloseToOpen if before == Some(now) => FopenFlags::FOPEN_KEEP_CACHE,
            Cache::CloseToOpen => FopenFlags::empty(),
        }
    }

    fn opened(&self, ino: INodeNo) -> Outcome<Arc<OpenFile>> {
        self.handles.get(self.id(ino)).ok_or(Errno::EBADF)
    }

    async fn open(&self, ino: INodeNo) -> Outcome<FopenFlags> {
        let since = match self.handles.get(self.id(ino)) {
            Some(file) => Some(file.moment().await),
            None => None,
        };
        let seen = self.see(&at(self.id(ino))).await?;
        if seen.attr.kind != FileKind::File {
            return Err(Errno::EINVAL);
        }
        Ok(self.open_file(seen, since, false).await)
    }

    /// What lies on the disk of a store on this machine needs no more than this, on the thread that was asked by
    /// the kernel.
    fn read_here(&self, ino: INodeNo, offset: u64, out: &mut [u8]) -> Option<usize> {
        match self.cache {
            Cache::Strict => None,
            Cache::CloseToOpen => self.opened(ino).ok()?.try_read(offset, out),
        }
    }

    async fn read(&self, ino: INodeNo, offset: u64, len: u32) -> Outcome<Vec<Bytes>> {
        let file = self.opened(ino)?;
        if self.cache == Cache::Strict {
            file.revalidate(None).await;
        }
        file.read(offset, len.into()).await.map_err(|e| errno(&e))
    }

    /// Most writes of a stream need no more than this, on the thread that took them from the kernel.
    fn gather(&self, ino: INodeNo, offset: u64, data: &[u8], flags: OpenFlags) -> Gathered {
        let at_once = flags.0 & (libc::O_APPEND | libc::O_SYNC | libc::O_DSYNC) != 0;
        match self.opened(ino) {
            Ok(file) if !at_once && self.cache != Cache::Strict => file.try_gather(offset, data),
            _ => Gathered::Not,
        }
    }

    async fn send_gathered(&self, ino: INodeNo) -> Outcome<()> {
        self.opened(ino)?.send_gathered().await.map_err(|e| errno(&e))
    }

    async fn write(&self, ino: INodeNo, offset: u64, data: &[u8], flags: OpenFlags) -> Outcome<()> {
        let file = self.opened(ino)?;
        let written = match flags.0 & libc::O_APPEND != 0 {
            true => file.append(data).await.map(drop),
            false => file.write(offset, data).await,
        };
        written.map_err(|e| errno(&e))?;
        if flags.0 & (libc::O_SYNC | libc::O_DSYNC) != 0 || self.cache == Cache::Strict {
            file.sync().await.map_err(|e| errno(&e))?;
        }
        Ok(())
    }

    /// A name was made here, or may have been; if it is no directory's, at this time.
    fn made<T>(
        &self,
        parent: INodeNo,
        name: &[u8],
        outcome: &client::Result<T>,
        time: impl Fn(&T) -> Option<i64>,
    ) {
        self.absent.made(self.id(parent), name);
        self.changed(parent, outcome, time);
    }

    /// The names of a directory were changed here, or may have been; if none of them is a directory's, at this time.
    fn changed<T>(&self, parent: INodeNo, outcome: &client::Result<T>, time: impl Fn(&T) -> Option<i64>) {
        match outcome {
            Err(Error::Refused(_)) => {}
            Ok(done) if let Some(time) = time(done) => self.directories.changed(self.id(parent), time),
            _ => self.directories.forget(self.id(parent)),
        }
    }

    /// Attributes of what the kernel knows as a directory, if they need not be asked for.
    fn directory(&self, ino: INodeNo) -> Option<(Attr, Duration)> {
        match self.cache {
            Cache::Strict => None,
            Cache::CloseToOpen => self.directories.attr(self.id(ino), Instant::now()),
        }
    }

    /// Whether a file that is open has nothing to be flushed.
    fn is_clean(&self, ino: INodeNo) -> bool {
        self.opened(ino).is_ok_and(|file| file.is_clean())
    }

    /// Everything that was written through the file is durable; `close` tells of what failed.
    async fn flush(self: &Arc<Self>, ino: INodeNo) -> Outcome<()> {
        let file = self.opened(ino)?;
        file.sync().await.map_err(|e| errno(&e))?;
        file.report().await.map_err(|e| errno(&e))?;
        match self.cache {
            Cache::Strict => self.client.tell_reports().await.map_err(|e| errno(&e)),
            Cache::CloseToOpen => Ok(()),
        }
    }

    async fn set_attr(&self, ino: INodeNo, size: Option<u64>, changes: Changes) -> Outcome<FileAttr> {
        let id = self.id(ino);
        if let Some(size) = size {
            let truncated = match self.handles.get(id) {
                Some(file) => file.truncate(size).await,
                None => {
                    self.client.forget_mtime(id).await;
                    self.client.truncate(&at(id), size).await
                }
            };
            truncated.map_err(|e| errno(&e))?;
        } else if let Some(file) = self.handles.get(id) {
            // What is written later has a later time, not what was written before.
            file.report().await.map_err(|e| errno(&e))?;
        }
        self.directories.forget(id);
        let Changes { mode, uid, gid, atime, mtime } = changes;
        let nothing = atime == SetTime::Keep && mtime == SetTime::Keep;
        if nothing && mode.is_none() && uid.is_none() && gid.is_none() {
            return self.stat(&at(id)).await.map(|attr| self.attr(&attr));
        }
        if mtime != SetTime::Keep {
            self.client.forget_mtime(id).await;
        }
        let changed = self.client.change(at(id), changes).await;
        self.directories.forget(id);
        let known = changed.map_err(|e| errno(&e))?;
        Ok(self.attr(&self.exactly(known).await?.attr))
    }

    async fn rename(
        &self,
        (parent, name): (INodeNo, Vec<u8>),
        (newparent, newname): (INodeNo, Vec<u8>),
        flags: RenameFlags,
    ) -> Outcome<()> {
        let (from, to) = (self.name_in(parent, &name)?, self.name_in(newparent, &newname)?);
        let renamed = match flags {
            RenameFlags::RENAME_EXCHANGE => self.client.exchange(from, to).await.map(|()| None),
            RenameFlags::RENAME_NOREPLACE => self.client.move_name(from, to, false).await.map(Some),
            flags if flags.is_empty() => self.client.move_name(from, to, true).await.map(Some),
            _ => return Err(Errno::EINVAL),
        };
        let time = |moved: &Option<Attr>| moved.as_ref().and_then(name_changed);
        self.made(newparent, &newname, &renamed, time);
        self.changed(parent, &renamed, time);
        if flags == RenameFlags::RENAME_EXCHANGE {
            self.absent.made(self.id(parent), &name);
        }
        renamed.map(drop).map_err(|e| errno(&e))
    }

    async fn allocate(&self, ino: INodeNo, offset: u64, length: u64, mode: i32) -> Outcome<()> {
        let file = self.opened(ino)?;
        let end = offset.checked_add(length).ok_or(Errno::EFBIG)?;
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let zeros = mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0;
        if mode & !(libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0
        {
            return Err(Errno::EOPNOTSUPP);
        }
        let size = self.stat(&at(self.id(ino))).await?.length;
        if zeros {
            let block = vec![0; REQUEST_BYTES_MAX as usize];
            let mut at = offset;
            while at < end.min(size) {
                let n = (end.min(size) - at).min(block.len() as u64);
                file.write(at, &block[..n as usize]).await.map_err(|e| errno(&e))?;
                at += n;
            }
        }
        if end > size && !keep_size {
            file.truncate(end).await.map_err(|e| errno(&e))?;
        }
        Ok(())
    }

    async fn space(&self) -> Outcome<(u64, u64)> {
        let stores = self.client.stores().await.map_err(|e| errno(&e))?;
        let policy = self.client.policy(&at(self.root)).await.map_err(|e| errno(&e))?;
        let replicas = u64::from(policy.replication.unwrap_or(1).max(1));
        let live = || stores.iter().filter(|s| s.up);
        let capacity: u64 = live().map(|s| s.capacity).sum();
        let used: u64 = live().map(|s| s.used).sum();
        Ok((capacity / replicas, capacity.saturating_sub(used) / replicas))
    }
}

impl Gateway {
    /// Carries something out; what it has to wait for does not hold up the thread that takes requests.
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, f: impl FnOnce(Arc<Shared>) -> F) {
        begin(&self.runtime, f(self.shared.clone()));
    }

    fn entry<F>(&self, reply: ReplyEntry, f: impl FnOnce(Arc<Shared>) -> F)
    where
        F: Future<Output = Outcome<Attr>> + Send + 'static,
    {
        let done = f(self.shared.clone());
        self.spawn(async move |shared| match done.await {
            Ok(attr) => reply.entry(&shared.cache.ttl(), &shared.attr(&attr), Generation(0)),
            Err(e) => reply.error(e),
        });
    }

    fn empty<F>(&self, reply: ReplyEmpty, f: impl FnOnce(Arc<Shared>) -> F)
    where
        F: Future<Output = Outcome<()>> + Send + 'static,
    {
        let done = f(self.shared.clone());
        self.spawn(async move |_| match done.await {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        });
    }
}

fn give_xattr(reply: ReplyXattr, size: u32, value: Outcome<Vec<u8>>) {
    match value {
        Err(e) => reply.error(e),
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
    }
}

impl Filesystem for Gateway {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_CACHE_SYMLINKS,
        ];
        for flag in wanted {
            // An older kernel does without.
            let _ = config.add_capabilities(flag);
        }
        let drops = config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP).is_ok();
        self.shared.drops_direct.store(drops, Ordering::Relaxed);
        let _ = config.set_max_write(REQUEST_BYTES_MAX);
        let _ = config.set_max_readahead(REQUEST_BYTES_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if self.shared.absent.is_absent(self.shared.id(parent), name.as_bytes(), Instant::now()) {
            return reply.error(Errno::ENOENT);
        }
        let name = name.as_bytes().to_vec();
        self.entry(reply, async move |shared| shared.lookup(parent, name).await);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, _nlookup: u64) {
        let id = self.shared.id(ino);
        self.shared.told.lock().expect("never poisoned").remove(&id);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        if let Some((attr, left)) = self.shared.directory(ino) {
            return reply.attr(&left, &self.shared.attr(&attr));
        }
        self.spawn(async move |shared| {
            let id = shared.id(ino);
            let asked = shared.directories.asked(id, Instant::now());
            match shared.stat(&at(id)).await {
                Ok(attr) => {
                    if attr.kind == FileKind::Directory {
                        shared.directories.told(id, asked, &attr);
                    }
                    reply.attr(&shared.cache.ttl(), &shared.attr(&attr))
                }
                Err(e) => reply.error(e),
            }
        });
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changes = Changes { mode, uid, gid, atime: set_time(atime), mtime: set_time(mtime) };
        self.spawn(async move |shared| match shared.set_attr(ino, size, changes).await {
            Ok(attr) => reply.attr(&shared.cache.ttl(), &attr),
            Err(e) => reply.error(e),
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.spawn(async move |shared| match shared.client.lookup(&at(shared.id(ino))).await {
            Ok(attr) => reply.data(&attr.target),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (name, owner, bits) = (name.as_bytes().to_vec(), owner(req), mode & !umask & 0o7777);
        self.entry(reply, async move |shared| {
            let path = shared.name_in(parent, &name)?;
            let made = match kind_of(mode) {
                Some(FileKind::File) => {
                    shared.client.make_file(path, bits, owner, false).await.map(|seen| seen.attr)
                }
                Some(kind) => shared.client.make_special(path, kind, rdev, bits, owner).await,
                None => return Err(Errno::EINVAL),
            };
            shared.made(parent, &name, &made, name_changed);
            made.map_err(|e| errno(&e))
        });
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (name, owner, mode) = (name.as_bytes().to_vec(), owner(req), mode & !umask & 0o7777);
        self.entry(reply, async move |shared| {
            let path = shared.name_in(parent, &name)?;
            let began = Instant::now();
            let made = shared.client.make_directory(path, mode, owner).await;
            shared.made(parent, &name, &made, name_changed);
            let made = made.map_err(|e| errno(&e))?;
            if shared.cache != Cache::Strict {
                shared.absent.made_directory(made.file, began);
            }
            Ok(made)
        });
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.empty(reply, async move |shared| {
            let path = shared.name_in(parent, &name)?;
            let removed = shared.client.remove(path, Only::NoDirectory).await;
            shared.changed(parent, &removed, |parent| Some(parent.mtime_ns));
            removed.map(drop).map_err(|e| errno(&e))
        });
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.empty(reply, async move |shared| {
            let path = shared.name_in(parent, &name)?;
            let removed = shared.client.remove(path, Only::Directory).await;
            shared.changed(parent, &removed, |_| None);
            removed.map(drop).map_err(|e| errno(&e))
        });
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (name, owner) = (name.as_bytes().to_vec(), owner(req));
        let target = target.as_os_str().as_bytes().to_vec();
        self.entry(reply, async move |shared| {
            let path = shared.name_in(parent, &name)?;
            let made = shared.client.make_symlink(path, &target, owner).await;
            shared.made(parent, &name, &made, name_changed);
            made.map_err(|e| errno(&e))
        });
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, newname) = (name.as_bytes().to_vec(), newname.as_bytes().to_vec());
        self.empty(reply, async move |shared| {
            shared.rename((parent, name), (newparent, newname), flags).await
        });
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let newname = newname.as_bytes().to_vec();
        self.entry(reply, async move |shared| {
            let (from, to) = (at(shared.id(ino)), shared.name_in(newparent, &newname)?);
            let linked = shared.client.link(from, to).await;
            shared.made(newparent, &newname, &linked, |known| name_changed(&known.attr));
            match linked {
                Err(Error::Refused(r)) if r.code == Code::IsADirectory => Err(Errno::EPERM),
                Ok(known) => Ok(shared.exactly(known).await?.attr),
                Err(e) => Err(errno(&e)),
            }
        });
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        // Who only reads has nothing to be flushed at a close.
        let reads = flags.0 & libc::O_ACCMODE == libc::O_RDONLY;
        let close = if reads { FopenFlags::FOPEN_NOFLUSH } else { FopenFlags::empty() };
        self.spawn(async move |shared| match shared.open(ino).await {
            Ok(flags) => reply.opened(FileHandle(0), flags | close),
            Err(e) => reply.error(e),
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (name, owner, mode) = (name.as_bytes().to_vec(), owner(req), mode & !umask & 0o7777);
        self.spawn(async move |shared| {
            let made = async {
                let path = shared.name_in(parent, &name)?;
                let chunk = shared.handles.expects_bytes();
                let mut made = shared.client.make_file(path.clone(), mode, owner, chunk).await;
                if matches!(&made, Err(Error::Refused(r)) if chunk && r.code == Code::NoServers) {
                    // It is there all the same; room for its bytes is made when they come.
                    made = shared.client.make_file(path.clone(), mode, owner, false).await;
                }
                shared.made(parent, &name, &made, |seen| name_changed(&seen.attr));
                match made {
                    Ok(seen) => Ok((seen, true)),
                    // Somebody else has made it since the kernel looked.
                    Err(Error::Refused(r)) if r.code == Code::Exists && flags & libc::O_EXCL == 0 => {
                        Ok((shared.see(&path).await?, false))
                    }
                    Err(e) => Err(errno(&e)),
                }
            };
            match made.await {
                Ok((seen, _)) if seen.attr.kind != FileKind::File => reply.error(Errno::EEXIST),
                Ok((seen, is_new)) => {
                    // Who writes a new file and cannot read it needs no copy of it in the kernel.
                    let only_writes = is_new && flags & libc::O_ACCMODE == libc::O_WRONLY;
                    let direct = only_writes && shared.drops_direct.load(Ordering::Relaxed);
                    let past = if direct { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::empty() };
                    let (ttl, attr) = (shared.cache.ttl(), shared.attr(&seen.attr));
                    let flags = shared.open_file(seen, None, is_new).await | past;
                    reply.created(&ttl, &attr, Generation(0), FileHandle(0), flags);
                }
                Err(e) => reply.error(e),
            }
        });
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let reply = BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(buffer.len().max(size as usize), 0);
            let out = &mut buffer[..size as usize];
            match self.shared.read_here(ino, offset, out) {
                Some(len) => {
                    reply.data(&out[..len]);
                    None
                }
                None => Some(reply),
            }
        });
        let Some(reply) = reply else { return };
        self.spawn(async move |shared| match shared.read(ino, offset, size).await {
            Ok(parts) if parts.len() == 1 => reply.data(&parts[0]),
            Ok(parts) => reply.data(&parts.concat()),
            Err(e) => reply.error(e),
        });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let len = data.len() as u32;
        match self.shared.gather(ino, offset, data, flags) {
            Gathered::Taken => reply.written(len),
            Gathered::Full => self.spawn(async move |shared| match shared.send_gathered(ino).await {
                Ok(()) => reply.written(len),
                Err(e) => reply.error(e),
            }),
            Gathered::Not => {
                let data = data.to_vec();
                self.spawn(async move |shared| match shared.write(ino, offset, &data, flags).await {
                    Ok(()) => reply.written(len),
                    Err(e) => reply.error(e),
                });
            }
        }
    }

    fn flush(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        if self.shared.is_clean(ino) {
            return reply.ok();
        }
        self.empty(reply, async move |shared| shared.flush(ino).await);
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if self.shared.is_clean(ino) {
            self.shared.handles.close(self.shared.id(ino));
            return reply.ok();
        }
        self.empty(reply, async move |shared| {
            // A mapping may have been written to after the last close.
            let flushed = shared.flush(ino).await;
            shared.handles.close(shared.id(ino));
            flushed
        });
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.empty(reply, async move |shared| shared.opened(ino)?.sync().await.map_err(|e| errno(&e)));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let handle = self.shared.next_handle.fetch_add(1, Ordering::Relaxed);
        self.shared.handles.open_directory(handle, self.shared.id(ino));
        reply.opened(FileHandle(handle), FopenFlags::empty());
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.spawn(async move |shared| {
            let Some(listing) = shared.handles.directory(fh.0) else { return reply.error(Errno::EBADF) };
            for (n, name) in [".", ".."].iter().enumerate().skip(offset as usize) {
                if reply.add(ino, n as u64 + 1, fuser::FileType::Directory, name) {
                    return reply.ok();
                }
            }
            match listing.from(&shared.client, offset.saturating_sub(2)).await {
                Err(e) => return reply.error(errno(&e)),
                Ok(entries) => {
                    for (next, entry) in entries {
                        let (ino, kind) = (INodeNo(entry.attr.file.0), file_type(entry.attr.kind));
                        if reply.add(ino, next + 2, kind, OsStr::from_bytes(&entry.name)) {
                            break;
                        }
                    }
                }
            }
            reply.ok()
        });
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.spawn(async move |shared| {
            let Some(listing) = shared.handles.directory(fh.0) else { return reply.error(Errno::EBADF) };
            let ttl = shared.cache.ttl();
            if offset < 2 {
                let attr = match shared.stat(&at(shared.id(ino))).await {
                    Ok(attr) => shared.attr(&attr),
                    Err(e) => return reply.error(e),
                };
                for (n, name) in [".", ".."].iter().enumerate().skip(offset as usize) {
                    // The kernel takes no inode from these two.
                    if reply.add(ino, n as u64 + 1, name, &Duration::ZERO, &attr, Generation(0)) {
                        return reply.ok();
                    }
                }
            }
            match listing.from(&shared.client, offset.saturating_sub(2)).await {
                Err(e) => return reply.error(errno(&e)),
                Ok(entries) => {
                    for (next, entry) in entries {
                        let attr = shared.attr(&entry.attr);
                        // The length of a file that is written to is not known to the masters alone.
                        let ttl = if entry.attr.open.is_some() { Duration::ZERO } else { ttl };
                        let name = OsStr::from_bytes(&entry.name);
                        if reply.add(attr.ino, next + 2, name, &ttl, &attr, Generation(0)) {
                            break;
                        }
                    }
                }
            }
            reply.ok()
        });
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.shared.handles.close_directory(fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        // A change of the name space is durable on a majority of masters before it is answered.
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.spawn(async move |shared| match shared.space().await {
            Ok((capacity, free)) => {
                const BLOCK: u32 = 4096;
                let (blocks, free) = (capacity / u64::from(BLOCK), free / u64::from(BLOCK));
                let names = common::limits::NAME_BYTES_MAX as u32;
                reply.statfs(blocks, free, free, u32::MAX.into(), u32::MAX.into(), BLOCK, names, BLOCK);
            }
            Err(e) => reply.error(e),
        });
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
        self.empty(reply, async move |shared| {
            if name == CAPABILITY || name.starts_with(b"system.") {
                return Err(Errno::EOPNOTSUPP);
            }
            let there = match flags {
                libc::XATTR_CREATE => Some(false),
                libc::XATTR_REPLACE => Some(true),
                _ => None,
            };
            let set = shared.client.set_xattr(at(shared.id(ino)), &name, Some(&value), there).await;
            set.map_err(|e| errno(&e))
        });
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.as_bytes().to_vec();
        if name == CAPABILITY || name.starts_with(b"system.") {
            return reply.error(Errno::ENODATA);
        }
        self.spawn(async move |shared| {
            let all = shared.client.xattrs(at(shared.id(ino))).await.map_err(|e| errno(&e));
            let found = all.and_then(|all| match all.into_iter().find(|(known, _)| *known == name) {
                Some((_, value)) => Ok(value),
                None => refuse(Code::NoSuchAttribute),
            });
            give_xattr(reply, size, found);
        });
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.spawn(async move |shared| {
            let all = shared.client.xattrs(at(shared.id(ino))).await.map_err(|e| errno(&e));
            let names =
                all.map(|all| all.into_iter().flat_map(|(name, _)| [name, vec![0]].concat()).collect());
            give_xattr(reply, size, names);
        });
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.empty(reply, async move |shared| {
            let removed = shared.client.set_xattr(at(shared.id(ino)), &name, None, Some(true)).await;
            removed.map_err(|e| errno(&e))
        });
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.empty(reply, async move |shared| shared.allocate(ino, offset, length, mode).await);
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.spawn(async move |shared| {
            let found = async {
                let data = match whence {
                    libc::SEEK_DATA => true,
                    libc::SEEK_HOLE => false,
                    _ => return Err(Errno::EINVAL),
                };
                let from = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
                let found = shared.opened(ino)?.seek(from, data).await.map_err(|e| errno(&e))?;
                found.and_then(|at| i64::try_from(at).ok()).ok_or(Errno::ENXIO)
            };
            match found.await {
                Ok(at) => reply.offset(at),
                Err(e) => reply.error(e),
            }
        });
    }
}
