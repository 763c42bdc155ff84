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
    pub(super) number: u64,
    name: Vec<u8>,
    /// It was asked for then.
    pub(super) asked: Time,
    /// All stores knew of it then, and whoever asked was told so.
    pub(super) told: Option<Time>,
}

impl World {
    /// Somebody takes a snapshot of everything; without a leader nothing comes of it.
    pub(super) fn take_snapshot(&mut self) {
        if !self.masters_lead() {
            return;
        }
        let name = format!("s{}", self.masters.state.last_snapshot() + 1).into_bytes();
        let mutation = Mutation::Snapshot { path: b"/".to_vec(), name: name.clone() };
        let MasterReply::Snapshots(list) = self.mutate(mutation) else { panic!("no snapshot") };
        self.taken.push(Taken { number: list[0].number, name, asked: self.now, told: None });
    }

    /// Somebody deletes the oldest one; without a leader nothing comes of it.
    pub(super) fn delete_snapshot(&mut self) {
        if self.masters_lead() && !self.taken.is_empty() {
            let name = self.taken.remove(0).name;
            let deleted = self.mutate(Mutation::DeleteSnapshot { path: b"/".to_vec(), name });
            assert_eq!(deleted, MasterReply::Done);
        }
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
                let left = self.left_of(handle, taken.asked);
                if left == 0 {
                    continue;
                }
                let fork = self.masters.state.as_of(taken.number, handle);
                let bytes = self.read_all(fork, left);
                let serials = self.serials_if(handle, &bytes, left).unwrap_or_else(|| {
                    panic!("snapshot {}: {handle} never had these {} bytes", taken.number, bytes.len())
                });
                upto.insert(handle, serials);
            }
            // What lay behind a cut then may be within or not.
            let within = |a: &Acked| a.serial <= upto[&a.handle].1;
            let surely = |a: &Acked| a.serial <= upto[&a.handle].0;
            for a in self.acked.iter().filter(|a| upto.contains_key(&a.handle)) {
                let what = format!("snapshot {} and the write {} of {}", taken.number, a.serial, a.handle);
                if a.acked_at < taken.asked {
                    assert!(within(a), "{what}: it was acknowledged before, and is not there");
                }
                if a.stamp >= taken.number || taken.told.is_some_and(|told| a.begun_at > told) {
                    assert!(!surely(a), "{what}: it was begun after, and is there");
                }
                let same = self.acked.iter().filter(|b| b.client == a.client && b.acked_at < a.begun_at);
                let mut before = same.filter(|b| upto.contains_key(&b.handle));
                assert!(
                    !surely(a) || before.all(within),
                    "{what}: it is there, and what its client had written before is not"
                );
            }
        }
    }

    /// Up to which acknowledged write these bytes of a chunk hold all, as far as its file has them: from the first
    /// to the last that it may be; if they ever were those of the chunk.
    pub(super) fn serials_if(&self, handle: ChunkHandle, bytes: &[u8], left: u64) -> Option<(u64, u64)> {
        let unknown: Vec<_> = self.unknown.iter().filter(|(of, _)| *of == handle).map(|(_, r)| r).collect();
        let longest = unknown.iter().map(|range| range.end).max().unwrap_or(0);
        let is_so = |model: &[u8]| {
            let fits = match left {
                u64::MAX => (model.len()..=model.len().max(longest)).contains(&bytes.len()),
                _ => bytes.len() as u64 == left && model.len().max(longest) >= bytes.len(),
            };
            let known = |at: &usize| !unknown.iter().any(|range| range.contains(at));
            let same = |at: usize| bytes[at] == model.get(at).copied().unwrap_or(0);
            fits && (0..bytes.len()).all(|at| same(at) || !known(&at))
        };
        let mut model: Vec<u8> = vec![];
        let mut found = is_so(&model).then_some((0, 0));
        for a in self.acked_in(handle) {
            let end = a.offset as usize + a.data.len();
            if model.len() < end {
                model.resize(end, 0);
            }
            model[a.offset as usize..end].copy_from_slice(&a.data);
            if is_so(&model) {
                found = Some((found.map_or(a.serial, |(first, _)| first), a.serial));
            }
        }
        found
    }

    /// What nobody needs any more is given up, in steps.
    pub(super) fn expire(&mut self) {
        self.apply(Command::Expire { before: Before::default(), budget: 1000 });
    }

    /// Without snapshots nobody needs what only they held: it goes from the stores, too.
    pub fn delete_snapshots(&mut self) {
        while !self.taken.is_empty() {
            self.delete_snapshot();
        }
        self.expire();
        let live = self.handles.iter().filter(|h| !self.is_dropped(**h)).count() + self.cloned().len();
        let live = live as u64;
        self.run_until("chunks of deleted snapshots stay", |world| {
            let mut there = world.servers.iter().filter(|s| !s.lost);
            there.all(|s| s.node.as_ref().is_some_and(|n| n.stats().chunks <= live))
        });
    }
}
