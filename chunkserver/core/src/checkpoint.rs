//! The checkpoint: moves inline bytes home, writes the checksum pages and the index, and so lets
//! the log be recycled. A few disk operations at a time, beside everything else; nothing waits
//! for it unless the log's ring is full. Most say only what has changed since the last one in the same file.
//!
//! Steps, and what a crash after each leaves: (1) bytes are written home - nothing refers to
//! them; (2) the cut: index and pages as of one position of the log are frozen in memory;
//! (3) pages are written to the older of their twins - the other twin is good, and the log still
//! has the new checksums; (4) sync of each segment that was written to; (5) the older checkpoint file is
//! written to - the other is good; (6) sync: from here on this one counts, and the log before the cut may be
//! recycled.

use crate::chunks::Chunks;
use crate::io::{FileRef, Outbox};
use crate::node::Node;
use crate::state::ChunkState;
use crate::store::alloc::Blocks;
use crate::store::checkpoint::{Written, checkpoint_block};
use crate::store::crc::PageKey;
use crate::store::format::{
    CHECKPOINT_BLOCK_BYTES, CHECKPOINT_HEAD_BYTES, CheckpointEntry, FormatVersion, PAGE_PAIR_BYTES, Page,
    Place, Run,
};
use crate::store::index::{Extent, Freed, Home};
use crate::store::{CheckpointDone, PieceTicket, Sort};
use common::checksum::{first_mismatch, slice_crcs};
use common::limits::{BLOCK_BYTES, PIECE_BYTES_MAX};
use common::{ChunkHandle, Epoch, Mutant, Span, Time};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Disk operations of a checkpoint at a time.
const OPS_MAX: usize = 8;
/// When nothing has come to the log for so long, what is in it is moved home: before that it is read from memory ...
const QUIET_MS: u64 = 5000;
/// ... if it is so many bytes.
const QUIET_BYTES: u64 = 1024 * 1024;
/// Floors in one entry.
const FLOORS_PER_ENTRY: usize = 4096;

/// Blocks that are written home by one operation.
const HOME_BLOCKS_MAX: u32 = (PIECE_BYTES_MAX / BLOCK_BYTES) as u32;

/// Inline bytes that lie together in a chunk, and become one run on disk.
#[derive(Clone, Debug)]
struct Move {
    handle: ChunkHandle,
    from: u32,
    to: u32,
    /// The extents that it replaces, if those still stand.
    old: Vec<Extent>,
}

impl Move {
    fn blocks(&self) -> u32 {
        (self.to - self.from).div_ceil(BLOCK_BYTES as u32)
    }

    /// Its bytes, at the end of those of others, as they will be on disk.
    fn append_to(&self, bytes: &mut Vec<u8>) -> Vec<u32> {
        let start = bytes.len();
        for extent in &self.old {
            let Home::Memory(inline) = &extent.home else { unreachable!("only inline extents are moved") };
            let bad = first_mismatch(&inline.data, &inline.crcs);
            assert_eq!(bad, None, "{}: memory does not match its checksum", self.handle);
            bytes.extend_from_slice(&inline.data[extent.skip as usize..(extent.skip + extent.len) as usize]);
        }
        let crcs = slice_crcs(&bytes[start..]);
        bytes.resize(start + self.blocks() as usize * BLOCK_BYTES, 0);
        crcs
    }
}

#[derive(Clone, Debug)]
enum Phase {
    Idle,
    /// The chunks that are left, and how much of the first is done, in bytes.
    Homing {
        chunks: VecDeque<ChunkHandle>,
        from: u32,
    },
    /// Scattered pieces are moved together.
    Gathering,
    Pages {
        todo: Vec<PageKey>,
        left: usize,
    },
    PagesSync,
    Index {
        done: bool,
    },
    IndexSync,
}

