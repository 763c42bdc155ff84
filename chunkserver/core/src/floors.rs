//! Floors: the epochs below which this store takes no part in chunks, so that nothing that comes late brings a
//! deleted chunk back, or one that went elsewhere.
//!
//! A floor cannot stay for ever: every chunk that was ever here would leave one. Handles rise, so those that were
//! named long ago are told by their number: below the *horizon* nothing that is not here is made on the word of a client or
//! of another store - the masters are asked first -, and floors of what is not here are forgotten.

use common::{ChunkHandle, Epoch, Span, Time};
use std::collections::{BTreeMap, BTreeSet};

/// With so many floors a checkpoint is due, that some may be forgotten.
const FLOORS_MANY: usize = 1 << 18;

/// All floors of a store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Floors {
    of: BTreeMap<ChunkHandle, Epoch>,
    /// Every floor of what is not here and has a lower handle may have been forgotten.
    horizon: ChunkHandle,
    /// Chunks below this were named long enough ago: the next horizon.
    old: ChunkHandle,
    /// What the masters would name next, as they said then.
    told: Option<(Time, ChunkHandle)>,
    /// Those that were raised since this many records had been queued for the log.
    fresh: BTreeSet<ChunkHandle>,
    since: u64,
}

impl Floors {
    /// As a checkpoint and the log know them.
    pub fn recovered(of: BTreeMap<ChunkHandle, Epoch>, horizon: ChunkHandle) -> Floors {
        let fresh = of.keys().copied().collect();
        Floors { of, horizon, old: horizon, fresh, ..Floors::default() }
    }

    /// The epoch below which the store takes no part in the chunk.
    pub fn of(&self, handle: ChunkHandle) -> Epoch {
        self.of.get(&handle).copied().unwrap_or_default()
    }

    /// Whether the chunk was here and is not to come back, at least not as it was.
    pub fn is_over(&self, handle: ChunkHandle) -> bool {
        self.of.contains_key(&handle)
    }

    /// Whether a chunk that is not here may have been here, and the floor be forgotten.
    pub fn may_be_forgotten(&self, handle: ChunkHandle) -> bool {
        handle < self.horizon
    }

    /// The store takes no part in the chunk below this epoch.
    pub fn raise(&mut self, handle: ChunkHandle, epoch: Epoch) {
        let floor = self.of.entry(handle).or_insert(epoch);
        *floor = epoch.max(*floor);
        self.fresh.insert(handle);
    }

    /// The next chunk that the masters name has this handle or a later one. What they named more than `age` ago is old.
    pub fn next_chunk(&mut self, now: Time, next: ChunkHandle, age: Span) {
        match self.told {
            Some((then, _)) if now.since(then) < age => {}
            Some((_, next_then)) => {
                self.old = self.old.max(next_then);
                self.told = Some((now, next));
            }
            None => self.told = Some((now, next)),
        }
    }

    /// Whether a checkpoint should be written for the sake of floors.
    pub fn are_many(&self) -> bool {
        self.of.len() >= FLOORS_MANY && self.old > self.horizon
    }

    /// A checkpoint is cut, when so many records were queued in all and so many of them are in groups. A floor is forgotten if no
    /// record that came before it can be replayed from here on: they would contradict a state without it.
    pub fn cut(&mut self, queued: u64, in_groups: u64, is_here: impl Fn(ChunkHandle) -> bool) {
        if in_groups < self.since {
            return;
        }
        let (old, fresh) = (self.old, std::mem::take(&mut self.fresh));
        self.of.retain(|handle, _| *handle >= old || fresh.contains(handle) || is_here(*handle));
        self.horizon = old;
        self.since = queued;
    }

    /// What a checkpoint says of them.
    pub fn horizon(&self) -> ChunkHandle {
        self.horizon
    }

    /// All of them.
    pub fn all(&self) -> impl ExactSizeIterator<Item = (ChunkHandle, Epoch)> {
        self.of.iter().map(|(handle, epoch)| (*handle, *epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: Span = Span(1000);

    fn floors(handles: &[u64]) -> Floors {
        let mut floors = Floors::default();
        handles.iter().for_each(|h| floors.raise(ChunkHandle(*h), Epoch::DELETED));
        floors
    }

    fn left(floors: &Floors) -> Vec<u64> {
        floors.all().map(|(handle, _)| handle.0).collect()
    }

    #[test]
    fn old_floors_are_forgotten_at_the_second_cut() {
        let mut floors = floors(&[1, 2, 5, 9]);
        floors.next_chunk(Time(0), ChunkHandle(6), AGE);
        floors.cut(10, 10, |_| false);
        assert_eq!((left(&floors), floors.horizon()), (vec![1, 2, 5, 9], ChunkHandle(0)), "named just now");
        floors.next_chunk(Time(0) + AGE, ChunkHandle(20), AGE);
        floors.cut(20, 20, |handle| handle.0 == 2);
        assert_eq!((left(&floors), floors.horizon()), (vec![2, 9], ChunkHandle(6)), "2 is here");
        assert!(floors.may_be_forgotten(ChunkHandle(5)) && !floors.may_be_forgotten(ChunkHandle(6)));
    }

    #[test]
    fn a_floor_stays_while_an_older_record_could_be_replayed() {
        let mut floors = floors(&[1]);
        floors.next_chunk(Time(0), ChunkHandle(6), AGE);
        floors.next_chunk(Time(0) + AGE, ChunkHandle(6), AGE);
        floors.cut(10, 3, |_| false);
        floors.cut(12, 9, |_| false);
        assert_eq!(left(&floors), [1], "of the records before it one waits yet");
        floors.raise(ChunkHandle(2), Epoch::DELETED);
        floors.cut(15, 12, |_| false);
        assert_eq!(left(&floors), [2]);
        floors.cut(16, 16, |_| false);
        assert!(left(&floors).is_empty());
    }
}
