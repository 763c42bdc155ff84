//! The files of the checkpoint: how they are written, and read.

use super::StoreConfig;
use super::format::{
    CHECKPOINT_BLOCK_BYTES, CHECKPOINT_HEAD_BYTES, CheckpointEntry, CheckpointHead, FormatVersion,
};
use super::recover::{Reader, RecoverError};
use crate::io::FileRef;
use crate::state::ChunkState;
use common::checksum::crc32c;
use common::{ChunkHandle, Epoch};
use std::collections::BTreeMap;

/// What a checkpoint says.
pub(super) struct Loaded {
    pub sequence: u64,
    pub position: u64,
    pub segments: u32,
    pub chunks: BTreeMap<ChunkHandle, ChunkState>,
    pub floors: BTreeMap<ChunkHandle, Epoch>,
    pub horizon: ChunkHandle,
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
    super::format::encode_records(entries, &mut body);
    assert!(body.len() <= CHECKPOINT_BLOCK_BYTES - CHECKPOINT_HEAD_BYTES);
    let head = CheckpointHead { sequence, index, len: body.len() as u32, last, crc: crc32c(&body) };
    let mut out = head.encode().to_vec();
    out.extend_from_slice(&body);
    out.resize(CHECKPOINT_BLOCK_BYTES, 0);
    out
}

impl Reader<'_, '_> {
    /// The checkpoint in a slot, if a whole good one is there.
    pub(super) fn checkpoint(&mut self, slot: u32) -> Result<Option<Loaded>, RecoverError> {
        let mut loaded: Option<Loaded> = None;
        let mut of = ChunkHandle::HOLE;
        for index in 0.. {
            let offset = index as u64 * CHECKPOINT_BLOCK_BYTES as u64;
            let block = self.bytes(FileRef::Checkpoint(slot), offset, CHECKPOINT_BLOCK_BYTES as u32)?;
            let Some(head) = CheckpointHead::decode(&block) else {
                return Ok(None);
            };
            let body = &block[CHECKPOINT_HEAD_BYTES..CHECKPOINT_HEAD_BYTES + head.len as usize];
            let same = loaded.as_ref().is_none_or(|l| l.sequence == head.sequence);
            if head.index != index || !same || crc32c(body) != head.crc {
                return Ok(None);
            }
            let Some(entries) = split_entries(body) else {
                return Ok(None);
            };
            for entry in entries {
                match (entry, &mut loaded) {
                    (CheckpointEntry::Head { position, store_tag, segments, .. }, None) => {
                        if store_tag != self.config.tag {
                            return Err(RecoverError::OtherStore);
                        }
                        let (sequence, horizon) = (head.sequence, ChunkHandle(0));
                        let (chunks, floors) = (BTreeMap::new(), BTreeMap::new());
                        loaded = Some(Loaded { sequence, position, segments, chunks, floors, horizon });
                    }
                    (CheckpointEntry::Chunk(dump), Some(loaded)) => {
                        of = dump.config.handle;
                        loaded.chunks.insert(of, ChunkState::restore(dump));
                    }
                    (CheckpointEntry::Extents(list), Some(loaded)) => {
                        let good = loaded.chunks.get_mut(&of).is_some_and(|c| c.extents.restore(list));
                        if !good {
                            return Ok(None);
                        }
                    }
                    (CheckpointEntry::Tail(op, place), Some(loaded)) => {
                        let good = loaded.chunks.get_mut(&of).is_some_and(|c| c.restore_tail(op, place));
                        if !good {
                            return Ok(None);
                        }
                    }
                    (CheckpointEntry::Floors(floors), Some(loaded)) => loaded.floors.extend(floors),
                    (CheckpointEntry::Horizon(horizon), Some(loaded)) => loaded.horizon = horizon,
                    _ => return Ok(None),
                }
            }
            if head.last {
                break;
            }
        }
        Ok(loaded)
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
