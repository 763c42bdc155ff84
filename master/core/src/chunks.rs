//! Chunks: who holds them, under which epoch, how long they are.

use crate::placement::{Wish, place};
use crate::{Answer, Metadata};
use bincode::{Decode, Encode};
use common::limits::{CHUNK_BYTES_MAX, MIN_REPLICAS};
use common::wire::ChunkConfig;
use common::wire::chunk_master::StoreReply;
use common::wire::client_master::{Policy, Story};
use common::{ChunkHandle, Code, Epoch, FileId, Refusal, StoreId};

/// A chunk.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Chunk {
    /// Its configuration number.
    pub epoch: Epoch,
    /// Bytes: agreed if sealed, else as last reported.
    pub length: u64,
    /// The file it belongs to.
    pub file: FileId,
    /// Its members: an interned set, in chain order.
    pub set: u32,
    /// The member that orders writes.
    pub primary: StoreId,
    /// Replicas that it should have.
    pub want: u8,
    /// Whether the length is fixed.
    pub sealed: bool,
}

impl Metadata {
    /// A chunk.
    pub fn chunk(&self, handle: ChunkHandle) -> Option<&Chunk> {
        self.chunks.get(&handle)
    }

    /// Members of a chunk, in chain order.
    pub fn members_of(&self, chunk: &Chunk) -> &[StoreId] {
        &self.sets[&chunk.set]
    }

    /// The configuration of a chunk. The wait is the leader's to fill in: it counts sessions.
    pub fn config(&self, handle: ChunkHandle) -> Answer<ChunkConfig> {
        let chunk = self.chunks.get(&handle).ok_or_else(|| Refusal::new(Code::NoSuchChunk, handle))?;
        Ok(ChunkConfig {
            handle,
            epoch: chunk.epoch,
            primary: chunk.primary,
            members: self.members_of(chunk).to_vec(),
            sealed: chunk.sealed.then_some(chunk.length),
            wait_ms: 0,
        })
    }

    /// All that is known of a chunk, but for what the leader counts.
    pub fn explain(&self, handle: ChunkHandle) -> Answer<Story> {
        let config = self.config(handle)?;
        let chunk = &self.chunks[&handle];
        let stay = self.staying(handle, chunk);
        Ok(Story {
            want: chunk.want,
            length: chunk.length,
            file: chunk.file,
            path: self.tree.path_of(chunk.file),
            kept: self.kept_for(handle),
            fork_of: self.fork_of.get(&handle).copied(),
            forks: self.forks_of(handle),
            leaving: config.members.iter().copied().filter(|m| !stay.contains(m)).collect(),
            target: self.repair(handle).map(|r| r.target),
            old: self.stale_of(handle),
            unconfirmed: self.removed_from(handle).into_iter().map(|(store, _)| store).collect(),
            lacking: None,
            config,
        })
    }

    /// Makes a chunk and places it.
    pub(crate) fn new_chunk(
        &mut self,
        file: FileId,
        policy: &Policy,
        near: &str,
        salt: u64,
    ) -> Answer<ChunkHandle> {
        let want = policy.replication.expect("an effective policy is complete");
        let wish = Wish {
            replicas: want as usize,
            chunk_bytes: policy.chunk_bytes.expect("an effective policy is complete"),
            label: policy.label.as_deref().unwrap_or(""),
            near,
            salt,
        };
        let members = place(self, &wish);
        if members.len() < MIN_REPLICAS.min(want as usize) {
            let about = format!("{} of {want} replicas could be placed", members.len());
            return Err(Refusal::new(Code::NoServers, about));
        }
        for id in &members {
            let mut store = self.stores[id].clone();
            store.placed(self.clock_ns);
            self.stores.insert(*id, store);
        }
        let handle = self.name_chunk();
        let primary = members[0];
        let epoch = Epoch::first(self.generation);
        let set = self.intern(members);
        self.put_chunk(handle, Chunk { epoch, length: 0, file, set, primary, want, sealed: false });
        Ok(handle)
    }

    /// Chunks that are named from now on have this handle or a later one.
    pub fn next_chunk(&self) -> ChunkHandle {
        ChunkHandle::new(0, self.next_chunk)
    }

    /// A name that no chunk ever had.
    pub(crate) fn name_chunk(&mut self) -> ChunkHandle {
        let handle = self.next_chunk();
        self.next_chunk += 1;
        handle
    }

    /// The only way in for a chunk: counts those that lack members.
    pub(crate) fn put_chunk(&mut self, handle: ChunkHandle, chunk: Chunk) {
        self.degraded += u64::from(self.lacks_members(&chunk));
        if let Some(before) = self.chunks.insert(handle, chunk) {
            self.degraded -= u64::from(self.lacks_members(&before));
        }
    }

    pub(crate) fn lacks_members(&self, chunk: &Chunk) -> bool {
        self.members_of(chunk).len() < chunk.want as usize
    }

