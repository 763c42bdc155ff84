//! Snapshots: taken at any moment, known to stores when their sessions are renewed, and looked at
//! when all is over.

use super::{Acked, World};
use common::wire::client_master::{MasterReply, Mutation};
use common::{ChunkHandle, SessionId, StoreId, Time};
use master_core::{Before, Command};
use std::collections::BTreeMap;

/// A snapshot of everything.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    number: u64,
    name: Vec<u8>,
    /// It was asked for then.
    asked: Time,
    /// All stores knew of it then, and whoever asked was told so.
    told: Option<Time>,
}

impl World {
    /// Somebody takes a snapshot of everything; without a leader nothing comes of it.
    pub(super) fn take_snapshot(&mut self) {
        if !self.masters_lead() {
            return;
        }
        let name = format!("s{}", self.taken.len()).into_bytes();
        let mutation = Mutation::Snapshot { path: b"/".to_vec(), name: name.clone() };
        let MasterReply::Snapshots(list) = self.mutate(mutation) else { panic!("no snapshot") };
        self.taken.push(Taken { number: list[0].number, name, asked: self.now, told: None });
    }

    /// A store says which snapshots it knows of.
    pub(super) fn knows_snapshot(&mut self, store: StoreId, session: SessionId, number: u64) {
        self.known.insert(store, (session, number));
        let up = self.masters.state.all_stores().filter_map(|(id, s)| Some((id, s.session()?)));
        let known = up.map(|(id, session)| self.known.get(&id).filter(|(of, _)| *of == session));
        let least = known.map(|k| k.map_or(0, |(_, number)| *number)).min().unwrap_or(0);
        let now = self.now;
        for taken in self.taken.iter_mut().filter(|t| t.told.is_none() && t.number <= least) {
            taken.told = Some(now);
            self.trace.push(format!("{} snapshot {} is taken", now.0, taken.number));
        }
    }

    /// Each snapshot holds what was acknowledged before it was asked for, and nothing that was begun
    /// after it was taken; and with what a client wrote all that it had written before.
    pub fn check_snapshots(&mut self) {
        for taken in self.taken.clone() {
            let mut upto = BTreeMap::new();
            for handle in self.handles.clone() {
                let fork = self.masters.state.as_of(taken.number, handle);
                let bytes = self.read_all(fork);
                let what = format!("snapshot {}", taken.number);
                upto.insert(handle, self.last_within(handle, &bytes, &what));
            }
            let within = |a: &Acked| a.serial <= upto[&a.handle];
            for a in &self.acked {
                let what = format!("snapshot {} and the write {} of {}", taken.number, a.serial, a.handle);
                if a.acked_at < taken.asked {
                    assert!(within(a), "{what}: it was acknowledged before, and is not there");
                }
                if a.stamp >= taken.number || taken.told.is_some_and(|told| a.begun_at > told) {
                    assert!(!within(a), "{what}: it was begun after, and is there");
                }
                let mut before =
                    self.acked.iter().filter(|b| b.client == a.client && b.acked_at < a.begun_at);
                assert!(
                    !within(a) || before.all(within),
                    "{what}: it is there, and what its client had written before is not"
                );
            }
        }
    }

    /// The last acknowledged write that these bytes of a chunk hold: it holds all before it, too.
    pub(super) fn last_within(&self, handle: ChunkHandle, bytes: &[u8], what: &str) -> u64 {
        let mut writes: Vec<&Acked> = self.acked.iter().filter(|a| a.handle == handle).collect();
        writes.sort_by_key(|a| a.serial);
        let mut model: Vec<u8> = vec![];
        let mut last = (model == bytes).then_some(0);
        for a in writes {
            let end = a.offset as usize + a.data.len();
            if model.len() < end {
                model.resize(end, 0);
            }
            model[a.offset as usize..end].copy_from_slice(&a.data);
            if model == bytes {
                last = Some(a.serial);
            }
        }
        last.unwrap_or_else(|| panic!("{what}: {handle} never had these {} bytes", bytes.len()))
    }

    /// Without snapshots nobody needs what only they held: it goes from the stores, too.
    pub fn delete_snapshots(&mut self) {
        for taken in std::mem::take(&mut self.taken) {
            let deleted = self.mutate(Mutation::DeleteSnapshot { path: b"/".to_vec(), name: taken.name });
            assert_eq!(deleted, MasterReply::Done);
        }
        self.apply(Command::Expire { before: Before::default(), budget: 1000 });
        let live = (self.handles.len() + self.cloned().len()) as u64;
        self.run_until("chunks of deleted snapshots stay", |world| {
            let mut there = world.servers.iter().filter(|s| !s.lost);
            there.all(|s| s.node.as_ref().is_some_and(|n| n.stats().chunks <= live))
        });
    }
}
