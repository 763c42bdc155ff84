//! Making replicas anew: which chunk gets a copy where, under which attempt, and when the copy
//! becomes a member. What a removed member still holds is remembered: it is the best place for
//! the next copy, and goes when the chunk has all its members again.

use crate::placement::{Wish, place_one};
use crate::{Answer, Metadata};
use bincode::{Decode, Encode};
use common::limits::{LEARNERS_MAX, MIN_REPLICAS, REPLICATION_MAX, TAUGHT_MAX};
use common::wire::chunk_master::{RepairOrder, StoreReply};
use common::{ChunkHandle, Code, Epoch, Refusal, StoreId};
use std::collections::{BTreeMap, BTreeSet};

/// An attempt to make a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Repair {
    /// The store that copies.
    pub target: StoreId,
    /// Names the attempt; never given twice.
    pub attempt: u64,
    /// The chunk's epoch when it began; a new one ends it.
    pub epoch: Epoch,
    /// Log time of its beginning.
    pub since_ns: u64,
}

impl Metadata {
    /// Attempts under way, by chunk.
    pub fn repairs(&self) -> impl Iterator<Item = (ChunkHandle, Repair)> {
        self.repairs.iter().map(|(handle, repair)| (*handle, *repair))
    }

    /// How many attempts are under way.
    pub fn repairs_under_way(&self) -> usize {
        self.repairs.len()
    }

    /// The attempt under way for a chunk.
    pub fn repair(&self, handle: ChunkHandle) -> Option<Repair> {
        self.repairs.get(&handle).copied()
    }

    /// What a store shall copy.
    pub fn repairs_for(&self, store: StoreId) -> Vec<RepairOrder> {
        let mine = self.repairs.iter().filter(|(_, r)| r.target == store);
        mine.filter_map(|(handle, r)| {
            Some(RepairOrder { config: self.config(*handle).ok()?, attempt: r.attempt })
        })
        .collect()
    }

    /// Whether a chunk lacks members, or has some that shall leave it.
    pub fn is_unwell(&self, handle: ChunkHandle) -> bool {
        self.chunks.get(&handle).is_some_and(|c| {
            let (members, staying) = (self.members_of(c).len(), self.staying(handle, c).len());
            staying != c.want as usize || staying < members
        })
    }

    /// Chunks from `after` on, at most `limit`: those that lack members, or have dead ones or such
    /// that shall leave, and how many live ones they have. Also where to go on; `None` at the end.
    pub fn unwell(
        &self,
        after: ChunkHandle,
        limit: usize,
        is_dead: &dyn Fn(StoreId) -> bool,
    ) -> (Vec<(ChunkHandle, usize)>, Option<ChunkHandle>) {
        // Sets are few: each is looked at once.
        let mut sets = BTreeMap::new();
        let mut standing_of = |set: u32| {
            *sets.entry(set).or_insert_with(|| {
                let members = &self.sets[&set];
                let live = members.iter().filter(|m| !is_dead(**m)).count();
                (live, live == members.len() && !members.iter().any(|m| self.is_drained(*m)))
            })
        };
        let mut found = vec![];
        let mut at = after;
        let first = ChunkHandle(after.0.saturating_add(1));
        let mut seen = 0;
        for (handle, chunk) in self.chunks.from(first).take(limit) {
            let (live, all_stay) = standing_of(chunk.set);
            if live != chunk.want as usize || !all_stay || self.moving.contains_key(&handle) {
                found.push((handle, live));
            }
            at = handle;
            seen += 1;
        }
        (found, (seen == limit).then_some(at))
    }

    /// A member's copy has rotted: it leaves like any other, never so that too few remain, and its
    /// copy goes at once.
    pub(crate) fn condemn(
        &mut self,
        handle: ChunkHandle,
        epoch: Epoch,
        store: StoreId,
    ) -> Answer<StoreReply> {
        let before = self.config(handle)?;
        if before.epoch != epoch || !before.members.contains(&store) {
            return Ok(StoreReply::Config(before));
        }
        let reply = self.reconfigure(handle, epoch, &[store], None)?;
        self.stale.remove(&(handle, store));
        self.deletions.insert((store, handle), epoch.next());
        Ok(reply)
    }

