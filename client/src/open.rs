//! A file that is open for reading and writing at any offset. Writes are gathered, and on their way when they
//! are large enough; `sync` waits until they are durable, and tells of what failed.

use crate::clones::may_clone;
use crate::file::{Appender, WRITES_UNDER_WAY, are_placed, read_here, read_spans};
use crate::local::{Here, Uncached};
use crate::reports::nanos;
use crate::{Client, Error, RETRY, Result, Seen, begin};
use bytes::{Bytes, BytesMut};
use client_core::{Layout, Window};
use common::limits::{INLINE_BYTES_MAX, WRITE_BYTES_MAX};
use common::wire::ChunkConfig;
use common::wire::client_master::{ChunkInfo, MasterReply, Mutation, Report};
use common::{ChunkHandle, Code, FileId, Refusal};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Semaphore, oneshot};

/// Bytes that are gathered at most, of all files of a client; what comes then is sent as it comes.
const GATHERED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes that are under way at most, of all files of a client; then writers wait.
const UNDER_WAY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// They are counted in units of so many.
const UNIT_BYTES: usize = 4096;
/// Servers that could take a chunk are looked for again after so long.
const NO_SERVERS: Duration = Duration::from_millis(100);

/// What the open files of a client may hold of its memory, together.
pub(crate) struct Budget {
    gathered: AtomicUsize,
    under_way: Arc<Semaphore>,
}

impl Default for Budget {
    fn default() -> Budget {
        let under_way = Arc::new(Semaphore::new(UNDER_WAY_BYTES_MAX / UNIT_BYTES));
        Budget { gathered: AtomicUsize::new(0), under_way }
    }
}

/// A file that is open, for all who share it. What one writes the others read.
pub struct OpenFile {
    client: Client,
    file: FileId,
    chunk_bytes: u64,
    /// Bytes were written through it.
    has_bytes: AtomicBool,
    /// What is gathered shall not be sent.
    abandoned: AtomicBool,
    state: Mutex<State>,
}

struct State {
    /// Changes whenever what is known of the file may have changed.
    moment: Moment,
    /// Where the bytes are, as far as is known.
    layout: Option<Arc<Layout>>,
    /// Bytes that are not on their way yet, and their offset.
    gathered: BytesMut,
    at: u64,
    /// Writes that are under way, and where.
    under_way: FuturesUnordered<oneshot::Receiver<Done>>,
    ranges: Vec<Range<u64>>,
    window: Window,
    /// What failed since the last `sync`.
    failed: Option<Error>,
    /// Written to since the masters were told.
    written: Option<SystemTime>,
    /// But its time has been set since.
    time_set: bool,
    /// So were chunks that are sealed, of which nothing but the report tells others that they have changed.
    overwrote: bool,
    appender: Option<Appender>,
}

/// What is known of an open file is as old as this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment(u64);

/// What became of bytes that were to be gathered at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gathered {
    /// They are.
    Taken,
    /// They are, and no more fit: `send_gathered` is due.
    Full,
    /// They must be written by `write`.
    Not,
}

struct Done {
    took: Duration,
    range: Range<u64>,
    data: Bytes,
    outcome: Result<ChunkConfig>,
}

/// The chunk is not what it was when the write was planned: another one sealed, cut or deleted it.
pub(crate) fn is_elsewhere(error: &Error) -> bool {
    let moved = [Code::Sealed, Code::ChunkFull, Code::BeyondEnd, Code::NoSuchChunk, Code::WrongChunkIndex];
    matches!(error, Error::Refused(r) if moved.contains(&r.code))
}

impl OpenFile {
    /// Opens a file that was just seen.
    pub fn new(client: &Client, seen: &Seen) -> OpenFile {
        let layout = seen.layout.clone().map(Arc::new);
        OpenFile {
            client: client.clone(),
            file: seen.attr.file,
            chunk_bytes: seen.attr.chunk_bytes,
            has_bytes: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            state: Mutex::new(State::new(layout)),
        }
    }

    /// Whether anything was written through it.
    pub fn has_bytes(&self) -> bool {
        self.has_bytes.load(Ordering::Relaxed)
    }

    /// Whether all that was written is durable, and the masters know of it or soon will; if in doubt, not.
    pub fn is_clean(&self) -> bool {
        let Ok(state) = self.state.try_lock() else { return false };
        let at_rest = state.gathered.is_empty() && state.ranges.is_empty();
        at_rest && state.written.is_none() && state.failed.is_none()
    }

