//! Gathers bytes that lie scattered. Extents are written once, so a file that is written to in small pieces at random
//! places comes to lie in as many: each takes memory, and a place in every checkpoint, and who reads the file from end to
//! end reads them one by one. A checkpoint writes such pieces to new blocks, side by side, when clients write little or
//! nothing.
//!
//! It is as with bytes that go home: they are in their new place before the index says so, and nobody's answer depends on
//! it, so the log knows nothing of it. But what they leave, an older index refers to. It is free when both files of the
//! checkpoint are newer: the log can be replayed from either.

use crate::chunks::Chunks;
use crate::io::Outbox;
use crate::node::Node;
use crate::reads::ReadFor;
use crate::state::ChunkState;
use crate::store::alloc::{Alloc, Blocks};
use crate::store::format::{Place, Run};
use crate::store::index::{Extent, Extents, Home};
use crate::store::read::{ReadResult, one_piece, parts_of};
use crate::store::{PieceTicket, Sort};
use crate::timers::Timer;
use common::limits::{BLOCK_BYTES, PIECE_BYTES_MAX};
use common::{ChunkHandle, Span, Time};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A piece is gathered if it lies in so many places.
const PLACES_MIN: usize = 8;
/// A chunk is looked at if its extents have fewer bytes than this, on average.
const MEAN_BYTES: u64 = (PIECE_BYTES_MAX / PLACES_MIN) as u64;
/// An extent of so many bytes is long enough.
const LONG_BYTES: u32 = (PIECE_BYTES_MAX / 2) as u32;
/// Clients write little if the last checkpoint was so long ago when the log calls for one, in milliseconds. Under a heavy load
/// pieces are scattered again as fast as they are gathered.
const LIGHT_MS: u64 = 20_000;
/// One checkpoint gathers so many bytes at most: some four times what the log has when it calls for one. And no more than one
/// of so many parts of the room that there is: it all is there twice for a while.
const BYTES_MAX: u64 = 256 << 20;
const ROOM_PARTS: u64 = 4;
/// And so many bytes a second: who reads the store's files on its machine is not seen by `Pace`.
const BYTES_PER_S: u64 = 64 << 20;
/// What could not be done now is tried again after this.
const AGAIN: Span = Span::from_ms(60_000);

/// A piece that is gathered: extents that follow one another, and the room for them.
#[derive(Clone, Debug)]
struct Piece {
    old: Vec<Extent>,
    room: Blocks,
    crcs: Vec<u32>,
}

impl Piece {
    fn range(&self) -> (u32, u32) {
        range(&self.old)
    }
}

fn range(extents: &[Extent]) -> (u32, u32) {
    let last = extents.last().expect("there are some");
    (extents[0].offset, last.offset + last.len)
}

/// What a checkpoint gathers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gather {
    /// Chunks that may have to be gathered.
    scattered: BTreeSet<ChunkHandle>,
    /// Those that this checkpoint has left, and where to go on in the first.
    chunks: VecDeque<ChunkHandle>,
    from: u32,
    /// The piece that is being read, or written.
    moving: Option<Piece>,
    /// Pieces of the first chunk that are written. They take their place together: who reads the chunk on this machine has to
    /// ask anew where it lies.
    written: Vec<Piece>,
    /// Bytes that this checkpoint may gather.
    left: u64,
    /// When the next piece may be read.
    next: Time,
    /// When there is something to do, if nobody writes.
    due: Option<Time>,
    /// What this checkpoint leaves, what only the older one refers to, and since when there is any of it.
    given_up: Vec<Blocks>,
    of_older: Vec<Blocks>,
    held_since: Option<Time>,
    /// When the last checkpoint was done.
    last: Option<Time>,
}

impl Gather {
    /// A store was opened; only its older checkpoint refers to these blocks.
    pub fn recovered(of_older: Vec<Blocks>, chunks: &Chunks) -> Gather {
        let now = Time(0);
        let held_since = (!of_older.is_empty()).then_some(now);
        let scattered =
            chunks.iter().filter(|(_, c)| is_scattered(&c.state)).map(|(handle, _)| *handle).collect();
        Gather { scattered, due: Some(now), of_older, held_since, ..Gather::default() }
    }

