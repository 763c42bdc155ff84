//! A leader whose process has died need not be waited for as long as one that is silent.
//!
//! A follower grants no vote before the leader's lease (`ELECTION_MS_MAX` after it last heard of it) is over, and Raft begins an election
//! an election timeout after that: whoever is only slow gets time to be heard of again. A process that ends, however it ends, ends its
//! connections too. A follower that sees that asks for votes as soon as leases can be over. It is not believed, only asked
//! earlier: if the leader lives on and is heard of by a majority, leases are not over, and the question changes nothing.

use super::{Raft, Vote};
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::vote::RaftLeaderId;
use std::time::Duration;

/// Past the end of the lease, by a clock that may be a little ahead.
const MARGIN: Duration = Duration::from_millis(10);
/// The followers ask one after another: the first may not have the longest log, and two that ask at once share the votes.
const STAGGER: Duration = Duration::from_millis(40);

/// The connection on which a leader with this vote sent entries has just ended.
pub async fn connection_ended(raft: &Raft, vote: Vote) {
    let lease = Duration::from_millis(raft.config().election_timeout_max);
    let Some(rank) = rank(raft, &vote) else { return };
    tokio::time::sleep(lease + MARGIN + STAGGER * rank).await;
    if self::rank(raft, &vote).is_some() {
        // If Raft has stopped there is nothing to be elected.
        let _ = raft.trigger().elect(true).await;
    }
}

/// The place of this master among those that may succeed a leader, if it still follows that one.
fn rank(raft: &Raft, vote: &Vote) -> Option<u32> {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let follows = metrics.state == ServerState::Follower && metrics.vote == *vote;
    let leader = *vote.leader_id.node_id();
    let mut heirs = metrics.membership_config.membership().voter_ids().filter(|id| *id != leader);
    heirs.position(|id| id == metrics.id).filter(|_| follows).map(|rank| rank as u32)
}
