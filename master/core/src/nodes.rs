//! Stores and their sessions.

use crate::{Answer, Metadata};
use bincode::{Decode, Encode};
use common::limits::STORES_MAX;
use common::wire::StoreInfo;
use common::wire::chunk_master::{Order, Register, StoreReply};
use common::{ChunkHandle, Code, Epoch, Refusal, ServerId, SessionId, StoreId};

/// Whether a store is in service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum StoreState {
    /// It has this session, until the leader or a proof ends it.
    Up(SessionId),
    /// Its last session is over.
    Down,
}

/// A data directory of a chunkserver.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Store {
    /// The chunkserver.
    pub server: ServerId,
    /// What it said of itself when it registered last.
    pub register: Register,
    /// In service or not.
    pub state: StoreState,
    /// Chunks placed here lately, as of the last halving; halved every `RECENT_HALVED_NS`.
    pub recent: u32,
    /// Log time of the last halving.
    pub recent_ns: u64,
    /// It seems to be sick, though it has a session: it comes last in every choice.
    pub doubted: bool,
}

/// Recent creations count half after ten seconds.
const RECENT_HALVED_NS: u64 = 10_000_000_000;

impl Store {
    /// Its session, if it is up.
    pub fn session(&self) -> Option<SessionId> {
        match self.state {
            StoreState::Up(session) => Some(session),
            StoreState::Down => None,
        }
    }

    /// Bytes in use for each thousand bytes that it may use.
    pub fn permille(&self) -> u64 {
        (self.register.used as u128 * 1000 / self.register.capacity.max(1) as u128) as u64
    }

    fn halvings(&self, clock_ns: u64) -> u64 {
        (clock_ns.saturating_sub(self.recent_ns) / RECENT_HALVED_NS).min(31)
    }

    /// Chunks placed here lately, as of now.
    pub fn recent(&self, clock_ns: u64) -> u32 {
        self.recent >> self.halvings(clock_ns) as u32
    }

    pub(crate) fn placed(&mut self, clock_ns: u64) {
        let halvings = self.halvings(clock_ns);
        self.recent = self.recent(clock_ns).saturating_add(1);
        self.recent_ns += halvings * RECENT_HALVED_NS;
        if halvings == 31 {
            self.recent_ns = clock_ns;
        }
    }
}

impl Metadata {
    /// A store by its id.
    pub fn store(&self, id: StoreId) -> Option<&Store> {
        self.stores.get(&id)
    }

    /// A store by the uuid of its directory.
    pub fn store_by_uuid(&self, uuid: u128) -> Option<(StoreId, &Store)> {
        self.stores.iter().find(|(_, s)| s.register.uuid == uuid).map(|(id, s)| (*id, s))
    }

    /// All stores, by id.
    pub fn all_stores(&self) -> impl Iterator<Item = (StoreId, &Store)> {
        self.stores.iter().map(|(id, store)| (*id, store))
    }

    /// The version of the store table.
    pub fn table_version(&self) -> u64 {
        self.table
    }

    /// The store table as everybody is told it.
    pub fn store_table(&self) -> Vec<StoreInfo> {
        let info = |(id, s): (&StoreId, &Store)| StoreInfo {
            store: *id,
            server: s.server,
            rack: s.register.rack.clone(),
            addr: s.register.addr,
            up: s.session().is_some(),
            capacity: s.register.capacity,
            used: s.register.used,
            doubted: s.doubted,
            given_up: self.is_given_up(*id),
        };
        self.stores.iter().map(info).collect()
    }

    pub(crate) fn is_up(&self, id: StoreId) -> bool {
        self.stores.get(&id).is_some_and(|s| s.session().is_some())
    }

