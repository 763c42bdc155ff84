//! The chunks of a store. Whoever may have changed one leaves a trace: what clients on this machine were told of
//! it does not hold any more. And who changes what is on disk leaves another: the files of the checkpoint do not have it.

use crate::node::Chunk;
use crate::state::ChunkState;
use common::{ChunkHandle, Mutant};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::ops::Index;
use std::sync::Arc;

/// Those that a checkpoint is yet to say, as they were when it was cut.
#[derive(Clone, Debug)]
struct Cut {
    left: Left,
    /// How those of them were that have changed since; nothing, if they were not here.
    before: BTreeMap<ChunkHandle, Option<Arc<ChunkState>>>,
}

#[derive(Clone, Debug)]
enum Left {
    /// All from this one on. There may be millions: they are not counted up in one step.
    From(ChunkHandle),
    These(BTreeSet<ChunkHandle>),
}

impl Cut {
    /// A chunk changes, is made or goes.
    fn keep(&mut self, handle: ChunkHandle, before: Option<&Arc<ChunkState>>) {
        let is_left = match &self.left {
            Left::From(from) => handle >= *from,
            Left::These(handles) => handles.contains(&handle),
        };
        if is_left && !Mutant::CutMoves.on() {
            self.before.entry(handle).or_insert_with(|| before.cloned());
        }
    }
}

/// Whether a chunk will be another on disk without a change of its own, or somebody must be told of it again: bytes found no
/// room there, or records are not known committed.
fn is_in_motion(state: &ChunkState) -> bool {
    state.extents.has_inline() || !state.tail.is_empty()
}

/// Neither file of the checkpoint has the chunk as it is.
fn add(unwritten: &mut [BTreeSet<ChunkHandle>; 2], handle: ChunkHandle) {
    for file in unwritten {
        file.insert(handle);
    }
}

/// All chunks, by handle.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chunks {
    map: BTreeMap<ChunkHandle, Box<Chunk>>,
    /// Those that may have changed since the last look; the same one can be in it several times.
    touched: Vec<ChunkHandle>,
    /// Those that each file of the checkpoint does not have as they are, or has although they are gone.
    unwritten: [BTreeSet<ChunkHandle>; 2],
    cut: Option<Cut>,
    /// How many were gone before the masters had answered a question about them.
    unanswered: u32,
}

impl Chunks {
    /// The number of a question about a chunk: no other life of the same chunk has asked one with this number that is not
    /// answered yet.
    pub fn question(&self) -> NonZeroU32 {
        NonZeroU32::MIN.saturating_add(self.unanswered)
    }

    /// These may have changed since this was last asked.
    pub fn touched(&mut self) -> std::vec::IntoIter<ChunkHandle> {
        std::mem::take(&mut self.touched).into_iter()
    }

    fn touch(&mut self, handle: ChunkHandle) {
        if self.touched.last() != Some(&handle) {
            self.touched.push(handle);
        }
    }

    pub fn get(&self, handle: &ChunkHandle) -> Option<&Chunk> {
        self.map.get(handle).map(|chunk| &**chunk)
    }

    pub fn get_mut(&mut self, handle: &ChunkHandle) -> Option<&mut Chunk> {
        self.touch(*handle);
        self.map.get_mut(handle).map(|chunk| &mut **chunk)
    }

    /// A chunk's state, which will be another on disk.
    pub fn state_mut(&mut self, handle: &ChunkHandle) -> Option<&mut ChunkState> {
        self.touch(*handle);
        let chunk = self.map.get_mut(handle)?;
        if let Some(cut) = &mut self.cut {
            cut.keep(*handle, Some(&chunk.state));
        }
        if !chunk.is_unwritten && !Mutant::ChangeForgotten.on() {
            chunk.is_unwritten = true;
            add(&mut self.unwritten, *handle);
        }
        Some(Arc::make_mut(&mut chunk.state))
    }

    pub fn insert(&mut self, handle: ChunkHandle, mut chunk: Box<Chunk>) {
        self.touch(handle);
        chunk.is_unwritten = true;
        add(&mut self.unwritten, handle);
        let before = self.map.insert(handle, chunk);
        if let Some(cut) = &mut self.cut {
            cut.keep(handle, before.as_ref().map(|chunk| &chunk.state));
        }
    }

