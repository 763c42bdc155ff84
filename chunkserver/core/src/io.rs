//! Everything the world can tell a chunk node, and everything a node asks of the world.

use bytes::Bytes;
use common::wire::ChunkConfig;
use common::wire::chunk_chunk::Peer;
use common::wire::chunk_master::{Order, RepairOrder, StoreRequest};
use common::wire::client_chunk::{ClientChunk, ClientChunkReply};
use common::wire::local::Post;
use common::{ChunkHandle, Epoch, Refusal, Serial, SessionId, StoreId, Time};
use std::num::NonZeroU32;

/// A client's connection, as the shell numbers them.
pub type ConnId = u64;

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A client asks. The payload's checksums have been verified by the shell.
    Client {
        /// On which connection.
        conn: ConnId,
        /// Which request of it.
        request: u64,
        /// The epoch under which it asks.
        epoch: Epoch,
        /// The last snapshot that it knows of.
        snapshot: u64,
        /// What.
        msg: ClientChunk,
        /// The payload.
        data: Bytes,
    },
    /// Another store says something. The payload's checksums have been verified by the shell.
    Peer {
        /// Who.
        from: StoreId,
        /// The last snapshot that it knows of.
        snapshot: u64,
        /// What.
        msg: Peer,
        /// The payload.
        data: Bytes,
    },
    /// The connection to a store broke and stands again: what was under way may be lost.
    PeerReset {
        /// Which.
        peer: StoreId,
    },
    /// The connection to a store broke and cannot be made again.
    PeerLost {
        /// Which.
        peer: StoreId,
    },
    /// The masters answer `MasterAsk` about this chunk.
    Master {
        /// The chunk.
        handle: ChunkHandle,
        /// The number of the question.
        number: NonZeroU32,
        /// Its configuration, or no.
        answer: Result<ChunkConfig, Refusal>,
    },
    /// The store's session: which, and until when it may serve.
    Session {
        /// Which.
        session: SessionId,
        /// Until when.
        until: Time,
        /// The next chunk that the masters name has this handle or a later one.
        next_chunk: ChunkHandle,
    },
    /// What the masters want; answered by `Output::Confirmed`.
    Orders(Vec<Order>),
    /// The last snapshot that was taken, as the masters' last renewal of the session says.
    Snapshot(u64),
    /// Files were cut within these chunks since this was last said; `None`: perhaps in any that this store leads.
    Cut(Option<Vec<ChunkHandle>>),
    /// The masters answer `Ask::Fork` about this chunk.
    Fork {
        /// The chunk.
        handle: ChunkHandle,
        /// The number of the question.
        number: NonZeroU32,
        /// The epoch that was named in it.
        epoch: Epoch,
        /// The fork to make; `None`: no snapshot needs the chunk.
        to: Option<ChunkConfig>,
        /// For the snapshots up to this one.
        snapshot: u64,
    },
    /// Chunks of which this store shall become a member: all of them.
    Repairs(Vec<RepairOrder>),
    /// The disk has done something.
    Disk(DiskDone),
    /// The shell was asked to stop: write a checkpoint, so that the next start is quick.
    Checkpoint {
        /// Whether it gathers what lies scattered, or ends soon.
        gathers: bool,
    },
    /// `deadline()` has come; harmless otherwise.
    Wake,
}

/// What a node wants done, in no particular order, but for posts: those are done before all others of a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Goes onto the board that clients on this machine look at, after the posts that came before it.
    Post(Post),
    /// Answers a client.
    Reply {
        /// On which connection.
        conn: ConnId,
        /// Which request of it.
        request: u64,
        /// What.
        msg: ClientChunkReply,
        /// The payload, in parts.
        data: Vec<Bytes>,
    },
    /// Says something to another store.
    Peer {
        /// To whom.
        to: StoreId,
        /// What.
        msg: Peer,
        /// The payload, in parts.
        data: Vec<Bytes>,
    },
    /// Asks the masters; answered by `Input::Master`.
    Master(MasterAsk),
    /// Orders that are carried out, durably.
    Confirmed(Vec<Order>),
    /// The disk does something; answered by `Input::Disk`.
    Disk(DiskOp),
    /// The disk has failed: the store is out of service.
    Failed(String),
}

/// What a node asks of the masters about a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MasterAsk {
    /// The chunk.
    pub handle: ChunkHandle,
    /// Another for each life that the chunk has had here: the answer says it again.
    pub number: NonZeroU32,
    /// What.
    pub what: Ask,
}

