//! Snapshots of trees. The tree of names is a value: keeping a copy of it costs nothing, and keeps
//! what it was for good. What the files hold is kept by not letting go: a chunk that the live tree
//! has no use for any more stays as long as a snapshot needs it, and one that is about to be written
//! to is forked first: its members make, each for itself, another chunk of the same blocks. (The idea
//! of copy-on-write by reference is that of GFS, section 3.4; here the new chunk is the snapshot's,
//! so that the live file keeps its own.)
//!
//! A snapshot has a number; later ones have higher ones. The fork of a chunk that was made under
//! number N holds its bytes for all snapshots up to N that have no older fork.

use crate::inode::{Body, Inode, Part};
use crate::tree::{Tree, refuse, route};
use crate::{Answer, Chunk, Metadata, page};
use bincode::{Decode, Encode};
use common::limits::{NAME_BYTES_MAX, SNAPSHOTS_MAX};
use common::wire::ChunkConfig;
use common::wire::chunk_master::StoreReply;
use common::wire::client_master::{
    Attr, FileKind, MasterReply, Mutation, NameChange, SNAPSHOT_DIR, SnapshotInfo,
};
use common::wire::path::Route;
use common::{ChunkHandle, Code, Epoch, FileId, Refusal, StoreId};

/// A snapshot of a directory's tree.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub head: SnapshotHead,
    /// The whole tree of names as it was.
    pub tree: Tree,
}

/// What is told of a snapshot beside its tree.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct SnapshotHead {
    pub root: FileId,
    pub name: Vec<u8>,
    /// Wall clock, nanoseconds since 1970.
    pub taken_ns: i64,
    /// Chunks from this on are younger.
    pub next_chunk: u64,
    /// Chunks that only snapshots need, this one among them and none later, and their bytes.
    pub kept: (u64, u64),
}

impl Snapshot {
    /// Whether a file was in the snapshot's tree.
    fn holds_file(&self, file: FileId) -> bool {
        let under_root =
            |dir: FileId| dir == self.head.root || self.tree.above(dir).any(|d| d == self.head.root);
        self.tree.file(file).is_some() && self.tree.parents(file).into_iter().any(under_root)
    }

    /// Whether a chunk that the live tree has, or had until now, was in the snapshot's tree.
    fn holds_live(&self, handle: ChunkHandle, file: FileId) -> bool {
        handle.counter() < self.head.next_chunk && self.holds_file(file)
    }

    /// The same for any chunk: it may have left its file before the snapshot was taken.
    fn holds(&self, handle: ChunkHandle, file: FileId) -> bool {
        let part_of = |body: &crate::inode::FileBody| body.parts().iter().any(|p| p.handle == handle);
        self.holds_live(handle, file) && self.tree.file(file).is_some_and(part_of)
    }
}

/// A fork that is being made of a chunk.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Forking {
    /// The chunk's epoch when it began; in another one it begins anew, under another name.
    epoch: Epoch,
    pub(crate) to: ChunkHandle,
}

/// What a path leads to.
pub(crate) enum Place {
    /// An inode of the live tree, or of a snapshot's.
    Inode(FileId),
    /// The list of a directory's snapshots.
    Snapshots(FileId),
}

/// The paths that a mutation changes something at.
fn changed(mutation: &Mutation) -> Vec<&[u8]> {
    match mutation {
        Mutation::Mkdir { path, .. }
        | Mutation::Create { path, .. }
        | Mutation::Publish { path, .. }
        | Mutation::SetAttr { path, .. }
        | Mutation::Unlink { path, .. }
        | Mutation::ByUser { change: NameChange::Unlink { path, .. }, .. }
        | Mutation::Symlink { path, .. }
        | Mutation::MakeSpecial { path, .. }
        | Mutation::SetXattr { path, .. }
        | Mutation::SetPolicy { path, .. }
        | Mutation::SetQuota { path, .. }
        | Mutation::Snapshot { path, .. }
        | Mutation::DeleteSnapshot { path, .. } => vec![path],
        Mutation::CreateUnnamed { like, .. } => vec![like],
        Mutation::Rename { from, to, .. }
        | Mutation::ByUser { change: NameChange::Rename { from, to, .. }, .. }
        | Mutation::Link { from, to } => vec![from, to],
        Mutation::Exchange { a, b } | Mutation::ByUser { change: NameChange::Exchange { a, b }, .. } => {
            vec![a, b]
        }
        Mutation::Undelete { to, .. } => vec![to],
        Mutation::AddChunk { .. }
        | Mutation::AddHole { .. }
        | Mutation::FillHole { .. }
        | Mutation::Hold { .. }
        | Mutation::Written { .. }
        | Mutation::ReportLength { .. }
        | Mutation::Truncate { .. }
        | Mutation::Empty { .. }
        | Mutation::EmptyTrash { .. }
        | Mutation::BeginLocks { .. }
        | Mutation::Claim { .. }
        | Mutation::Unclaim { .. }
        | Mutation::EndLocks { .. }
        | Mutation::BeginClone { .. }
        | Mutation::EndClone { .. }
        | Mutation::EndClient
        | Mutation::Drain { .. }
        | Mutation::Maintain { .. }
        | Mutation::GiveUp { .. } => vec![],
    }
}

