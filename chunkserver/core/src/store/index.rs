//! Where the committed bytes of a chunk are: extents at byte granularity.

use super::alloc::Blocks;
use super::format::{ExtentDump, Place};
use bytes::Bytes;
use common::Serial;
use common::limits::BLOCK_BYTES;
use common::wire::chunk_chunk::LogPoint;
use std::sync::Arc;

const BLOCK: u32 = BLOCK_BYTES as u32;
/// Extents that go on where another ends are one, up to this: an extent knows only its last write, and is
/// copied as a whole to a replica that lacks that.
const MERGED_BYTES_MAX: u32 = 8 * 1024 * 1024;

/// Bytes that are in memory and in the log only, until a checkpoint moves them home.
#[derive(Debug, PartialEq, Eq)]
pub struct InlineRun {
    /// The bytes.
    pub data: Bytes,
    /// A CRC-32C a slice.
    pub crcs: Vec<u32>,
}

/// Where a run is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Home {
    /// In a segment, from this block on.
    Disk {
        /// The segment.
        segment: u32,
        /// The first block.
        block: u32,
    },
    /// Not moved home yet.
    Memory(Arc<InlineRun>),
}

/// Bytes of a chunk that lie together: a part of a run. A run is cut into slices of 4 KiB from
/// its first byte, each with its own checksum; the last may be shorter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte in the chunk.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
    /// Bytes of the run before the first.
    pub skip: u32,
    /// Bytes of the run.
    pub run: u32,
    /// Where the run is.
    pub home: Home,
    /// The last write in it: what a returning replica misses is told by it.
    pub last: LogPoint,
}

impl Extent {
    fn end(&self) -> u32 {
        self.offset + self.len
    }

    /// The blocks of the run, if it is on disk.
    pub fn blocks(&self) -> Option<Blocks> {
        match self.home {
            Home::Disk { segment, block } => Some(Blocks { segment, block, count: self.run.div_ceil(BLOCK) }),
            Home::Memory(_) => None,
        }
    }

    /// The first `len` bytes of this extent; what it no longer needs of the run is cut off.
    fn head(&self, len: u32) -> Extent {
        let run = self.run.min((self.skip + len).next_multiple_of(BLOCK));
        let run = if matches!(self.home, Home::Memory(_)) { self.run } else { run };
        Extent { len, run, ..self.clone() }
    }

    /// What is left after the first `cut` bytes.
    fn rest(&self, cut: u32) -> Extent {
        let skip = self.skip + cut;
        let mut rest = Extent { offset: self.offset + cut, len: self.len - cut, skip, ..self.clone() };
        if let Home::Disk { segment, block } = self.home {
            let blocks = skip / BLOCK;
            rest.home = Home::Disk { segment, block: block + blocks };
            rest.skip -= blocks * BLOCK;
            rest.run -= blocks * BLOCK;
        }
        rest
    }

    /// Whether `next` goes on where this one ends, in the chunk and on disk, and the two may be one.
    fn is_followed_by(&self, next: &Extent) -> bool {
        let (Home::Disk { segment, block }, Home::Disk { segment: s, block: b }) = (&self.home, &next.home)
        else {
            return false;
        };
        self.end() == next.offset
            && self.skip + self.len == self.run
            && self.run.is_multiple_of(BLOCK)
            && next.skip == 0
            && self.len + next.len <= MERGED_BYTES_MAX
            && segment == s
            && block + self.run / BLOCK == *b
    }

    /// For a checkpoint.
    pub fn dump(&self) -> ExtentDump {
        let place = match &self.home {
            Home::Disk { segment, block } => Ok((*segment, *block)),
            Home::Memory(inline) => Err((inline.data.to_vec(), inline.crcs.clone())),
        };
        ExtentDump {
            offset: self.offset,
            len: self.len,
            skip: self.skip,
            run: self.run,
            place,
            last: self.last,
        }
    }

