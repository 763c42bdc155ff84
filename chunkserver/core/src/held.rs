//! Pieces that were pushed and wait for their commit. They are in extents already; nothing
//! refers to these yet, so a crash only frees them.

use crate::io::ConnId;
use crate::store::alloc::Blocks;
use crate::store::format::{Place, Run};
use common::limits::{HELD_BYTES_MAX, HELD_MS, PIECE_BYTES_MAX};
use common::wire::Piece;
use common::{ChunkHandle, RequestId, Span, StoreId, Time};
use std::collections::BTreeMap;

/// Who is told when a piece is held from here on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// A client.
    Client(ConnId, u64),
    /// The server before this one in the chain.
    Store(StoreId),
}

/// One piece.
#[derive(Clone, Debug)]
pub struct HeldPiece {
    piece: Piece,
    blocks: Blocks,
    written: bool,
    /// The next server of the chain, until it holds the piece too.
    pub awaits: Option<StoreId>,
    /// Who is told.
    pub upstream: Option<Upstream>,
}

/// The pieces of one write.
#[derive(Clone, Debug)]
pub struct HeldWrite {
    total: u32,
    since: Time,
    /// Blocks for the whole write, if they lie together.
    together: Option<Blocks>,
    /// The chunk at which a commit waits until the pieces are written.
    wanted_by: Option<ChunkHandle>,
    pieces: BTreeMap<u16, HeldPiece>,
}

/// All held pieces of a store.
#[derive(Clone, Debug, Default)]
pub struct HeldPieces {
    writes: BTreeMap<RequestId, HeldWrite>,
    bytes: usize,
}

/// Bytes of the piece with this index in a write of `total` bytes; `None` if there is no such.
pub fn piece_len(total: u32, index: u16) -> Option<u32> {
    let start = index as u64 * PIECE_BYTES_MAX as u64;
    let left = (total as u64).checked_sub(start).filter(|left| *left > 0)?;
    Some(left.min(PIECE_BYTES_MAX as u64) as u32)
}

impl HeldWrite {
    fn pieces_here(&self) -> bool {
        self.pieces.len() == self.total.div_ceil(PIECE_BYTES_MAX as u32) as usize
    }

    fn is_complete(&self) -> bool {
        self.pieces_here() && self.pieces.values().all(|p| p.written)
    }
}

impl HeldPieces {
    /// Whether more bytes would be too many.
    pub fn is_full(&self, more: usize) -> bool {
        self.bytes + more > HELD_BYTES_MAX
    }

    /// The piece, if it is known.
    pub fn get_mut(&mut self, request: RequestId, index: u16) -> Option<&mut HeldPiece> {
        self.writes.get_mut(&request)?.pieces.get_mut(&index)
    }

    /// The write's total, if any piece of it is known.
    pub fn total(&self, request: RequestId) -> Option<u32> {
        self.writes.get(&request).map(|w| w.total)
    }

    /// Adds a piece. `take` gives blocks.
    pub fn add<E>(
        &mut self,
        now: Time,
        request: RequestId,
        (index, total): (u16, u32),
        piece: Piece,
        (awaits, upstream): (Option<StoreId>, Upstream),
        mut take: impl FnMut(u32) -> Result<Blocks, E>,
    ) -> Result<Blocks, E> {
        let known = self.writes.contains_key(&request);
        if !known {
            let together = take(total).ok();
            let pieces = BTreeMap::new();
            self.writes.insert(request, HeldWrite { total, since: now, together, wanted_by: None, pieces });
        }
        let write = self.writes.get_mut(&request).expect("just made");
        let blocks = match write.together {
            Some(all) => {
                let first = index as u32 * (PIECE_BYTES_MAX / common::limits::BLOCK_BYTES) as u32;
                let count = piece.len.div_ceil(common::limits::BLOCK_BYTES as u32);
                Blocks { segment: all.segment, block: all.block + first, count }
            }
            None => match take(piece.len) {
                Ok(blocks) => blocks,
                Err(e) => {
                    if write.pieces.is_empty() {
                        self.writes.remove(&request);
                    }
                    return Err(e);
                }
            },
        };
        self.bytes += piece.len as usize;
        let held = HeldPiece { piece, blocks, written: false, awaits, upstream: Some(upstream) };
        write.pieces.insert(index, held);
        Ok(blocks)
    }

