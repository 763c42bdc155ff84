//! The chunks of a store. Whoever may have changed one leaves a trace: what clients on this machine were told of
//! it does not hold any more.

use crate::node::Chunk;
use common::ChunkHandle;
use std::collections::BTreeMap;
use std::ops::Index;

/// All chunks, by handle.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chunks {
    map: BTreeMap<ChunkHandle, Box<Chunk>>,
    /// Those that may have changed since the last look; the same one can be in it several times.
    touched: Vec<ChunkHandle>,
}

impl Chunks {
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

    pub fn insert(&mut self, handle: ChunkHandle, chunk: Box<Chunk>) {
        self.touch(handle);
        self.map.insert(handle, chunk);
    }

    pub fn remove(&mut self, handle: &ChunkHandle) -> Option<Box<Chunk>> {
        self.touch(*handle);
        self.map.remove(handle)
    }

    pub fn contains_key(&self, handle: &ChunkHandle) -> bool {
        self.map.contains_key(handle)
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }

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
        Chunks { map: chunks.into_iter().collect(), touched: vec![] }
    }
}

impl Index<&ChunkHandle> for Chunks {
    type Output = Chunk;

    fn index(&self, handle: &ChunkHandle) -> &Chunk {
        &self.map[handle]
    }
}
