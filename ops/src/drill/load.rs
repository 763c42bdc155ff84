//! The load of a drill: record appenders, a stream of puts, a metadata loop, readers. Remembers
//! what was acknowledged, and checks it.

use super::registers::{REGISTERS, REST, Registers};
use anyhow::{Context, bail};
use client::{Client, Config};
use common::limits::WRITE_BYTES_MAX;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

const APPENDERS: u64 = 8;
/// Writers and readers of registers.
const REGISTER_USERS: u64 = 6;
const RECORD_BYTES: usize = 4096;
/// An operation that takes longer than this is noted in the log.
const SLOW: Duration = Duration::from_millis(300);
/// Bytes of the file that is read all the time.
const READ_BYTES: usize = 4 * WRITE_BYTES_MAX;
/// A stream of puts.
#[derive(Clone, Copy, Debug)]
pub struct Puts {
    /// Writes of each file, 1 MiB each.
    pub blocks: u64,
    /// Between two files.
    pub pause: Duration,
}

impl Puts {
    /// What most drills put.
    pub const USUAL: Puts = Puts { blocks: 128, pause: Duration::ZERO };
    /// One put of 1 GiB.
    pub const LONG: Puts = Puts { blocks: 1024, pause: Duration::ZERO };
    /// As much as a drill of minutes can keep.
    pub const SLOW: Puts = Puts { blocks: 32, pause: Duration::from_secs(1) };
}

/// What was acknowledged.
#[derive(Clone, Debug)]
pub enum Acked {
    /// A record: who, which, where.
    Record(u64, u64, u64),
    /// A file of the stream: which.
    Put(u64),
    /// A small file: which.
    Small(u64),
}

/// Operations of one kind, on one side of the mark.
#[derive(Clone, Copy, Debug, Default)]
pub struct Side {
    /// The one that took longest.
    pub longest: Duration,
    /// How many were acknowledged.
    done: u32,
    /// Of the time, that without the longest gap.
    time: Duration,
}

impl Side {
    /// Operations a second, while there was no gap.
    pub fn per_s(&self) -> f64 {
        f64::from(self.done) / self.time.as_secs_f64().max(1e-3)
    }
}

/// What came of a load.
pub struct Report {
    /// Before the mark and after it, by kind of load.
    pub sides: BTreeMap<&'static str, [Side; 2]>,
    /// What was acknowledged.
    pub acked: Vec<Acked>,
    /// What readers and writers of registers did.
    pub registers: Registers,
}

struct Shared {
    stop: AtomicBool,
    began: Instant,
    marked: OnceLock<Instant>,
    acked: Mutex<Vec<Acked>>,
    sides: Mutex<BTreeMap<&'static str, [Side; 2]>>,
    registers: Registers,
    puts: Puts,
    /// Errors are allowed when everything is killed: then nothing can answer.
    strict: bool,
}

impl Shared {
    fn done(&self, kind: &'static str, began: Instant, acked: Option<Acked>) {
        self.acked.lock().expect("never poisoned").extend(acked);
        let took = began.elapsed();
        if took > SLOW {
            tracing::debug!(kind, ms = took.as_millis() as u64, "a slow operation ended");
        }
        let mut sides = self.sides.lock().expect("never poisoned");
        let side = &mut sides.entry(kind).or_default()[usize::from(self.marked.get().is_some())];
        side.longest = took.max(side.longest);
        side.done += 1;
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// A load that runs.
pub struct Load {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<anyhow::Result<()>>>,
    round: u32,
}

fn dir(round: u32) -> Vec<u8> {
    format!("/drill-{round}").into_bytes()
}

fn below(round: u32, name: &str) -> Vec<u8> {
    format!("/drill-{round}/{name}").into_bytes()
}

/// A record says who wrote it and which it is; the rest follows from that.
pub fn record_of(client: u64, n: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    bytes.extend_from_slice(&client.to_le_bytes());
    bytes.extend_from_slice(&n.to_le_bytes());
    fill(&mut bytes, client.wrapping_mul(31).wrapping_add(n), len);
    bytes
}

fn record(client: u64, n: u64) -> Vec<u8> {
    record_of(client, n, RECORD_BYTES)
}

/// Bytes that follow from a number.
pub fn fill(bytes: &mut Vec<u8>, seed: u64, len: usize) {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    bytes.truncate(len);
}

/// The bytes of a write, by a number.
pub fn block(seed: u64) -> Vec<u8> {
    let mut bytes = vec![];
    fill(&mut bytes, seed, WRITE_BYTES_MAX);
    bytes
}

impl Load {
    /// Starts it, with puts of so many writes. With `strict` every error of a client fails the drill.
    pub async fn start(config: Config, round: u32, puts: Puts, strict: bool) -> anyhow::Result<Load> {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            began: Instant::now(),
            marked: OnceLock::new(),
            acked: Mutex::default(),
            sides: Mutex::default(),
            registers: Registers::new(),
            puts,
            strict,
        });
        let client = Client::connect(config.clone()).await?;
        client.mkdir(&dir(round), true, 0o755).await?;
        let mut file = client.put(&below(round, "read")).await?;
        for i in 0..READ_BYTES / WRITE_BYTES_MAX {
            file.write(&block(i as u64)).await?;
        }
        file.finish(0o644, 0, false).await?;
        client.appender(&below(round, "log")).await?.append(&record(APPENDERS, 0)).await?;
        Registers::make(&client, &below(round, "registers")).await?;
        let mut tasks = vec![];
        for n in 0..REGISTER_USERS {
            let client = Client::connect(config.clone()).await?;
            tasks.push(tokio::spawn(registers(client, shared.clone(), round, n)));
        }
        for n in 0..APPENDERS {
            tasks.push(tokio::spawn(append(
                Client::connect(config.clone()).await?,
                shared.clone(),
                round,
                n,
            )));
        }
        tasks.push(tokio::spawn(put_stream(Client::connect(config.clone()).await?, shared.clone(), round)));
        tasks.push(tokio::spawn(small(Client::connect(config.clone()).await?, shared.clone(), round)));
        tasks.push(tokio::spawn(reads(Client::connect(config).await?, shared.clone(), round)));
        Ok(Load { shared, tasks, round })
    }

