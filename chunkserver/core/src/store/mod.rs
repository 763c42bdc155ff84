//! The chunk store: log, extents, checksums. Emits disk operations; never performs one.

pub mod alloc;
pub mod checkpoint;
pub mod crc;
pub mod format;
pub mod index;
pub mod log;
pub mod read;
pub mod recover;

use crate::io::{DiskDone, DiskKind, DiskOp, FileRef, Outbox, Output, Token};
use crate::state::ChunkState;
use alloc::{Alloc, Blocks};
use bytes::Bytes;
use common::Mutant;
use common::limits::{
    BLOCK_BYTES, EXTENT_SEGMENT_BYTES, HORIZON_MS, LOG_SEGMENT_BYTES, LOG_SEGMENTS, PROMISED_BYTES_MAX,
    RELEASE_MS, SCRUB_PERIOD_S,
};
use common::wire::chunk_chunk::{CopyId, LogPoint};
use common::wire::chunk_master::Order;
use common::wire::client_chunk::Place;
use common::{ChunkHandle, Code, Epoch, RequestId, Serial, Span, Time};
use crc::CrcTable;
use format::{PAGE_PAIR_BYTES, Page, Record};
use index::{Extent, Home};
use log::Log;
use read::{Part, ReadJob, ReadResult, blocks_of};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// The next segment of extents is made when less than one of so many parts of one is free.
const AHEAD_PARTS: u64 = 2;
/// Without room for one it is tried again after this: others may have given some back.
const ROOM_AGAIN: Span = Span::from_ms(5000);

/// Numbers of questions and reads that one life of a store's process can give out, in bits: four months
/// of 100,000 a second. What is left counts 16 million lives.
const JOB_BITS: u32 = 40;

/// What a store is made with. All but `capacity` and the scrub's period are fixed at creation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Low bits of the directory's uuid: stamped on every group.
    pub tag: u64,
    /// Which start of the store this is.
    pub incarnation: u64,
    /// Bytes of a segment of the log.
    pub log_segment_bytes: u64,
    /// Slots of the log's ring.
    pub log_segments: u64,
    /// Bytes of a segment of extents.
    pub extent_segment_bytes: u64,
    /// Segments of extents at most.
    pub segments_max: u32,
    /// Everything is read and verified once in so many seconds.
    pub scrub_period_s: u64,
    /// Chunks that were named so long ago, in milliseconds, are made only if the masters know them.
    pub horizon_ms: u64,
    /// Segments in which nothing lies give their room back to the host when there has been more than enough without them for
    /// so long, in milliseconds.
    pub release_ms: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        StoreConfig {
            tag: 0,
            incarnation: 1,
            log_segment_bytes: LOG_SEGMENT_BYTES,
            log_segments: LOG_SEGMENTS,
            extent_segment_bytes: EXTENT_SEGMENT_BYTES,
            segments_max: u32::MAX,
            scrub_period_s: SCRUB_PERIOD_S,
            horizon_ms: HORIZON_MS,
            release_ms: RELEASE_MS,
        }
    }
}

/// What a record's durability is told by.
#[derive(Clone, Debug, PartialEq)]
pub enum Ticket {
    /// Nobody waits.
    None,
    /// A write: its record.
    Write(ChunkHandle, LogPoint),
    /// A configuration.
    Config(ChunkHandle, Epoch),
    /// A cut, under this epoch.
    Cut(ChunkHandle, Epoch),
    /// An order of the masters.
    Order(Order),
    /// A commit point: blocks that it frees.
    Free(Vec<Blocks>),
    /// A fork of a chunk, under this epoch of it.
    Forked {
        /// The chunk.
        of: ChunkHandle,
        /// Its epoch.
        epoch: Epoch,
        /// The fork.
        to: ChunkHandle,
    },
    /// A whole copy, and the blocks that it frees.
    Installed(CopyId, Vec<Blocks>),
}

/// What the store has to tell the node.
#[derive(Debug)]
pub enum Event {
    /// A group with writes is durable, so long after it was given to the disk; whether data of extents
    /// was made durable with it.
    Flushed(Span, bool),
    /// A record is durable.
    Durable(Ticket),
    /// Data of a piece is written (durable with the next flush).
    Written(PieceTicket),
    /// A read is done.
    Read(u64, ReadResult),
    /// Something for the checkpoint.
    Checkpoint(CheckpointDone),
}