impl Metadata {
    /// Snapshots are read, never changed.
    pub(crate) fn refuse_in_snapshot(&self, mutation: &Mutation) -> Answer<()> {
        let in_one = |path: &&[u8]| {
            Route::of(path).is_ok_and(|r| r.from.seen().0 > 0 || r.names.contains(&SNAPSHOT_DIR))
        };
        if let Some(path) = changed(mutation).into_iter().find(in_one) {
            return refuse(Code::ReadOnly, path);
        }
        match mutation {
            Mutation::AddChunk { file, .. }
            | Mutation::AddHole { file, .. }
            | Mutation::FillHole { file, .. }
            | Mutation::Truncate { file, .. }
            | Mutation::Empty { file, .. }
            | Mutation::BeginClone { file, .. }
            | Mutation::Publish { file, .. }
                if file.seen().0 > 0 =>
            {
                Err(Refusal::new(Code::ReadOnly, "a file of a snapshot"))
            }
            Mutation::Written { files } if files.iter().any(|report| report.file.seen().0 > 0) => {
                Err(Refusal::new(Code::ReadOnly, "a file of a snapshot"))
            }
            _ => Ok(()),
        }
    }

    /// Takes a snapshot of a directory's tree.
    pub(crate) fn take_snapshot(&mut self, path: &[u8], name: &[u8], now: i64) -> Answer<MasterReply> {
        let bad = name.is_empty()
            || name.len() > NAME_BYTES_MAX
            || name.contains(&b'/')
            || name.contains(&0)
            || [&b"."[..], b"..", SNAPSHOT_DIR].contains(&name);
        if bad {
            return refuse(Code::BadName, name);
        }
        let root = self.tree.resolve(path)?;
        if !self.tree.is_directory(root) {
            return refuse(Code::NotADirectory, path);
        }
        if self.find_snapshot(root, name).is_some() {
            return refuse(Code::Exists, name);
        }
        if self.snapshots.len() >= SNAPSHOTS_MAX || self.next_snapshot >= FileId::SNAPSHOT_MAX {
            return Err(Refusal::new(Code::TooManySnapshots, SNAPSHOTS_MAX));
        }
        let number = self.next_snapshot;
        self.next_snapshot += 1;
        let head = SnapshotHead {
            root,
            name: name.to_vec(),
            taken_ns: now,
            next_chunk: self.next_chunk,
            kept: (0, 0),
        };
        self.snapshots.insert(number, Snapshot { head, tree: self.tree.clone() });
        Ok(MasterReply::Snapshots(vec![self.snapshot_info(number)]))
    }

    /// Gives a snapshot up. What only it needed goes in bounded steps.
    pub(crate) fn delete_snapshot(&mut self, path: &[u8], name: &[u8]) -> Answer<MasterReply> {
        let root = self.tree.resolve(path)?;
        let number = self.find_snapshot(root, name).map_or_else(|| refuse(Code::NotFound, name), Ok)?;
        self.snapshots.remove(&number);
        Ok(MasterReply::Done)
    }

    fn find_snapshot(&self, root: FileId, name: &[u8]) -> Option<u64> {
        let found = self.snapshots.iter().find(|(_, s)| s.head.root == root && s.head.name == name);
        found.map(|(number, _)| *number)
    }

