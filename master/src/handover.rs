//! A leader hands over before it would be missed: when it is told to stop, and when the disk of its log completes
//! nothing. Then its followers are a majority without it, but both are needed, and what it cannot write fills its memory. And
//! when its disk is full: theirs may not be.

use crate::leader::Leader;
use crate::raft::hung::Hung;
use crate::raft::log::LogStore;
use crate::raft::room::Room;
use common::limits::HANDOVER_MS;
use openraft::async_runtime::watch::WatchReceiver;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the disk is looked at.
const TICK: Duration = Duration::from_millis(50);
/// Who shall lead instead answers within this part of `HANDOVER_MS`: if all disks are late, another leader is none the better.
const PROMPT: u32 = 4;
/// How often room is looked for when there was none.
const ROOM_TICK: Duration = Duration::from_secs(1);
/// A master without room that leads again keeps to it for so long.
const OFFER_AGAIN: Duration = Duration::from_secs(60);
/// Who leaves waits so long for its successor.
const LEAVE_LIMIT: Duration = Duration::from_millis(1000);

/// Watches the disk of the log for ever; acts while this master leads.
pub async fn watch(leader: Arc<Leader>, hung: Arc<Hung>, time_scale: u64) {
    let late = Duration::from_millis(HANDOVER_MS * time_scale);
    loop {
        tokio::time::sleep(TICK).await;
        let (stands, now) = (hung.stands_for(), Instant::now());
        // If it has been offered and nobody takes it, an election will do: who offers keeps nobody from one.
        if stands < late || leader.term().is_none() {
            continue;
        }
        let fastest = leader.spares.fastest(now);
        let Some((to, answers)) = fastest.filter(|(_, answers)| *answers < late / PROMPT) else { continue };
        if leader.offer(to).await.is_err() {
            return;
        }
        tracing::warn!(?stands, to, ?answers, "the disk of the Raft log is late: another master shall lead");
    }
}

/// Looks for room again when there was none, for ever; another master shall lead meanwhile. It may have no room either, so none
/// hands over twice in a while.
pub async fn watch_room(leader: Arc<Leader>, room: Arc<Room>, log: LogStore) {
    let mut offered: Option<Instant> = None;
    loop {
        tokio::time::sleep(ROOM_TICK).await;
        let Some(short_for) = room.short_for() else { continue };
        let (again, log) = (room.clone(), log.clone());
        let looked = tokio::task::spawn_blocking(move || {
            log.make_spare();
            again.take_again();
        });
        if looked.await.is_err() {
            return;
        }
        let may_offer = offered.is_none_or(|at| at.elapsed() >= OFFER_AGAIN);
        if room.short_for().is_none() || leader.term().is_none() || !may_offer {
            continue;
        }
        let Some((to, _)) = leader.spares.fastest(Instant::now()) else { continue };
        offered = Some(Instant::now());
        if leader.offer(to).await.is_err() {
            return;
        }
        tracing::warn!(?short_for, to, "the disk is full: another master shall lead");
    }
}

/// A leader that stops hands over first, so that nobody waits for an election.
pub async fn leave(leader: &Leader) {
    if leader.term().is_none() {
        return;
    }
    let metrics = leader.raft.metrics().borrow_watched().clone();
    let mut others = metrics.membership_config.membership().voter_ids().filter(|v| *v != metrics.id);
    let fastest = leader.spares.fastest(Instant::now()).map(|(to, _)| to);
    if let Some(to) = fastest.or_else(|| others.next())
        && leader.offer(to).await.is_ok()
    {
        let gone = async {
            while leader.raft.is_leader() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(LEAVE_LIMIT, gone).await;
    }
}