/// The checkpoint under way.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    phase: Phase,
    /// Somebody wants one that gathers what lies scattered, or one that does not.
    wanted: Option<bool>,
    /// The log's head, and since when it has been there.
    quiet: (u64, Time),
    /// The log's head when a checkpoint was last begun since it was quiet.
    quieted: u64,
    /// The last one that is durable.
    sequence: u64,
    /// Operations under way.
    pending: usize,
    /// On their way home, and where to: side by side, each from a block of its own on.
    homing: BTreeMap<u64, Vec<(Move, Run)>>,
    next_homing: u64,
    /// What each file has; nothing, if another life wrote it.
    written: [Option<Written>; 2],
    /// The cut: position of the log, entries that come before the next chunk's, floors.
    position: u64,
    entries: VecDeque<Vec<u8>>,
    floors: VecDeque<(ChunkHandle, Epoch)>,
    horizon: Option<ChunkHandle>,
    /// What it follows in its file, and which block is next.
    after: Option<Written>,
    next_block: u32,
}

impl Checkpoint {
    pub fn new(sequence: u64) -> Checkpoint {
        Checkpoint {
            phase: Phase::Idle,
            wanted: None,
            quiet: (0, Time(0)),
            quieted: 0,
            sequence,
            pending: 0,
            homing: BTreeMap::new(),
            next_homing: 1,
            written: [None; 2],
            position: 0,
            entries: VecDeque::new(),
            floors: VecDeque::new(),
            horizon: None,
            after: None,
            next_block: 0,
        }
    }

    /// Which file the next one goes to.
    fn file(&self) -> usize {
        ((self.sequence + 1) % 2) as usize
    }

    /// The next entry of the index, encoded.
    fn next_entry(&mut self, chunks: &mut Chunks) -> Option<Vec<u8>> {
        while self.entries.is_empty()
            && let Some((handle, state)) = chunks.next_of_cut()
        {
            let is_real = |state: &Arc<ChunkState>| state.config.epoch.number() > 0;
            match state.filter(is_real) {
                Some(state) => state.dump().iter().for_each(|entry| self.push(entry)),
                None if self.after.is_some() => self.push(&CheckpointEntry::Gone(handle)),
                None => {}
            }
        }
        if self.entries.is_empty() {
            if let Some(horizon) = self.horizon.take() {
                self.push(&CheckpointEntry::Horizon(horizon));
            } else if !self.floors.is_empty() {
                let n = self.floors.len().min(FLOORS_PER_ENTRY);
                let floors = self.floors.drain(..n).collect();
                self.push(&CheckpointEntry::Floors(floors));
            }
        }
        self.entries.pop_front()
    }

    fn push(&mut self, entry: &CheckpointEntry) {
        self.entries.push_back(common::wire::to_vec(entry));
    }

    pub fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle) && self.wanted.is_none()
    }
}

impl Node {
    /// Somebody wants a checkpoint, and whether it gathers what lies scattered, or ends soon.
    pub(crate) fn want_checkpoint(&mut self, gathers: bool) {
        self.checkpoint.wanted = Some(gathers);
        if !gathers {
            self.gather.stop();
        }
    }