    /// Which file.
    pub fn file(&self) -> FileId {
        self.file
    }

    /// How long it is, if that is known here better than to the masters; and when it was last written to, if nobody has
    /// set its time since.
    pub async fn known(&self) -> Result<Option<(u64, Option<SystemTime>)>> {
        let mut state = self.state.lock().await;
        if state.written.is_none() {
            return Ok(None);
        }
        let length = self.layout(&mut state).await?.len();
        Ok(Some((length.max(state.gathered_to()), state.time_written())))
    }

    /// Now. What is seen of the file later is newer than what is known of it, as long as this does not change.
    pub async fn moment(&self) -> Moment {
        self.state.lock().await.moment
    }

    /// Somebody else may have changed it: it is as it was seen after that moment, if nothing was done here since;
    /// or is asked for anew.
    pub async fn revalidate(&self, seen: Option<(Moment, Seen)>) {
        let mut state = self.state.lock().await;
        if state.gathered.is_empty() && state.ranges.is_empty() {
            let seen = seen.filter(|(since, _)| *since == state.moment);
            state.layout = seen.and_then(|(_, seen)| seen.layout).map(Arc::new);
            state.moves_on();
        }
    }

    /// Reads a range, in parts; shorter at the end of the file.
    pub async fn read(&self, offset: u64, len: u64) -> Result<Vec<Bytes>> {
        let layout = {
            let mut state = self.state.lock().await;
            let wanted = offset..offset.saturating_add(len);
            let layout = self.layout(&mut state).await?;
            if state.overlaps(&wanted) || wanted.end > layout.len() && state.gathered_to() > layout.len() {
                self.drain(&mut state).await;
            } else if offset >= layout.len() {
                // Somebody else may have made it longer.
                state.layout = None;
            }
            self.layout(&mut state).await?
        };
        match read_spans(&self.client, &layout, offset, len).await {
            Err(e) if is_elsewhere(&e) => {
                let mut state = self.state.lock().await;
                state.layout = None;
                let layout = self.layout(&mut state).await?;
                drop(state);
                read_spans(&self.client, &layout, offset, len).await
            }
            read => read,
        }
    }

    /// Reads a range off the disk of a store on this machine, on the calling thread, if nothing but the disk has to be
    /// waited for: how many bytes there are; fewer than asked only at the end of the file.
    pub fn try_read(&self, offset: u64, out: &mut [u8], uncached: Uncached) -> Here {
        let layout = || {
            let state = self.state.try_lock().ok()?;
            let layout = state.layout.clone()?;
            let wanted = offset..offset.saturating_add(out.len() as u64);
            let grows = wanted.end > layout.len() && state.gathered_to() > layout.len();
            (!grows && offset < layout.len() && !state.overlaps(&wanted)).then_some(layout)
        };
        let Some(layout) = layout() else { return Here::Not };
        let len = (layout.len() - offset).min(out.len() as u64) as usize;
        read_here(&self.client, &layout, offset, &mut out[..len], uncached)
    }

    /// Whether it is known where a range lies on disks of this machine, so that it can be read there; who can tell is
    /// asked for it.
    pub async fn is_placed(&self, offset: u64, len: u64) -> bool {
        let layout = self.layout(&mut *self.state.lock().await).await;
        match layout {
            Ok(layout) if offset < layout.len() => {
                let len = len.min(layout.len() - offset);
                are_placed(&self.client, &layout, offset, len).await
            }
            _ => false,
        }
    }

    /// Takes what is written behind the last write, if that can be done at once and without a copy of its own.
    pub fn try_gather(&self, offset: u64, data: &[u8]) -> Gathered {
        let Ok(mut state) = self.state.try_lock() else { return Gathered::Not };
        if state.gathered.is_empty() {
            state.at = offset;
        }
        let (at, len) = (state.at, state.gathered.len());
        let room = (WRITE_BYTES_MAX as u64 - at % WRITE_BYTES_MAX as u64) as usize - len;
        let all = &self.client.inner.budget.gathered;
        let full = all.load(Ordering::Relaxed) + data.len() > GATHERED_BYTES_MAX;
        if full || data.len() > room || offset != at + len as u64 {
            return Gathered::Not;
        }
        self.is_written(&mut state);
        if len == 0 {
            state.gathered.reserve(data.len().clamp(64 * 1024, WRITE_BYTES_MAX));
        }
        state.gathered.extend_from_slice(data);
        all.fetch_add(data.len(), Ordering::Relaxed);
        if data.len() == room { Gathered::Full } else { Gathered::Taken }
    }

