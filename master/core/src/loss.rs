//! Stores that will never come back. The masters cannot know that: somebody has to say so. Then a
//! chunk goes on with the members that are left, even if it is only one - each member of an epoch has
//! all that was acknowledged in it - and one that has none left is lost.

use crate::{Answer, Chunk, Metadata};
use common::limits::MIN_REPLICAS;
use common::wire::client_master::{LOSS_ITEMS_MAX, Loss, LossItem, MasterReply};
use common::{ChunkHandle, Code, Mutant, Refusal, StoreId};

impl Metadata {
    /// A store is given up for good. Said twice, it is as if said once.
    pub(crate) fn give_up(&mut self, store: StoreId) -> Answer<MasterReply> {
        let known = self.stores.get(&store).ok_or_else(|| Refusal::new(Code::NoSuchStore, store))?;
        if known.session().is_some() {
            return Err(Refusal::new(Code::StoreInUse, format!("{store} is in service; drain it instead")));
        }
        if self.given_up.insert(store, ()).is_none() {
            self.table += 1;
        }
        Ok(MasterReply::Done)
    }

    /// Whether a store will never come back.
    pub fn is_given_up(&self, store: StoreId) -> bool {
        self.given_up.contains_key(&store)
    }

    /// The stores that will never come back.
    pub fn given_up(&self) -> impl Iterator<Item = StoreId> {
        self.given_up.keys().copied()
    }

    /// Whether no member of a chunk will ever come back.
    pub fn is_lost(&self, handle: ChunkHandle) -> bool {
        self.chunks.get(&handle).is_some_and(|c| self.members_of(c).iter().all(|m| self.is_given_up(*m)))
    }

    /// Live members that must stay of a chunk when others leave: fewer than usual only if the rest
    /// will never come back.
    pub(crate) fn floor(&self, chunk: &Chunk) -> usize {
        if Mutant::NoFloor.on() {
            return 1;
        }
        let members = self.members_of(chunk);
        let hope = members.iter().filter(|m| !self.is_given_up(**m)).count();
        MIN_REPLICAS.min(chunk.want as usize).min(hope.max(1))
    }

    /// What giving a store up would mean, or has meant. It walks all chunks.
    pub fn loss_of(&self, store: StoreId) -> Answer<Loss> {
        let known = self.stores.get(&store).ok_or_else(|| Refusal::new(Code::NoSuchStore, store))?;
        let mut loss = Loss { up: known.session().is_some(), ..Loss::default() };
        let hope = |m: &&StoreId| **m != store && !self.is_given_up(**m);
        for (handle, chunk) in self.chunks.iter() {
            let members = self.members_of(chunk);
            if !members.contains(&store) {
                continue;
            }
            loss.chunks += 1;
            match members.iter().filter(hope).count() {
                0 => {
                    loss.lost += 1;
                    if loss.items.len() < LOSS_ITEMS_MAX {
                        let path = self.tree.path_of(chunk.file);
                        loss.items.push(LossItem { handle, path, length: chunk.length });
                    }
                }
                1 => loss.single += 1,
                _ => {}
            }
        }
        Ok(loss)
    }

    /// What was to be told to stores that will never hear it is forgotten, in bounded steps.
    pub(crate) fn forget_given_up(&mut self, budget: u32) {
        let keys: Vec<_> = self.untold().take(budget as usize).collect();
        for key in keys {
            self.deletions.remove(&key);
        }
    }

    pub(crate) fn has_untold(&self) -> bool {
        self.untold().next().is_some()
    }

    fn untold(&self) -> impl Iterator<Item = (StoreId, ChunkHandle)> {
        let of = |id: StoreId| (id, ChunkHandle(0))..=(id, ChunkHandle(u64::MAX));
        self.given_up().flat_map(move |id| self.deletions.range(of(id)).map(|(key, _)| *key))
    }
}
