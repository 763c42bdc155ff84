//! Free blocks of the extents' segments. In memory only: rebuilt from the index at start.

use super::format::{PAGE_CRCS, PAGE_PAIR_BYTES};
use common::limits::BLOCK_BYTES;
use std::collections::BTreeMap;

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
    free_blocks: u64,
    /// Where the last allocation ended: the next goes on from there.
    rover: (u32, u32),
    /// Blocks that several extents refer to, and how many more than one.
    shared: BTreeMap<(u32, u32), u32>,
}

impl Alloc {
    /// No segments yet.
    pub fn new(segment_bytes: u64) -> Alloc {
        Alloc { segment_bytes, free: vec![], free_blocks: 0, rover: (0, 0), shared: BTreeMap::new() }
    }

    /// Blocks at the head of a segment that hold its checksum table.
    pub fn head_blocks(&self) -> u32 {
        let pages = (self.segment_bytes / BLOCK_BYTES as u64).div_ceil(PAGE_CRCS as u64);
        (pages * PAGE_PAIR_BYTES / BLOCK_BYTES as u64) as u32
    }

    /// Adds a segment, all free.
    pub fn add_segment(&mut self) {
        let head = self.head_blocks();
        let blocks = (self.segment_bytes / BLOCK_BYTES as u64) as u32 - head;
        self.free.push(BTreeMap::from([(head, blocks)]));
        self.free_blocks += blocks as u64;
    }

    /// How many segments there are.
    pub fn segments(&self) -> u32 {
        self.free.len() as u32
    }

    /// Bytes that are free in the present segments.
    pub fn free_bytes(&self) -> u64 {
        self.free_blocks * BLOCK_BYTES as u64
    }

    /// Bytes in use by data.
    pub fn used_bytes(&self) -> u64 {
        let head = self.head_blocks() as u64 * BLOCK_BYTES as u64;
        self.free.len() as u64 * (self.segment_bytes - head) - self.free_bytes()
    }

    /// Takes `count` blocks that lie together, next to the last ones taken if it can be.
    pub fn take(&mut self, count: u32) -> Option<Blocks> {
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
        let Some(free) = self.free.get_mut(at.segment as usize) else {
            return false;
        };
        let Some((first, len)) = free.range(..=at.block).next_back().map(|(b, c)| (*b, *c)) else {
            return false;
        };
        if first + len < at.block + at.count {
            return false;
        }
        free.remove(&first);
        if at.block > first {
            free.insert(first, at.block - first);
        }
        let end = at.block + at.count;
        if first + len > end {
            free.insert(end, first + len - end);
        }
        self.free_blocks -= at.count as u64;
        true
    }

    fn carve(&mut self, segment: u32, block: u32, count: u32) -> Blocks {
        let at = Blocks { segment, block, count };
        assert!(self.take_exactly(at), "a free run was found there");
        self.rover = (segment, block + count);
        at
    }

    /// One more extent refers to this block.
    pub fn share(&mut self, segment: u32, block: u32) {
        *self.shared.entry((segment, block)).or_insert(0) += 1;
    }

    /// Gives blocks back; shared ones lose one reference.
    pub fn give(&mut self, at: Blocks) {
        for block in at.block..at.block + at.count {
            if let Some(more) = self.shared.get_mut(&(at.segment, block)) {
                *more -= 1;
                if *more == 0 {
                    self.shared.remove(&(at.segment, block));
                }
                continue;
            }
            self.give_one(at.segment, block);
        }
    }

    fn give_one(&mut self, segment: u32, block: u32) {
        let free = &mut self.free[segment as usize];
        let before = free.range(..=block).next_back().map(|(b, c)| (*b, *c));
        assert!(before.is_none_or(|(b, c)| b + c <= block), "block {segment}:{block} is free already");
        let mut start = block;
        let mut count = 1;
        if let Some((b, c)) = before.filter(|(b, c)| b + c == block) {
            (start, count) = (b, c + 1);
        }
        if let Some(after) = free.remove(&(block + 1)) {
            count += after;
        }
        free.insert(start, count);
        self.free_blocks += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alloc() -> Alloc {
        let mut alloc = Alloc::new(4 * 1024 * 1024);
        alloc.add_segment();
        alloc
    }

    #[test]
    fn what_is_given_back_is_taken_again() {
        let mut alloc = alloc();
        let all = alloc.free_bytes();
        let a = alloc.take(10).unwrap();
        let b = alloc.take(5).unwrap();
        assert_eq!(b.block, a.block + 10, "allocations follow one another");
        alloc.give(a);
        alloc.give(b);
        assert_eq!(alloc.free_bytes(), all);
        assert_eq!(alloc.used_bytes(), 0);
        assert!(alloc.take((all / 4096) as u32).is_some());
        assert_eq!(alloc.take(1), None);
    }

    #[test]
    fn a_shared_block_is_free_after_the_last_reference() {
        let mut alloc = alloc();
        let all = alloc.free_bytes();
        let a = alloc.take(1).unwrap();
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
        let a = alloc.take(1).unwrap();
        alloc.give(a);
        alloc.give(a);
    }
}
