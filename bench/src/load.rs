//! Puts a load on something and takes the time of each operation.
//!
//! A load is *closed* - each client asks again when it was answered - or *open*: operations become due at a
//! rate of their own, as from users who do not know of each other. One that becomes due while its client still waits
//! counts from when it was due, so that a stall shows in the latency of all that it held up ("coordinated
//! omission", Gil Tene).

use hdrhistogram::Histogram;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::time::{Duration, Instant};

/// How a load comes.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Clients at a time; each has connections of its own.
    pub clients: u32,
    /// For how long, in seconds.
    pub seconds: u64,
    /// Operations a second that become due, of all clients together. None: each when the last was answered.
    pub rate: Option<f64>,
}

impl Plan {
    /// So many at a time, until nothing is left to do.
    pub(crate) fn to_the_end(clients: u32) -> Plan {
        Plan { clients, seconds: END_SECONDS, rate: None }
    }
}

/// A load that is to do all there is to do ends after a day, whatever happens.
const END_SECONDS: u64 = 24 * 3600;
/// Longer latencies count as this: ten minutes, far above any deadline.
const LATENCY_US_MAX: u64 = 600_000_000;
/// Operations are counted over time by slots of this length.
pub(crate) const SLOT: Duration = Duration::from_millis(100);
/// Slots that are kept: an hour.
const SLOTS_MAX: usize = 36_000;

/// An operation was done.
pub(crate) struct Done {
    /// Which kind it was: an index into the names that the load was given.
    pub kind: usize,
    /// Bytes of user data that it moved.
    pub bytes: u64,
}

/// Does one operation after the other.
pub(crate) trait Worker: Send + 'static {
    /// Does one. None: there is nothing left to do.
    fn step(&mut self) -> impl Future<Output = anyhow::Result<Option<Done>>> + Send;
}

/// What operations of one kind came to.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which measurement it is of.
    pub group: String,
    /// Which kind of it.
    pub name: String,
    /// Bytes of user data.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// Latencies in microseconds.
    pub times: Histogram<u64>,
    /// Operations that ended in each slot of time.
    pub slots: Vec<u32>,
    /// CPU-seconds of all Cairn processes, this one too; of all kinds of the measurement together.
    pub cpu_s: f64,
    /// Operations of all kinds.
    pub of_all: u64,
}

impl Row {
    pub(crate) fn mbs(&self) -> f64 {
        self.bytes as f64 / self.seconds / 1e6
    }

    pub(crate) fn ops(&self) -> f64 {
        self.times.len() as f64 / self.seconds
    }

    /// A latency, in microseconds.
    pub(crate) fn at(&self, quantile: f64) -> f64 {
        self.times.value_at_quantile(quantile) as f64
    }

    pub(crate) fn cpu_per_gib(&self) -> f64 {
        self.cpu_s / (self.bytes as f64 / (1u64 << 30) as f64)
    }

    pub(crate) fn cpu_per_op(&self) -> f64 {
        self.cpu_s * 1e6 / self.of_all.max(1) as f64
    }
}

