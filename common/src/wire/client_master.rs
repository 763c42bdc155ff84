//! Client (and administrator) to master.

use super::frame::Kind;
use super::path::PathBytes;
use super::{ChunkConfig, FromMaster, Message, StoreInfo};
use crate::limits::{NAME_BYTES_MAX, REPLICATION_MAX};
use crate::{
    ChunkHandle, ClientId, Code, Epoch, FileId, LockRange, LockRanges, Lockable, RequestId, ServerId, StoreId,
};
use bincode::{Decode, Encode};

pub use super::told::*;

/// What a client asks of the leading master.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum MasterRequest {
    /// Changes the name space; carried out once however often it is asked.
    Mutate {
        /// Names the mutation.
        request: RequestId,
        /// The client's lowest request that has not been answered.
        lowest: u64,
        /// What to do.
        mutation: Mutation,
    },
    /// Attributes of a path.
    Stat {
        /// The path.
        path: PathBytes,
    },
    /// A page of a directory, in byte order of the names.
    List {
        /// The directory.
        path: PathBytes,
        /// Names after this one.
        after: Vec<u8>,
        /// Most entries; at most `LIST_PAGE_MAX`.
        limit: u32,
    },
    /// A page of a file's chunks.
    Layout {
        /// The file.
        file: FileId,
        /// Index of the first chunk wanted.
        from: u32,
        /// Most chunks; at most `LAYOUT_PAGE_MAX`.
        limit: u32,
    },
    /// The configuration of a chunk.
    Config {
        /// The chunk.
        handle: ChunkHandle,
        /// If not 0: of the chunk that has its bytes as they were when this snapshot was taken.
        snapshot: u64,
    },
    /// A client could not reach the primary.
    PrimarySilent {
        /// The chunk.
        handle: ChunkHandle,
        /// The epoch under which the client tried.
        epoch: Epoch,
    },
    /// All stores.
    Stores,
    /// The trash, a page, oldest first.
    Trash {
        /// Entries after this one, by `TrashEntry::key`; the first page: `(0, 0)`.
        after: (u64, FileId),
        /// Most entries.
        limit: u32,
    },
    /// The policy that holds for a directory or file.
    Policy {
        /// The path.
        path: PathBytes,
    },
    /// The state of the group of masters and of the cluster. Any master answers.
    Status,
    /// Adds a master (a learner first, then a voter).
    AddMaster {
        /// Its id.
        id: u64,
        /// Its address.
        addr: String,
    },
    /// Removes a master.
    RemoveMaster {
        /// Its id.
        id: u64,
    },
    /// Makes another master lead.
    TransferLeader {
        /// Its id.
        id: u64,
    },
    /// Chunks that lack members: what is done, and what waits and why. The leader answers.
    Repairs,
    /// The servers that are drained, and what is left on them. The leader answers.
    Drains,
    /// The servers that are maintained. The leader answers.
    Maintenance,
    /// All that the leader knows of a chunk.
    Explain {
        /// Which.
        handle: ChunkHandle,
    },
    /// A replica is not what the others are, as `cairn admin audit` has found: it leaves the chunk, and is
    /// made anew. Answered by the configuration.
    Condemn {
        /// The chunk.
        handle: ChunkHandle,
        /// The epoch under which that was found.
        epoch: Epoch,
        /// Whose replica.
        store: StoreId,
    },
    /// What giving a store up would mean. The leader answers.
    Loss {
        /// The store.
        store: StoreId,
    },
    /// How much is at a path, with all that is below it, and how much may be.
    Usage {
        /// The path.
        path: PathBytes,
    },
    /// The snapshots, a page, oldest first.
    Snapshots {
        /// Those with numbers after this.
        after: u64,
        /// Most entries; at most `LIST_PAGE_MAX`.
        limit: u32,
    },
    /// The extended attributes of a path.
    Xattrs {
        /// The path.
        path: PathBytes,
    },
    /// Which of these files have no name (any more).
    Nameless {
        /// The files, at most `HOLD_FILES_MAX`.
        files: Vec<FileId>,
    },
    /// Attributes of a path; of a file also its last chunk, if that is open or the only one.
    Look {
        /// The path.
        path: PathBytes,
    },
    /// What a holder of claims shall give back. The answer comes when there is something, or after `LOCK_WAIT_MS`; it
    /// also renews the holder's lease.
    Recalls {
        /// The holder.
        holder: ClientId,
    },
    /// What keeps a holder from claiming a range. Claims that may not be needed are recalled, and waited for: up to
    /// `LOCK_WAIT_MS`, then `Recalled` says that the question is to be asked again.
    InTheWay {
        /// The holder.
        holder: ClientId,
        /// Of what.
        of: Lockable,
        /// The range.
        range: LockRange,
        /// Wait also for what is needed, behind those that have waited longer.
        patient: bool,
    },
    /// Who has claims in what, a page.
    Locks {
        /// Those after this one.
        after: Option<(Lockable, ClientId)>,
        /// Most entries; a master may give fewer.
        limit: u32,
    },
    /// As `List`, and of each entry what `Look` tells.
    LookIn {
        /// The directory.
        path: PathBytes,
        /// Names after this one.
        after: Vec<u8>,
        /// Most entries; at most `LIST_PAGE_MAX`.
        limit: u32,
    },
}