/// What bytes are to the store that is asked to take them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// They can be refused.
    New,
    /// A primary has admitted them already, or they are here and change their place: they get the
    /// last room of a full disk.
    Promised,
}

/// Whose data was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceTicket {
    /// A pushed piece.
    Held(RequestId, u16),
    /// A fetched piece.
    Fetched(ChunkHandle, Serial, u16, Blocks),
    /// A piece of a copy.
    Copied(CopyId, Blocks),
    /// Bytes that a checkpoint moves home.
    Homed(u64),
    /// Scattered bytes that it gathers.
    Gathered,
}

/// A step of the checkpoint is done.
#[derive(Debug)]
pub enum CheckpointDone {
    /// A page of checksums was read.
    PageRead(crc::PageKey, Option<Page>),
    /// A page was written, or a block of the checkpoint.
    Wrote,
    /// A sync is done.
    Synced,
}

#[derive(Clone, Debug)]
enum Op {
    /// A part of making the log's group under way durable: the group itself, or a sync of extents that it names.
    Group,
    Piece(PieceTicket),
    ReadData {
        job: u64,
        part: usize,
    },
    ReadPage {
        key: crc::PageKey,
    },
    Allocate,
    Release,
    CheckpointPageRead(crc::PageKey),
    CheckpointWrite,
    CheckpointSync,
}

/// Blocks that nothing refers to, but that a read under way may still touch.
#[derive(Clone, Debug)]
struct Limbo {
    blocks: Vec<Blocks>,
    /// Reads below this job must be done.
    reads_below: u64,
}

/// Pages that reads wait for.
type PageWaiters = BTreeMap<crc::PageKey, Vec<u64>>;

/// The store.
#[derive(Clone, Debug)]
pub struct Store {
    config: StoreConfig,
    /// The log.
    pub log: Log<Ticket>,
    /// Free blocks.
    pub alloc: Alloc,
    /// Checksums.
    pub crcs: CrcTable,
    next_token: Token,
    ops: BTreeMap<Token, (FileRef, Op)>,
    next_job: u64,
    reads: BTreeMap<u64, ReadJob>,
    page_waiters: PageWaiters,
    /// Pages that were written after their read began: it is read again.
    outdated: BTreeSet<crc::PageKey>,
    limbo: VecDeque<Limbo>,
    /// Segments of extents with completed writes that no completed sync covers: the first token that was not
    /// given when the last of them was done.
    loose: BTreeMap<u32, Token>,
    /// Operations of the group under way that are not done.
    group_ops: usize,
    /// Since when a group with writes is under way to the disk.
    flushing: Option<(Time, bool)>,
    /// A segment of extents takes room, or gives it back.
    resizing: bool,
    /// Since when there has been more than enough room.
    spare: Option<Time>,
    /// Since when there is no room for one.
    full: Option<Time>,
    failed: Option<String>,
}

impl Store {
    /// A store as recovery left it.
    pub fn new(config: StoreConfig, log: Log<Ticket>, alloc: Alloc, crcs: CrcTable) -> Store {
        let next_job = config.incarnation << JOB_BITS;
        Store {
            config,
            log,
            alloc,
            crcs,
            next_token: 1,
            ops: BTreeMap::new(),
            next_job,
            reads: BTreeMap::new(),
            page_waiters: BTreeMap::new(),
            outdated: BTreeSet::new(),
            limbo: VecDeque::new(),
            loose: BTreeMap::new(),
            group_ops: 0,
            flushing: None,
            resizing: false,
            spare: None,
            full: None,
            failed: None,
        }
    }

    /// Its configuration.
    pub fn config(&self) -> &StoreConfig {
        &self.config
    }

    /// Why the store is out of service, if it is.
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Whether it can take no more segments.
    pub fn is_full(&self) -> bool {
        self.full.is_some() || self.alloc.present() >= self.config.segments_max
    }

    /// Appends a record to the log.
    pub fn record(&mut self, record: &Record, ticket: Ticket) {
        self.log.push(record, ticket);
    }

