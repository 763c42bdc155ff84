//! Who is sick, the accuser or the accused? What a leader makes of the complaints of primaries
//! (`docs/decisions/0009`). Not part of the replicated state: each leader counts anew, by its own
//! clock, which is the caller's.

use common::limits::MIN_REPLICAS;
use common::{Span, StoreId, Time};
use std::collections::BTreeMap;

/// A complaint about a live store that goes on for so long is believed.
const BELIEVED: Span = Span::from_ms(2000);
/// One that goes on complaining of two live stores of which nobody else complains is the sick one.
/// So long, too, is the way to the removal of one that was judged to be sick already.
const SICK: Span = Span::from_ms(1000);
/// A complaint that is not heard again for so long has ended. Primaries complain every 100 ms, of
/// several members in turn; of rot twice a second.
const PAUSE: Span = Span::from_ms(1500);
/// A store that was judged to be sick is doubted for so long; each time again, before it was well for
/// as long as it was doubted last, for twice as long, up to so many times.
const DOUBT: Span = Span::from_ms(10_000);
const DOUBLINGS_MAX: u32 = 6;

/// How a store stands with the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// In session, and heard of just now.
    Live,
    /// Not heard of, or without a session.
    Gone,
    /// Without a session, and probably on its way back.
    Expected,
}

/// What a primary complains of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// Members do not answer.
    Silent,
    /// A member answers so slowly that writers wait for it.
    Slow,
}

/// What is to be done about a complaint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Members that leave the chunk. None: the accuser shall ask again.
    pub remove: Vec<StoreId>,
    /// Stores that are doubted from now on.
    pub doubt: Vec<StoreId>,
}

/// What primaries complain of.
#[derive(Clone, Debug, Default)]
pub struct Suspicion {
    /// When a primary began to complain of a store, and when it did so last; of itself, if its copy
    /// has rotted.
    complaints: BTreeMap<(StoreId, StoreId), (Time, Time)>,
    doubted: BTreeMap<StoreId, Doubt>,
}

/// A store that was judged to be sick.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    /// When that was last.
    at: Time,
    /// How often the time was doubled.
    doublings: u32,
}

impl Doubt {
    fn length(&self) -> Span {
        Span(DOUBT.0 << self.doublings)
    }
}

impl Suspicion {
    /// A store complains of another, or of itself. Gives for how long it has, without a pause.
    pub fn complained_for(&mut self, now: Time, accuser: StoreId, accused: StoreId) -> Span {
        self.complaints.retain(|_, (_, last)| now.since(*last) < PAUSE);
        let (since, last) = self.complaints.entry((accuser, accused)).or_insert((now, now));
        *last = now;
        now.since(*since)
    }

    /// A member's copy has rotted, it says: whether it has said so for long enough.
    pub fn rot_is_believed(&mut self, now: Time, store: StoreId) -> bool {
        self.complained_for(now, store, store) >= BELIEVED
    }

    /// A primary complains of members of a chunk.
    pub fn judge(
        &mut self,
        now: Time,
        accuser: StoreId,
        accused: &[StoreId],
        what: Complaint,
        members: &[StoreId],
        standing: impl Fn(StoreId) -> Standing,
    ) -> Verdict {
        let mut verdict = Verdict::default();
        let mut longest = Span(0);
        for member in members.iter().copied().filter(|m| accused.contains(m)) {
            longest = longest.max(self.complained_for(now, accuser, member));
            // Who is slow has been watched by its primary already.
            let soon = what == Complaint::Slow || self.doubts(now, member);
            let believed = if soon { SICK } else { BELIEVED };
            let gone = match standing(member) {
                Standing::Live => longest > believed,
                Standing::Gone => true,
                Standing::Expected => false,
            };
            verdict.remove.extend(gone.then_some(member));
        }
        let live = |id: &StoreId| standing(*id) == Standing::Live;
        let alone: Vec<StoreId> = self.accused_only_by(accuser).into_iter().filter(live).collect();
        let denied = members.iter().any(|m| alone.contains(m));
        let sick = alone.len() > 1 && longest > SICK || self.doubts(now, accuser);
        // The others must do without the accuser.
        let others = members.iter().filter(|m| **m != accuser && live(m)).count();
        if denied && sick && others >= MIN_REPLICAS {
            verdict = Verdict { remove: vec![accuser], doubt: vec![accuser] };
        } else if longest > BELIEVED || what == Complaint::Slow {
            verdict.doubt = verdict.remove.clone();
        }
        for store in &verdict.doubt {
            self.doubt(now, *store);
        }
        verdict
    }

    fn doubt(&mut self, now: Time, store: StoreId) {
        let doubt = self.doubted.entry(store).or_insert(Doubt { at: now, doublings: 0 });
        let (since, length) = (now.since(doubt.at), doubt.length());
        if since > Span(2 * length.0) {
            doubt.doublings = 0;
        } else if since > length {
            doubt.doublings = (doubt.doublings + 1).min(DOUBLINGS_MAX);
        }
        doubt.at = now;
    }

    /// Whether a store was judged to be sick lately.
    fn doubts(&self, now: Time, store: StoreId) -> bool {
        self.doubted.get(&store).is_some_and(|doubt| now.since(doubt.at) < doubt.length())
    }

    /// Whether the doubt about a store is over. One that an older leader had is counted from now.
    pub fn doubt_is_over(&mut self, now: Time, store: StoreId) -> bool {
        let doubt = self.doubted.entry(store).or_insert(Doubt { at: now, doublings: 0 });
        now.since(doubt.at) > doubt.length()
    }