/// A change of the name space.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Mutation {
    /// Makes a directory.
    Mkdir {
        /// The path.
        path: PathBytes,
        /// Also its parents, and no error if it exists.
        parents: bool,
        /// Permission bits.
        mode: u32,
        /// Whose it shall be.
        owner: Owner,
    },
    /// Makes or opens a file.
    Create {
        /// The path.
        path: PathBytes,
        /// Permission bits, if it is made.
        mode: u32,
        /// Whose it shall be, if it is made.
        owner: Owner,
        /// Refuse if it exists.
        exclusive: bool,
        /// Make missing directories.
        parents: bool,
        /// Also give it its first chunk, if it has none.
        chunk: bool,
        /// Rack or host of the client, for the choice of the primary.
        near: String,
    },
    /// Makes a file without a name, to be published when it is written.
    CreateUnnamed {
        /// The directory whose policy holds.
        like: PathBytes,
        /// Also give it its first chunk.
        chunk: bool,
        /// Rack or host of the client.
        near: String,
    },
    /// Gives an unnamed file its name, in place of whatever file was there.
    Publish {
        /// The file.
        file: FileId,
        /// Its path.
        path: PathBytes,
        /// Its length: the last chunk is sealed at the rest.
        length: u64,
        /// Permission bits.
        mode: u32,
        /// Whose it shall be.
        owner: Owner,
        /// Modification time, nanoseconds since 1970.
        mtime_ns: i64,
        /// Make missing directories.
        parents: bool,
    },
    /// Appends a chunk to a file. Gives the present one if `index` exists already.
    AddChunk {
        /// The file.
        file: FileId,
        /// Index that the new chunk shall have.
        index: u32,
        /// The writer declares that the chunk before has exactly this length.
        declare: Option<u64>,
        /// Rack or host of the client.
        near: String,
    },
    /// Appends a range of zeros to a file.
    AddHole {
        /// The file.
        file: FileId,
        /// Index that the hole shall have.
        index: u32,
        /// Bytes.
        length: u64,
    },
    /// Reports the length of a file's open last chunk, lazily.
    ReportLength {
        /// The chunk.
        handle: ChunkHandle,
        /// Bytes.
        length: u64,
    },
    /// Sets attributes.
    SetAttr {
        /// The path.
        path: PathBytes,
        /// Permission bits.
        mode: Option<u32>,
        /// Time of the last access.
        atime: SetTime,
        /// Time of the last modification.
        mtime: SetTime,
        /// Owner.
        uid: Option<u32>,
        /// Group.
        gid: Option<u32>,
    },
    /// Renames a file or directory, atomically.
    Rename {
        /// From.
        from: PathBytes,
        /// To.
        to: PathBytes,
        /// Whether a file (or an empty directory) at `to` is replaced.
        replace: bool,
    },
    /// Moves a file or directory into the trash.
    Unlink {
        /// The path.
        path: PathBytes,
        /// Whether a directory that is not empty goes with all that is in it.
        recursive: bool,
        /// What it must be.
        only: Only,
    },
    /// Brings the newest trashed entry of this path back.
    Undelete {
        /// The path it had.
        path: PathBytes,
        /// The path it shall have.
        to: PathBytes,
    },
    /// Cuts a file or extends it with zeros. Its last chunk must be sealed. Answered by its attributes.
    Truncate {
        /// The file.
        file: FileId,
        /// Bytes.
        length: u64,
    },
    /// Makes a symlink.
    Symlink {
        /// The path.
        path: PathBytes,
        /// What it points to.
        target: Vec<u8>,
        /// Make missing directories; replace a file.
        parents: bool,
        /// Whose it shall be.
        owner: Owner,
    },
    /// Sets the policy of a directory.
    SetPolicy {
        /// The directory.
        path: PathBytes,
        /// The policy; fields that are `None` are inherited.
        policy: Policy,
    },
    /// Deletes what is in the trash for good.
    EmptyTrash {
        /// Only what went in before; nanoseconds of the log's time.
        before_ns: u64,
    },
    /// Ends the client: it will never ask again.
    EndClient,
    /// Everything shall leave a server, and nothing new go there; or that is taken back.
    Drain {
        /// The server.
        server: ServerId,
        /// Begin, or take back.
        on: bool,
    },
    /// A server will be away for a while: nothing of it gets another place until then.
    Maintain {
        /// The server.
        server: ServerId,
        /// For so many milliseconds; 0 ends it.
        ms: u64,
    },
    /// Limits what a directory may hold, with all that is below it; an empty quota takes that back.
    SetQuota {
        /// The directory.
        path: PathBytes,
        /// The limits.
        quota: Quota,
    },
    /// A store that is not in service will never come back: its chunks go on without it.
    GiveUp {
        /// The store.
        store: StoreId,
    },
    /// Takes a snapshot of a directory's tree.
    Snapshot {
        /// The directory.
        path: PathBytes,
        /// The snapshot's name: it is seen as `path/.snapshot/name`.
        name: Vec<u8>,
    },
    /// Gives a snapshot up.
    DeleteSnapshot {
        /// The directory.
        path: PathBytes,
        /// The snapshot's name.
        name: Vec<u8>,
    },
    /// Gives a file, symlink or special file one more name.
    Link {
        /// A path that it has.
        from: PathBytes,
        /// The new one.
        to: PathBytes,
    },
    /// Lets two paths change places, atomically.
    Exchange {
        /// One.
        a: PathBytes,
        /// The other.
        b: PathBytes,
    },
    /// Makes a named pipe, socket or device.
    MakeSpecial {
        /// The path.
        path: PathBytes,
        /// Which of them.
        kind: FileKind,
        /// Which device, as the kernel numbers them.
        device: u32,
        /// Permission bits.
        mode: u32,
        /// Whose it shall be.
        owner: Owner,
    },
    /// Sets an extended attribute, or takes it away.
    SetXattr {
        /// The path.
        path: PathBytes,
        /// The attribute's name.
        name: Vec<u8>,
        /// Its value; `None` takes it away.
        value: Option<Vec<u8>>,
        /// Refuse unless it is there (`Some(true)`), or unless it is not.
        there: Option<bool>,
    },
    /// Gives the part of a hole around an offset a chunk, so that it can be written to.
    FillHole {
        /// The file.
        file: FileId,
        /// An offset that lies in a hole. If a chunk is there by now, it is the answer.
        offset: u64,
        /// Rack or host of the client.
        near: String,
    },
    /// Files were written to.
    Written {
        /// Which, at most `REPORT_FILES_MAX`; those that are gone are passed over.
        files: Vec<Report>,
    },
    /// Files without a name that are open are kept for another while.
    Hold {
        /// The files, at most `HOLD_FILES_MAX`; those that have a name, or are gone, are passed over.
        files: Vec<FileId>,
    },
    /// Somebody will claim ranges of files for locks, under a name that was never used before; for as long as it asks
    /// for `Recalls`, and is not silent for `LOCK_LEASE_MS`.
    BeginLocks {
        /// The name of the holder.
        holder: ClientId,
        /// What it is, for people; at most 255 bytes.
        name: String,
    },
    /// Claims a range. Refused with `Locked` if another needs it, with `Recalled` if another may not.
    Claim {
        /// The holder.
        holder: ClientId,
        /// Of what.
        of: Lockable,
        /// The range.
        range: LockRange,
        /// It comes behind those that have waited longer (`MasterRequest::InTheWay`).
        patient: bool,
    },
    /// Keeps some of what was claimed, and gives the rest back.
    Unclaim {
        /// The holder.
        holder: ClientId,
        /// Of what.
        of: Lockable,
        /// What is kept; at most `CLAIM_RANGES_MAX`, and nothing that was not claimed.
        keep: LockRanges,
        /// Somebody else wants it: for a while nobody is given more than is asked for.
        recalled: bool,
    },
    /// The holder claims nothing any more, and never will.
    EndLocks {
        /// The holder.
        holder: ClientId,
    },
    /// The next chunk of a file shall be a fork of another chunk: one of the same blocks. It is named, the client has
    /// the members make it (`ClientChunk::Fork`), and `EndClone` puts it into the file. Answered by `Clone`.
    BeginClone {
        /// The other chunk.
        of: ChunkHandle,
        /// If not 0: as it was when this snapshot was taken.
        snapshot: u64,
        /// The file.
        file: FileId,
        /// The file's length: there the chunk shall begin. Its last chunk must be sealed.
        at: u64,
    },
    /// The members have made the fork, or shall not.
    EndClone {
        /// The fork.
        to: ChunkHandle,
        /// Its bytes, as its primary says; `None` gives it up.
        length: Option<u64>,
    },
    /// Takes all bytes of a file that has at most one chunk, sealed or not, as `Truncate` to nothing does. Refused with
    /// `WrongChunkIndex` if it has others than the client knows, and if the chunk is open and a snapshot needs it.
    /// Answered by `Opened`.
    Empty {
        /// The file.
        file: FileId,
        /// Its chunk, as the client knows it.
        only: Option<ChunkHandle>,
        /// Also give it a new one: it shall soon have bytes again.
        chunk: bool,
        /// Rack or host of the client.
        near: String,
    },
    /// Changes names for a user who is not privileged. Refused with `NotYours` where that takes away what another user has in
    /// a directory with the sticky bit, unless the directory is the user's own.
    ByUser {
        /// Who.
        user: u32,
        /// What.
        change: NameChange,
    },
}

