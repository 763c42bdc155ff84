//! All that may enter the log. Variants are only ever appended.

use crate::Before;
use bincode::{Decode, Encode};
use common::wire::chunk_master::{Order, Register, StoreReply};
use common::wire::client_master::{MasterReply, Mutation};
use common::{ChunkHandle, ClientId, Epoch, Refusal, RequestId, SessionId, StoreId};

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Entry {
    /// The log's time when the leader proposed it, in nanoseconds.
    pub stamp_ns: u64,
    /// The wall clock; it only fills modification times.
    pub wall_ns: i64,
    /// Chance, drawn by the leader.
    pub salt: u64,
    /// What to do.
    pub command: Command,
}

/// What an entry does.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Command {
    /// A client changes the name space, exactly once.
    Mutate {
        /// Names it.
        request: RequestId,
        /// The client's lowest unanswered request.
        lowest: u64,
        /// What to do.
        mutation: Mutation,
    },
    /// A store begins a session.
    Register(Register),
    /// A session is over: it lapsed by the leader's count, or its process is proved dead.
    StoreDown {
        /// Whose.
        store: StoreId,
        /// Which.
        session: SessionId,
    },
    /// What stores report of their disks: capacity and use, in bytes.
    Usage {
        /// Store, capacity, used.
        stores: Vec<(StoreId, u64, u64)>,
    },
    /// A store has carried out orders, durably.
    Confirmed {
        /// Who.
        store: StoreId,
        /// In which session.
        session: SessionId,
        /// Which.
        orders: Vec<Order>,
    },
    /// A chunk gets a new epoch.
    Reconfigure {
        /// The chunk.
        handle: ChunkHandle,
        /// Its epoch now; if it is another, the present configuration is the answer.
        epoch: Epoch,
        /// Members that leave.
        remove: Vec<StoreId>,
        /// Who shall be primary; else the present one, or the next live member.
        primary: Option<StoreId>,
    },
    /// A chunk's length is fixed.
    Seal {
        /// The chunk.
        handle: ChunkHandle,
        /// Its epoch.
        epoch: Epoch,
        /// Bytes.
        length: u64,
    },
    /// Begins an attempt to give a chunk one more member.
    BeginRepair {
        /// The chunk.
        handle: ChunkHandle,
        /// Its epoch.
        epoch: Epoch,
    },
    /// An attempt comes to nothing.
    EndRepair {
        /// The chunk.
        handle: ChunkHandle,
        /// Which.
        attempt: u64,
    },
    /// A copy becomes a member.
    Join {
        /// The chunk.
        handle: ChunkHandle,
        /// Its epoch.
        epoch: Epoch,
        /// The store.
        learner: StoreId,
        /// Which attempt.
        attempt: u64,
    },
    /// A member's copy does not match its checksums: it leaves, and the copy goes.
    Condemn {
        /// The chunk.
        handle: ChunkHandle,
        /// Its epoch.
        epoch: Epoch,
        /// The member.
        store: StoreId,
    },
    /// Drops what is old; bounded work.
    Expire {
        /// What is older than this.
        before: Before,
        /// Most inodes to delete.
        budget: u32,
    },
    /// A chunk shall leave a member for a better place.
    Move {
        /// The chunk.
        handle: ChunkHandle,
        /// Its epoch.
        epoch: Epoch,
        /// The member.
        from: StoreId,
    },
    /// A move comes to nothing: the chunk stays where it is.
    EndMove {
        /// The chunk.
        handle: ChunkHandle,
    },
    /// A store seems to be sick, though it has a session, or does so no more.
    Doubt {
        /// Which.
        store: StoreId,
        /// Whether it does.
        doubted: bool,
    },
    /// A primary is about to write to a chunk that a snapshot may need as it is.
    Fork {
        /// The chunk.
        handle: ChunkHandle,
        /// Its epoch.
        epoch: Epoch,
    },
    /// All members hold a fork.
    Forked {
        /// The chunk.
        handle: ChunkHandle,
        /// Its epoch.
        epoch: Epoch,
        /// The fork.
        to: ChunkHandle,
        /// Its bytes.
        length: u64,
    },
    /// A holder of claims has been silent for too long: it has lost them.
    EndLocks {
        /// Which.
        holder: ClientId,
    },
}

/// The answer to an entry.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Reply {
    /// For a client.
    Master(MasterReply),
    /// For a chunkserver.
    Store(StoreReply),
}

pub(crate) fn refuse_store(refusal: Refusal) -> StoreReply {
    StoreReply::Refused { refusal, leader: None }
}
