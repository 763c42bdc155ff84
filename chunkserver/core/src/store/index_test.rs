use super::*;
use crate::store::format::Run;
use common::Serial;
use common::wire::chunk_chunk::Origin;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn point(n: u64) -> LogPoint {
    (Origin::default(), Serial(n))
}

fn run(block: u32, len: u32) -> Place {
    Place::Runs(vec![Run { segment: 0, block, len, crcs: vec![] }])
}

#[test]
fn a_stream_is_one_extent() {
    let mut extents = Extents::default();
    for i in 0..16 {
        let freed = extents.put(i * 65536, &run(100 + i * 16, 65536), point(i as u64));
        assert_eq!(freed, Freed::default());
    }
    assert_eq!(extents.iter().count(), 1);
    assert_eq!(extents.iter().next().unwrap().last, point(15));
}

#[test]
fn a_hole_punched_within_a_block_shares_it() {
    let mut extents = Extents::default();
    extents.put(0, &run(10, 4096), point(1));
    let freed = extents.put(100, &run(50, 8), point(2));
    assert_eq!(freed, Freed { free: vec![], shared: vec![(0, 10)] });
    assert_eq!(extents.iter().count(), 3);
}

/// Every block of a chunk by itself, then all of them as one again.
#[test]
fn thousands_of_extents_come_and_go() {
    const BLOCKS: u32 = 16_384;
    let mut extents = Extents::default();
    extents.put(0, &run(0, 8 << 20), point(1));
    // In an order that comes to each once, and to no neighbours one after the other.
    for n in 0..BLOCKS {
        let i = n * 5003 % BLOCKS;
        extents.put(i * BLOCK, &run(100_000 + (BLOCKS - i) * 2, BLOCK), point(2));
    }
    let check = |extents: &Extents| {
        assert!(extents.leaves.iter().all(|leaf| (1..=LEAF_MAX).contains(&leaf.len())));
        assert!(extents.iter().zip(extents.iter().skip(1)).all(|(a, b)| a.end() <= b.offset));
    };
    check(&extents);
    assert_eq!(extents.iter().count(), BLOCKS as usize);
    assert!(extents.leaves.len() <= BLOCKS as usize / LEAF_MAX * 3, "{} leaves", extents.leaves.len());
    for at in [0, 1, BLOCK * 777 - 1, BLOCK * 777, BLOCKS * BLOCK - 1] {
        assert_eq!(extents.iter_from(at).next().unwrap().offset, at / BLOCK * BLOCK);
    }
    assert!(extents.iter_from(BLOCKS * BLOCK).next().is_none());
    let mut restored = Extents::default();
    assert!(restored.restore(extents.iter().map(Extent::dump).collect()));
    assert!(restored == extents);
    check(&restored);
    // A stream over all of it, and then one write.
    for i in 0..BLOCKS {
        extents.put(i * BLOCK, &run(200_000 + i, BLOCK), point(3));
    }
    check(&extents);
    assert_eq!(extents.iter().count(), 8, "extents of 8 MiB");
    assert_eq!(extents.leaves.len(), 1);
    let freed = restored.put(BLOCK / 2, &run(300_000, (BLOCKS - 1) * BLOCK), point(4));
    check(&restored);
    assert_eq!((restored.iter().count(), freed.free.len()), (3, BLOCKS as usize - 2));
}

proptest! {
    #[test]
    fn what_is_inline_is_counted(writes in prop::collection::vec((0u32..200, 1u32..40, any::<bool>()), 1..400)) {
        let mut extents = Extents::default();
        for ((at, blocks, is_inline), n) in writes.into_iter().zip(0..) {
            let (offset, len) = (at * BLOCK, blocks * BLOCK);
            let place = match is_inline {
                true => Place::Inline { data: vec![0; len as usize], crcs: vec![0; blocks as usize] },
                false => run(n * 64, len),
            };
            extents.put(offset, &place, point(n.into()));
            let inline = |e: &Extent| matches!(e.home, Home::Memory(_));
            prop_assert_eq!(extents.has_inline(), extents.iter().any(inline));
            prop_assert_eq!(extents.count(), extents.iter().count());
        }
    }

    /// Against a model of one owner a byte: every byte is found where it was put last, and every
    /// block is freed exactly when nothing refers to it.
    #[test]
    fn bytes_are_where_they_were_put(writes in prop::collection::vec((0u32..40_000, 1u32..20_000), 1..40)) {
        let mut extents = Extents::default();
        let mut owner: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
        let mut refs: BTreeMap<u32, i64> = BTreeMap::new();
        let mut next = 0;
        for (n, (offset, len)) in writes.iter().enumerate() {
            let block = next;
            next += len.div_ceil(BLOCK) + 1;
            for b in block..block + len.div_ceil(BLOCK) {
                refs.insert(b, 1);
            }
            let freed = extents.put(*offset, &run(block, *len), point(n as u64));
            for (_, b) in freed.shared {
                *refs.get_mut(&b).unwrap() += 1;
            }
            for f in freed.free {
                for b in f.block..f.block + f.count {
                    *refs.get_mut(&b).unwrap() -= 1;
                }
            }
            for i in 0..*len {
                owner.insert(offset + i, (block + i / BLOCK, i % BLOCK));
            }
        }
        let mut used: BTreeMap<u32, ()> = BTreeMap::new();
        for (at, (block, byte)) in owner {
            let found = extents.range(at, at + 1);
            prop_assert_eq!(found.len(), 1);
            let e = &found[0];
            let Home::Disk { block: b, .. } = e.home else { panic!() };
            prop_assert_eq!((b + e.skip / BLOCK, e.skip % BLOCK), (block, byte));
            used.insert(block, ());
        }
        for (block, count) in refs {
            prop_assert!(count >= 0);
            prop_assert_eq!(count > 0, used.contains_key(&block), "block {} has {} references", block, count);
        }
    }
}
