//! Identifiers. A newtype for each, so that no two can be confused.

use bincode::{Decode, Encode};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(/// A file, directory or symlink, for its whole life; never reused.
    FileId(u64), "f");
id!(/// A data directory of a chunkserver. Replicas live on stores; never reused.
    StoreId(u32), "s");
id!(/// A chunkserver: the process that serves one or more stores.
    ServerId(u32), "cs");
id!(/// A member of the Raft group of masters.
    MasterId(u64), "m");
id!(/// The number of a store's session; a new one at each registration.
    SessionId(u64), "n");
id!(/// Position of a mutation in its chunk's order; the first is 1.
    Serial(u64), "#");

impl Serial {
    /// No chunk lives to see it: a million writes a second for 100,000 years.
    pub const MAX: Serial = Serial(1 << 62);

    /// The serial after this one.
    pub fn next(self) -> Serial {
        Serial(self.0 + 1)
    }
}

impl FileId {
    /// The root directory.
    pub const ROOT: FileId = FileId(1);
    /// Those above tell the snapshot in which the file is seen; 0: none.
    const BITS: u32 = 40;
    /// The highest number that a snapshot can have.
    pub const SNAPSHOT_MAX: u64 = u64::MAX >> Self::BITS;

    /// The file as it is seen in a snapshot.
    pub fn seen_in(self, snapshot: u64) -> FileId {
        FileId(snapshot << Self::BITS | self.0)
    }

    /// The snapshot in which the file is seen, and the file.
    pub fn seen(self) -> (u64, FileId) {
        (self.0 >> Self::BITS, FileId(self.0 & ((1 << Self::BITS) - 1)))
    }
}

/// Names the cluster; 64 random bits, made once by `cairn up` or the first master.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct ClusterId(pub u64);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Names a chunk: 16 bits of cell (Raft group) and a 48-bit counter. 0 is the hole: a chunk of
/// zeros that is stored nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct ChunkHandle(pub u64);

impl ChunkHandle {
    /// A range of zeros of a file; stored nowhere.
    pub const HOLE: ChunkHandle = ChunkHandle(0);
    const COUNTER_BITS: u32 = 48;

    /// Joins the cell and the counter within it.
    pub fn new(cell: u16, counter: u64) -> Self {
        assert!(counter < 1 << Self::COUNTER_BITS, "chunk counter exhausted");
        ChunkHandle((cell as u64) << Self::COUNTER_BITS | counter)
    }

    /// The counter within the cell.
    pub fn counter(self) -> u64 {
        self.0 & ((1 << Self::COUNTER_BITS) - 1)
    }
}

impl fmt::Display for ChunkHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ch_{:05}", self.0)
    }
}

/// The configuration number of a chunk: (restore generation, number). Every change of members or
/// of primary is a new one; the order is the order of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Epoch(pub u64);

impl Epoch {
    const NUMBER_BITS: u32 = 48;
    /// Above every epoch that is ever given out: the floor of a deleted chunk.
    pub const DELETED: Epoch = Epoch(u64::MAX);

    /// The first epoch of a chunk under this restore generation.
    pub fn first(generation: u16) -> Self {
        Epoch((generation as u64) << Self::NUMBER_BITS | 1)
    }

    /// The epoch after this one.
    pub fn next(self) -> Self {
        assert!(self.number() < (1 << Self::NUMBER_BITS) - 1, "epochs exhausted");
        Epoch(self.0 + 1)
    }

    /// The number within the restore generation.
    pub fn number(self) -> u64 {
        self.0 & ((1 << Self::NUMBER_BITS) - 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 >> Self::NUMBER_BITS {
            0 => write!(f, "e{}", self.number()),
            generation => write!(f, "e{generation}.{}", self.number()),
        }
    }
}

/// A client library instance: 128 random bits, never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct ClientId(pub u128);

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{:08x}", (self.0 >> 96) as u32)
    }
}

/// Names one mutation for ever, through every retry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct RequestId {
    /// Who asks.
    pub client: ClientId,
    /// Rises by one with each new request of the client; starts at 1.
    pub seq: u64,
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.client, self.seq)
    }
}
