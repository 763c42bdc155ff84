//! What the threads of a mount share, and what each question of the kernel comes to: attributes, opens, writes, names.

use crate::attr::{file_attr, nanos};
use crate::bare::Bare;
use crate::contents::{Contents, Listed, is_plain};
use crate::directories::Directories;
use crate::errno::errno;
use crate::handles::Handles;
use crate::listing::{Habit, Listing, Rest};
use crate::locks::Locks;
use crate::names::{Names, Place};
use crate::set_ids::SetIds;
use crate::shown::Shown;
use crate::{Cache, Options, REQUEST_BYTES_MAX};
use bytes::Bytes;
use client::{
    Attr, Changes, Client, Error, FileKind, Found, Gathered, Here, Known, Moment, OpenFile, Seen, SetTime,
    Uncached,
};
use common::wire::path::{at, name_in};
use common::{Code, FileId, Refusal, Serial};
use fuser::{Errno, FileAttr, FileHandle, FopenFlags, INodeNo, Notifier, OpenFlags, RenameFlags};
use futures::stream::{self, StreamExt};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

pub struct Shared {
    pub client: Client,
    /// What the kernel calls inode 1.
    pub root: FileId,
    pub cache: Cache,
    pub handles: Arc<Handles>,
    next_handle: AtomicU64,
    pub locks: Locks,
    /// Whether locks hold between machines; else the kernel keeps them.
    pub locks_everywhere: bool,
    /// What the masters tell people who ask whose locks are there.
    pub name: String,
    /// What the bytes of a file were when the kernel last opened it.
    pub told: Mutex<HashMap<FileId, Version>>,
    pub contents: Contents,
    pub bare: Bare,
    habit: Habit,
    pub directories: Directories,
    shown: Shown,
    pub names: Names,
    pub set_ids: SetIds,
    /// Tells the kernel what it must not believe any more.
    pub notifier: OnceLock<Notifier>,
    /// What is written past the kernel's pages makes it drop them.
    pub drops_direct: AtomicBool,
}

/// Lengths of files that are listed are asked for at once so many ...
const LENGTHS_AT_ONCE: usize = 64;
/// ... and waited for this long; then the kernel asks for those that it needs.
const LENGTHS_WAIT: Duration = Duration::from_millis(200);

/// Time of modification, length, and the last serial of an open last chunk: changes whenever bytes do.
type Version = (i64, u64, Serial);

pub type Outcome<T> = Result<T, Errno>;

pub fn refuse<T>(code: Code) -> Outcome<T> {
    Err(errno(&Error::Refused(Refusal::from(code))))
}

/// When a name of what this is was made or moved, if it is no directory: its directory has that time, too.
pub fn name_changed(attr: &Attr) -> Option<i64> {
    (attr.kind != FileKind::Directory).then_some(attr.ctime_ns)
}

impl Shared {
    /// Of a mount that begins.
    pub fn new(client: Client, root: FileId, options: &Options, name: String) -> Shared {
        let handles = Arc::<Handles>::default();
        Shared {
            client,
            root,
            cache: options.cache,
            locks: Locks::new(handles.clone()),
            handles,
            next_handle: AtomicU64::new(1),
            locks_everywhere: !options.local_locks,
            name,
            told: Mutex::default(),
            contents: Contents::default(),
            bare: Bare::default(),
            habit: Habit::default(),
            directories: Directories::default(),
            shown: Shown::default(),
            names: Names::default(),
            set_ids: SetIds::default(),
            notifier: OnceLock::new(),
            drops_direct: AtomicBool::new(false),
        }
    }

    /// A number for something that is opened.
    pub fn new_handle(&self) -> FileHandle {
        FileHandle(self.next_handle.fetch_add(1, Ordering::Relaxed))
    }

    pub fn id(&self, ino: INodeNo) -> FileId {
        if ino == INodeNo::ROOT { self.root } else { FileId(ino.0) }
    }

    fn ino(&self, id: FileId) -> INodeNo {
        if id == self.root { INodeNo::ROOT } else { INodeNo(id.0) }
    }

    pub fn attr(&self, attr: &Attr) -> FileAttr {
        let attr_of = file_attr(attr);
        if attr.kind == FileKind::File {
            self.shown.told(attr.file, attr.length, Instant::now());
        }
        if attr.kind != FileKind::Directory {
            self.set_ids.told(attr.file, attr.mode);
        }
        FileAttr { ino: self.ino(attr.file), ..attr_of }
    }