    /// A chunk has changed.
    pub fn look_at(&mut self, handle: ChunkHandle, state: &ChunkState) {
        if is_scattered(state) {
            self.scattered.insert(handle);
        }
    }

    /// Whether blocks are held to which a file of the checkpoint refers, though the log does not say what has become of them.
    pub fn holds_blocks(&self) -> bool {
        !self.given_up.is_empty() || !self.of_older.is_empty()
    }

    /// Whether there is something to do when nobody writes.
    pub fn is_due(&self, now: Time) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// Whether there is something left to look at.
    pub fn has_chunks(&self) -> bool {
        !self.chunks.is_empty()
    }

    /// Whether a checkpoint is worth it for this alone.
    pub fn has_work(&self) -> bool {
        !self.chunks.is_empty() || self.held_since.is_some()
    }

    /// Whether blocks have been held for long enough, though clients write.
    pub fn is_overdue(&self, now: Time) -> bool {
        self.held_since.is_some_and(|since| now.since(since) >= AGAIN)
    }

    /// A checkpoint does not gather: the next quiet time is for it.
    pub fn skip(&mut self, now: Time) {
        self.due = Some(now);
    }

    /// Others want the checkpoint to end.
    pub fn stop(&mut self) {
        self.left = 0;
    }

    /// Whether there is time for it while clients write.
    pub fn is_light(&self, now: Time) -> bool {
        self.last.is_some_and(|last| now.since(last) >= Span::from_ms(LIGHT_MS))
    }

    /// A checkpoint counts: the blocks that none refers to any more.
    pub fn checkpoint_counts(&mut self, now: Time) -> Vec<Blocks> {
        let free = std::mem::replace(&mut self.of_older, std::mem::take(&mut self.given_up));
        self.held_since = (!self.of_older.is_empty()).then_some(now);
        self.last = Some(now);
        free
    }
}

/// The bytes of an extent, on average.
fn mean(state: &ChunkState) -> u64 {
    state.length as u64 / state.extents.count().max(1) as u64
}

fn is_scattered(state: &ChunkState) -> bool {
    state.extents.count() >= PLACES_MIN && mean(state) < MEAN_BYTES
}

/// The next extents that are worth it, from a byte of a chunk on.
fn next_scattered(extents: &Extents, from: u32, alloc: &Alloc) -> Option<Vec<Extent>> {
    let mut found: Vec<Extent> = vec![];
    for extent in extents.iter_from(from) {
        let follows = |last: &Extent| last.offset + last.len == extent.offset;
        let joins = found.last().is_none_or(follows)
            && (extent.offset + extent.len - found.first().unwrap_or(extent).offset) as usize
                <= PIECE_BYTES_MAX;
        let is_short = extent.len < LONG_BYTES && matches!(extent.home, Home::Disk { .. });
        if !joins || !is_short {
            if is_worth_it(&found, alloc) {
                return Some(found);
            }
            found.clear();
        }
        if is_short {
            found.push(extent.clone());
        }
    }
    is_worth_it(&found, alloc).then_some(found)
}

/// Whether extents are many, and most of their blocks would be free without them.
fn is_worth_it(extents: &[Extent], alloc: &Alloc) -> bool {
    if extents.len() < PLACES_MIN {
        return false;
    }
    let mut blocks: BTreeMap<(u32, u32), u32> = BTreeMap::new();
    for at in extents.iter().filter_map(Extent::blocks) {
        for block in at.block..at.block + at.count {
            *blocks.entry((at.segment, block)).or_insert(0) += 1;
        }
    }
    let stay = blocks.iter().filter(|((segment, block), n)| alloc.references(*segment, *block) > **n).count();
    stay * 4 <= blocks.len()
}

impl Node {
    /// A checkpoint begins, and will gather: the most scattered chunks first.
    pub(crate) fn begin_gather(&mut self) {
        self.gather
            .scattered
            .retain(|handle| self.chunks.get(handle).is_some_and(|c| is_scattered(&c.state)));
        let scattered = self.gather.scattered.iter();
        let mut chunks: Vec<_> =
            scattered.map(|handle| (mean(&self.chunks[handle].state), *handle)).collect();
        chunks.sort_unstable();
        self.gather.chunks = chunks.into_iter().map(|(_, handle)| handle).collect();
        self.gather.from = 0;
        self.gather.left = BYTES_MAX.min(self.store.alloc.roomy_bytes() / ROOM_PARTS);
        self.gather.due = None;
    }

