//! The masters' metadata: a pure, deterministic state machine.
//!
//! `Metadata::apply` is the only way in for changes; it uses the entry's stamp and salt for time
//! and chance and nothing else, so that every master that applies the same log has the same state.
//! Queries borrow. Clones are O(1): all large maps share their structure.

mod balance;
mod chunks;
mod clones;
pub mod command;
mod cuts;
mod drain;
mod image;
mod inode;
mod locks;
mod loss;
mod name;
mod namespace;
mod nodes;
mod packed;
pub mod placement;
mod questions;
mod quota;
mod repair;
mod sessions;
mod snapshots;
mod suspicion;
mod trash;
mod tree;

pub use chunks::Chunk;
pub use command::{Command, Entry, Reply};
pub use cuts::RecentCuts;
pub use inode::{Body, Inode};
pub use locks::InTheWay;
pub use nodes::{Store, StoreState};
pub use questions::Decision;
pub use repair::Repair;
pub use suspicion::{Complaint, Standing, Suspicion, Verdict};
pub use trash::{Before, CROWDED_PER_MILLE};

use common::limits::PAGE_BYTES_MAX;
use common::wire::chunk_master::{Order, StoreReply};
use common::wire::client_master::{MasterReply, Policy, Quota};
use common::{ChunkHandle, ClientId, Epoch, FileId, Lockable, Refusal, ServerId, SessionId, StoreId};
use imbl::OrdMap;
use name::Name;
use packed::{Number, Packed};
use snapshots::Snapshot;
use std::collections::BTreeMap;
use tree::Tree;

/// A refusal, or what was asked for.
pub type Answer<T> = Result<T, Refusal>;

/// The root directory.
pub const ROOT: FileId = FileId::ROOT;

/// The whole state of the masters.
#[derive(Clone, Debug)]
pub struct Metadata {
    /// The log's time: nanoseconds, advanced only by the stamps of entries.
    clock_ns: u64,
    /// Entries applied, and a digest of all their answers: equal on all masters.
    applied: u64,
    digest: u64,
    /// The last digest at a multiple of `DIGEST_EVERY`.
    fixed_digest: (u64, u64),
    /// Rises when a cluster is restored from a backup.
    generation: u16,
    next_file: u64,
    next_chunk: u64,
    next_store: u32,
    next_server: u32,
    next_session: u64,
    next_set: u32,
    /// Rises with every change that clients see in the store table.
    table: u64,
    tree: Tree,
    /// What files were created with, interned. Never forgotten; few are different.
    file_policies: OrdMap<u32, Policy>,
    file_policy_ids: OrdMap<Policy, u32>,
    chunks: Packed<ChunkHandle, Chunk>,
    /// Chunks that have fewer members than they want.
    degraded: u64,
    /// Replica sets, interned: a chunk names its members by 4 bytes.
    sets: OrdMap<u32, Vec<StoreId>>,
    set_ids: OrdMap<Vec<StoreId>, u32>,
    /// Which stores share a set with a store: its scatter.
    partners: OrdMap<(StoreId, StoreId), ()>,
    stores: OrdMap<StoreId, Store>,
    servers: OrdMap<u128, ServerId>,
    clients: OrdMap<ClientId, sessions::Client>,
    trash: OrdMap<(u64, FileId), trash::Trashed>,
    /// What went into the trash before this is nobody's any more, and deleted in bounded steps.
    emptied_ns: u64,
    /// Files without a name that must stay for now.
    unnamed: trash::Unnamed,
    /// Removals that stores must be told, and have not confirmed, in the session in which they
    /// might still serve.
    orders: OrdMap<(StoreId, ChunkHandle), (Epoch, SessionId)>,
    /// Copies that must go, and have not been confirmed to be gone: all below this epoch.
    deletions: OrdMap<(StoreId, ChunkHandle), Epoch>,
    /// The same by chunk: who must be waited for.
    removed: OrdMap<(ChunkHandle, StoreId), SessionId>,
    /// Servers that shall hold nothing.
    draining: OrdMap<ServerId, ()>,
    /// Servers that are away for a while, and until when by the log's time.
    maintained: OrdMap<ServerId, u64>,
    /// What directories may hold.
    quotas: OrdMap<FileId, Quota>,
    /// Stores that will never come back.
    given_up: OrdMap<StoreId, ()>,
    /// Chunks that shall leave a member for a better place.
    moving: OrdMap<ChunkHandle, StoreId>,
    /// Attempts to make replicas.
    repairs: OrdMap<ChunkHandle, Repair>,
    next_attempt: u64,
    /// Stores that are no members and may hold an old copy.
    stale: OrdMap<(ChunkHandle, StoreId), ()>,
    /// By number.
    snapshots: OrdMap<u64, Snapshot>,
    next_snapshot: u64,
    /// Chunks that only snapshots need, under the last that does.
    kept: OrdMap<(u64, ChunkHandle), ()>,
    /// Chunk and number: the fork that stands in for the chunk up to that snapshot; and back.
    forks: OrdMap<(ChunkHandle, u64), ChunkHandle>,
    fork_of: OrdMap<ChunkHandle, (ChunkHandle, u64)>,
    /// Forks that are being made, and who may hold them.
    forking: OrdMap<ChunkHandle, snapshots::Forking>,
    forking_at: OrdMap<(ChunkHandle, StoreId), ()>,
    /// Clones that are being made, by the name of the fork.
    clones: OrdMap<ChunkHandle, clones::Cloning>,
    /// Who may claim ranges of files for locks, what is claimed, and the same by holder.
    holders: OrdMap<ClientId, locks::Holder>,
    claims: OrdMap<(Lockable, ClientId), locks::Claim>,
    claimed: OrdMap<(ClientId, Lockable), ()>,
    /// When somebody last had to give something back, by the log's time.
    contended: OrdMap<Lockable, u64>,
    /// Files that were cut.
    recent_cuts: RecentCuts,
}

