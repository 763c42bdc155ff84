//! Connections to stores: one for control, one for bulk data each, shared by all requests.

use common::wire::{Caller, StoreInfo};
use common::{ClusterId, Code, StoreId};
use common_net::{Conn, NetError};
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

type Slot = Arc<tokio::sync::Mutex<Option<Conn>>>;

#[derive(Default)]
pub(crate) struct Conns {
    table: Mutex<HashMap<StoreId, (SocketAddr, String)>>,
    slots: Mutex<HashMap<(StoreId, Class), Slot>>,
    suspects: Mutex<HashMap<StoreId, Instant>>,
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
