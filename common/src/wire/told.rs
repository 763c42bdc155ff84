//! What the masters' answers are made of.

use super::ChunkConfig;
use super::path::PathBytes;
use crate::{ChunkHandle, ClientId, FileId, LockRanges, Lockable, ServerId, StoreId};
use bincode::{Decode, Encode};

/// What a directory entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
}

/// Attributes.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Attr {
    /// Which file.
    pub file: FileId,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Bytes that the master knows of; of an open last chunk, what was last reported.
    pub length: u64,
    /// Chunks (of a file) or entries (of a directory).
    pub count: u64,
    /// The open last chunk, whose primary knows the exact length.
    pub open: Option<ChunkHandle>,
    /// Target of a symlink.
    pub target: Vec<u8>,
    /// Bytes at which a chunk of this file is full.
    pub chunk_bytes: u64,
    /// Time of the last access that was set, or else of the last modification; nanoseconds since 1970.
    pub atime_ns: i64,
    /// When it, or what is told of it here, last changed; nanoseconds since 1970.
    pub ctime_ns: i64,
    /// Names; of a directory: 2, and 1 for each directory in it.
    pub links: u32,
    /// Which device it stands for.
    pub device: u32,
}

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Entry {
    /// The name.
    pub name: Vec<u8>,
    /// Its attributes.
    pub attr: Attr,
}

/// One entry of a directory that was looked into.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Looked {
    /// The name.
    pub name: Vec<u8>,
    /// Its attributes.
    pub attr: Attr,
    /// Of a file: its last chunk, if that is open or the only one.
    pub chunk: Option<ChunkInfo>,
    /// Whether it has extended attributes.
    pub has_xattrs: bool,
}

/// One chunk of a file.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ChunkInfo {
    /// Index in the file.
    pub index: u32,
    /// Bytes: exact if sealed, else as last reported.
    pub length: u64,
    /// Who holds it; a hole has no members.
    pub config: ChunkConfig,
    /// Bytes of the file before this chunk.
    pub start: u64,
}

/// A trashed entry.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TrashEntry {
    /// Which file.
    pub file: FileId,
    /// The path it had.
    pub path: PathBytes,
    /// When it went in; nanoseconds since 1970.
    pub deleted_ns: i64,
    /// The same by the clock of the masters' log, which never goes back, in nanoseconds.
    pub log_ns: u64,
}

impl TrashEntry {
    /// Its place in the trash.
    pub fn key(&self) -> (u64, FileId) {
        (self.log_ns, self.file)
    }
}

/// State of one master, as another or it itself sees it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Status {
    /// Who answers.
    pub id: u64,
    /// Who leads, if known.
    pub leader: Option<u64>,
    /// The Raft term.
    pub term: u64,
    /// Index of the last entry that was applied.
    pub applied: u64,
    /// Index of the last entry in the log.
    pub last_log: u64,
    /// Index of the last snapshot.
    pub snapshot: u64,
    /// Masters: id, address, whether it votes.
    pub masters: Vec<(u64, String, bool)>,
    /// Files, directories and symlinks.
    pub files: u64,
    /// Chunks.
    pub chunks: u64,
    /// Chunks with fewer members than they want.
    pub degraded: u64,
    /// Stores, and how many of them are up.
    pub stores: (u64, u64),
    /// Digest of the state at a fixed index: (index, digest).
    pub digest: (u64, u64),
}

/// What a holder has claimed in a file.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LockItem {
    /// Of what.
    pub of: Lockable,
    /// Where the file is; `None` if it has no name (any more).
    pub path: Option<PathBytes>,
    /// Whose.
    pub holder: ClientId,
    /// What that calls itself.
    pub name: String,
    /// What is claimed.
    pub ranges: LockRanges,
    /// Whether that is the whole file only because nobody else has asked: it may not be needed.
    pub wide: bool,
}

/// A server that is drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DrainItem {
    /// The server.
    pub server: ServerId,
    /// Chunks of which it has a replica.
    pub chunks: u64,
    /// Copies that are of no use any more, and not confirmed to be gone.
    pub copies: u64,
}

