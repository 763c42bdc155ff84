//! The loads: what clients do.

use crate::load::{Done, Plan, Row, Worker, drive};
use crate::{Config, Job};
use anyhow::Context;
use bytes::Bytes;
use client::{Client, FileWriter, OpenFile};
use common::limits::WRITE_BYTES_MAX;
use futures::StreamExt;
use futures::stream::BoxStream;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Lookups that one client has under way.
const LOOKUP_DEPTH: u32 = 16;
/// Mode of what is made.
const FILE_MODE: u32 = 0o644;

/// Runs one job in a directory of its own, which goes away again, also after Ctrl-C.
pub(crate) async fn run(config: &Config, job: Job, plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let client = Client::connect(config.clone()).await?;
    let dir = format!("/bench-{:08x}", rand::random::<u32>()).into_bytes();
    client.mkdir(&dir, true, 0o755).await?;
    let scene = Scene { config, dir: &dir, plan };
    let rows = tokio::select! {
        rows = scene.run(job) => rows,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted; its files are removed")),
    };
    client.unlink(&dir, true).await.context("remove the bench directory")?;
    client.empty_trash().await?;
    client.close().await;
    rows
}

/// Where a job takes place.
struct Scene<'a> {
    config: &'a Config,
    dir: &'a [u8],
    plan: &'a Plan,
}

