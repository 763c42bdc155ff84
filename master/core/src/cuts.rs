//! Files that were cut within a chunk, of late. Who cuts one tells the chunk's primary by itself; if it ends before it has, the
//! primary hears of it with the next renewal of its session (docs/decisions/0041).

use crate::Metadata;
use common::ChunkHandle;
use imbl::Vector;

/// Of so many cuts it is remembered where they were.
const CUTS_MAX: usize = 1024;

/// The last cuts that this master has applied: no image has them, and no two masters need have the same.
#[derive(Clone, Debug, Default)]
pub struct RecentCuts {
    /// How many there were.
    number: u64,
    /// The last of them, in order.
    chunks: Vector<ChunkHandle>,
}

impl RecentCuts {
    /// A file was cut within this chunk.
    pub fn push(&mut self, handle: ChunkHandle) {
        self.number += 1;
        self.chunks.push_back(handle);
        if self.chunks.len() > CUTS_MAX {
            self.chunks.pop_front();
        }
    }

    /// How many there were.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Where those were that came after so many; nothing, if that is not known any more.
    pub fn since(&self, number: u64) -> Option<impl Iterator<Item = ChunkHandle> + '_> {
        let more = usize::try_from(self.number.checked_sub(number)?).ok()?;
        let known = self.chunks.len().checked_sub(more)?;
        Some(self.chunks.iter().skip(known).copied())
    }
}

impl Metadata {
    /// Files that were cut within a chunk.
    pub fn recent_cuts(&self) -> &RecentCuts {
        &self.recent_cuts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_heard_long_ago_hears_that_it_is_not_known() {
        let mut cuts = RecentCuts::default();
        let since =
            |cuts: &RecentCuts, number| cuts.since(number).map(|c| c.map(|h| h.0).collect::<Vec<_>>());
        assert_eq!(since(&cuts, 0), Some(vec![]));
        assert_eq!(since(&cuts, 1), None, "of another leader");
        (0..CUTS_MAX as u64 + 2).for_each(|n| cuts.push(ChunkHandle(n)));
        let number = cuts.number();
        assert_eq!(since(&cuts, number), Some(vec![]));
        assert_eq!(since(&cuts, number - 2), Some(vec![number - 2, number - 1]));
        assert_eq!(since(&cuts, 2).map(|all| all.len()), Some(CUTS_MAX));
        assert_eq!(since(&cuts, 1), None);
    }
}