    /// Queues a record that nobody waits for. On a full disk somebody may wait for the blocks that it frees.
    pub fn record_later(&mut self, record: &Record, ticket: Ticket, now: Time) {
        match self.is_full() {
            true => self.log.push(record, ticket),
            false => self.log.push_later(record, ticket, now),
        }
    }

    /// Free bytes, but for those that only what was promised may have. They are kept back from the first
    /// segment on: when the disk is found to be full it is too late.
    fn free_for_new(&self) -> u64 {
        self.alloc.free_bytes().saturating_sub(self.kept())
    }

    fn kept(&self) -> u64 {
        PROMISED_BYTES_MAX.min(self.config.extent_segment_bytes / 4)
    }

    /// Whether there is room for so many bytes of this sort.
    fn fits(&self, bytes: u32, sort: Sort) -> bool {
        let free = if sort == Sort::New { self.free_for_new() } else { self.alloc.free_bytes() };
        free >= bytes as u64
    }

    /// Whether a full disk has room left for so many bytes of this sort.
    pub fn has_room(&self, bytes: u32, sort: Sort) -> Result<(), Code> {
        if self.is_full() && !self.fits(bytes, sort) { Err(Code::DiskFull) } else { Ok(()) }
    }

    /// Blocks for `bytes` that lie together, or why there are none now.
    pub fn take(&mut self, bytes: u32, sort: Sort) -> Result<Blocks, Code> {
        let none = if self.is_full() { Code::DiskFull } else { Code::Busy };
        if !self.fits(bytes, sort) {
            return Err(none);
        }
        let is_last = self.is_full();
        self.alloc.take(bytes.div_ceil(BLOCK_BYTES as u32), is_last).ok_or(none)
    }

    /// What was held is held otherwise from now on: more references are counted at once; gives
    /// those that are to be freed when that is durable.
    pub fn exchange(&mut self, held: Vec<Blocks>, wanted: Vec<Blocks>) -> Vec<Blocks> {
        let mut balance: BTreeMap<(u32, u32), i64> = BTreeMap::new();
        let mut count = |list: Vec<Blocks>, by: i64| {
            for b in list {
                for block in b.block..b.block + b.count {
                    *balance.entry((b.segment, block)).or_insert(0) += by;
                }
            }
        };
        count(held, 1);
        count(wanted, -1);
        let mut free = vec![];
        for ((segment, block), n) in balance {
            for _ in 0..-n {
                self.alloc.share(segment, block);
            }
            for _ in 0..n {
                free.push(Blocks { segment, block, count: 1 });
            }
        }
        free
    }

    /// Gives blocks back once no read that began before can touch them.
    pub fn free(&mut self, blocks: Vec<Blocks>) {
        if !blocks.is_empty() {
            self.limbo.push_back(Limbo { blocks, reads_below: self.next_job });
        }
        self.settle_limbo();
    }

    fn settle_limbo(&mut self) {
        let oldest = self.reads.keys().next().copied().unwrap_or(self.next_job);
        while self.limbo.front().is_some_and(|l| l.reads_below <= oldest || Mutant::FreeUnderRead.on()) {
            for blocks in self.limbo.pop_front().expect("there is a front").blocks {
                self.alloc.give(blocks);
            }
        }
    }

    /// Whether anything was logged since the last checkpoint.
    pub fn log_moved(&self) -> bool {
        self.log.used() > 0 || !self.log.is_idle()
    }

    /// A number that was not given before, in no life of this process: names questions and reads. An
    /// answer to a question of an earlier life answers none of this one.
    pub fn next_nonce(&mut self) -> u64 {
        self.next_job += 1;
        self.next_job
    }

    /// Bytes in use by data, limbo included.
    pub fn used_bytes(&self) -> u64 {
        self.alloc.used_bytes()
    }

    /// Writes the data of a piece into fresh blocks.
    pub fn write_piece(&mut self, at: Blocks, data: Bytes, ticket: PieceTicket, out: &mut Outbox) {
        let offset = at.block as u64 * BLOCK_BYTES as u64;
        let kind = DiskKind::Write { offset, data, durable: false };
        self.submit(FileRef::Extents(at.segment), kind, Op::Piece(ticket), out);
    }

