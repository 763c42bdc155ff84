//! Locks of programs: who holds which range, within what this mount has claimed of the masters (docs/decisions/0024).
//! Mostly that is the whole file, and nobody need be asked.

use crate::caller::Caller;
use crate::handles::Handles;
use crate::shared::Outcome;
use client::Error;
use common::limits::{DRIFT_PERCENT, LOCK_LEASE_MS};
use common::{ClientId, Code, FileId, LockRange, LockRanges, Lockable};
use fuser::Errno;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore};

/// How long claims last after they were renewed, by our clock.
const LEASE: Duration = Duration::from_millis(LOCK_LEASE_MS * (100 - DRIFT_PERCENT) / 100);
/// Programs of a mount for which the masters are asked at a time what is in their way.
const WAITS_MAX: usize = 64;
/// What nobody has locked for so long is given back.
const UNUSED: Duration = Duration::from_secs(60);
/// So many at a time.
const UNUSED_MAX: usize = 64;

/// What a program wants.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub of: Lockable,
    pub range: LockRange,
    /// Who locks, as the kernel names it.
    pub owner: u64,
    /// Through which open file.
    pub handle: u64,
    pub pid: u32,
}

/// What became of it, for now.
#[derive(Debug)]
enum Step {
    Locked,
    /// A program of this mount has locked it.
    Here(Vec<u64>),
    /// This mount has not claimed it.
    Unclaimed,
}

pub struct Locks {
    handles: Arc<Handles>,
    state: Mutex<State>,
    /// Something was unlocked, or lost.
    changed: Notify,
    waits: Semaphore,
    beginning: tokio::sync::Mutex<()>,
    /// There was a lock: handles may have lost theirs.
    used: AtomicBool,
}

#[derive(Default)]
struct State {
    lease: Option<Lease>,
    files: HashMap<Lockable, InFile>,
    /// Handles through which something was locked that was lost.
    lost: HashSet<u64>,
    /// Which owners wait for which.
    waiting: HashMap<u64, Vec<u64>>,
}

struct Lease {
    holder: ClientId,
    until: Instant,
}

struct InFile {
    owners: HashMap<u64, Held>,
    claimed: LockRanges,
    /// More than was asked for is claimed.
    wide: bool,
    /// Whoever has this changes what is claimed.
    gate: Arc<tokio::sync::Mutex<()>>,
    used: Instant,
}

#[derive(Default)]
struct Held {
    ranges: LockRanges,
    pid: u32,
    handles: BTreeSet<u64>,
}

impl Default for InFile {
    fn default() -> InFile {
        InFile {
            owners: HashMap::new(),
            claimed: LockRanges::default(),
            wide: false,
            gate: Arc::default(),
            used: Instant::now(),
        }
    }
}

impl InFile {
    /// What must be claimed for what is locked.
    fn needed(&self) -> LockRanges {
        self.owners.values().flat_map(|held| held.ranges.iter().copied()).collect()
    }

    /// The others that have locked what one wants.
    fn others(&self, owner: u64, range: &LockRange) -> Vec<(u64, LockRange, u32)> {
        let others = self.owners.iter().filter(|(other, _)| **other != owner);
        let in_the_way =
            others.filter_map(|(other, held)| Some((*other, held.ranges.conflict(range)?, held.pid)));
        in_the_way.collect()
    }
}

impl State {
    /// Everything that is locked is lost.
    fn lose(&mut self, handles: &Handles) {
        self.lease = None;
        for (of, file) in self.files.drain().filter(|(_, file)| !file.owners.is_empty()) {
            tracing::error!(file = %of.file, "its locks are lost: the masters have not heard of us for too long");
            self.lost.extend(file.owners.into_values().flat_map(|held| held.handles));
            if let Some(open) = handles.get(of.file) {
                // Others have it locked, perhaps, and written to it.
                open.abandon();
            }
        }
    }

