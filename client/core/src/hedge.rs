//! When a second replica is asked: after the time within which nearly all reads are answered.
//! (Dean and Barroso, "The Tail at Scale", CACM 2013: hedged requests.)

/// Samples that are remembered.
const SAMPLES: usize = 128;
/// The quantile is computed anew after so many.
const EVERY: usize = 16;
/// Never sooner than this, and never later, in microseconds: below it hedging costs more than it
/// gains, above it a hung server would be noticed.
const BOUNDS_US: (u64, u64) = (5_000, 100_000);
/// Before anything was measured, in microseconds.
const FIRST_US: u64 = 50_000;

/// Times that reads took lately.
#[derive(Clone, Debug)]
pub struct Hedge {
    samples: Vec<u64>,
    next: usize,
    after_us: u64,
}

impl Default for Hedge {
    fn default() -> Self {
        Hedge { samples: Vec::with_capacity(SAMPLES), next: 0, after_us: FIRST_US }
    }
}

impl Hedge {
    /// A read was answered after so many microseconds.
    pub fn answered(&mut self, us: u64) {
        if self.samples.len() < SAMPLES {
            self.samples.push(us);
        } else {
            self.samples[self.next] = us;
        }
        self.next = (self.next + 1) % SAMPLES;
        if self.next.is_multiple_of(EVERY) {
            let mut sorted = self.samples.clone();
            let at = (sorted.len() * 95 / 100).min(sorted.len() - 1);
            let (_, p95, _) = sorted.select_nth_unstable(at);
            self.after_us = (2 * *p95).clamp(BOUNDS_US.0, BOUNDS_US.1);
        }
    }

    /// Ask another replica after so many microseconds: twice the 95th percentile.
    pub fn after_us(&self) -> u64 {
        self.after_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_what_reads_take_within_bounds() {
        let mut hedge = Hedge::default();
        assert_eq!(hedge.after_us(), FIRST_US);
        for _ in 0..SAMPLES {
            hedge.answered(10);
        }
        assert_eq!(hedge.after_us(), BOUNDS_US.0);
        // Fewer than one in twenty are slow: they are what is hedged.
        for n in 0..SAMPLES {
            hedge.answered(if n % 25 == 0 { 900_000 } else { 10_000 });
        }
        assert_eq!(hedge.after_us(), 20_000);
        for _ in 0..SAMPLES {
            hedge.answered(900_000);
        }
        assert_eq!(hedge.after_us(), BOUNDS_US.1);
    }
}