/// CPU-seconds so far of all processes that run this binary.
fn cpu_seconds() -> f64 {
    let Ok(me) = std::fs::read_link("/proc/self/exe") else {
        return 0.0;
    };
    let Ok(all) = std::fs::read_dir("/proc") else {
        return 0.0;
    };
    let ticks = all.flatten().filter_map(|p| {
        let path = p.path();
        (std::fs::read_link(path.join("exe")).ok()? == me).then_some(())?;
        let stat = std::fs::read_to_string(path.join("stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    });
    // USER_HZ is 100 on every Linux.
    ticks.sum::<u64>() as f64 / 100.0
}

/// What operations of one kind came to with one worker, or with all.
struct Tally {
    times: Histogram<u64>,
    bytes: u64,
    slots: Vec<u32>,
}

impl Tally {
    fn new() -> Tally {
        let times = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("three digits are allowed");
        Tally { times, bytes: 0, slots: vec![] }
    }

    fn note(&mut self, start: Instant, due: Instant, bytes: u64) {
        self.times.saturating_record(due.elapsed().as_micros() as u64);
        self.bytes += bytes;
        let slot = (start.elapsed().as_nanos() / SLOT.as_nanos()) as usize;
        if slot < SLOTS_MAX {
            self.slots.resize(self.slots.len().max(slot + 1), 0);
            self.slots[slot] += 1;
        }
    }

    fn add(&mut self, other: &Tally) {
        self.times.add(&other.times).expect("the same bounds");
        self.bytes += other.bytes;
        self.slots.resize(self.slots.len().max(other.slots.len()), 0);
        self.slots.iter_mut().zip(&other.slots).for_each(|(sum, n)| *sum += n);
    }
}

/// When the operations of one worker become due: at random, as of many independent users.
struct Arrivals {
    rng: StdRng,
    /// Between two, on average.
    mean: f64,
    next: Instant,
}

impl Arrivals {
    fn next(&mut self) -> Instant {
        // 1 - x is never 0.
        let gap = -(1.0 - self.rng.random::<f64>()).ln() * self.mean;
        self.next += Duration::from_secs_f64(gap);
        self.next
    }
}

/// Runs all workers until they have nothing left to do, or the time is over. Gives a row for each kind.
pub(crate) async fn drive<W: Worker>(
    group: &str,
    kinds: &[&str],
    plan: &Plan,
    workers: Vec<W>,
) -> anyhow::Result<Vec<Row>> {
    let cpu = cpu_seconds();
    let start = Instant::now();
    let until = start + Duration::from_secs(plan.seconds);
    let (count, share) = (kinds.len(), workers.len() as f64);
    let mut running = tokio::task::JoinSet::new();
    for (n, worker) in workers.into_iter().enumerate() {
        let arrivals = plan.rate.map(|rate| Arrivals {
            rng: StdRng::seed_from_u64(n as u64),
            mean: share / rate,
            next: start,
        });
        running.spawn(work(worker, count, arrivals, start, until));
    }
    let mut all: Vec<Tally> = kinds.iter().map(|_| Tally::new()).collect();
    while let Some(tallies) = running.join_next().await {
        all.iter_mut().zip(&tallies??).for_each(|(sum, tally)| sum.add(tally));
    }
    let (seconds, cpu_s) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let of_all = all.iter().map(|tally| tally.times.len()).sum();
    let row = |(name, tally): (&&str, Tally)| Row {
        group: group.into(),
        name: (*name).into(),
        bytes: tally.bytes,
        seconds,
        times: tally.times,
        slots: tally.slots,
        cpu_s,
        of_all,
    };
    Ok(kinds.iter().zip(all).map(row).collect())
}

async fn work<W: Worker>(
    mut worker: W,
    kinds: usize,
    mut arrivals: Option<Arrivals>,
    start: Instant,
    until: Instant,
) -> anyhow::Result<Vec<Tally>> {
    let mut tallies: Vec<Tally> = (0..kinds).map(|_| Tally::new()).collect();
    loop {
        let mut due = Instant::now();
        if let Some(arrivals) = &mut arrivals {
            let next = arrivals.next();
            if next >= until {
                break;
            }
            if next > due {
                tokio::time::sleep_until(next.into()).await;
                // That a timer rings late is no fault of whom is measured.
                due = Instant::now();
            } else {
                due = next;
            }
        } else if due >= until {
            break;
        }
        let Some(done) = worker.step().await? else { break };
        tallies[done.kind].note(start, due, done.bytes);
    }
    Ok(tallies)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stands still once.
    struct Stalls(u32);

    /// For so long, which is far above what a busy machine adds.
    const STALL: Duration = Duration::from_millis(600);

    impl Worker for Stalls {
        async fn step(&mut self) -> anyhow::Result<Option<Done>> {
            self.0 += 1;
            if self.0 == 10 {
                tokio::time::sleep(STALL).await;
            }
            Ok(Some(Done { kind: 0, bytes: 1 }))
        }
    }

    #[tokio::test]
    async fn a_stall_counts_for_all_that_became_due_meanwhile() {
        let plan = Plan { clients: 1, seconds: 2, rate: Some(200.0) };
        let rows = drive("stall", &["step"], &plan, vec![Stalls(0)]).await.expect("nothing fails");
        let row = &rows[0];
        assert!(row.times.len() > 250 && row.bytes == row.times.len(), "{} operations", row.times.len());
        // About 120 were due in those 600 ms of 2 s: the slowest tenth, at least, waited.
        assert!(row.at(0.9) > 100_000.0, "p90 {} us", row.at(0.9));
        assert!(row.at(1.0) >= 600_000.0 * 0.95);
        assert_eq!(row.slots.iter().map(|n| *n as u64).sum::<u64>(), row.times.len());
    }

    #[tokio::test]
    async fn a_closed_load_counts_a_stall_once() {
        struct Ends(Stalls);
        impl Worker for Ends {
            async fn step(&mut self) -> anyhow::Result<Option<Done>> {
                if self.0.0 == 1000 { Ok(None) } else { self.0.step().await }
            }
        }
        let plan = Plan::to_the_end(1);
        let rows = drive("stall", &["step"], &plan, vec![Ends(Stalls(0))]).await.expect("nothing fails");
        assert_eq!(rows[0].times.len(), 1000);
        assert!(rows[0].at(0.9) < 100_000.0 && rows[0].at(1.0) >= 600_000.0 * 0.95);
    }
}