    /// Sends what is gathered on its way. Returns when there was room for it. `sync` tells of what fails, too.
    pub async fn send_gathered(&self) -> Result<()> {
        let mut state = self.state.lock().await;
        self.send(&mut state).await
    }

    /// Writes at an offset. Returns when the bytes are taken, not when they are durable.
    pub async fn write(&self, offset: u64, mut data: &[u8]) -> Result<()> {
        let mut state = self.state.lock().await;
        self.is_written(&mut state);
        let mut at = offset;
        while !data.is_empty() {
            if !state.gathered.is_empty() && at != state.at + state.gathered.len() as u64 {
                self.send(&mut state).await?;
            }
            if state.gathered.is_empty() {
                state.at = at;
                state.gathered.reserve(data.len().clamp(64 * 1024, WRITE_BYTES_MAX));
            }
            // Writes end where those of a stream do, so that each lies in one chunk.
            let room =
                (WRITE_BYTES_MAX as u64 - state.at % WRITE_BYTES_MAX as u64) as usize - state.gathered.len();
            let (now, later) = data.split_at(data.len().min(room));
            state.gathered.extend_from_slice(now);
            let gathered = &self.client.inner.budget.gathered;
            let all = gathered.fetch_add(now.len(), Ordering::Relaxed) + now.len();
            (data, at) = (later, at + now.len() as u64);
            if now.len() == room || all > GATHERED_BYTES_MAX {
                self.send(&mut state).await?;
            }
        }
        Ok(())
    }

    /// Appends a record, wherever the end is by then; durable on return. Gives its offset.
    pub async fn append(&self, record: &[u8]) -> Result<u64> {
        let mut state = self.state.lock().await;
        self.drain(&mut state).await;
        self.is_written(&mut state);
        let deadline = self.client.deadline();
        let (appender, offset) = loop {
            state.layout = None;
            let mut appender = match state.appender.take() {
                Some(appender) => appender,
                None => {
                    let last = self.layout(&mut state).await?.chunks().last().cloned();
                    Appender::at_end(self.client.clone(), self.file, last)
                }
            };
            match appender.append(record).await {
                // Somebody else cut the file.
                Err(e) if is_elsewhere(&e) && Instant::now() < deadline => {}
                done => break (appender, done?),
            }
        };
        state.appender = Some(appender);
        state.layout = None;
        state.moves_on();
        Ok(offset)
    }

    /// Waits until all that was written is durable.
    ///
    /// # Errors
    /// Of any write since the last time; it is told once.
    pub async fn sync(&self) -> Result<()> {
        let mut state = self.state.lock().await;
        self.drain(&mut state).await;
        state.failed.take().map_or(Ok(()), Err)
    }

    fn is_written(&self, state: &mut State) {
        state.moves_on();
        (state.written, state.time_set) = (Some(SystemTime::now()), false);
        self.has_bytes.store(true, Ordering::Relaxed);
    }

    /// The lock under which bytes were taken is lost: those that are not on their way yet are not sent any more. `sync`
    /// tells of it, if there are any.
    pub fn abandon(&self) {
        // Whoever has the file now sends nothing afterwards.
        let is_there = self.state.try_lock().map_or(true, |state| !state.gathered.is_empty());
        self.abandoned.store(is_there, Ordering::Release);
    }

    /// Its time is about to be set: what was written before does not change that any more.
    pub async fn forget_time(&self) {
        self.state.lock().await.time_set = true;
        self.client.forget_mtime(self.file).await;
    }

    /// Tells the masters what was written, so that listings show it: a little later, if others who open the
    /// file see the bytes all the same.
    pub async fn report(&self) -> Result<()> {
        let mut state = self.state.lock().await;
        self.drain(&mut state).await;
        if state.written.is_none() {
            return Ok(());
        }
        let layout = self.layout(&mut state).await?;
        let open = layout.chunks().last().filter(|c| c.config.sealed.is_none());
        let open = open.map(|chunk| (chunk.config.handle, chunk.length));
        let mtime_ns = state.time_written().map(nanos);
        // The file stays locked: nobody finds it clean, or its time unknown, before that is so.
        self.client.report_later(Report { file: self.file, open, mtime_ns }).await;
        state.written = None;
        if std::mem::take(&mut state.overwrote) { self.client.tell_reports().await } else { Ok(()) }
    }

