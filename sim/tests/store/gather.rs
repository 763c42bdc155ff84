//! What lies scattered is gathered, and nothing that a checkpoint may still refer to is written to.

use super::*;
use rand::seq::SliceRandom;

const BYTES: usize = 1 << 20;

impl One {
    /// A checkpoint that gathers what there is.
    pub fn gather(&mut self) {
        self.step(Input::Checkpoint { gathers: true });
        for _ in 0..10_000 {
            self.settle();
            if self.node.is_idle() {
                return;
            }
            self.step(Input::Wake);
        }
        panic!("the checkpoint does not end");
    }

    /// In how many places a chunk's bytes lie.
    fn places(&mut self, n: u64) -> usize {
        self.replies.clear();
        let msg = ClientChunk::Locate { handle: ChunkHandle(n), offset: 0, len: BYTES as u32 };
        let (conn, request, epoch, snapshot, data) = (1, 7_000_000, Epoch(0), 0, Bytes::new());
        self.step(Input::Client { conn, request, epoch, snapshot, msg, data });
        self.settle();
        match self.replies.pop().expect("an answer").1 {
            ClientChunkReply::Located { places, .. } => places.len(),
            other => panic!("{other:?}"),
        }
    }

    /// Writes over every block once, in any order, and now and then they go home: those of one checkpoint side by side.
    fn scatter(&mut self, n: u64, model: &mut Vec<u8>, rng: &mut StdRng) {
        let mut blocks: Vec<usize> = (0..BYTES / 4096).collect();
        blocks.shuffle(rng);
        for (i, block) in blocks.into_iter().enumerate() {
            let data = bytes(rng.random(), 4096);
            self.write(n, Some(block as u64 * 4096), &data);
            model_put(model, block * 4096, &data);
            if i % 40 == 39 {
                self.checkpoint();
            }
        }
        // That the last one is committed is said a moment later.
        for _ in 0..2 {
            self.now = self.now + Span::from_ms(50);
            self.step(Input::Wake);
            self.settle();
        }
        self.checkpoint();
    }
}

#[test]
fn what_lies_scattered_is_gathered_and_its_blocks_are_free_when_no_checkpoint_needs_them() {
    let mut rng = StdRng::seed_from_u64(1);
    let (mut one, mut model) = (fresh(), bytes(1, BYTES));
    one.write(1, Some(0), &model);
    one.scatter(1, &mut model, &mut rng);
    let before = one.places(1);
    assert!(before > 100, "{before} places");
    assert!(one.read_all(1).unwrap() == model);
    one.gather();
    // Few may be left at the end.
    assert!(one.places(1) <= 8, "{} places", one.places(1));
    let gathered = one.node.stats().gathered_bytes as usize;
    assert!(gathered > BYTES / 8 * 7, "{gathered}");
    assert!(one.read_all(1).unwrap() == model);
    let twice = one.node.stats().used_bytes;
    assert_eq!(twice as usize, BYTES + gathered, "both checkpoints can be used");
    one.gather();
    assert_eq!(one.node.stats().used_bytes, BYTES as u64);
    let mut again = One::open(config(2), one.disk).expect("it opens");
    assert!(again.read_all(1).unwrap() == model);
}

/// Whichever checkpoint is found good: what is recovered from it is what was written.
#[test]
fn either_checkpoint_serves_after_bytes_were_gathered() {
    let small = |incarnation| StoreConfig { segments_max: 2, ..config(incarnation) };
    let (mut refused, mut recovered, mut gathered) = (0, 0, 0);
    for seed in 0..30 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut one = One::open(small(1), empty_disk(&small(1))).expect("an empty store opens");
        let mut model = bytes(1, BYTES);
        one.write(1, Some(0), &model);
        // The first lies where there has been none.
        one.gather();
        one.scatter(1, &mut model, &mut rng);
        one.gather();
        let mut incarnation = 1;
        for step in 0..60 {
            match rng.random_range(0..10) {
                0 => {
                    let before = one.node.stats().gathered_bytes;
                    one.gather();
                    gathered += one.node.stats().gathered_bytes - before;
                }
                1 => one.scatter(1, &mut model, &mut rng),
                2 => {
                    incarnation += 1;
                    one = One::open(small(incarnation), one.disk).expect("it opens");
                }
                // What is free is written to.
                _ => {
                    let at = rng.random_range(0..4u64) * BYTES as u64;
                    one.write(2, Some(at), &bytes(rng.random(), BYTES));
                }
            }
            let mut disk = one.disk.clone();
            disk.flip(FileRef::Checkpoint(step % 2), 40, 2);
            match One::open(small(incarnation + 1), disk) {
                Ok(mut again) => {
                    recovered += 1;
                    let all = again.read_all(1).unwrap_or_else(|e| panic!("seed {seed}, step {step}: {e}"));
                    assert!(all == model, "seed {seed}, step {step}");
                }
                Err(RecoverError::LogRot { case: 'F', .. }) => refused += 1,
                Err(other) => panic!("seed {seed}, step {step}: {other}"),
            }
        }
    }
    println!("{recovered} recovered, {refused} refused, {gathered} bytes gathered");
    assert!(recovered > 500 && gathered as usize > 50 * BYTES);
}
