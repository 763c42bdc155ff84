//! Zero-fills segments of extents ahead of need, step by step: fast enough that no write waits for
//! room, and else so slowly that nobody feels it. A segment in one go costs whoever flushes its log
//! meanwhile tens of milliseconds.

use common::{Span, Time};

/// Bytes of a step.
const STEP_BYTES: u64 = 4 * 1024 * 1024;
/// Without a write for so long a store is quiet, in milliseconds.
const QUIET_MS: u64 = 500;
/// While there are writes, so many times as long as a step took passes until the next one ...
const PAUSE: u64 = 7;
/// ... as long as more of the segment is done than of what was free is used up, so many times more, in
/// percent: all of it must be done before the last free byte is used.
const AHEAD_PERCENT: u64 = 200;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// This part of a new segment.
    Step {
        /// Its first byte.
        offset: u64,
        /// Its bytes.
        len: u64,
    },
    /// Look again at this time.
    At(Time),
    /// Nothing, for now.
    Nothing,
}

/// The segment that is being made, if one is.
#[derive(Clone, Debug, Default)]
pub struct Fill {
    /// Bytes of it that are done.
    done: Option<u64>,
    /// Bytes that were free when it was begun.
    free: u64,
    began: Time,
    next: Time,
    under_way: bool,
    busy_until: Time,
}

impl Fill {
    /// There is a write.
    pub fn busy(&mut self, now: Time) {
        self.busy_until = now + Span::from_ms(QUIET_MS);
    }

    /// What to do with so many bytes free, if so many shall be; a segment has so many.
    pub fn next(&mut self, now: Time, free: u64, ahead: u64, segment: u64) -> Next {
        let done = match self.done {
            _ if self.under_way => return Next::Nothing,
            Some(_) if now < self.next => return Next::At(self.next),
            Some(done) => done,
            None if free >= ahead => return Next::Nothing,
            None if free >= segment / 2 && now < self.busy_until => return Next::At(self.busy_until),
            None => {
                self.free = free;
                0
            }
        };
        (self.done, self.began, self.under_way) = (Some(done), now, true);
        Next::Step { offset: done, len: STEP_BYTES.min(segment - done) }
    }

    /// A step is done: whether the segment is.
    pub fn stepped(&mut self, now: Time, free: u64, segment: u64) -> bool {
        let done = self.done.expect("a step was under way") + STEP_BYTES;
        self.under_way = false;
        self.done = Some(done).filter(|done| *done < segment);
        let used = self.free.saturating_sub(free);
        let in_time = done * 100 / segment * self.free >= used * AHEAD_PERCENT && free > 0;
        let pause = if now < self.busy_until && in_time { now.since(self.began).0 * PAUSE } else { 0 };
        self.next = now + Span(pause);
        self.done.is_none()
    }

    /// A step has failed.
    pub fn give_up(&mut self) {
        (self.done, self.under_way) = (None, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const MS: u64 = 1_000_000;
    const SEGMENT: u64 = 16 * MIB;

    /// Fills a segment while so many bytes are used up in a step's time, of so many that are free: how
    /// long it takes, in steps of 1 ms.
    fn fill(busy: bool, mut free: u64, used: u64) -> u64 {
        let (mut fill, mut now) = (Fill::default(), Time(0));
        loop {
            if busy {
                fill.busy(now);
            }
            match fill.next(now, free, 2 * SEGMENT, SEGMENT) {
                Next::Step { offset, len } => {
                    assert_eq!((offset % STEP_BYTES, len), (0, STEP_BYTES));
                    assert_eq!(fill.next(now, free, 2 * SEGMENT, SEGMENT), Next::Nothing, "one at a time");
                    now = Time(now.0 + MS);
                    free = free.saturating_sub(used);
                    if fill.stepped(now, free, SEGMENT) {
                        return now.0 / MS;
                    }
                }
                Next::At(at) => {
                    free = free.saturating_sub(used * (at.0 - now.0) / MS);
                    now = at;
                }
                Next::Nothing => panic!("it ends"),
            }
        }
    }

    #[test]
    fn the_faster_it_is_used_up_the_faster_it_goes() {
        assert_eq!(fill(false, SEGMENT, 0), 4, "nobody is there");
        assert_eq!(fill(true, 0, 0), 4, "writers wait");
        assert_eq!(fill(true, SEGMENT / 2 - 1, 0), 4 + 3 * 7);
        let half = SEGMENT / 2 - 1;
        for (used, least, most) in [(half / 64, 25, 25), (half / 16, 11, 16), (half / 4, 4, 5)] {
            let took = fill(true, half, used);
            assert!((least..=most).contains(&took), "{took} ms, {used} bytes a ms");
        }
    }

    #[test]
    fn while_enough_is_free_writers_are_left_alone() {
        let mut fill = Fill::default();
        fill.busy(Time(0));
        let quiet = Time(QUIET_MS * MS);
        assert_eq!(fill.next(Time(1), SEGMENT, 2 * SEGMENT, SEGMENT), Next::At(quiet));
        assert_eq!(fill.next(quiet, 2 * SEGMENT, 2 * SEGMENT, SEGMENT), Next::Nothing);
        assert_eq!(
            fill.next(quiet, SEGMENT, 2 * SEGMENT, SEGMENT),
            Next::Step { offset: 0, len: STEP_BYTES }
        );
        fill.give_up();
        assert_eq!(
            fill.next(quiet, SEGMENT, 2 * SEGMENT, SEGMENT),
            Next::Step { offset: 0, len: STEP_BYTES }
        );
    }
}
