//! Chunkserver to master.

use super::frame::Kind;
use super::{ChunkConfig, FromMaster, Message, StoreInfo};
use crate::{ChunkHandle, Code, Epoch, Refusal, Serial, ServerId, SessionId, StoreId};
use bincode::{Decode, Encode};
use std::net::SocketAddr;

/// A store that asks for a session.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Register {
    /// The id it was given, if it has one.
    pub store: Option<StoreId>,
    /// 128 random bits made with the data directory.
    pub uuid: u128,
    /// 128 random bits of the chunkserver, for all its stores.
    pub server_uuid: u128,
    /// Rises with each start of the process on this directory.
    pub incarnation: u64,
    /// The machine's boot.
    pub boot_id: u128,
    /// Device and inode of the directory.
    pub dev_ino: (u64, u64),
    /// The failure domain.
    pub rack: String,
    /// The data port of the shard.
    pub addr: SocketAddr,
    /// Bytes that it may use.
    pub capacity: u64,
    /// Bytes in use.
    pub used: u64,
}

/// One store in a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Beat {
    /// The store.
    pub store: StoreId,
    /// Its session.
    pub session: SessionId,
    /// Bytes that it may use.
    pub capacity: u64,
    /// Bytes in use.
    pub used: u64,
    /// Orders that are carried out, durably.
    pub confirmed: Vec<Order>,
    /// Version of the store table that it has.
    pub table: u64,
    /// The last snapshot that it knows of.
    pub snapshot: u64,
}

/// What the master wants of a store; carried by the renewal of its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Order {
    /// The chunk.
    pub handle: ChunkHandle,
    /// The store is no member from this epoch on; `Epoch::DELETED` deletes the chunk.
    pub epoch: Epoch,
    /// The copy is of no use any more and goes. Always so when the chunk is deleted.
    pub discard: bool,
}

/// The master wants a store to become a member of a chunk: it copies from the primary, which then
/// proposes it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RepairOrder {
    /// The chunk as it is, without the store.
    pub config: ChunkConfig,
    /// Names the attempt; never given twice.
    pub attempt: u64,
}

/// Up to where a store has heard of chunks of which files were cut. Each leader counts them anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct CutsHeard {
    /// The leader's term.
    pub term: u64,
    /// How many.
    pub number: u64,
}

/// A session goes on, from the moment the heartbeat was *sent*.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Renewal {
    /// Milliseconds.
    pub session_ms: u64,
    /// To be carried out before the deadline moves.
    pub orders: Vec<Order>,
    /// Chunks of which the store shall become a member: all that are under way.
    pub repairs: Vec<RepairOrder>,
    /// Version of the store table.
    pub table: u64,
    /// The stores, if the version differs.
    pub stores: Option<Vec<StoreInfo>>,
    /// The last snapshot that was taken: what is written from now on comes after it.
    pub snapshot: u64,
    /// Chunks that are named from now on have handles from this on.
    pub next_chunk: ChunkHandle,
}

