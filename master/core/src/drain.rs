//! Taking servers out of use: nothing new is placed there, and what they hold gets another place
//! before it leaves them.

use crate::{Answer, Chunk, Metadata};
use common::limits::{MAINTENANCE_MS_MAX, MIN_REPLICAS, REPLICATION_MAX};
use common::wire::client_master::MasterReply;
use common::{ChunkHandle, Code, Refusal, ServerId, StoreId};
use std::collections::BTreeSet;

impl Metadata {
    /// Begins to drain a server, or takes that back. Said twice, it is as if said once.
    pub(crate) fn drain(&mut self, server: ServerId, on: bool) -> Answer<MasterReply> {
        if !self.stores.values().any(|s| s.server == server) {
            return Err(Refusal::new(Code::NoSuchStore, server));
        }
        match on {
            true => self.draining.insert(server, ()),
            false => self.draining.remove(&server),
        };
        Ok(MasterReply::Done)
    }

    /// A server will be away for so many milliseconds, and is waited for; 0 ends that.
    pub(crate) fn maintain(&mut self, server: ServerId, ms: u64) -> Answer<MasterReply> {
        if !self.stores.values().any(|s| s.server == server) {
            return Err(Refusal::new(Code::NoSuchStore, server));
        }
        if ms > MAINTENANCE_MS_MAX {
            return Err(Refusal::new(Code::BadArgument, "maintenance takes at most a week"));
        }
        match ms {
            0 => self.maintained.remove(&server),
            ms => self.maintained.insert(server, self.clock_ns + ms * 1_000_000),
        };
        Ok(MasterReply::Done)
    }

    /// The servers that are maintained, and until when by the log's time.
    pub fn maintained(&self) -> impl Iterator<Item = (ServerId, u64)> {
        self.maintained.iter().map(|(server, until)| (*server, *until))
    }

    /// Whether a store is away for maintenance, at this time of the log.
    pub fn is_maintained(&self, store: StoreId, now_ns: u64) -> bool {
        let until = self.stores.get(&store).and_then(|s| self.maintained.get(&s.server));
        until.is_some_and(|until| *until > now_ns)
    }

    /// Chunks with a replica on a server, and those of them that would have too few live members
    /// without it. It walks all chunks.
    pub fn at_risk_without(&self, server: ServerId) -> (u64, u64) {
        let on_it = |id: &StoreId| self.stores.get(id).is_some_and(|s| s.server == server);
        let (mut chunks, mut at_risk) = (0, 0);
        for chunk in self.chunks.values() {
            let members = self.members_of(chunk);
            if members.iter().any(on_it) {
                let live = members.iter().filter(|m| !on_it(m) && self.is_up(**m)).count();
                chunks += 1;
                at_risk += u64::from(live < MIN_REPLICAS.min(chunk.want as usize));
            }
        }
        (chunks, at_risk)
    }

    /// The servers that are drained.
    pub fn draining(&self) -> impl Iterator<Item = ServerId> {
        self.draining.keys().copied()
    }

    /// Whether chunks shall leave this store.
    pub fn is_drained(&self, store: StoreId) -> bool {
        self.stores.get(&store).is_some_and(|s| self.draining.contains_key(&s.server))
    }

    /// The members of a chunk that stay: that are not on a drained server, nor moved.
    pub fn staying(&self, handle: ChunkHandle, chunk: &Chunk) -> Vec<StoreId> {
        let from = self.moving.get(&handle);
        let stays = |m: &StoreId| !self.is_drained(*m) && from != Some(m);
        self.members_of(chunk).iter().copied().filter(stays).collect()
    }

    /// The members that shall leave a chunk now: those that do not stay once there are enough
    /// others, or one of them if there is no room for a successor; and who is more than wanted.
    pub fn leaving(&self, handle: ChunkHandle, chunk: &Chunk) -> Vec<StoreId> {
        let (members, want) = (self.members_of(chunk), chunk.want as usize);
        let mut staying = self.staying(handle, chunk);
        let mut leaving: Vec<StoreId> = members.iter().copied().filter(|m| !staying.contains(m)).collect();
        if staying.iter().filter(|m| self.is_up(**m)).count() < want {
            leaving.truncate((members.len() >= REPLICATION_MAX as usize) as usize);
            return leaving;
        }
        let rack = |m: &StoreId| self.stores.get(m).map(|s| s.register.rack.as_str());
        while staying.len() > want {
            // Best one that is down, or shares its rack with another.
            let shares = |m: &StoreId| staying.iter().filter(|o| rack(o) == rack(m)).count() > 1;
            let others = || staying.iter().copied().filter(|m| *m != chunk.primary);
            let down = |m: &StoreId| !self.is_up(*m);
            let surplus = others().rfind(down).or_else(|| others().rfind(shares));
            let surplus = surplus.or_else(|| others().next_back());
            let surplus = surplus.expect("more than one member is wanted, or there is one too many");
            staying.retain(|m| *m != surplus);
            leaving.push(surplus);
        }
        leaving
    }

    /// The chunks of which a server has a replica, and its copies that are ordered to go and are
    /// not confirmed to be gone. Walks all chunks.
    pub fn left_on(&self, server: ServerId) -> (u64, u64) {
        let stores: BTreeSet<StoreId> =
            self.stores.iter().filter(|(_, s)| s.server == server).map(|(id, _)| *id).collect();
        // Sets are few: each is looked at once.
        let sets: BTreeSet<u32> = self
            .sets
            .iter()
            .filter(|(_, m)| m.iter().any(|m| stores.contains(m)))
            .map(|(id, _)| *id)
            .collect();
        let chunks = self.chunks.values().filter(|c| sets.contains(&c.set)).count();
        let copies = self.deletions.keys().filter(|(store, _)| stores.contains(store)).count();
        (chunks as u64, copies as u64)
    }
}