    pub fn name_in(&self, dir: INodeNo, name: &[u8]) -> Outcome<Vec<u8>> {
        match name.len() > common::limits::NAME_BYTES_MAX {
            true => Err(Errno::ENAMETOOLONG),
            false => Ok(name_in(self.id(dir), name)),
        }
    }

    /// The attributes of a path as they are now: of a file that is open here, also what is known here alone.
    pub async fn see(&self, path: &[u8]) -> Outcome<Seen> {
        let asked = Instant::now();
        let known = self.client.look(path).await.map_err(|e| errno(&e))?;
        self.exactly(known, asked).await
    }

    /// Looks for a name, for a thread of a program: what it leads to, and for how long the kernel may believe that.
    pub async fn lookup(
        self: Arc<Self>,
        parent: INodeNo,
        name: Vec<u8>,
        thread: u32,
    ) -> Outcome<(Attr, Duration)> {
        let now = Instant::now();
        let (known, asked, ttl) = match self.contents.at(self.id(parent), &name, now) {
            Listed::Absent => {
                self.names.arrived(thread);
                return Err(Errno::ENOENT);
            }
            Listed::Leads(attr, at) if !self.shown.told_since(attr.file, at) => {
                (Known::from(*attr), at, self.cache.ttl().saturating_sub(now - at))
            }
            _ => match self.ask_for(parent, &name, now).await {
                Ok(known) => (known, now, self.cache.ttl()),
                Err(e) => {
                    self.names.arrived(thread);
                    return Err(e);
                }
            },
        };
        let attr = self.exactly(known, asked).await?.attr;
        self.leads_to((parent, name), &attr);
        self.names.looked(thread, attr.file);
        Ok((attr, ttl))
    }

    /// Asks the masters for a name; where many are asked for, the directory is listed, behind the asker's back.
    async fn ask_for(self: &Arc<Self>, parent: INodeNo, name: &[u8], asked: Instant) -> Outcome<Known> {
        let directory = self.id(parent);
        let found = self.client.look(&self.name_in(parent, name)?).await;
        let would_be_known = match &found {
            Ok(known) => is_plain(&known.attr),
            Err(e) => e.code() == Some(Code::NotFound),
        };
        if matches!(&found, Ok(known) if known.attr.open.is_some()) {
            self.habit.looked(directory, asked);
        }
        if would_be_known
            && self.cache != Cache::Strict
            && let Some(wish) = self.contents.looked(directory, found.is_ok(), Instant::now())
        {
            let shared = self.clone();
            tokio::spawn(async move { shared.contents.list(&shared.client, wish).await });
        }
        found.map_err(|e| errno(&e))
    }

    /// The kernel will be told that a name leads to this.
    pub fn leads_to(&self, place: Place, attr: &Attr) {
        if attr.kind == FileKind::File && self.cache != Cache::Strict {
            self.names.told(attr.file, place, Instant::now());
        }
    }

    /// A thread wants something of a file that has no name any more, and nobody has it open here: it was led there by a name that
    /// the kernel still believes, and which was unlinked or replaced elsewhere. Told so (`ESTALE`), the kernel looks again, once.
    pub fn refuse_gone(&self, attr: &Attr, thread: u32) -> Outcome<()> {
        let is_gone = attr.links == 0 && self.handles.get(attr.file).is_none();
        if is_gone && self.is_sent(thread, attr.file) {
            return Err(Errno::ESTALE);
        }
        self.names.arrived(thread);
        Ok(())
    }

    /// Whether a thread, which a name has led to a file that has it no more, is to look again.
    pub fn is_sent(&self, thread: u32, file: FileId) -> bool {
        self.touched(file);
        self.names.is_sent(thread, file, Instant::now())
    }

    /// What was listed of a file is not so any more.
    fn touched(&self, file: FileId) {
        let now = Instant::now();
        match self.names.believed(file, now) {
            Some((directory, name)) => self.contents.changed(self.id(directory), &name, now),
            None => self.contents.forget(),
        }
    }

    /// What is known of a file that is opened. If the name that led to it leads there no more, the kernel is told so (`ESTALE`), and
    /// looks again, once: so often does it for a program.
    async fn look_by_name(&self, id: FileId, thread: u32) -> Outcome<Known> {
        let path = match self.names.believed(id, Instant::now()) {
            Some((directory, name)) => self.name_in(directory, &name)?,
            None => at(id),
        };
        match self.client.look_again(&path, id).await {
            Ok(known) if known.attr.file == id && known.attr.links > 0 => {
                self.names.arrived(thread);
                return Ok(known);
            }
            Ok(_) | Err(Error::Refused(_)) => {}
            Err(e) => return Err(errno(&e)),
        }
        if self.is_sent(thread, id) {
            return Err(Errno::ESTALE);
        }
        self.client.look(&at(id)).await.map_err(|e| errno(&e))
    }

