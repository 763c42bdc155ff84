//! The state as bytes, and back. Made from a clone, in the background.

use crate::name::Name;
use crate::packed::Packed;
use crate::trash::Trashed;
use crate::{Body, Chunk, Inode, Metadata, Repair, Store, sessions};
use bincode::{Decode, Encode};
use common::wire::client_master::Policy;
use common::{ChunkHandle, ClientId, Code, Epoch, FileId, ServerId, SessionId, StoreId};
use imbl::OrdMap;

/// Versions of the encoding, newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
enum Version {
    /// The first version.
    V1,
}

/// Entries of one part: decoding is bounded part by part.
const PART_ENTRIES: usize = 64;

#[derive(Encode, Decode)]
struct Head {
    version: Version,
    clock_ns: u64,
    applied: u64,
    digest: u64,
    fixed_digest: (u64, u64),
    generation: u16,
    next: (u64, u64, u32, u32, u64, u32),
    table: u64,
}

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
    Unnamed(Vec<(FileId, u64)>),
    Orders(Vec<((StoreId, ChunkHandle), (Epoch, SessionId))>),
    Deletions(Vec<((StoreId, ChunkHandle), Epoch)>),
    Repairs(Vec<(ChunkHandle, Repair)>),
    NextAttempt(u64),
    Stale(Vec<((ChunkHandle, StoreId), ())>),
    Draining(Vec<(ServerId, ())>),
    Moving(Vec<(ChunkHandle, StoreId)>),
    FilePolicies(Vec<(u32, Policy)>),
}

impl Metadata {
    /// Encodes the state as parts, each small enough to be decoded under a limit, in order.
    pub fn encode(&self, mut emit: impl FnMut(Vec<u8>)) {
        let mut out = |part: Part| emit(common::wire::to_vec(&part));
        out(Part::Head(Head {
            version: Version::V1,
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
        }));
        parts(self.inodes.iter(), Part::Inodes, &mut out);
        let entries =
            self.dentries.iter().map(|((parent, name), child)| ((*parent, name.bytes().to_vec()), child));
        parts(entries, Part::Dentries, &mut out);
        parts(all(&self.policies), Part::Policies, &mut out);
        parts(self.chunks.iter(), Part::Chunks, &mut out);
        parts(all(&self.file_policies), Part::FilePolicies, &mut out);
        parts(all(&self.sets), Part::Sets, &mut out);
        parts(all(&self.stores), Part::Stores, &mut out);
        parts(all(&self.servers), Part::Servers, &mut out);
        for client in &self.clients {
            // One by one: a client may remember many answers.
            out(Part::Clients(vec![(*client.0, client.1.clone())]));
        }
        parts(all(&self.trash), Part::Trash, &mut out);
        parts(all(&self.unnamed), Part::Unnamed, &mut out);
        parts(all(&self.orders), Part::Orders, &mut out);
        parts(all(&self.deletions), Part::Deletions, &mut out);
        parts(all(&self.repairs), Part::Repairs, &mut out);
        out(Part::NextAttempt(self.next_attempt));
        parts(all(&self.stale), Part::Stale, &mut out);
        parts(all(&self.draining), Part::Draining, &mut out);
        parts(all(&self.moving), Part::Moving, &mut out);
    }

    /// The state that `encode` made these parts of.
    pub fn decode<'a>(bytes: impl Iterator<Item = &'a [u8]>) -> Result<Metadata, Code> {
        let mut state = Metadata::new();
        state.inodes = Packed::new();
        let mut headed = false;
        for bytes in bytes {
            match common::wire::from_slice::<Part>(bytes)? {
                Part::Head(head) => {
                    headed = true;
                    state.restore_head(head);
                }
                Part::Inodes(list) => state.inodes.extend(list),
                Part::Dentries(list) => {
                    let named =
                        list.into_iter().map(|((parent, name), child)| ((parent, Name::new(&name)), child));
                    state.dentries.extend(named);
                }
                Part::Policies(list) => state.policies.extend(list),
                Part::Chunks(list) => state.chunks.extend(list),
                Part::Sets(list) => state.restore_sets(list),
                Part::Stores(list) => state.stores.extend(list),
                Part::Servers(list) => state.servers.extend(list),
                Part::Clients(list) => state.clients.extend(list),
                Part::Trash(list) => state.trash.extend(list),
                Part::Unnamed(list) => state.unnamed.extend(list),
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
            }
        }
        // What is interned comes after what names it.
        let policy_is_there = |inode: &Inode| match &inode.body {
            Body::File(file) => state.file_policies.contains_key(&file.policy),
            _ => true,
        };
        let sound = state.chunks.values().all(|c| state.sets.contains_key(&c.set))
            && state.inodes.values().all(policy_is_there);
        if !headed || !sound {
            return Err(Code::BadBody);
        }
        state.degraded = state.chunks.values().filter(|c| state.lacks_members(c)).count() as u64;
        Ok(state)
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

fn parts<'a, K, V: Clone + 'a>(
    entries: impl Iterator<Item = (K, &'a V)>,
    part: fn(Vec<(K, V)>) -> Part,
    out: &mut impl FnMut(Part),
) {
    let mut list = vec![];
    for (key, value) in entries {
        list.push((key, value.clone()));
        if list.len() == PART_ENTRIES {
            out(part(std::mem::take(&mut list)));
        }
    }
    if !list.is_empty() {
        out(part(list));
    }
}
