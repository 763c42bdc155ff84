//! The loads.

use crate::Job;
use anyhow::Context;
use bytes::Bytes;
use client::{Client, Config};
use common::limits::WRITE_BYTES_MAX;
use futures::StreamExt;
use hdrhistogram::Histogram;
use rand::RngExt;
use std::time::{Duration, Instant};

/// What a load came to.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub name: String,
    /// How many.
    pub operations: u64,
    /// Bytes of user data.
    pub bytes: u64,
    /// How long.
    pub seconds: f64,
    /// Latency of one, median, microseconds.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// The longest.
    pub max_us: f64,
    /// CPU-seconds of all Cairn processes, this one too.
    pub cpu_s: f64,
}

impl Row {
    pub(crate) fn mbs(&self) -> f64 {
        self.bytes as f64 / self.seconds / 1e6
    }
    pub(crate) fn ops(&self) -> f64 {
        self.operations as f64 / self.seconds
    }
    pub(crate) fn cpu_per_gib(&self) -> f64 {
        self.cpu_s / (self.bytes as f64 / (1u64 << 30) as f64)
    }
    pub(crate) fn cpu_per_op(&self) -> f64 {
        self.cpu_s * 1e6 / self.operations.max(1) as f64
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

/// Longer latencies count as this: ten minutes, far above any deadline.
const LATENCY_US_MAX: u64 = 600_000_000;

struct Meter {
    began: Instant,
    cpu: f64,
}

impl Meter {
    fn start() -> Meter {
        Meter { cpu: cpu_seconds(), began: Instant::now() }
    }

    fn row(self, name: String, bytes: u64, times: &Histogram<u64>) -> Row {
        let seconds = self.began.elapsed().as_secs_f64();
        Row {
            name,
            operations: times.len(),
            bytes,
            seconds,
            p50_us: times.value_at_quantile(0.5) as f64,
            p99_us: times.value_at_quantile(0.99) as f64,
            max_us: times.max() as f64,
            cpu_s: cpu_seconds() - self.cpu,
        }
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("three digits are allowed")
}

fn record(times: &mut Histogram<u64>, began: Instant) {
    // Saturates far above any deadline.
    times.saturating_record(began.elapsed().as_micros() as u64);
}

/// Runs one load in a directory of its own, which goes away again.
pub(crate) async fn run(config: &Config, job: Job) -> anyhow::Result<Vec<Row>> {
    let client = Client::connect(config.clone()).await?;
    let dir = format!("/bench-{:08x}", rand::random::<u32>()).into_bytes();
    client.mkdir(&dir, true, 0o755).await?;
    let rows = match job {
        Job::Put { mib, streams } => put(&client, &dir, mib, streams).await.map(|row| vec![row]),
        Job::Get { mib, streams } => get(&client, &dir, mib, streams).await,
        Job::Append { bytes, clients, seconds } => {
            append(config, &dir, bytes, clients, seconds).await.map(|row| vec![row])
        }
        Job::Meta { clients, bytes, seconds } => meta(config, &dir, clients, bytes, seconds).await,
        Job::All => unreachable!("taken apart before"),
    };
    client.unlink(&dir, true).await.context("remove the bench directory")?;
    client.empty_trash().await?;
    client.close().await;
    rows
}

fn file_of(dir: &[u8], n: u64) -> Vec<u8> {
    let mut path = dir.to_vec();
    path.extend_from_slice(format!("/{n}").as_bytes());
    path
}

async fn put(client: &Client, dir: &[u8], mib: u64, streams: u32) -> anyhow::Result<Row> {
    let mut block = vec![0; WRITE_BYTES_MAX];
    rand::rng().fill(&mut block[..]);
    let block = Bytes::from(block);
    let each = mib / streams as u64;
    let meter = Meter::start();
    let files = (0..streams as u64).map(|n| {
        let (client, path, block) = (client.clone(), file_of(dir, n), block.clone());
        tokio::spawn(async move {
            let mut times = histogram();
            let mut file = client.put(&path).await?;
            for _ in 0..each {
                let began = Instant::now();
                file.write_block(block.clone()).await?;
                record(&mut times, began);
            }
            let began = Instant::now();
            file.finish(0o644, 0, false).await?;
            record(&mut times, began);
            anyhow::Ok(times)
        })
    });
    let mut times = histogram();
    for file in files.collect::<Vec<_>>() {
        times.add(file.await??)?;
    }
    Ok(meter.row(
        format!("put, {mib} MiB, {streams} streams, durable"),
        each * streams as u64 * 1024 * 1024,
        &times,
    ))
}

async fn get(client: &Client, dir: &[u8], mib: u64, streams: u32) -> anyhow::Result<Vec<Row>> {
    put(client, dir, mib, streams).await?;
    let mut rows = vec![];
    for pass in ["first read", "hot"] {
        let meter = Meter::start();
        let files = (0..streams as u64).map(|n| {
            let (client, path) = (client.clone(), file_of(dir, n));
            tokio::spawn(async move {
                let mut times = histogram();
                let file = client.open(&path).await?;
                let mut parts = Box::pin(file.stream(0, file.len()));
                let mut bytes = 0;
                let mut began = Instant::now();
                while let Some(part) = parts.next().await {
                    bytes += part?.len() as u64;
                    record(&mut times, began);
                    began = Instant::now();
                }
                anyhow::Ok((bytes, times))
            })
        });
        let (mut bytes, mut times) = (0, histogram());
        for file in files.collect::<Vec<_>>() {
            let (n, t) = file.await??;
            bytes += n;
            times.add(t)?;
        }
        rows.push(meter.row(format!("get, {mib} MiB, {streams} streams, {pass}"), bytes, &times));
    }
    Ok(rows)
}

/// Runs `clients` loops for a time; each has a connection of its own.
async fn loops<F, W>(
    config: &Config,
    clients: u32,
    seconds: u64,
    work: F,
) -> anyhow::Result<(Histogram<u64>, u64)>
where
    F: Fn(Client, u32, Instant) -> W,
    W: Future<Output = anyhow::Result<(Histogram<u64>, u64)>> + Send + 'static,
{
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut running = vec![];
    for n in 0..clients {
        let client = Client::connect(config.clone()).await?;
        running.push(tokio::spawn(work(client, n, until)));
    }
    let (mut times, mut bytes) = (histogram(), 0);
    for one in running {
        let (t, b) = one.await??;
        times.add(t)?;
        bytes += b;
    }
    Ok((times, bytes))
}

async fn append(config: &Config, dir: &[u8], bytes: u32, clients: u32, seconds: u64) -> anyhow::Result<Row> {
    let meter = Meter::start();
    let (times, total) = loops(config, clients, seconds, |client, _, until| {
        let path = file_of(dir, 0);
        async move {
            let mut times = histogram();
            let record_bytes = vec![7; bytes as usize];
            let mut appender = client.appender(&path).await?;
            while Instant::now() < until {
                let began = Instant::now();
                appender.append(&record_bytes).await?;
                record(&mut times, began);
            }
            let total = times.len() * bytes as u64;
            client.close().await;
            Ok((times, total))
        }
    })
    .await?;
    Ok(meter.row(format!("append, {bytes} B, {clients} clients"), total, &times))
}

async fn meta(
    config: &Config,
    dir: &[u8],
    clients: u32,
    bytes: u32,
    seconds: u64,
) -> anyhow::Result<Vec<Row>> {
    let mut rows = vec![];
    let meter = Meter::start();
    let (times, total) = loops(config, clients, seconds, |client, n, until| {
        let dir = dir.to_vec();
        async move {
            let mut times = histogram();
            let content = vec![9; bytes as usize];
            let mut i = 0;
            while Instant::now() < until {
                let path = file_of(&dir, n as u64 * 1_000_000_000 + i);
                let began = Instant::now();
                client.create_with(&path, &content).await?;
                record(&mut times, began);
                i += 1;
            }
            let total = times.len() * bytes as u64;
            client.close().await;
            Ok((times, total))
        }
    })
    .await?;
    rows.push(meter.row(format!("create {bytes} B files, {clients} clients"), total, &times));
    let meter = Meter::start();
    /// Lookups that one client has under way.
    const DEPTH: usize = 16;
    let (times, total) = loops(config, clients, seconds, |client, n, until| {
        let path = file_of(dir, n as u64 * 1_000_000_000);
        async move {
            let one = |_| {
                let (client, path) = (client.clone(), path.clone());
                async move {
                    let began = Instant::now();
                    client.lookup(&path).await.map(|_| began)
                }
            };
            let mut times = histogram();
            let mut lookups = futures::stream::iter(0..).map(one).buffer_unordered(DEPTH);
            while Instant::now() < until {
                let Some(began) = lookups.next().await else {
                    break;
                };
                record(&mut times, began?);
            }
            drop(lookups);
            client.close().await;
            Ok((times, 0))
        }
    })
    .await?;
    rows.push(meter.row(format!("lookup, {clients} clients x {DEPTH}"), total, &times));
    Ok(rows)
}