    /// Cuts the file, or extends it with zeros: what it is then. One that is emptied, and shall have bytes `again`, gets room for
    /// them.
    pub async fn truncate(&self, length: u64, again: bool) -> Result<Seen> {
        let mut state = self.state.lock().await;
        self.drain(&mut state).await;
        let layout = state.layout.take();
        state.appender = None;
        (state.written, state.overwrote) = (None, false);
        self.client.forget_mtime(self.file).await;
        state.moves_on();
        // It mostly has what it had when it was opened, a moment ago.
        let small = layout.filter(|layout| length == 0 && layout.chunks().len() <= 1);
        let emptied = match small {
            Some(layout) => self.client.empty(self.file, layout.chunks(), again).await?,
            None => None,
        };
        let seen = match emptied {
            Some(seen) => seen,
            None => self.client.truncate(&common::wire::path::at(self.file), length).await?,
        };
        state.layout = seen.layout.clone().map(Arc::new);
        state.moves_on();
        Ok(seen)
    }

    /// The first offset from this one on at which there are bytes, or a hole; the end of the file is one. Nothing
    /// beyond the end, or if there are no more bytes.
    pub async fn seek(&self, from: u64, data: bool) -> Result<Option<u64>> {
        let mut state = self.state.lock().await;
        self.drain(&mut state).await;
        let layout = self.layout(&mut state).await?;
        if from >= layout.len() {
            return Ok(None);
        }
        let rest = layout.chunks().iter().filter(|c| c.start + c.length > from);
        let mut found = rest.filter(|c| (c.config.handle != ChunkHandle::HOLE) == data);
        let end = (!data).then_some(layout.len());
        Ok(found.next().map(|c| c.start.max(from)).or(end))
    }

    /// Takes the bytes of another file without copying them, as many whole chunks of the range as that is possible for,
    /// from its beginning on: so many bytes. They go to an offset behind which this file has none.
    pub async fn clone_range(&self, from: &OpenFile, range: Range<u64>, at: u64) -> Result<u64> {
        if from.file == self.file {
            return Ok(0);
        }
        let source = {
            let mut state = from.state.lock().await;
            from.drain(&mut state).await;
            from.layout(&mut state).await?
        };
        let rest = source.chunks().iter().skip_while(|c| c.start < range.start || c.length == 0);
        let fit = rest.take_while(|c| c.start + c.length <= range.end && may_clone(c));
        let chunks: Vec<ChunkInfo> = fit.cloned().collect();
        if chunks.first().is_none_or(|first| first.start != range.start) {
            return Ok(0);
        }
        let mut state = self.state.lock().await;
        self.drain(&mut state).await;
        if !self.ends(&mut state, at).await? {
            return Ok(0);
        }
        self.is_written(&mut state);
        state.appender = None;
        let mut done = 0;
        for chunk in chunks {
            let at = at + done;
            if chunk.config.handle == ChunkHandle::HOLE {
                if !self.ends(&mut state, at + chunk.length).await? {
                    break;
                }
            } else {
                let cloned = self.client.clone_chunk(&chunk, source.snapshot(), self.file, at).await;
                // What became of it is not known if it failed, and an empty chunk before it is gone.
                state.layout = None;
                if cloned?.is_none() {
                    break;
                }
            }
            done += chunk.length;
        }
        Ok(done)
    }

    /// Whether the file ends there, with nothing that still grows; it is made so if it ends before.
    async fn ends(&self, state: &mut State, at: u64) -> Result<bool> {
        let deadline = self.client.deadline();
        loop {
            let layout = self.layout(state).await?;
            if layout.len() > at {
                return Ok(false);
            }
            let done = if let Some(chunk) = layout.chunks().last().filter(|c| c.config.sealed.is_none()) {
                self.client.seal(chunk.config.handle).await.map(drop)
            } else if layout.len() == at {
                return Ok(true);
            } else {
                let (file, index) = (self.file, layout.chunks().len() as u32);
                let hole = Mutation::AddHole { file, index, length: at - layout.len() };
                self.client.mutate(hole).await.map(drop)
            };
            match done {
                // If somebody else was quicker: look again.
                Err(e) if !is_elsewhere(&e) || Instant::now() >= deadline => return Err(e),
                _ => state.layout = None,
            }
        }
    }

