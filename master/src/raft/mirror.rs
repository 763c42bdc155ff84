//! What a master knows of its Raft log without reading it: the last entries, and which segment the others are in.
//!
//! Who applies entries and who sends them to followers that are not far behind wants the last ones. All others, which are
//! as many bytes as the image of the state is, are read from the disk by whoever is far behind.

use super::{LogId, RaftEntry, Vote};
use openraft::storage::LogState;
use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;

/// Entries stay in memory that are in one of so many last segments, and those that are not committed.
pub(super) const SEGMENTS_IN_MEMORY: usize = 2;
/// So many entries are let go for each that comes, at most: nobody waits for a whole segment of them.
const FORGET_AT_ONCE: usize = 4;

/// What is known of a segment.
#[derive(Clone, Copy, Debug)]
struct Held {
    sequence: u64,
    /// The least and the greatest index of its entries that are still of the log; the greatest is the lesser one if there is none.
    first: u64,
    last: u64,
    /// Bytes that are written in it.
    bytes: u64,
}

/// What is known of a log.
#[derive(Default)]
pub(super) struct Mirror {
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
    entries: BTreeMap<u64, (RaftEntry, usize)>,
    segments: VecDeque<Held>,
}

/// Where to find an entry.
pub(super) enum Place {
    /// In memory, with those that follow it; or nowhere.
    Memory,
    /// In this segment, with those that follow it before this index.
    Segment { sequence: u64, until: u64 },
}

impl Mirror {
    /// An entry that is so many bytes long follows.
    pub fn insert(&mut self, entry: RaftEntry, bytes: usize) {
        self.entries.insert(entry.log_id.index, (entry, bytes));
    }

    /// Entries from this index on are none any more.
    pub fn truncate(&mut self, first: u64) {
        self.entries.split_off(&first);
    }

    /// Entries up to this one are not needed any more.
    pub fn purge(&mut self, upto: LogId) {
        while self.entries.first_key_value().is_some_and(|(index, _)| *index <= upto.index) {
            self.entries.pop_first();
        }
        self.purged = Some(upto);
    }

    /// What openraft wants to know.
    pub fn state(&self) -> LogState<super::TypeConfig> {
        let last = self.entries.last_key_value().map(|(_, (entry, _))| entry.log_id);
        LogState { last_purged_log_id: self.purged, last_log_id: last.or(self.purged) }
    }

    /// Those in memory of `[start, end)`, up to so many bytes, but at least one.
    pub fn in_memory(&self, start: u64, end: u64, bytes_max: usize) -> Vec<RaftEntry> {
        take(&self.entries, start, end, bytes_max)
    }

    /// How many are in memory.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// All of them, with their lengths in bytes.
    pub fn into_entries(self) -> BTreeMap<u64, (RaftEntry, usize)> {
        self.entries
    }

    /// A segment is begun.
    pub fn begin_segment(&mut self, sequence: u64) {
        self.segments.push_back(Held { sequence, first: u64::MAX, last: 0, bytes: 0 });
    }

    /// The last segment is written up to here.
    pub fn written(&mut self, bytes: u64) {
        if let Some(last) = self.segments.back_mut() {
            last.bytes = bytes;
        }
    }

    /// These entries are in the last segment, durably.
    pub fn holds(&mut self, entries: RangeInclusive<u64>) {
        if let Some(last) = self.segments.back_mut() {
            last.first = last.first.min(*entries.start());
            last.last = last.last.max(*entries.end());
        }
    }

    /// It is durable that entries from this index on are none any more: no two segments hold the same.
    pub fn holds_none_from(&mut self, first: u64) {
        for held in &mut self.segments {
            held.last = held.last.min(first.saturating_sub(1));
        }
    }

    /// Gives up the oldest segment, unless it is the only one or holds what is not purged. Gives its number.
    pub fn give_up_segment(&mut self, purged: u64) -> Option<u64> {
        let oldest = self.segments.front().filter(|held| held.last <= purged)?.sequence;
        (self.segments.len() > 1).then(|| self.segments.pop_front())?;
        Some(oldest)
    }

    /// Lets some of the entries go that are not of the last segments, but none from the last committed one on: what is not
    /// committed may be truncated, and then that is where the log ends.
    pub fn forget(&mut self, come: usize) {
        let Some(at) = self.segments.len().checked_sub(SEGMENTS_IN_MEMORY + 1) else { return };
        let old = self.segments.range(..=at).map(|held| held.last).max().unwrap_or(0);
        let old = old.min(self.committed.map_or(0, |id| id.index.saturating_sub(1)));
        for _ in 0..come.saturating_mul(FORGET_AT_ONCE) {
            match self.entries.first_key_value() {
                Some((index, _)) if *index <= old => self.entries.pop_first(),
                _ => return,
            };
        }
    }

    /// Where an entry is.
    pub fn place(&self, index: u64) -> Place {
        if self.entries.first_key_value().is_none_or(|(first, _)| *first <= index) {
            return Place::Memory;
        }
        let held = self.segments.iter().find(|held| held.first <= held.last && index <= held.last);
        held.map_or(Place::Memory, |held| Place::Segment { sequence: held.sequence, until: held.last + 1 })
    }

    /// Whether all entries are in memory that must be, from the last committed one on, though not all were put there.
    pub fn has_what_is_needed(&self) -> bool {
        let needed = self.committed.max(self.purged).map_or(0, |id| id.index);
        let first = self.entries.first_key_value().map_or(u64::MAX, |(first, _)| *first);
        let purged = self.purged.map_or(0, |id| id.index + 1);
        self.segments
            .iter()
            .all(|held| held.first > held.last || held.last < purged || first <= needed.max(purged))
    }

    /// How many bytes of the log hold entries after this index.
    pub fn bytes_after(&self, index: u64) -> u64 {
        self.segments.iter().filter(|held| held.last > index).map(|held| held.bytes).sum()
    }

    /// The last entry that so many bytes of the log follow at least, by whole segments.
    pub fn before(&self, bytes: u64) -> Option<u64> {
        let mut follow = 0;
        for held in self.segments.iter().rev() {
            if follow >= bytes && held.first <= held.last {
                return Some(held.last);
            }
            follow += held.bytes;
        }
        None
    }
}

/// Entries of `[start, end)`, up to so many bytes, but at least one.
pub(super) fn take(
    entries: &BTreeMap<u64, (RaftEntry, usize)>,
    start: u64,
    end: u64,
    bytes_max: usize,
) -> Vec<RaftEntry> {
    let mut bytes = 0;
    let mut taken = vec![];
    for (_, (entry, len)) in entries.range(start..end.max(start)) {
        bytes += len;
        if bytes > bytes_max && !taken.is_empty() {
            break;
        }
        taken.push(entry.clone());
    }
    taken
}
