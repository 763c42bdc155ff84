//! Store to store. Each message goes one way; an answer is a message of its own.

use super::frame::Kind;
use super::{ChunkConfig, Message, Piece};
use crate::limits::{CHUNK_ANSWERS_MAX, CHUNK_BYTES_MAX, INLINE_BYTES_MAX, TAIL_MAX, WRITE_BYTES_MAX};
use crate::{ChunkHandle, ClientId, Code, Epoch, RequestId, Serial, StoreId};
use bincode::{Decode, Encode};

/// Who first gave a write its serial: the epoch, and which start of the primary's process in it.
/// A primary that lost an unacknowledged creation and starts over in the same epoch is told apart
/// by the latter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Origin {
    /// The epoch.
    pub epoch: Epoch,
    /// The incarnation of the primary's store.
    pub incarnation: u64,
}

/// What a write does; the same in the message, in the log and in memory.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WriteOp {
    /// Who first gave it its serial.
    pub origin: Origin,
    /// Its place in the chunk's order.
    pub serial: Serial,
    /// Whose write it is.
    pub request: RequestId,
    /// The client's lowest request that has not been answered.
    pub lowest: u64,
    /// Where it lies in the chunk.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

impl WriteOp {
    /// Why this cannot be a write, if so.
    pub fn invalid(&self) -> Option<Code> {
        let len = self.len as u64;
        let bad = !(1..=WRITE_BYTES_MAX as u64).contains(&len)
            || self.offset > CHUNK_BYTES_MAX - len
            || self.serial == Serial(0)
            || self.serial > Serial::MAX;
        bad.then_some(Code::BadArgument)
    }
}

/// The last record of a replica's tail: what tails are compared by.
pub type LogPoint = (Origin, Serial);

/// An answer that a chunk remembers for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Answer {
    /// The request's number.
    pub seq: u64,
    /// Where the write lies.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
    /// Its serial.
    pub serial: Serial,
}

/// The answers that a chunk remembers for one client.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Answers {
    /// The client.
    pub client: ClientId,
    /// Requests below this are refused.
    pub lowest: u64,
    /// The answers, by rising number.
    pub answers: Vec<Answer>,
}