    async fn layout(&self, state: &mut State) -> Result<Arc<Layout>> {
        if let Some(layout) = &state.layout {
            return Ok(layout.clone());
        }
        let mut layout = self.client.layout(self.file).await?;
        // What is under way is not committed yet, and part of the file all the same.
        let end = state.ranges.iter().map(|r| r.end).max().unwrap_or(0);
        // If somebody else has cut it, the last chunk is sealed, and what is under way behind it is refused.
        let open = layout.chunks().last().filter(|c| c.config.sealed.is_none() && end > layout.len());
        if let Some((start, length)) = open.map(|c| (c.start, c.length)) {
            layout.set_last_length((end - start).min(self.chunk_bytes).max(length));
        }
        let layout = Arc::new(layout);
        state.layout = Some(layout.clone());
        Ok(layout)
    }

    /// Waits for everything that is under way. What failed is remembered.
    async fn drain(&self, state: &mut State) {
        // It is remembered.
        let _ = self.send(state).await;
        while !state.ranges.is_empty() {
            self.one_done(state).await;
        }
    }

    /// Sends what is gathered. What fails is remembered too: the bytes may be of writes that were taken long ago.
    async fn send(&self, state: &mut State) -> Result<()> {
        let data = state.gathered.split().freeze();
        self.client.inner.budget.gathered.fetch_sub(data.len(), Ordering::Relaxed);
        let at = state.at;
        let sent = match self.abandoned.swap(false, Ordering::AcqRel) && !data.is_empty() {
            true => Err(Refusal::new(Code::ClientEnded, "locks were lost before this was written").into()),
            false => self.send_bytes(state, at, data).await,
        };
        if let Err(e) = &sent {
            state.failed.get_or_insert_with(|| e.clone());
        }
        sent
    }

    /// Sends bytes, each part to the chunk where it belongs, which is made if need be.
    async fn send_bytes(&self, state: &mut State, mut at: u64, mut data: Bytes) -> Result<()> {
        let deadline = self.client.deadline();
        while !data.is_empty() {
            // Before its place is looked for: what is done meanwhile may change that.
            let most = at..at + data.len().min(WRITE_BYTES_MAX) as u64;
            while state.window.is_full(state.ranges.len()) || state.ranges.iter().any(|r| overlap(r, &most)) {
                self.one_done(state).await;
            }
            let place = match self.place(state, at).await {
                // Somebody else has cut it, or written to it: it is looked at anew.
                Err(e) if is_elsewhere(&e) && Instant::now() < deadline => {
                    state.layout = None;
                    tokio::time::sleep(RETRY.0).await;
                    None
                }
                place => place?,
            };
            let Some((config, within, room)) = place else { continue };
            let part = data.split_to(data.len().min(room as usize).min(WRITE_BYTES_MAX));
            let range = at..at + part.len() as u64;
            at = range.end;
            if let Some(layout) = state.layout.as_mut().filter(|layout| layout.len() < range.end) {
                let layout = Arc::make_mut(layout);
                let start = layout.chunks().last().expect("it has a chunk to write to").start;
                layout.set_last_length(range.end - start);
            }
            let units = part.len().div_ceil(UNIT_BYTES) as u32;
            let room = self.client.inner.budget.under_way.clone().acquire_many_owned(units).await;
            let room = room.expect("it is never closed");
            state.ranges.push(range.clone());
            let (client, mut config) = (self.client.clone(), config);
            let (tell, done) = oneshot::channel();
            state.under_way.push(done);
            let is_small = part.len() <= INLINE_BYTES_MAX;
            let write = async move {
                let began = Instant::now();
                let written = client.write_chunk(&mut config, Some(within), part.clone()).await;
                let took = began.elapsed();
                drop(room);
                // Only what failed is needed again.
                let data = if written.is_ok() { Bytes::new() } else { part };
                // Nobody waits for it if the file was closed without a sync.
                let _ = tell.send(Done { took, range, data, outcome: written.map(|_| config) });
            };
            // A large one takes time to be sent: that is for another thread.
            let runtime = Handle::current();
            if is_small { begin(&runtime, write) } else { drop(runtime.spawn(write)) }
        }
        Ok(())
    }

    /// Makes room for bytes. Where no server can take a chunk now, some may be back soon.
    async fn make_room(&self, mutation: Mutation) -> Result<MasterReply> {
        let deadline = self.client.deadline();
        loop {
            match self.client.mutate(mutation.clone()).await {
                Err(Error::Refused(r))
                    if r.code == Code::NoServers && Instant::now() + NO_SERVERS < deadline =>
                {
                    tokio::time::sleep(NO_SERVERS).await;
                }
                done => return done,
            }
        }
    }