    /// A directory with snapshots cannot go: nobody would find them.
    pub(crate) fn refuse_with_snapshots(&self, id: FileId, path: &[u8]) -> Answer<()> {
        let roots = || self.snapshots.values().map(|s| s.head.root);
        let within = |root: FileId| root == id || self.tree.above(root).any(|dir| dir == id);
        if roots().any(within) { refuse(Code::HasSnapshots, path) } else { Ok(()) }
    }

    /// The number of the last snapshot that was ever taken.
    pub fn last_snapshot(&self) -> u64 {
        self.next_snapshot - 1
    }

    /// A page of the snapshots, oldest first.
    pub fn list_snapshots(&self, after: u64, limit: usize) -> Vec<SnapshotInfo> {
        let rest = self.snapshots.range(after.saturating_add(1)..);
        page(rest.map(|(number, _)| self.snapshot_info(*number)), limit, |s| s.path.len() + s.name.len())
    }

    fn snapshot_info(&self, number: u64) -> SnapshotInfo {
        let SnapshotHead { root, name, taken_ns, kept, .. } = &self.snapshots[&number].head;
        let path = self.tree.path_of(*root).expect("a directory with snapshots stays");
        let (chunks, bytes) = *kept;
        SnapshotInfo { number, path, name: name.clone(), taken_ns: *taken_ns, chunks, bytes }
    }

    // --- names ---------------------------------------------------------------------------

    /// What is at the end of a path; `DIRECTORY/.snapshot/NAME/...` leads into a snapshot.
    pub(crate) fn find(&self, path: &[u8]) -> Answer<Place> {
        let Route { from, names } = route(path)?;
        let (number, from) = from.seen();
        let (root, names) = match number {
            FileId::SNAPSHOT_MAX => (self.tree.walk(from, &[], path)?, &names[..]),
            0 => match names.iter().position(|name| *name == SNAPSHOT_DIR) {
                None => return self.tree.walk(from, &names, path).map(Place::Inode),
                Some(at) => (self.tree.walk(from, &names[..at], path)?, &names[at + 1..]),
            },
            _ => return self.find_in(number, from, &names, path),
        };
        let Some((name, names)) = names.split_first() else { return Ok(Place::Snapshots(root)) };
        let Some(number) = self.find_snapshot(root, name) else { return refuse(Code::NotFound, path) };
        self.find_in(number, root, names, path)
    }

    fn find_in(&self, number: u64, from: FileId, names: &[&[u8]], path: &[u8]) -> Answer<Place> {
        let snapshot = self.snapshots.get(&number).map_or_else(|| refuse(Code::NoSuchFileId, path), Ok)?;
        let id = snapshot.tree.walk(from, names, path)?;
        Ok(Place::Inode(id.seen_in(number)))
    }

    /// The tree in which an inode is seen, and its number there.
    pub(crate) fn view(&self, id: FileId) -> Option<(&Tree, FileId)> {
        match id.seen() {
            (0, id) => Some((&self.tree, id)),
            (number, id) => Some((&self.snapshots.get(&number)?.tree, id)),
        }
    }

    /// The list of a directory's snapshots, as a directory.
    pub(crate) fn snapshots_attr(&self, root: FileId) -> Attr {
        let count = self.snapshots.values().filter(|s| s.head.root == root).count() as u64;
        let dir = self.attr(root);
        let file = root.seen_in(FileId::SNAPSHOT_MAX);
        Attr { file, mode: 0o555, count, kind: FileKind::Directory, links: 2, ..dir }
    }

    /// The names and attributes of a directory's snapshots, in the order of their names.
    pub(crate) fn snapshots_of(&self, root: FileId) -> Vec<(Vec<u8>, FileId)> {
        let of_root = self.snapshots.iter().filter(|(_, s)| s.head.root == root);
        let mut list: Vec<_> = of_root.map(|(n, s)| (s.head.name.clone(), root.seen_in(*n))).collect();
        list.sort();
        list
    }

    /// A file that is open, or was when a snapshot was taken: its last chunk there, as it is known now.
    pub(crate) fn open_in(&self, number: u64, inode: &Inode) -> Option<(ChunkHandle, &Chunk)> {
        let Body::File(file) = &inode.body else { return None };
        let last = file.parts().last().filter(|_| inode.open)?;
        let handle = self.as_of(number, last.handle);
        Some((handle, self.chunks.get(&handle)?))
    }

