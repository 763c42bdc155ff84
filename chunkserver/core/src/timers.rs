//! When a node has to look at something again.

use common::{ChunkHandle, Time};
use std::collections::{BTreeMap, BTreeSet};

/// What is to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// Members should have answered the primary by now.
    Answers(ChunkHandle),
    /// Tell the secondaries the commit point, if nothing else did.
    IdleCommit(ChunkHandle),
    /// A removed member's session may be over.
    Hold(ChunkHandle),
    /// Ask the masters again.
    AskAgain(ChunkHandle),
    /// The primary has not answered a read's question.
    Read(ChunkHandle),
    /// The primary has not answered a copy's question.
    Copy(ChunkHandle),
    /// It is a question's turn to be answered.
    Teach(ChunkHandle),
    /// A new member takes too long.
    HaltOver(ChunkHandle),
    /// A fork goes on.
    Fork(ChunkHandle),
    /// Members that had no room are sent again what they have not acknowledged.
    SendAgain(ChunkHandle),
    /// The masters should have taken a rotten copy out.
    Rotten(ChunkHandle),
    /// The next scattered piece may be gathered.
    Gather,
}

impl Timer {
    /// Set again whenever it fires, as long as there is a reason: a chunk has one of these at a time. Were
    /// each set beside the one before, they would multiply.
    fn goes_on(self) -> bool {
        use Timer::*;
        matches!(self, Answers(_) | IdleCommit(_) | AskAgain(_) | Hold(_) | Fork(_) | SendAgain(_) | Gather)
    }
}

/// All timers of a node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timers {
    set: BTreeSet<(Time, Timer)>,
    /// When those that go on fire.
    going_on: BTreeMap<Timer, Time>,
}

impl Timers {
    /// Fires at this time; one that goes on, at the earliest for which it was set.
    pub fn set(&mut self, at: Time, timer: Timer) {
        if timer.goes_on() {
            let before = self.going_on.get(&timer).copied();
            if before.is_some_and(|before| before <= at) {
                return;
            }
            if let Some(before) = before {
                self.set.remove(&(before, timer));
            }
            self.going_on.insert(timer, at);
        }
        self.set.insert((at, timer));
    }

    /// Whether it will fire. Known only of those that go on.
    pub fn is_set(&self, timer: Timer) -> bool {
        assert!(timer.goes_on(), "{timer:?} can be set several times");
        self.going_on.contains_key(&timer)
    }

    /// When the next one fires.
    pub fn first(&self) -> Option<Time> {
        self.set.first().map(|(at, _)| *at)
    }

    /// Takes one that is due.
    pub fn due(&mut self, now: Time) -> Option<Timer> {
        let (at, timer) = self.set.first().copied().filter(|(at, _)| *at <= now)?;
        self.set.remove(&(at, timer));
        self.going_on.remove(&timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_is_set_once_at_the_earliest_time() {
        let mut timers = Timers::default();
        let (again, read) = (Timer::AskAgain(ChunkHandle(1)), Timer::Read(ChunkHandle(1)));
        for at in [5, 3, 4] {
            timers.set(Time(at), again);
            timers.set(Time(at), read);
        }
        assert!(timers.is_set(again));
        assert_eq!((timers.first(), timers.due(Time(2))), (Some(Time(3)), None));
        let fired: Vec<Timer> = std::iter::from_fn(|| timers.due(Time(9))).collect();
        assert_eq!(fired, [again, read, read, read]);
        assert!(!timers.is_set(again));
    }
}