    /// Begins a read of these parts; the job's number comes back with the result.
    pub fn read(&mut self, parts: Vec<Part>, out: &mut Outbox) -> u64 {
        let job = self.next_job;
        self.next_job += 1;
        let mut pending = 0;
        let mut pages = vec![];
        for (part, at) in parts.iter().zip(0..) {
            let Part::Extent(extent, None) = part else {
                continue;
            };
            let Home::Disk { segment, block } = extent.home else {
                continue;
            };
            pending += 1;
            let kind = DiskKind::Read {
                offset: block as u64 * BLOCK_BYTES as u64,
                len: blocks_of(extent) * BLOCK_BYTES as u32,
            };
            self.submit(FileRef::Extents(segment), kind, Op::ReadData { job, part: at }, out);
            pages.extend(self.missing_pages(extent));
        }
        pages.sort_unstable();
        pages.dedup();
        for key in pages {
            pending += 1;
            self.load_page(key, job, out);
        }
        self.reads.insert(job, ReadJob { parts, pending, failed: None });
        job
    }

    /// Reads that need no disk are done at once.
    pub fn finish_ready(&mut self, job: u64) -> Option<ReadResult> {
        if self.reads.get(&job)?.pending > 0 {
            return None;
        }
        let read = self.reads.remove(&job)?;
        let crcs = &mut self.crcs;
        let mut unknown = false;
        let result = read.finish(|segment, block| {
            crcs.get(segment, block).unwrap_or_else(|_| {
                unknown = true;
                0
            })
        });
        self.settle_limbo();
        // A page may be evicted between its read and here; then the read is asked again.
        Some(if unknown { Err(Code::Busy) } else { result })
    }

    /// Begins to read pages of checksums; the job's number comes back when they are here, with nothing.
    pub fn load_pages(&mut self, mut pages: Vec<crc::PageKey>, out: &mut Outbox) -> u64 {
        let job = self.next_job;
        self.next_job += 1;
        pages.sort_unstable();
        pages.dedup();
        self.reads.insert(job, ReadJob { parts: vec![], pending: pages.len(), failed: None });
        for key in pages {
            self.load_page(key, job, out);
        }
        job
    }

    /// Where an extent lies, with its checksums; nothing if it is in memory, or one of these is not.
    pub fn place_of(&mut self, extent: &Extent) -> Option<Place> {
        let Home::Disk { segment, block } = extent.home else { return None };
        let blocks = block..block + blocks_of(extent);
        let crcs = blocks.map(|b| self.crcs.get(segment, b).ok()).collect::<Option<Vec<_>>>()?;
        let Extent { offset, len, skip, run, .. } = *extent;
        Some(Place { offset, len, segment, block, skip, run, crcs })
    }

    /// The pages of checksums that are not in memory and are needed to read an extent.
    pub fn missing_pages(&mut self, extent: &Extent) -> Vec<crc::PageKey> {
        let Home::Disk { segment, block } = extent.home else {
            return vec![];
        };
        let blocks = block..block + blocks_of(extent);
        let mut missing: Vec<_> = blocks.filter_map(|b| self.crcs.get(segment, b).err()).collect();
        missing.dedup();
        missing
    }

    fn load_page(&mut self, key: crc::PageKey, job: u64, out: &mut Outbox) {
        let waiters = self.page_waiters.entry(key).or_default();
        waiters.push(job);
        if waiters.len() == 1 {
            self.submit(FileRef::Extents(key.0), page_read(key), Op::ReadPage { key }, out);
        }
    }

    /// For the checkpoint: reads a page.
    pub fn checkpoint_read_page(&mut self, key: crc::PageKey, out: &mut Outbox) {
        self.submit(FileRef::Extents(key.0), page_read(key), Op::CheckpointPageRead(key), out);
    }

    /// For the checkpoint: it is durable, and counts.
    pub fn checkpoint_counts(&mut self, position: u64) {
        self.log.truncate(position);
        for key in self.crcs.thaw() {
            if self.page_waiters.contains_key(&key) {
                self.outdated.insert(key);
            }
        }
    }

    /// For the checkpoint: writes a block of a file.
    pub fn checkpoint_write(&mut self, file: FileRef, offset: u64, data: Bytes, out: &mut Outbox) {
        let kind = DiskKind::Write { offset, data, durable: false };
        self.submit(file, kind, Op::CheckpointWrite, out);
    }

