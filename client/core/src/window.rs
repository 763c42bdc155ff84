//! How many writes of a stream are under way at a time: as many as keep a fast path busy, and fewer where each takes
//! long. There they only wait in queues, and everything else that goes the same way waits behind them.
//! (Delay as the sign of a full path: Brakmo and Peterson, "TCP Vegas", IEEE JSAC 1995.)

/// Writes at the beginning, before anything is known.
const FIRST: usize = 2;
/// A write that took less than this, in milliseconds, says that there is room for one more; one that took longer than
/// the other that there is one too many.
const FAST_MS: u64 = 300;
const SLOW_MS: u64 = 800;
/// More than so many only where a write took less than this: it waits for disks, which take many at a time, not for a
/// link that others share.
const FEW: usize = 6;
const NEAR_MS: u64 = 50;

/// The bound of one stream.
#[derive(Clone, Debug)]
pub struct Window {
    now: usize,
    most: usize,
}

impl Window {
    /// A bound that never is above this.
    pub fn new(most: usize) -> Window {
        assert!(most >= FIRST, "a stream has at least {FIRST} writes under way");
        Window { now: FIRST, most }
    }

    /// Whether so many under way are enough.
    pub fn is_full(&self, under_way: usize) -> bool {
        under_way >= self.now
    }

    /// A write took so many milliseconds.
    pub fn done(&mut self, ms: u64) {
        let most = if ms < NEAR_MS { self.most } else { self.most.min(FEW) };
        match ms {
            ..FAST_MS => self.now = (self.now + 1).min(most),
            FAST_MS..=SLOW_MS => {}
            _ => self.now = (self.now - 1).max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_while_writes_are_fast_and_shrinks_to_one_while_they_are_slow() {
        let mut window = Window::new(6);
        assert!(!window.is_full(1) && window.is_full(2));
        (0..10).for_each(|_| window.done(5));
        assert!(!window.is_full(5) && window.is_full(6));
        window.done(500);
        assert!(window.is_full(6) && !window.is_full(5));
        (0..10).for_each(|_| window.done(2000));
        assert!(window.is_full(1) && !window.is_full(0));
    }

    #[test]
    fn many_are_under_way_only_where_nothing_is_far() {
        let mut window = Window::new(12);
        (0..20).for_each(|_| window.done(100));
        assert!(window.is_full(6) && !window.is_full(5));
        (0..20).for_each(|_| window.done(10));
        assert!(window.is_full(12) && !window.is_full(11));
        window.done(100);
        assert!(window.is_full(6));
    }
}