    /// A store begins a session. Whoever registers holds the directory's lock, so whatever served
    /// it before is dead or has stopped: its removals are settled.
    pub(crate) fn register(&mut self, register: &Register) -> Answer<StoreReply> {
        let known = self.store_by_uuid(register.uuid).map(|(id, s)| (id, s.clone()));
        let claimed = register.store;
        let id = match (&known, claimed) {
            (Some((id, old)), claimed) if claimed.is_none_or(|c| c == *id) => {
                let moved =
                    old.register.dev_ino != register.dev_ino || old.register.boot_id != register.boot_id;
                if moved && old.session().is_some() {
                    let about = format!("{id} is in service elsewhere; is this directory a copy?");
                    return Err(Refusal::new(Code::StoreInUse, about));
                }
                if register.incarnation < old.register.incarnation {
                    return Err(Refusal::new(Code::StoreInUse, format!("{id}: an older incarnation")));
                }
                if self.is_given_up(*id) {
                    return Err(Refusal::new(Code::GivenUp, id));
                }
                *id
            }
            (None, None) if self.stores.len() < STORES_MAX => {
                let id = StoreId(self.next_store);
                self.next_store += 1;
                id
            }
            (None, None) => {
                return Err(Refusal::new(Code::Busy, "the cluster has its most stores"));
            }
            _ => {
                return Err(Refusal::new(
                    Code::WrongStore,
                    "the masters do not know this directory under its id",
                ));
            }
        };
        self.settle_removals(id);
        let server = self.server_of(register.server_uuid);
        let session = SessionId(self.next_session);
        self.next_session += 1;
        let (recent, recent_ns) = known.map_or((0, self.clock_ns), |(_, s)| (s.recent, s.recent_ns));
        let mut register = register.clone();
        register.store = Some(id);
        let state = StoreState::Up(session);
        self.stores.insert(id, Store { server, register, state, recent, recent_ns, doubted: false });
        self.table += 1;
        let next_chunk = self.next_chunk();
        Ok(StoreReply::Registered { store: id, server, session, next_chunk })
    }

    fn server_of(&mut self, uuid: u128) -> ServerId {
        if let Some(id) = self.servers.get(&uuid) {
            return *id;
        }
        let id = ServerId(self.next_server);
        self.next_server += 1;
        self.servers.insert(uuid, id);
        id
    }

    /// A session is over. Says nothing about chunks: members leave only when somebody needs it.
    pub(crate) fn store_down(&mut self, id: StoreId, session: SessionId) -> Answer<StoreReply> {
        let store = self.stores.get(&id).ok_or(Code::NoSuchStore)?;
        if store.session() == Some(session) {
            let mut store = store.clone();
            store.state = StoreState::Down;
            self.stores.insert(id, store);
            self.table += 1;
            self.settle_removals(id);
        }
        Ok(StoreReply::Done)
    }

    /// A store is doubted, or is so no more.
    pub(crate) fn doubt(&mut self, id: StoreId, doubted: bool) -> Answer<StoreReply> {
        let mut store = self.stores.get(&id).ok_or(Code::NoSuchStore)?.clone();
        store.doubted = doubted;
        self.stores.insert(id, store);
        self.table += 1;
        Ok(StoreReply::Done)
    }

    pub(crate) fn usage(&mut self, stores: &[(StoreId, u64, u64)]) -> Answer<StoreReply> {
        for (id, capacity, used) in stores {
            if let Some(mut store) = self.stores.get(id).cloned() {
                store.register.capacity = *capacity;
                store.register.used = *used;
                self.stores.insert(*id, store);
            }
        }
        Ok(StoreReply::Done)
    }

    pub(crate) fn confirmed(
        &mut self,
        id: StoreId,
        session: SessionId,
        orders: &[Order],
    ) -> Answer<StoreReply> {
        let store = self.stores.get(&id).ok_or(Code::NoSuchStore)?;
        if store.session() != Some(session) {
            return Err(Refusal::new(Code::NotInSession, id));
        }
        for order in orders {
            let key = (id, order.handle);
            if order.discard && self.deletions.get(&key).is_some_and(|epoch| *epoch <= order.epoch) {
                self.deletions.remove(&key);
            }
            if self.orders.get(&key).is_some_and(|(epoch, _)| *epoch <= order.epoch) {
                self.orders.remove(&key);
                self.removed.remove(&(order.handle, id));
            }
        }
        Ok(StoreReply::Done)
    }

    /// Tells `id`, and remembers until it is confirmed or its session is over, that it is no
    /// member of `handle` from `epoch` on.
    pub(crate) fn order(&mut self, id: StoreId, handle: ChunkHandle, epoch: Epoch) {
        if self.is_given_up(id) {
            return;
        }
        if epoch == Epoch::DELETED {
            self.orders.remove(&(id, handle));
            self.removed.remove(&(handle, id));
            self.deletions.insert((id, handle), Epoch::DELETED);
            return;
        }
        self.stale.insert((handle, id), ());
        // A store without a session serves nothing, and asks about each chunk when it returns.
        if let Some(session) = self.stores.get(&id).and_then(|s| s.session()) {
            self.orders.insert((id, handle), (epoch, session));
            self.removed.insert((handle, id), session);
        }
    }

    /// The session in which `id` might have served what it was removed from is over.
    fn settle_removals(&mut self, id: StoreId) {
        let range = (id, ChunkHandle(0))..=(id, ChunkHandle(u64::MAX));
        for (store, handle) in self.orders.range(range).map(|(key, _)| *key).collect::<Vec<_>>() {
            self.orders.remove(&(store, handle));
            self.removed.remove(&(handle, store));
        }
    }
}