impl MasterAsk {
    /// As this store asks it, in this session.
    pub fn request(self, store: StoreId, session: SessionId) -> StoreRequest {
        let handle = self.handle;
        match self.what {
            Ask::Confirm => StoreRequest::Confirm { store, session, handle },
            Ask::Takeover { epoch } => StoreRequest::Takeover { store, handle, epoch },
            Ask::Silent { epoch, accused } => {
                StoreRequest::Silent { store, handle, epoch, accused: vec![accused] }
            }
            Ask::Corrupt { epoch } => StoreRequest::Corrupt { store, handle, epoch },
            Ask::Join { epoch, learner, attempt } => {
                StoreRequest::Join { store, handle, epoch, learner, attempt }
            }
            Ask::Slow { epoch, accused } => StoreRequest::Slow { store, handle, epoch, accused },
            Ask::Fork { epoch } => StoreRequest::Fork { store, handle, epoch },
            Ask::Forked { epoch, to, length } => StoreRequest::Forked { store, handle, epoch, to, length },
            Ask::Seal { epoch, length, serial } => {
                StoreRequest::Seal { store, handle, epoch, length, serial }
            }
        }
    }
}

/// The question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// May I serve it, and how does it stand?
    Confirm,
    /// I lead it and have lost track: a new epoch, please.
    Takeover {
        /// The epoch I know.
        epoch: Epoch,
    },
    /// This member does not answer.
    Silent {
        /// The epoch I know.
        epoch: Epoch,
        /// The member.
        accused: StoreId,
    },
    /// This member answers, but holds writers up.
    Slow {
        /// The epoch I know.
        epoch: Epoch,
        /// The member, perhaps I myself.
        accused: StoreId,
    },
    /// I have stopped admitting: seal it here.
    Seal {
        /// The epoch I know.
        epoch: Epoch,
        /// Bytes.
        length: u64,
        /// Last serial.
        serial: Serial,
    },
    /// My copy does not match its checksums: without me, please.
    Corrupt {
        /// The epoch I know.
        epoch: Epoch,
    },
    /// I have stopped admitting, and this learner holds everything: a new epoch with it.
    Join {
        /// The epoch I know.
        epoch: Epoch,
        /// The learner.
        learner: StoreId,
        /// The masters' number of the attempt.
        attempt: u64,
    },
    /// I am about to write to it for the first time since a snapshot was taken.
    Fork {
        /// The epoch I know.
        epoch: Epoch,
    },
    /// All members have made this fork, and nothing was written meanwhile.
    Forked {
        /// The epoch I know.
        epoch: Epoch,
        /// The fork.
        to: ChunkHandle,
        /// Its bytes.
        length: u64,
    },
}

/// A file of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileRef {
    /// A slot of the log's ring.
    Log(u32),
    /// A segment of extents.
    Extents(u32),
    /// One of the two checkpoints.
    Checkpoint(u32),
}

/// Names a disk operation until it is done.
pub type Token = u64;

/// One operation of the disk.
#[derive(Clone, Debug, PartialEq)]
pub struct DiskOp {
    /// Names it.
    pub token: Token,
    /// Which file.
    pub file: FileRef,
    /// What.
    pub kind: DiskKind,
}

/// What the disk does.
#[derive(Clone, Debug, PartialEq)]
pub enum DiskKind {
    /// Reads; a short file reads as zeros.
    Read {
        /// First byte; a multiple of the block.
        offset: u64,
        /// Bytes; a multiple of the block.
        len: u32,
    },
    /// Writes whole blocks; data that ends within a block is padded with zeros.
    Write {
        /// First byte; a multiple of the block.
        offset: u64,
        /// What.
        data: Bytes,
        /// Durable when done (this write only).
        durable: bool,
    },
    /// Makes durable what was completed before, of this file.
    Sync,
    /// Makes a new file, durably, its name included, and takes the room that its bytes will need; it reads as zeros.
    Allocate {
        /// Its bytes.
        len: u64,
    },
    /// Gives back the room that a file has: it is empty then. Not durable; nobody cares for what was in it.
    Release,
}

/// The end of an operation.
#[derive(Clone, Debug, PartialEq)]
pub struct DiskDone {
    /// Which.
    pub token: Token,
    /// The bytes of a read, nothing for the others, or what went wrong.
    pub result: Result<Bytes, String>,
}

/// Where a step puts its outputs.
pub type Outbox = Vec<Output>;
