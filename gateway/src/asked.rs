//! What the kernel asks, translated.

use crate::attr::{file_type, kind_of, nanos};
use crate::caller::Caller;
use crate::errno::errno;
use crate::locks::Wanted;
use crate::reads::{self, Reads};
use crate::shared::{Outcome, Shared, name_changed, refuse};
use crate::{BACKGROUND_MAX, Cache, REQUEST_BYTES_MAX};
use client::{Attr, Changes, Error, FileKind, Found, Gathered, Owner, SetTime, begin};
use common::wire::client_master::Only;
use common::wire::path::at;
use common::{Code, LockRange, Lockable};
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime::Handle;

/// The name under which the kernel asks for capabilities of programs before each write. There are none.
const CAPABILITY: &[u8] = b"security.capability";

/// Bytes of one answer to `copy_file_range`: programs ask again for the rest, and can be interrupted in between.
const CLONE_BYTES_MAX: u64 = 1 << 30;

/// Answers the kernel.
pub struct Gateway {
    shared: Arc<Shared>,
    runtime: Handle,
    reads: Arc<Reads>,
}

fn owner(req: &Request) -> Owner {
    Owner { uid: req.uid(), gid: req.gid() }
}

/// The user whom a program is; none if that is root, who may take away what is others'.
fn user(req: &Request) -> Option<u32> {
    Some(req.uid()).filter(|uid| *uid != 0)
}

/// Whether a program may write to a file without its losing set-id bits: the kernel says it of a write; otherwise root
/// counts as having `CAP_FSETID`, and nobody else.
fn keeps_set_ids(req: &Request) -> bool {
    req.uid() == 0
}

fn set_time(time: Option<TimeOrNow>) -> SetTime {
    match time {
        None => SetTime::Keep,
        Some(TimeOrNow::Now) => SetTime::Now,
        Some(TimeOrNow::SpecificTime(time)) => SetTime::At(nanos(time)),
    }
}