    fn step(&mut self, wanted: &Wanted) -> Outcome<Step> {
        if self.lost.contains(&wanted.handle) {
            return Err(Errno::EIO);
        }
        let file = self.files.entry(wanted.of).or_default();
        file.used = Instant::now();
        let others = file.others(wanted.owner, &wanted.range);
        if !others.is_empty() {
            return Ok(Step::Here(others.into_iter().map(|(owner, ..)| owner).collect()));
        }
        if !file.claimed.covers(&wanted.range) {
            return Ok(Step::Unclaimed);
        }
        let held = file.owners.entry(wanted.owner).or_default();
        held.ranges.hold(wanted.range);
        held.pid = wanted.pid;
        held.handles.insert(wanted.handle);
        Ok(Step::Locked)
    }

    /// Whether those for whom one would wait wait for it, directly or not.
    fn is_circle(&self, owner: u64, others: &[u64]) -> bool {
        let (mut seen, mut todo) = (HashSet::new(), others.to_vec());
        while let Some(other) = todo.pop() {
            if other == owner {
                return true;
            }
            if seen.insert(other) {
                todo.extend(self.waiting.get(&other).into_iter().flatten());
            }
        }
        false
    }
}

impl Locks {
    /// Of these files.
    pub fn new(handles: Arc<Handles>) -> Locks {
        Locks {
            handles,
            state: Mutex::default(),
            changed: Notify::new(),
            waits: Semaphore::new(WAITS_MAX),
            beginning: tokio::sync::Mutex::default(),
            used: AtomicBool::new(false),
        }
    }

