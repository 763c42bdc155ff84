//! Free blocks of the extents' segments. In memory only: rebuilt from the index at start.

use super::format::{PAGE_CRCS, PAGE_PAIR_BYTES};
use common::limits::{BLOCK_BYTES, PIECE_BYTES_MAX, WRITE_BYTES_MAX};
use std::collections::{BTreeMap, BTreeSet};

/// Runs of so many blocks and more have room for any write.
const ROOMY_BLOCKS: u32 = (WRITE_BYTES_MAX / BLOCK_BYTES) as u32;
/// Runs of fewer have none for a whole piece of one.
const PIECE_BLOCKS: u32 = (PIECE_BYTES_MAX / BLOCK_BYTES) as u32;

/// Short runs are used up first while they are more than one of so many parts of all blocks. With fewer of them what is
/// written together lies together.
const SCATTERED_PARTS: u64 = 8;
/// Runs that are looked at for a short write before it gets a part of a roomy one.
const LOOKS_MAX: u32 = 64;

/// A run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blocks {
    /// The segment.
    pub segment: u32,
    /// First block.
    pub block: u32,
    /// How many.
    pub count: u32,
}

/// Free blocks, segment by segment.
#[derive(Clone, Debug)]
pub struct Alloc {
    segment_bytes: u64,
    /// Free runs of each segment: first block -> count.
    free: Vec<BTreeMap<u32, u32>>,
    /// Segments in which nothing lies.
    empty: BTreeSet<u32>,
    /// Those that have given their room back to the host.
    hollow: BTreeSet<u32>,
    free_blocks: u64,
    /// Those in roomy runs.
    roomy_blocks: u64,
    /// Those in runs that are too short for a piece.
    short_blocks: u64,
    /// Where the last allocation ended: the next goes on from there.
    rover: (u32, u32),
    /// And where the next short run is looked for.
    short_rover: (u32, u32),
    /// Blocks that several extents refer to, and how many more than one.
    shared: BTreeMap<(u32, u32), u32>,
}

impl Alloc {
    /// No segments yet.
    pub fn new(segment_bytes: u64) -> Alloc {
        let (free_blocks, roomy_blocks, short_blocks) = (0, 0, 0);
        let (rover, short_rover) = ((0, 0), (0, 0));
        let shared = BTreeMap::new();
        Alloc {
            segment_bytes,
            free: vec![],
            empty: BTreeSet::new(),
            hollow: BTreeSet::new(),
            free_blocks,
            roomy_blocks,
            short_blocks,
            rover,
            short_rover,
            shared,
        }
    }

    /// Blocks at the head of a segment that hold its checksum table.
    pub fn head_blocks(&self) -> u32 {
        let pages = (self.segment_bytes / BLOCK_BYTES as u64).div_ceil(PAGE_CRCS as u64);
        (pages * PAGE_PAIR_BYTES / BLOCK_BYTES as u64) as u32
    }

    /// Blocks of a segment that are for data.
    fn data_blocks(&self) -> u32 {
        (self.segment_bytes / BLOCK_BYTES as u64) as u32 - self.head_blocks()
    }

    /// The segment that is to take room next: one that gave it back, or a new one.
    pub fn next_segment(&self) -> u32 {
        self.hollow.first().copied().unwrap_or(self.segments())
    }

    /// It has taken room, and is all free.
    pub fn add_segment(&mut self, segment: u32) {
        if !self.hollow.remove(&segment) {
            assert_eq!(segment, self.segments(), "one after another");
            self.free.push(BTreeMap::new());
        }
        self.insert(segment, self.head_blocks(), self.data_blocks());
    }

    /// Whether nothing lies in a segment that has room.
    pub fn is_empty(&self, segment: u32) -> bool {
        self.empty.contains(&segment)
    }

    /// The last segment in which nothing lies.
    pub fn last_empty(&self) -> Option<u32> {
        self.empty.last().copied()
    }

    /// A segment in which nothing lies has no room any more.
    pub fn hollow_out(&mut self, segment: u32) {
        assert!(self.is_empty(segment), "something lies in segment {segment}");
        self.remove(segment, self.head_blocks());
        self.hollow.insert(segment);
    }

    /// How many segments there are: one more than the highest number.
    pub fn segments(&self) -> u32 {
        self.free.len() as u32
    }

    /// How many of them have room.
    pub fn present(&self) -> u32 {
        self.segments() - self.hollow.len() as u32
    }

    /// Bytes that are free in the present segments.
    pub fn free_bytes(&self) -> u64 {
        self.free_blocks * BLOCK_BYTES as u64
    }

    /// Those of them that any write can have: the rest lies in runs that may be too short, as at the end of each segment.
    pub fn roomy_bytes(&self) -> u64 {
        self.roomy_blocks * BLOCK_BYTES as u64
    }

    /// A run is free from now on.
    fn insert(&mut self, segment: u32, block: u32, count: u32) {
        self.free[segment as usize].insert(block, count);
        self.count(count, 1);
        if count == self.data_blocks() {
            self.empty.insert(segment);
        }
    }

