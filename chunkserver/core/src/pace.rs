//! How fast chunks are copied from and to this store while clients wait for it: so fast that what
//! they wait for - flushes of the log, small reads - takes little longer than in quiet times.
//!
//! A controller of the delay-based kind (the idea of LEDBAT, RFC 6817): what latencies are without
//! copies is learned; far above it the rate falls by a factor, else it grows again. Without clients
//! there is no limit; with them it never falls below a floor, so that every copy ends.

use common::limits::COPY_FLOOR_BYTES_PER_S;
use common::{Span, Time};

/// What clients wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// A group of the log with small writes in it: from its write to its durability.
    Flush = 0,
    /// The same, if data of extents is made durable with it.
    BulkFlush = 1,
    /// A read of at most `SMALL_READ_BYTES` that needs the disk.
    Read = 2,
}

/// Longer reads take as long as their bytes: they say little.
pub(crate) const SMALL_READ_BYTES: u32 = 64 * 1024;

/// The rate is judged this often, in milliseconds, if enough was measured; else later.
const PERIOD_MS: u64 = 200;
/// What fewer measurements say is chance.
const SAMPLES_MIN: usize = 4;
/// Fewer than that in this time: nobody is in a hurry, in milliseconds.
const IDLE_MS: u64 = 1000;
/// Of a period so many measurements count; what comes after them is chance enough.
const SAMPLES_MAX: usize = 64;
/// What latencies are when nothing is copied follows them by this part of the difference.
const FOLLOWS: u64 = 8;
/// While copies go on they slow down to the floor this often, for so many periods, to see what
/// latencies are without them.
const LOOK_EVERY_MS: u64 = 30_000;
const LOOK_PERIODS: u32 = 5;
/// Latencies may grow to this share of the quiet ones, in percent. What is judged follows what is
/// measured by a part of the difference, and no measurement counts for more than the last.
const GROWTH_PERCENT: u64 = 200;
const GROWTH_FOLLOWS: u64 = 4;
const GROWTH_MAX: u64 = 800;
/// The rate with which copies begin while clients are at work, in bytes a second.
const FIRST_RATE: u64 = 32 << 20;
/// Above this there is no limit, in bytes a second.
const UNLIMITED_RATE: u64 = 2 << 30;

/// Latencies of one kind.
#[derive(Clone, Debug, Default)]
struct Gauge {
    /// Those of this period, in nanoseconds.
    samples: Vec<u64>,
    /// What they are when nothing is copied; 0: not known yet.
    quiet_ns: u64,
}

