//! Leader only: finds chunks that lack members or have dead ones, riskiest first, and begins, ends
//! and begins again the attempts to make them whole. What is replicated are the attempts alone; a
//! new leader finds the rest by looking.

use crate::leader::Leader;
use common::limits::{DEAD_MS, LEARNERS_MAX, REPAIR_ATTEMPT_MS};
use common::wire::chunk_master::StoreReply;
use common::wire::client_master::{REPAIR_ITEMS_MAX, RepairItem};
use common::{ChunkHandle, Code, StoreId};
use master_core::{Command, Metadata, Repair, Reply};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Chunks that are looked at in one go.
const LOOK_AT: usize = 4096;
/// Chunks that are known to need work; what does not fit is found again later.
const QUEUE_MAX: usize = 65_536;
/// Attempts at a time: so many for each store in service, half of what one may be a target of, and at least so many in
/// all.
const UNDER_WAY_PER_STORE: usize = LEARNERS_MAX / 2;
const UNDER_WAY_MIN: usize = 64;
/// What one round does at most - chunks that it thinks about, entries that it puts into the log -
/// so that the steward's other duties have their turn.
const THOUGHTS_MAX: usize = 1024;
const PROPOSALS_MAX: usize = 64;
const ATTEMPT_LIMIT: Duration = Duration::from_millis(REPAIR_ATTEMPT_MS);
/// Chunks of which one to move is looked for in one go: for each a place is looked for, too.
const MOVE_LOOK_AT: usize = 256;
/// Chunks begin to be moved for balance at most this often.
const MOVE_EVERY: Duration = Duration::from_millis(500);
/// A chunk that could not be helped is looked at again after this, and sooner if others are just being helped: most
/// chunks are small, and copied in no time.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_BUSY: Duration = Duration::from_millis(50);