    /// A run is not free any more: how long it was.
    fn remove(&mut self, segment: u32, block: u32) -> Option<u32> {
        let count = self.free[segment as usize].remove(&block)?;
        self.count(count, -1);
        if count == self.data_blocks() {
            self.empty.remove(&segment);
        }
        Some(count)
    }

    fn count(&mut self, count: u32, sign: i64) {
        let add = |blocks: &mut u64| {
            let sum = blocks.checked_add_signed(sign * i64::from(count));
            *blocks = sum.expect("what is free was counted");
        };
        add(&mut self.free_blocks);
        if count >= ROOMY_BLOCKS {
            add(&mut self.roomy_blocks);
        }
        if count < PIECE_BLOCKS {
            add(&mut self.short_blocks);
        }
    }

    /// Bytes in use by data.
    pub fn used_bytes(&self) -> u64 {
        let head = self.head_blocks() as u64 * BLOCK_BYTES as u64;
        self.present() as u64 * (self.segment_bytes - head) - self.free_bytes()
    }

    /// Takes `count` blocks that lie together: next to the last ones taken if it can be, or in a short run if there are many,
    /// or there shall be no more segments.
    pub fn take(&mut self, count: u32, is_last: bool) -> Option<Blocks> {
        let (short, there_are) = match is_last {
            // What a piece fits into is for pieces.
            true => (PIECE_BLOCKS, self.short_blocks >= u64::from(count)),
            false => (ROOMY_BLOCKS, self.is_scattered()),
        };
        if count < short
            && there_are
            && let Some(at) = self.take_short(count, short)
        {
            return Some(at);
        }
        let n = self.free.len() as u32;
        let (segment, block) = self.rover;
        for step in 0..=n {
            let seg = if n == 0 {
                return None;
            } else {
                (segment + step) % n
            };
            let from = if step == 0 { block } else { 0 };
            let fits = self.free[seg as usize].range(from..).find(|(_, c)| **c >= count);
            if let Some(first) = fits.map(|(b, _)| *b) {
                return Some(self.carve(seg, first, count));
            }
        }
        None
    }

    /// Takes just these blocks; false if some are taken already.
    pub fn take_exactly(&mut self, at: Blocks) -> bool {
        let Some(free) = self.free.get(at.segment as usize) else {
            return false;
        };
        let Some((first, len)) = free.range(..=at.block).next_back().map(|(b, c)| (*b, *c)) else {
            return false;
        };
        if first + len < at.block + at.count {
            return false;
        }
        self.remove(at.segment, first);
        if at.block > first {
            self.insert(at.segment, first, at.block - first);
        }
        let end = at.block + at.count;
        if first + len > end {
            self.insert(at.segment, end, first + len - end);
        }
        true
    }

    fn carve(&mut self, segment: u32, block: u32, count: u32) -> Blocks {
        let at = Blocks { segment, block, count };
        assert!(self.take_exactly(at), "a free run was found there");
        self.rover = (segment, block + count);
        at
    }

    fn is_scattered(&self) -> bool {
        let all = self.present() as u64 * (self.segment_bytes / BLOCK_BYTES as u64);
        (self.free_blocks - self.roomy_blocks) * SCATTERED_PARTS > all
    }

    /// In a run that is shorter than so many. Goes on where it ended the last time, and not far: there may be millions of runs
    /// that are too short.
    fn take_short(&mut self, count: u32, short: u32) -> Option<Blocks> {
        let (mut segment, mut from) = self.short_rover;
        let mut found = None;
        let mut left = LOOKS_MAX;
        while left > 0 && found.is_none() {
            left -= 1;
            match self.free[segment as usize].range(from..).next().map(|(b, c)| (*b, *c)) {
                Some((block, len)) => {
                    from = block + len;
                    if (count..short).contains(&len) {
                        found = Some(Blocks { segment, block, count });
                        // The rest of it is next.
                        from = block + count;
                    }
                }
                None => (segment, from) = ((segment + 1) % self.segments(), 0),
            }
        }
        self.short_rover = (segment, from);
        let at = found?;
        assert!(self.take_exactly(at), "a free run was found there");
        Some(at)
    }

    /// Takes what is free of these blocks.
    pub fn take_rest(&mut self, at: Blocks) -> Vec<Blocks> {
        let Some(free) = self.free.get(at.segment as usize) else { return vec![] };
        let end = at.block + at.count;
        let before = free.range(..=at.block).next_back();
        let runs = before.into_iter().chain(free.range(at.block + 1..end));
        let parts = runs.map(|(block, count)| (at.block.max(*block), end.min(block + count)));
        let rest: Vec<Blocks> = parts
            .filter(|(from, to)| from < to)
            .map(|(block, to)| Blocks { segment: at.segment, block, count: to - block })
            .collect();
        for blocks in &rest {
            assert!(self.take_exactly(*blocks), "it is free");
        }
        rest
    }

