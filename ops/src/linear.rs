//! Whether a history of reads and writes of one register is linearizable: whether all operations
//! can be put into one order in which each lies between its call and its return and each read gives
//! the last value written (Herlihy & Wing 1990). The search is that of Wing & Gong (1993), with the
//! memory of configurations seen that Lowe added (2017).

use std::collections::HashSet;

/// What an operation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    /// Wrote this value.
    Write(u64),
    /// Read this value; 0 if nothing had been written.
    Read(u64),
}

/// An operation on the register. Times are of one clock, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// When it was called.
    pub call: u64,
    /// When it returned; `None` if nobody knows whether it was carried out, or ever will be.
    pub end: Option<u64>,
    /// What it did.
    pub did: Did,
}

/// The calls and returns that are not in the order yet: a doubly linked list, so that an operation
/// can be taken out and put back.
struct Events {
    /// The operation of each event, and whether it is its call. Event 0 is the head of the list.
    of: Vec<(usize, bool)>,
    next: Vec<usize>,
    back: Vec<usize>,
    /// The events of each operation; one without a return has its end there.
    call: Vec<usize>,
    end: Vec<usize>,
}

impl Events {
    fn new(ops: &[Op]) -> Events {
        let mut times: Vec<(u64, bool, usize)> = vec![];
        for (n, op) in ops.iter().enumerate() {
            times.push((op.call, true, n));
            times.push((op.end.unwrap_or(u64::MAX), false, n));
        }
        // At the same moment calls come first: such operations may overlap.
        times.sort_unstable_by_key(|(at, is_call, n)| (*at, !is_call, *n));
        let (mut call, mut end) = (vec![0; ops.len()], vec![0; ops.len()]);
        let mut of = vec![(usize::MAX, false)];
        for (_, is_call, n) in times {
            if is_call {
                call[n] = of.len()
            } else {
                end[n] = of.len()
            }
            of.push((n, is_call));
        }
        let len = of.len();
        let next = (0..len).map(|n| (n + 1) % len).collect();
        let back = (0..len).map(|n| (n + len - 1) % len).collect();
        Events { of, next, back, call, end }
    }

    fn unlink(&mut self, event: usize) {
        let (before, after) = (self.back[event], self.next[event]);
        self.next[before] = after;
        self.back[after] = before;
    }

    fn link(&mut self, event: usize) {
        let (before, after) = (self.back[event], self.next[event]);
        self.next[before] = event;
        self.back[after] = event;
    }

    fn take_out(&mut self, op: usize) {
        self.unlink(self.call[op]);
        self.unlink(self.end[op]);
    }

    fn put_back(&mut self, op: usize) {
        self.link(self.end[op]);
        self.link(self.call[op]);
    }
}