/// A change of names by which somebody may lose one.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum NameChange {
    /// As `Mutation::Rename`.
    Rename {
        /// From.
        from: PathBytes,
        /// To.
        to: PathBytes,
        /// Whether a file (or an empty directory) at `to` is replaced.
        replace: bool,
    },
    /// As `Mutation::Unlink`, of one name.
    Unlink {
        /// The path.
        path: PathBytes,
        /// What it must be.
        only: Only,
    },
    /// As `Mutation::Exchange`.
    Exchange {
        /// One.
        a: PathBytes,
        /// The other.
        b: PathBytes,
    },
}

/// Most files in one `Hold`, or in one question which have no name.
pub const HOLD_FILES_MAX: usize = 1000;

/// Most files in one `Written`.
pub const REPORT_FILES_MAX: usize = 1000;

/// What became of a file that was written to.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Report {
    /// The file.
    pub file: FileId,
    /// Its open last chunk, and the bytes of that.
    pub open: Option<(ChunkHandle, u64)>,
    /// When it was written to, nanoseconds since 1970; `None`: its time has been set since.
    pub mtime_ns: Option<i64>,
}

/// Whose an inode is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group; in a directory with the set-group-ID bit that of the directory holds instead.
    pub gid: u32,
}

/// What becomes of a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum SetTime {
    /// It stays.
    Keep,
    /// The masters' clock says.
    Now,
    /// Nanoseconds since 1970.
    At(i64),
}

