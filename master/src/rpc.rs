//! Requests: decode, propose or query, encode.

mod admin;
mod chunkserver;
mod client;
mod locks;

use crate::leader::Leader;
use crate::raft::image::Images;
use crate::raft::network::{self, Inbound};
use crate::raft::room::Room;
use common::Code;
use common::limits::ELECTION_MS_MAX;
use common::wire::chunk_master::StoreRequest;
use common::wire::client_master::MasterRequest;
use common::wire::frame::Kind;
use common_net::{Frame, Handler, Reply, Served};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Margin over the longest election timeout before a restarted master votes.
const VOTE_MARGIN_MS: u64 = 100;

/// Answers all that comes to a master.
pub struct Rpc {
    /// The leader's side.
    pub leader: Arc<Leader>,
    /// This master.
    pub id: u64,
    /// When the process started.
    pub started: Instant,
    /// It has never voted: there is no lease that it could have granted.
    pub is_new: bool,
    /// Whether its disk has some left.
    pub room: Arc<Room>,
    /// Where those of its state are.
    pub images: Arc<Images>,
    /// Stretches the election timeout.
    pub time_scale: u64,
    /// Figures of stores that are not in the state yet.
    pub usage: chunkserver::Usage,
}

pub use chunkserver::Usage;

impl Rpc {
    /// A master that restarts answers no vote within the longest election timeout: the leader that
    /// it followed may still count on it.
    fn votes(&self) -> bool {
        let quiet = Duration::from_millis((ELECTION_MS_MAX + VOTE_MARGIN_MS) * self.time_scale);
        self.is_new || self.started.elapsed() >= quiet
    }
}

/// The handler that `serve` wants.
pub struct Door(pub Arc<Rpc>);

impl Handler for Door {
    type State = Inbound;

    fn connected(&self) -> Inbound {
        Inbound::new(self.0.images.clone())
    }

    fn handle(&self, state: &mut Inbound, frame: Frame) -> Served {
        let rpc = self.0.clone();
        let received = Instant::now();
        match frame.header.kind {
            Kind::Raft => network::handle(&rpc.leader.raft, rpc.votes(), state, frame),
            Kind::MasterRequest => match common::wire::decode::<MasterRequest>(&frame.body) {
                Ok(request) => Box::pin(async move {
                    let reply = rpc.client(request).await;
                    let snapshot = rpc.leader.state.read().expect("never poisoned").last_snapshot();
                    Reply::new(reply, vec![]).after(snapshot)
                }),
                Err(code) => refused(code),
            },
            Kind::StoreRequest => match common::wire::decode::<StoreRequest>(&frame.body) {
                Ok(request) => {
                    Box::pin(async move { Reply::new(rpc.store(request, received).await, vec![]) })
                }
                Err(code) => refused(code),
            },
            _ => refused(Code::Unexpected),
        }
    }
}

fn refused(code: Code) -> Served {
    Box::pin(std::future::ready(code.into()))
}
