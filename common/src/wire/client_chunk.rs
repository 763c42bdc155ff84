//! Client to store.

use super::frame::Kind;
use super::{ChunkConfig, Message, Piece};
use crate::limits::BLOCK_BYTES;
use crate::{ChunkHandle, Epoch, Refusal, RequestId, Serial, SessionId, StoreId};
use bincode::{Decode, Encode};

/// What a client asks of a store. The epoch under which it asks is in the frame's header.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ClientChunk {
    /// A piece of a coming write; the payload. Goes along the chain.
    Push {
        /// The write it belongs to.
        request: RequestId,
        /// The chunk it is for.
        handle: ChunkHandle,
        /// Which piece of the write.
        index: u16,
        /// Bytes of the write in all.
        total: u32,
        /// Who gets it after this store, in this order.
        chain: Vec<StoreId>,
        /// Length and checksums of the payload.
        piece: Piece,
    },
    /// Commits pieces that are held, or the payload itself.
    Write {
        /// Names the write.
        request: RequestId,
        /// The client's lowest request that has not been answered.
        lowest: u64,
        /// The chunk.
        handle: ChunkHandle,
        /// Where; `None` appends.
        offset: Option<u64>,
        /// Bytes in all.
        len: u32,
        /// If the bytes are the payload: their checksums. Else they were pushed.
        inline: Option<Piece>,
        /// The configuration, for a chunk that may not exist on its members yet.
        create: Option<ChunkConfig>,
    },
    /// Reads a range; at most `PIECE_BYTES_MAX`.
    Read {
        /// The chunk.
        handle: ChunkHandle,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Whether the answer may be as old as a session.
        stale: bool,
    },
    /// The exact length of a chunk, from its primary.
    Stat {
        /// The chunk.
        handle: ChunkHandle,
    },
    /// Seals a chunk at its present length; asked of the primary.
    Seal {
        /// The chunk.
        handle: ChunkHandle,
    },
    /// Where a range lies in the store's files, for a client on the same machine; at most `LOCATED_BYTES_MAX`.
    Locate {
        /// The chunk.
        handle: ChunkHandle,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Makes another chunk of the same blocks, at all members; asked of the primary, under the epoch that the masters
    /// named with it.
    Fork {
        /// The chunk.
        handle: ChunkHandle,
        /// The other one.
        to: ChunkConfig,
    },
    /// The masters have cut the file before the end of this chunk: whoever leads it shall ask them what is left of it before
    /// it answers, and admit nothing else from then on. Answered as `Seal`.
    Cut {
        /// The chunk.
        handle: ChunkHandle,
        /// Something is left of it.
        within: bool,
    },
}

impl Message for ClientChunk {
    const KIND: Kind = Kind::ClientChunk;
}

/// What a store answers a client.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ClientChunkReply {
    /// The piece is held by this store and all after it in the chain.
    Held,
    /// The write is durable on all members.
    Written {
        /// Where it lies.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Its place in the chunk's order.
        serial: Serial,
        /// How many replicas hold it.
        replicas: u8,
    },
    /// The bytes of a read: the payload, in runs with their own checksums. Shorter than asked
    /// where the chunk ends.
    Data {
        /// The runs, one after another.
        pieces: Vec<Piece>,
    },
    /// The state of a chunk at a member.
    Stat {
        /// Bytes that are committed.
        length: u64,
        /// The epoch.
        epoch: Epoch,
        /// Last committed serial.
        committed: Serial,
        /// Last serial that is durable here.
        applied: Serial,
        /// The sealed length.
        sealed: Option<u64>,
    },
    /// The chunk is sealed.
    Sealed {
        /// Bytes.
        length: u64,
    },
    /// No.
    Refused(Refusal),
    /// Where a range lies, as long as the board says so (`wire::local`). Gaps are zeros.
    Located {
        /// The session in which this is so.
        session: SessionId,
        /// What the chunk's slot of the board shows as long as it is.
        stamp: u64,
        /// Bytes of the range that the chunk has, from its first one on.
        len: u32,
        /// The parts that are no gaps, by offset.
        places: Vec<Place>,
    },
    /// All members hold the fork.
    Forked {
        /// Its bytes.
        length: u64,
    },
}

/// Bytes of a chunk in a segment of its store: a part of a run, which is cut into slices of 4 KiB from its first byte.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Place {
    /// First byte in the chunk.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
    /// The segment.
    pub segment: u32,
    /// The block of it in which the run begins.
    pub block: u32,
    /// Bytes of the run before the first.
    pub skip: u32,
    /// Bytes of the run.
    pub run: u32,
    /// A CRC-32C for each slice of the run up to the last byte.
    pub crcs: Vec<u32>,
}

impl Place {
    /// Whether such a part can be.
    pub fn is_sound(&self) -> bool {
        let end = self.skip.checked_add(self.len).filter(|end| self.len > 0 && *end <= self.run);
        end.is_some_and(|end| self.crcs.len() == end.div_ceil(BLOCK_BYTES as u32) as usize)
            && self.offset.checked_add(self.len).is_some()
    }
}

impl Message for ClientChunkReply {
    const KIND: Kind = Kind::ClientChunkReply;
}