/// Whether the history is linearizable.
pub fn is_linearizable(ops: &[Op]) -> bool {
    let mut events = Events::new(ops);
    let mut left = ops.iter().filter(|op| op.end.is_some()).count();
    let mut value = 0;
    let mut done = vec![0u64; ops.len().div_ceil(64)];
    let mut seen: HashSet<(Vec<u64>, u64)> = HashSet::new();
    let mut order: Vec<(usize, u64)> = vec![];
    let mut at = events.next[0];
    // Operations whose fate is unknown need not be in the order.
    while left > 0 {
        let (op, is_call) = events.of[at];
        if !is_call {
            // It returned before anything that is still to come was called: one of those before it
            // was put into the order too early.
            let Some((last, before)) = order.pop() else { return false };
            value = before;
            done[last / 64] &= !(1 << (last % 64));
            left += ops[last].end.is_some() as usize;
            events.put_back(last);
            at = events.next[events.call[last]];
            continue;
        }
        let after = match ops[op].did {
            Did::Write(new) => Some(new),
            Did::Read(read) => (read == value).then_some(value),
        };
        if let Some(after) = after {
            done[op / 64] |= 1 << (op % 64);
            if seen.insert((done.clone(), after)) {
                order.push((op, value));
                value = after;
                left -= ops[op].end.is_some() as usize;
                events.take_out(op);
                at = events.next[0];
                continue;
            }
            done[op / 64] &= !(1 << (op % 64));
        }
        at = events.next[at];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::Did::{Read, Write};
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    fn op(call: u64, end: u64, did: Did) -> Op {
        Op { call, end: Some(end), did }
    }

    fn unknown(call: u64, did: Did) -> Op {
        Op { call, end: None, did }
    }

    #[test]
    fn one_after_another() {
        assert!(is_linearizable(&[]));
        assert!(is_linearizable(&[op(0, 1, Read(0)), op(2, 3, Write(1)), op(4, 5, Read(1))]));
        assert!(!is_linearizable(&[op(0, 1, Write(1)), op(2, 3, Read(0))]), "a stale read");
        assert!(!is_linearizable(&[op(0, 1, Read(7))]), "a value from nowhere");
        assert!(
            !is_linearizable(&[op(0, 1, Write(1)), op(2, 3, Write(2)), op(4, 5, Read(1))]),
            "a lost write"
        );
    }

    #[test]
    fn what_overlaps_may_be_in_either_order_but_in_one() {
        let writes = [op(0, 10, Write(1)), op(0, 10, Write(2))];
        let with = |reads: &[Op]| is_linearizable(&[&writes[..], reads].concat());
        assert!(with(&[op(11, 12, Read(1))]));
        assert!(with(&[op(11, 12, Read(2))]));
        assert!(with(&[op(3, 4, Read(1)), op(5, 6, Read(2))]));
        assert!(!with(&[op(11, 12, Read(1)), op(13, 14, Read(2))]), "the order changes afterwards");
        assert!(!with(&[op(3, 4, Read(1)), op(5, 6, Read(2)), op(11, 12, Read(1))]), "back to the first");
        assert!(!with(&[op(3, 4, Read(1)), op(5, 6, Read(0))]), "a read that goes back in time");
    }

    #[test]
    fn an_unknown_write_may_have_happened_at_any_time_or_never() {
        let lost = unknown(0, Write(1));
        assert!(is_linearizable(&[lost, op(5, 6, Read(0)), op(7, 8, Read(0))]));
        assert!(is_linearizable(&[lost, op(5, 6, Read(0)), op(7, 8, Read(1))]));
        assert!(!is_linearizable(&[lost, op(5, 6, Read(1)), op(7, 8, Read(0))]), "it is undone");
        assert!(
            !is_linearizable(&[op(0, 1, Read(1)), unknown(2, Write(1))]),
            "it is read before it is called"
        );
    }

    /// Histories made by a register: all are linearizable; with one read changed, most are not, and
    /// the search agrees with trying all orders.
    #[test]
    fn it_agrees_with_trying_every_order() {
        fn every_order(ops: &[Op], left: &mut Vec<usize>, value: u64) -> bool {
            if left.iter().all(|n| ops[*n].end.is_none()) {
                return true;
            }
            for i in 0..left.len() {
                let n = left[i];
                let first = left.iter().all(|m| ops[*m].end.is_none_or(|end| end >= ops[n].call));
                let after = match ops[n].did {
                    Did::Write(new) => new,
                    Did::Read(read) if read == value => value,
                    Did::Read(_) => continue,
                };
                left.remove(i);
                let good = first && every_order(ops, left, after);
                left.insert(i, n);
                if good {
                    return true;
                }
            }
            false
        }
        let (mut yes, mut no) = (0, 0);
        for seed in 0..3000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut value = 0;
            let mut ops: Vec<Op> = vec![];
            for n in 1..8u64 {
                // It takes effect at 10 n, and overlaps with its neighbours.
                let (call, end) =
                    (10 * n - rng.random_range(0..25).min(10 * n), 10 * n + rng.random_range(0..25));
                let did = match rng.random_bool(0.5) {
                    true => {
                        value = n;
                        Did::Write(n)
                    }
                    false => Did::Read(value),
                };
                ops.push(Op { call, end: rng.random_bool(0.9).then_some(end), did });
            }
            assert!(is_linearizable(&ops), "seed {seed}: {ops:?}");
            let changed = rng.random_range(0..ops.len());
            if let Did::Read(_) = ops[changed].did {
                ops[changed].did = Did::Read(rng.random_range(0..8));
            }
            let good = is_linearizable(&ops);
            let mut all = (0..ops.len()).collect();
            assert_eq!(good, every_order(&ops, &mut all, 0), "seed {seed}: {ops:?}");
            if good { yes += 1 } else { no += 1 }
        }
        println!("{yes} linearizable, {no} not");
        assert!(yes > 100 && no > 100);
    }
}
