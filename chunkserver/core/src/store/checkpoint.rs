//! The files of the checkpoint: how they are written, and read. Each begins with a checkpoint that says everything; those
//! that follow it in the file say what has changed since the one before them there.

use super::StoreConfig;
use super::format::{
    CHECKPOINT_BLOCK_BYTES, CHECKPOINT_HEAD_BYTES, CheckpointEntry, CheckpointHead, FormatVersion,
    encode_records,
};
use super::recover::{Reader, RecoverError};
use crate::io::FileRef;
use crate::state::ChunkState;
use common::checksum::crc32c;
use common::{ChunkHandle, Epoch};
use std::collections::BTreeMap;

/// Changes may follow in so many blocks, or in as many as the whole checkpoint takes: what is written, and what is read at
/// a start, is twice what it needs to be at most.
const CHANGES_BLOCKS: u32 = 8;

/// What this life of the store has written into one file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    /// The last checkpoint in it.
    pub sequence: u64,
    /// Blocks of the first, which is whole, and of all.
    whole: u32,
    blocks: u32,
}

impl Written {
    /// A checkpoint takes the blocks of the file up to here; the first one, or after what was there.
    pub fn after(before: Option<Written>, sequence: u64, blocks: u32) -> Written {
        Written { sequence, whole: before.map_or(blocks, |b| b.whole), blocks }
    }

    /// Where the next checkpoint begins.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Whether it is time for a whole one.
    pub fn is_long(&self) -> bool {
        self.blocks - self.whole >= self.whole.max(CHANGES_BLOCKS)
    }
}

/// The blocks of an empty store's first checkpoint.
pub fn first_checkpoint(config: &StoreConfig) -> Vec<u8> {
    let head =
        CheckpointEntry::Head { version: FormatVersion::V1, position: 0, store_tag: config.tag, segments: 0 };
    checkpoint_block(1, 0, true, &[common::wire::to_vec(&head)])
}

/// A block of a checkpoint.
pub fn checkpoint_block(sequence: u64, index: u32, last: bool, entries: &[Vec<u8>]) -> Vec<u8> {
    let mut body = vec![];
    encode_records(entries, &mut body);
    assert!(body.len() <= CHECKPOINT_BLOCK_BYTES - CHECKPOINT_HEAD_BYTES);
    let head = CheckpointHead { sequence, index, len: body.len() as u32, last, crc: crc32c(&body) };
    let mut out = head.encode().to_vec();
    out.extend_from_slice(&body);
    out.resize(CHECKPOINT_BLOCK_BYTES, 0);
    out
}

/// What a file says.
pub(super) struct Loaded {
    /// The last checkpoint in it.
    pub sequence: u64,
    /// The life of the store that wrote it; 0, if it does not say.
    by: u64,
    /// Replay starts here.
    pub position: u64,
    /// Segments of extents.
    pub segments: u32,
    pub chunks: BTreeMap<ChunkHandle, ChunkState>,
    pub floors: BTreeMap<ChunkHandle, Epoch>,
    pub horizon: ChunkHandle,
    /// The chunk that extents and tails belong to.
    of: ChunkHandle,
}

impl Loaded {
    /// What an entry says; false, if it has no place here.
    fn apply(&mut self, entry: CheckpointEntry) -> bool {
        let of = self.of;
        match entry {
            CheckpointEntry::Chunk(dump) => {
                self.of = dump.config.handle;
                self.chunks.insert(self.of, ChunkState::restore(dump));
                true
            }
            CheckpointEntry::Extents(list) => {
                self.chunks.get_mut(&of).is_some_and(|chunk| chunk.extents.restore(list))
            }
            CheckpointEntry::Tail(op, place) => {
                self.chunks.get_mut(&of).is_some_and(|chunk| chunk.restore_tail(op, place))
            }
            CheckpointEntry::Gone(handle) => {
                self.chunks.remove(&handle);
                true
            }
            CheckpointEntry::Floors(floors) => {
                self.floors.extend(floors);
                true
            }
            CheckpointEntry::Horizon(horizon) => {
                self.horizon = horizon;
                true
            }
            CheckpointEntry::Head { .. } | CheckpointEntry::Written { .. } => false,
        }
    }
}

/// A block that was read, and is good.
struct Block {
    head: CheckpointHead,
    entries: Vec<CheckpointEntry>,
}