    /// Where the bytes are that a chunk had when a snapshot was taken; those that it has now, for number 0.
    pub fn as_of(&self, number: u64, handle: ChunkHandle) -> ChunkHandle {
        if number == 0 {
            // Forks are the snapshots'.
            return handle;
        }
        let later = self.forks.range((handle, number)..=(handle, u64::MAX)).next();
        later.map_or(handle, |(_, fork)| *fork)
    }

    // --- chunks --------------------------------------------------------------------------

    /// The last snapshot that needs this chunk of the live tree itself: no fork stands in for it.
    fn needed_by(&self, handle: ChunkHandle) -> Option<u64> {
        let file = self.chunks.get(&handle)?.file;
        let young = |s: &Snapshot| handle.counter() >= s.head.next_chunk;
        let mut older = self.snapshots.iter().rev().take_while(|(_, s)| !young(s));
        let (number, _) = older.find(|(_, s)| s.holds_live(handle, file))?;
        // A fork that is good for the last one is good for all before.
        (self.as_of(*number, handle) == handle).then_some(*number)
    }

    /// The last snapshot that needs a chunk, if only snapshots do.
    pub(crate) fn kept_for(&self, handle: ChunkHandle) -> Option<u64> {
        self.snapshots.keys().rev().copied().find(|number| self.kept.contains_key(&(*number, handle)))
    }

    /// The forks of a chunk, and up to which snapshot each is good.
    pub(crate) fn forks_of(&self, handle: ChunkHandle) -> Vec<(ChunkHandle, u64)> {
        let forks = self.forks.range((handle, 0)..=(handle, u64::MAX));
        forks.map(|((_, number), fork)| (*fork, *number)).collect()
    }

    /// All chunks that stand in for others in snapshots.
    pub fn forks(&self) -> impl Iterator<Item = ChunkHandle> {
        self.fork_of.keys().copied()
    }

    /// Whether a snapshot needs a chunk of the live tree as it is.
    pub fn is_needed(&self, handle: ChunkHandle) -> bool {
        self.needed_by(handle).is_some() || self.forking.contains_key(&handle)
    }

    /// Whether there is something to be done before a primary writes to a chunk for the first time since it knows of
    /// the last snapshot, or something that it must be told.
    pub fn is_fork_due(&self, handle: ChunkHandle) -> bool {
        self.is_needed(handle) || self.part_of(handle).is_none_or(|part| self.is_cut(part))
    }

    /// What its file has of a chunk, if that is less than the chunk: it was cut while a snapshot needed it whole.
    fn left_of(&self, handle: ChunkHandle) -> Option<u64> {
        self.part_of(handle).filter(|part| self.is_cut(part)).map(|part| part.length)
    }

    fn is_cut(&self, part: &Part) -> bool {
        self.chunks.get(&part.handle).is_some_and(|chunk| chunk.sealed && part.length < chunk.length)
    }

    /// Whether only snapshots have a chunk, or had: no file has it any more.
    fn is_dropped(&self, handle: ChunkHandle) -> bool {
        self.part_of(handle).is_none()
    }

    /// The part of a file that a chunk is. What grows is the last one.
    fn part_of(&self, handle: ChunkHandle) -> Option<&Part> {
        let file = self.tree.file(self.chunks.get(&handle)?.file)?;
        file.parts().iter().rev().find(|part| part.handle == handle)
    }

    /// The live tree has no use for a chunk any more.
    pub(crate) fn let_go(&mut self, handle: ChunkHandle) {
        match self.needed_by(handle) {
            Some(number) => self.keep(number, handle),
            None => self.delete_chunk(handle),
        }
    }

    fn keep(&mut self, number: u64, handle: ChunkHandle) {
        self.kept.insert((number, handle), ());
        self.count_kept(number, handle, 1);
    }

    fn count_kept(&mut self, number: u64, handle: ChunkHandle, by: i64) {
        let bytes = self.chunks.get(&handle).map_or(0, |c| c.length);
        if let Some(mut snapshot) = self.snapshots.get(&number).cloned() {
            let kept = &mut snapshot.head.kept;
            kept.0 = kept.0.saturating_add_signed(by);
            kept.1 = kept.1.saturating_add_signed(by * bytes as i64);
            self.snapshots.insert(number, snapshot);
        }
    }