impl Scene<'_> {
    async fn run(&self, job: Job) -> anyhow::Result<Vec<Row>> {
        match job {
            Job::Put { mib } => self.put(mib).await,
            Job::Get { mib } => self.get(mib).await,
            Job::Append { bytes } => self.append(bytes).await,
            Job::Random { mib, bytes } => self.random(mib, bytes).await,
            Job::Mixed { mib, bytes } => self.mixed(mib, bytes).await,
            Job::Small { bytes } => self.small(bytes).await,
            Job::Meta => self.meta().await,
            Job::All => unreachable!("taken apart before"),
        }
    }

    async fn clients(&self) -> anyhow::Result<Vec<Client>> {
        let mut clients = vec![];
        for _ in 0..self.plan.clients {
            clients.push(Client::connect(self.config.clone()).await?);
        }
        Ok(clients)
    }

    fn path(&self, client: usize, n: u64) -> Vec<u8> {
        let mut path = self.dir.to_vec();
        path.extend_from_slice(format!("/{client}-{n}").as_bytes());
        path
    }

    /// Each client writes one file; so many MiB in all.
    async fn put(&self, mib: u64) -> anyhow::Result<Vec<Row>> {
        let clients = self.clients().await?;
        let name = format!("put {mib} MiB, {} at a time", self.plan.clients);
        let plan = Plan::to_the_end(self.plan.clients);
        let each = mib.div_ceil(self.plan.clients as u64);
        let mut workers = vec![];
        for (n, client) in clients.iter().enumerate() {
            let file = client.put(&self.path(n, 0)).await?;
            workers.push(Put { file: Some(file), block: noise(WRITE_BYTES_MAX, n as u64), left: each });
        }
        let rows = drive(&name, &["write, 1 MiB"], &plan, workers).await?;
        close(clients).await;
        Ok(rows)
    }

    /// Reads what was put, twice: the second time it is hot.
    async fn get(&self, mib: u64) -> anyhow::Result<Vec<Row>> {
        self.put(mib).await?;
        let clients = self.clients().await?;
        let name = format!("get {mib} MiB, {} at a time", self.plan.clients);
        let plan = Plan::to_the_end(self.plan.clients);
        let mut rows = vec![];
        for pass in ["first read", "hot read"] {
            let mut workers = vec![];
            for (n, client) in clients.iter().enumerate() {
                let file = client.open(&self.path(n, 0)).await?;
                workers.push(Get { parts: file.stream(0, file.len()).boxed() });
            }
            rows.extend(drive(&name, &[pass], &plan, workers).await?);
        }
        close(clients).await;
        Ok(rows)
    }

    /// All clients append to one file.
    async fn append(&self, bytes: u32) -> anyhow::Result<Vec<Row>> {
        let clients = self.clients().await?;
        let mut workers = vec![];
        for (n, client) in clients.iter().enumerate() {
            let to = client.appender(&self.path(0, 0)).await?;
            workers.push(Append { to, record: noise(bytes as usize, n as u64) });
        }
        let name = format!("append {bytes} B, {} clients", self.plan.clients);
        let rows = drive(&name, &["append"], self.plan, workers).await?;
        close(clients).await;
        Ok(rows)
    }

    /// A file of so many MiB for each client, in which it reads and writes.
    async fn files(&self, clients: &[Client], mib: u64) -> anyhow::Result<Vec<OpenFile>> {
        self.put(mib).await?;
        let mut files = vec![];
        for (n, client) in clients.iter().enumerate() {
            files.push(OpenFile::new(client, &client.see(&self.path(n, 0)).await?));
        }
        Ok(files)
    }

    async fn random(&self, mib: u64, bytes: u32) -> anyhow::Result<Vec<Row>> {
        let clients = self.clients().await?;
        let name = format!("random {bytes} B in {mib} MiB, {} clients", self.plan.clients);
        let mut rows = vec![];
        for (pass, write) in [("read", 0.0), ("durable write", 1.0)] {
            let files = self.files(&clients, mib).await?;
            let workers = self.blocks(files, bytes, mib, write);
            // Of the two kinds that such a worker knows only one is done here.
            let all = drive(&name, &["read", "durable write"], self.plan, workers).await?;
            rows.extend(all.into_iter().filter(|row| row.name == pass));
        }
        close(clients).await;
        Ok(rows)
    }

    /// Reads and durable writes, four to one, in one file a client.
    async fn mixed(&self, mib: u64, bytes: u32) -> anyhow::Result<Vec<Row>> {
        let clients = self.clients().await?;
        let files = self.files(&clients, mib).await?;
        let name = format!("mixed {bytes} B in {mib} MiB, {} clients", self.plan.clients);
        let workers = self.blocks(files, bytes, mib, 0.2);
        let rows = drive(&name, &["read, 4 of 5", "durable write, 1 of 5"], self.plan, workers).await?;
        close(clients).await;
        Ok(rows)
    }

    fn blocks(&self, files: Vec<OpenFile>, bytes: u32, mib: u64, writes: f64) -> Vec<Blocks> {
        let each = mib.div_ceil(self.plan.clients as u64) * WRITE_BYTES_MAX as u64;
        let worker = |(n, file)| Blocks {
            file,
            rng: StdRng::seed_from_u64(n as u64),
            data: noise(bytes as usize, n as u64),
            blocks: (each / bytes as u64).max(1),
            writes,
        };
        files.into_iter().enumerate().map(worker).collect()
    }

    /// Makes small files, durably; reads them; removes them.
    async fn small(&self, bytes: u32) -> anyhow::Result<Vec<Row>> {
        let name = format!("small files of {bytes} B, {} clients", self.plan.clients);
        self.names(
            &name,
            &[("make, durable", Deed::Make), ("read", Deed::Read), ("remove", Deed::Remove)],
            bytes,
        )
        .await
    }

    async fn meta(&self) -> anyhow::Result<Vec<Row>> {
        let name = format!("names, {} clients", self.plan.clients);
        let deeds = [
            ("make empty, durable", Deed::Make),
            ("look up", Deed::Look),
            ("rename", Deed::Rename),
            ("remove", Deed::Remove),
        ];
        self.names(&name, &deeds, 0).await
    }

    /// Makes files as long as the time is; does all else with those.
    async fn names(&self, name: &str, deeds: &[(&str, Deed)], bytes: u32) -> anyhow::Result<Vec<Row>> {
        let clients = self.clients().await?;
        for (n, client) in clients.iter().enumerate() {
            client.mkdir(&self.path(n, 0), false, 0o755).await?;
        }
        let mut rows = vec![];
        let (mut made, mut renamed) = (vec![0; clients.len()], vec![0; clients.len()]);
        for (kind, deed) in deeds {
            let at_once = if *deed == Deed::Look { LOOKUP_DEPTH } else { 1 };
            let done: Vec<_> = clients.iter().map(|_| Arc::new(AtomicU64::new(0))).collect();
            let mut workers = vec![];
            for (n, client) in clients.iter().enumerate() {
                workers.extend((0..at_once).map(|_| Names {
                    client: client.clone(),
                    dir: self.path(n, 0),
                    content: noise(bytes as usize, n as u64),
                    deed: *deed,
                    done: done[n].clone(),
                    files: made[n],
                    renamed: renamed[n],
                }));
            }
            rows.extend(drive(name, &[kind], self.plan, workers).await?);
            let done = || done.iter().map(|done| done.load(Ordering::Relaxed)).collect();
            match deed {
                Deed::Make => made = done(),
                Deed::Rename => renamed = done(),
                _ => {}
            }
        }
        close(clients).await;
        Ok(rows)
    }
}