    /// For the checkpoint: makes its file durable.
    pub fn checkpoint_sync(&mut self, file: FileRef, out: &mut Outbox) {
        self.submit(file, DiskKind::Sync, Op::CheckpointSync, out);
    }

    /// For the checkpoint: makes durable what was written into extents; with so many syncs.
    pub fn checkpoint_sync_extents(&mut self, out: &mut Outbox) -> usize {
        self.sync_extents(Op::CheckpointSync, out)
    }

    /// A sync of each segment of extents that has writes which may not be durable: how many.
    fn sync_extents(&mut self, op: Op, out: &mut Outbox) -> usize {
        let segments: Vec<u32> = self.loose.keys().copied().collect();
        let skipped = (Mutant::OneSegmentSynced.on() && segments.len() > 1) as usize;
        for segment in &segments[skipped..] {
            self.submit(FileRef::Extents(*segment), DiskKind::Sync, op.clone(), out);
        }
        segments.len() - skipped
    }

    fn submit(&mut self, file: FileRef, kind: DiskKind, op: Op, out: &mut Outbox) {
        let token = self.next_token;
        self.next_token += 1;
        self.ops.insert(token, (file, op));
        out.push(Output::Disk(DiskOp { token, file, kind }));
    }

    /// Starts what can be started: the next group of the log, the next segment of extents.
    pub fn settle(&mut self, now: Time, out: &mut Outbox) {
        if self.failed.is_some() {
            return;
        }
        if let Some(group) = self.log.next_group(now) {
            let durable = !Mutant::AckBeforeFlush.on();
            let kind = DiskKind::Write { offset: group.offset, data: group.data, durable };
            let writes = self.log.under_way().iter().any(|t| matches!(t, Ticket::Write(..)));
            self.flushing = writes.then_some((now, group.has_extents));
            self.submit(group.file, kind, Op::Group, out);
            self.group_ops = 1;
            if group.has_extents && !Mutant::NoFlushOfExtents.on() {
                self.group_ops += self.sync_extents(Op::Group, out);
            }
        }
        let len = self.config.extent_segment_bytes;
        let is_due = self.full.is_none_or(|since| now >= since + ROOM_AGAIN);
        let may_grow = is_due && self.alloc.present() < self.config.segments_max;
        // Many short runs are of no use to a long write, however much they are together.
        let is_short = self.alloc.roomy_bytes() < self.kept() + len / AHEAD_PARTS;
        if !is_short {
            // Others have given some back, of what there is.
            self.full = None;
        }
        if !self.resizing && may_grow && is_short {
            self.resizing = true;
            let segment = FileRef::Extents(self.alloc.next_segment());
            self.submit(segment, DiskKind::Allocate { len }, Op::Allocate, out);
        }
        self.release(now, out);
    }

    /// An empty segment gives its room back, if there has been enough without it for long.
    fn release(&mut self, now: Time, out: &mut Outbox) {
        // As much as one has is left, which is more than what calls for the next.
        let len = self.config.extent_segment_bytes;
        let segment = self.alloc.last_empty().filter(|_| self.alloc.roomy_bytes() >= self.kept() + 2 * len);
        let since = segment.map(|_| self.spare.unwrap_or(now));
        self.spare = since;
        let is_due = since.is_some_and(|since| now.since(since) >= Span::from_ms(self.config.release_ms));
        if let Some(segment) = segment.filter(|_| is_due && !self.resizing) {
            self.alloc.hollow_out(segment);
            self.resizing = true;
            self.submit(FileRef::Extents(segment), DiskKind::Release, Op::Release, out);
        }
    }