    /// How many extents refer to this block, which is in use.
    pub fn references(&self, segment: u32, block: u32) -> u32 {
        self.shared.get(&(segment, block)).map_or(1, |more| more + 1)
    }

    /// One more extent refers to this block.
    pub fn share(&mut self, segment: u32, block: u32) {
        *self.shared.entry((segment, block)).or_insert(0) += 1;
    }

    /// Gives blocks back; shared ones lose one reference.
    pub fn give(&mut self, at: Blocks) {
        let mut from = at.block;
        let end = at.block + at.count;
        for block in at.block..end {
            if self.shared.is_empty() {
                break;
            }
            if let Some(more) = self.shared.get_mut(&(at.segment, block)) {
                *more -= 1;
                if *more == 0 {
                    self.shared.remove(&(at.segment, block));
                }
                self.give_run(at.segment, from, block);
                from = block + 1;
            }
        }
        self.give_run(at.segment, from, end);
    }

    /// The blocks from the first up to the second are free from now on.
    fn give_run(&mut self, segment: u32, mut from: u32, mut end: u32) {
        if from == end {
            return;
        }
        let free = &self.free[segment as usize];
        let before = free.range(..end).next_back().map(|(b, c)| (*b, b + c));
        assert!(before.is_none_or(|(_, e)| e <= from), "blocks {segment}:{from}-{end} are free already");
        if let Some((b, _)) = before.filter(|(_, e)| *e == from) {
            self.remove(segment, b);
            from = b;
        }
        if let Some(after) = self.remove(segment, end) {
            end += after;
        }
        self.insert(segment, from, end - from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alloc() -> Alloc {
        let mut alloc = Alloc::new(4 * 1024 * 1024);
        alloc.add_segment(0);
        alloc
    }

    #[test]
    fn what_is_given_back_is_taken_again() {
        let mut alloc = alloc();
        let all = alloc.free_bytes();
        let a = alloc.take(10, false).unwrap();
        let b = alloc.take(5, false).unwrap();
        assert_eq!(b.block, a.block + 10, "allocations follow one another");
        alloc.give(a);
        alloc.give(b);
        assert_eq!(alloc.free_bytes(), all);
        assert_eq!(alloc.used_bytes(), 0);
        assert!(alloc.take((all / 4096) as u32, false).is_some());
        assert_eq!(alloc.take(1, false), None);
    }

    proptest::proptest! {
        /// As long as there are roomy bytes any write finds its room.
        #[test]
        fn what_is_counted_is_there(ops in proptest::collection::vec((0u32..300, 1u32..300), 1..200)) {
            let mut alloc = alloc();
            let mut held = vec![];
            for (which, count) in ops {
                match held.len() > which as usize && which % 3 == 0 {
                    true => alloc.give(held.swap_remove(which as usize)),
                    false => held.extend(alloc.take(count.min(ROOMY_BLOCKS), which % 2 == 0)),
                }
                let runs = || alloc.free.iter().flat_map(|runs| runs.values());
                let sum = |least: u32| runs().filter(|c| **c >= least).map(|c| u64::from(*c)).sum::<u64>();
                assert_eq!((alloc.free_blocks, alloc.roomy_blocks), (sum(1), sum(ROOMY_BLOCKS)));
                assert_eq!(alloc.short_blocks, sum(1) - sum(PIECE_BLOCKS));
                assert!(alloc.roomy_bytes() == 0 || alloc.clone().take(ROOMY_BLOCKS, which % 2 == 0).is_some());
            }
        }
    }

    #[test]
    fn what_nothing_lies_in_gives_its_room_back() {
        let mut alloc = alloc();
        alloc.add_segment(1);
        let (all, a) = (alloc.free_bytes(), alloc.take(10, false).unwrap());
        assert_eq!((alloc.next_segment(), alloc.last_empty()), (2, Some(1)));
        alloc.hollow_out(1);
        assert_eq!((alloc.next_segment(), alloc.last_empty(), alloc.present()), (1, None, 1));
        assert_eq!((alloc.used_bytes(), alloc.free_bytes()), (10 * 4096, all / 2 - 10 * 4096));
        assert_eq!(alloc.take((all / 2 / 4096) as u32, false), None);
        alloc.add_segment(1);
        alloc.give(a);
        assert_eq!((alloc.free_bytes(), alloc.segments(), alloc.last_empty()), (all, 2, Some(1)));
    }

    #[test]
    fn a_shared_block_is_free_after_the_last_reference() {
        let mut alloc = alloc();
        let all = alloc.free_bytes();
        let a = alloc.take(1, false).unwrap();
        alloc.share(a.segment, a.block);
        alloc.give(a);
        assert!(alloc.free_bytes() < all);
        alloc.give(a);
        assert_eq!(alloc.free_bytes(), all);
    }

    #[test]
    #[should_panic(expected = "free already")]
    fn a_double_free_is_a_bug() {
        let mut alloc = alloc();
        let a = alloc.take(1, false).unwrap();
        alloc.give(a);
        alloc.give(a);
    }
}