/// What may be unlinked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Only {
    /// Anything.
    Anything,
    /// What is no directory.
    NoDirectory,
    /// A directory.
    Directory,
}

/// What a directory asks for its files. `None` is inherited from the parent.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Policy {
    /// Replicas of a chunk, 1-5.
    pub replication: Option<u8>,
    /// Bytes of a chunk; a multiple of 1 MiB, at most 64 MiB.
    pub chunk_bytes: Option<u64>,
    /// Acknowledge when in memory instead of on disk.
    pub memory: Option<bool>,
    /// Only servers whose rack has this prefix.
    pub label: Option<String>,
    /// Whether what is deleted here lies in the trash for a while.
    pub trash: Option<bool>,
}

impl Policy {
    /// Why this cannot be a policy, if so.
    pub fn invalid(&self) -> Option<&'static str> {
        if self.replication.is_some_and(|r| r == 0 || r > REPLICATION_MAX) {
            return Some("replication must be 1-5");
        }
        let unit = crate::limits::WRITE_BYTES_MAX as u64;
        let bad = |b: u64| b == 0 || b > crate::limits::CHUNK_BYTES_MAX || !b.is_multiple_of(unit);
        if self.chunk_bytes.is_some_and(bad) {
            return Some("chunk size must be a multiple of 1 MiB, at most 64 MiB");
        }
        if self.label.as_ref().is_some_and(|l| l.len() > NAME_BYTES_MAX) {
            return Some("label is longer than 255 bytes");
        }
        if self.memory == Some(true) {
            return Some("durability \"memory\" is not offered by this version");
        }
        None
    }
}