    /// An operation is done: what the node should know.
    pub fn done(&mut self, now: Time, done: DiskDone, out: &mut Outbox) -> Vec<Event> {
        let (file, op) = self.ops.remove(&done.token).expect("an operation is done once");
        if let Op::Allocate | Op::Release = op {
            self.resizing = false;
            match (op, file, done.result) {
                (Op::Allocate, FileRef::Extents(segment), Ok(_)) => {
                    self.alloc.add_segment(segment);
                    self.full = None;
                }
                // No room on the device is no failure of it: the store is full, until others give some back.
                (Op::Allocate, ..) => self.full = Some(now),
                // It is taken anew before it is used, whatever it has.
                _ => {}
            }
            return vec![];
        }
        let data = match (done.result, &op) {
            (Ok(data), _) => data,
            // A read that fails condemns the data, not the directory.
            (Err(_), Op::ReadData { .. } | Op::ReadPage { .. } | Op::CheckpointPageRead(_)) => Bytes::new(),
            (Err(why), _) => {
                // A failed write or flush is never tried again: nobody can say what is durable.
                self.failed.get_or_insert(why);
                return vec![];
            }
        };
        if self.failed.is_some() {
            return vec![];
        }
        match (file, &op) {
            (FileRef::Extents(segment), Op::Piece(_) | Op::CheckpointWrite) => {
                self.loose.insert(segment, self.next_token);
            }
            // What was done after the sync was asked for has a later token.
            (FileRef::Extents(segment), Op::Group | Op::CheckpointSync)
                if self.loose.get(&segment).is_some_and(|last| *last <= done.token) =>
            {
                self.loose.remove(&segment);
            }
            _ => {}
        }
        match op {
            Op::Group => {
                self.group_ops -= 1;
                if self.group_ops > 0 {
                    return vec![];
                }
                let flushed = self.flushing.take().map(|(at, bulk)| Event::Flushed(now.since(at), bulk));
                flushed.into_iter().chain(self.log.durable().into_iter().map(Event::Durable)).collect()
            }
            Op::Piece(ticket) => vec![Event::Written(ticket)],
            Op::ReadData { job, part } => {
                if let Some(read) = self.reads.get_mut(&job) {
                    match &mut read.parts[part] {
                        Part::Extent(_, slot) if !data.is_empty() => *slot = Some(data),
                        _ => read.failed = Some(Code::Corrupt),
                    }
                }
                self.one_less(job)
            }
            Op::ReadPage { key } if self.outdated.remove(&key) => {
                self.submit(FileRef::Extents(key.0), page_read(key), Op::ReadPage { key }, out);
                vec![]
            }
            Op::ReadPage { key } => {
                let page = Page::decode_pair(&data, key.1).filter(|_| !data.is_empty());
                let waiters = self.page_waiters.remove(&key).unwrap_or_default();
                let good = page.is_some();
                if let Some(page) = page {
                    self.crcs.loaded(key, page);
                }
                let mut events = vec![];
                for job in waiters {
                    if let Some(read) = self.reads.get_mut(&job).filter(|_| !good) {
                        read.failed = Some(Code::Corrupt);
                    }
                    events.extend(self.one_less(job));
                }
                events
            }
            Op::CheckpointPageRead(key) => {
                let page = Page::decode_pair(&data, key.1).filter(|_| !data.is_empty());
                vec![Event::Checkpoint(CheckpointDone::PageRead(key, page))]
            }
            Op::CheckpointWrite => vec![Event::Checkpoint(CheckpointDone::Wrote)],
            Op::CheckpointSync => vec![Event::Checkpoint(CheckpointDone::Synced)],
            Op::Allocate | Op::Release => unreachable!("handled above"),
        }
    }

    fn one_less(&mut self, job: u64) -> Vec<Event> {
        if let Some(read) = self.reads.get_mut(&job) {
            read.pending -= 1;
        }
        self.finish_ready(job).map(|result| Event::Read(job, result)).into_iter().collect()
    }
}

/// Where a page lies: with its twin, at the head of its segment.
fn page_read(key: crc::PageKey) -> DiskKind {
    DiskKind::Read { offset: key.1 as u64 * PAGE_PAIR_BYTES, len: PAGE_PAIR_BYTES as u32 }
}

/// What recovery found.
pub struct Recovered {
    /// The store, ready to go on.
    pub store: Store,
    /// The chunks.
    pub chunks: BTreeMap<ChunkHandle, Arc<ChunkState>>,
    /// Epochs below which this store takes no part in a chunk.
    pub floors: BTreeMap<ChunkHandle, Epoch>,
    /// Below this handle floors of what is not here may have been forgotten.
    pub horizon: ChunkHandle,
    /// The checkpoint that was used.
    pub checkpoint: u64,
    /// Taken blocks to which only the older checkpoint refers. That one may be needed until the next is written.
    pub of_older: Vec<Blocks>,
    /// Records that were replayed.
    pub replayed: u64,
}

#[cfg(test)]
#[path = "room_test.rs"]
mod room_test;
