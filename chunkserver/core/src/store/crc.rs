//! Checksums of blocks: paged. New ones are dirty in memory (and in the log) until a checkpoint
//! writes them to the head of their segment; clean pages are cached within a bound.

use super::format::{PAGE_CRCS, Page};
use std::collections::{BTreeMap, BTreeSet};

/// Clean pages kept in memory: each covers 4 MiB of data.
const CACHED_PAGES_MAX: usize = 1024;

/// A page: segment, number.
pub type PageKey = (u32, u32);

/// Checksums that are newer than their page on disk.
#[derive(Clone, Debug)]
struct Dirty {
    crcs: Vec<u32>,
    known: Vec<bool>,
    /// The version of the page that a checkpoint has written with them.
    written: u64,
}

/// The checksums of all blocks of a store.
#[derive(Clone, Debug, Default)]
pub struct CrcTable {
    /// Since the last cut of a checkpoint.
    fresh: BTreeMap<PageKey, Dirty>,
    /// Before it; a checkpoint is writing them.
    frozen: BTreeMap<PageKey, Dirty>,
    cache: BTreeMap<PageKey, (Page, u64)>,
    by_use: BTreeSet<(u64, PageKey)>,
    tick: u64,
}

/// The page of a block, and its slot in it.
pub fn page_of(segment: u32, block: u32) -> (PageKey, usize) {
    let per_page = PAGE_CRCS as u32;
    ((segment, block / per_page), (block % per_page) as usize)
}

impl CrcTable {
    /// Sets the checksums of blocks that follow one another.
    pub fn set(&mut self, segment: u32, block: u32, crcs: &[u32]) {
        for (i, crc) in crcs.iter().enumerate() {
            let (key, slot) = page_of(segment, block + i as u32);
            let dirty = self.fresh.entry(key).or_insert_with(|| Dirty {
                crcs: vec![0; PAGE_CRCS],
                known: vec![false; PAGE_CRCS],
                written: 0,
            });
            dirty.crcs[slot] = *crc;
            dirty.known[slot] = true;
        }
    }

    /// The checksum of a block, or the page that must be read first.
    pub fn get(&mut self, segment: u32, block: u32) -> Result<u32, PageKey> {
        let (key, slot) = page_of(segment, block);
        for dirty in [self.fresh.get(&key), self.frozen.get(&key)].into_iter().flatten() {
            if dirty.known[slot] {
                return Ok(dirty.crcs[slot]);
            }
        }
        self.touch(key);
        self.cache.get(&key).map(|(page, _)| page.crcs[slot]).ok_or(key)
    }

    fn touch(&mut self, key: PageKey) {
        if let Some((_, used)) = self.cache.get_mut(&key) {
            self.tick += 1;
            self.by_use.remove(&(*used, key));
            self.by_use.insert((self.tick, key));
            *used = self.tick;
        }
    }

    /// A page was read, or written.
    pub fn loaded(&mut self, key: PageKey, page: Page) {
        self.tick += 1;
        if let Some((_, used)) = self.cache.insert(key, (page, self.tick)) {
            self.by_use.remove(&(used, key));
        }
        self.by_use.insert((self.tick, key));
        while self.cache.len() > CACHED_PAGES_MAX {
            let (_, oldest) = self.by_use.pop_first().expect("as many uses as pages");
            self.cache.remove(&oldest);
        }
    }

    /// A checkpoint begins: what is dirty now is what it will write. Gives the pages.
    pub fn freeze(&mut self) -> Vec<PageKey> {
        assert!(self.frozen.is_empty(), "one checkpoint at a time");
        self.frozen = std::mem::take(&mut self.fresh);
        self.frozen.keys().copied().collect()
    }

    /// The page as it is cached, if it is.
    pub fn cached(&self, key: PageKey) -> Option<&Page> {
        self.cache.get(&key).map(|(page, _)| page)
    }

    /// The new version of a frozen page, made of the one on disk.
    pub fn merged(&mut self, key: PageKey, base: &Page) -> Page {
        let dirty = self.frozen.get_mut(&key).expect("it is frozen");
        let mut page = base.clone();
        page.version += 1;
        dirty.written = page.version;
        for (slot, known) in dirty.known.iter().enumerate() {
            if *known {
                page.crcs[slot] = dirty.crcs[slot];
            }
        }
        page
    }

    /// The checkpoint is durable, and the frozen pages with it: gives which. A page that was read
    /// before it was written, and cached after, is forgotten.
    pub fn thaw(&mut self) -> Vec<PageKey> {
        let thawed = std::mem::take(&mut self.frozen);
        for (key, dirty) in &thawed {
            let old = |(page, _): &(Page, u64)| page.version < dirty.written;
            if self.cache.get(key).is_some_and(old) {
                let (_, used) = self.cache.remove(key).expect("just seen");
                self.by_use.remove(&(used, *key));
            }
        }
        thawed.into_keys().collect()
    }

    /// Dirty pages in memory.
    pub fn dirty_pages(&self) -> usize {
        self.fresh.len() + self.frozen.len()
    }
}
