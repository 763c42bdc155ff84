//! What is asked of the masters, and changes of theirs that are carried out once.

use crate::requests::Requests;
use crate::{Config, Error, Result};
use client_core::Ticket;
use common::ClusterId;
use common::limits::CLIENT_WINDOW;
use common::wire::Caller;
use common::wire::client_master::{MasterReply, MasterRequest, Mutation, Status};
use common_net::{Unanswered, Wait};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

/// One master says within this how it stands.
const STATUS_LIMIT: Duration = Duration::from_millis(500);

pub(crate) struct Masters {
    masters: common_net::Masters,
    requests: Requests,
}

impl Masters {
    pub fn new(config: &Config) -> Masters {
        let cluster = config.cluster.unwrap_or_default();
        let masters = common_net::Masters::new(Caller::Client, config.masters.clone(), cluster);
        Masters { masters, requests: Requests::new(CLIENT_WINDOW) }
    }

    /// The number of the last snapshot that was heard of, for connections to stores.
    pub fn snapshot(&self) -> Arc<AtomicU64> {
        self.masters.snapshot()
    }

    /// The cluster; 0 before the first answer.
    pub fn cluster(&self) -> ClusterId {
        self.masters.cluster()
    }

    /// Asks until a leader answers or the deadline passes.
    pub async fn ask(&self, request: &MasterRequest, deadline: Instant) -> Result<MasterReply> {
        use MasterRequest::{AddMaster, InTheWay, Recalls, RemoveMaster, TransferLeader};
        let wait = match request {
            AddMaster { .. } | RemoveMaster { .. } | TransferLeader { .. } => Wait::Change,
            InTheWay { .. } | Recalls { .. } => Wait::Told,
            _ => Wait::Short,
        };
        match self.masters.ask(request, wait, deadline).await {
            Ok(MasterReply::Refused { code, about, .. }) => Err(common::Refusal { code, about }.into()),
            Ok(reply) => Ok(reply),
            Err(Unanswered::Refused(refusal)) => Err(refusal.into()),
            Err(Unanswered::Late { ms, last }) => {
                Err(Error::Unknown { action: "ask the masters".into(), ms, last })
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
        let conn = self.masters.dial(addr).await.ok()?;
        match conn.call::<_, MasterReply>(&MasterRequest::Status, 0, vec![], STATUS_LIMIT).await {
            Ok((MasterReply::Status(status), _)) => Some(status),
            _ => None,
        }
    }
}
