//! Leader only: ends sessions that have lapsed, has chunks repaired, puts usage into the log, lets
//! old things go.

use crate::leader::Leader;
use crate::repair::Repairs;
use crate::rpc::Usage;
use common::limits::{LOCK_LEASE_MS, NAMELESS_MS, SESSION_MS, TRASH_MS};
use master_core::{Before, Command};
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
/// A file that has no name yet, and that nobody writes to, is deleted after this.
const UPLOAD_MS: u64 = 3600 * 1000;
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
            make_room(&leader).await;
        }
        if expired.elapsed() > EXPIRE_EVERY {
            expired = Instant::now();
            end_silent_holders(&leader, term).await;
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

async fn end_silent_holders(leader: &Leader, term: u64) {
    for holder in leader.silent_holders(Duration::from_millis(LOCK_LEASE_MS)) {
        tracing::warn!(%holder, "it has been silent for too long: its locks are free");
        // Without a quorum nothing can be decided; the next time it is tried again.
        let _ = leader.end_locks(holder, Some(term)).await;
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
    loop {
        let before = {
            let state = leader.state.read().expect("never poisoned");
            let ago = |ms: u64| state.clock_ns().saturating_sub(ms * 1_000_000);
            let before = Before {
                trash_ns: ago(TRASH_MS),
                uploads_ns: ago(UPLOAD_MS),
                open_ns: ago(NAMELESS_MS),
                clients_ns: ago(CLIENT_MS),
            };
            if !state.has_expired(&before) {
                return;
            }
            before
        };
        if leader.propose(Command::Expire { before, budget: EXPIRE_BUDGET }, None).await.is_err() {
            return;
        }
    }
}

/// When disks are nearly full, the oldest of the trash goes before its time.
async fn make_room(leader: &Leader) {
    let wanted = {
        let state = leader.state.read().expect("never poisoned");
        state.trash_in_the_way(EXPIRE_BUDGET as usize)
    };
    if let Some(trash_ns) = wanted {
        tracing::warn!("disks are nearly full: the oldest of the trash goes now");
        let before = Before { trash_ns, ..Default::default() };
        let _ = leader.propose(Command::Expire { before, budget: EXPIRE_BUDGET }, None).await;
    }
}

/// What `run` wants of the reported usage.
pub fn from(usage: Arc<crate::rpc::Rpc>) -> impl Fn() -> Vec<(common::StoreId, u64, u64)> + Send + 'static {
    move || Usage::take(&usage.usage)
}
