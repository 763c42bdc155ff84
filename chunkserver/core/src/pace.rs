//! How fast chunks are copied from and to this store while clients wait for it: so fast that what
//! they wait for - flushes of the log, small reads - takes little longer than in quiet times.
//!
//! A controller of the delay-based kind (the idea of LEDBAT, RFC 6817): the least mean latency of
//! late is what the disk can do when left alone; above it the rate falls by a factor, below it grows
//! again. Without clients there is no limit; with them it never falls below a floor, so that
//! every copy ends.

use common::limits::COPY_FLOOR_BYTES_PER_S;
use common::{Span, Time};

/// What clients wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// A group of the log with writes in it: from its write to its durability.
    Flush = 0,
    /// A read of at most `SMALL_READ_BYTES` that needs the disk.
    Read = 1,
}

/// Longer reads take as long as their bytes: they say little.
pub(crate) const SMALL_READ_BYTES: u32 = 64 * 1024;

/// The rate is judged this often, in milliseconds, if enough was measured; else later.
const PERIOD_MS: u64 = 200;
/// What fewer measurements say is chance.
const SAMPLES_MIN: u64 = 4;
/// Fewer than that in this time: nobody is in a hurry, in milliseconds.
const IDLE_MS: u64 = 1000;
/// What the disk can do when left alone is what it did in the last one or two of these.
const QUIET_WINDOW_MS: u64 = 300_000;
/// Latencies may grow to this share of the quiet ones, in percent.
const GROWTH_PERCENT: u64 = 150;
/// The rate with which copies begin while clients are at work, in bytes a second.
const FIRST_RATE: u64 = 16 << 20;
/// Above this there is no limit, in bytes a second.
const UNLIMITED_RATE: u64 = 2 << 30;

/// Latencies of one kind.
#[derive(Clone, Copy, Debug, Default)]
struct Gauge {
    sum_ns: u64,
    count: u64,
    /// The least mean of this window and of the last one; 0: none yet.
    quiet_ns: [u64; 2],
}

impl Gauge {
    /// The mean of the period as a share of the quiet one, in percent; the next period begins.
    fn judge(&mut self) -> Option<u64> {
        let (sum, count) = (std::mem::take(&mut self.sum_ns), std::mem::take(&mut self.count));
        let mean = (sum / count.max(1)).max(1);
        if count < SAMPLES_MIN {
            return None;
        }
        let least = |a: u64, b: u64| if a == 0 || b == 0 { a.max(b) } else { a.min(b) };
        self.quiet_ns[0] = least(self.quiet_ns[0], mean);
        Some(mean.saturating_mul(100) / least(self.quiet_ns[0], self.quiet_ns[1]))
    }
}

/// The pace of a store's copies.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pace {
    /// Bytes a second; `None`: no limit.
    rate: Option<u64>,
    /// When the next piece may be copied.
    next: Time,
    /// A copy was paced since the last judgement.
    copied: bool,
    period: Time,
    window: Time,
    gauges: [Gauge; 2],
}

impl Pace {
    /// Somebody waited so long. No time at all is no measurement.
    pub fn waited(&mut self, now: Time, what: Wait, latency: Span) {
        if latency.0 > 0 {
            let gauge = &mut self.gauges[what as usize];
            gauge.sum_ns = gauge.sum_ns.saturating_add(latency.0);
            gauge.count += 1;
            self.judge(now);
        }
    }

    /// When a piece of so many bytes may be copied, from now on: it is taken to be.
    pub fn book(&mut self, now: Time, bytes: u64) -> Time {
        self.judge(now);
        self.copied = true;
        let Some(rate) = self.rate else { return now };
        let at = self.next.max(now);
        self.next = at + Span(bytes.saturating_mul(1_000_000_000) / rate);
        at
    }

    /// Bytes a second at most, if there is a limit.
    pub fn rate(&self) -> Option<u64> {
        self.rate
    }