    /// What a file that was locked is now. Whoever had it locked before may have taken its name away, and programs look
    /// whether it is still the file that they meant: then the kernel must not lead them to it by that name.
    async fn see_by_name(&self, id: FileId) -> Outcome<Seen> {
        let asked = Instant::now();
        if let Some((directory, name)) = self.names.believed(id, asked) {
            match self.client.look(&self.name_in(directory, &name)?).await {
                Ok(known) if known.attr.file == id => return self.exactly(known, asked).await,
                Ok(_) | Err(Error::Refused(_)) => {}
                Err(e) => return Err(errno(&e)),
            }
            self.names.forget(id);
            self.tell(move |kernel| kernel.inval_entry(directory, OsStr::from_bytes(&name))).await;
        }
        self.see(&at(id)).await
    }

    /// Tells the kernel something for which it may wait for requests that other threads of ours have to answer. What that was
    /// about it may have forgotten by itself.
    async fn tell(&self, what: impl FnOnce(Notifier) -> io::Result<()> + Send + 'static) {
        let Some(notifier) = self.notifier.get().cloned() else { return };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || what(notifier)).await {
            tracing::debug!(%error, "the kernel had forgotten it already");
        }
    }

    pub async fn stat(&self, path: &[u8]) -> Outcome<Attr> {
        Ok(self.see(path).await?.attr)
    }

    /// What the masters have said, who were asked then, and what is known here alone.
    pub async fn exactly(&self, mut known: Known, asked: Instant) -> Outcome<Seen> {
        let file = known.attr.file;
        let here = match self.handles.get(file) {
            Some(file) => {
                if self.cache == Cache::Strict {
                    // Others may have written to it since: their bytes count at once.
                    file.revalidate(None).await;
                }
                file.known().await.map_err(|e| errno(&e))?
            }
            None => None,
        };
        let (mut seen, written) = match here {
            Some((length, written)) => (Seen::from(Attr { length, ..known.attr }), written.map(nanos)),
            None => {
                if self.client.reported_since(file, asked) {
                    // They may have said it before they were told what was known here until just now.
                    known = self.client.look(&at(file)).await.map_err(|e| errno(&e))?;
                }
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

    /// Entries of a directory from a place on, and of each its attributes and for how long the kernel may believe them.
    pub async fn entries(&self, listing: &Listing, place: u64) -> Outcome<(Rest, Vec<(FileAttr, Duration)>)> {
        let asked = Instant::now();
        let rest = listing.now(&self.client, place).await.map_err(|e| errno(&e))?;
        let looks = self.cache != Cache::Strict && (place > 0 || self.habit.looks(listing.directory, asked));
        let until = tokio::time::Instant::now() + LENGTHS_WAIT;
        let told: Vec<_> =
            rest.iter().map(|(_, found)| self.entry(listing.directory, found, asked, looks, until)).collect();
        let told = stream::iter(told).buffered(LENGTHS_AT_ONCE).collect().await;
        Ok((rest, told))
    }

    /// One of them. The length of a file that is written to is not known to the masters alone.
    async fn entry(
        &self,
        directory: FileId,
        found: &Found,
        asked: Instant,
        looks: bool,
        until: tokio::time::Instant,
    ) -> (FileAttr, Duration) {
        let mut attr = found.known.attr.clone();
        if !found.may_have_xattrs {
            self.bare.told(attr.file, asked);
        }
        let is_open_here = self.handles.get(attr.file).is_some();
        if attr.open.is_none() || is_open_here || looks {
            if let Ok(Ok(seen)) = timeout_at(until, self.exactly(found.known.clone(), asked)).await {
                self.leads_to((self.ino(directory), found.name.clone()), &seen.attr);
                return (self.attr(&seen.attr), self.cache.ttl());
            }
            if let Some(length) = self.shown.open_length(attr.file) {
                // Of a shorter one the kernel drops the pages behind it, mapped and changed ones among them.
                attr.length = length.max(attr.length);
            }
        }
        (self.attr(&attr), Duration::ZERO)
    }

    /// Opens a file that was just seen; if it was open here already, after that moment.
    pub async fn open_file(&self, seen: Seen, since: Option<Moment>, is_new: bool) -> FopenFlags {
        let open = self.handles.open(&self.client, &seen, is_new);
        let attr = &seen.attr;
        self.shown.opened(attr.file, attr.length);
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

    /// A file that is open here was locked, and others may have changed it before: programs see what is there now.
    pub async fn see_again(&self, id: FileId) -> Outcome<()> {
        self.contents.forget();
        self.bare.forget();
        let Some(file) = self.handles.get(id) else { return Ok(()) };
        let since = file.moment().await;
        let seen = self.see_by_name(id).await?;
        let now = (seen.attr.mtime_ns, seen.attr.length, seen.serial);
        let before = self.told.lock().expect("never poisoned").insert(id, now);
        let believes = self.shown.differs(id, seen.attr.length, Instant::now());
        file.revalidate(Some((since, seen))).await;
        let ino = self.ino(id);
        // Its attributes count as of now; its pages too, if they may be others.
        let pages_from = if before != Some(now) || believes { 0 } else { -1 };
        self.tell(move |kernel| kernel.inval_inode(ino, pages_from, 0)).await;
        Ok(())
    }

    /// One handle less.
    pub fn close(&self, file: FileId) {
        self.handles.close(file);
        self.shown.closed(file, || self.handles.get(file).is_some());
    }

    pub fn opened(&self, ino: INodeNo) -> Outcome<Arc<OpenFile>> {
        self.handles.get(self.id(ino)).ok_or(Errno::EBADF)
    }

    /// Opens a file for a thread of a program.
    pub async fn open(&self, ino: INodeNo, thread: u32) -> Outcome<FopenFlags> {
        let id = self.id(ino);
        let since = match self.handles.get(id) {
            Some(file) => Some(file.moment().await),
            None => None,
        };
        let asked = Instant::now();
        let known = self.look_by_name(id, thread).await?;
        let seen = self.exactly(known, asked).await?;
        if seen.attr.kind != FileKind::File {
            return Err(Errno::EINVAL);
        }
        Ok(self.open_file(seen, since, false).await)
    }

    /// What lies on the disk of a store on this machine needs no more than this, on the calling thread.
    pub fn read_here(&self, ino: INodeNo, offset: u64, out: &mut [u8], uncached: Uncached) -> Here {
        match self.opened(ino) {
            Ok(file) if self.cache != Cache::Strict => match file.try_read(offset, out, uncached) {
                Here::Read(len)
                    if len < out.len() && self.shown.is_longer(self.id(ino), offset + len as u64) =>
                {
                    Here::Not
                }
                here => here,
            },
            _ => Here::Not,
        }
    }

    /// Whether it is known where a range lies on a disk of this machine; who can tell is asked for it.
    pub async fn is_placed(&self, ino: INodeNo, offset: u64, len: u32) -> bool {
        match self.opened(ino) {
            Ok(file) if self.cache != Cache::Strict => file.is_placed(offset, len.into()).await,
            _ => false,
        }
    }

    pub async fn read(&self, ino: INodeNo, offset: u64, len: u32) -> Outcome<Vec<Bytes>> {
        let (file, id) = (self.opened(ino)?, self.id(ino));
        if self.cache == Cache::Strict {
            file.revalidate(None).await;
        }
        let read = async || file.read(offset, len.into()).await.map_err(|e| errno(&e));
        let ends_early = |parts: &[Bytes]| {
            let found: usize = parts.iter().map(Bytes::len).sum();
            found < len as usize && self.shown.is_longer(id, offset + found as u64)
        };
        let mut parts = read().await?;
        if ends_early(&parts) {
            // It has grown since it was opened here, and the kernel knows.
            file.revalidate(None).await;
            parts = read().await?;
            if ends_early(&parts) {
                self.shown.ends_before(id, Instant::now());
            }
        }
        Ok(parts)
    }

    /// Most writes of a stream need no more than this, on the thread that took them from the kernel.
    pub fn gather(&self, ino: INodeNo, offset: u64, data: &[u8], flags: OpenFlags) -> Gathered {
        let at_once = flags.0 & (libc::O_APPEND | libc::O_SYNC | libc::O_DSYNC) != 0;
        match self.opened(ino) {
            Ok(file) if !at_once && self.cache != Cache::Strict => {
                let gathered = file.try_gather(offset, data);
                if !matches!(gathered, Gathered::Not) {
                    self.shown.written(file.file(), offset + data.len() as u64);
                }
                gathered
            }
            _ => Gathered::Not,
        }
    }

    pub async fn send_gathered(&self, ino: INodeNo) -> Outcome<()> {
        self.opened(ino)?.send_gathered().await.map_err(|e| errno(&e))
    }

    pub async fn write(&self, ino: INodeNo, offset: u64, data: &[u8], flags: OpenFlags) -> Outcome<()> {
        let file = self.opened(ino)?;
        let written = match flags.0 & libc::O_APPEND != 0 {
            true => file.append(data).await.map(drop),
            false => file.write(offset, data).await,
        };
        written.map_err(|e| errno(&e))?;
        self.shown.written(file.file(), offset.saturating_add(data.len() as u64));
        if flags.0 & (libc::O_SYNC | libc::O_DSYNC) != 0 || self.cache == Cache::Strict {
            file.sync().await.map_err(|e| errno(&e))?;
        }
        Ok(())
    }

    /// A file that is written to by somebody without the right to leave them there loses its set-id bits before.
    pub async fn lose_set_ids(&self, ino: INodeNo, has_right: bool) -> Outcome<()> {
        let id = self.id(ino);
        if let Some(left) = self.set_ids.left(id)
            && !has_right
        {
            let changes = Changes { mode: Some(left), ..Changes::default() };
            let changed = self.client.change(at(id), changes).await;
            self.touched(id);
            changed.map_err(|e| errno(&e))?;
            self.set_ids.told(id, left);
        }
        Ok(())
    }

    /// The extended attributes of a file.
    pub async fn xattrs(&self, ino: INodeNo) -> Outcome<Vec<(Vec<u8>, Vec<u8>)>> {
        let id = self.id(ino);
        if self.cache != Cache::Strict && self.bare.is(id, Instant::now()) {
            return Ok(vec![]);
        }
        self.client.xattrs(at(id)).await.map_err(|e| errno(&e))
    }

    /// Sets one of them, or removes it; with `there`, only if it is there, or not.
    pub async fn set_xattr(
        &self,
        ino: INodeNo,
        name: &[u8],
        value: Option<&[u8]>,
        there: Option<bool>,
    ) -> Outcome<()> {
        let id = self.id(ino);
        self.bare.changed(id);
        let set = self.client.set_xattr(at(id), name, value, there).await;
        self.bare.changed(id);
        self.touched(id);
        set.map_err(|e| errno(&e))
    }

    /// Copies a range between files that are open, as far as that needs no bytes to be moved: so many.
    pub async fn clone_range(&self, from: INodeNo, range: Range<u64>, to: INodeNo, at: u64) -> Outcome<u64> {
        let (from, to) = (self.opened(from)?, self.opened(to)?);
        if self.cache == Cache::Strict {
            from.revalidate(None).await;
            to.revalidate(None).await;
        }
        let cloned = to.clone_range(&from, range, at).await.map_err(|e| errno(&e))?;
        self.shown.written(to.file(), at.saturating_add(cloned));
        Ok(cloned)
    }

    /// A name was made or removed here, or may have been; if it is no directory's, at this time.
    pub fn named<T>(
        &self,
        parent: INodeNo,
        name: &[u8],
        outcome: &client::Result<T>,
        time: impl Fn(&T) -> Option<i64>,
    ) {
        self.contents.changed(self.id(parent), name, Instant::now());
        match outcome {
            Err(Error::Refused(_)) => {}
            Ok(done) if let Some(time) = time(done) => self.directories.changed(self.id(parent), time),
            _ => self.directories.forget(self.id(parent)),
        }
    }

    /// Attributes of what the kernel knows as a directory, if they need not be asked for.
    pub fn directory(&self, ino: INodeNo) -> Option<(Attr, Duration)> {
        match self.cache {
            Cache::Strict => None,
            Cache::CloseToOpen => self.directories.attr(self.id(ino), Instant::now()),
        }
    }

    /// Whether a file that is open has nothing to be flushed.
    pub fn is_clean(&self, ino: INodeNo) -> bool {
        self.opened(ino).is_ok_and(|file| file.is_clean())
    }

    /// Everything that was written through the file is durable; `close` tells of what failed.
    pub async fn flush(self: &Arc<Self>, ino: INodeNo) -> Outcome<()> {
        let file = self.opened(ino)?;
        file.sync().await.map_err(|e| errno(&e))?;
        file.report().await.map_err(|e| errno(&e))?;
        match self.cache {
            Cache::Strict => self.client.tell_reports().await.map_err(|e| errno(&e)),
            Cache::CloseToOpen => Ok(()),
        }
    }

    /// Changes attributes. `has_right`: whoever asks may write to a file and leave its set-id bits there.
    pub async fn set_attr(
        &self,
        ino: INodeNo,
        size: Option<u64>,
        mut changes: Changes,
        has_right: bool,
        thread: u32,
    ) -> Outcome<FileAttr> {
        let id = self.id(ino);
        self.lose_set_ids(ino, has_right || size.is_none()).await?;
        if changes.uid.is_some() || changes.gid.is_some() {
            changes.mode = changes.mode.or_else(|| self.set_ids.left(id));
        }
        let cut = match size {
            Some(size) => Some(self.cut(id, size, thread).await?),
            None => {
                if let Some(file) = self.handles.get(id) {
                    // Mostly all is written by now; it is durable by the close, and on its way meanwhile.
                    let _ = file.send_gathered().await;
                }
                None
            }
        };
        self.directories.forget(id);
        let Changes { mode, uid, gid, atime, mtime } = changes;
        let nothing = atime == SetTime::Keep && mtime == SetTime::Keep;
        if nothing && mode.is_none() && uid.is_none() && gid.is_none() {
            let attr = match cut {
                Some(seen) => seen.attr,
                None => self.stat(&at(id)).await?,
            };
            return Ok(self.attr(&attr));
        }
        if mtime != SetTime::Keep {
            match self.handles.get(id) {
                Some(file) => file.forget_time().await,
                None => self.client.forget_mtime(id).await,
            }
        }
        let asked = Instant::now();
        let changed = self.client.change(at(id), changes).await;
        self.directories.forget(id);
        let known = changed.map_err(|e| errno(&e))?;
        if known.attr.kind == FileKind::File {
            self.refuse_gone(&known.attr, thread)?;
        }
        Ok(self.attr(&self.exactly(known, asked).await?.attr))
    }

    /// Cuts a file. Of one that is open here - also by `O_TRUNC`, which comes after the open - bytes are written again, mostly.
    async fn cut(&self, id: FileId, length: u64, thread: u32) -> Outcome<Seen> {
        let cut = match self.handles.get(id) {
            Some(file) => file.truncate(length, true).await,
            None => {
                let attr = self.client.lookup(&at(id)).await.map_err(|e| errno(&e))?;
                self.refuse_gone(&attr, thread)?;
                self.client.forget_mtime(id).await;
                self.client.truncate(&at(id), length).await
            }
        };
        let seen = cut.map_err(|e| errno(&e))?;
        self.shown.cut(id, length);
        Ok(seen)
    }

    pub async fn rename(
        &self,
        (parent, name): (INodeNo, Vec<u8>),
        (newparent, newname): (INodeNo, Vec<u8>),
        flags: RenameFlags,
        user: Option<u32>,
    ) -> Outcome<()> {
        let (from, to) = (self.name_in(parent, &name)?, self.name_in(newparent, &newname)?);
        let renamed = match flags {
            RenameFlags::RENAME_EXCHANGE => self.client.exchange(from, to, user).await.map(|()| None),
            RenameFlags::RENAME_NOREPLACE => self.client.move_name(from, to, false, user).await.map(Some),
            flags if flags.is_empty() => self.client.move_name(from, to, true, user).await.map(Some),
            _ => return Err(Errno::EINVAL),
        };
        let time = |moved: &Option<Attr>| moved.as_ref().and_then(name_changed);
        self.named(newparent, &newname, &renamed, time);
        self.named(parent, &name, &renamed, time);
        if let Ok(Some(moved)) = &renamed {
            self.leads_to((newparent, newname), moved);
        }
        renamed.map(drop).map_err(|e| errno(&e))
    }

    pub async fn allocate(&self, ino: INodeNo, offset: u64, length: u64, mode: i32) -> Outcome<()> {
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
            file.truncate(end, false).await.map_err(|e| errno(&e))?;
            self.shown.written(file.file(), end);
        }
        Ok(())
    }

    pub async fn space(&self) -> Outcome<(u64, u64)> {
        let stores = self.client.stores().await.map_err(|e| errno(&e))?;
        let policy = self.client.policy(&at(self.root)).await.map_err(|e| errno(&e))?;
        let replicas = u64::from(policy.replication.unwrap_or(1).max(1));
        let live = || stores.iter().filter(|s| s.up);
        let capacity: u64 = live().map(|s| s.capacity).sum();
        let used: u64 = live().map(|s| s.used).sum();
        Ok((capacity / replicas, capacity.saturating_sub(used) / replicas))
    }
}
