//! Connections to stores: one for control, one for bulk data each, shared by all requests.

use common::wire::{Caller, StoreInfo};
use common::{ClusterId, Code, StoreId};
use common_net::{Conn, NetError, Progress};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A connection to a store is made within this.
const DIAL_LIMIT: Duration = Duration::from_millis(300);

/// What a connection is for: an order never waits behind data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    Control,
    Bulk,
}

/// A store that did not answer is passed over for so long, where others can do its work.
const SUSPECTED_FOR: Duration = Duration::from_secs(3);

/// Chains whose progress is kept, before those are forgotten that nobody waits for.
const CHAINS_KEPT: usize = 256;

type Slot = Arc<tokio::sync::Mutex<Option<Conn>>>;

#[derive(Default)]
pub(crate) struct Conns {
    table: Mutex<HashMap<StoreId, (SocketAddr, String)>>,
    slots: Mutex<HashMap<(StoreId, Class), Slot>>,
    suspects: Mutex<HashMap<StoreId, Instant>>,
    chains: Mutex<HashMap<Vec<StoreId>, Progress>>,
    /// The last snapshot that this client has heard of: what it writes comes after that.
    snapshot: Arc<AtomicU64>,
}

impl Conns {
    pub fn new(snapshot: Arc<AtomicU64>) -> Conns {
        Conns { snapshot, ..Conns::default() }
    }

    pub fn set_table(&self, stores: &[StoreInfo]) {
        let table = stores.iter().map(|s| (s.store, (s.addr, s.rack.clone()))).collect();
        *self.table.lock().expect("never poisoned") = table;
    }

    pub fn rack(&self, store: StoreId) -> Option<String> {
        self.table.lock().expect("never poisoned").get(&store).map(|(_, rack)| rack.clone())
    }

    /// A store did not answer.
    pub fn suspect(&self, store: StoreId) {
        self.suspects.lock().expect("never poisoned").insert(store, Instant::now());
    }

    /// Whether a store did not answer lately.
    pub fn is_suspect(&self, store: StoreId) -> bool {
        let suspects = self.suspects.lock().expect("never poisoned");
        suspects.get(&store).is_some_and(|since| since.elapsed() < SUSPECTED_FOR)
    }

    /// When a piece last passed down a chain. Pieces go down a chain one after another: as long as some
    /// arrive, it is only slow.
    pub fn chain(&self, chain: &[StoreId]) -> Progress {
        let mut chains = self.chains.lock().expect("never poisoned");
        if let Some(progress) = chains.get(chain) {
            return progress.clone();
        }
        if chains.len() >= CHAINS_KEPT {
            chains.retain(|_, progress| progress.is_shared());
        }
        chains.entry(chain.to_vec()).or_default().clone()
    }

    /// Requests that wait for an answer on the connection to a store.
    pub fn waiting(&self, store: StoreId, class: Class) -> usize {
        let slot = self.slots.lock().expect("never poisoned").get(&(store, class)).cloned();
        let waiting = slot.and_then(|slot| slot.try_lock().ok().map(|conn| conn.as_ref().map(Conn::waiting)));
        waiting.flatten().unwrap_or(0)
    }

    /// Whether bytes came within a time on the connection to a store.
    pub fn is_heard(&self, store: StoreId, class: Class, within: Duration) -> bool {
        let slot = self.slots.lock().expect("never poisoned").get(&(store, class)).cloned();
        slot.is_some_and(|slot| {
            slot.try_lock().is_ok_and(|conn| conn.as_ref().is_some_and(|c| c.heard().quiet() < within))
        })
    }

    /// The connection to a store, made if there is none.
    pub async fn get(&self, cluster: ClusterId, store: StoreId, class: Class) -> Result<Conn, NetError> {
        let slot = self.slots.lock().expect("never poisoned").entry((store, class)).or_default().clone();
        let mut slot = slot.lock().await;
        if let Some(conn) = slot.as_ref().filter(|c| !c.is_closed()) {
            return Ok(conn.clone());
        }
        let known = self.table.lock().expect("never poisoned").get(&store).map(|(addr, _)| *addr);
        let Some(addr) = known else {
            return Err(NetError::Refused { addr: store.to_string(), refusal: Code::NoSuchStore.into() });
        };
        let (addr, snapshot) = (addr.to_string(), self.snapshot.clone());
        let conn = Conn::dial_after(&addr, Caller::Client, cluster, DIAL_LIMIT, snapshot).await?;
        *slot = Some(conn.clone());
        Ok(conn)
    }
}