/// The beginning of a checkpoint.
struct Begin {
    position: u64,
    segments: u32,
    by: u64,
    since: Option<u64>,
}

impl Block {
    /// If a checkpoint begins here: how, and the rest of its entries.
    fn begin(self, tag: u64) -> Result<Option<(Begin, Vec<CheckpointEntry>)>, RecoverError> {
        let mut entries = self.entries.into_iter().peekable();
        let Some(CheckpointEntry::Head { position, store_tag, segments, .. }) = entries.next() else {
            return Ok(None);
        };
        if store_tag != tag {
            return Err(RecoverError::OtherStore);
        }
        let written = entries.next_if(|entry| matches!(entry, CheckpointEntry::Written { .. }));
        let (by, since) = match written {
            Some(CheckpointEntry::Written { by, since }) => (by, since),
            _ => (0, None),
        };
        Ok(Some((Begin { position, segments, by, since }, entries.collect())))
    }
}

impl Reader<'_, '_> {
    /// The last whole checkpoint in a file, if there is one.
    pub(super) fn checkpoint(&mut self, slot: u32) -> Result<Option<Loaded>, RecoverError> {
        match self.checkpoints(slot, u32::MAX)? {
            Ok(loaded) => Ok(Some(loaded)),
            Err(0) => Ok(None),
            // One was begun, and is not whole: what was there before.
            Err(whole) => Ok(self.checkpoints(slot, whole)?.ok()),
        }
    }

    /// The first checkpoints in a file, so many at most; or how many of them are whole, if the one after those is not.
    fn checkpoints(&mut self, slot: u32, most: u32) -> Result<Result<Loaded, u32>, RecoverError> {
        let mut loaded: Option<Loaded> = None;
        let mut index = 0;
        for count in 0..most {
            let Some(first) = self.block(slot, index)? else {
                return Ok(loaded.ok_or(0));
            };
            let mut head = first.head;
            let Some((begin, mut entries)) = first.begin(self.config.tag)? else {
                return Ok(loaded.ok_or(0));
            };
            let (Begin { position, segments, by, since }, sequence) = (begin, head.sequence);
            let next = match (loaded.take(), since) {
                (None, None) => {
                    let (chunks, floors) = (BTreeMap::new(), BTreeMap::new());
                    let (horizon, of) = (ChunkHandle(0), ChunkHandle::HOLE);
                    Loaded { sequence, by, position, segments, chunks, floors, horizon, of }
                }
                (Some(before), Some(since)) if since == before.sequence && by == before.by => {
                    let (floors, of) = (BTreeMap::new(), ChunkHandle::HOLE);
                    Loaded { sequence, position, segments, floors, of, ..before }
                }
                // What was there before the whole one was written.
                (before, _) => return Ok(before.ok_or(0)),
            };
            let next = loaded.insert(next);
            loop {
                if !entries.into_iter().all(|entry| next.apply(entry)) {
                    return Ok(Err(count));
                }
                index += 1;
                if head.last {
                    break;
                }
                let Some(block) = self.block(slot, index)?.filter(|b| b.head.sequence == sequence) else {
                    return Ok(Err(count));
                };
                (head, entries) = (block.head, block.entries);
            }
        }
        Ok(loaded.ok_or(0))
    }

    /// The block of this number in a file, if it is good.
    fn block(&mut self, slot: u32, index: u32) -> Result<Option<Block>, RecoverError> {
        let offset = index as u64 * CHECKPOINT_BLOCK_BYTES as u64;
        let block = self.bytes(FileRef::Checkpoint(slot), offset, CHECKPOINT_BLOCK_BYTES as u32)?;
        let Some(head) = CheckpointHead::decode(&block).filter(|head| head.index == index) else {
            return Ok(None);
        };
        let body = &block[CHECKPOINT_HEAD_BYTES..CHECKPOINT_HEAD_BYTES + head.len as usize];
        let entries = (crc32c(body) == head.crc).then(|| split_entries(body)).flatten();
        Ok(entries.map(|entries| Block { head, entries }))
    }
}

fn split_entries(mut body: &[u8]) -> Option<Vec<CheckpointEntry>> {
    let mut entries = vec![];
    while !body.is_empty() {
        let (len, rest) = body.split_first_chunk::<4>()?;
        let len = u32::from_le_bytes(*len) as usize;
        entries.push(common::wire::from_slice(rest.get(..len)?).ok()?);
        body = &rest[len..];
    }
    Some(entries)
}
