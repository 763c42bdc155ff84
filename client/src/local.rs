//! Stores on the same machine: their files are read here, without a copy through sockets (`common::wire::local`).
//!
//! What was read counts only if the store's board says afterwards that it was so: the session first, then the chunk's
//! stamp, then that the store's process is alive, since a dead one may be removed before its session is over. All of it
//! was so when the session was looked at. And every byte is verified. Whatever is not as it should be is read over the
//! wire instead.

use common::checksum::first_mismatch;
use common::limits::{BLOCK_BYTES, LOCATED_BYTES_MAX};
use common::wire::client_chunk::Place;
use common::wire::local::{
    ANSWER_BYTES, HEAD_BYTES, Head, SLOT_BYTES, Wanted, slot_at, slot_of, socket_name,
};
use common::{ChunkHandle, ClusterId, SessionId, StoreId, Time};
use rustix::io::{ReadWriteFlags, preadv2};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Ranges whose place is remembered; the oldest goes. One takes 6 KiB at most.
const WINDOWS_MAX: usize = 4096;
/// Segments of a store that are open; then all are closed, and opened again as they are read.
const SEGMENTS_MAX: usize = 1024;
/// Chunks and ranges of which something is remembered that was asked for in vain or once; then all is forgotten.
const MARKS_MAX: usize = 8192;
/// A store that is not on this machine is not looked for again for so long; one whose connection broke for less.
const AWAY: Duration = Duration::from_secs(5);
const BROKEN: Duration = Duration::from_millis(200);
/// What a store does not tell now it is not asked again for so long.
const NOT_NOW: Duration = Duration::from_millis(20);
/// A read of so many bytes asks for their place at once, a smaller one the second time.
pub const LARGE_BYTES: usize = 64 * 1024;
/// An answer over the socket comes within this.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);

/// Questions for different ranges that can be under way at a time, about.
const TURNS: usize = 64;

const BLOCK: u32 = BLOCK_BYTES as u32;

/// Everything that is known of stores on this machine.
pub(crate) struct Local {
    stores: Mutex<HashMap<StoreId, Neighbour>>,
    windows: RwLock<Windows>,
    marks: Mutex<HashMap<(ChunkHandle, u32), Mark>>,
    turns: [tokio::sync::Mutex<()>; TURNS],
    bytes: AtomicU64,
}

impl Default for Local {
    fn default() -> Local {
        Local {
            stores: Mutex::default(),
            windows: RwLock::default(),
            marks: Mutex::default(),
            turns: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            bytes: AtomicU64::new(0),
        }
    }
}

enum Neighbour {
    /// Not to be reached this way before.
    Away(Instant),
    Here(Arc<Store>),
}

/// A store on this machine.
pub(crate) struct Store {
    id: StoreId,
    cluster: ClusterId,
    board: File,
    /// Ends with the store's process; nothing ever comes on it.
    life: UnixStream,
    segments: RwLock<HashMap<u32, Arc<File>>>,
    /// Tells who watches the store's life that nothing is held of it any more.
    _held: oneshot::Sender<()>,
}

#[derive(Default)]
struct Windows {
    by_start: BTreeMap<(ChunkHandle, u32), Arc<Window>>,
    oldest: VecDeque<(ChunkHandle, u32)>,
}

/// Where a range of a chunk lies, as long as the board says so.
pub(crate) struct Window {
    pub store: Arc<Store>,
    pub handle: ChunkHandle,
    pub session: SessionId,
    pub stamp: u64,
    pub from: u32,
    pub len: u32,
    pub places: Vec<Place>,
}

enum Mark {
    /// It was read once.
    Once,
    /// It is not to be had before.
    Until(Instant),
}

/// What became of a read off a disk of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Here {
    /// So many bytes were read.
    Read(usize),
    /// Not all of it is in memory and its file open, and the thread was not to wait for that.
    Waits,
    /// It has to be read over the wire.
    Not,
}

/// What a thread that reads does about bytes that are not in memory, or whose file is not open here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uncached {
    /// It waits for the disk, and for the store's answer.
    Wait,
    /// It leaves them to another, since it has others to serve.
    Leave,
}

/// Why bytes that lie on this machine were not had.
enum Missed {
    /// They are not in memory, or their file is not open.
    Waits,
    /// They do not match, or their file cannot be read.
    Bad,
}

