//! Leader only: ends sessions that have lapsed, has chunks repaired, puts usage into the log, lets
//! old things go.

use crate::leader::Leader;
use crate::repair::Repairs;
use crate::rpc::Usage;
use common::limits::{SESSION_MS, TRASH_MS};
use master_core::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often sessions are looked at.
const TICK: Duration = Duration::from_millis(50);
/// How often the use of disks is put into the log.
const USAGE_EVERY: Duration = Duration::from_secs(2);
/// How often old things are let go.
const EXPIRE_EVERY: Duration = Duration::from_millis(500);
/// Most inodes that one entry deletes.
const EXPIRE_BUDGET: u32 = 512;
/// An unnamed file that nobody writes to is deleted after this.
const UNNAMED_MS: u64 = 3600 * 1000;
/// A client that is not heard of for so long has ended.
const CLIENT_MS: u64 = 3600 * 1000;

/// Runs for ever; acts while this master leads.
pub async fn run(leader: Arc<Leader>, usage: impl Fn() -> Vec<(common::StoreId, u64, u64)> + Send + 'static) {
    let mut used = Instant::now();
    let mut expired = Instant::now();
    let mut repairs = Repairs::default();
    loop {
        tokio::time::sleep(TICK).await;
        let Some(term) = leader.begin_if_new() else {
            repairs = Repairs::default();
            continue;
        };
        end_lapsed(&leader, term).await;
        repairs.tick(&leader, term).await;
        if used.elapsed() > USAGE_EVERY {
            used = Instant::now();
            put_usage(&leader, usage()).await;
        }
        if expired.elapsed() > EXPIRE_EVERY {
            expired = Instant::now();
            expire(&leader).await;
            leader.end_doubts().await;
        }
    }
}

async fn end_lapsed(leader: &Leader, term: u64) {
    let lapsed: Vec<_> = {
        let state = leader.state.read().expect("never poisoned");
        let up = state.all_stores().filter_map(|(id, s)| s.session().map(|session| (id, session)));
        let limit = Duration::from_millis(SESSION_MS);
        up.filter(|(id, session)| leader.silent_for(*id, *session) > limit).collect()
    };
    for (store, session) in lapsed {
        tracing::warn!(%store, %session, "the session has lapsed");
        // Without a quorum nothing can be decided; the next tick tries again.
        let _ = leader.propose(Command::StoreDown { store, session }, Some(term)).await;
    }
}

async fn put_usage(leader: &Leader, reported: Vec<(common::StoreId, u64, u64)>) {
    let changed: Vec<_> = {
        let state = leader.state.read().expect("never poisoned");
        let differs = |(id, capacity, used): &(common::StoreId, u64, u64)| {
            let now = state.store(*id).map(|s| (s.register.capacity, s.register.used));
            now.is_some_and(|now| now != (*capacity, *used))
        };
        reported.into_iter().filter(differs).collect()
    };
    if !changed.is_empty() {
        let _ = leader.propose(Command::Usage { stores: changed }, None).await;
    }
}

async fn expire(leader: &Leader) {
    let before = |ms: u64, now: u64| now.saturating_sub(ms * 1_000_000);
    loop {
        let command = {
            let state = leader.state.read().expect("never poisoned");
            let now = state.clock_ns();
            let (trash, unnamed, clients) =
                (before(TRASH_MS, now), before(UNNAMED_MS, now), before(CLIENT_MS, now));
            if !state.has_expired(trash, unnamed, clients) {
                return;
            }
            Command::Expire {
                trash_before_ns: trash,
                unnamed_before_ns: unnamed,
                clients_before_ns: clients,
                budget: EXPIRE_BUDGET,
            }
        };
        if leader.propose(command, None).await.is_err() {
            return;
        }
    }
}

/// What `run` wants of the reported usage.
pub fn from(usage: Arc<crate::rpc::Rpc>) -> impl Fn() -> Vec<(common::StoreId, u64, u64)> + Send + 'static {
    move || Usage::take(&usage.usage)
}