impl Gauge {
    /// The period's third quartile as a share of the quiet one, in percent; the next period begins.
    fn judge(&mut self, learn: bool) -> Option<u64> {
        let mut samples = std::mem::take(&mut self.samples);
        if samples.len() < SAMPLES_MIN {
            return None;
        }
        let at = samples.len() * 3 / 4;
        let now = *samples.select_nth_unstable(at).1;
        if self.quiet_ns == 0 {
            self.quiet_ns = now;
        } else if learn {
            self.quiet_ns = (self.quiet_ns - self.quiet_ns / FOLLOWS + now / FOLLOWS).max(1);
        }
        Some(now.saturating_mul(100) / self.quiet_ns)
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
    /// How many periods a look at the quiet latencies still takes, the rate to go on with then, and when
    /// the last one began.
    look: u32,
    resume: u64,
    looked: Time,
    gauges: [Gauge; 3],
    /// The worst of them of late, smoothed.
    growth: u64,
}

impl Pace {
    /// Somebody waited so long. No time at all is no measurement.
    pub fn waited(&mut self, now: Time, what: Wait, latency: Span) {
        if latency.0 > 0 {
            let gauge = &mut self.gauges[what as usize];
            if gauge.samples.len() < SAMPLES_MAX {
                gauge.samples.push(latency.0);
            }
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
        let measured = self.gauges.iter().any(|g| g.samples.len() >= SAMPLES_MIN);
        if elapsed < Span::from_ms(if measured { PERIOD_MS } else { IDLE_MS }) {
            return;
        }
        self.period = now;
        let copied = std::mem::take(&mut self.copied);
        // The first period of a look still feels the copies before it.
        let learn = !copied || (1..LOOK_PERIODS).contains(&self.look);
        let worst = self.gauges.iter_mut().filter_map(|gauge| gauge.judge(learn)).max();
        if let Some(growth) = worst.filter(|_| self.look == 0) {
            let (before, now) = (self.growth, growth.min(GROWTH_MAX));
            self.growth = before - before / GROWTH_FOLLOWS + now / GROWTH_FOLLOWS;
        }
        if self.look > 0 {
            self.look -= 1;
            if self.look == 0 {
                self.rate = Some(self.resume);
            }
            return;
        }
        self.rate = match (worst, self.rate) {
            // Nobody waits.
            (None, rate) => rate.map(|r| r.saturating_mul(2)),
            (Some(_), None) if !copied => None,
            (Some(_), None) => {
                self.begin_look(now, FIRST_RATE);
                return;
            }
            (Some(_), Some(rate)) if self.growth > GROWTH_PERCENT => Some(rate / 10 * 8),
            (Some(_), Some(rate)) => Some(rate / 10 * 11),
        };
        self.rate = self.rate.map(|r| r.max(COPY_FLOOR_BYTES_PER_S)).filter(|r| *r < UNLIMITED_RATE);
        let limited = self.rate.filter(|_| copied && now.since(self.looked) >= Span::from_ms(LOOK_EVERY_MS));
        if let Some(rate) = limited {
            self.begin_look(now, rate);
        }
    }

    fn begin_look(&mut self, now: Time, resume: u64) {
        (self.look, self.resume, self.looked) = (LOOK_PERIODS, resume, now);
        self.rate = Some(COPY_FLOOR_BYTES_PER_S);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Ten flushes in 200 ms, of these latencies in turn, while a piece is copied: the rate then.
    fn period(pace: &mut Pace, now: &mut Time, latency_us: impl Fn(u64) -> u64) -> Option<u64> {
        for n in 0..10 {
            *now = Time(now.0 + 20 * MS);
            pace.waited(*now, Wait::Flush, Span(latency_us(now.0 / MS + n) * 1000));
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
            period(&mut pace, &mut now, |_| 500);
        }
        let calm = period(&mut pace, &mut now, |_| 500).expect("clients are at work");
        assert!(calm > COPY_FLOOR_BYTES_PER_S, "{calm}");
        for _ in 0..50 {
            period(&mut pace, &mut now, |_| 5000);
        }
        assert_eq!(pace.rate(), Some(COPY_FLOOR_BYTES_PER_S), "the floor, and not less");
        for _ in 0..30 {
            period(&mut pace, &mut now, |_| 600);
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
            period(&mut pace, &mut now, |_| 500);
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
            period(&mut pace, &mut now, |_| 500);
        }
        let best = (0..20 * 60 * 5).map(|_| period(&mut pace, &mut now, |_| 5000)).skip(20 * 60 * 4).max();
        assert!(best.flatten() > Some(2 * COPY_FLOOR_BYTES_PER_S), "{best:?}");
    }

    /// Latencies that are all over the place by themselves are no reason to stop.
    #[test]
    fn noise_does_not_hold_copies_up() {
        let (mut pace, mut now) = (Pace::default(), Time(0));
        let noise = |n: u64| 300 + n * 7919 % 97 * 10 + if n.is_multiple_of(20) { 20_000 } else { 0 };
        let mut low = 0;
        for _ in 0..600 {
            let rate = period(&mut pace, &mut now, noise);
            low += u32::from(rate.is_some_and(|r| r <= COPY_FLOOR_BYTES_PER_S));
        }
        assert!(low < 120, "at the floor in {low} of 600 periods");
    }

    /// What is felt of the copies themselves never counts as quiet, however long they go on.
    #[test]
    fn long_copies_do_not_get_used_to_what_they_do() {
        let (mut pace, mut now) = (Pace::default(), Time(0));
        // 300 us alone, and 10 us more for each MiB a second.
        let mut sum = 0;
        for n in 0..20_000u64 {
            let rate = pace.rate().unwrap_or(200 << 20) >> 20;
            period(&mut pace, &mut now, |_| 300 + 10 * rate);
            sum += if n >= 10_000 { rate } else { 0 };
        }
        // With the floor's 160 us it takes 460 for quiet, and so allows 920: 62 MiB a second.
        let mean = sum / 10_000;
        assert!((35..75).contains(&mean), "{mean} MiB a second");
    }
}