    /// What is so now: claims end with their lease, whoever looks.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().expect("never poisoned");
        if state.lease.as_ref().is_some_and(|lease| Instant::now() >= lease.until) {
            state.lose(&self.handles);
            self.changed.notify_waiters();
        }
        state
    }

    /// A handle through which something was locked that was lost since can do nothing any more.
    pub fn check(&self, handle: u64) -> Outcome<()> {
        let is_lost = self.used.load(Ordering::Relaxed) && self.state().lost.contains(&handle);
        if is_lost { Err(Errno::EIO) } else { Ok(()) }
    }

    /// Whether an owner has locked something.
    pub fn has_locked(&self, of: Lockable, owner: u64) -> bool {
        let used = self.used.load(Ordering::Relaxed);
        used && self.state().files.get(&of).is_some_and(|file| file.owners.contains_key(&owner))
    }

    /// Whether something is locked through a handle, or was and is lost.
    pub fn knows(&self, file: FileId, handle: u64) -> bool {
        if !self.used.load(Ordering::Relaxed) {
            return false;
        }
        let state = self.state();
        let locked = |file: &InFile| file.owners.values().any(|held| held.handles.contains(&handle));
        state.lost.contains(&handle) || both(file).iter().any(|of| state.files.get(of).is_some_and(locked))
    }

    fn step(&self, wanted: &Wanted) -> Outcome<Step> {
        self.state().step(wanted)
    }

    fn gate(&self, of: Lockable) -> Arc<tokio::sync::Mutex<()>> {
        self.state().files.entry(of).or_default().gate.clone()
    }

    /// The masters have said what is claimed now, under this lease.
    fn claimed(&self, holder: ClientId, of: Lockable, ranges: LockRanges, wide: bool) {
        let mut state = self.state();
        if state.lease.as_ref().is_some_and(|lease| lease.holder == holder) {
            let file = state.files.entry(of).or_default();
            (file.claimed, file.wide) = (ranges, wide);
        }
    }

    /// What is claimed and not needed is given back from here on: what is kept. Nothing if that is all of it.
    fn keep(&self, of: Lockable, recalled: bool) -> Option<(ClientId, LockRanges)> {
        let mut state = self.state();
        let holder = state.lease.as_ref()?.holder;
        let file = state.files.get_mut(&of)?;
        let needed = file.needed();
        if file.wide && !recalled || needed == file.claimed {
            return None;
        }
        (file.claimed, file.wide) = (needed.clone(), false);
        Some((holder, needed))
    }

    /// Whether something is claimed and not needed.
    fn has_more(&self, of: Lockable, recalled: bool) -> bool {
        let state = self.state();
        let file = state.files.get(&of);
        file.is_some_and(|file| (recalled || !file.wide) && file.needed() != file.claimed)
    }

    /// Nothing of it is locked or claimed: it need not be remembered.
    fn forget(&self, of: Lockable) {
        let mut state = self.state();
        let is_empty = |file: &InFile| {
            file.owners.is_empty() && file.claimed.is_empty() && Arc::strong_count(&file.gate) == 1
        };
        if state.files.get(&of).is_some_and(is_empty) {
            state.files.remove(&of);
        }
    }

    fn unlock(&self, of: Lockable, owner: u64, first: u64, last: u64) {
        let mut state = self.state();
        if let Some(file) = state.files.get_mut(&of)
            && let Some(held) = file.owners.get_mut(&owner)
        {
            held.ranges.let_go(first, last);
            if held.ranges.is_empty() {
                file.owners.remove(&owner);
            }
            file.used = Instant::now();
        }
        self.changed.notify_waiters();
    }

    /// A handle is gone: what was locked through it, of both kinds, is not any more.
    fn unlock_handle(&self, file: FileId, handle: u64) {
        let mut state = self.state();
        state.lost.remove(&handle);
        for of in both(file) {
            if let Some(file) = state.files.get_mut(&of) {
                file.owners.retain(|_, held| !held.handles.contains(&handle));
            }
        }
        self.changed.notify_waiters();
    }

    fn lose(&self, holder: ClientId) {
        let mut state = self.state.lock().expect("never poisoned");
        if state.lease.as_ref().is_some_and(|lease| lease.holder == holder) {
            state.lose(&self.handles);
            self.changed.notify_waiters();
        }
    }

    fn lease_end(&self, holder: ClientId) -> Option<Instant> {
        let state = self.state();
        state.lease.as_ref().filter(|lease| lease.holder == holder).map(|lease| lease.until)
    }

    fn renew(&self, holder: ClientId, asked: Instant) {
        let mut state = self.state();
        if let Some(lease) = state.lease.as_mut().filter(|lease| lease.holder == holder) {
            lease.until = lease.until.max(asked + LEASE);
        }
    }

    /// What is claimed and has not been used for so long.
    fn unused(&self, since: Duration) -> Vec<Lockable> {
        let state = self.state();
        let unused = |file: &InFile| {
            file.owners.is_empty() && !file.claimed.is_empty() && file.used.elapsed() >= since
        };
        let files = state.files.iter().filter(|(_, file)| unused(file)).map(|(of, _)| *of);
        files.take(UNUSED_MAX).collect()
    }
}

fn both(file: FileId) -> [Lockable; 2] {
    [Lockable { file, flock: false }, Lockable { file, flock: true }]
}

impl crate::shared::Shared {
    /// Locks a range for a program, perhaps as soon as that is possible.
    pub async fn lock(self: &Arc<Self>, wanted: Wanted, waits: bool, caller: Caller) -> Outcome<()> {
        self.locks.used.store(true, Ordering::Relaxed);
        let locked = self.try_lock(&wanted, waits, caller).await;
        // What was asked for, or was held before, may be less than what is claimed.
        locked.and(self.trim(wanted.of).await)
    }