/// What the master answers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum MasterReply {
    /// It is done; there is nothing to tell.
    Done,
    /// Attributes.
    Attr(Attr),
    /// A file, with its chunk if one was wanted; or whatever a path leads to.
    Opened {
        /// Its attributes.
        attr: Attr,
        /// Its last chunk.
        chunk: Option<ChunkInfo>,
    },
    /// A chunk.
    Chunk(ChunkInfo),
    /// A page of a directory.
    Entries {
        /// The entries.
        entries: Vec<Entry>,
        /// Whether there are more.
        more: bool,
    },
    /// A page of chunks.
    Layout {
        /// The chunks.
        chunks: Vec<ChunkInfo>,
        /// How many the file has in all.
        count: u32,
    },
    /// A configuration.
    Config(ChunkConfig),
    /// All stores, and the version of the table.
    Stores {
        /// Changes when the table does.
        version: u64,
        /// The stores.
        stores: Vec<StoreInfo>,
    },
    /// A page of the trash.
    Trash(Vec<TrashEntry>),
    /// The policy that holds, every field given.
    Policy(Policy),
    /// State of the master that answers.
    Status(Status),
    /// Chunks that lack members.
    Repairs {
        /// The riskiest first, at most `REPAIR_ITEMS_MAX`.
        items: Vec<RepairItem>,
        /// How many there are in all, as far as the leader has looked.
        count: u64,
    },
    /// No.
    Refused {
        /// Why.
        code: Code,
        /// What it is about.
        about: String,
        /// Address of the leader, if another master leads.
        leader: Option<String>,
    },
    /// The servers that are drained.
    Drains(Vec<DrainItem>),
    /// The servers that are maintained.
    Maintained(Vec<MaintenanceItem>),
    /// All that the leader knows of a chunk.
    Explained(Story),
    /// What giving a store up would mean.
    Lost(Loss),
    /// How much is at a path.
    Usage(Usage),
    /// A page of snapshots, or the one that was taken.
    Snapshots(Vec<SnapshotInfo>),
    /// Extended attributes: names and values.
    Xattrs(Vec<(Vec<u8>, Vec<u8>)>),
    /// Those of the files asked for that have no name.
    Nameless(Vec<FileId>),
    /// What a holder has claimed now.
    Claimed {
        /// What.
        ranges: LockRanges,
        /// Whether that is the whole file, since nobody else has claimed anything of it.
        wide: bool,
    },
    /// What a holder shall give back.
    Recalls(Vec<Lockable>),
    /// What keeps a holder from claiming a range.
    InTheWay(Option<LockRange>),
    /// Who has claims in what.
    Locks {
        /// A page.
        items: Vec<LockItem>,
        /// Whether there are more.
        more: bool,
    },
    /// A chunk that shall be forked.
    Clone {
        /// The chunk.
        of: ChunkConfig,
        /// The fork.
        to: ChunkConfig,
    },
    /// A page of a directory.
    Looked {
        /// Its entries.
        entries: Vec<Looked>,
        /// Whether there are more.
        more: bool,
    },
}

impl MasterReply {
    /// A refusal.
    pub fn refused(code: Code, about: impl std::fmt::Display) -> MasterReply {
        let refusal = crate::Refusal::new(code, about);
        MasterReply::Refused { code, about: refusal.about, leader: None }
    }
}

impl Message for MasterRequest {
    const KIND: Kind = Kind::MasterRequest;
}
impl Message for MasterReply {
    const KIND: Kind = Kind::MasterReply;
}
impl FromMaster for MasterReply {
    fn not_here(&self) -> Option<(Code, Option<&str>)> {
        match self {
            MasterReply::Refused { code, leader, .. } if code.is_of_no_leader() => {
                Some((*code, leader.as_deref()))
            }
            _ => None,
        }
    }
}
