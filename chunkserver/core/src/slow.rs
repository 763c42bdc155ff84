//! Members that hold writers up. A primary waits for the slowest member of each chunk; while one alone
//! is waited for, that is held against it. Who is waited for half of a second, and longer each time
//! than a disk should take, is slow, and the masters are told as long as it goes on.

use crate::io::{Ask, Outbox};
use crate::node::Node;
use common::{ChunkHandle, Serial, Span, StoreId, Time};
use std::collections::BTreeMap;

/// Judged over so long, in milliseconds.
const WINDOW_MS: u64 = 1000;
/// Slow is who is waited for in this share of the window, in percent,
const SHARE_PERCENT: u64 = 50;
/// and each time for so long in the mean, in milliseconds.
const MEAN_MS: u64 = 20;
/// A complaint is repeated this often, in milliseconds, for each chunk that is written to.
const AGAIN_MS: u64 = 100;

/// How long a member was waited for alone.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    began: Time,
    /// Up to here nothing is counted twice, whatever the chunk.
    upto: Time,
    ns: u64,
    times: u64,
    slow: bool,
}

/// Of whom a store's chunks wait.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slow(BTreeMap<StoreId, Held>);

impl Slow {
    /// A member was waited for alone, from then until now. Gives whether it is slow.
    fn held(&mut self, member: StoreId, since: Time, now: Time) -> bool {
        let held = self.0.entry(member).or_insert(Held { began: since, upto: since, ..Held::default() });
        if now.since(held.upto) > Span::from_ms(WINDOW_MS) && since > held.upto {
            // Nobody waited for it lately.
            *held = Held { began: since, ..Held::default() };
        }
        held.ns += now.since(since.max(held.upto)).0;
        held.upto = held.upto.max(now);
        held.times += 1;
        let window = now.since(held.began);
        if window >= Span::from_ms(WINDOW_MS) {
            let share = held.ns * 100 / window.0;
            let mean = held.ns / held.times;
            held.slow = share >= SHARE_PERCENT && mean >= Span::from_ms(MEAN_MS).0;
            (held.began, held.ns, held.times) = (now, 0, 0);
        }
        held.slow
    }
}

/// Which member of a chunk is waited for alone, since when, and when it was complained of.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Alone {
    member: Option<(StoreId, Serial, Time)>,
    told: Time,
}

impl Node {
    /// A member has acknowledged something: who is waited for alone now?
    pub(crate) fn who_is_slow(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let now = self.now;
        let Some(lead) = self.chunks.get_mut(&handle).and_then(|c| c.lead.as_mut()) else { return };
        let mut acked = lead.acked.iter().map(|(member, serial)| (*serial, *member)).collect::<Vec<_>>();
        acked.sort_unstable();
        let behind = match acked[..] {
            [(least, member), (next, _), ..] if least < next => Some((member, least)),
            _ => None,
        };
        let before = lead.alone.member;
        if before.map(|(member, serial, _)| (member, serial)) == behind {
            return;
        }
        lead.alone.member = behind.map(|(member, serial)| (member, serial, now));
        let Some((member, _, since)) = before else { return };
        let again = now.since(lead.alone.told) >= Span::from_ms(AGAIN_MS);
        if self.slow.held(member, since, now) && again {
            let chunk = self.chunks.get_mut(&handle).expect("it is led");
            let epoch = chunk.config().epoch;
            chunk.lead.as_mut().expect("it is led").alone.told = now;
            self.ask(handle, Ask::Slow { epoch, accused: member }, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const A: StoreId = StoreId(1);

    /// Writes that wait for it for so long, at this interval, for ten seconds: when it is slow.
    fn judged(wait_ms: u64, every_ms: u64) -> Option<u64> {
        let mut slow = Slow::default();
        (1..10_000 / every_ms).map(|n| n * every_ms).find(|at| {
            let now = Time(at * MS);
            slow.held(A, Time((at - wait_ms) * MS), now)
        })
    }

    #[test]
    fn who_holds_writers_up_is_slow_after_a_second() {
        assert!(judged(200, 200).is_some_and(|ms| (1000..=1500).contains(&ms)), "{:?}", judged(200, 200));
        assert!(judged(90, 100).is_some_and(|ms| (1000..=1500).contains(&ms)));
    }

    #[test]
    fn who_is_last_now_and_then_or_by_little_is_not() {
        assert_eq!(judged(5, 5), None, "always the last, but quick");
        assert_eq!(judged(30, 100), None, "slow, but not often");
        assert_eq!(judged(500, 5000), None, "once");
    }

    #[test]
    fn what_many_chunks_wait_for_at_once_counts_once() {
        let mut slow = Slow::default();
        for n in 1..100 {
            for _chunk in 0..10 {
                assert!(
                    !slow.held(A, Time((n * 100 - 25) * MS), Time(n * 100 * MS)),
                    "a quarter of the time"
                );
            }
        }
    }
}
