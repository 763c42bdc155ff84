//! Clones: a chunk of a file that is begun as a fork of another file's chunk, so that bytes are copied by
//! naming them. The masters name the fork, the client has all members of the other chunk make it, as of one moment,
//! and the masters put it into the file. Until then it is nobody's: whatever comes between gives it up, and who may
//! have made it discards it.

use crate::quota::Totals;
use crate::{Answer, Metadata};
use bincode::{Decode, Encode};
use common::limits::{CHUNK_BYTES_MAX, CLONE_MS, CLONES_MAX};
use common::wire::client_master::MasterReply;
use common::{ChunkHandle, Code, Epoch, FileId, Refusal};

/// A clone that is being made.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Cloning {
    /// The chunk that is forked, and its epoch: in another one its members are others, or lead differently.
    of: ChunkHandle,
    epoch: Epoch,
    /// Where the fork goes: behind so many bytes of this file.
    file: FileId,
    at: u64,
    /// The last snapshot when it was named: a later one would take it for its own.
    snapshot: u64,
    /// By the log's time.
    begun_ns: u64,
}

impl Metadata {
    /// Names the fork of a chunk that shall become the next one of a file.
    pub(crate) fn begin_clone(
        &mut self,
        of: ChunkHandle,
        snapshot: u64,
        file: FileId,
        at: u64,
    ) -> Answer<MasterReply> {
        let of = self.as_of(snapshot, of);
        let chunk = self.chunks.get(&of).ok_or_else(|| Refusal::new(Code::NoSuchChunk, of))?;
        let (epoch, primary, members) = (chunk.epoch, chunk.primary, self.members_of(chunk).to_vec());
        self.takes_clone(file, at, chunk.length)?;
        let policy = &self.file_policies[&self.tree.inodes[&file].policy];
        let label = policy.label.as_deref().unwrap_or("");
        let suits = |id| self.stores.get(id).is_some_and(|store| store.register.rack.starts_with(label));
        if policy.replication != Some(chunk.want) || !members.iter().all(suits) {
            return Err(Refusal::new(Code::BadArgument, "the file's chunks must lie elsewhere"));
        }
        if self.clones.len() >= CLONES_MAX || !members.iter().all(|id| self.is_up(*id)) {
            return Err(Refusal::new(Code::Busy, of));
        }
        let to = self.name_chunk();
        let (snapshot, begun_ns) = (self.last_snapshot(), self.clock_ns);
        self.clones.insert(to, Cloning { of, epoch, file, at, snapshot, begun_ns });
        let to = self.fork_at(to, primary, members);
        Ok(MasterReply::Clone { of: self.config(of)?, to })
    }

    /// All members hold the fork of a chunk that is what it was: it goes into its file. Or it comes to nothing.
    pub(crate) fn end_clone(&mut self, to: ChunkHandle, length: Option<u64>) -> Answer<MasterReply> {
        let clone = self.clones.remove(&to).ok_or_else(|| Refusal::new(Code::NoSuchChunk, to))?;
        let Some(length) = length else {
            self.discard_fork(to);
            return Ok(MasterReply::Done);
        };
        if let Err(refusal) = self.is_made(&clone, length) {
            self.discard_fork(to);
            return Err(refusal);
        }
        self.take_forking_at(to);
        let Cloning { of, file, .. } = clone;
        let (of, epoch) = (self.chunks[&of].clone(), Epoch::first(self.generation));
        self.drop_empty_end(file);
        self.put_chunk(to, crate::Chunk { epoch, file, length: 0, sealed: false, ..of });
        self.push_part(file, to, 0);
        self.set_length(to, length, true);
        self.unnamed.keep(file, self.clock_ns);
        let index = self.tree.file(file).expect("it has a part more").parts().len() - 1;
        Ok(MasterReply::Chunk(self.chunk_info(file, index)?))
    }

    /// A file's last chunk that was sealed before anything was written to it is of no use.
    fn drop_empty_end(&mut self, file: FileId) {
        let parts = self.tree.file(file).expect("it takes a clone").parts();
        let count = parts.len();
        let Some(empty) = parts.last().filter(|p| p.length == 0).map(|p| p.handle) else { return };
        let mut inode = self.tree.inodes[&file].clone();
        inode.file_mut().keep(count - 1, None);
        self.tree.put_file(file, inode);
        self.let_go(empty);
    }

    /// Whether such a clone, once its members have made it, may go into its file.
    fn is_made(&self, clone: &Cloning, length: u64) -> Answer<()> {
        let Cloning { of, epoch, file, at, snapshot, .. } = clone;
        if self.chunks.get(of).is_none_or(|chunk| chunk.epoch != *epoch) || *snapshot != self.last_snapshot()
        {
            return Err(Refusal::new(Code::StaleEpoch, of));
        }
        if length == 0 || length > CHUNK_BYTES_MAX {
            return Err(Refusal::new(Code::BadArgument, "a chunk has 1 byte to 64 MiB"));
        }
        self.takes_clone(*file, *at, length)
    }

    /// Whether a file ends there, with nothing that still grows, and may have so many bytes more.
    fn takes_clone(&self, file: FileId, at: u64, length: u64) -> Answer<()> {
        let body = self.tree.file(file).ok_or(Code::NoSuchFileId)?;
        if self.tree.inodes[&file].open || body.length() != at || length > i64::MAX as u64 - at {
            let about = format!("the file has {} bytes, not {at}", body.length());
            return Err(Refusal::new(Code::WrongChunkIndex, about));
        }
        self.may_grow(file, Totals::of_bytes(length))
    }

    /// Gives clones up whose clients have not been heard of for too long.
    pub(crate) fn expire_clones(&mut self, budget: u32) {
        for _ in 0..budget {
            let Some(to) = self.expired_clone() else { return };
            self.clones.remove(&to);
            self.discard_fork(to);
        }
    }

    /// The oldest clone, if it is too old: later ones have higher names.
    pub(crate) fn expired_clone(&self) -> Option<ChunkHandle> {
        let (to, clone) = self.clones.get_min()?;
        (clone.begun_ns + CLONE_MS * 1_000_000 < self.clock_ns).then_some(*to)
    }

    /// Panics if clones and chunks do not fit together.
    pub(crate) fn check_clones(&self) {
        for to in self.clones.keys() {
            assert!(self.chunks.get(to).is_none(), "{to} is a chunk, and a clone that is being made");
        }
        let named = self.forking.values().map(|forking| forking.to).chain(self.clones.keys().copied());
        let named: std::collections::BTreeSet<ChunkHandle> = named.collect();
        for (to, _) in self.forking_at.keys() {
            assert!(named.contains(to), "{to} may be made, and nobody wants it");
        }
    }
}