    async fn try_lock(self: &Arc<Self>, wanted: &Wanted, waits: bool, caller: Caller) -> Outcome<()> {
        let locks = &self.locks;
        if wanted.of.flock {
            // What one has of `flock` it gives up before it waits for more, as Linux has it: nobody waits in a circle.
            let step = locks.step(wanted)?;
            if let Step::Here(_) | Step::Unclaimed = step
                && locks.has_locked(wanted.of, wanted.owner)
            {
                self.unlock(wanted.of, wanted.owner, 0, u64::MAX).await?;
            }
        }
        loop {
            let changed = locks.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match locks.step(wanted)? {
                Step::Locked => return Ok(()),
                Step::Here(_) if !waits => return Err(Errno::EAGAIN),
                Step::Here(others) => {
                    {
                        let mut state = locks.state();
                        if !wanted.of.flock && state.is_circle(wanted.owner, &others) {
                            return Err(Errno::EDEADLK);
                        }
                        state.waiting.insert(wanted.owner, others);
                    }
                    let waited = caller.wait(changed).await;
                    locks.state().waiting.remove(&wanted.owner);
                    waited?;
                }
                Step::Unclaimed => {
                    if self.claim(wanted, waits, caller).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Claims what a program wants. Whether it has got it; else it is to be tried again.
    async fn claim(self: &Arc<Self>, wanted: &Wanted, waits: bool, caller: Caller) -> Outcome<bool> {
        let gate = self.locks.gate(wanted.of);
        let changing = gate.lock().await;
        match self.locks.step(wanted)? {
            Step::Locked => return Ok(true),
            Step::Here(_) => return Ok(false),
            Step::Unclaimed => {}
        }
        let holder = self.holder().await?;
        let asked = self.client.claim(holder, wanted.of, wanted.range, waits).await;
        match asked {
            Ok((ranges, wide)) => {
                let seen = self.see_again(wanted.of.file).await;
                // It is claimed, whether the program gets it or not: what is not known here would never be given back.
                self.locks.claimed(holder, wanted.of, ranges, wide);
                // Nor is it before the program has it: who gives back waits for the gate.
                let step = seen.and_then(|()| self.locks.step(wanted))?;
                drop(changing);
                let is_locked = matches!(step, Step::Locked);
                if !is_locked {
                    self.trim(wanted.of).await?;
                }
                return Ok(is_locked);
            }
            Err(e) if e.code() == Some(Code::TooManyLocks) => {
                drop(changing);
                return if self.make_room().await? { Ok(false) } else { Err(crate::errno::errno(&e)) };
            }
            Err(e) => self.not_claimed(holder, e, waits)?,
        }
        drop(changing);
        let permit = caller.wait(self.locks.waits.acquire()).await?.expect("it is never closed");
        let other = caller.wait(self.client.in_the_way(holder, wanted.of, wanted.range, waits)).await?;
        drop(permit);
        match other {
            Ok(Some(_)) if !waits => Err(Errno::EAGAIN),
            Ok(_) => Ok(false),
            Err(e) => self.not_claimed(holder, e, true).map(|()| false),
        }
    }

    /// Gives some of what nobody has locked back. Whether there was any.
    async fn make_room(&self) -> Outcome<bool> {
        let unused = self.locks.unused(Duration::ZERO);
        for of in &unused {
            self.trim_as(*of, true, false).await?;
        }
        Ok(!unused.is_empty())
    }

    /// Whether it is worth to try again.
    fn not_claimed(&self, holder: ClientId, error: Error, waits: bool) -> Outcome<()> {
        match error.code() {
            Some(Code::Recalled) => Ok(()),
            Some(Code::Locked) if waits => Ok(()),
            Some(Code::ClientEnded) => {
                self.locks.lose(holder);
                Ok(())
            }
            _ => Err(crate::errno::errno(&error)),
        }
    }

    /// The name under which this mount claims.
    async fn holder(self: &Arc<Self>) -> Outcome<ClientId> {
        let known = || self.locks.state().lease.as_ref().map(|lease| lease.holder);
        if let Some(holder) = known() {
            return Ok(holder);
        }
        let _one = self.locks.beginning.lock().await;
        if let Some(holder) = known() {
            return Ok(holder);
        }
        let asked = Instant::now();
        let begun = self.client.begin_locks(self.name.clone()).await;
        let holder = begun.map_err(|e| crate::errno::errno(&e))?;
        self.locks.state().lease = Some(Lease { holder, until: asked + LEASE });
        tokio::spawn(self.clone().renew_locks(holder));
        Ok(holder)
    }

    /// Keeps claims alive, and gives back what others want.
    async fn renew_locks(self: Arc<Self>, holder: ClientId) {
        while let Some(until) = self.locks.lease_end(holder) {
            let asked = Instant::now();
            let told = tokio::time::timeout_at(until.into(), self.client.recalls(holder, until)).await;
            match told {
                Ok(Ok(recalls)) => {
                    self.locks.renew(holder, asked);
                    for of in recalls {
                        self.clone().give_back(of, true);
                    }
                    for of in self.locks.unused(UNUSED) {
                        self.clone().give_back(of, false);
                    }
                }
                Ok(Err(e)) if e.code() == Some(Code::ClientEnded) => self.locks.lose(holder),
                // The lease ends by itself.
                Ok(Err(error)) => tracing::warn!(%error, "locks cannot be renewed"),
                Err(_) => {}
            }
        }
    }

    fn give_back(self: Arc<Self>, of: Lockable, recalled: bool) {
        tokio::spawn(async move {
            if let Err(error) = self.trim_as(of, true, recalled).await {
                tracing::warn!(?error, file = %of.file, "what was written under a lock is not durable");
            }
        });
    }

    /// Gives back what is claimed beyond what is needed, if others may want it.
    async fn trim(&self, of: Lockable) -> Outcome<()> {
        self.trim_as(of, false, false).await
    }

    /// The same; with `all`, also of what nobody else has asked for so far.
    async fn trim_as(&self, of: Lockable, all: bool, recalled: bool) -> Outcome<()> {
        if !self.locks.has_more(of, all) {
            self.locks.forget(of);
            return Ok(());
        }
        let gate = self.locks.gate(of);
        let changing = gate.lock().await;
        // First nothing is locked beyond that any more. Then all is made durable that was written under locks so far: who
        // locks it next sees it.
        let kept = self.locks.keep(of, all);
        let written = match self.handles.get(of.file) {
            Some(file) if kept.is_some() => file.report().await.map_err(|e| crate::errno::errno(&e)),
            _ => Ok(()),
        };
        if let Some((holder, keep)) = kept
            && let Err(e) = self.client.unclaim(holder, of, keep, recalled).await
        {
            if e.code() != Some(Code::ClientEnded) {
                tracing::warn!(error = %e, "the masters do not know what is locked; all locks are given up");
            }
            self.locks.lose(holder);
        }
        drop(changing);
        drop(gate);
        self.locks.forget(of);
        written
    }

    /// Unlocks a range.
    pub async fn unlock(&self, of: Lockable, owner: u64, first: u64, last: u64) -> Outcome<()> {
        self.locks.unlock(of, owner, first, last);
        self.trim(of).await
    }

    /// Unlocks all that was locked through a handle.
    pub async fn unlock_handle(&self, file: FileId, handle: u64) {
        self.locks.unlock_handle(file, handle);
        for of in both(file) {
            // Nobody is there who could be told.
            let _ = self.trim(of).await;
        }
    }

    /// What keeps a program from locking a range, and the process that has locked it, if it is one of this mount.
    pub async fn locked(
        self: &Arc<Self>,
        wanted: Wanted,
        caller: Caller,
    ) -> Outcome<Option<(LockRange, u32)>> {
        self.locks.used.store(true, Ordering::Relaxed);
        loop {
            {
                let state = self.locks.state();
                if let Some(file) = state.files.get(&wanted.of) {
                    if let Some((_, range, pid)) = file.others(wanted.owner, &wanted.range).pop() {
                        return Ok(Some((range, pid)));
                    }
                    if file.claimed.covers(&wanted.range) {
                        return Ok(None);
                    }
                }
            }
            let holder = self.holder().await?;
            match caller.wait(self.client.in_the_way(holder, wanted.of, wanted.range, false)).await? {
                Ok(other) => return Ok(other.map(|range| (range, 0))),
                Err(e) => self.not_claimed(holder, e, true)?,
            }
        }
    }

    /// Gives everything back: the mount ends.
    pub async fn end_locks(&self) {
        let lease = self.locks.state().lease.take();
        if let Some(Lease { holder, .. }) = lease
            && let Err(error) = self.client.end_locks(holder).await
        {
            tracing::warn!(%error, "the masters find out by themselves that we hold no locks");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Lockable = Lockable { file: FileId(7), flock: false };

    fn wanted(owner: u64, first: u64, last: u64, exclusive: bool) -> Wanted {
        Wanted {
            of: FILE,
            range: LockRange { first, last, exclusive },
            owner,
            handle: owner * 10,
            pid: owner as u32,
        }
    }

    /// With all of the file claimed.
    fn locks() -> Locks {
        let locks = Locks::new(Arc::default());
        locks.used.store(true, Ordering::Relaxed);
        let lease = Lease { holder: ClientId(1), until: Instant::now() + Duration::from_secs(60) };
        locks.state().lease = Some(lease);
        let all = [LockRange::ALL].into_iter().collect();
        locks.claimed(ClientId(1), FILE, all, true);
        assert!(matches!(locks.step(&wanted(1, 0, 9, true)).unwrap(), Step::Locked));
        locks
    }

    #[test]
    fn programs_of_one_machine_lock_what_the_others_have_not() {
        let locks = locks();
        let is_locked = |wanted: Wanted| matches!(locks.step(&wanted).unwrap(), Step::Locked);
        assert!(!is_locked(wanted(2, 5, 15, false)));
        assert!(is_locked(wanted(2, 10, 15, false)) && is_locked(wanted(3, 12, 20, false)));
        assert!(is_locked(wanted(1, 0, 9, false)), "it takes less than it had");
        assert!(is_locked(wanted(2, 5, 15, false)));
        locks.unlock(FILE, 2, 0, u64::MAX);
        assert!(is_locked(wanted(1, 0, 11, true)));
        assert!(!locks.has_more(FILE, false), "nobody has asked for the rest");

        assert!(locks.unused(Duration::ZERO).is_empty());

        // What is recalled is what nobody needs.
        let (_, kept) = locks.keep(FILE, true).expect("there is more than is needed");
        let needed: Vec<LockRange> =
            [wanted(1, 0, 11, true), wanted(3, 12, 20, false)].map(|w| w.range).into();
        assert_eq!(kept.iter().copied().collect::<Vec<_>>(), needed);
        assert!(matches!(locks.step(&wanted(2, 30, 31, false)).unwrap(), Step::Unclaimed));
        assert!(!locks.has_more(FILE, true));
        locks.unlock_handle(FILE.file, 30);
        assert!(locks.has_more(FILE, false), "what was unlocked goes back at once now");
    }

    #[test]
    fn what_is_lost_is_lost_until_it_is_closed() {
        let locks = locks();
        assert!(locks.check(10).is_ok() && locks.knows(FILE.file, 10));
        locks.state.lock().unwrap().lease.as_mut().unwrap().until = Instant::now();
        assert!(locks.check(10).is_err() && locks.check(20).is_ok(), "it is over, whoever looks");
        assert!(locks.step(&wanted(1, 0, 9, true)).is_err());
        assert!(matches!(locks.step(&wanted(2, 0, 9, true)).unwrap(), Step::Unclaimed));
        locks.claimed(ClientId(1), FILE, [LockRange::ALL].into_iter().collect(), true);
        let late = locks.step(&wanted(2, 0, 9, true)).unwrap();
        assert!(matches!(late, Step::Unclaimed), "an answer of the lease that is over");
        assert!(locks.knows(FILE.file, 10));
        locks.unlock_handle(FILE.file, 10);
        assert!(locks.check(10).is_ok() && !locks.knows(FILE.file, 10));
    }

    #[test]
    fn who_would_wait_for_itself_is_seen() {
        let mut state = State::default();
        state.waiting.insert(2, vec![3, 4]);
        state.waiting.insert(4, vec![5, 1]);
        state.waiting.insert(5, vec![4]);
        assert!(state.is_circle(1, &[2]));
        assert!(!state.is_circle(6, &[2]));
    }
}