impl Number for FileId {
    fn number(self) -> u64 {
        self.0
    }
    fn of(number: u64) -> FileId {
        FileId(number)
    }
}

impl Number for ChunkHandle {
    fn number(self) -> u64 {
        self.0
    }
    fn of(number: u64) -> ChunkHandle {
        ChunkHandle(number)
    }
}

/// The digest is kept at each multiple of so many entries, for comparison between masters.
pub const DIGEST_EVERY: u64 = 256;

impl Default for Metadata {
    fn default() -> Self {
        Metadata::new()
    }
}

impl Metadata {
    /// The state before the first entry: an empty root.
    pub fn new() -> Metadata {
        Metadata {
            clock_ns: 0,
            emptied_ns: 0,
            applied: 0,
            digest: 0,
            fixed_digest: (0, 0),
            generation: 0,
            next_file: ROOT.0 + 1,
            next_chunk: 1,
            next_store: 1,
            next_server: 1,
            next_session: 1,
            next_set: 1,
            table: 1,
            tree: Tree::new(),
            file_policies: OrdMap::new(),
            file_policy_ids: OrdMap::new(),
            chunks: Packed::new(),
            degraded: 0,
            sets: OrdMap::new(),
            set_ids: OrdMap::new(),
            partners: OrdMap::new(),
            stores: OrdMap::new(),
            servers: OrdMap::new(),
            clients: OrdMap::new(),
            trash: OrdMap::new(),
            unnamed: trash::Unnamed::default(),
            orders: OrdMap::new(),
            deletions: OrdMap::new(),
            removed: OrdMap::new(),
            draining: OrdMap::new(),
            maintained: OrdMap::new(),
            given_up: OrdMap::new(),
            quotas: OrdMap::new(),
            moving: OrdMap::new(),
            repairs: OrdMap::new(),
            next_attempt: 1,
            stale: OrdMap::new(),
            snapshots: OrdMap::new(),
            next_snapshot: 1,
            kept: OrdMap::new(),
            forks: OrdMap::new(),
            fork_of: OrdMap::new(),
            forking: OrdMap::new(),
            forking_at: OrdMap::new(),
            clones: OrdMap::new(),
            holders: OrdMap::new(),
            claims: OrdMap::new(),
            claimed: OrdMap::new(),
            contended: OrdMap::new(),
            recent_cuts: RecentCuts::default(),
        }
    }

    /// Applies one entry of the log. The same entry on the same state gives the same answer and
    /// the same new state, on every machine.
    pub fn apply(&mut self, entry: &Entry) -> Reply {
        // No two entries have the same time.
        self.clock_ns = (self.clock_ns + 1).max(entry.stamp_ns);
        let reply = self.dispatch(entry);
        self.applied += 1;
        self.digest = mix(self.digest, &reply);
        if self.applied.is_multiple_of(DIGEST_EVERY) {
            self.fixed_digest = (self.applied, self.digest);
        }
        reply
    }