    /// The stores of which this primary, and nobody else, complains these days.
    fn accused_only_by(&self, accuser: StoreId) -> Vec<StoreId> {
        let others = || self.complaints.keys().filter(|(by, of)| by != of && *by != accuser);
        let own = self.complaints.keys().filter(|(by, of)| by != of && *by == accuser);
        own.map(|(_, of)| *of).filter(|id| !others().any(|(_, of)| of == id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: StoreId = StoreId(1);
    const B: StoreId = StoreId(2);
    const C: StoreId = StoreId(3);
    const D: StoreId = StoreId(4);

    /// Complains every 100 ms, of each of these in turn; gives when that has consequences, in
    /// milliseconds, and which.
    fn go_on(suspicion: &mut Suspicion, accused: &[StoreId], gone: &[StoreId]) -> Option<(u64, Verdict)> {
        let standing = |id| if gone.contains(&id) { Standing::Gone } else { Standing::Live };
        (0..100u64).find_map(|n| {
            let (now, of) = (Time(Span::from_ms(n * 100).0), accused[n as usize % accused.len()]);
            let verdict = suspicion.judge(now, A, &[of], Complaint::Silent, &[A, B, C], standing);
            (!verdict.remove.is_empty()).then_some((n * 100, verdict))
        })
    }

    #[test]
    fn who_is_gone_goes_at_once_and_is_not_doubted() {
        let done = go_on(&mut Suspicion::default(), &[B], &[B]);
        assert_eq!(done, Some((0, Verdict { remove: vec![B], doubt: vec![] })));
    }

    #[test]
    fn who_is_live_goes_when_the_complaint_goes_on() {
        let done = go_on(&mut Suspicion::default(), &[B], &[]);
        assert_eq!(done, Some((2100, Verdict { remove: vec![B], doubt: vec![B] })));
    }

    #[test]
    fn who_alone_complains_of_several_goes_itself() {
        let done = go_on(&mut Suspicion::default(), &[B, C], &[]);
        assert_eq!(done, Some((1200, Verdict { remove: vec![A], doubt: vec![A] })));
    }

    #[test]
    fn what_others_complain_of_too_is_not_held_against_it() {
        let mut suspicion = Suspicion::default();
        let standing = |_| Standing::Live;
        let done = (0..100u64).find_map(|n| {
            let now = Time(Span::from_ms(n * 100).0);
            suspicion.judge(now, D, &[B, C], Complaint::Silent, &[D, B, C], standing);
            let verdict = suspicion.judge(now, A, &[B, C], Complaint::Silent, &[A, B, C], standing);
            (!verdict.remove.is_empty()).then_some((n * 100, verdict.remove))
        });
        assert_eq!(done, Some((2100, vec![B, C])));
    }

    #[test]
    fn a_dead_store_and_rot_of_its_own_are_no_proof_against_an_accuser() {
        let mut suspicion = Suspicion::default();
        let standing = |id| if id == D { Standing::Gone } else { Standing::Live };
        let done = (0..100u64).find_map(|n| {
            let now = Time(Span::from_ms(n * 100).0);
            suspicion.rot_is_believed(now, A);
            suspicion.judge(now, A, &[D], Complaint::Silent, &[A, C, D], standing);
            let verdict = suspicion.judge(now, A, &[B], Complaint::Silent, &[A, B, C], standing);
            (!verdict.remove.is_empty()).then_some((n * 100, verdict.remove))
        });
        assert_eq!(done, Some((2100, vec![B])));
    }

    #[test]
    fn who_is_slow_goes_sooner_and_is_doubted_for_longer_each_time() {
        let (mut suspicion, mut now) = (Suspicion::default(), Time(0));
        let mut doubted_for = vec![];
        for _ in 0..3 {
            let began = now;
            let removed = (0..100).find(|_| {
                now = Time(now.0 + Span::from_ms(100).0);
                let slow = suspicion.judge(now, A, &[B], Complaint::Slow, &[A, B, C], |_| Standing::Live);
                slow == Verdict { remove: vec![B], doubt: vec![B] }
            });
            assert!(removed.is_some_and(|n| (9..=12).contains(&n)), "{removed:?} after {began:?}");
            let doubted = now;
            while !suspicion.doubt_is_over(now, B) {
                now = Time(now.0 + Span::from_ms(500).0);
            }
            doubted_for.push(now.since(doubted).0 / 1_000_000_000);
        }
        assert_eq!(doubted_for, [10, 20, 40]);
    }

    #[test]
    fn a_complaint_with_pauses_begins_anew() {
        let mut suspicion = Suspicion::default();
        for s in 0..30 {
            let verdict = suspicion.judge(
                Time(Span::from_ms(s * 1600).0),
                A,
                &[B],
                Complaint::Silent,
                &[A, B, C],
                |_| Standing::Live,
            );
            assert_eq!(verdict, Verdict::default());
        }
    }

    #[test]
    fn nobody_goes_if_too_few_stay_without_the_accuser() {
        let mut suspicion = Suspicion::default();
        for n in 0..15u64 {
            let now = Time(Span::from_ms(n * 100).0);
            suspicion.judge(now, A, &[C], Complaint::Silent, &[A, C, D], |_| Standing::Live);
            let verdict = suspicion.judge(now, A, &[B], Complaint::Silent, &[A, B], |_| Standing::Live);
            assert_eq!(verdict, Verdict::default());
        }
    }
}