/// Reads all of a buffer's bytes.
fn read_file(file: &File, out: &mut [u8], at: u64, uncached: Uncached) -> Result<(), Missed> {
    match uncached {
        Uncached::Wait => file.read_exact_at(out, at).map_err(|_| Missed::Bad),
        // Less than all, and what the system cannot tell without waiting, is for somebody who waits.
        Uncached::Leave => {
            let len = out.len();
            match preadv2(file, &mut [IoSliceMut::new(out)], at, ReadWriteFlags::NOWAIT) {
                Ok(read) if read == len => Ok(()),
                _ => Err(Missed::Waits),
            }
        }
    }
}

/// The machine's boot-time clock, as stores use it.
fn now() -> Time {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Time(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// Asks for a descriptor; the connection stays.
fn ask(cluster: ClusterId, store: StoreId, wanted: Wanted) -> io::Result<(File, UnixStream)> {
    let mut stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(socket_name(cluster, store))?)?;
    // Anybody can listen under a name; what comes from another user is not a store's word.
    common_net::here::check_user(&stream)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.write_all(&wanted.encode())?;
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let mut answer = [0; ANSWER_BYTES];
    let got = recvmsg(&stream, &mut [IoSliceMut::new(&mut answer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if got.bytes != ANSWER_BYTES || answer != wanted.answer(common_net::time_namespace()) {
        return Err(io::Error::other("the answer does not fit"));
    }
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    let file = descriptor.map(File::from).ok_or_else(|| io::Error::other("no descriptor came"))?;
    Ok((file, stream))
}

impl Store {
    /// The second ends when nobody holds the first.
    fn connect(cluster: ClusterId, id: StoreId) -> io::Result<(Store, oneshot::Receiver<()>)> {
        let (board, life) = ask(cluster, id, Wanted::Board)?;
        life.set_nonblocking(true)?;
        let (_held, dropped) = oneshot::channel();
        Ok((Store { id, cluster, board, life, segments: RwLock::default(), _held }, dropped))
    }

    fn is_alive(&self) -> bool {
        matches!((&self.life).read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }

    /// A segment's file. The store is asked for one that is not open here, and may be slow to answer.
    fn segment(&self, number: u32, uncached: Uncached) -> Result<Arc<File>, Missed> {
        if let Some(file) = self.segments.read().expect("never poisoned").get(&number) {
            return Ok(file.clone());
        }
        if uncached == Uncached::Leave {
            return Err(Missed::Waits);
        }
        let asked = ask(self.cluster, self.id, Wanted::Segment(number));
        let file = Arc::new(asked.map_err(|_| Missed::Bad)?.0);
        let mut segments = self.segments.write().expect("never poisoned");
        if segments.len() >= SEGMENTS_MAX {
            segments.clear();
        }
        segments.insert(number, file.clone());
        Ok(file)
    }

    /// Whether the session held just now, and the slot has shown that stamp since.
    fn says(&self, window: &Window) -> bool {
        let mut head = [0; HEAD_BYTES];
        let mut slot = [0; SLOT_BYTES];
        let Ok(()) = self.board.read_exact_at(&mut head, 0) else { return false };
        let holds = |head: Head| head.session == window.session && now() < head.until;
        Head::decode(&head).is_some_and(holds)
            && self.board.read_exact_at(&mut slot, slot_at(slot_of(window.handle))).is_ok()
            && u64::from_le_bytes(slot) == window.stamp
    }
}

impl Window {
    fn covers(&self, from: u32, len: usize) -> bool {
        from >= self.from && u64::from(from) + len as u64 <= u64::from(self.from) + u64::from(self.len)
    }

    /// Whether a store may have said this.
    pub fn is_sound(&self) -> bool {
        let end = self.places.iter().try_fold(self.from, |at, place| {
            (place.is_sound() && place.offset >= at).then(|| place.offset + place.len)
        });
        end.is_some_and(|end| u64::from(end) <= u64::from(self.from) + u64::from(self.len))
    }

    /// Reads a range that it covers.
    fn read(&self, from: u32, out: &mut [u8], uncached: Uncached) -> Result<(), Missed> {
        let (mut at, end) = (from, from + out.len() as u32);
        let first = self.places.partition_point(|p| p.offset + p.len <= from);
        for place in self.places[first..].iter().take_while(|p| p.offset < end) {
            let (start, stop) = (place.offset.max(from), (place.offset + place.len).min(end));
            out[(at - from) as usize..(start - from) as usize].fill(0);
            let part = &mut out[(start - from) as usize..(stop - from) as usize];
            self.read_place(place, start, part, uncached)?;
            at = stop;
        }
        out[(at - from) as usize..].fill(0);
        Ok(())
    }

    fn read_place(&self, place: &Place, from: u32, out: &mut [u8], uncached: Uncached) -> Result<(), Missed> {
        let within = place.skip + (from - place.offset);
        let end = within + out.len() as u32;
        // Whole slices are verified.
        let (first, last) = (within / BLOCK, end.div_ceil(BLOCK));
        let (start, stop) = (first * BLOCK, (last * BLOCK).min(place.run));
        let crcs = &place.crcs[first as usize..last as usize];
        let file = self.store.segment(place.segment, uncached)?;
        let at = u64::from(place.block) * u64::from(BLOCK) + u64::from(start);
        let read = |out: &mut [u8]| {
            read_file(&file, out, at, uncached)?;
            first_mismatch(out, crcs).map_or(Ok(()), |_| Err(Missed::Bad))
        };
        if (start, stop) == (within, end) {
            return read(out);
        }
        let mut slices = vec![0; (stop - start) as usize];
        read(&mut slices)?;
        out.copy_from_slice(&slices[(within - start) as usize..(end - start) as usize]);
        Ok(())
    }
}

impl Local {
    /// Reads a range of a chunk off a store's disk, if its place is known; all of it, or nothing.
    pub fn read(&self, handle: ChunkHandle, offset: u64, out: &mut [u8], uncached: Uncached) -> Here {
        let (mut at, mut rest) = (offset, out);
        while !rest.is_empty() {
            let len =
                (u64::from(LOCATED_BYTES_MAX) - at % u64::from(LOCATED_BYTES_MAX)).min(rest.len() as u64);
            let (part, later) = rest.split_at_mut(len as usize);
            let Ok(from) = u32::try_from(at) else { return Here::Not };
            let Some(window) = self.window(handle, from, part.len()) else { return Here::Not };
            let read = window.read(from, part, uncached);
            if matches!(read, Err(Missed::Waits)) {
                return Here::Waits;
            }
            if !window.store.says(&window) {
                self.forget(&window);
                return Here::Not;
            }
            if !window.store.is_alive() {
                self.broken(&window.store);
                return Here::Not;
            }
            if read.is_err() {
                // The bytes have rotted, or the segment cannot be had: the store can tell, and mend it.
                self.forget(&window);
                self.not_now(handle, from);
                return Here::Not;
            }
            (at, rest) = (at + len, later);
        }
        self.bytes.fetch_add(at - offset, Ordering::Relaxed);
        Here::Read((at - offset) as usize)
    }

    /// Bytes that were read here so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether the place of a range is known. It may lie on both sides of a boundary.
    pub fn knows(&self, handle: ChunkHandle, offset: u64, len: usize) -> bool {
        let Ok(from) = u32::try_from(offset) else { return false };
        let here = (LOCATED_BYTES_MAX - from % LOCATED_BYTES_MAX).min(len as u32) as usize;
        let later = len - here;
        self.window(handle, from, here).is_some()
            && (later == 0 || self.knows(handle, offset + here as u64, later))
    }

    /// Who asks for the place of a range waits for whoever asks already.
    pub fn turn(&self, handle: ChunkHandle, from: u32) -> &tokio::sync::Mutex<()> {
        &self.turns[(handle.0 as usize + (from / LOCATED_BYTES_MAX) as usize) % TURNS]
    }

    fn window(&self, handle: ChunkHandle, from: u32, len: usize) -> Option<Arc<Window>> {
        let windows = self.windows.read().expect("never poisoned");
        let (_, window) = windows.by_start.range((handle, 0)..=(handle, from)).next_back()?;
        window.covers(from, len).then(|| window.clone())
    }

    /// From where on a store should be asked for the place of such a read, if it should.
    pub fn wants(&self, handle: ChunkHandle, offset: u64, len: usize) -> Option<u32> {
        let from = u32::try_from(offset).ok()?;
        let begin = from - from % LOCATED_BYTES_MAX;
        let mut marks = self.marks.lock().expect("never poisoned");
        if marks.len() >= MARKS_MAX {
            marks.clear();
        }
        match marks.get(&(handle, begin)) {
            Some(Mark::Until(time)) if Instant::now() < *time => return None,
            None if len < LARGE_BYTES => {
                marks.insert((handle, begin), Mark::Once);
                return None;
            }
            _ => {}
        }
        drop(marks);
        // What was told from there on did not reach so far.
        let known = self.windows.read().expect("never poisoned").by_start.contains_key(&(handle, begin));
        Some(if known { from - from % LARGE_BYTES as u32 } else { begin })
    }

    /// A store does not tell now.
    pub fn not_now(&self, handle: ChunkHandle, from: u32) {
        let mark = Mark::Until(Instant::now() + NOT_NOW);
        let begin = from - from % LOCATED_BYTES_MAX;
        self.marks.lock().expect("never poisoned").insert((handle, begin), mark);
    }

    /// A store has told.
    pub fn add(&self, window: Window) {
        let key = (window.handle, window.from);
        let store = window.store.clone();
        let mut windows = self.windows.write().expect("never poisoned");
        if windows.by_start.insert(key, Arc::new(window)).is_none() {
            windows.oldest.push_back(key);
        }
        // Some of the oldest may be gone already.
        while windows.oldest.len() > WINDOWS_MAX {
            let oldest = windows.oldest.pop_front().expect("there are many");
            windows.by_start.remove(&oldest);
        }
        drop(windows);
        // It may have died since it was asked, and who watched it is done.
        if !store.is_alive() {
            self.broken(&store);
        }
    }

    /// What was told of a chunk does not hold any more.
    fn forget(&self, window: &Window) {
        let mut windows = self.windows.write().expect("never poisoned");
        let of_chunk = windows.by_start.range((window.handle, 0)..=(window.handle, u32::MAX));
        let stale = of_chunk.filter(|(_, known)| known.stamp == window.stamp).map(|(key, _)| *key);
        for key in stale.collect::<Vec<_>>() {
            windows.by_start.remove(&key);
        }
        drop(windows);
        let begin = window.from - window.from % LOCATED_BYTES_MAX;
        // It may change all the time: the next read of it goes over the wire.
        self.marks.lock().expect("never poisoned").remove(&(window.handle, begin));
    }

    fn broken(&self, store: &Arc<Store>) {
        let mut stores = self.stores.lock().expect("never poisoned");
        if matches!(stores.get(&store.id), Some(Neighbour::Here(known)) if Arc::ptr_eq(known, store)) {
            stores.insert(store.id, Neighbour::Away(Instant::now() + BROKEN));
        }
        drop(stores);
        let mut windows = self.windows.write().expect("never poisoned");
        windows.by_start.retain(|_, window| !Arc::ptr_eq(&window.store, store));
    }

    /// Whether it is known that none of these stores is on this machine.
    pub fn are_away(&self, order: &[StoreId]) -> bool {
        let stores = self.stores.lock().expect("never poisoned");
        let away =
            |store| matches!(stores.get(store), Some(Neighbour::Away(until)) if Instant::now() < *until);
        order.iter().all(away)
    }

    /// The first of these stores that is on this machine. May wait for its answer. Within a runtime.
    pub fn neighbour(self: &Arc<Local>, cluster: ClusterId, order: &[StoreId]) -> Option<Arc<Store>> {
        order.iter().find_map(|store| self.store(cluster, *store))
    }

    fn store(self: &Arc<Local>, cluster: ClusterId, id: StoreId) -> Option<Arc<Store>> {
        let stores = || self.stores.lock().expect("never poisoned");
        {
            let mut stores = stores();
            match stores.get(&id) {
                Some(Neighbour::Here(store)) => return Some(store.clone()),
                Some(Neighbour::Away(until)) if Instant::now() < *until => return None,
                // One that stands still answers late: nobody else waits for it meanwhile.
                _ => drop(stores.insert(id, Neighbour::Away(Instant::now() + AWAY))),
            }
        }
        match Store::connect(cluster, id) {
            Ok((store, dropped)) => {
                let store = Arc::new(store);
                stores().insert(id, Neighbour::Here(store.clone()));
                self.watch(&store, dropped);
                Some(store)
            }
            Err(error) => {
                tracing::debug!(%error, store = %id, "not read on this machine");
                None
            }
        }
    }
}

impl Local {
    /// Closes what is open of a store when it ends, though nobody reads of it any more: its disk may be unmounted then.
    fn watch(self: &Arc<Local>, store: &Arc<Store>, dropped: oneshot::Receiver<()>) {
        let life = store.life.try_clone().and_then(tokio::net::UnixStream::from_std);
        let (local, store) = (Arc::downgrade(self), Arc::downgrade(store));
        tokio::spawn(async move {
            let ends = async {
                // Nothing ever comes on it. Without a descriptor to watch it with, the next read sees it.
                match life {
                    Ok(life) => drop(life.readable().await),
                    Err(error) => {
                        tracing::warn!(%error, "files of a store on this machine may stay open when it ends");
                        std::future::pending().await
                    }
                }
            };
            tokio::select! {
                () = ends => {}
                _ = dropped => return,
            }
            if let (Some(local), Some(store)) = (local.upgrade(), store.upgrade()) {
                local.broken(&store);
            }
        });
    }
}

impl Store {
    /// Which.
    pub fn id(&self) -> StoreId {
        self.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Advice, fadvise, fstatfs};

    /// A store that stands still answers nobody: who has others to serve does not ask it for a file.
    #[test]
    fn a_file_that_is_not_open_is_asked_for_only_by_who_waits() {
        let bytes = [7; BLOCK_BYTES];
        let place = Place {
            offset: 0,
            len: BLOCK,
            segment: 3,
            block: 0,
            skip: 0,
            run: BLOCK,
            crcs: common::checksum::slice_crcs(&bytes),
        };
        let path = std::env::temp_dir().join(format!("cairn-segment-{}", std::process::id()));
        std::fs::write(&path, bytes).expect("there is room");
        let open = || File::open(&path).expect("it is there");
        let (life, _server) = UnixStream::pair().expect("there are descriptors");
        let (id, cluster) = (StoreId(1), ClusterId(std::process::id().into()));
        let (_held, _) = oneshot::channel();
        let store = Arc::new(Store { id, cluster, board: open(), life, segments: RwLock::default(), _held });
        let (handle, session, stamp) = (ChunkHandle(1), SessionId(1), 0);
        let places = vec![place];
        let window = Window { store, handle, session, stamp, from: 0, len: BLOCK, places };
        let mut out = [0; BLOCK_BYTES];
        assert!(matches!(window.read(0, &mut out, Uncached::Leave), Err(Missed::Waits)));
        assert!(matches!(window.read(0, &mut out, Uncached::Wait), Err(Missed::Bad)), "nobody listens");
        window.store.segments.write().expect("never poisoned").insert(3, Arc::new(open()));
        std::fs::remove_file(&path).expect("it is there");
        assert!(window.read(0, &mut out, Uncached::Wait).is_ok() && out == bytes);
    }

    /// Of file systems whose files are always in memory.
    const TMPFS_MAGIC: u64 = 0x0102_1994;

    #[test]
    fn what_is_not_in_memory_is_left_by_who_does_not_wait_and_read_by_who_does() {
        let path = std::env::temp_dir().join(format!("cairn-uncached-{}", std::process::id()));
        let bytes: Vec<u8> = (0..BLOCK).map(|i| i as u8).collect();
        std::fs::write(&path, &bytes).expect("there is room");
        let file = File::open(&path).expect("it is there");
        std::fs::remove_file(&path).expect("it is there");
        let read = |uncached| {
            let mut out = vec![0; bytes.len()];
            read_file(&file, &mut out, 0, uncached).map(|()| out)
        };
        file.sync_all().expect("it can be written");
        fadvise(&file, 0, None, Advice::DontNeed).expect("it may be forgotten");
        let left = read(Uncached::Leave);
        if fstatfs(&file).expect("it is on some file system").f_type as u64 != TMPFS_MAGIC {
            assert!(matches!(left, Err(Missed::Waits)));
        }
        assert!(read(Uncached::Wait).is_ok_and(|out| out == bytes));
        assert!(read(Uncached::Leave).is_ok_and(|out| out == bytes));
        let mut more = vec![0; bytes.len() + 1];
        assert!(matches!(read_file(&file, &mut more, 0, Uncached::Wait), Err(Missed::Bad)));
    }
}
