//! Administration: status, membership, leadership.

use super::Rpc;
use common::wire::client_master::{DrainItem, MaintenanceItem, MasterReply, Status};
use common::{ChunkHandle, Code, ServerId, StoreId};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers};
use std::collections::BTreeSet;
use std::time::Duration;

/// A change of membership takes at most this long.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);

type ChangeError = RaftError<crate::raft::TypeConfig, ClientWriteError<crate::raft::TypeConfig>>;

fn failed(error: ChangeError) -> MasterReply {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(f)) => MasterReply::Refused {
            code: Code::NotLeader,
            about: String::new(),
            leader: f.leader_node.map(|n| n.addr),
        },
        other => MasterReply::refused(Code::BadArgument, other),
    }
}

impl Rpc {
    /// What is left on the servers that are drained. All chunks are walked: of a copy of the state,
    /// which costs nothing, and not on this thread.
    pub(super) async fn drains(&self) -> MasterReply {
        if let Err(e) = self.leader.round().await {
            return super::client::not_here(e);
        }
        let state = self.leader.state.read().expect("never poisoned").clone();
        let count = move || {
            let item = |server| {
                let (chunks, copies) = state.left_on(server);
                DrainItem { server, chunks, copies }
            };
            state.draining().map(item).collect()
        };
        match tokio::task::spawn_blocking(count).await {
            Ok(items) => MasterReply::Drains(items),
            Err(e) => MasterReply::refused(Code::Unavailable, e),
        }
    }

    /// The servers that are maintained, and what would be at risk without each. All chunks are walked,
    /// aside.
    pub(super) async fn maintenance(&self) -> MasterReply {
        if let Err(e) = self.leader.round().await {
            return super::client::not_here(e);
        }
        let (now, state) =
            (self.leader.stamp_ns(), self.leader.state.read().expect("never poisoned").clone());
        let count = move || {
            let item = |(server, until_ns): (ServerId, u64)| {
                let (chunks, at_risk) = state.at_risk_without(server);
                MaintenanceItem { server, left_ms: until_ns.saturating_sub(now) / 1_000_000, chunks, at_risk }
            };
            state.maintained().map(item).collect()
        };
        match tokio::task::spawn_blocking(count).await {
            Ok(items) => MasterReply::Maintained(items),
            Err(e) => MasterReply::refused(Code::Unavailable, e),
        }
    }

    /// All that is known of a chunk. The path of its file is looked for in whole directories: aside.
    pub(super) async fn explain(&self, handle: ChunkHandle) -> MasterReply {
        if let Err(e) = self.leader.round().await {
            return super::client::not_here(e);
        }
        let state = self.leader.state.read().expect("never poisoned").clone();
        let mut story = match tokio::task::spawn_blocking(move || state.explain(handle)).await {
            Ok(Ok(story)) => story,
            Ok(Err(refusal)) => return MasterReply::refused(refusal.code, refusal.about),
            Err(e) => return MasterReply::refused(Code::Unavailable, e),
        };
        story.config.wait_ms = self.wait_ms(handle);
        let (items, _) = &*self.leader.repairs.lock().expect("never poisoned");
        story.lacking = items.iter().find(|i| i.handle == handle).map(|i| (i.ms, i.why.clone()));
        MasterReply::Explained(story)
    }

    /// What giving a store up would mean. All chunks are walked, aside.
    pub(super) async fn loss(&self, store: StoreId) -> MasterReply {
        if let Err(e) = self.leader.round().await {
            return super::client::not_here(e);
        }
        let state = self.leader.state.read().expect("never poisoned").clone();
        match tokio::task::spawn_blocking(move || state.loss_of(store)).await {
            Ok(Ok(loss)) => MasterReply::Lost(loss),
            Ok(Err(refusal)) => MasterReply::refused(refusal.code, refusal.about),
            Err(e) => MasterReply::refused(Code::Unavailable, e),
        }
    }

    pub(super) async fn status(&self) -> Status {
        let metrics = self.leader.raft.metrics().borrow_watched().clone();
        let voters: BTreeSet<u64> = metrics.membership_config.membership().voter_ids().collect();
        let masters = metrics.membership_config.membership().nodes();
        let masters = masters.map(|(id, node)| (*id, node.addr.clone(), voters.contains(id))).collect();
        let state = self.leader.state.read().expect("never poisoned");
        let (files, chunks, degraded) = state.counts();
        let up = state.all_stores().filter(|(_, s)| s.session().is_some()).count() as u64;
        Status {
            id: self.id,
            leader: self.leader.leads(),
            term: metrics.current_term,
            applied: metrics.last_applied.map_or(0, |id| id.index),
            last_log: metrics.last_log_index.unwrap_or(0),
            snapshot: metrics.snapshot.map_or(0, |id| id.index),
            masters,
            files,
            chunks,
            degraded,
            stores: (state.all_stores().count() as u64, up),
            digest: state.fixed_digest(),
        }
    }

    pub(super) async fn add_master(&self, id: u64, addr: String) -> MasterReply {
        let change = async {
            self.leader.raft.add_learner(id, BasicNode::new(addr), true).await?;
            let voters = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
            self.leader.raft.change_membership(voters, true).await
        };
        match tokio::time::timeout(CHANGE_LIMIT, change).await {
            Ok(Ok(_)) => MasterReply::Done,
            Ok(Err(e)) => failed(e),
            Err(_) => {
                MasterReply::refused(Code::Deadline, "the new master does not catch up; is it running?")
            }
        }
    }

    pub(super) async fn remove_master(&self, id: u64) -> MasterReply {
        let voters = ChangeMembers::RemoveVoters(BTreeSet::from([id]));
        match tokio::time::timeout(CHANGE_LIMIT, self.leader.raft.change_membership(voters, false)).await {
            Ok(Ok(_)) => MasterReply::Done,
            Ok(Err(e)) => failed(e),
            Err(_) => MasterReply::refused(Code::Deadline, "no quorum agrees"),
        }
    }

    pub(super) async fn transfer_leader(&self, id: u64) -> MasterReply {
        if let Err(e) = self.leader.round().await {
            return super::client::not_here(e);
        }
        match self.leader.offer(id).await {
            Ok(()) => MasterReply::Done,
            Err(e) => MasterReply::refused(Code::Unavailable, e),
        }
    }
}
