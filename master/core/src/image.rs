//! The state as bytes, and back. Made from a clone, in the background.

use crate::clones::Cloning;
use crate::inode::Extra;
use crate::locks::{Claim, Holder};
use crate::name::Name;
use crate::packed::Packed;
use crate::quota::Totals;
use crate::snapshots::{Forking, Snapshot, SnapshotHead};
use crate::trash::{Trashed, Why};
use crate::tree::Tree;
use crate::{Body, Chunk, Inode, Metadata, Repair, Store, sessions};
use bincode::{Decode, Encode};
use common::wire::client_master::{Policy, Quota};
use common::{ChunkHandle, ClientId, Code, Epoch, FileId, Lockable, ServerId, SessionId, StoreId};
use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Versions of the encoding, newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
enum Version {
    /// Owners, links, times of access and change, extended attributes. Earlier ones are not read.
    V2 = 2,
}

/// Entries of one part: decoding is bounded part by part.
const PART_ENTRIES: usize = 64;

#[derive(Encode, Decode)]
struct Head {
    /// A `Version`.
    version: u16,
    clock_ns: u64,
    applied: u64,
    digest: u64,
    fixed_digest: (u64, u64),
    generation: u16,
    next: (u64, u64, u32, u32, u64, u32),
    table: u64,
}

type DirectoryAndName = (FileId, Vec<u8>);

#[derive(Encode, Decode)]
enum Part {
    Head(Head),
    Inodes(Vec<(FileId, Inode)>),
    Dentries(Vec<((FileId, Vec<u8>), FileId)>),
    Policies(Vec<(FileId, Policy)>),
    Chunks(Vec<(ChunkHandle, Chunk)>),
    Sets(Vec<(u32, Vec<StoreId>)>),
    Stores(Vec<(StoreId, Store)>),
    Servers(Vec<(u128, ServerId)>),
    Clients(Vec<(ClientId, sessions::Client)>),
    Trash(Vec<((u64, FileId), Trashed)>),
    Unnamed(Vec<(FileId, (u64, Why))>),
    Orders(Vec<((StoreId, ChunkHandle), (Epoch, SessionId))>),
    Deletions(Vec<((StoreId, ChunkHandle), Epoch)>),
    Repairs(Vec<(ChunkHandle, Repair)>),
    NextAttempt(u64),
    Stale(Vec<((ChunkHandle, StoreId), ())>),
    Draining(Vec<(ServerId, ())>),
    Moving(Vec<(ChunkHandle, StoreId)>),
    FilePolicies(Vec<(u32, Policy)>),
    /// A snapshot, the latest first. Its tree is that of the one before it in this order - the live
    /// one, for the first - but for what follows.
    Snapshot(u64, SnapshotHead),
    OtherInodes(Vec<(FileId, Option<Inode>)>),
    OtherDentries(Vec<(DirectoryAndName, Option<FileId>)>),
    OtherPolicies(Vec<(FileId, Option<Policy>)>),
    NextSnapshot(u64),
    Kept(Vec<((u64, ChunkHandle), ())>),
    Forks(Vec<((ChunkHandle, u64), ChunkHandle)>),
    Forking(Vec<(ChunkHandle, Forking)>),
    ForkingAt(Vec<((ChunkHandle, StoreId), ())>),
    Maintained(Vec<(ServerId, u64)>),
    GivenUp(Vec<(StoreId, ())>),
    EmptiedNs(u64),
    Totals(Vec<(FileId, Totals)>),
    OtherTotals(Vec<(FileId, Option<Totals>)>),
    Quotas(Vec<(FileId, Quota)>),
    /// One inode's.
    Extra(FileId, Arc<Extra>),
    OtherExtra(FileId, Option<Arc<Extra>>),
    Holders(Vec<(ClientId, Holder)>),
    Claims(Vec<((Lockable, ClientId), Claim)>),
    Contended(Vec<(Lockable, u64)>),
    Clones(Vec<(ChunkHandle, Cloning)>),
}

