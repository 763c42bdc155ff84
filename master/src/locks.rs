//! Who waits for locks, and which holders shall give claims back: as the leader knows it. None of it decides who has what
//! (`master_core` does): it is forgotten with the leader, and who waits asks again.

use common::{ClientId, LockRange, Lockable};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Who waits and has been answered keeps its place for so long: it will claim, or ask again.
const PLACE_KEPT: Duration = Duration::from_millis(300);

/// With more files that were waited for than this, those are forgotten that are waited for no more.
const FILES: usize = 1024;

/// Waiting and recalls, of all files.
#[derive(Default)]
pub struct Locks(Mutex<State>);

#[derive(Default)]
struct State {
    /// In the order in which they came.
    waiting: HashMap<Lockable, Vec<Waiter>>,
    recalls: HashMap<ClientId, Recalls>,
}

struct Waiter {
    holder: ClientId,
    range: LockRange,
    /// Whether it waits for what others need; else nobody comes after it.
    patient: bool,
    /// Questions of it that have not been answered.
    asks: usize,
    answered: Instant,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct Recalls {
    of: BTreeSet<Lockable>,
    added: Arc<Notify>,
}

impl State {
    fn recalls_of(&mut self, holder: ClientId) -> &mut Recalls {
        self.recalls.entry(holder).or_default()
    }
}

impl Waiter {
    fn is(&self, holder: ClientId, range: LockRange, patient: bool) -> bool {
        (self.holder, self.range, self.patient) == (holder, range, patient)
    }

    fn is_there(&self) -> bool {
        self.asks > 0 || self.answered.elapsed() < PLACE_KEPT
    }
}

/// A place among those that wait.
pub struct Place {
    locks: Arc<Locks>,
    of: Lockable,
    holder: ClientId,
    range: LockRange,
    patient: bool,
    changed: Arc<Notify>,
}

impl Locks {
    /// Takes a place, or comes back to it.
    pub fn wait(self: &Arc<Self>, of: Lockable, holder: ClientId, range: LockRange, patient: bool) -> Place {
        let mut state = self.0.lock().expect("never poisoned");
        if state.waiting.len() >= FILES {
            state.waiting.retain(|_, waiting| waiting.iter().any(Waiter::is_there));
        }
        let waiting = state.waiting.entry(of).or_default();
        waiting.retain(Waiter::is_there);
        let at = waiting.iter().position(|w| w.is(holder, range, patient)).unwrap_or_else(|| {
            let changed = Arc::default();
            waiting.push(Waiter { holder, range, patient, asks: 0, answered: Instant::now(), changed });
            waiting.len() - 1
        });
        waiting[at].asks += 1;
        Place { locks: self.clone(), of, holder, range, patient, changed: waiting[at].changed.clone() }
    }

    /// Whether nobody who has waited longer wants what this one does.
    pub fn is_first(&self, of: Lockable, holder: ClientId, range: &LockRange) -> bool {
        let state = self.0.lock().expect("never poisoned");
        let waiting = state.waiting.get(&of).into_iter().flatten();
        let mut before = waiting.take_while(|w| !w.is(holder, *range, true));
        !before.any(|w| w.patient && w.is_there() && w.holder != holder && w.range.conflicts(range))
    }

    /// A holder has got what it may have waited for.
    pub fn claimed(&self, of: Lockable, holder: ClientId, range: &LockRange) {
        let mut state = self.0.lock().expect("never poisoned");
        let Some(waiting) = state.waiting.get_mut(&of) else { return };
        waiting.retain(|w| w.asks > 0 || !w.is(holder, *range, true) && w.is_there());
        if waiting.is_empty() {
            state.waiting.remove(&of);
        }
    }

    /// Something of this was given back.
    pub fn changed(&self, of: Lockable) {
        let state = self.0.lock().expect("never poisoned");
        state.waiting.get(&of).into_iter().flatten().for_each(|w| w.changed.notify_waiters());
    }

    /// A holder is gone, with what it had claimed.
    pub fn ended(&self, holder: ClientId, claimed: &[Lockable]) {
        self.0.lock().expect("never poisoned").recalls.remove(&holder);
        claimed.iter().for_each(|of| self.changed(*of));
    }

    /// Nothing is to be told to others than these.
    pub fn keep(&self, is_holder: impl Fn(ClientId) -> bool) {
        self.0.lock().expect("never poisoned").recalls.retain(|holder, _| is_holder(*holder));
    }

    /// A holder shall give back what it does not need.
    pub fn recall(&self, holder: ClientId, of: Lockable) {
        let mut state = self.0.lock().expect("never poisoned");
        let recalls = state.recalls_of(holder);
        recalls.of.insert(of);
        recalls.added.notify_waiters();
    }

    /// What a holder shall give back, as soon as there is something; nothing after so long.
    pub async fn recalls(&self, holder: ClientId, limit: Duration) -> Vec<Lockable> {
        let added = self.0.lock().expect("never poisoned").recalls_of(holder).added.clone();
        let told = added.notified();
        tokio::pin!(told);
        // What is added from here on is told of; what was before is there.
        told.as_mut().enable();
        let take = || std::mem::take(&mut self.0.lock().expect("never poisoned").recalls_of(holder).of);
        let mut of = take();
        if of.is_empty() {
            let _ = tokio::time::timeout(limit, told).await;
            of = take();
        }
        of.into_iter().collect()
    }
}

impl Place {
    /// Tells when something was given back of what is waited for. To be asked for before looking whether it was.
    pub fn changed(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    /// Whether nobody who has waited longer wants what this one does.
    pub fn is_first(&self) -> bool {
        self.locks.is_first(self.of, self.holder, &self.range)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.locks.0.lock().expect("never poisoned");
        let waiting = state.waiting.get_mut(&self.of).into_iter().flatten();
        for waiter in waiting.filter(|w| w.is(self.holder, self.range, self.patient)) {
            waiter.asks -= 1;
            waiter.answered = Instant::now();
        }
    }
}