/// What this leader knows of repairs.
#[derive(Default)]
pub struct Repairs {
    /// Where the next look begins.
    cursor: Option<ChunkHandle>,
    /// Live members and chunk: the fewest first.
    queue: BTreeSet<(usize, ChunkHandle)>,
    /// Where the next look for a chunk to move begins, and when.
    balance: (ChunkHandle, Option<Instant>),
    /// Since when chunks are moved that no store copies yet.
    idle_moves: BTreeMap<ChunkHandle, Instant>,
    /// Since when stores are down, by this leader's count.
    down_since: BTreeMap<StoreId, Instant>,
    /// Stores that are down for maintenance: they are waited for.
    maintained: BTreeSet<StoreId>,
    /// Stores that nobody waits for any more.
    given_up: BTreeSet<StoreId>,
    /// Attempts under way, and since when by this leader's count.
    began: BTreeMap<(ChunkHandle, u64), Instant>,
    /// Chunks that could not be helped, until when, and why.
    later: BTreeMap<ChunkHandle, (Instant, &'static str)>,
    /// Since when chunks are known to lack members, and how many live ones they have.
    unwell: BTreeMap<ChunkHandle, (Instant, usize)>,
}

/// What is to be done for one chunk.
enum Step {
    Propose(Command),
    /// It has all it wants.
    Well,
    /// Not now.
    Wait(&'static str),
    /// Its turn comes.
    Busy(&'static str),
}

/// Attempts at a time with so many stores in service.
fn under_way_max(stores: usize) -> usize {
    (stores * UNDER_WAY_PER_STORE).max(UNDER_WAY_MIN)
}

impl Repairs {
    /// One round.
    pub async fn tick(&mut self, leader: &Leader, term: u64) {
        self.look(leader);
        let view = self.items(&leader.state.read().expect("never poisoned"));
        *leader.repairs.lock().expect("never poisoned") = view;
        for command in self.overdue(leader) {
            if leader.propose(command, Some(term)).await.is_err() {
                return;
            }
        }
        if let Some(command) = self.next_move(leader)
            && leader.propose(command, Some(term)).await.is_err()
        {
            return;
        }
        let mut proposals = 0;
        let most = {
            let state = leader.state.read().expect("never poisoned");
            under_way_max(state.all_stores().filter(|(_, store)| store.session().is_some()).count())
        };
        for _ in 0..THOUGHTS_MAX {
            let Some((live, handle)) = self.queue.pop_first() else { return };
            let step = {
                let state = leader.state.read().expect("never poisoned");
                if proposals == PROPOSALS_MAX || state.repairs_under_way() >= most {
                    self.queue.insert((live, handle));
                    return;
                }
                self.step(&state, handle)
            };
            let command = match step {
                Step::Propose(command) => command,
                Step::Wait(why) => {
                    self.later.insert(handle, (Instant::now() + AGAIN, why));
                    continue;
                }
                Step::Busy(why) => {
                    self.later.insert(handle, (Instant::now() + AGAIN_BUSY, why));
                    continue;
                }
                Step::Well => {
                    self.unwell.remove(&handle);
                    continue;
                }
            };
            proposals += 1;
            match leader.propose(command, Some(term)).await {
                Ok(Reply::Store(StoreReply::Refused { refusal, .. })) => {
                    self.later.insert(handle, (Instant::now() + AGAIN, refusal.code.text()));
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    /// A chunk that is to be moved for balance, now and then, if nothing else is to be done.
    fn next_move(&mut self, leader: &Leader) -> Option<Command> {
        let (after, last) = self.balance;
        if last.is_some_and(|last| last.elapsed() < MOVE_EVERY) {
            return None;
        }
        let state = leader.state.read().expect("never poisoned");
        let idle: BTreeSet<ChunkHandle> =
            state.moving().map(|(handle, _)| handle).filter(|h| state.repair(*h).is_none()).collect();
        self.idle_moves.retain(|handle, _| idle.contains(handle));
        for handle in idle {
            if self.idle_moves.entry(handle).or_insert_with(Instant::now).elapsed() > ATTEMPT_LIMIT {
                return Some(Command::EndMove { handle });
            }
        }
        // What lacks members comes first.
        if self.unwell.len() > state.moving().count() {
            return None;
        }
        let (command, next) = state.wanted_move(after, MOVE_LOOK_AT);
        self.balance = (next, Some(Instant::now()));
        command
    }

    /// For administrators.
    fn items(&self, state: &Metadata) -> (Vec<RepairItem>, u64) {
        let item = |(handle, (since, live)): (&ChunkHandle, &(Instant, usize))| RepairItem {
            handle: *handle,
            live: *live as u8,
            want: state.chunk(*handle).map_or(0, |c| c.want),
            target: state.repair(*handle).map(|r| r.target),
            ms: since.elapsed().as_millis() as u64,
            why: self.later.get(handle).map_or("", |(_, why)| why).into(),
        };
        let mut items: Vec<RepairItem> = self.unwell.iter().map(item).collect();
        items.sort_by_key(|i| (i.live, i.handle));
        let count = items.len() as u64;
        items.truncate(REPAIR_ITEMS_MAX);
        (items, count)
    }

    /// Stores that have been down for so long that nobody waits for them.
    fn dead(&self) -> BTreeSet<StoreId> {
        let limit = Duration::from_millis(DEAD_MS);
        let over = self.down_since.iter().filter(|(_, since)| since.elapsed() > limit).map(|(id, _)| *id);
        over.filter(|id| !self.maintained.contains(id)).chain(self.given_up.iter().copied()).collect()
    }

    /// Looks at the next chunks.
    fn look(&mut self, leader: &Leader) {
        let state = leader.state.read().expect("never poisoned");
        let down: BTreeSet<StoreId> =
            state.all_stores().filter(|(_, s)| s.session().is_none()).map(|(id, _)| id).collect();
        self.down_since.retain(|id, _| down.contains(id));
        let now = leader.stamp_ns();
        self.maintained = down.iter().copied().filter(|id| state.is_maintained(*id, now)).collect();
        self.given_up = state.given_up().collect();
        for id in down {
            self.down_since.entry(id).or_insert_with(Instant::now);
        }
        self.later.retain(|_, (until, _)| Instant::now() < *until);
        let queue = &self.queue;
        self.unwell.retain(|handle, (_, live)| state.is_unwell(*handle) || queue.contains(&(*live, *handle)));
        let dead = self.dead();
        let from = self.cursor.unwrap_or(ChunkHandle(0));
        let (found, next) = state.unwell(from, LOOK_AT, &|id| dead.contains(&id));
        self.cursor = next;
        for (handle, live) in found {
            if self.unwell.len() >= QUEUE_MAX {
                break;
            }
            self.unwell.entry(handle).or_insert((Instant::now(), live)).1 = live;
            if state.repair(handle).is_none() && !self.later.contains_key(&handle) {
                self.queue.insert((live, handle));
            }
        }
    }

    /// Attempts that have taken too long, or whose target is down.
    fn overdue(&mut self, leader: &Leader) -> Vec<Command> {
        let state = leader.state.read().expect("never poisoned");
        let now: Vec<(ChunkHandle, Repair)> = state.repairs().collect();
        let keys: BTreeSet<(ChunkHandle, u64)> = now.iter().map(|(h, r)| (*h, r.attempt)).collect();
        self.began.retain(|key, _| keys.contains(key));
        let over = |(handle, repair): &(ChunkHandle, Repair)| {
            let began = self.began.entry((*handle, repair.attempt)).or_insert_with(Instant::now);
            let down = state.store(repair.target).is_none_or(|s| s.session().is_none());
            down || began.elapsed() > ATTEMPT_LIMIT
        };
        let over: Vec<_> = now.into_iter().filter(over).collect();
        over.into_iter()
            .map(|(handle, repair)| Command::EndRepair { handle, attempt: repair.attempt })
            .collect()
    }

    /// What a chunk needs now: dead members leave, or else those that shall; then a new member is
    /// made. One that is down, but not dead yet, is waited for.
    fn step(&self, state: &Metadata, handle: ChunkHandle) -> Step {
        let Ok(config) = state.config(handle) else { return Step::Well };
        let Some(chunk) = state.chunk(handle) else { return Step::Well };
        if state.is_lost(handle) {
            return Step::Wait(Code::Lost.text());
        }
        let dead = self.dead();
        let mut remove: Vec<StoreId> = config.members.iter().copied().filter(|m| dead.contains(m)).collect();
        if remove.is_empty() {
            remove = state.leaving(handle, chunk);
        }
        if !remove.is_empty() {
            return Step::Propose(Command::Reconfigure {
                handle,
                epoch: config.epoch,
                remove,
                primary: None,
            });
        }
        let is_up = |id: &StoreId| state.store(*id).is_some_and(|s| s.session().is_some());
        let waits = |id: &StoreId| !is_up(id) && !dead.contains(id);
        if state.staying(handle, chunk).len() >= chunk.want as usize {
            return Step::Well;
        }
        if config.members.iter().any(|m| !is_up(m)) {
            return Step::Wait("a member is down, and may be back soon");
        }
        // Who holds an old copy and may be back soon has the least to copy.
        if state.stale_of(handle).iter().any(waits) {
            return Step::Wait("a store that holds an old copy is down, and may be back soon");
        }
        // Asked first: what would be refused need not go through the log.
        match state.repair_target(handle, config.epoch, rand::random()) {
            Ok(_) => Step::Propose(Command::BeginRepair { handle, epoch: config.epoch }),
            Err(refusal) if refusal.code == Code::Busy => {
                Step::Busy("the stores it could go to have enough to do")
            }
            Err(refusal) => Step::Wait(refusal.code.text()),
        }
    }
}
