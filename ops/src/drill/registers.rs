//! Writers and readers of a few blocks of one file, and the history of what they did: each block
//! must have been a linearizable register.

use super::load::fill;
use crate::linear::{Did, Op, is_linearizable};
use anyhow::{Context, bail};
use client::Client;
use common::limits::BLOCK_BYTES;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Blocks of the file.
pub const REGISTERS: u64 = 4;
/// A writer or reader rests for so long between two operations: the history stays short.
pub const REST: Duration = Duration::from_millis(2);

/// What happened to each register.
pub struct Registers {
    began: Instant,
    next: AtomicU64,
    ops: Mutex<Vec<Vec<Op>>>,
}

/// A block that says which write it is of; the rest follows from that.
fn block(value: u64) -> Vec<u8> {
    let mut bytes = value.to_le_bytes().to_vec();
    fill(&mut bytes, value, BLOCK_BYTES);
    bytes
}

impl Registers {
    pub fn new() -> Registers {
        let ops = Mutex::new(vec![vec![]; REGISTERS as usize]);
        Registers { began: Instant::now(), next: AtomicU64::new(1), ops }
    }

    /// Makes the file, all zeros.
    pub async fn make(client: &Client, path: &[u8]) -> client::Result<()> {
        client.create_with(path, &[0; REGISTERS as usize * BLOCK_BYTES]).await
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    fn record(&self, register: u64, op: Op) {
        self.ops.lock().expect("never poisoned")[register as usize].push(op);
    }

    /// Writes a value that no other write has. One that fails may be carried out at any time.
    pub async fn write(&self, client: &Client, path: &[u8], register: u64) -> client::Result<()> {
        let value = self.next.fetch_add(1, Ordering::Relaxed);
        let call = self.now();
        let done = client.write_at(path, register * BLOCK_BYTES as u64, &block(value)).await;
        let end = done.is_ok().then(|| self.now());
        self.record(register, Op { call, end, did: Did::Write(value) });
        done
    }

    /// Reads a register; the block must be one that was written, whole.
    pub async fn read(&self, file: &client::FileReader, register: u64) -> anyhow::Result<()> {
        let call = self.now();
        let bytes = file.read_at(register * BLOCK_BYTES as u64, BLOCK_BYTES as u64).await?;
        let value = bytes.first_chunk().map(|b| u64::from_le_bytes(*b)).context("a short read")?;
        let whole = if value == 0 { bytes.iter().all(|b| *b == 0) } else { bytes == block(value) };
        if !whole {
            bail!("register {register} is torn: it begins like write {value}");
        }
        self.record(register, Op { call, end: Some(self.now()), did: Did::Read(value) });
        Ok(())
    }

    /// Checks all registers; gives the number of operations. A history that is not linearizable is
    /// written to a file.
    pub fn check(&self, dir: &Path) -> anyhow::Result<u64> {
        let all = self.ops.lock().expect("never poisoned");
        for (register, ops) in all.iter().enumerate() {
            if !is_linearizable(ops) {
                let path = dir.join(format!("register-{register}.txt"));
                let lines: Vec<String> = ops.iter().map(|op| format!("{op:?}")).collect();
                std::fs::write(&path, lines.join("\n"))?;
                bail!("register {register} is not linearizable; its history is in {}", path.display());
            }
        }
        Ok(all.iter().map(|ops| ops.len() as u64).sum())
    }
}
