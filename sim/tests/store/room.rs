//! Segments in which nothing lies give their room back to the host, and take it again.

use super::*;
use std::collections::BTreeMap;

const MIB: usize = 1 << 20;

impl One {
    /// A chunk of these bytes.
    fn put(&mut self, n: u64, data: &[u8]) {
        for (part, at) in data.chunks(MIB).zip(0u64..) {
            self.write(n, Some(at * MIB as u64), part);
        }
    }

    /// So long, in steps of a millisecond.
    fn wait(&mut self, ms: u64) {
        for _ in 0..ms {
            self.step(Input::Wake);
            self.settle();
        }
    }

    /// Segments that have room.
    fn present(&self) -> usize {
        (0..config(1).segments_max).filter(|n| self.disk.len(FileRef::Extents(*n)) > 0).count()
    }
}

#[test]
fn empty_segments_give_their_room_back() {
    let mut one = fresh();
    for n in 1..=5 {
        one.put(n, &bytes(n, 8 * MIB));
    }
    let before = one.present();
    assert!(before > 2, "{before} segments");
    one.wait(100);
    assert_eq!(one.present(), before, "they are in use");
    (2..=5).for_each(|n| one.delete(n));
    one.wait(100);
    assert_eq!(one.present(), 2, "one in which something lies, and one for what comes");
    assert!(one.read_all(1).unwrap() == bytes(1, 8 * MIB));
    // They are not there, and are taken again, after a restart, too.
    for incarnation in [2, 3] {
        one = One::open(config(incarnation), one.disk).expect("it opens");
        let first = incarnation * 10;
        for n in first..first + 5 {
            one.put(n, &bytes(n, 8 * MIB));
        }
        assert!(one.present() > 2);
        for n in first..first + 5 {
            assert!(one.read_all(n).unwrap() == bytes(n, 8 * MIB));
            one.delete(n);
        }
        one.wait(100);
        assert_eq!(one.present(), 2);
    }
}

#[test]
fn whatever_ends_while_room_is_given_back_nothing_is_lost() {
    let mut released = 0;
    for seed in 0..12 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut one = fresh();
        let mut models: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let (mut incarnation, mut next) = (1, 1);
        for step in 0..80 {
            let used: usize = models.values().map(Vec::len).sum();
            match rng.random_range(0..10) {
                0 | 1 if used > 30 * MIB => {
                    // Nearly all at once.
                    for n in models.keys().copied().collect::<Vec<_>>() {
                        if rng.random_bool(0.95) {
                            models.remove(&n);
                            one.delete(n);
                        }
                    }
                    let before = one.present();
                    one.wait(rng.random_range(0..60));
                    released += before - one.present();
                }
                2 => one.wait(rng.random_range(1..60)),
                3 => one.checkpoint(),
                4 => {
                    incarnation += 1;
                    one = one.end(config(incarnation), &mut rng);
                }
                _ if used < 60 * MIB => {
                    let data = bytes(rng.random(), rng.random_range(1..8 * MIB));
                    one.put(next, &data);
                    models.insert(next, data);
                    next += 1;
                }
                _ => {}
            }
            if step % 10 == 9 {
                for (n, model) in &models {
                    assert!(one.read_all(*n).unwrap() == *model, "seed {seed}, step {step}: {n}");
                }
            }
        }
    }
    println!("{released} segments gave their room back");
    assert!(released > 30);
}