    fn dispatch(&mut self, entry: &Entry) -> Reply {
        let store = |answer: Answer<_>| Reply::Store(answer.unwrap_or_else(command::refuse_store));
        match &entry.command {
            Command::Mutate { request, lowest, mutation } => {
                Reply::Master(self.mutate_once(entry, *request, *lowest, mutation))
            }
            Command::Register(register) => store(self.register(register)),
            Command::StoreDown { store: id, session } => store(self.store_down(*id, *session)),
            Command::Usage { stores } => store(self.usage(stores)),
            Command::Confirmed { store: id, session, orders } => store(self.confirmed(*id, *session, orders)),
            Command::Reconfigure { handle, epoch, remove, primary } => {
                store(self.reconfigure(*handle, *epoch, remove, *primary))
            }
            Command::Doubt { store: id, doubted } => store(self.doubt(*id, *doubted)),
            Command::Seal { handle, epoch, length } => store(self.seal(*handle, *epoch, *length)),
            Command::BeginRepair { handle, epoch } => store(self.begin_repair(*handle, *epoch, entry.salt)),
            Command::Move { handle, epoch, from } => store(self.begin_move(*handle, *epoch, *from)),
            Command::EndMove { handle } => {
                self.moving.remove(handle);
                store(Ok(StoreReply::Done))
            }
            Command::EndRepair { handle, attempt } => store(self.end_repair(*handle, *attempt)),
            Command::Join { handle, epoch, learner, attempt } => {
                store(self.join(*handle, *epoch, *learner, *attempt))
            }
            Command::Fork { handle, epoch } => store(self.begin_fork(*handle, *epoch)),
            Command::Forked { handle, epoch, to, length } => {
                store(self.end_fork(*handle, *epoch, *to, *length))
            }
            Command::Condemn { handle, epoch, store: id } => store(self.condemn(*handle, *epoch, *id)),
            Command::Expire { before, budget } => {
                self.expire(before, *budget);
                Reply::Master(MasterReply::Done)
            }
            Command::EndLocks { holder } => {
                self.end_locks(*holder);
                Reply::Master(MasterReply::Done)
            }
        }
    }

    /// The log's time, in nanoseconds.
    pub fn clock_ns(&self) -> u64 {
        self.clock_ns
    }

    /// The digest at the last fixed number of applied entries: (entries, digest).
    pub fn fixed_digest(&self) -> (u64, u64) {
        self.fixed_digest
    }

    /// Files, chunks, and chunks with fewer members than they want.
    pub fn counts(&self) -> (u64, u64, u64) {
        (self.tree.inodes.len() as u64, self.chunks.len() as u64, self.degraded)
    }