    pub fn remove(&mut self, handle: &ChunkHandle) -> Option<Box<Chunk>> {
        self.touch(*handle);
        let chunk = self.map.remove(handle)?;
        if chunk.asking.is_some() {
            self.unanswered = self.unanswered.wrapping_add(1);
        }
        if let Some(cut) = &mut self.cut {
            cut.keep(*handle, Some(&chunk.state));
        }
        if !Mutant::GoneForgotten.on() {
            add(&mut self.unwritten, *handle);
        }
        Some(chunk)
    }

    /// Those that have changed since the last checkpoint or since the one before it, and all that are in motion.
    pub fn unwritten(&self) -> impl Iterator<Item = ChunkHandle> {
        let [one, other] = &self.unwritten;
        one.union(other).copied()
    }

    /// A checkpoint is cut, that a file will have: it says all chunks as they are now, or those that the file does not have so.
    pub fn cut(&mut self, file: usize, is_whole: bool) {
        let handles = std::mem::take(&mut self.unwritten[file]);
        for handle in &handles {
            let Some(chunk) = self.map.get_mut(handle) else { continue };
            chunk.is_unwritten = is_in_motion(&chunk.state);
            if chunk.is_unwritten {
                self.unwritten[file].insert(*handle);
            }
        }
        let left = if is_whole { Left::From(ChunkHandle(0)) } else { Left::These(handles) };
        self.cut = Some(Cut { left, before: BTreeMap::new() });
    }

    /// The next chunk of the cut as it was then; nothing, if it was not here.
    pub fn next_of_cut(&mut self) -> Option<(ChunkHandle, Option<Arc<ChunkState>>)> {
        let Cut { left, before } = self.cut.as_mut()?;
        let next = match left {
            Left::These(handles) => handles.pop_first(),
            Left::From(from) => {
                let here = self.map.range(*from..).next().map(|(handle, _)| *handle);
                let next = here.into_iter().chain(before.first_key_value().map(|(handle, _)| *handle)).min();
                *from = ChunkHandle(next.map_or(u64::MAX, |handle| handle.0 + 1));
                next
            }
        };
        let Some(handle) = next else {
            self.cut = None;
            return None;
        };
        let then = before.remove(&handle);
        Some((handle, then.unwrap_or_else(|| self.map.get(&handle).map(|chunk| chunk.state.clone()))))
    }

    pub fn contains_key(&self, handle: &ChunkHandle) -> bool {
        self.map.contains_key(handle)
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Panics if a chunk in motion would not be found.
    pub fn check(&self) {
        for (handle, _) in self.iter().filter(|(_, chunk)| is_in_motion(&chunk.state)) {
            let is_known = self.unwritten.iter().all(|file| file.contains(handle));
            assert!(is_known || Mutant::ChangeForgotten.on(), "{handle}: it is in motion, and nobody knows");
        }
    }

    /// All of them. There may be millions.
    pub fn iter(&self) -> impl Iterator<Item = (&ChunkHandle, &Chunk)> {
        self.map.iter().map(|(handle, chunk)| (handle, &**chunk))
    }

    pub fn range(
        &self,
        range: impl std::ops::RangeBounds<ChunkHandle>,
    ) -> impl Iterator<Item = (&ChunkHandle, &Chunk)> {
        self.map.range(range).map(|(handle, chunk)| (handle, &**chunk))
    }
}

impl FromIterator<(ChunkHandle, Box<Chunk>)> for Chunks {
    fn from_iter<T: IntoIterator<Item = (ChunkHandle, Box<Chunk>)>>(chunks: T) -> Chunks {
        let map: BTreeMap<_, Box<Chunk>> = chunks.into_iter().collect();
        let mut chunks = Chunks { map, ..Chunks::default() };
        for (handle, chunk) in &mut chunks.map {
            if is_in_motion(&chunk.state) {
                chunk.is_unwritten = true;
                add(&mut chunks.unwritten, *handle);
            }
        }
        chunks
    }
}

impl Index<&ChunkHandle> for Chunks {
    type Output = Chunk;

    fn index(&self, handle: &ChunkHandle) -> &Chunk {
        &self.map[handle]
    }
}