    /// A primary is about to write to a chunk: must it be forked first? The answer holds until there is
    /// a later snapshot.
    pub(crate) fn begin_fork(&mut self, handle: ChunkHandle, epoch: Epoch) -> Answer<StoreReply> {
        let snapshot = self.last_snapshot();
        let chunk = self.chunks.get(&handle).ok_or_else(|| Refusal::new(Code::NoSuchChunk, handle))?;
        if chunk.epoch != epoch {
            return Ok(StoreReply::Config(self.config(handle)?));
        }
        let (members, primary) = (self.members_of(chunk).to_vec(), chunk.primary);
        self.is_written_to(handle)?;
        if self.needed_by(handle).is_none() {
            self.abandon_fork(handle);
            // The snapshot that needed it whole is gone. Its primary hears of that before it asks once more.
            if let Some(length) = self.left_of(handle) {
                let chunk = Chunk { length, ..self.chunks[&handle].clone() };
                self.put_chunk(handle, chunk);
                return Ok(StoreReply::Config(self.config(handle)?));
            }
            return Ok(StoreReply::Fork { to: None, snapshot });
        }
        let known = self.forking.get(&handle).filter(|c| c.epoch == epoch).map(|c| c.to);
        let to = known.unwrap_or_else(|| {
            self.abandon_fork(handle);
            let to = self.name_chunk();
            self.forking.insert(handle, Forking { epoch, to });
            to
        });
        Ok(StoreReply::Fork { to: Some(self.fork_at(to, primary, members)), snapshot })
    }

    /// Refuses what only snapshots have, or had: whoever wants to write to it knows its file as it was before it was cut.
    /// Snapshots that were taken since then have the file, and not the chunk.
    fn is_written_to(&mut self, handle: ChunkHandle) -> Answer<()> {
        if !self.is_dropped(handle) {
            return Ok(());
        }
        self.abandon_fork(handle);
        Err(Refusal::new(Code::NoSuchChunk, handle))
    }

    /// These stores may make this fork from now on.
    pub(crate) fn fork_at(
        &mut self,
        to: ChunkHandle,
        primary: StoreId,
        members: Vec<StoreId>,
    ) -> ChunkConfig {
        for store in &members {
            self.forking_at.insert((to, *store), ());
        }
        let epoch = Epoch::first(self.generation);
        ChunkConfig { handle: to, epoch, primary, members, sealed: None, wait_ms: 0 }
    }

    /// A fork comes to nothing.
    fn abandon_fork(&mut self, handle: ChunkHandle) {
        if let Some(Forking { to, .. }) = self.forking.remove(&handle) {
            self.discard_fork(to);
        }
    }

    /// Who may have made a fork discards it.
    pub(crate) fn discard_fork(&mut self, to: ChunkHandle) {
        for store in self.take_forking_at(to) {
            self.deletions.insert((store, to), Epoch::DELETED);
        }
    }

    pub(crate) fn take_forking_at(&mut self, to: ChunkHandle) -> Vec<StoreId> {
        let range = (to, StoreId(0))..=(to, StoreId(u32::MAX));
        let stores: Vec<StoreId> = self.forking_at.range(range).map(|((_, store), ())| *store).collect();
        for store in &stores {
            self.forking_at.remove(&(to, *store));
        }
        stores
    }

    /// All members hold the fork, durably, and nothing was written meanwhile: it stands in for the
    /// chunk in the snapshots. The chunk gets a new epoch, so that nobody who took it for the
    /// snapshots' reads it any more.
    pub(crate) fn end_fork(
        &mut self,
        handle: ChunkHandle,
        epoch: Epoch,
        to: ChunkHandle,
        length: u64,
    ) -> Answer<StoreReply> {
        let chunk = self.chunks.get(&handle).ok_or_else(|| Refusal::new(Code::NoSuchChunk, handle))?;
        if chunk.epoch != epoch || self.forking.get(&handle) != Some(&Forking { epoch, to }) {
            return Ok(StoreReply::Config(self.config(handle)?));
        }
        let mut chunk = chunk.clone();
        self.is_written_to(handle)?;
        match self.needed_by(handle) {
            None => self.abandon_fork(handle),
            Some(number) => {
                self.forking.remove(&handle);
                self.take_forking_at(to);
                let epoch = Epoch::first(self.generation);
                self.put_chunk(to, Chunk { epoch, length, sealed: true, ..chunk.clone() });
                self.forks.insert((handle, number), to);
                self.fork_of.insert(to, (handle, number));
                self.keep(number, to);
            }
        }
        chunk.length = self.left_of(handle).unwrap_or(chunk.length);
        chunk.epoch = epoch.next();
        self.put_chunk(handle, chunk);
        self.repairs.remove(&handle);
        self.moving.remove(&handle);
        Ok(StoreReply::Config(self.config(handle)?))
    }