/// Store to store.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Peer {
    /// A piece, on its way along the chain; the payload.
    Forward {
        /// The write it belongs to.
        request: RequestId,
        /// The chunk it is for.
        handle: ChunkHandle,
        /// Which piece of the write.
        index: u16,
        /// Bytes of the write in all.
        total: u32,
        /// Who gets it after this store.
        chain: Vec<StoreId>,
        /// Length and checksums.
        piece: Piece,
    },
    /// Back along the chain: the piece is held from here on, or is not.
    Held {
        /// The write.
        request: RequestId,
        /// Which piece.
        index: u16,
        /// Why it is not.
        refused: Option<Code>,
    },
    /// Primary to secondary: this is the next write. Inline bytes are the payload.
    Apply {
        /// The chunk.
        handle: ChunkHandle,
        /// The epoch of the primary.
        epoch: Epoch,
        /// The write.
        op: WriteOp,
        /// The origin of the write before it in the chunk's order, which must be the last one there.
        after: Origin,
        /// Checksums of the payload, if the bytes are inline.
        inline: Option<Piece>,
        /// Everything up to here is committed.
        committed: Serial,
        /// For a chunk that may not exist here yet.
        create: Option<ChunkConfig>,
    },
    /// Secondary to primary: everything up to this serial is durable here.
    Applied {
        /// The chunk.
        handle: ChunkHandle,
        /// The epoch of the Apply.
        epoch: Epoch,
        /// The serial.
        serial: Serial,
    },
    /// Secondary to primary: an Apply is refused.
    ApplyRefused {
        /// The chunk.
        handle: ChunkHandle,
        /// The epoch at the secondary.
        epoch: Epoch,
        /// Last serial that is in order here (for `Gap`).
        applied: Serial,
        /// Why.
        code: Code,
    },
    /// Primary to secondary: everything up to here is committed.
    Commit {
        /// The chunk.
        handle: ChunkHandle,
        /// The epoch.
        epoch: Epoch,
        /// The commit point.
        committed: Serial,
        /// The question that this answers, or 0.
        nonce: u64,
    },
    /// Secondary to primary: what is committed? Answered by `Commit`. A primary that does not lead
    /// under this epoch yet begins to.
    AskCommit {
        /// The chunk.
        handle: ChunkHandle,
        /// The epoch.
        epoch: Epoch,
        /// Names the question.
        nonce: u64,
    },
    /// New primary to member: a configuration that the masters committed.
    NewEpoch {
        /// The configuration.
        config: ChunkConfig,
    },
    /// Member to new primary: the epoch is durable here; this is my tail.
    Tail {
        /// The chunk.
        handle: ChunkHandle,
        /// The epoch that was promised.
        epoch: Epoch,
        /// Everything up to here is known committed here.
        committed: Serial,
        /// The records after it.
        tail: Vec<LogPoint>,
        /// The last record of all: of the tail, or else the last committed one.
        last: LogPoint,
    },
    /// New primary to member: drop the tail after this serial.
    Adopt {
        /// The chunk.
        handle: ChunkHandle,
        /// The epoch.
        epoch: Epoch,
        /// Last serial to keep.
        keep: Serial,
        /// Everything up to here is committed.
        committed: Serial,
    },
    /// Member to new primary: the tail is cut, durably.
    Adopted {
        /// The chunk.
        handle: ChunkHandle,
        /// The epoch.
        epoch: Epoch,
    },
    /// Asks for a record's bytes, piece by piece.
    Fetch {
        /// The chunk.
        handle: ChunkHandle,
        /// The epoch.
        epoch: Epoch,
        /// The record.
        serial: Serial,
        /// Which 256 KiB of it.
        index: u16,
    },
    /// The record, and the bytes asked for: the payload.
    Fetched {
        /// The chunk.
        handle: ChunkHandle,
        /// The epoch.
        epoch: Epoch,
        /// The record.
        op: WriteOp,
        /// Which 256 KiB of it.
        index: u16,
        /// Checksums of the payload; `None` if it cannot be had.
        piece: Option<Piece>,
    },
    /// Learner to primary: the next committed bytes, please.
    Copy {
        /// Which copy.
        copy: CopyId,
        /// Names the question.
        nonce: u64,
        /// Only what was written after this serial.
        since: Serial,
        /// Only from this byte on.
        from: u32,
        /// Nothing shall change any more: this is the last round.
        halt: bool,
    },
    /// Primary to learner: bytes of the chunk, the payload.
    CopyData {
        /// Which copy.
        copy: CopyId,
        /// The question that this answers.
        nonce: u64,
        /// The bytes and where they lie; `None` if there are none from there on.
        piece: Option<(u32, Piece)>,
        /// The last committed record when the bytes were looked up.
        committed: LogPoint,
        /// Bytes of the chunk.
        length: u32,
    },
    /// Learner to primary, in the last round: the remembered answers after this client's, please.
    CopyAnswers {
        /// Which copy.
        copy: CopyId,
        /// Names the question.
        nonce: u64,
        /// The last client that is known.
        after: Option<ClientId>,
    },
    /// Primary to learner: remembered answers, by client.
    CopiedAnswers {
        /// Which copy.
        copy: CopyId,
        /// The question that this answers.
        nonce: u64,
        /// At most `COPY_ANSWERS_MAX`.
        answers: Vec<Answers>,
        /// Whether there are more.
        more: bool,
    },
    /// Learner to primary: everything up to here is durable here.
    Copied {
        /// Which copy.
        copy: CopyId,
        /// The last record.
        point: LogPoint,
    },
    /// Primary to learner: this copy comes to nothing; the masters begin another.
    CopyRefused {
        /// Which copy.
        copy: CopyId,
        /// Why.
        code: Code,
    },
    /// Primary to secondary: make another chunk of the same bytes, as they are at this point.
    Fork {
        /// The chunk.
        handle: ChunkHandle,
        /// The epoch.
        epoch: Epoch,
        /// Its last record, which is committed.
        point: LogPoint,
        /// The other chunk, sealed.
        config: ChunkConfig,
    },
    /// It is made, durably.
    Forked {
        /// The chunk.
        handle: ChunkHandle,
        /// The epoch.
        epoch: Epoch,
        /// The other chunk.
        to: ChunkHandle,
    },
}

