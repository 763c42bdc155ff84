//! Which followers get entries at once, and which a little later, with those that came meanwhile.
//!
//! An entry counts when a majority has it, so of two followers one is enough. If both get each group of entries at once, the slower one
//! costs messages, wake-ups and a durable write of its own for nothing but to be as far as the other. As long as those that
//! answer fastest answer in time, the others are *spare*: what is for them is held for `HOLD`, and goes together. (The
//! idea is "thrifty" of EPaxos, Moraru et al., SOSP 2013; there the others get nothing.) If one of the fast is late, or the leader's
//! own write is, nobody is spare: a slow disk or a dead follower costs a group `HOLD` at most. Safety does not depend on it: an
//! append may always be late.

use super::hung::Hung;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// What is for a spare follower is held for so long.
pub const HOLD: Duration = Duration::from_millis(4);
/// With so many entries an append is not held: whoever is far behind catches up.
pub const HOLD_ENTRIES_MAX: usize = 128;
/// An answer counts for this part in the mean of a follower's answers.
const FOLLOWS: u32 = 8;
/// A spare follower takes the place of one that takes so many times as long.
const FASTER: u32 = 2;

/// How fast a follower answers.
#[derive(Clone, Copy, Debug, Default)]
struct Answers {
    /// Whether there is a connection to it. Without one nothing is under way, and nothing comes of it.
    connected: bool,
    mean: Duration,
    /// Appends under way, and since when there have been some without an answer to any.
    under_way: u32,
    since: Option<Instant>,
}

impl Answers {
    /// What is known of it at this moment: who does not answer is as slow as that already.
    fn slowness(&self, now: Instant) -> Duration {
        self.mean.max(self.waits(now))
    }

    fn waits(&self, now: Instant) -> Duration {
        match self.connected {
            true => self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
            false => Duration::MAX,
        }
    }
}

#[derive(Default)]
struct State {
    /// The followers that vote, if there is one group of voters.
    followers: BTreeSet<u64>,
    /// Those that make a majority with this master.
    first: BTreeSet<u64>,
    answers: BTreeMap<u64, Answers>,
}

/// A leader's knowledge of its followers.
#[derive(Default)]
pub struct Spares {
    state: Mutex<State>,
    /// Its own disk.
    own: Arc<Hung>,
}

impl Spares {
    /// For a master whose log is on this disk.
    pub fn new(own: Arc<Hung>) -> Spares {
        Spares { state: Mutex::default(), own }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("never poisoned")
    }

    /// Who votes now. While voters change there are two groups, and nobody is spare.
    pub fn voters(&self, own: u64, groups: &[BTreeSet<u64>]) {
        let mut state = self.state();
        let followers = match groups {
            [group] if group.contains(&own) => group.iter().copied().filter(|id| *id != own).collect(),
            _ => BTreeSet::new(),
        };
        if state.followers != followers {
            let majority = followers.len().div_ceil(2);
            state.first = followers.iter().copied().take(majority).collect();
            state.followers = followers;
        }
    }

    /// A connection to a follower begins: what was under way on the last one is not waited for.
    pub fn begins(&self, to: u64) {
        let mut state = self.state();
        let answers = state.answers.entry(to).or_default();
        (answers.connected, answers.under_way, answers.since) = (true, 0, None);
    }

    /// There is none to it any more, or not yet.
    pub fn ends(&self, to: u64) {
        self.state().answers.entry(to).or_default().connected = false;
    }

    /// The follower that answers fastest, and how fast.
    pub fn fastest(&self, now: Instant) -> Option<(u64, Duration)> {
        let state = self.state();
        let of = |id: &u64| state.answers.get(id).copied().unwrap_or_default().slowness(now);
        state.followers.iter().map(|id| (*id, of(id))).min_by_key(|(_, slowness)| *slowness)
    }

    /// Entries were sent to a follower.
    pub fn sent(&self, to: u64, now: Instant) {
        let mut state = self.state();
        let answers = state.answers.entry(to).or_default();
        answers.under_way += 1;
        answers.since.get_or_insert(now);
    }

    /// It answered after so long, or will not.
    pub fn answered(&self, by: u64, after: Duration, now: Instant) {
        let mut state = self.state();
        let answers = state.answers.entry(by).or_default();
        answers.under_way = answers.under_way.saturating_sub(1);
        answers.since = (answers.under_way > 0).then_some(now);
        answers.mean = answers.mean - answers.mean / FOLLOWS + after / FOLLOWS;
    }