    /// From here on gaps count.
    pub fn mark(&self) {
        self.shared.marked.get_or_init(Instant::now);
    }

    /// Which repeat this is.
    pub fn round(&self) -> u32 {
        self.round
    }

    /// The file that is appended to.
    pub fn log_path(&self) -> Vec<u8> {
        below(self.round, "log")
    }

    /// Ends it and gives what came of it.
    pub async fn stop(self) -> anyhow::Result<Report> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await??;
        }
        let ended = Instant::now();
        let marked = self.shared.marked.get().copied().unwrap_or(ended);
        let times = [marked - self.shared.began, ended - marked];
        let mut sides = self.shared.sides.lock().expect("never poisoned").clone();
        for (side, time) in sides.values_mut().flat_map(|sides| sides.iter_mut().zip(times)) {
            side.time = time.saturating_sub(side.longest);
        }
        let acked = self.shared.acked.lock().expect("never poisoned").clone();
        // All tasks have ended: nobody else has it.
        let shared = Arc::into_inner(self.shared).context("the load goes on")?;
        Ok(Report { sides, acked, registers: shared.registers })
    }
}

/// An error ends the drill if it is strict; else it is one of an operation whose fate is unknown.
fn judge(shared: &Shared, what: &str, error: client::Error) -> anyhow::Result<()> {
    if shared.strict {
        Err(anyhow::Error::from(error).context(format!("a client saw an error: {what}")))
    } else {
        Ok(())
    }
}

async fn append(client: Client, shared: Arc<Shared>, round: u32, me: u64) -> anyhow::Result<()> {
    let path = below(round, "log");
    let mut appender = client.appender(&path).await?;
    let mut n = 0;
    while !shared.stopped() {
        n += 1;
        let began = Instant::now();
        match appender.append(&record(me, n)).await {
            Ok(offset) => shared.done("appends", began, Some(Acked::Record(me, n, offset))),
            Err(error) => judge(&shared, "append", error)?,
        }
    }
    Ok(())
}

async fn put_stream(client: Client, shared: Arc<Shared>, round: u32) -> anyhow::Result<()> {
    let mut n = 0;
    while !shared.stopped() {
        n += 1;
        match put(&client, &shared, round, n).await {
            Ok(()) => shared.acked.lock().expect("never poisoned").push(Acked::Put(n)),
            Err(error) => judge(&shared, "put", error)?,
        }
        tokio::time::sleep(shared.puts.pause).await;
    }
    Ok(())
}

async fn put(client: &Client, shared: &Shared, round: u32, n: u64) -> client::Result<()> {
    let mut file = client.put(&below(round, &format!("put-{n}"))).await?;
    for i in 0..shared.puts.blocks {
        let data = block(n * shared.puts.blocks + i).into();
        let began = Instant::now();
        file.write_block(data).await?;
        shared.done("put", began, None);
    }
    let began = Instant::now();
    file.finish(0o644, 0, false).await?;
    shared.done("put", began, None);
    Ok(())
}