/// A chunk that lacks members.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RepairItem {
    /// The chunk.
    pub handle: ChunkHandle,
    /// Members that are not dead.
    pub live: u8,
    /// Members that it should have.
    pub want: u8,
    /// The store that is becoming a member.
    pub target: Option<StoreId>,
    /// For how long the leader has known of it, in milliseconds.
    pub ms: u64,
    /// What it waits for; empty if nothing.
    pub why: String,
}

/// A server that is maintained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MaintenanceItem {
    /// The server.
    pub server: ServerId,
    /// Milliseconds for which it is still waited for; 0: it counts as any other again.
    pub left_ms: u64,
    /// Chunks of which it has a replica.
    pub chunks: u64,
    /// Those of them that would be frozen, or unreadable, without it.
    pub at_risk: u64,
}

/// All that the leader knows of a chunk.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Story {
    /// Its members now; `wait_ms` is how long those that left must still be waited for.
    pub config: ChunkConfig,
    /// Members that it should have.
    pub want: u8,
    /// Bytes, as far as the masters know.
    pub length: u64,
    /// The file that it belongs to, or did.
    pub file: FileId,
    /// Where that file is; `None` if it has no name (any more).
    pub path: Option<PathBytes>,
    /// The last snapshot that needs it, if only snapshots do.
    pub kept: Option<u64>,
    /// The chunk that it stands in for, and up to which snapshot.
    pub fork_of: Option<(ChunkHandle, u64)>,
    /// The chunks that stand in for it, and up to which snapshot each.
    pub forks: Vec<(ChunkHandle, u64)>,
    /// Members that shall leave it: they are on a drained server, or it is moved off them.
    pub leaving: Vec<StoreId>,
    /// The store that is becoming a member.
    pub target: Option<StoreId>,
    /// Stores that hold an old copy.
    pub old: Vec<StoreId>,
    /// Stores that left it, and have not confirmed yet that they serve it no more.
    pub unconfirmed: Vec<StoreId>,
    /// For how long the leader has known that it lacks members, in milliseconds, and what it waits for.
    pub lacking: Option<(u64, String)>,
}

/// What a directory may hold, with all that is below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Quota {
    /// Files, directories and symlinks.
    pub entries: Option<u64>,
    /// Bytes of files; holes count. A file may outgrow it by what fits its last chunk.
    pub bytes: Option<u64>,
}

/// How much is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Usage {
    /// Files, directories and symlinks below a directory; 1 for what is none.
    pub entries: u64,
    /// Bytes of files; holes count.
    pub bytes: u64,
    /// The directory's own limits.
    pub quota: Quota,
}

/// What giving a store up means.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Loss {
    /// Whether it is in service: then it cannot be given up.
    pub up: bool,
    /// Chunks of which it is a member.
    pub chunks: u64,
    /// Those of them that only one other store holds.
    pub single: u64,
    /// Those that nobody else holds: their bytes are lost.
    pub lost: u64,
    /// Of the lost ones, at most `LOSS_ITEMS_MAX`.
    pub items: Vec<LossItem>,
}

/// Most lost chunks in one answer.
pub const LOSS_ITEMS_MAX: usize = 100;

/// A chunk that is lost.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LossItem {
    /// The chunk.
    pub handle: ChunkHandle,
    /// The file that it belongs to; `None` if that has no name (any more).
    pub path: Option<PathBytes>,
    /// Bytes, as far as the masters know.
    pub length: u64,
}

/// The name under which a directory's snapshots are seen in it; it is not listed.
pub const SNAPSHOT_DIR: &[u8] = b".snapshot";

/// A snapshot of a directory's tree.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SnapshotInfo {
    /// Later ones have higher numbers.
    pub number: u64,
    /// The directory, where it is now.
    pub path: PathBytes,
    /// Its name.
    pub name: Vec<u8>,
    /// When it was taken; nanoseconds since 1970.
    pub taken_ns: i64,
    /// Chunks that only snapshots need, this one the last of them.
    pub chunks: u64,
    /// Bytes of those.
    pub bytes: u64,
}

/// Most chunks in an answer about repairs.
pub const REPAIR_ITEMS_MAX: usize = 1000;