    /// Gathers the next piece; true, if the checkpoint has no more to wait for.
    pub(crate) fn gather_on(&mut self, out: &mut Outbox) -> bool {
        loop {
            if self.gather.moving.is_some() {
                return false;
            }
            let Some(&handle) = self.gather.chunks.front() else {
                // What the older checkpoint will refer to is free after one more.
                if !self.gather.given_up.is_empty() {
                    self.gather.due = Some(self.now);
                }
                return true;
            };
            if self.gather.next > self.now && self.gather.left > 0 {
                self.timer(self.gather.next, Timer::Gather);
                return false;
            }
            // An old copy stays as it is: a new one may be made of it.
            let chunk = self.chunks.get(&handle).filter(|c| !c.state.removed);
            let next =
                chunk.and_then(|c| next_scattered(&c.state.extents, self.gather.from, &self.store.alloc));
            let Some(old) = next else {
                self.put_gathered(handle);
                self.gather.chunks.pop_front();
                self.gather.from = 0;
                continue;
            };
            let (from, to) = range(&old);
            let bytes = (to - from).next_multiple_of(BLOCK_BYTES as u32);
            // While clients write, the rest of the log up to where they have to wait is for the index.
            let log = &self.store.log;
            let has_time = self.gather.left >= bytes as u64 && log.used() <= log.capacity() / 8 * 3;
            let room = has_time.then(|| self.store.take(bytes, Sort::New)).and_then(Result::ok);
            let Some(room) = room else {
                self.put_gathered(handle);
                self.gather.chunks.clear();
                self.gather.due = Some(self.now + AGAIN);
                continue;
            };
            self.gather.left -= bytes as u64;
            let least = self.now + Span(bytes as u64 * 1_000_000_000 / BYTES_PER_S);
            self.gather.next = self.pace.book(self.now, bytes as u64).max(least);
            self.gather.moving = Some(Piece { old: old.clone(), room, crcs: vec![] });
            let job = self.store.read(parts_of(old, from, to), out);
            self.reads.insert(job, ReadFor::Gather { handle });
            if let Some(result) = self.store.finish_ready(job) {
                self.read_done(job, result, out);
            }
        }
    }

    /// The old bytes of a piece are read, and verified.
    pub(crate) fn gather_read(&mut self, result: ReadResult, out: &mut Outbox) {
        let piece = self.gather.moving.as_mut().expect("it was read for this");
        self.gather.from = piece.range().1;
        match result.map(one_piece) {
            Ok((read, bytes)) => {
                piece.crcs = read.crcs;
                self.store.write_piece(piece.room, bytes, PieceTicket::Gathered, out);
            }
            Err(_) => {
                let room = piece.room;
                self.gather.moving = None;
                self.store.free(vec![room]);
            }
        }
    }

    /// They are in their new place.
    pub(crate) fn gathered(&mut self) {
        let piece = self.gather.moving.take().expect("it was written");
        self.gather.written.push(piece);
    }

    /// The index says where the pieces of a chunk are now, but for those that were written to meanwhile.
    fn put_gathered(&mut self, handle: ChunkHandle) {
        for piece in std::mem::take(&mut self.gather.written) {
            let (from, to) = piece.range();
            let stands =
                self.chunks.get(&handle).is_some_and(|c| c.state.extents.range(from, to) == piece.old);
            if !stands {
                self.store.free(vec![piece.room]);
                continue;
            }
            let Blocks { segment, block, .. } = piece.room;
            self.store.crcs.set(segment, block, &piece.crcs);
            let last = piece.old.iter().map(|e| e.last).max().expect("there are some");
            let run = Run { segment, block, len: to - from, crcs: piece.crcs };
            let state = self.chunks.state_mut(&handle).expect("it stands");
            let freed = state.extents.put(from, &Place::Runs(vec![run]), last);
            assert!(freed.shared.is_empty(), "whole extents are replaced");
            self.gather.given_up.extend(freed.free);
            self.gathered_bytes += (to - from) as u64;
        }
    }
}