    pub(crate) fn intern(&mut self, members: Vec<StoreId>) -> u32 {
        if let Some(id) = self.set_ids.get(&members) {
            return *id;
        }
        let id = self.next_set;
        self.next_set += 1;
        for a in &members {
            for b in members.iter().filter(|b| *b != a) {
                self.partners.insert((*a, *b), ());
            }
        }
        self.sets.insert(id, members.clone());
        self.set_ids.insert(members, id);
        id
    }

    /// Whether a chunk can do without these members: enough that are alive must stay.
    pub fn may_remove(&self, handle: ChunkHandle, remove: &[StoreId]) -> Result<(), Refusal> {
        let chunk = self.chunks.get(&handle).ok_or_else(|| Refusal::new(Code::NoSuchChunk, handle))?;
        let members = self.members_of(chunk);
        let live = members.iter().filter(|m| !remove.contains(m) && self.is_up(**m)).count();
        if members.iter().any(|m| remove.contains(m)) && live < self.floor(chunk) {
            let about = format!("{handle}: {live} of {} members are alive", members.len());
            return Err(Refusal::new(Code::Frozen, about));
        }
        Ok(())
    }

    /// A new epoch: members leave, or another leads, or the same primary starts over. Never so
    /// that fewer live members remain than the floor; then the chunk is frozen and stays as it is,
    /// until members return or are given up.
    pub(crate) fn reconfigure(
        &mut self,
        handle: ChunkHandle,
        epoch: Epoch,
        remove: &[StoreId],
        primary: Option<StoreId>,
    ) -> Answer<StoreReply> {
        let chunk = self.chunks.get(&handle).ok_or_else(|| Refusal::new(Code::NoSuchChunk, handle))?;
        if chunk.epoch != epoch {
            return Ok(StoreReply::Config(self.config(handle)?));
        }
        self.may_remove(handle, remove)?;
        let mut chunk = chunk.clone();
        let members = self.members_of(&chunk).iter().copied();
        let (leaving, stay): (Vec<StoreId>, Vec<StoreId>) = members.partition(|m| remove.contains(m));
        let present = Some(chunk.primary).filter(|p| stay.contains(p));
        let live_ones = stay.iter().copied().filter(|m| self.is_up(*m));
        let next_live = live_ones.min_by_key(|m| self.stores[m].doubted);
        let wanted = primary.filter(|p| stay.contains(p));
        let leads = wanted.or(present).or(next_live);
        chunk.primary = leads.ok_or_else(|| Refusal::new(Code::Frozen, handle))?;
        chunk.epoch = epoch.next();
        chunk.set = self.intern(stay);
        let now = chunk.epoch;
        self.put_chunk(handle, chunk);
        self.repairs.remove(&handle);
        self.moving.remove(&handle);
        for id in leaving {
            self.order(id, handle, now);
        }
        self.discard_stale(handle);
        Ok(StoreReply::Config(self.config(handle)?))
    }

    /// Fixes a chunk's length; the first length given is the answer to all.
    pub(crate) fn seal(&mut self, handle: ChunkHandle, epoch: Epoch, length: u64) -> Answer<StoreReply> {
        let chunk = self.chunks.get(&handle).ok_or_else(|| Refusal::new(Code::NoSuchChunk, handle))?;
        if !chunk.sealed {
            if chunk.epoch != epoch {
                return Err(Refusal::new(Code::StaleEpoch, handle));
            }
            if length > CHUNK_BYTES_MAX {
                return Err(Refusal::new(Code::BadArgument, "a chunk has at most 64 MiB"));
            }
            self.set_length(handle, length, true);
        }
        Ok(StoreReply::Config(self.config(handle)?))
    }

    /// Sets a chunk's length, in the chunk and in its file.
    pub(crate) fn set_length(&mut self, handle: ChunkHandle, length: u64, sealed: bool) {
        let mut chunk = self.chunks[&handle].clone();
        chunk.length = length;
        chunk.sealed |= sealed;
        let file = chunk.file;
        self.put_chunk(handle, chunk);
        if let Some(mut inode) = self.tree.inodes.get(&file).cloned() {
            inode.set_length(handle, length, sealed);
            self.tree.put_file(file, inode);
        }
    }

    /// Deletes a chunk: its members are told until they confirm.
    pub(crate) fn delete_chunk(&mut self, handle: ChunkHandle) {
        let Some(chunk) = self.chunks.remove(&handle) else {
            return;
        };
        self.degraded -= u64::from(self.lacks_members(&chunk));
        for id in self.sets[&chunk.set].clone() {
            self.order(id, handle, Epoch::DELETED);
        }
        // Who left and holds an old copy is told too, and who was about to become a member.
        for id in self.stale_of(handle) {
            self.stale.remove(&(handle, id));
            self.order(id, handle, Epoch::DELETED);
        }
        self.repairs.remove(&handle);
        self.moving.remove(&handle);
        self.end_forks_of(handle);
    }
}