    /// The chunk for the bytes at an offset, the offset there, and how many fit. Nothing, if the file had to
    /// be changed first. Refused, if the file is not what it was thought to be.
    async fn place(&self, state: &mut State, at: u64) -> Result<Option<(ChunkConfig, u64, u64)>> {
        let layout = self.layout(state).await?;
        let near = || self.client.inner.config.rack.clone();
        let last = layout.chunks().last();
        let open = last.filter(|c| c.config.sealed.is_none() && at >= c.start);
        if let Some(chunk) = open.filter(|c| at - c.start < self.chunk_bytes) {
            let within = at - chunk.start;
            return Ok(Some((chunk.config.clone(), within, self.chunk_bytes - within)));
        }
        if at < layout.len() {
            state.overwrote = true;
            let index = layout.chunks().partition_point(|c| c.start + c.length <= at);
            let chunk = &layout.chunks()[index];
            let within = at - chunk.start;
            if chunk.config.handle != ChunkHandle::HOLE {
                return Ok(Some((chunk.config.clone(), within, chunk.length - within)));
            }
            let fill = Mutation::FillHole { file: self.file, offset: at, near: near() };
            self.make_room(fill).await?;
        } else if let Some(chunk) = open {
            while !state.ranges.is_empty() {
                self.one_done(state).await;
            }
            self.client.seal(chunk.config.handle).await?;
        } else {
            let (file, index) = (self.file, layout.chunks().len() as u32);
            let mutation = match at - layout.len() {
                0 => Mutation::AddChunk { file, index, declare: None, near: near() },
                gap => Mutation::AddHole { file, index, length: gap },
            };
            let MasterReply::Chunk(chunk) = self.make_room(mutation).await? else {
                return Err(Error::unexpected("add a chunk"));
            };
            // Else it is what the file has there since somebody else has filled a hole of it.
            if chunk.start == layout.len() {
                Arc::make_mut(state.layout.as_mut().expect("just asked for")).push(chunk);
                return Ok(None);
            }
        }
        state.layout = None;
        Ok(None)
    }

    /// Waits for one write. If its chunk was not there any more, it goes where the bytes belong now.
    async fn one_done(&self, state: &mut State) {
        let done = state.under_way.next().await.expect("each range has its write");
        let Done { took, range, data, outcome } = done.expect("a write that has begun tells how it ended");
        let known = state.ranges.iter().position(|r| *r == range);
        state.ranges.swap_remove(known.expect("it was under way"));
        state.window.done(took.as_millis() as u64);
        state.moves_on();
        match outcome {
            Ok(config) => {
                if let Some(layout) = &mut state.layout {
                    Arc::make_mut(layout).set_config(config);
                }
            }
            Err(e) if is_elsewhere(&e) => {
                state.layout = None;
                if let Err(e) = Box::pin(self.send_bytes(state, range.start, data)).await {
                    state.failed.get_or_insert(e);
                }
            }
            Err(e) => {
                // The file may be shorter than it would be.
                state.layout = None;
                state.failed.get_or_insert(e);
            }
        }
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let left = self.state.get_mut().gathered.len();
        self.client.inner.budget.gathered.fetch_sub(left, Ordering::Relaxed);
    }
}

impl State {
    fn new(layout: Option<Arc<Layout>>) -> State {
        State {
            moment: Moment::default(),
            layout,
            gathered: BytesMut::new(),
            at: 0,
            under_way: FuturesUnordered::new(),
            ranges: vec![],
            window: Window::new(WRITES_UNDER_WAY),
            failed: None,
            written: None,
            time_set: false,
            overwrote: false,
            appender: None,
        }
    }

    fn moves_on(&mut self) {
        self.moment.0 += 1;
    }

    /// When it was last written to, unless its time was set since.
    fn time_written(&self) -> Option<SystemTime> {
        self.written.filter(|_| !self.time_set)
    }

    /// Where the gathered bytes end; 0 without any.
    fn gathered_to(&self) -> u64 {
        if self.gathered.is_empty() { 0 } else { self.at + self.gathered.len() as u64 }
    }

    fn overlaps(&self, range: &Range<u64>) -> bool {
        let gathered = self.at..self.at + self.gathered.len() as u64;
        overlap(&gathered, range) || self.ranges.iter().any(|r| overlap(r, range))
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start.max(b.start) < a.end.min(b.end)
}
