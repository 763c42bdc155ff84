//! Moving chunks from full stores to empty ones: one member at a time gets a successor elsewhere,
//! and leaves when that has joined.

use crate::placement::{Wish, place_one};
use crate::{Answer, Command, Metadata, Store};
use common::limits::CHUNK_BYTES_MAX;
use common::wire::chunk_master::StoreReply;
use common::{ChunkHandle, Code, Epoch, Refusal, StoreId};
use std::collections::BTreeSet;

/// Chunks that are moved at a time.
const MOVES_MAX: usize = 2;
/// A cluster is balanced while its fullest and its emptiest store differ by less than this, in
/// thousandths of their capacity,
const BALANCED_PERMILLE: u64 = 100;
/// or by less than this in bytes: what is told of their use lags behind the moves.
const BALANCED_BYTES: u64 = 8 * CHUNK_BYTES_MAX;

impl Metadata {
    /// Chunks that are moved, and from where.
    pub fn moving(&self) -> impl Iterator<Item = (ChunkHandle, StoreId)> {
        self.moving.iter().map(|(handle, from)| (*handle, *from))
    }

    /// The next move that brings the cluster closer to balance, among the `limit` chunks after
    /// `after`; and where to look next.
    pub fn wanted_move(&self, after: ChunkHandle, limit: usize) -> (Option<Command>, ChunkHandle) {
        if self.moving.len() >= MOVES_MAX {
            return (None, after);
        }
        let usable = |(id, s): &(StoreId, &Store)| s.session().is_some() && !self.is_drained(*id);
        let far = |from: &Store, to: &Store| {
            from.permille().saturating_sub(to.permille()) >= BALANCED_PERMILLE
                && from.register.used.saturating_sub(to.register.used) >= BALANCED_BYTES
        };
        // Not only off the fullest: the rules of racks may forbid all that would relieve it. Not to another
        // full store.
        let mut sources: Vec<(StoreId, &Store, BTreeSet<StoreId>)> = vec![];
        for (id, from) in self.all_stores().filter(usable) {
            if self.all_stores().filter(usable).any(|(_, to)| far(from, to)) {
                let near = self.all_stores().filter(|(_, to)| !far(from, to)).map(|(id, _)| id).collect();
                sources.push((id, from, near));
            }
        }
        if sources.is_empty() {
            return (None, after);
        }
        sources.sort_by_key(|(_, s, _)| std::cmp::Reverse(s.permille()));
        let mut at = after;
        for (handle, chunk) in self.chunks.from(ChunkHandle(after.0.saturating_add(1))).take(limit) {
            at = handle;
            let members = self.members_of(chunk);
            let whole = members.len() == chunk.want as usize && members.iter().all(|m| self.is_up(*m));
            if !whole || self.is_unwell(handle) {
                continue;
            }
            let wish = Wish { replicas: 1, chunk_bytes: chunk.length, label: "", near: "", salt: handle.0 };
            for (from, _, near) in sources.iter().filter(|(id, ..)| members.contains(id)) {
                let others: Vec<StoreId> = members.iter().copied().filter(|m| m != from).collect();
                let target = place_one(self, &wish, members, &others, &[], near);
                // Balance is not worth a rack.
                if target.is_some_and(|t| self.racks(others.iter().chain([&t])) >= self.racks(members)) {
                    return (Some(Command::Move { handle, epoch: chunk.epoch, from: *from }), at);
                }
            }
        }
        let end = self.chunks.from(ChunkHandle(at.0.saturating_add(1))).next().is_none();
        (None, if end { ChunkHandle(0) } else { at })
    }

    /// Over how many racks these stores are spread.
    fn racks<'a>(&self, stores: impl IntoIterator<Item = &'a StoreId>) -> usize {
        let racks = stores.into_iter().filter_map(|id| self.store(*id)).map(|s| s.register.rack.as_str());
        racks.collect::<BTreeSet<_>>().len()
    }

    /// Begins to move a chunk off a member.
    pub(crate) fn begin_move(
        &mut self,
        handle: ChunkHandle,
        epoch: Epoch,
        from: StoreId,
    ) -> Answer<StoreReply> {
        let chunk = self.chunks.get(&handle).ok_or_else(|| Refusal::new(Code::NoSuchChunk, handle))?;
        let good = chunk.epoch == epoch
            && self.members_of(chunk).contains(&from)
            && !self.is_unwell(handle)
            && self.moving.len() < MOVES_MAX;
        if !good {
            return Err(Refusal::new(Code::RepairVoid, handle));
        }
        self.moving.insert(handle, from);
        Ok(StoreReply::Done)
    }
}