    fn judge(&mut self, now: Time) {
        let elapsed = now.since(self.period);
        let measured = self.gauges.iter().any(|g| g.count >= SAMPLES_MIN);
        if elapsed < Span::from_ms(if measured { PERIOD_MS } else { IDLE_MS }) {
            return;
        }
        self.period = now;
        if now.since(self.window) >= Span::from_ms(QUIET_WINDOW_MS) {
            self.window = now;
            for gauge in &mut self.gauges {
                gauge.quiet_ns = [0, gauge.quiet_ns[0]];
            }
        }
        let worst = self.gauges.iter_mut().filter_map(Gauge::judge).max();
        let copied = std::mem::take(&mut self.copied);
        self.rate = match (worst, self.rate) {
            // Nobody waits.
            (None, rate) => rate.map(|r| r.saturating_mul(2)),
            (Some(_), None) if !copied => None,
            (Some(_), None) => Some(FIRST_RATE),
            (Some(growth), Some(rate)) if growth > GROWTH_PERCENT => Some(rate / 10 * 7),
            (Some(_), Some(rate)) => Some(rate / 10 * 11),
        };
        self.rate = self.rate.map(|r| r.max(COPY_FLOOR_BYTES_PER_S)).filter(|r| *r < UNLIMITED_RATE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Ten flushes in 200 ms, of this latency, while a piece is copied: the rate then.
    fn period(pace: &mut Pace, now: &mut Time, latency_us: u64) -> Option<u64> {
        for _ in 0..10 {
            *now = Time(now.0 + 20 * MS);
            pace.waited(*now, Wait::Flush, Span(latency_us * 1000));
        }
        pace.book(*now, 1);
        pace.rate()
    }

    #[test]
    fn without_clients_there_is_no_limit() {
        let mut pace = Pace::default();
        for ms in 0..5000 {
            assert_eq!(pace.book(Time(ms * MS), 256 << 10), Time(ms * MS));
        }
    }

    #[test]
    fn copies_yield_to_slow_flushes_and_come_back() {
        let (mut pace, mut now) = (Pace::default(), Time(0));
        for _ in 0..10 {
            period(&mut pace, &mut now, 500);
        }
        let calm = period(&mut pace, &mut now, 500).expect("clients are at work");
        assert!(calm > FIRST_RATE, "{calm}");
        for _ in 0..50 {
            period(&mut pace, &mut now, 5000);
        }
        assert_eq!(pace.rate(), Some(COPY_FLOOR_BYTES_PER_S), "the floor, and not less");
        for _ in 0..20 {
            period(&mut pace, &mut now, 600);
        }
        assert!(pace.rate() > Some(4 * COPY_FLOOR_BYTES_PER_S), "{:?}", pace.rate());
        // The clients stop: soon there is no limit.
        for _ in 0..20 {
            now = Time(now.0 + 1000 * MS);
            pace.book(now, 1);
        }
        assert_eq!(pace.rate(), None);
    }

    #[test]
    fn a_booked_byte_takes_its_time() {
        let (mut pace, mut now) = (Pace::default(), Time(0));
        for _ in 0..3 {
            period(&mut pace, &mut now, 500);
        }
        let rate = pace.rate().expect("clients are at work");
        let first = pace.book(now, rate / 10);
        let second = pace.book(now, rate / 10);
        assert!(second.since(first).0.abs_diff(100 * MS) < MS, "{first:?} {second:?}");
    }

    /// A disk that has become slower for good is not waited for for ever.
    #[test]
    fn what_is_quiet_is_learned_anew() {
        let (mut pace, mut now) = (Pace::default(), Time(0));
        for _ in 0..10 {
            period(&mut pace, &mut now, 500);
        }
        let periods = 2 * QUIET_WINDOW_MS / PERIOD_MS + 10;
        for _ in 0..periods {
            period(&mut pace, &mut now, 5000);
        }
        assert!(pace.rate().is_none_or(|r| r > COPY_FLOOR_BYTES_PER_S), "{:?}", pace.rate());
    }
}
