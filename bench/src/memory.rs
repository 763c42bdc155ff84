//! What the masters' state takes in memory: a file, a chunk.

use anyhow::Context;
use common::wire::chunk_master::Register;
use common::wire::client_master::{Mutation, Owner};
use common::{ClientId, RequestId};
use master_core::{Command, Entry, Metadata};
use serde_json::json;
use std::time::Instant;

/// Files of a directory.
const DIRECTORY: u64 = 1000;
/// Stores of the cluster.
const STORES: u32 = 12;

/// Resident bytes of this process.
fn resident() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").context("read /proc/self/statm")?;
    let pages: u64 = text.split_whitespace().nth(1).context("statm has two fields")?.parse()?;
    // The page size of everything this runs on.
    Ok(pages * 4096)
}

struct Masters {
    state: Metadata,
    seq: u64,
}

impl Masters {
    fn apply(&mut self, command: Command) {
        let stamp_ns = self.state.clock_ns() + 1_000_000;
        self.state.apply(&Entry { stamp_ns, wall_ns: stamp_ns as i64, salt: stamp_ns, command });
    }

    fn mutate(&mut self, mutation: Mutation) {
        self.seq += 1;
        let request = RequestId { client: ClientId(1), seq: self.seq };
        self.apply(Command::Mutate { request, lowest: self.seq, mutation });
    }

    /// Makes so many files; gives the bytes that one took, and how many were made a second.
    fn fill(&mut self, top: &str, files: u64, chunk: bool) -> anyhow::Result<(f64, f64)> {
        let (before, began) = (resident()?, Instant::now());
        for n in 0..files {
            let dir = format!("/{top}/{:06}", n / DIRECTORY);
            if n % DIRECTORY == 0 {
                let (path, owner) = (dir.clone().into(), Owner::default());
                self.mutate(Mutation::Mkdir { path, parents: true, mode: 0o755, owner });
            }
            self.mutate(Mutation::Create {
                path: format!("{dir}/file-{n:09}").into(),
                mode: 0o644,
                owner: Owner::default(),
                exclusive: true,
                parents: false,
                chunk,
                near: String::new(),
            });
        }
        let took = began.elapsed().as_secs_f64();
        Ok(((resident()? - before) as f64 / files as f64, files as f64 / took))
    }
}

/// Fills a state with so many files, first without chunks, then with one each.
pub(crate) fn run(files: u64, json: bool) -> anyhow::Result<()> {
    let mut masters = Masters { state: Metadata::new(), seq: 0 };
    for n in 0..STORES {
        masters.apply(Command::Register(Register {
            store: None,
            uuid: n as u128 + 1,
            server_uuid: n as u128 + 1,
            incarnation: 1,
            boot_id: 1,
            dev_ino: (1, n as u64),
            rack: format!("r{}", n % 3),
            addr: ([127, 0, 0, 1], 1000 + n as u16).into(),
            capacity: 1 << 50,
            used: 0,
        }));
    }
    let (file, rate) = masters.fill("empty", files, false)?;
    let (both, _) = masters.fill("full", files, true)?;
    let (_, chunks, _) = masters.state.counts();
    anyhow::ensure!(chunks == files, "{chunks} chunks were made");
    let chunk = both - file;
    let began = Instant::now();
    masters.mutate(Mutation::Snapshot { path: b"/full".to_vec(), name: b"now".to_vec() });
    let snapshot_us = began.elapsed().as_micros() as u64;
    anyhow::ensure!(masters.state.last_snapshot() == 1, "no snapshot was taken");
    match json {
        true => println!(
            "{}",
            json!({"files": 2 * files, "chunks": chunks, "bytes_a_file": file, "bytes_a_chunk": chunk, "applied_s": rate,
                   "snapshot_us": snapshot_us})
        ),
        false => println!(
            "{} files of 14-byte names, {chunks} with a chunk: {file:.0} bytes a file, {chunk:.0} bytes a chunk; {rate:.0} creates/s applied; a snapshot of {files} files in {snapshot_us} us",
            2 * files
        ),
    }
    Ok(())
}