    /// A chunk is deleted: no fork of it is finished any more.
    pub(crate) fn end_forks_of(&mut self, handle: ChunkHandle) {
        self.abandon_fork(handle);
        if let Some((of, number)) = self.fork_of.remove(&handle) {
            self.forks.remove(&(of, number));
        }
    }

    /// Whether a deleted snapshot has chunks left.
    pub(crate) fn has_leftovers(&self) -> bool {
        self.leftover().is_some()
    }

    /// A chunk that a deleted snapshot was the last to need.
    fn leftover(&self) -> Option<(u64, ChunkHandle)> {
        // Numbers of snapshots are few, and each is skipped in one step.
        let mut from = 0;
        while let Some(((number, handle), ())) = self.kept.range((from, ChunkHandle(0))..).next() {
            if !self.snapshots.contains_key(number) {
                return Some((*number, *handle));
            }
            from = number + 1;
        }
        None
    }

    /// Goes through what deleted snapshots needed: it goes to the next older one that needs it
    /// too, or for good. At most `budget` chunks.
    pub(crate) fn sweep_snapshots(&mut self, budget: u32) {
        for _ in 0..budget {
            let Some((number, handle)) = self.leftover() else { return };
            self.kept.remove(&(number, handle));
            let Some(file) = self.chunks.get(&handle).map(|c| c.file) else { continue };
            let of = self.fork_of.get(&handle).map_or(handle, |(of, _)| *of);
            let older = self.snapshots.range(..number).rev();
            let heir = older.filter(|(_, s)| s.holds(of, file)).map(|(n, _)| *n).next();
            // Another fork of an age between the two stands in for it there.
            let heir = heir.filter(|heir| {
                let first = self.forks.range((of, *heir)..=(of, u64::MAX)).next();
                first.is_none_or(|(_, fork)| *fork == handle)
            });
            let Some(heir) = heir else {
                self.delete_chunk(handle);
                continue;
            };
            if let Some(key) = self.fork_of.get(&handle).copied() {
                self.forks.remove(&key);
                self.forks.insert((of, heir), handle);
                self.fork_of.insert(handle, (of, heir));
            }
            self.keep(heir, handle);
        }
    }

    /// Panics if snapshots and chunks do not fit together.
    pub(crate) fn check_snapshots(&self) {
        for ((of, number), fork) in self.forks.iter() {
            assert_eq!(self.fork_of.get(fork), Some(&(*of, *number)), "{fork} is a fork of {of}");
            assert!(self.kept.contains_key(&(*number, *fork)), "{fork} is kept");
        }
        assert_eq!(self.forks.len(), self.fork_of.len());
        for (_, handle) in self.kept.keys() {
            let chunk = self.chunks.get(handle).expect("what is kept exists");
            let live =
                self.tree.file(chunk.file).is_some_and(|f| f.parts().iter().any(|p| p.handle == *handle));
            assert!(!live, "{handle} is kept for snapshots, and live");
        }
        for (number, snapshot) in self.snapshots.iter() {
            let root = snapshot.head.root;
            assert!(self.tree.path_of(root).is_some(), "the directory of a snapshot is gone");
            for (id, inode) in snapshot.tree.inodes.iter().filter(|(id, _)| snapshot.holds_file(*id)) {
                let Body::File(file) = &inode.body else { continue };
                for part in file.parts().iter().filter(|p| p.handle != ChunkHandle::HOLE) {
                    let handle = self.as_of(*number, part.handle);
                    let chunk = self.chunks.get(&handle);
                    assert!(chunk.is_some(), "snapshot {number} has lost {handle} of {id}");
                }
            }
            let range = (*number, ChunkHandle(0))..=(*number, ChunkHandle(u64::MAX));
            assert_eq!(
                snapshot.head.kept.0,
                self.kept.range(range).count() as u64,
                "kept chunks are counted"
            );
        }
    }
}
