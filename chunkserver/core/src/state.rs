//! A chunk as it is on disk: configuration, committed bytes, and the tail that is not known
//! committed. What is in the tail can still be discarded; what is in the base never is.

use crate::store::alloc::Blocks;
use crate::store::format::{CheckpointEntry, ChunkDump, Place};
use crate::store::index::{Extents, Freed};
use common::limits::{CHUNK_ANSWERS_MAX, CHUNK_CLIENTS_MAX};
use common::wire::ChunkConfig;
use common::wire::chunk_chunk::{Answer, Answers, LogPoint, WriteOp};
use common::{ClientId, RequestId, Serial};
use std::collections::VecDeque;

/// About so many bytes of extents go into one entry of a checkpoint.
const DUMP_BYTES: usize = 256 * 1024;

/// A record of the tail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailRecord {
    /// What.
    pub op: WriteOp,
    /// Where its bytes are.
    pub place: Place,
}

/// A chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkState {
    /// Its configuration, as durably promised here.
    pub config: ChunkConfig,
    /// The store is no member any more: the copy is stale.
    pub removed: bool,
    /// Bytes that are committed.
    pub length: u32,
    /// The last committed record.
    pub last: LogPoint,
    /// Where the committed bytes are.
    pub extents: Extents,
    /// Remembered answers of committed writes, by client.
    pub answers: Vec<Answers>,
    /// Records after `last`, by serial, without a gap.
    pub tail: VecDeque<TailRecord>,
}

impl ChunkState {
    /// A chunk with nothing in it.
    pub fn new(config: ChunkConfig) -> ChunkState {
        ChunkState {
            config,
            removed: false,
            length: 0,
            last: LogPoint::default(),
            extents: Extents::default(),
            answers: vec![],
            tail: VecDeque::new(),
        }
    }

    /// Everything up to here is known committed.
    pub fn committed(&self) -> Serial {
        self.last.1
    }

    /// The last record, committed or not.
    pub fn last_point(&self) -> LogPoint {
        self.tail.back().map_or(self.last, |r| (r.op.origin, r.op.serial))
    }

    /// The chunk's length once all its tail is committed.
    pub fn length_with_tail(&self) -> u64 {
        let end = |r: &TailRecord| r.op.offset + r.op.len as u64;
        self.tail.iter().map(end).fold(self.length as u64, u64::max)
    }

    /// A record of the tail.
    pub fn tail_record(&self, serial: Serial) -> Option<&TailRecord> {
        let at = serial.0.checked_sub(self.committed().0 + 1)?;
        self.tail.get(at as usize)
    }

    /// Adds the next record to the tail.
    pub fn push(&mut self, op: WriteOp, place: Place) {
        assert_eq!(op.serial, self.last_point().1.next(), "{}: a gap in the tail", self.config.handle);
        self.tail.push_back(TailRecord { op, place });
    }

    /// Moves the commit point: records become part of the base. Gives the blocks that nothing
    /// needs any more once the commit point is durable, and those that two extents now share.
    pub fn commit(&mut self, serial: Serial) -> Freed {
        let mut freed = Freed::default();
        while self.tail.front().is_some_and(|r| r.op.serial <= serial) {
            let TailRecord { op, place } = self.tail.pop_front().expect("there is a front");
            let more = self.extents.put(op.offset as u32, &place, (op.origin, op.serial));
            freed.free.extend(more.free);
            freed.shared.extend(more.shared);
            self.length = self.length.max((op.offset + op.len as u64) as u32);
            self.last = (op.origin, op.serial);
            self.remember(&op);
        }
        if self.tail.is_empty() {
            // Chunks are many, and most are at rest.
            self.tail = VecDeque::new();
        }
        freed
    }

    /// Drops the tail after `keep`: the blocks of what is dropped.
    pub fn cut(&mut self, keep: Serial) -> Vec<Blocks> {
        let mut blocks = vec![];
        while self.tail.back().is_some_and(|r| r.op.serial > keep) {
            let record = self.tail.pop_back().expect("there is a back");
            blocks.extend(blocks_of(&record.place));
        }
        blocks
    }

