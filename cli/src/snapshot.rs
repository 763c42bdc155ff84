//! Commands on snapshots.

use crate::args::Snapshot;
use crate::fs::path;
use crate::output::{human, print, show, time};
use anyhow::bail;
use client::{Client, SnapshotInfo};
use serde_json::json;
use std::os::unix::ffi::OsStrExt;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

pub async fn run(client: Client, command: Snapshot, json: bool) -> anyhow::Result<()> {
    match command {
        Snapshot::Create { dir, name } => {
            let seconds = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
            let name = name.map_or_else(|| stamp(seconds()).into_bytes(), |n| n.as_bytes().to_vec());
            let began = Instant::now();
            let taken = client.take_snapshot(&path(&dir), &name).await?;
            let ms = began.elapsed().as_millis() as u64;
            match json {
                true => print(&info_json(&taken, Some(ms))),
                false => println!("{} ({ms} ms)", show(&seen_as(&taken))),
            }
            Ok(())
        }
        Snapshot::List { dir } => {
            let mut all = client.snapshots().await?;
            if let Some(dir) = dir {
                let dir = path(&dir);
                client.lookup(&dir).await?;
                all.retain(|s| s.path == dir);
            }
            if json {
                all.iter().for_each(|s| print(&info_json(s, None)));
                return Ok(());
            }
            println!("{:<20} {:>10} {:>8}  seen as", "taken", "kept", "chunks");
            for s in &all {
                println!(
                    "{:<20} {:>10} {:>8}  {}",
                    time(s.taken_ns),
                    human(s.bytes),
                    s.chunks,
                    show(&seen_as(s))
                );
            }
            Ok(())
        }
        Snapshot::Delete { dir, names } => {
            let dir = path(&dir);
            if names.is_empty() {
                bail!("which snapshot of {}? `cairn snapshot list` names them", show(&dir));
            }
            for name in names {
                client.delete_snapshot(&dir, name.as_bytes()).await?;
            }
            Ok(())
        }
    }
}

/// A name that sorts by time: the time, in UTC.
fn stamp(seconds: u64) -> String {
    time(seconds as i64 * 1_000_000_000).replace([' ', ':'], "-")
}

/// Where a snapshot is seen.
fn seen_as(s: &SnapshotInfo) -> Vec<u8> {
    let dir = if s.path == b"/" { &[][..] } else { &s.path };
    [dir, b"/.snapshot/", &s.name].concat()
}

fn info_json(s: &SnapshotInfo, ms: Option<u64>) -> serde_json::Value {
    json!({"number": s.number, "dir": show(&s.path), "name": show(&s.name), "seen_as": show(&seen_as(s)),
           "taken_ns": s.taken_ns, "kept_chunks": s.chunks, "kept_bytes": s.bytes, "ms": ms})
}