    /// Starts a checkpoint when the log wants one, and feeds the one under way.
    pub(crate) fn drive_checkpoint(&mut self, out: &mut Outbox) {
        if self.store.failed().is_some() {
            return;
        }
        loop {
            match &mut self.checkpoint.phase {
                Phase::Idle => {
                    let is_quiet = self.is_quiet();
                    let is_due = self.store.log.used() > self.store.log.capacity() / 4
                        || self.floors.are_many()
                        || self.gather.is_overdue(self.now);
                    if !is_quiet && !is_due && self.checkpoint.wanted.is_none() {
                        return;
                    }
                    let chunks = self.chunks_to_home();
                    let wanted = self.checkpoint.wanted.take();
                    let gathers = wanted.unwrap_or(is_quiet || self.gather.is_light(self.now));
                    match gathers {
                        true => self.begin_gather(),
                        false => self.gather.skip(self.now),
                    }
                    // What was in a tail at the last one may have been committed without the log.
                    if chunks.is_empty() && !self.store.log_moved() && !self.gather.has_work() {
                        return;
                    }
                    self.checkpoint.phase = Phase::Homing { chunks, from: 0 };
                }
                Phase::Homing { .. } => {
                    if self.checkpoint.homing.len() >= OPS_MAX {
                        return;
                    }
                    let moves = self.next_moves();
                    match moves.is_empty() {
                        false => self.move_home(moves, out),
                        true if !self.checkpoint.homing.is_empty() => return,
                        true if self.gather.has_chunks() => self.checkpoint.phase = Phase::Gathering,
                        true => self.cut_checkpoint(),
                    }
                }
                Phase::Gathering => match self.gather_on(out) {
                    // Clients may have written meanwhile.
                    true => self.checkpoint.phase = Phase::Homing { chunks: self.chunks_to_home(), from: 0 },
                    false => return,
                },
                Phase::Pages { todo, left } => {
                    if *left == 0 && Mutant::PagesUnsynced.on() {
                        self.checkpoint.phase = Phase::Index { done: false };
                        continue;
                    }
                    if *left == 0 {
                        self.checkpoint.pending = self.store.checkpoint_sync_extents(out);
                        self.checkpoint.phase = match self.checkpoint.pending {
                            0 => Phase::Index { done: false },
                            _ => Phase::PagesSync,
                        };
                        continue;
                    }
                    if self.checkpoint.pending >= OPS_MAX {
                        return;
                    }
                    let Some(key) = todo.pop() else { return };
                    self.checkpoint.pending += 1;
                    match self.store.crcs.cached(key).cloned() {
                        Some(page) => self.write_page(key, &page, out),
                        None => self.store.checkpoint_read_page(key, out),
                    }
                }
                Phase::Index { done } => {
                    if self.checkpoint.pending > 0 {
                        return;
                    }
                    if *done {
                        self.checkpoint.phase = Phase::IndexSync;
                        self.checkpoint.pending = 1;
                        let file = FileRef::Checkpoint(self.checkpoint.file() as u32);
                        self.store.checkpoint_sync(file, out);
                        return;
                    }
                    self.write_index_block(out);
                }
                Phase::PagesSync | Phase::IndexSync => return,
            }
        }
    }

    /// The chunks that have bytes in memory. Only who has changed may have, or may have become scattered.
    fn chunks_to_home(&mut self) -> VecDeque<ChunkHandle> {
        let mut inline = VecDeque::new();
        for handle in self.chunks.unwritten() {
            let Some(chunk) = self.chunks.get(&handle) else { continue };
            self.gather.look_at(handle, &chunk.state);
            if chunk.state.extents.has_inline() {
                inline.push_back(handle);
            }
        }
        inline
    }

    /// Whether nobody has written for a while, though much was written before: what is home can be read by clients on
    /// this machine, takes no memory, and need not be replayed.
    fn is_quiet(&mut self) -> bool {
        let head = self.store.log.head();
        if self.checkpoint.quiet.0 != head {
            self.checkpoint.quiet = (head, self.now);
        }
        if self.now.since(self.checkpoint.quiet.1) < Span::from_ms(QUIET_MS) {
            return false;
        }
        let is_first = self.checkpoint.quieted != head && self.store.log.used() > QUIET_BYTES;
        if is_first {
            self.checkpoint.quieted = head;
        }
        is_first || self.gather.is_due(self.now)
    }

