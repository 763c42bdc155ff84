//! Checkpoints that say only what has changed: they are small, and whatever rots in their files, what opens is what was
//! written.

use super::*;
use chunkserver_core::store::format::{CHECKPOINT_BLOCK_BYTES, CHECKPOINT_HEAD_BYTES, CheckpointHead};
use std::collections::BTreeMap;

/// The head of a block of a file of the checkpoint.
fn head(one: &One, file: u32, block: u32) -> Option<CheckpointHead> {
    let at = block as u64 * CHECKPOINT_BLOCK_BYTES as u64;
    CheckpointHead::decode(&one.disk.read(FileRef::Checkpoint(file), at, CHECKPOINT_HEAD_BYTES as u32))
}

#[test]
fn a_checkpoint_says_what_has_changed() {
    let mut one = fresh();
    (1..=300).for_each(|n| one.write(n, Some(0), b"a chunk"));
    one.checkpoint();
    one.write(1, Some(0), b"for the other file");
    one.checkpoint();
    let whole = [0, 1].map(|file| head(&one, file, 0).expect("a whole one"));
    assert!(whole.iter().all(|w| w.len > 300 * 40 && w.last), "{whole:?}");
    // Each file hears of each change, from the checkpoint that goes there.
    one.write(7, Some(0), b"changed");
    one.delete(8);
    for (file, changes) in [(0, 3), (1, 2)] {
        one.write(9, Some(0), b"something for the log");
        one.checkpoint();
        let next = head(&one, file, 1).expect("what has changed");
        assert_eq!(next.sequence, whole[file as usize].sequence + 2);
        assert!(next.len < changes * 60 + 60, "{next:?}");
    }
    let mut again = One::open(config(2), one.disk.clone()).expect("it opens");
    assert_eq!(again.read_all(7).unwrap(), b"changed");
    assert!(again.node.chunk_view(ChunkHandle(8)).is_none());
    assert_eq!(again.node.stats().chunks, 299);
    // Not for ever: there comes a whole one again.
    let mut blocks = 2;
    while head(&one, 0, 0).unwrap().sequence == whole[0].sequence {
        one.write(9, Some(0), b"something for the log");
        one.checkpoint();
        one.write(10, Some(0), b"something for the log");
        one.checkpoint();
        blocks += 1;
        assert!(blocks < 20);
    }
    assert!(blocks > 5, "{blocks}");
}

#[test]
fn whatever_rots_in_the_files_of_the_checkpoint_what_opens_is_right() {
    let small = |incarnation| StoreConfig { segments_max: 2, ..config(incarnation) };
    let (mut recovered, mut refused, mut older) = (0, 0, 0);
    for seed in 0..40 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut one = One::open(small(1), empty_disk(&small(1))).expect("an empty store opens");
        let mut models: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let (mut incarnation, mut next) = (1, 1);
        for step in 0..80 {
            let some = |rng: &mut StdRng| models.keys().nth(rng.random_range(0..models.len())).copied();
            match rng.random_range(0..16) {
                0 if models.len() > 2 => {
                    let n = some(&mut rng).unwrap();
                    models.remove(&n);
                    one.delete(n);
                }
                1 => one.gather(),
                2..5 => one.checkpoint(),
                // The process ends, or the power, perhaps in the middle of a checkpoint.
                5 | 6 => {
                    incarnation += 1;
                    one = one.end(small(incarnation), &mut rng);
                }
                // Small writes here and there.
                7..11 if !models.is_empty() => {
                    let n = some(&mut rng).unwrap();
                    for _ in 0..rng.random_range(1..60) {
                        let (at, data) = (rng.random_range(0..64usize) * 4096, bytes(rng.random(), 4096));
                        one.write(n, Some(at as u64), &data);
                        model_put(models.get_mut(&n).unwrap(), at, &data);
                    }
                }
                // What is free is written to.
                _ => {
                    let n = if models.len() < 8 { next } else { some(&mut rng).unwrap() };
                    next = next.max(n + 1);
                    let data = bytes(rng.random(), rng.random_range(1..300_000));
                    one.write(n, Some(0), &data);
                    model_put(models.entry(n).or_default(), 0, &data);
                }
            }
            let mut disk = one.disk.clone();
            for file in [0, 1] {
                let blocks = (disk.len(FileRef::Checkpoint(file)) / CHECKPOINT_BLOCK_BYTES as u64).min(8);
                if blocks > 0 && rng.random_bool(0.6) {
                    let at = rng.random_range(0..blocks) * CHECKPOINT_BLOCK_BYTES as u64;
                    disk.flip(
                        FileRef::Checkpoint(file),
                        at + rng.random_range(0..60),
                        rng.random_range(0..8),
                    );
                    older += 1;
                }
            }
            match One::open(small(incarnation + 1), disk) {
                Ok(mut again) => {
                    recovered += 1;
                    again.deleted = one.deleted.clone();
                    for (n, model) in &models {
                        let all = again
                            .read_all(*n)
                            .unwrap_or_else(|e| panic!("seed {seed}, step {step}: {n}: {e}"));
                        assert!(all == *model, "seed {seed}, step {step}: {n}");
                    }
                    let is_there = |n: &u64| again.node.chunk_view(ChunkHandle(*n)).is_some();
                    assert!(
                        !one.deleted.iter().any(is_there),
                        "seed {seed}, step {step}: what was deleted is back"
                    );
                }
                Err(RecoverError::LogRot { case: 'F', .. } | RecoverError::NoCheckpoint) => refused += 1,
                Err(other) => panic!("seed {seed}, step {step}: {other}"),
            }
        }
    }
    println!("{recovered} recovered, {refused} refused, {older} files spoilt");
    assert!(recovered > 1000 && refused > 50);
}
