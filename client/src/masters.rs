//! Finds the leading master and asks it, again and again until it answers.

use crate::requests::Requests;
use crate::{Config, Error, Result};
use client_core::Ticket;
use common::limits::CLIENT_WINDOW;
use common::wire::Caller;
use common::wire::client_master::{MasterReply, MasterRequest, Mutation, Status};
use common::{ClusterId, Code, Refusal};
use common_net::{Conn, NetError};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// One master answers within this, or another is asked, which names the leader: a little longer than
/// an election, so that a leader that hangs has been replaced by then. Requests are carried out once,
/// however often they are asked.
const CALL_LIMIT: Duration = Duration::from_millis(1200);
/// A change of the group of masters is answered within this.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);
/// A connection to a master is made within this.
const DIAL_LIMIT: Duration = Duration::from_millis(500);
/// Between two tries, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

pub(crate) struct Masters {
    addrs: Mutex<Vec<String>>,
    /// The one that was asked for, or the first that answered: no other is spoken to.
    cluster: Mutex<ClusterId>,
    leader: tokio::sync::Mutex<Option<Conn>>,
    next: AtomicUsize,
    requests: Requests,
    /// The last snapshot that this client has heard of.
    snapshot: Arc<AtomicU64>,
}

impl Masters {
    pub fn new(config: &Config) -> Masters {
        Masters {
            addrs: Mutex::new(config.masters.clone()),
            cluster: Mutex::new(config.cluster.unwrap_or_default()),
            leader: tokio::sync::Mutex::new(None),
            next: AtomicUsize::new(0),
            requests: Requests::new(CLIENT_WINDOW),
            snapshot: Arc::default(),
        }
    }

    /// The number of the last snapshot that was heard of, for connections to stores.
    pub fn snapshot(&self) -> Arc<AtomicU64> {
        self.snapshot.clone()
    }

    async fn dial(&self, addr: &str) -> std::result::Result<Conn, NetError> {
        Conn::dial_after(addr, Caller::Client, self.cluster(), DIAL_LIMIT, self.snapshot()).await
    }

    /// The cluster; 0 before the first answer.
    pub fn cluster(&self) -> ClusterId {
        *self.cluster.lock().expect("never poisoned")
    }

    async fn conn(&self) -> std::result::Result<Conn, NetError> {
        let mut leader = self.leader.lock().await;
        if let Some(conn) = leader.as_ref().filter(|c| !c.is_closed()) {
            return Ok(conn.clone());
        }
        let addr = {
            let addrs = self.addrs.lock().expect("never poisoned");
            addrs[self.next.fetch_add(1, Ordering::Relaxed) % addrs.len()].clone()
        };
        let conn = self.dial(&addr).await?;
        *self.cluster.lock().expect("never poisoned") = conn.cluster();
        *leader = Some(conn.clone());
        Ok(conn)
    }

    /// This master does not lead: the one it names is asked next, or just another.
    async fn leave(&self, from: &Conn, hint: Option<String>) {
        let mut leader = self.leader.lock().await;
        if leader.as_ref().is_some_and(|c| c.addr() != from.addr()) {
            return;
        }
        *leader = None;
        if let Some(addr) = hint.filter(|a| a != from.addr()) {
            let mut addrs = self.addrs.lock().expect("never poisoned").clone();
            if !addrs.contains(&addr) {
                addrs.push(addr.clone());
                *self.addrs.lock().expect("never poisoned") = addrs;
            }
            *leader = self.dial(&addr).await.ok();
        }
    }

    /// Asks until a leader answers or the deadline passes.
    pub async fn ask(&self, request: &MasterRequest, deadline: Instant) -> Result<MasterReply> {
        let began = Instant::now();
        let mut pause = RETRY.0;
        loop {
            let last = match self.try_ask(request, deadline).await {
                Ok(reply) => return reply,
                Err(last) => last,
            };
            if Instant::now() + pause >= deadline {
                let ms = began.elapsed().as_millis() as u64;
                return Err(Error::Unknown { action: "ask the masters".into(), ms, last });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// One try: an answer, or why there is none.
    async fn try_ask(
        &self,
        request: &MasterRequest,
        deadline: Instant,
    ) -> std::result::Result<Result<MasterReply>, String> {
        let conn = match self.conn().await {
            Ok(conn) => conn,
            // No master of this address will ever answer otherwise.
            Err(NetError::Refused { refusal, .. })
                if matches!(refusal.code, Code::WrongCluster | Code::UnknownVersion) =>
            {
                return Ok(Err(refusal.into()));
            }
            Err(e) => return Err(e.to_string()),
        };
        use MasterRequest::{AddMaster, RemoveMaster, TransferLeader};
        let limit = match request {
            // A new master may have to get a snapshot first.
            AddMaster { .. } | RemoveMaster { .. } | TransferLeader { .. } => CHANGE_LIMIT,
            _ => CALL_LIMIT,
        };
        let limit = limit.min(deadline.saturating_duration_since(Instant::now()));
        match conn.call::<_, MasterReply>(request, 0, vec![], limit).await {
            Ok((
                MasterReply::Refused { code: code @ (Code::NotLeader | Code::Unavailable), leader, .. },
                _,
            )) => {
                self.leave(&conn, leader).await;
                Err(format!("{}: {code}", conn.addr()))
            }
            Ok((MasterReply::Refused { code, about, .. }, _)) => Ok(Err(Refusal { code, about }.into())),
            Ok((reply, _)) => Ok(Ok(reply)),
            Err(e) => {
                self.leave(&conn, None).await;
                Err(e.to_string())
            }
        }
    }

    /// Carries a mutation out, exactly once, however often it must be asked.
    pub async fn mutate(&self, mutation: Mutation, deadline: Instant) -> Result<MasterReply> {
        let open = self.requests.begin().await;
        let Ticket { request, lowest } = open.ticket();
        self.ask(&MasterRequest::Mutate { request, lowest, mutation }, deadline).await
    }

    /// What one master says of itself.
    pub async fn status_of(&self, addr: &str) -> Option<Status> {
        let conn = self.dial(addr).await.ok()?;
        match conn.call::<_, MasterReply>(&MasterRequest::Status, 0, vec![], DIAL_LIMIT).await {
            Ok((MasterReply::Status(status), _)) => Some(status),
            _ => None,
        }
    }
}