    /// What is written home next, of one chunk or of several; nothing, if all was.
    fn next_moves(&mut self) -> Vec<Move> {
        let Phase::Homing { chunks, from } = &mut self.checkpoint.phase else { return vec![] };
        let mut moves: Vec<Move> = vec![];
        let mut blocks = 0;
        while let Some(&handle) = chunks.front() {
            let extents = self.chunks.get(&handle).into_iter().flat_map(|c| c.state.extents.iter_from(*from));
            for extent in extents.filter(|e| matches!(e.home, Home::Memory(_))) {
                let (offset, end) = (extent.offset, extent.offset + extent.len);
                let joined = moves.pop_if(|last| last.handle == handle && last.to == offset);
                let mut next = joined.unwrap_or(Move { handle, from: offset, to: offset, old: vec![] });
                let before = next.blocks();
                next.to = end;
                let after = blocks - before + next.blocks();
                if after > HOME_BLOCKS_MAX {
                    next.to = offset;
                    moves.extend((!next.old.is_empty()).then_some(next));
                    *from = offset;
                    return moves;
                }
                blocks = after;
                next.old.push(extent.clone());
                moves.push(next);
            }
            chunks.pop_front();
            *from = 0;
        }
        moves
    }

    /// Step 1: inline bytes go where there is room for them, together if it can be.
    fn move_home(&mut self, mut moves: Vec<Move>, out: &mut Outbox) {
        let count = moves.iter().map(Move::blocks).sum::<u32>();
        let Ok(room) = self.store.take(count * BLOCK_BYTES as u32, Sort::Promised) else {
            if moves.len() > 1 {
                let rest = moves.split_off(moves.len() / 2);
                self.move_home(moves, out);
                self.move_home(rest, out);
            }
            // One that has no room stays in memory, and goes into the checkpoint as it is.
            return;
        };
        let mut bytes = Vec::with_capacity(count as usize * BLOCK_BYTES);
        let mut placed = vec![];
        for next in moves {
            let block = room.block + (bytes.len() / BLOCK_BYTES) as u32;
            let crcs = next.append_to(&mut bytes);
            let run = Run { segment: room.segment, block, len: next.to - next.from, crcs };
            placed.push((next, run));
        }
        let number = self.checkpoint.next_homing;
        self.checkpoint.next_homing += 1;
        self.checkpoint.homing.insert(number, placed);
        self.store.write_piece(room, bytes.into(), PieceTicket::Homed(number), out);
    }

    /// Bytes are home: the index says so, unless they were overwritten meanwhile.
    pub(crate) fn homed(&mut self, number: u64) {
        let placed = self.checkpoint.homing.remove(&number).expect("moved once");
        for (Move { handle, from, to, old }, run) in placed {
            let stands = self.chunks.get(&handle).is_some_and(|c| c.state.extents.range(from, to) == old);
            let anyway = Mutant::HomeAnyway.on() && self.chunks.contains_key(&handle);
            if !stands && !anyway {
                let blocks = Blocks { segment: run.segment, block: run.block, count: run.blocks() };
                self.store.free(vec![blocks]);
                continue;
            }
            self.store.crcs.set(run.segment, run.block, &run.crcs);
            let last = old.iter().map(|e| e.last).max().expect("something was moved");
            let state = self.chunks.state_mut(&handle).expect("it stands");
            let freed = state.extents.put(from, &Place::Runs(vec![run]), last);
            assert!(freed == Freed::default() || Mutant::HomeAnyway.on(), "inline extents have no blocks");
        }
    }

    /// Step 2: freezes what the checkpoint will say.
    fn cut_checkpoint(&mut self) {
        let todo = self.store.crcs.freeze();
        let (queued, in_groups) = self.store.log.records();
        self.floors.cut(queued, in_groups, |handle| self.chunks.contains_key(&handle));
        let file = self.checkpoint.file();
        // The log can be replayed from any checkpoint that is in a file, but for blocks that were given up without a record.
        // Once they are free, none that refers to them may be found, whatever rots.
        let after = self.checkpoint.written[file].filter(|w| !w.is_long() && !self.gather.holds_blocks());
        self.chunks.cut(file, after.is_none());
        let checkpoint = &mut self.checkpoint;
        checkpoint.position = self.store.log.head();
        checkpoint.push(&CheckpointEntry::Head {
            version: FormatVersion::V1,
            position: checkpoint.position,
            store_tag: self.store.config().tag,
            segments: self.store.alloc.segments(),
        });
        let (by, since) = (self.store.config().incarnation, after.map(|w| w.sequence));
        checkpoint.push(&CheckpointEntry::Written { by, since });
        checkpoint.floors = self.floors.all().collect();
        checkpoint.horizon = Some(self.floors.horizon());
        checkpoint.after = after;
        checkpoint.next_block = after.map_or(0, |w| w.blocks());
        checkpoint.pending = 0;
        checkpoint.phase = Phase::Pages { left: todo.len(), todo };
    }

