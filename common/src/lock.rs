//! Ranges of a file that are locked, as POSIX has them: what one holds never overlaps itself, and what is held
//! later replaces what was held before (IEEE Std 1003.1, `fcntl`).

use crate::FileId;
use bincode::{Decode, Encode};

/// What locks are taken of. Those of `flock` and those of `fcntl` know nothing of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Lockable {
    /// The file.
    pub file: FileId,
    /// Of `flock`, which always locks all of it.
    pub flock: bool,
}

/// A range of bytes of a file, and how it is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LockRange {
    /// The first byte.
    pub first: u64,
    /// The last byte; `u64::MAX`: to the end, however long the file becomes.
    pub last: u64,
    /// Against everybody; else only against those that want it exclusively.
    pub exclusive: bool,
}

impl LockRange {
    /// The whole file, against everybody.
    pub const ALL: LockRange = LockRange { first: 0, last: u64::MAX, exclusive: true };

    /// Whether the two have a byte in common.
    pub fn overlaps(&self, other: &LockRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Whether two that are not the same cannot hold these at a time.
    pub fn conflicts(&self, other: &LockRange) -> bool {
        self.overlaps(other) && (self.exclusive || other.exclusive)
    }

    /// The part of it within another.
    fn within(&self, other: &LockRange) -> Option<LockRange> {
        let part = LockRange { first: self.first.max(other.first), last: self.last.min(other.last), ..*self };
        self.overlaps(other).then_some(part)
    }
}

/// Ranges that one holds: in order, none overlapping another, none that could be one with its neighbour.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct LockRanges(Vec<LockRange>);

impl LockRanges {
    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = &LockRange> {
        self.0.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether these are what the methods here make; what comes from outside may not be.
    pub fn is_sound(&self) -> bool {
        let follows = |a: &LockRange, b: &LockRange| match a.exclusive == b.exclusive {
            true => a.last < b.first && a.last + 1 < b.first,
            false => a.last < b.first,
        };
        self.0.iter().all(|s| s.first <= s.last) && self.0.windows(2).all(|w| follows(&w[0], &w[1]))
    }

    /// Holds a range, in place of what was held of it.
    pub fn hold(&mut self, range: LockRange) {
        self.let_go(range.first, range.last);
        let at = self.0.partition_point(|s| s.first < range.first);
        self.0.insert(at, range);
        self.merge();
    }

    /// Holds nothing of a range any more.
    pub fn let_go(&mut self, first: u64, last: u64) {
        let mut left = Vec::with_capacity(self.0.len() + 1);
        for range in &self.0 {
            if range.last < first || range.first > last {
                left.push(*range);
                continue;
            }
            if range.first < first {
                left.push(LockRange { last: first - 1, ..*range });
            }
            if range.last > last {
                left.push(LockRange { first: last + 1, ..*range });
            }
        }
        self.0 = left;
    }

    /// Holds a range at least so.
    pub fn add(&mut self, range: LockRange) {
        let exclusive: Vec<LockRange> =
            self.0.iter().filter(|s| s.exclusive).filter_map(|s| s.within(&range)).collect();
        self.hold(range);
        for range in exclusive {
            self.hold(range);
        }
    }

    /// The first that another cannot hold `range` beside.
    pub fn conflict(&self, range: &LockRange) -> Option<LockRange> {
        self.0.iter().find(|s| s.conflicts(range)).copied()
    }

    /// Whether all of a range is held, and so.
    pub fn covers(&self, range: &LockRange) -> bool {
        let mut next = Some(range.first);
        for held in self.0.iter().filter(|s| s.exclusive || !range.exclusive) {
            if let Some(at) = next.filter(|at| (held.first..=held.last).contains(at)) {
                // Beyond the last byte there is none.
                next = held.last.checked_add(1).filter(|next| *next > at);
            }
            if next.is_none_or(|next| next > range.last) {
                return true;
            }
        }
        false
    }

    /// Whether all that is held in `other` is held here, and so.
    pub fn cover(&self, other: &LockRanges) -> bool {
        other.iter().all(|range| self.covers(range))
    }

    fn merge(&mut self) {
        self.0.dedup_by(|next, range| {
            let is_one = range.exclusive == next.exclusive && range.last.checked_add(1) == Some(next.first);
            if is_one {
                range.last = next.last;
            }
            is_one
        });
    }
}

impl FromIterator<LockRange> for LockRanges {
    fn from_iter<I: IntoIterator<Item = LockRange>>(all: I) -> LockRanges {
        let mut ranges = LockRanges::default();
        all.into_iter().for_each(|range| ranges.add(range));
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The last bytes that there can be are among them.
    const BASES: [u64; 2] = [0, u64::MAX - 11];

    /// The same, byte by byte.
    type Bytes = [Option<bool>; 12];

    fn bytes(ranges: &LockRanges, base: u64) -> Bytes {
        std::array::from_fn(|n| {
            let at = base + n as u64;
            ranges.iter().find(|s| s.first <= at && at <= s.last).map(|s| s.exclusive)
        })
    }

    proptest! {
        #[test]
        fn what_is_held_is_what_was_asked_byte_by_byte(
            base in prop::sample::select(&BASES[..]),
            steps in prop::collection::vec((0..3u8, 0..12u64, 0..12u64, any::<bool>()), 0..40),
            (a, b, exclusive) in (0..12u64, 0..12u64, any::<bool>()),
        ) {
            let (mut ranges, mut model): (LockRanges, Bytes) = (LockRanges::default(), [None; 12]);
            for (what, a, b, exclusive) in steps {
                let (from, to) = (a.min(b), a.max(b));
                let range = LockRange { first: base + from, last: base + to, exclusive };
                match what {
                    0 => ranges.hold(range),
                    1 => ranges.add(range),
                    _ => ranges.let_go(range.first, range.last),
                }
                for at in &mut model[from as usize..=to as usize] {
                    *at = match what {
                        0 => Some(exclusive),
                        1 => Some(exclusive || *at == Some(true)),
                        _ => None,
                    };
                }
                prop_assert!(ranges.is_sound(), "{:?}", ranges);
                prop_assert_eq!(bytes(&ranges, base), model);
            }
            let (from, to) = (a.min(b), a.max(b));
            let range = LockRange { first: base + from, last: base + to, exclusive };
            let part = &model[from as usize..=to as usize];
            let enough = |at: &Option<bool>| at.is_some_and(|held| held || !exclusive);
            prop_assert_eq!(ranges.covers(&range), part.iter().all(enough));
            let in_the_way = |at: &Option<bool>| at.is_some_and(|held| held || exclusive);
            prop_assert_eq!(ranges.conflict(&range).is_some(), part.iter().any(in_the_way));
        }
    }

    #[test]
    fn what_no_method_makes_is_not_sound() {
        let range = |first, last, exclusive| LockRange { first, last, exclusive };
        for bad in [
            vec![range(3, 2, true)],
            vec![range(0, 5, true), range(5, 6, false)],
            vec![range(0, 5, true), range(6, 7, true)],
            vec![range(8, 9, true), range(0, 1, true)],
        ] {
            assert!(!LockRanges(bad.clone()).is_sound(), "{bad:?}");
        }
        assert!(LockRanges(vec![range(0, 5, true), range(6, u64::MAX, false)]).is_sound());
    }
}