    fn remember(&mut self, op: &WriteOp) {
        let RequestId { client, seq } = op.request;
        let at = self.answers.partition_point(|a| a.client < client);
        if self.answers.get(at).is_none_or(|a| a.client != client) {
            self.answers.reserve_exact(1);
            self.answers.insert(at, Answers { client, lowest: 1, answers: Vec::with_capacity(1) });
        }
        let of_client = &mut self.answers[at];
        of_client.lowest = of_client.lowest.max(op.lowest.min(seq));
        let floor = of_client.lowest;
        of_client.answers.retain(|a| a.seq >= floor);
        let at = of_client.answers.partition_point(|a| a.seq < seq);
        of_client.answers.insert(at, Answer { seq, offset: op.offset, len: op.len, serial: op.serial });
        if of_client.answers.len() > CHUNK_ANSWERS_MAX {
            let dropped = of_client.answers.remove(0);
            of_client.lowest = of_client.lowest.max(dropped.seq + 1);
        }
        if self.answers.len() > CHUNK_CLIENTS_MAX {
            let newest = |a: &Answers| a.answers.last().map_or(Serial(0), |a| a.serial);
            let idle = (0..self.answers.len()).min_by_key(|at| newest(&self.answers[*at]));
            self.answers.remove(idle.expect("there are clients"));
        }
    }

    /// All blocks that the chunk refers to; a block that two extents share comes twice.
    pub fn blocks(&self) -> Vec<Blocks> {
        let base = self.extents.iter().filter_map(|e| e.blocks());
        base.chain(self.tail.iter().flat_map(|r| blocks_of(&r.place))).collect()
    }

    /// The entries of a checkpoint that `restore` and `restore_entry` make this of again.
    pub fn dump(&self) -> Vec<CheckpointEntry> {
        let mut entries = vec![CheckpointEntry::Chunk(ChunkDump {
            config: self.config.clone(),
            removed: self.removed,
            length: self.length,
            last: self.last,
            answers: self.answers.clone(),
        })];
        let mut part = vec![];
        let mut bytes = 0;
        for extent in self.extents.iter().map(|e| e.dump()) {
            bytes += 64 + extent.place.as_ref().map_or_else(|(data, _)| data.len(), |_| 0);
            part.push(extent);
            if bytes > DUMP_BYTES {
                entries.push(CheckpointEntry::Extents(std::mem::take(&mut part)));
                bytes = 0;
            }
        }
        if !part.is_empty() {
            entries.push(CheckpointEntry::Extents(part));
        }
        entries.extend(self.tail.iter().map(|r| CheckpointEntry::Tail(r.op.clone(), r.place.clone())));
        entries
    }

    /// The chunk that `dump` made these entries of.
    pub fn from_dump(entries: Vec<CheckpointEntry>) -> Option<ChunkState> {
        let mut entries = entries.into_iter();
        let Some(CheckpointEntry::Chunk(dump)) = entries.next() else { return None };
        let mut state = ChunkState::restore(dump);
        for entry in entries {
            let good = match entry {
                CheckpointEntry::Extents(list) => state.extents.restore(list),
                CheckpointEntry::Tail(op, place) => state.restore_tail(op, place),
                _ => false,
            };
            if !good {
                return None;
            }
        }
        Some(state)
    }

    /// From a checkpoint; extents and tail follow.
    pub fn restore(dump: ChunkDump) -> ChunkState {
        let mut state = ChunkState {
            removed: dump.removed,
            length: dump.length,
            last: dump.last,
            ..ChunkState::new(dump.config)
        };
        state.set_answers(dump.answers);
        state
    }

    /// The answers of a checkpoint or a copy; they are sought by client.
    pub fn set_answers(&mut self, mut answers: Vec<Answers>) {
        answers.sort_by_key(|a| a.client);
        answers.dedup_by_key(|a| a.client);
        self.answers = answers;
    }

    /// The answers of one client.
    pub fn answers_of(&self, client: ClientId) -> Option<&Answers> {
        let at = self.answers.binary_search_by_key(&client, |a| a.client).ok()?;
        Some(&self.answers[at])
    }

    /// The next record of the tail, from a checkpoint; false if it cannot be.
    pub fn restore_tail(&mut self, op: WriteOp, place: Place) -> bool {
        let follows = op.serial == self.last_point().1.next();
        if follows {
            self.push(op, place);
        }
        follows
    }
}

/// The blocks of a record's bytes.
pub fn blocks_of(place: &Place) -> Vec<Blocks> {
    match place {
        Place::Inline { .. } => vec![],
        Place::Runs(runs) => {
            runs.iter().map(|r| Blocks { segment: r.segment, block: r.block, count: r.blocks() }).collect()
        }
    }
}