    /// From a checkpoint.
    pub fn restore(dump: ExtentDump) -> Extent {
        let home = match dump.place {
            Ok((segment, block)) => Home::Disk { segment, block },
            Err((data, crcs)) => Home::Memory(Arc::new(InlineRun { data: data.into(), crcs })),
        };
        Extent { offset: dump.offset, len: dump.len, skip: dump.skip, run: dump.run, home, last: dump.last }
    }
}

/// What happened to blocks when extents were put over others.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// No extent of this chunk refers to them any more.
    pub free: Vec<Blocks>,
    /// One extent was split within a block: both halves refer to it.
    pub shared: Vec<(u32, u32)>,
}

/// Extents that are kept together: a write moves no more of them than these, and a split.
const LEAF_MAX: usize = 128;

/// The extents of a chunk, by offset, without overlap. A gap reads as zeros.
#[derive(Clone, Debug, Default)]
pub struct Extents {
    /// In leaves, as one after another; none is empty, and most chunks have one.
    leaves: Vec<Vec<Extent>>,
    /// How many are not on disk.
    inline: usize,
}

impl PartialEq for Extents {
    fn eq(&self, other: &Extents) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Extents {}

fn inline_among(extents: &[Extent]) -> usize {
    extents.iter().filter(|e| matches!(e.home, Home::Memory(_))).count()
}

fn end_of(leaf: &[Extent]) -> u32 {
    leaf.last().expect("no leaf is empty").end()
}

impl Extents {
    /// More extents, from a checkpoint; false if they are out of order or overlap.
    pub fn restore(&mut self, list: Vec<ExtentDump>) -> bool {
        for extent in list.into_iter().map(Extent::restore) {
            let sound =
                extent.len > 0 && extent.skip.checked_add(extent.len).is_some_and(|end| end <= extent.run);
            if !sound || self.leaves.last().is_some_and(|leaf| end_of(leaf) > extent.offset) {
                return false;
            }
            self.inline += inline_among(std::slice::from_ref(&extent));
            match self.leaves.last_mut().filter(|leaf| leaf.len() < LEAF_MAX) {
                Some(leaf) => leaf.push(extent),
                None => self.leaves.push(vec![extent]),
            }
        }
        true
    }

    /// Whether some are not on disk.
    pub fn has_inline(&self) -> bool {
        self.inline > 0
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.leaves.iter().map(Vec::len).sum()
    }

    /// All, by offset.
    pub fn iter(&self) -> impl Iterator<Item = &Extent> {
        self.leaves.iter().flatten()
    }

    /// Those that end beyond a byte, by offset.
    pub fn iter_from(&self, from: u32) -> impl Iterator<Item = &Extent> {
        let leaf = self.leaves.partition_point(|leaf| end_of(leaf) <= from);
        let first = self.leaves.get(leaf).map_or(0, |leaf| leaf.partition_point(|e| e.end() <= from));
        self.leaves[leaf..].iter().flatten().skip(first)
    }

    /// The parts of extents that lie in a range, by offset.
    pub fn range(&self, from: u32, to: u32) -> Vec<Extent> {
        let inside = self.iter_from(from).take_while(|e| e.offset < to);
        inside
            .map(|e| {
                let e = if e.offset < from { e.rest(from - e.offset) } else { e.clone() };
                if e.end() > to { e.head(to - e.offset) } else { e }
            })
            .collect()
    }

    /// The first bytes from `from` on that were written after a serial, at most `max` that lie
    /// together: from where to where.
    pub fn changed(&self, from: u32, since: Serial, max: u32) -> Option<(u32, u32)> {
        let mut found: Option<(u32, u32)> = None;
        for extent in self.iter_from(from) {
            let changed = extent.last.1 > since;
            match &mut found {
                None if changed => found = Some((extent.offset.max(from), extent.end())),
                None => {}
                Some((_, end)) if changed && *end == extent.offset => *end = extent.end(),
                Some(_) => break,
            }
            if found.is_some_and(|(start, end)| end - start >= max) {
                break;
            }
        }
        found.map(|(start, end)| (start, end.min(start + max)))
    }