/// Chunkserver to master.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum StoreRequest {
    /// A store asks for a session.
    Register(Register),
    /// Renews a session.
    Heartbeat(Beat),
    /// The parent of a chunkserver saw it exit: incarnation `incarnation` of this store is dead.
    Exited {
        /// The store's uuid.
        uuid: u128,
        /// Which start of it.
        incarnation: u64,
    },
    /// A store whose disk has failed takes itself out of service.
    OutOfService {
        /// The store.
        store: StoreId,
        /// Its session.
        session: SessionId,
    },
    /// May I serve this chunk at this epoch?
    Confirm {
        /// Who asks.
        store: StoreId,
        /// Its session.
        session: SessionId,
        /// The chunk.
        handle: ChunkHandle,
    },
    /// The primary, restarted, asks for a new epoch of a chunk it leads.
    Takeover {
        /// Who asks.
        store: StoreId,
        /// The chunk.
        handle: ChunkHandle,
        /// The epoch it knows.
        epoch: Epoch,
    },
    /// The primary reports members that do not answer.
    Silent {
        /// Who asks.
        store: StoreId,
        /// The chunk.
        handle: ChunkHandle,
        /// The epoch.
        epoch: Epoch,
        /// The members.
        accused: Vec<StoreId>,
    },
    /// The primary has stopped admitting and proposes the seal.
    Seal {
        /// Who asks.
        store: StoreId,
        /// The chunk.
        handle: ChunkHandle,
        /// The epoch.
        epoch: Epoch,
        /// Bytes.
        length: u64,
        /// Last serial.
        serial: Serial,
    },
    /// A store's own copy does not match its checksums: it leaves, and is made anew.
    Corrupt {
        /// Who asks.
        store: StoreId,
        /// The chunk.
        handle: ChunkHandle,
        /// The epoch.
        epoch: Epoch,
    },
    /// The primary has stopped admitting, and this learner holds everything that was ever
    /// acknowledged: a new epoch with it, please.
    Join {
        /// Who asks.
        store: StoreId,
        /// The chunk.
        handle: ChunkHandle,
        /// The epoch.
        epoch: Epoch,
        /// The new member.
        learner: StoreId,
        /// The attempt.
        attempt: u64,
    },
    /// The primary is about to write to a chunk that a snapshot may need as it is.
    Fork {
        /// Who asks.
        store: StoreId,
        /// The chunk.
        handle: ChunkHandle,
        /// The epoch.
        epoch: Epoch,
    },
    /// The primary reports a member that answers, but holds writers up.
    Slow {
        /// Who asks.
        store: StoreId,
        /// The chunk.
        handle: ChunkHandle,
        /// The epoch.
        epoch: Epoch,
        /// The member, perhaps the primary itself.
        accused: StoreId,
    },
    /// All members hold the fork, durably, and nothing was written meanwhile.
    Forked {
        /// Who asks.
        store: StoreId,
        /// The chunk.
        handle: ChunkHandle,
        /// The epoch.
        epoch: Epoch,
        /// The fork.
        to: ChunkHandle,
        /// Its bytes.
        length: u64,
    },
    /// Renews a session, and asks for the chunks of which files were cut since then.
    HeartbeatSince {
        /// As ever.
        beat: Beat,
        /// Up to here the store has heard.
        heard: CutsHeard,
    },
}

/// Master to chunkserver.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum StoreReply {
    /// A session begins.
    Registered {
        /// The store's id.
        store: StoreId,
        /// The server's id.
        server: ServerId,
        /// The session.
        session: SessionId,
        /// Chunks that are made from now on have handles from this on.
        next_chunk: ChunkHandle,
    },
    /// A session goes on.
    Renewed(Renewal),
    /// The session is over; register anew.
    Lapsed,
    /// Whether a chunk must be forked before it is written to.
    Fork {
        /// If so: under this configuration, its length still to be told.
        to: Option<ChunkConfig>,
        /// For the snapshots up to this one.
        snapshot: u64,
    },
    /// The configuration of a chunk.
    Config(ChunkConfig),
    /// Done.
    Done,
    /// No.
    Refused {
        /// Why.
        refusal: Refusal,
        /// Address of the leader, if another master leads.
        leader: Option<String>,
    },
    /// A session goes on, and files were cut.
    RenewedSince {
        /// As ever.
        renewal: Renewal,
        /// Up to here the store has heard of cuts with this.
        heard: CutsHeard,
        /// The chunks that it leads, or led, of which a file may have been cut. `None`: any that it leads may be one.
        cut: Option<Vec<ChunkHandle>>,
    },
}

impl Message for StoreRequest {
    const KIND: Kind = Kind::StoreRequest;
}
impl Message for StoreReply {
    const KIND: Kind = Kind::StoreReply;
}
impl FromMaster for StoreReply {
    fn not_here(&self) -> Option<(Code, Option<&str>)> {
        match self {
            StoreReply::Refused { refusal, leader } if refusal.code.is_of_no_leader() => {
                Some((refusal.code, leader.as_deref()))
            }
            _ => None,
        }
    }
}