async fn small(client: Client, shared: Arc<Shared>, round: u32) -> anyhow::Result<()> {
    let next = AtomicU64::new(0);
    while !shared.stopped() {
        let n = next.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        let path = below(round, &format!("small-{n}"));
        match client.create_with(&path, &record(99, n)[..1024]).await {
            Ok(()) => shared.done("metadata", began, Some(Acked::Small(n))),
            Err(error) => judge(&shared, "create", error)?,
        }
    }
    Ok(())
}

async fn reads(client: Client, shared: Arc<Shared>, round: u32) -> anyhow::Result<()> {
    let path = below(round, "read");
    let mut file = None;
    let mut n = 0u64;
    while !shared.stopped() {
        n += 1;
        let began = Instant::now();
        let at = n * 65536 % (READ_BYTES as u64 - 65536);
        let read = async {
            if file.is_none() {
                file = Some(client.open(&path).await?);
            }
            file.as_ref().expect("just opened").read_at(at, 65536).await
        };
        match read.await {
            Ok(bytes) => {
                let expected: Vec<u8> = (at / WRITE_BYTES_MAX as u64..=(at + 65535) / WRITE_BYTES_MAX as u64)
                    .flat_map(block)
                    .collect();
                let from = (at % WRITE_BYTES_MAX as u64) as usize;
                if bytes != expected[from..from + 65536] {
                    bail!("a read at {at} gave wrong bytes");
                }
                shared.done("reads", began, None);
            }
            Err(error) => judge(&shared, "read", error)?,
        }
    }
    Ok(())
}

/// Every third of them writes, the others read, each register in turn.
async fn registers(client: Client, shared: Arc<Shared>, round: u32, me: u64) -> anyhow::Result<()> {
    let path = below(round, "registers");
    let mut file = None;
    let mut n = me;
    while !shared.stopped() {
        n += 1;
        let register = n % REGISTERS;
        if me.is_multiple_of(3) {
            let done = shared.registers.write(&client, &path, register).await;
            done.or_else(|error| judge(&shared, "write of a register", error))?;
        } else if let Some(file) = &file {
            let done = shared.registers.read(file, register).await;
            done.or_else(|error| match error.downcast::<client::Error>() {
                Ok(error) => judge(&shared, "read of a register", error),
                Err(error) => Err(error),
            })?;
        } else {
            file = match client.open(&path).await {
                Ok(file) => Some(file),
                Err(error) => judge(&shared, "open", error).map(|()| None)?,
            };
        }
        tokio::time::sleep(REST).await;
    }
    Ok(())
}

/// Checks all that was acknowledged: it is there, once, and as it was. Gives how many.
pub async fn verify(client: &Client, round: u32, put_blocks: u64, acked: &[Acked]) -> anyhow::Result<u64> {
    let log = client.open(&below(round, "log")).await?;
    let bytes = log.read_at(0, log.len()).await?;
    if !bytes.len().is_multiple_of(RECORD_BYTES) {
        bail!("the log has {} bytes: a record is torn", bytes.len());
    }
    let mut found: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    for (i, bytes) in bytes.chunks(RECORD_BYTES).enumerate() {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let key = (word(0), word(8));
        if bytes != record(key.0, key.1) {
            bail!("record {i} of the log is corrupt");
        }
        if found.insert(key, (i * RECORD_BYTES) as u64).is_some() {
            bail!("record {key:?} is in the log twice");
        }
    }
    for one in acked {
        match one {
            Acked::Record(who, n, offset) => match found.get(&(*who, *n)) {
                Some(at) if at == offset => {}
                Some(at) => bail!("record {who}/{n} was acknowledged at {offset} and lies at {at}"),
                None => bail!("record {who}/{n}, acknowledged at {offset}, is lost"),
            },
            Acked::Put(n) => {
                let file = client.open(&below(round, &format!("put-{n}"))).await?;
                for i in 0..put_blocks {
                    let at = i * WRITE_BYTES_MAX as u64;
                    let bytes = file.read_at(at, WRITE_BYTES_MAX as u64).await?;
                    if bytes != block(n * put_blocks + i) {
                        bail!("put-{n} is corrupt at {at}");
                    }
                }
            }
            Acked::Small(n) => {
                let file = client.open(&below(round, &format!("small-{n}"))).await?;
                if file.read_at(0, 1 << 20).await? != record(99, *n)[..1024] {
                    bail!("small-{n} is corrupt");
                }
            }
        }
    }
    Ok(acked.len() as u64)
}

/// Removes what the load made.
pub async fn remove(client: &Client, round: u32) -> anyhow::Result<()> {
    client.unlink(&dir(round), true).await.context("remove the drill's files")?;
    client.empty_trash().await?;
    Ok(())
}