    /// Whether what is for this follower may be held.
    pub fn is_spare(&self, follower: u64, now: Instant) -> bool {
        let mut state = self.state();
        if !state.followers.contains(&follower) || state.first.contains(&follower) {
            return false;
        }
        let of = |id: &u64| state.answers.get(id).copied().unwrap_or_default();
        let slowest = state.first.iter().copied().max_by_key(|id| of(id).slowness(now));
        let slowest = slowest.expect("who has a spare follower has others");
        let (needed, spare) = (of(&slowest).slowness(now), of(&follower));
        // Of whom nothing is known yet may be the slowest of all.
        if spare.mean > Duration::ZERO && needed > spare.slowness(now).saturating_mul(FASTER) {
            state.first.remove(&slowest);
            state.first.insert(follower);
            return false;
        }
        of(&slowest).waits(now) < HOLD && self.own.stands_for() < HOLD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn group(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    /// These vote, and the first of them, which leads, has connections to the others.
    fn vote(spares: &Spares, ids: &[u64]) {
        spares.voters(ids[0], &[group(ids)]);
        ids[1..].iter().for_each(|id| spares.begins(*id));
    }

    fn answers(spares: &Spares, by: u64, after: Duration, now: Instant) {
        for _ in 0..64 {
            spares.sent(by, now);
            spares.answered(by, after, now);
        }
    }

    #[test]
    fn of_two_followers_the_faster_is_enough_and_of_four_the_two_fastest() {
        let (spares, now) = (Spares::default(), Instant::now());
        assert!(!spares.is_spare(2, now), "nobody is known");
        vote(&spares, &[1, 2, 3]);
        assert!(!spares.is_spare(2, now) && spares.is_spare(3, now));
        answers(&spares, 2, MS, now);
        answers(&spares, 3, MS * 3 / 4, now);
        assert!(spares.is_spare(3, now), "it is not much faster");
        answers(&spares, 3, MS / 4, now);
        assert!(!spares.is_spare(3, now) && spares.is_spare(2, now), "it is");
        vote(&spares, &[1, 2, 3, 4, 5]);
        let held = [2, 3, 4, 5].into_iter().filter(|id| spares.is_spare(*id, now)).count();
        assert_eq!(held, 2);
        answers(&spares, 4, MS, now);
        answers(&spares, 5, 9 * MS, now);
        [2, 3, 4, 5].iter().for_each(|id| _ = spares.is_spare(*id, now));
        assert!(spares.is_spare(5, now), "the slowest");
    }

    #[test]
    fn nobody_is_spare_while_one_that_is_needed_is_late_and_then_another_takes_its_place() {
        let (spares, began) = (Spares::default(), Instant::now());
        vote(&spares, &[1, 2, 3]);
        answers(&spares, 2, MS, began);
        answers(&spares, 3, 9 * MS, began);
        spares.sent(2, began);
        assert!(spares.is_spare(3, began + MS));
        assert!(!spares.is_spare(3, began + HOLD), "the other is late");
        spares.answered(2, HOLD, began + HOLD);
        assert!(spares.is_spare(3, began + HOLD), "it was only late");
        spares.sent(2, began + HOLD);
        assert!(!spares.is_spare(3, began + HOLD + 30 * MS));
        spares.answered(2, 60 * MS, began + HOLD + 60 * MS);
        assert!(spares.is_spare(2, began + HOLD + 60 * MS), "it has lost its place");
    }

    #[test]
    fn nobody_is_spare_while_there_is_no_connection_to_one_that_is_needed() {
        let (spares, now) = (Spares::default(), Instant::now());
        spares.voters(1, &[group(&[1, 2, 3])]);
        spares.begins(3);
        assert!(!spares.is_spare(3, now), "there is none to the other");
        assert_eq!(spares.fastest(now), Some((3, Duration::ZERO)));
        answers(&spares, 3, MS, now);
        assert!(!spares.is_spare(3, now));
        spares.begins(2);
        assert!(spares.is_spare(2, now), "it has lost its place");
        answers(&spares, 2, MS, now);
        spares.ends(3);
        assert!(!spares.is_spare(2, now));
        assert_eq!(spares.fastest(now).map(|(id, _)| id), Some(2));
    }

    #[test]
    fn nobody_is_spare_while_the_leaders_own_write_is_late() {
        let own = Arc::new(Hung::default());
        let (spares, now) = (Spares::new(own.clone()), Instant::now());
        vote(&spares, &[1, 2, 3]);
        assert!(spares.is_spare(3, now));
        own.during(|| {
            std::thread::sleep(HOLD);
            assert!(!spares.is_spare(3, now));
        });
        assert!(spares.is_spare(3, now));
    }

    #[test]
    fn what_was_under_way_when_a_connection_ended_makes_nobody_late() {
        let (spares, now) = (Spares::default(), Instant::now());
        vote(&spares, &[1, 2, 3]);
        spares.sent(2, now);
        spares.begins(2);
        answers(&spares, 2, MS, now);
        assert!(spares.is_spare(3, now + 60 * MS), "nothing is under way");
    }

    #[test]
    fn nobody_is_spare_while_voters_change_or_where_all_are_needed() {
        let (spares, now) = (Spares::default(), Instant::now());
        vote(&spares, &[1, 2, 3, 4]);
        let none = |groups: &[BTreeSet<u64>]| {
            spares.voters(1, groups);
            (1..6).all(|id| !spares.is_spare(id, now))
        };
        assert!(none(&[group(&[1, 2])]) && none(&[group(&[1])]) && none(&[]));
        assert!(none(&[group(&[1, 2, 3]), group(&[1, 2, 4])]));
        assert!(none(&[group(&[2, 3, 4])]), "it leaves");
        assert!(!none(&[group(&[1, 2, 3])]));
    }
}