    /// Where the next copy of a chunk would be made, by this salt; or why none can be begun now.
    pub fn repair_target(&self, handle: ChunkHandle, epoch: Epoch, salt: u64) -> Answer<StoreId> {
        let chunk = self.chunks.get(&handle).ok_or_else(|| Refusal::new(Code::NoSuchChunk, handle))?;
        // The others leave when there are enough of these.
        let staying = self.staying(handle, chunk);
        let members = self.members_of(chunk);
        let room = members.len() < REPLICATION_MAX as usize;
        let due = chunk.epoch == epoch && staying.len() < chunk.want as usize && room;
        if !due || self.repairs.contains_key(&handle) {
            return Err(Refusal::new(Code::RepairVoid, handle));
        }
        let taught = |h: &&ChunkHandle| self.chunks.get(h).is_some_and(|c| c.primary == chunk.primary);
        if self.repairs.keys().filter(taught).count() >= TAUGHT_MAX {
            return Err(Refusal::new(Code::Busy, handle));
        }
        let wish = Wish { replicas: 1, chunk_bytes: chunk.length, label: "", near: "", salt };
        let stale: Vec<StoreId> = self.stale_of(handle);
        let busy = self.busy_targets();
        let target = place_one(self, &wish, members, &staying, &stale, &busy);
        // A copy that must go is nothing to build on: it is waited for until it is gone.
        let ordered =
            |t: StoreId| self.orders.contains_key(&(t, handle)) || self.deletions.contains_key(&(t, handle));
        match target {
            Some(target) if busy.contains(&target) || ordered(target) => {
                Err(Refusal::new(Code::Busy, target))
            }
            // Writers would wait for it; they do not need it.
            Some(target)
                if self.stores[&target].doubted && staying.len() >= MIN_REPLICAS.min(chunk.want as usize) =>
            {
                Err(Refusal::new(Code::Doubted, target))
            }
            Some(target) => Ok(target),
            None if busy.is_empty() => Err(Refusal::new(Code::NoServers, handle)),
            None => Err(Refusal::new(Code::Busy, handle)),
        }
    }

    /// Stores to which as much is copied already as they take at a time.
    fn busy_targets(&self) -> BTreeSet<StoreId> {
        let mut count = BTreeMap::<StoreId, usize>::new();
        for repair in self.repairs.values() {
            *count.entry(repair.target).or_default() += 1;
        }
        count.into_iter().filter(|(_, n)| *n >= LEARNERS_MAX).map(|(store, _)| store).collect()
    }

    /// Begins an attempt.
    pub(crate) fn begin_repair(
        &mut self,
        handle: ChunkHandle,
        epoch: Epoch,
        salt: u64,
    ) -> Answer<StoreReply> {
        let target = self.repair_target(handle, epoch, salt)?;
        let attempt = self.next_attempt;
        self.next_attempt += 1;
        self.stale.insert((handle, target), ());
        self.repairs.insert(handle, Repair { target, attempt, epoch, since_ns: self.clock_ns });
        let mut store = self.stores[&target].clone();
        store.placed(self.clock_ns);
        self.stores.insert(target, store);
        Ok(StoreReply::Done)
    }

    /// Ends an attempt that comes to nothing.
    pub(crate) fn end_repair(&mut self, handle: ChunkHandle, attempt: u64) -> Answer<StoreReply> {
        if self.repairs.get(&handle).is_some_and(|r| r.attempt == attempt) {
            self.repairs.remove(&handle);
            // If it was a move, another time perhaps.
            self.moving.remove(&handle);
        }
        Ok(StoreReply::Done)
    }

    /// The copy holds all that was acknowledged, and the primary admits nothing: a new epoch with
    /// it. Either that, or the attempt is over for good: a refusal here can be relied on.
    pub(crate) fn join(
        &mut self,
        handle: ChunkHandle,
        epoch: Epoch,
        learner: StoreId,
        attempt: u64,
    ) -> Answer<StoreReply> {
        let chunk = self.chunks.get(&handle).ok_or_else(|| Refusal::new(Code::NoSuchChunk, handle))?;
        if chunk.epoch != epoch {
            return Ok(StoreReply::Config(self.config(handle)?));
        }
        let mut chunk = chunk.clone();
        let mut members = self.members_of(&chunk).to_vec();
        let known = self.repairs.get(&handle).filter(|r| r.attempt == attempt).copied();
        let good = known.is_some_and(|r| r.target == learner)
            && self.is_up(learner)
            && !members.contains(&learner)
            && !self.orders.contains_key(&(learner, handle));
        if known.is_some() {
            self.repairs.remove(&handle);
        }
        if !good {
            return Err(Refusal::new(Code::RepairVoid, handle));
        }
        members.push(learner);
        chunk.epoch = epoch.next();
        chunk.set = self.intern(members);
        self.put_chunk(handle, chunk);
        self.stale.remove(&(handle, learner));
        self.discard_stale(handle);
        Ok(StoreReply::Config(self.config(handle)?))
    }

    /// Old copies go when the chunk has all its members.
    pub(crate) fn discard_stale(&mut self, handle: ChunkHandle) {
        let chunk = &self.chunks[&handle];
        let epoch = chunk.epoch;
        if self.members_of(chunk).len() < chunk.want as usize {
            return;
        }
        for store in self.stale_of(handle) {
            self.stale.remove(&(handle, store));
            if !self.is_given_up(store) {
                self.deletions.insert((store, handle), epoch);
            }
        }
    }

    /// Stores that are no members and may hold an old copy.
    pub fn stale_of(&self, handle: ChunkHandle) -> Vec<StoreId> {
        let range = (handle, StoreId(0))..=(handle, StoreId(u32::MAX));
        self.stale.range(range).map(|((_, store), ())| *store).collect()
    }
}