    /// Puts the bytes of a write over whatever was there.
    pub fn put(&mut self, offset: u32, place: &Place, last: LogPoint) -> Freed {
        let mut freed = Freed::default();
        let mut at = offset;
        match place {
            Place::Inline { data, crcs } => {
                let len = data.len() as u32;
                let inline = InlineRun { data: Bytes::copy_from_slice(data), crcs: crcs.clone() };
                let home = Home::Memory(Arc::new(inline));
                self.put_one(Extent { offset, len, skip: 0, run: len, home, last }, &mut freed);
            }
            Place::Runs(runs) => {
                for run in runs {
                    let home = Home::Disk { segment: run.segment, block: run.block };
                    let extent = Extent { offset: at, len: run.len, skip: 0, run: run.len, home, last };
                    self.put_one(extent, &mut freed);
                    at += run.len;
                }
            }
        }
        freed
    }

    /// Puts one extent over whatever was there.
    pub fn put_one(&mut self, new: Extent, freed: &mut Freed) {
        // A leaf that it only touches may end, or begin, with one that goes on.
        let mut from = self.leaves.partition_point(|leaf| end_of(leaf) < new.offset);
        let touched = |leaf: &&Vec<Extent>| leaf[0].offset <= new.end();
        let mut to = from + self.leaves[from..].iter().take_while(touched).count();
        if from == to {
            from = from.saturating_sub(1);
            to = self.leaves.len().min(from + 1);
        }
        let mut leaf = match &mut self.leaves[from..to] {
            // Most chunks have one extent.
            [] => Vec::with_capacity(1),
            [leaf] => std::mem::take(leaf),
            several => several.concat(),
        };
        self.inline -= inline_among(&leaf);
        put_among(&mut leaf, new, freed);
        self.inline += inline_among(&leaf);
        if leaf.len() <= LEAF_MAX {
            self.leaves.splice(from..to, [leaf]);
        } else {
            let each = leaf.len().div_ceil(leaf.len().div_ceil(LEAF_MAX));
            self.leaves.splice(from..to, leaf.chunks(each).map(<[Extent]>::to_vec));
        }
    }
}

fn put_among(extents: &mut Vec<Extent>, new: Extent, freed: &mut Freed) {
    let first = extents.partition_point(|e| e.end() <= new.offset);
    let last = first + extents[first..].iter().take_while(|e| e.offset < new.end()).count();
    let mut parts = vec![];
    for old in &extents[first..last] {
        let left = (old.offset < new.offset).then(|| old.head(new.offset - old.offset));
        let right = (old.end() > new.end()).then(|| old.rest(new.end() - old.offset));
        account(old, left.as_ref(), right.as_ref(), freed);
        parts.extend(left);
        parts.extend(right);
    }
    let at = parts.iter().take_while(|p| p.offset < new.offset).count();
    parts.insert(at, new);
    extents.splice(first..last, parts);
    merge_around(extents, first.saturating_sub(1), first + at + 2);
}

fn merge_around(extents: &mut Vec<Extent>, from: usize, mut to: usize) {
    let mut i = from;
    while i + 1 < extents.len() && i < to {
        if extents[i].is_followed_by(&extents[i + 1]) {
            let next = extents.remove(i + 1);
            let this = &mut extents[i];
            this.len += next.len;
            this.run += next.run;
            this.last = this.last.max(next.last);
            to -= 1;
        } else {
            i += 1;
        }
    }
}

/// Which blocks of `old` are free now, and which both halves share.
fn account(old: &Extent, left: Option<&Extent>, right: Option<&Extent>, freed: &mut Freed) {
    let Some(all) = old.blocks() else { return };
    let end_of = |b: Blocks| b.block + b.count;
    let from = left.and_then(|e| e.blocks()).map_or(all.block, end_of);
    let to = right.and_then(|e| e.blocks()).map_or(end_of(all), |b| b.block);
    if from < to {
        freed.free.push(Blocks { segment: all.segment, block: from, count: to - from });
    }
    if from > to {
        assert_eq!(from, to + 1, "halves of one extent share one block at most");
        freed.shared.push((all.segment, to));
    }
}

#[cfg(test)]
#[path = "index_test.rs"]
mod tests;