impl Gateway {
    /// Within a runtime, which carries out what has to wait.
    pub fn new(shared: Arc<Shared>) -> io::Result<Gateway> {
        let reads = Reads::new(shared.clone())?;
        Ok(Gateway { shared, runtime: Handle::current(), reads })
    }

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

/// What is appended goes past the kernel's pages: of a record that begins within one that it does not have it would make two
/// requests, between which others append theirs; and it would keep the record where it takes the end to be.
fn past_the_cache(flags: i32) -> FopenFlags {
    let appends = flags & libc::O_APPEND != 0 && flags & libc::O_ACCMODE != libc::O_RDONLY;
    if appends { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::empty() }
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
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ];
        for flag in wanted {
            // An older kernel does without.
            let _ = config.add_capabilities(flag);
        }
        let drops = config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP).is_ok();
        self.shared.drops_direct.store(drops, Ordering::Relaxed);
        if self.shared.locks_everywhere {
            // Without them the kernel knows who locks what on this machine.
            let _ = config.add_capabilities(InitFlags::FUSE_POSIX_LOCKS | InitFlags::FUSE_FLOCK_LOCKS);
        }
        let _ = config.set_max_write(REQUEST_BYTES_MAX);
        let _ = config.set_max_readahead(REQUEST_BYTES_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (name, thread) = (name.as_bytes().to_vec(), req.pid());
        self.spawn(async move |shared| match shared.clone().lookup(parent, name, thread).await {
            Ok((attr, ttl)) => reply.entry(&ttl, &shared.attr(&attr), Generation(0)),
            Err(e) => reply.error(e),
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, _nlookup: u64) {
        let id = self.shared.id(ino);
        self.shared.told.lock().expect("never poisoned").remove(&id);
        self.shared.set_ids.forget(id);
        self.shared.names.forget(id);
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
        req: &Request,
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
        let (has_right, thread) = (keeps_set_ids(req), req.pid());
        self.spawn(async move |shared| match shared.set_attr(ino, size, changes, has_right, thread).await {
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
            shared.named(parent, &name, &made, name_changed);
            let made = made.map_err(|e| errno(&e))?;
            shared.leads_to((parent, name), &made);
            Ok(made)
        });
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (name, owner, mode) = (name.as_bytes().to_vec(), owner(req), mode & !umask & 0o7777);
        self.entry(reply, async move |shared| {
            let path = shared.name_in(parent, &name)?;
            let began = Instant::now();
            let made = shared.client.make_directory(path, mode, owner).await;
            shared.named(parent, &name, &made, name_changed);
            let made = made.map_err(|e| errno(&e))?;
            if shared.cache != Cache::Strict {
                shared.contents.made_directory(made.file, began);
            }
            Ok(made)
        });
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (name, user) = (name.as_bytes().to_vec(), user(req));
        self.empty(reply, async move |shared| {
            let path = shared.name_in(parent, &name)?;
            let removed = shared.client.remove(path, Only::NoDirectory, user).await;
            shared.named(parent, &name, &removed, |parent| Some(parent.mtime_ns));
            removed.map(drop).map_err(|e| errno(&e))
        });
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (name, user) = (name.as_bytes().to_vec(), user(req));
        self.empty(reply, async move |shared| {
            let path = shared.name_in(parent, &name)?;
            let removed = shared.client.remove(path, Only::Directory, user).await;
            shared.named(parent, &name, &removed, |_| None);
            removed.map(drop).map_err(|e| errno(&e))
        });
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (name, owner) = (name.as_bytes().to_vec(), owner(req));
        let target = target.as_os_str().as_bytes().to_vec();
        self.entry(reply, async move |shared| {
            let path = shared.name_in(parent, &name)?;
            let made = shared.client.make_symlink(path, &target, owner).await;
            shared.named(parent, &name, &made, name_changed);
            made.map_err(|e| errno(&e))
        });
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, newname, user) = (name.as_bytes().to_vec(), newname.as_bytes().to_vec(), user(req));
        self.empty(reply, async move |shared| {
            shared.rename((parent, name), (newparent, newname), flags, user).await
        });
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let (newname, thread) = (newname.as_bytes().to_vec(), req.pid());
        self.entry(reply, async move |shared| {
            let (from, to) = (at(shared.id(ino)), shared.name_in(newparent, &newname)?);
            // The name that led to it is one no more, perhaps.
            let attr = shared.client.lookup(&from).await.map_err(|e| errno(&e))?;
            if attr.links == 0 {
                let is_sent = shared.is_sent(thread, attr.file);
                return Err(if is_sent { Errno::ESTALE } else { Errno::ENOENT });
            }
            shared.names.arrived(thread);
            let asked = Instant::now();
            let linked = shared.client.link(from, to).await;
            shared.named(newparent, &newname, &linked, |known| name_changed(&known.attr));
            match linked {
                Err(Error::Refused(r)) if r.code == Code::IsADirectory => Err(Errno::EPERM),
                Ok(known) => {
                    let attr = shared.exactly(known, asked).await?.attr;
                    shared.leads_to((newparent, newname), &attr);
                    Ok(attr)
                }
                Err(e) => Err(errno(&e)),
            }
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        // Who only reads has nothing to be flushed at a close; but locks end with it.
        let reads = flags.0 & libc::O_ACCMODE == libc::O_RDONLY && !self.shared.locks_everywhere;
        let close = if reads { FopenFlags::FOPEN_NOFLUSH } else { FopenFlags::empty() };
        let (past, thread) = (past_the_cache(flags.0), req.pid());
        self.spawn(async move |shared| match shared.open(ino, thread).await {
            Ok(flags) => reply.opened(shared.new_handle(), flags | close | past),
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
                shared.named(parent, &name, &made, |seen| name_changed(&seen.attr));
                match made {
                    Ok(seen) => {
                        shared.leads_to((parent, name), &seen.attr);
                        Ok(seen)
                    }
                    // Somebody else has made it since the kernel looked. Told so, it looks again, and opens what is there: it
                    // has yet to see whether the program may, and what `O_TRUNC` is to take away.
                    Err(Error::Refused(r)) if r.code == Code::Exists && flags & libc::O_EXCL == 0 => {
                        Err(Errno::ESTALE)
                    }
                    Err(e) => Err(errno(&e)),
                }
            };
            match made.await {
                Ok(seen) => {
                    // Who writes a new file and cannot read it needs no copy of it in the kernel.
                    let only_writes = flags & libc::O_ACCMODE == libc::O_WRONLY;
                    let direct = only_writes && shared.drops_direct.load(Ordering::Relaxed);
                    let past = if direct { FopenFlags::FOPEN_DIRECT_IO } else { past_the_cache(flags) };
                    let (ttl, attr) = (shared.cache.ttl(), shared.attr(&seen.attr));
                    let flags = shared.open_file(seen, None, true).await | past;
                    reply.created(&ttl, &attr, Generation(0), shared.new_handle(), flags);
                }
                Err(e) => reply.error(e),
            }
        });
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if let Err(e) = self.shared.locks.check(fh.0) {
            return reply.error(e);
        }
        self.reads.answer(reads::Wanted { ino, offset, size }, reply);
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if let Err(e) = self.shared.locks.check(fh.0) {
            return reply.error(e);
        }
        let len = data.len() as u32;
        let has_right = !write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let gathered = match has_right || self.shared.set_ids.left(self.shared.id(ino)).is_none() {
            true => self.shared.gather(ino, offset, data, flags),
            false => Gathered::Not,
        };
        match gathered {
            Gathered::Taken => reply.written(len),
            Gathered::Full => self.spawn(async move |shared| match shared.send_gathered(ino).await {
                Ok(()) => reply.written(len),
                Err(e) => reply.error(e),
            }),
            Gathered::Not => {
                let data = data.to_vec();
                self.spawn(async move |shared| {
                    let written = async {
                        shared.lose_set_ids(ino, has_right).await?;
                        shared.write(ino, offset, &data, flags).await
                    };
                    match written.await {
                        Ok(()) => reply.written(len),
                        Err(e) => reply.error(e),
                    }
                });
            }
        }
    }

    fn flush(&self, _req: &Request, ino: INodeNo, fh: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        // Before anything is sent: what was written under a lock that is lost is not.
        let checked = self.shared.locks.check(fh.0);
        let of = Lockable { file: self.shared.id(ino), flock: false };
        let locked = self.shared.locks.has_locked(of, owner.0);
        if self.shared.is_clean(ino) && !locked && checked.is_ok() {
            return reply.ok();
        }
        self.empty(reply, async move |shared| {
            let flushed = checked.and(shared.flush(ino).await);
            // Whoever closes a file unlocks all of it, whichever way it was opened.
            let unlocked = match locked {
                true => shared.unlock(of, owner.0, 0, u64::MAX).await,
                false => Ok(()),
            };
            flushed.and(unlocked)
        });
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let file = self.shared.id(ino);
        if self.shared.is_clean(ino) && !self.shared.locks.knows(file, fh.0) {
            self.shared.close(file);
            return reply.ok();
        }
        self.empty(reply, async move |shared| {
            // A mapping may have been written to after the last close.
            let flushed = shared.flush(ino).await;
            shared.unlock_handle(file, fh.0).await;
            shared.close(file);
            flushed
        });
    }

    fn getlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let caller = Caller(req.pid());
        // There is no such question of `flock`.
        let of = Lockable { file: self.shared.id(ino), flock: false };
        let range = LockRange { first: start, last: end, exclusive: typ == libc::F_WRLCK };
        let wanted = Wanted { of, range, owner: lock_owner.0, handle: fh.0, pid };
        self.spawn(async move |shared| match shared.locked(wanted, caller).await {
            Ok(None) => reply.locked(start, end, libc::F_UNLCK, 0),
            Ok(Some((range, pid))) => {
                let kind = if range.exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
                // The kernel knows no offset beyond this.
                reply.locked(range.first, range.last.min(i64::MAX as u64), kind, pid);
            }
            Err(e) => reply.error(e),
        });
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let caller = Caller(req.pid());
        let of = Lockable { file: self.shared.id(ino), flock: caller.is_in_flock() };
        if typ == libc::F_UNLCK {
            let owner = lock_owner.0;
            return self.empty(reply, async move |shared| shared.unlock(of, owner, start, end).await);
        }
        let range = LockRange { first: start, last: end, exclusive: typ == libc::F_WRLCK };
        let wanted = Wanted { of, range, owner: lock_owner.0, handle: fh.0, pid };
        self.empty(reply, async move |shared| shared.lock(wanted, sleep, caller).await);
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        if let Err(e) = self.shared.locks.check(fh.0) {
            return reply.error(e);
        }
        self.empty(reply, async move |shared| shared.opened(ino)?.sync().await.map_err(|e| errno(&e)));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let handle = self.shared.new_handle();
        self.shared.handles.open_directory(handle.0, self.shared.id(ino));
        reply.opened(handle, FopenFlags::empty());
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.spawn(async move |shared| {
            let Some(listing) = shared.handles.directory(fh.0) else { return reply.error(Errno::EBADF) };
            for (n, name) in [".", ".."].iter().enumerate().skip(offset as usize) {
                if reply.add(ino, n as u64 + 1, fuser::FileType::Directory, name) {
                    return reply.ok();
                }
            }
            match listing.names(&shared.client, offset.saturating_sub(2)).await {
                Err(e) => return reply.error(errno(&e)),
                Ok(rest) => {
                    for (next, found) in rest.iter() {
                        let attr = &found.known.attr;
                        let (ino, kind) = (INodeNo(attr.file.0), file_type(attr.kind));
                        if reply.add(ino, next + 2, kind, OsStr::from_bytes(&found.name)) {
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
            if offset < 2 {
                let attr = match shared.directory(ino) {
                    Some((attr, _)) => Ok(attr),
                    None => shared.stat(&at(shared.id(ino))).await,
                };
                let attr = match attr {
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
            let (rest, told) = match shared.entries(&listing, offset.saturating_sub(2)).await {
                Ok(entries) => entries,
                Err(e) => return reply.error(e),
            };
            let fits = |((next, found), (attr, ttl)): &((u64, &Found), (FileAttr, Duration))| {
                !reply.add(attr.ino, next + 2, OsStr::from_bytes(&found.name), ttl, attr, Generation(0))
            };
            let (given, fitted) = (told.len(), rest.iter().zip(told).take_while(fits).count());
            listing.fitted(fitted, fitted == given).await;
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
            shared.set_xattr(ino, &name, Some(&value), there).await
        });
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.as_bytes().to_vec();
        if name == CAPABILITY || name.starts_with(b"system.") {
            return reply.error(Errno::ENODATA);
        }
        self.spawn(async move |shared| {
            let all = shared.xattrs(ino).await;
            let found = all.and_then(|all| match all.into_iter().find(|(known, _)| *known == name) {
                Some((_, value)) => Ok(value),
                None => refuse(Code::NoSuchAttribute),
            });
            give_xattr(reply, size, found);
        });
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.spawn(async move |shared| {
            let all = shared.xattrs(ino).await;
            let names =
                all.map(|all| all.into_iter().flat_map(|(name, _)| [name, vec![0]].concat()).collect());
            give_xattr(reply, size, names);
        });
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.empty(reply, async move |shared| shared.set_xattr(ino, &name, None, Some(true)).await);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let has_right = keeps_set_ids(req);
        self.empty(reply, async move |shared| {
            shared.lose_set_ids(ino, has_right).await?;
            shared.allocate(ino, offset, length, mode).await
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        if let Err(e) = self.shared.locks.check(fh_in.0).and(self.shared.locks.check(fh_out.0)) {
            return reply.error(e);
        }
        let range = offset_in..offset_in.saturating_add(len.min(CLONE_BYTES_MAX));
        let has_right = keeps_set_ids(req);
        self.spawn(async move |shared| {
            let cloned = async {
                shared.lose_set_ids(ino_out, has_right).await?;
                shared.clone_range(ino_in, range, ino_out, offset_out).await
            };
            match cloned.await {
                // The kernel copies the bytes itself, through its pages.
                Ok(0) => reply.error(Errno::EOPNOTSUPP),
                Ok(len) => reply.written(len as u32),
                Err(e) => reply.error(e),
            }
        });
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