    /// Step 3: a page goes to the older of its twins.
    fn write_page(&mut self, key: PageKey, base: &Page, out: &mut Outbox) {
        let page = self.store.crcs.merged(key, base);
        let twin = page.version % 2 * BLOCK_BYTES as u64;
        let offset = key.1 as u64 * PAGE_PAIR_BYTES + twin;
        let data = page.encode().into();
        self.store.crcs.loaded(key, page);
        self.store.checkpoint_write(FileRef::Extents(key.0), offset, data, out);
    }

    pub(crate) fn checkpoint_event(&mut self, done: CheckpointDone, out: &mut Outbox) {
        match (done, &mut self.checkpoint.phase) {
            (CheckpointDone::PageRead(key, page), _) => {
                // A rotten page loses the checksums of its old blocks; they fail as corrupt.
                let lost = Page { version: 2, ..Page::empty(key.1) };
                let base = page.unwrap_or(lost);
                self.write_page(key, &base, out);
            }
            (CheckpointDone::Wrote, Phase::Pages { left, .. }) => {
                *left -= 1;
                self.checkpoint.pending -= 1;
            }
            (CheckpointDone::Wrote, _) => self.checkpoint.pending -= 1,
            (CheckpointDone::Synced, Phase::PagesSync) => {
                self.checkpoint.pending -= 1;
                if self.checkpoint.pending == 0 {
                    self.checkpoint.phase = Phase::Index { done: false };
                }
            }
            (CheckpointDone::Synced, Phase::IndexSync) => {
                // Step 6: this checkpoint counts.
                self.checkpoint.pending = 0;
                let (file, sequence) = (self.checkpoint.file(), self.checkpoint.sequence + 1);
                let Checkpoint { after, next_block, .. } = self.checkpoint;
                self.checkpoint.written[file] = Some(Written::after(after, sequence, next_block));
                self.checkpoint.sequence = sequence;
                self.store.checkpoint_counts(self.checkpoint.position);
                let free = self.gather.checkpoint_counts(self.now);
                self.store.free(free);
                self.checkpoint.phase = Phase::Idle;
            }
            (done, phase) => panic!("{done:?} in {phase:?}"),
        }
    }

    /// Step 5: the next block of the index.
    fn write_index_block(&mut self, out: &mut Outbox) {
        const ROOM: usize = CHECKPOINT_BLOCK_BYTES - CHECKPOINT_HEAD_BYTES;
        let mut entries: Vec<Vec<u8>> = vec![];
        let mut bytes = 0;
        let mut last = false;
        loop {
            let Some(entry) = self.checkpoint.next_entry(&mut self.chunks) else {
                last = true;
                break;
            };
            assert!(entry.len() + 4 <= ROOM, "an entry of {} bytes is too long", entry.len());
            if bytes + entry.len() + 4 > ROOM {
                self.checkpoint.entries.push_front(entry);
                break;
            }
            bytes += entry.len() + 4;
            entries.push(entry);
        }
        let index = self.checkpoint.next_block;
        self.checkpoint.next_block += 1;
        self.checkpoint.pending = 1;
        self.checkpoint.phase = Phase::Index { done: last };
        let block = checkpoint_block(self.checkpoint.sequence + 1, index, last, &entries);
        let file = FileRef::Checkpoint(self.checkpoint.file() as u32);
        self.store.checkpoint_write(file, index as u64 * CHECKPOINT_BLOCK_BYTES as u64, block.into(), out);
    }
}