    /// Panics if an invariant does not hold. For tests and the simulator: it walks everything.
    pub fn check(&self) {
        let mut names: BTreeMap<FileId, u32> = BTreeMap::new();
        for ((parent, name), child) in self.tree.dentries.iter() {
            assert!(self.tree.inodes.contains_key(child), "{name:?} names a missing inode");
            assert!(self.tree.is_directory(*parent));
            *names.entry(*child).or_default() += 1;
            assert!(self.tree.parents(*child).contains(parent), "{name:?} is named by another");
        }
        for (id, inode) in self.tree.inodes.iter() {
            match &inode.body {
                Body::Directory { entries, directories } => {
                    let range = (id, Name::new(&[]))..=(FileId(id.0 + 1), Name::new(&[]));
                    let count = self.tree.dentries.range(range).filter(|((p, _), _)| *p == id).count();
                    assert_eq!(*entries, count as u64, "{id} counts its entries wrongly");
                    let range = (id, Name::new(&[]))..=(FileId(id.0 + 1), Name::new(&[]));
                    let named = self.tree.dentries.range(range).filter(|((p, _), _)| *p == id);
                    // What has several names counts in one directory, once.
                    let mut children: Vec<FileId> = named.map(|(_, child)| *child).collect();
                    let dirs = children.iter().filter(|child| self.tree.is_directory(**child)).count();
                    assert_eq!(*directories, dirs as u64, "{id} counts its directories wrongly");
                    children.sort();
                    children.dedup();
                    let sum = children
                        .into_iter()
                        .filter(|child| self.tree.inodes[child].parent == id)
                        .map(|child| self.tree.weight(child))
                        .fold((0, 0), |sum, w| (sum.0 + w.entries, sum.1 + w.bytes));
                    let totals = self.tree.totals_of(id);
                    assert_eq!((totals.entries, totals.bytes), sum, "{id}: what it holds is counted");
                }
                Body::File(file) => {
                    file.check();
                    let open = |h| self.chunks.get(&h).is_some_and(|c| !c.sealed);
                    let last = file.parts().last().is_some_and(|p| open(p.handle));
                    assert_eq!(inode.open, last, "{id}: whether its last chunk is open");
                    for part in file.parts() {
                        if part.handle != ChunkHandle::HOLE {
                            assert_eq!(self.chunks[&part.handle].file, id);
                        }
                    }
                }
                Body::Symlink { .. } | Body::Special { .. } => {}
            }
            let named = names.get(&id).copied().unwrap_or(0);
            assert_eq!(self.tree.names(id), named, "{id} counts its names");
        }
        for (handle, chunk) in self.chunks.iter() {
            let members = self.members_of(chunk);
            assert!(!members.is_empty(), "{handle} has no members");
            assert!(members.contains(&chunk.primary), "{handle}: its primary is no member");
        }
        let degraded = self.chunks.values().filter(|c| self.lacks_members(c)).count() as u64;
        assert_eq!(self.degraded, degraded, "chunks that lack members are counted");
        for (handle, repair) in self.repairs.iter() {
            let chunk = self.chunks.get(handle).expect("what is repaired exists");
            assert_eq!(chunk.epoch, repair.epoch, "{handle}: a repair of an older epoch");
            assert!(!self.members_of(chunk).contains(&repair.target), "{handle}: a member is to become one");
        }
        for (handle, from) in self.moving.iter() {
            let chunk = self.chunks.get(handle).expect("what is moved exists");
            assert!(self.members_of(chunk).contains(from), "{handle} is moved off a store that is no member");
        }
        self.check_snapshots();
        self.check_clones();
        self.check_locks();
        for (_, file) in self.trash.keys() {
            let named = self.tree.inodes.get(file).is_some_and(|inode| inode.parent != FileId(0));
            assert!(!named, "{file} lies in the trash, and has a name");
        }
        for (store, handle) in self.orders.keys() {
            if let Some(chunk) = self.chunks.get(handle) {
                assert!(!self.members_of(chunk).contains(store), "{store} is ordered off {handle}");
            }
        }
    }

    /// What a store must still be told, at most `limit` orders: removals first, and whether those
    /// are all of them. Only they hold up a session; deletions follow as they may.
    pub fn orders_for(&self, store: StoreId, limit: usize) -> (Vec<Order>, bool) {
        let range = (store, ChunkHandle(0))..=(store, ChunkHandle(u64::MAX));
        let removals = self.orders.range(range.clone());
        let mut removals = removals.map(|((_, handle), (epoch, _))| Order {
            handle: *handle,
            epoch: *epoch,
            discard: false,
        });
        let mut orders: Vec<Order> = removals.by_ref().take(limit).collect();
        let all = removals.next().is_none();
        let deletions = self.deletions.range(range).take(limit - orders.len());
        orders.extend(deletions.map(|((_, handle), epoch)| Order {
            handle: *handle,
            epoch: *epoch,
            discard: true,
        }));
        (orders, all)
    }

    /// Stores that were removed from a chunk and may still serve it, with the session in which
    /// they may.
    pub fn removed_from(&self, handle: ChunkHandle) -> Vec<(StoreId, SessionId)> {
        let range = (handle, StoreId(0))..=(handle, StoreId(u32::MAX));
        self.removed.range(range).map(|((_, store), session)| (*store, *session)).collect()
    }
}

fn mix(digest: u64, reply: &Reply) -> u64 {
    let crc = common::checksum::crc32c(&common::wire::to_vec(reply)) as u64;
    (digest.rotate_left(7) ^ crc).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// As many as fit a page: at most `limit` entries, and none begun beyond `PAGE_BYTES_MAX`.
pub(crate) fn page<T>(all: impl Iterator<Item = T>, limit: usize, bytes: impl Fn(&T) -> usize) -> Vec<T> {
    /// Of the fields of fixed length, at most.
    const ENTRY_BYTES: usize = 128;
    let mut taken = 0;
    let fits = |entry: &T| {
        let before = taken;
        taken += bytes(entry) + ENTRY_BYTES;
        before <= PAGE_BYTES_MAX
    };
    all.take(limit).take_while(fits).collect()
}