async fn close(clients: Vec<Client>) {
    for client in clients {
        client.close().await;
    }
}

/// Bytes that nothing on the way can compress or share.
fn noise(len: usize, seed: u64) -> Bytes {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes.into()
}

/// Writes a file in blocks; the end of it is an operation, too.
struct Put {
    file: Option<FileWriter>,
    block: Bytes,
    left: u64,
}

impl Worker for Put {
    async fn step(&mut self) -> anyhow::Result<Option<Done>> {
        let bytes = self.block.len() as u64;
        if self.left == 0 {
            let Some(file) = self.file.take() else { return Ok(None) };
            file.finish(FILE_MODE, 0, false).await?;
            return Ok(Some(Done { kind: 0, bytes: 0 }));
        }
        let Some(file) = &mut self.file else { return Ok(None) };
        self.left -= 1;
        file.write_block(self.block.clone()).await?;
        Ok(Some(Done { kind: 0, bytes }))
    }
}

/// Reads a file from its begin to its end.
struct Get {
    parts: BoxStream<'static, client::Result<Bytes>>,
}

impl Worker for Get {
    async fn step(&mut self) -> anyhow::Result<Option<Done>> {
        match self.parts.next().await {
            Some(part) => Ok(Some(Done { kind: 0, bytes: part?.len() as u64 })),
            None => Ok(None),
        }
    }
}

struct Append {
    to: client::Appender,
    record: Bytes,
}

impl Worker for Append {
    async fn step(&mut self) -> anyhow::Result<Option<Done>> {
        self.to.append(&self.record).await?;
        Ok(Some(Done { kind: 0, bytes: self.record.len() as u64 }))
    }
}

/// Reads and writes anywhere in a file.
struct Blocks {
    file: OpenFile,
    rng: StdRng,
    data: Bytes,
    /// Of the file.
    blocks: u64,
    /// The share of writes.
    writes: f64,
}

impl Worker for Blocks {
    async fn step(&mut self) -> anyhow::Result<Option<Done>> {
        let bytes = self.data.len() as u64;
        let at = self.rng.random_range(0..self.blocks) * bytes;
        let write = self.rng.random_bool(self.writes);
        if write {
            self.file.write(at, &self.data).await?;
            self.file.sync().await?;
        } else {
            self.file.read(at, bytes).await?;
        }
        Ok(Some(Done { kind: write as usize, bytes }))
    }
}

/// What is done with names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Make,
    Read,
    Look,
    Rename,
    Remove,
}

impl Deed {
    /// Whether each file is good for one only.
    fn uses_up(self) -> bool {
        matches!(self, Deed::Rename | Deed::Remove)
    }
}

/// Does one thing to one name after the other.
struct Names {
    client: Client,
    dir: Vec<u8>,
    content: Bytes,
    deed: Deed,
    /// How many were done, or begun, with this client.
    done: Arc<AtomicU64>,
    /// How many files there are.
    files: u64,
    /// The first of them have another name.
    renamed: u64,
}

impl Names {
    fn path(&self, n: u64, renamed: bool) -> Vec<u8> {
        let mut path = self.dir.clone();
        path.extend_from_slice(format!("/{n}{}", if renamed { "r" } else { "" }).as_bytes());
        path
    }
}

impl Worker for Names {
    async fn step(&mut self) -> anyhow::Result<Option<Done>> {
        let n = self.done.fetch_add(1, Ordering::Relaxed);
        if self.files == 0 && self.deed != Deed::Make || n >= self.files && self.deed.uses_up() {
            self.done.fetch_sub(1, Ordering::Relaxed);
            return Ok(None);
        }
        let mut bytes = 0;
        match self.deed {
            Deed::Make if self.content.is_empty() => {
                self.client.create(&self.path(n, false), true).await?;
            }
            Deed::Make => {
                self.client.create_with(&self.path(n, false), &self.content).await?;
                bytes = self.content.len() as u64;
            }
            Deed::Read => {
                let file = self.client.open(&self.path(n % self.files, false)).await?;
                bytes = file.read_at(0, file.len()).await?.len() as u64;
            }
            Deed::Look => {
                self.client.lookup(&self.path(n % self.files, false)).await?;
            }
            Deed::Rename => self.client.rename(&self.path(n, false), &self.path(n, true), false).await?,
            Deed::Remove => self.client.unlink(&self.path(n, n < self.renamed), false).await?,
        }
        Ok(Some(Done { kind: 0, bytes }))
    }
}