impl Metadata {
    /// Encodes the state as parts, each small enough to be decoded under a limit, in order. Ends with the first error of
    /// who takes them.
    pub fn encode<E>(&self, mut emit: impl FnMut(Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        let mut out = |part: Part| emit(common::wire::to_vec(&part));
        out(Part::Head(Head {
            version: Version::V2 as u16,
            clock_ns: self.clock_ns,
            applied: self.applied,
            digest: self.digest,
            fixed_digest: self.fixed_digest,
            generation: self.generation,
            next: (
                self.next_file,
                self.next_chunk,
                self.next_store,
                self.next_server,
                self.next_session,
                self.next_set,
            ),
            table: self.table,
        }))?;
        parts(self.tree.inodes.iter(), Part::Inodes, &mut out)?;
        let entries = self
            .tree
            .dentries
            .iter()
            .map(|((parent, name), child)| ((*parent, name.bytes().to_vec()), child));
        parts(entries, Part::Dentries, &mut out)?;
        parts(all(&self.tree.policies), Part::Policies, &mut out)?;
        parts(all(&self.tree.totals), Part::Totals, &mut out)?;
        parts(all(&self.quotas), Part::Quotas, &mut out)?;
        for (id, extra) in &self.tree.extras {
            // One by one: an inode may have large ones.
            out(Part::Extra(*id, extra.clone()))?;
        }
        parts(self.chunks.iter(), Part::Chunks, &mut out)?;
        parts(all(&self.file_policies), Part::FilePolicies, &mut out)?;
        parts(all(&self.sets), Part::Sets, &mut out)?;
        parts(all(&self.stores), Part::Stores, &mut out)?;
        parts(all(&self.servers), Part::Servers, &mut out)?;
        for client in &self.clients {
            // One by one: a client may remember many answers.
            out(Part::Clients(vec![(*client.0, client.1.clone())]))?;
        }
        parts(all(&self.trash), Part::Trash, &mut out)?;
        parts(self.unnamed.iter(), Part::Unnamed, &mut out)?;
        parts(all(&self.orders), Part::Orders, &mut out)?;
        parts(all(&self.deletions), Part::Deletions, &mut out)?;
        parts(all(&self.repairs), Part::Repairs, &mut out)?;
        out(Part::NextAttempt(self.next_attempt))?;
        parts(all(&self.stale), Part::Stale, &mut out)?;
        parts(all(&self.draining), Part::Draining, &mut out)?;
        parts(all(&self.moving), Part::Moving, &mut out)?;
        out(Part::NextSnapshot(self.next_snapshot))?;
        let mut base = &self.tree;
        for (number, snapshot) in self.snapshots.iter().rev() {
            out(Part::Snapshot(*number, snapshot.head.clone()))?;
            let tree = &snapshot.tree;
            let inodes = tree.inodes.unlike(&base.inodes).map(|(id, inode)| (id, inode.cloned()));
            owned_parts(inodes, Part::OtherInodes, &mut out)?;
            let dentries = unlike(&tree.dentries, &base.dentries);
            let dentries = dentries.map(|((dir, name), child)| ((dir, name.bytes().to_vec()), child));
            owned_parts(dentries, Part::OtherDentries, &mut out)?;
            owned_parts(unlike(&tree.policies, &base.policies), Part::OtherPolicies, &mut out)?;
            owned_parts(unlike(&tree.totals, &base.totals), Part::OtherTotals, &mut out)?;
            for (id, extra) in unlike(&tree.extras, &base.extras) {
                out(Part::OtherExtra(id, extra))?;
            }
            base = tree;
        }
        parts(all(&self.kept), Part::Kept, &mut out)?;
        parts(all(&self.forks), Part::Forks, &mut out)?;
        parts(all(&self.forking), Part::Forking, &mut out)?;
        parts(all(&self.forking_at), Part::ForkingAt, &mut out)?;
        parts(all(&self.maintained), Part::Maintained, &mut out)?;
        parts(all(&self.given_up), Part::GivenUp, &mut out)?;
        out(Part::EmptiedNs(self.emptied_ns))?;
        parts(all(&self.holders), Part::Holders, &mut out)?;
        for claim in &self.claims {
            // One by one: there may be many ranges in it.
            out(Part::Claims(vec![(*claim.0, claim.1.clone())]))?;
        }
        parts(all(&self.contended), Part::Contended, &mut out)?;
        parts(all(&self.clones), Part::Clones, &mut out)?;
        Ok(())
    }

    /// The state that `encode` made these parts of.
    pub fn decode(parts: impl Iterator<Item = impl AsRef<[u8]>>) -> Result<Metadata, Code> {
        let mut state = Metadata::new();
        state.tree.inodes = Packed::new();
        let mut headed = false;
        // Policies that inodes name, of any tree. Those of snapshots are told by how they differ, so this is not as much
        // as all trees together.
        let mut policies = BTreeSet::new();
        let mut name_policy = |inode: &Inode| {
            if let Body::File(_) = inode.body {
                policies.insert(inode.policy);
            }
        };
        // The snapshot whose tree is being read.
        let mut latest: Option<u64> = None;
        for part in parts {
            match common::wire::from_slice::<Part>(part.as_ref())? {
                Part::Head(head) if head.version != Version::V2 as u16 => return Err(Code::UnknownVersion),
                Part::Head(head) => {
                    headed = true;
                    state.restore_head(head);
                }
                Part::Inodes(list) => {
                    list.iter().for_each(|(_, inode)| name_policy(inode));
                    state.tree.inodes.extend(list);
                }
                Part::Dentries(list) => {
                    let named =
                        list.into_iter().map(|((parent, name), child)| ((parent, Name::new(&name)), child));
                    state.tree.dentries.extend(named);
                }
                Part::Policies(list) => state.tree.policies.extend(list),
                Part::Chunks(list) => state.chunks.extend(list),
                Part::Sets(list) => state.restore_sets(list),
                Part::Stores(list) => state.stores.extend(list),
                Part::Servers(list) => state.servers.extend(list),
                Part::Clients(list) => state.clients.extend(list),
                Part::Trash(list) => state.trash.extend(list),
                Part::Unnamed(list) => {
                    for (file, (seen, why)) in list {
                        state.unnamed.put(file, seen, why);
                    }
                }
                Part::Extra(id, extra) => drop(state.tree.extras.insert(id, extra)),
                Part::OtherExtra(id, extra) => make_like(&mut state.tree_of(latest)?.extras, [(id, extra)]),
                Part::Orders(list) => state.restore_orders(list),
                Part::Deletions(list) => state.deletions.extend(list),
                Part::Repairs(list) => state.repairs.extend(list),
                Part::NextAttempt(next) => state.next_attempt = next,
                Part::Stale(list) => state.stale.extend(list),
                Part::Draining(list) => state.draining.extend(list),
                Part::Moving(list) => state.moving.extend(list),
                Part::FilePolicies(list) => {
                    state.file_policy_ids.extend(list.iter().map(|(id, policy)| (policy.clone(), *id)));
                    state.file_policies.extend(list);
                }
                Part::NextSnapshot(next) => state.next_snapshot = next,
                Part::Snapshot(number, head) => {
                    let base = latest.map_or(&state.tree, |n| &state.snapshots[&n].tree);
                    let snapshot = Snapshot { head, tree: base.clone() };
                    state.snapshots.insert(number, snapshot);
                    latest = Some(number);
                }
                Part::OtherInodes(list) => {
                    let inodes = &mut state.tree_of(latest)?.inodes;
                    for (id, inode) in list {
                        inode.iter().for_each(&mut name_policy);
                        match inode {
                            Some(inode) => inodes.insert(id, inode),
                            None => inodes.remove(&id),
                        };
                    }
                }
                Part::OtherDentries(list) => {
                    let named = list.into_iter().map(|((dir, name), child)| ((dir, Name::new(&name)), child));
                    make_like(&mut state.tree_of(latest)?.dentries, named);
                }
                Part::OtherPolicies(list) => make_like(&mut state.tree_of(latest)?.policies, list),
                Part::Totals(list) => state.tree.totals.extend(list),
                Part::OtherTotals(list) => make_like(&mut state.tree_of(latest)?.totals, list),
                Part::Quotas(list) => state.quotas.extend(list),
                Part::Kept(list) => state.kept.extend(list),
                Part::Forks(list) => {
                    state.fork_of.extend(list.iter().map(|(key, fork)| (*fork, *key)));
                    state.forks.extend(list);
                }
                Part::Forking(list) => state.forking.extend(list),
                Part::ForkingAt(list) => state.forking_at.extend(list),
                Part::Maintained(list) => state.maintained.extend(list),
                Part::GivenUp(list) => state.given_up.extend(list),
                Part::EmptiedNs(ns) => state.emptied_ns = ns,
                Part::Holders(list) => state.holders.extend(list),
                Part::Claims(list) => state.restore_claims(list),
                Part::Contended(list) => state.contended.extend(list),
                Part::Clones(list) => state.clones.extend(list),
            }
        }
        // What is interned comes after what names it.
        let sound = state.chunks.values().all(|c| state.sets.contains_key(&c.set))
            && policies.iter().all(|policy| state.file_policies.contains_key(policy));
        if !headed || !sound {
            return Err(Code::BadBody);
        }
        state.degraded = state.chunks.values().filter(|c| state.lacks_members(c)).count() as u64;
        Ok(state)
    }

    fn tree_of(&mut self, snapshot: Option<u64>) -> Result<&mut Tree, Code> {
        let snapshot = snapshot.and_then(|number| self.snapshots.get_mut(&number));
        snapshot.map(|s| &mut s.tree).ok_or(Code::BadBody)
    }

    fn restore_head(&mut self, head: Head) {
        self.clock_ns = head.clock_ns;
        self.applied = head.applied;
        self.digest = head.digest;
        self.fixed_digest = head.fixed_digest;
        self.generation = head.generation;
        self.table = head.table;
        (
            self.next_file,
            self.next_chunk,
            self.next_store,
            self.next_server,
            self.next_session,
            self.next_set,
        ) = head.next;
    }

    fn restore_sets(&mut self, list: Vec<(u32, Vec<StoreId>)>) {
        for (id, members) in list {
            for a in &members {
                for b in members.iter().filter(|b| *b != a) {
                    self.partners.insert((*a, *b), ());
                }
            }
            self.set_ids.insert(members.clone(), id);
            self.sets.insert(id, members);
        }
    }

    fn restore_orders(&mut self, list: Vec<((StoreId, ChunkHandle), (Epoch, SessionId))>) {
        for ((store, handle), (epoch, session)) in list {
            self.orders.insert((store, handle), (epoch, session));
            self.removed.insert((handle, store), session);
        }
    }
}

fn all<K: Ord + Clone, V: Clone>(map: &OrdMap<K, V>) -> impl Iterator<Item = (K, &V)> {
    map.iter().map(|(key, value)| (key.clone(), value))
}

/// What must be done to `other` to make it this: values to put in, and keys to take out.
fn unlike<'a, K: Ord + Clone, V: PartialEq + Clone>(
    this: &'a OrdMap<K, V>,
    other: &'a OrdMap<K, V>,
) -> impl Iterator<Item = (K, Option<V>)> + 'a {
    other.diff(this).map(|item| match item {
        DiffItem::Add(key, value) => (key.clone(), Some(value.clone())),
        DiffItem::Update { new, .. } => (new.0.clone(), Some(new.1.clone())),
        DiffItem::Remove(key, _) => (key.clone(), None),
    })
}

fn make_like<K: Ord + Clone, V: Clone>(
    map: &mut OrdMap<K, V>,
    list: impl IntoIterator<Item = (K, Option<V>)>,
) {
    for (key, value) in list {
        match value {
            Some(value) => map.insert(key, value),
            None => map.remove(&key),
        };
    }
}

fn parts<'a, K, V: Clone + 'a, E>(
    entries: impl Iterator<Item = (K, &'a V)>,
    part: fn(Vec<(K, V)>) -> Part,
    out: &mut impl FnMut(Part) -> Result<(), E>,
) -> Result<(), E> {
    owned_parts(entries.map(|(key, value)| (key, value.clone())), part, out)
}

fn owned_parts<K, V, E>(
    entries: impl Iterator<Item = (K, V)>,
    part: fn(Vec<(K, V)>) -> Part,
    out: &mut impl FnMut(Part) -> Result<(), E>,
) -> Result<(), E> {
    let mut list = vec![];
    for entry in entries {
        list.push(entry);
        if list.len() == PART_ENTRIES {
            out(part(std::mem::take(&mut list)))?;
        }
    }
    match list.is_empty() {
        true => Ok(()),
        false => out(part(list)),
    }
}