    /// The piece's data is written.
    pub fn written(&mut self, request: RequestId, index: u16) {
        if let Some(piece) = self.get_mut(request, index) {
            piece.written = true;
        }
    }

    /// Who may be told now that the piece is held from here on.
    pub fn ready(&mut self, request: RequestId, index: u16) -> Option<Upstream> {
        let piece = self.get_mut(request, index)?;
        if piece.written && piece.awaits.is_none() { piece.upstream.take() } else { None }
    }

    /// The bytes of a write whose every piece is written here.
    pub fn complete(&self, request: RequestId) -> Option<u32> {
        self.writes.get(&request).filter(|w| w.is_complete()).map(|w| w.total)
    }

    /// A commit of so many bytes waits until the pieces are written; false if some are not here. Whoever
    /// commits was told that the whole chain holds them: what is missing then was never handed on, and
    /// will not come.
    pub fn want(&mut self, request: RequestId, len: u32, handle: ChunkHandle) -> bool {
        let Some(write) = self.writes.get_mut(&request).filter(|w| w.total == len && w.pieces_here()) else {
            return false;
        };
        write.wanted_by = Some(handle);
        true
    }

    /// The chunk at which a commit waits for this write.
    pub fn wanted_by(&self, request: RequestId) -> Option<ChunkHandle> {
        self.writes.get(&request)?.wanted_by
    }

    /// The write is committed to the log: its bytes' place, and nothing is held any more.
    /// All pieces must be written.
    pub fn claim(&mut self, request: RequestId) -> Place {
        let write = self.writes.remove(&request).expect("complete");
        assert!(write.is_complete(), "{request} is not complete");
        let mut runs: Vec<Run> = vec![];
        for (_, held) in write.pieces {
            self.bytes -= held.piece.len as usize;
            let follows = |run: &Run| {
                run.segment == held.blocks.segment
                    && run.len.is_multiple_of(common::limits::BLOCK_BYTES as u32)
                    && run.block + run.blocks() == held.blocks.block
            };
            match runs.last_mut().filter(|run| follows(run)) {
                Some(run) => {
                    run.len += held.piece.len;
                    run.crcs.extend(held.piece.crcs);
                }
                None => runs.push(Run {
                    segment: held.blocks.segment,
                    block: held.blocks.block,
                    len: held.piece.len,
                    crcs: held.piece.crcs,
                }),
            }
        }
        Place::Runs(runs)
    }

    /// Pieces that wait for a server that does not answer: who is told so.
    pub fn chain_lost(&mut self, peer: StoreId) -> Vec<(RequestId, u16, Upstream)> {
        let mut told = vec![];
        for (request, write) in &mut self.writes {
            for (index, piece) in &mut write.pieces {
                if piece.awaits == Some(peer) {
                    piece.awaits = None;
                    told.extend(piece.upstream.take().map(|up| (*request, *index, up)));
                }
            }
        }
        told
    }

    /// Drops writes whose commit never came and whose data is at rest: their blocks.
    pub fn expire(&mut self, now: Time) -> Vec<Blocks> {
        let old =
            |w: &HeldWrite| w.since + Span::from_ms(HELD_MS) <= now && w.pieces.values().all(|p| p.written);
        let expired: Vec<RequestId> = self.writes.iter().filter(|(_, w)| old(w)).map(|(r, _)| *r).collect();
        expired.into_iter().flat_map(|request| self.drop_write(request)).collect()
    }

    /// Forgets a write, all of whose data is at rest: its blocks.
    pub fn drop_write(&mut self, request: RequestId) -> Vec<Blocks> {
        let Some(write) = self.writes.remove(&request) else {
            return vec![];
        };
        self.bytes -= write.pieces.values().map(|p| p.piece.len as usize).sum::<usize>();
        match write.together {
            Some(all) => vec![all],
            None => write.pieces.into_values().map(|p| p.blocks).collect(),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
