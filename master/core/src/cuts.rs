//! Chunks of which files were cut, of late. Who cuts one tells the chunks' primaries by itself; if it ends before it has, they
//! hear of it with the next renewals of their sessions (docs/decisions/0041).

use crate::Metadata;
use common::wire::chunk_master::CutsHeard;
use common::{ChunkHandle, StoreId};
use imbl::Vector;

/// Of so many cuts it is remembered where they were: more than the masters' log takes between two renewals.
const CUTS_MAX: usize = 16_384;

/// The last cuts that this master has applied: no image has them, and no two masters need have the same.
#[derive(Clone, Debug, Default)]
pub struct RecentCuts {
    /// How many there were.
    number: u64,
    /// The last of them, in order.
    cuts: Vector<Cut>,
}

/// A file has less of a chunk, or nothing any more; who led that then.
#[derive(Clone, Copy, Debug)]
struct Cut {
    handle: ChunkHandle,
    primary: StoreId,
}

impl RecentCuts {
    fn push(&mut self, cut: Cut) {
        self.number += 1;
        self.cuts.push_back(cut);
        if self.cuts.len() > CUTS_MAX {
            self.cuts.pop_front();
        }
    }

    /// Those that came after so many; nothing, if they are not known any more.
    fn since(&self, number: u64) -> Option<impl Iterator<Item = Cut> + '_> {
        let more = usize::try_from(self.number.checked_sub(number)?).ok()?;
        let known = self.cuts.len().checked_sub(more)?;
        Some(self.cuts.iter().skip(known).copied())
    }
}

impl Metadata {
    /// Its file has less of a chunk than before, or is about to let it go.
    pub(crate) fn is_cut_now(&mut self, handle: ChunkHandle) {
        let primary = self.chunks[&handle].primary;
        self.recent_cuts.push(Cut { handle, primary });
    }

    /// Up to where a store has heard of cuts when it is told this by the leader of a term, and the chunks that it leads of those
    /// that it had not heard of; nothing, if that is not known: another leader may have seen others.
    pub fn cuts_for(
        &self,
        store: StoreId,
        term: u64,
        heard: CutsHeard,
    ) -> (CutsHeard, Option<Vec<ChunkHandle>>) {
        let since = if heard.term == term { self.recent_cuts.since(heard.number) } else { None };
        let leads = |cut: &Cut| self.chunk(cut.handle).map_or(cut.primary, |chunk| chunk.primary) == store;
        let led = since.map(|cuts| cuts.filter(leads).map(|cut| cut.handle).collect());
        (CutsHeard { term, number: self.recent_cuts.number }, led)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_heard_long_ago_hears_that_it_is_not_known() {
        let mut cuts = RecentCuts::default();
        let since = |cuts: &RecentCuts, number| {
            cuts.since(number).map(|cuts| cuts.map(|cut| cut.handle.0).collect::<Vec<_>>())
        };
        assert_eq!(since(&cuts, 0), Some(vec![]));
        assert_eq!(since(&cuts, 1), None, "of another leader");
        let number = CUTS_MAX as u64 + 2;
        (0..number).for_each(|n| cuts.push(Cut { handle: ChunkHandle(n), primary: StoreId(1) }));
        assert_eq!(since(&cuts, number), Some(vec![]));
        assert_eq!(since(&cuts, number - 2), Some(vec![number - 2, number - 1]));
        assert_eq!(since(&cuts, 2).map(|all| all.len()), Some(CUTS_MAX));
        assert_eq!(since(&cuts, 1), None);
    }
}