/// Names an attempt to make a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct CopyId {
    /// The chunk.
    pub handle: ChunkHandle,
    /// The epoch that it begins from.
    pub epoch: Epoch,
    /// The masters' number.
    pub attempt: u64,
}

/// Most clients whose answers travel in one message.
pub const COPY_ANSWERS_MAX: usize = 4;

impl Peer {
    /// Whether it carries many bytes: such messages have a connection of their own, so that the
    /// others never wait behind them.
    pub fn is_bulk(&self) -> bool {
        matches!(self, Peer::Forward { .. } | Peer::Fetched { .. } | Peer::CopyData { .. })
    }

    /// Why this cannot be said, if so, whatever the receiver's state. The payload is checked apart.
    pub fn invalid(&self) -> Option<Code> {
        let fits = |serial: &Serial| *serial <= Serial::MAX;
        let good = match self {
            Peer::Apply { op, inline, committed, create, handle, .. } => {
                op.invalid().is_none()
                    && fits(committed)
                    && inline.as_ref().is_none_or(|p| p.len == op.len && p.len as usize <= INLINE_BYTES_MAX)
                    && create.as_ref().is_none_or(|c| c.invalid().is_none() && c.handle == *handle)
            }
            Peer::NewEpoch { config } => config.invalid().is_none(),
            Peer::Tail { committed, tail, last, .. } => {
                // One serial after another, and the last is the last.
                let serials = (committed.0..).skip(1);
                fits(committed)
                    && tail.len() <= TAIL_MAX
                    && tail.iter().zip(serials).all(|((_, serial), n)| serial.0 == n)
                    && tail.last().map_or(last.1 == *committed, |end| end == last)
            }
            Peer::Adopt { keep, committed, .. } => fits(keep) && committed <= keep,
            Peer::Applied { serial, .. } | Peer::ApplyRefused { applied: serial, .. } => fits(serial),
            Peer::Commit { committed, .. } => fits(committed),
            Peer::Fetch { serial, .. } => fits(serial),
            Peer::Fetched { op, .. } => op.invalid().is_none(),
            Peer::Copy { since, from, .. } => fits(since) && *from as u64 <= CHUNK_BYTES_MAX,
            Peer::CopyData { piece, committed, length, .. } => {
                let within = |(at, piece): &(u32, Piece)| *at as u64 + piece.len as u64 <= *length as u64;
                fits(&committed.1) && *length as u64 <= CHUNK_BYTES_MAX && piece.as_ref().is_none_or(within)
            }
            Peer::CopiedAnswers { answers, .. } => {
                answers.len() <= COPY_ANSWERS_MAX
                    && answers.iter().all(|a| a.answers.len() <= CHUNK_ANSWERS_MAX)
            }
            Peer::Copied { point, .. } => fits(&point.1),
            Peer::Fork { point, config, .. } => {
                fits(&point.1)
                    && config.invalid().is_none()
                    && config.sealed.is_some_and(|l| l <= CHUNK_BYTES_MAX)
            }
            Peer::Forked { .. } => true,
            Peer::CopyAnswers { .. } | Peer::CopyRefused { .. } => true,
            Peer::Forward { .. } | Peer::Held { .. } | Peer::AskCommit { .. } | Peer::Adopted { .. } => true,
        };
        (!good).then_some(Code::BadArgument)
    }
}

impl Message for Peer {
    const KIND: Kind = Kind::Peer;
}
