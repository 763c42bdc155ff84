//! `cairn admin audit`: compares the replicas of chunks with each other.

use crate::fs::join;
use crate::output::{human, print, show};
use anyhow::bail;
use client::{Client, Error, FileKind};
use common::checksum::crc32c;
use common::limits::PIECE_BYTES_MAX;
use common::wire::ChunkConfig;
use common::wire::client_master::SNAPSHOT_DIR;
use common::{ChunkHandle, Code, StoreId};
use futures::future::try_join_all;
use futures::stream::StreamExt;
use indicatif::ProgressBar;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Chunks of a file that are compared at a time.
const CHUNKS_UNDER_WAY: usize = 4;
/// A chunk that is written to while it is compared, or has a member that does not answer, is compared
/// again so often, after this time and then each time after twice as long.
const TRIES: u32 = 6;
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// How it is done.
pub struct Options {
    /// Files before this path are passed over.
    pub from: Option<Vec<u8>>,
    /// MiB a second that are read at most.
    pub rate: u64,
    /// Whether what most disagree with is made anew.
    pub repair: bool,
    /// Whether to print JSON.
    pub json: bool,
}

/// What was found.
#[derive(Default)]
struct Found {
    files: u64,
    chunks: u64,
    bytes: u64,
    differ: u64,
    unread: u64,
}

/// What a comparison says of a chunk.
enum Verdict {
    /// All replicas serve these bytes.
    Same(u64),
    /// They do not.
    Differ(Difference),
    /// It has been deleted meanwhile.
    Gone,
    /// It could not be compared, for this reason.
    Unread(String),
}

struct Difference {
    config: ChunkConfig,
    /// The first piece in which they differ.
    at: u64,
    /// What the replicas serve: who agrees with whom.
    camps: Vec<Vec<StoreId>>,
}

impl Difference {
    /// Those that more than half of the members disagree with as one, if there are such.
    fn wrong(&self) -> Vec<StoreId> {
        let most = self.camps.iter().max_by_key(|camp| camp.len()).expect("they differ");
        match 2 * most.len() > self.config.members.len() {
            true => self.config.members.iter().copied().filter(|m| !most.contains(m)).collect(),
            false => vec![],
        }
    }
}

/// Lets so many bytes a second pass.
struct Pace {
    rate: u64,
    next: Mutex<Instant>,
}

impl Pace {
    async fn pass(&self, bytes: u64) {
        let at = {
            let mut next = self.next.lock().await;
            let at = (*next).max(Instant::now());
            *next = at + Duration::from_nanos(bytes * 1_000_000_000 / self.rate);
            at
        };
        tokio::time::sleep_until(at).await;
    }
}

pub async fn run(client: &Client, root: &[u8], options: Options) -> anyhow::Result<()> {
    if root.split(|b| *b == b'/').any(|name| name == SNAPSHOT_DIR) {
        bail!("{}: what a snapshot shows is compared with the directory that it was taken of", show(root));
    }
    let bar = match std::io::stderr().is_terminal() {
        true => ProgressBar::new_spinner(),
        false => ProgressBar::hidden(),
    };
    let mut found = Found::default();
    let mut at = root.to_vec();
    let done = tokio::select! {
        done = walk(client, root, &options, &bar, &mut found, &mut at) => done,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    bar.finish_and_clear();
    let Found { files, chunks, bytes, differ, unread } = found;
    if options.json {
        let at = done.is_err().then(|| show(&at));
        print(&json!({"files": files, "chunks": chunks, "bytes": bytes, "differ": differ, "unread": unread,
            "stopped_at": at}));
    } else {
        println!(
            "{files} files, {chunks} chunks, {} compared at every replica: {differ} differ, {unread} could not be compared",
            human(bytes)
        );
    }
    if let Err(e) = done {
        bail!("{e}; go on with --from {}", show(&at));
    }
    match differ + unread {
        0 => Ok(()),
        _ if differ == 0 => bail!("{unread} chunks could not be compared; `cairn admin repair` may say why"),
        _ => bail!("{differ} chunks differ; see the runbook replicas-differ"),
    }
}

/// All files in order, directories before what comes after them.
async fn walk(
    client: &Client,
    root: &[u8],
    options: &Options,
    bar: &ProgressBar,
    found: &mut Found,
    at: &mut Vec<u8>,
) -> anyhow::Result<()> {
    let pace = Pace { rate: options.rate << 20, next: Mutex::new(Instant::now()) };
    let names = |path: &[u8]| -> Vec<Vec<u8>> {
        path.split(|b| *b == b'/').filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect()
    };
    let from = options.from.as_ref().map(|from| names(from)).unwrap_or_default();
    let mut rest = vec![(root.to_vec(), client.lookup(root).await?)];
    while let Some((path, attr)) = rest.pop() {
        let parts = names(&path);
        if parts < from && !from.starts_with(&parts) {
            continue;
        }
        if attr.kind == FileKind::Directory {
            let entries = match client.list(&path).await {
                Err(e) if is_gone(&e) => continue,
                entries => entries?,
            };
            rest.extend(entries.into_iter().rev().map(|e| (join(&path, &e.name), e.attr)));
            continue;
        }
        if attr.kind != FileKind::File || parts < from {
            continue;
        }
        at.clone_from(&path);
        bar.set_message(show(&path));
        let layout = match client.layout(attr.file).await {
            Err(e) if is_gone(&e) => continue,
            layout => layout?,
        };
        let handles: Vec<ChunkHandle> = layout.chunks().iter().map(|c| c.config.handle).collect();
        let compared = futures::stream::iter(handles).map(async |handle| {
            let verdict = compare(client, handle, &pace).await;
            bar.inc(1);
            (handle, verdict)
        });
        let mut compared = compared.buffer_unordered(CHUNKS_UNDER_WAY);
        while let Some((handle, verdict)) = compared.next().await {
            match verdict {
                Verdict::Gone => continue,
                Verdict::Same(bytes) => found.bytes += bytes,
                Verdict::Unread(why) => {
                    found.unread += 1;
                    tell_unread(&path, handle, &why, options.json);
                }
                Verdict::Differ(difference) => {
                    found.differ += 1;
                    let repaired = match options.repair {
                        true => repair(client, &difference).await?,
                        false => None,
                    };
                    tell_difference(&path, &difference, repaired, options.json);
                }
            }
            found.chunks += 1;
        }
        found.files += 1;
    }
    Ok(())
}

fn is_gone(e: &Error) -> bool {
    matches!(e.code(), Some(Code::NotFound | Code::NoSuchChunk))
}

/// Compares a chunk, again if it is written to meanwhile.
async fn compare(client: &Client, handle: ChunkHandle, pace: &Pace) -> Verdict {
    let mut pause = TRY_AGAIN;
    let mut why = String::new();
    for _ in 0..TRIES {
        match compare_once(client, handle, pace).await {
            Ok(Some(verdict)) => return verdict,
            Ok(None) => why = "it is written to all the time".into(),
            Err(e) if is_gone(&e) => return Verdict::Gone,
            Err(e) => why = e.to_string(),
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    Verdict::Unread(why)
}

/// `None`: the chunk was written to meanwhile, or has other members.
async fn compare_once(client: &Client, handle: ChunkHandle, pace: &Pace) -> Result<Option<Verdict>, Error> {
    let config = client.config(handle).await?;
    let before = client.replica(&config, config.primary).await?;
    let mut served: BTreeMap<StoreId, Vec<u8>> = BTreeMap::new();
    let mut differ_at = None;
    let mut at = 0;
    while at < before.length {
        let len = (before.length - at).min(PIECE_BYTES_MAX as u64);
        pace.pass(len * config.members.len() as u64).await;
        let reads = config.members.iter().map(async |member| {
            let bytes = client.read_replica(&config, *member, at, len as u32).await?;
            Ok::<_, Error>((*member, bytes.concat()))
        });
        let read = try_join_all(reads).await?;
        if read.windows(2).any(|pair| pair[0].1 != pair[1].1) {
            differ_at.get_or_insert(at);
        }
        for (member, bytes) in read {
            served.entry(member).or_default().extend(crc32c(&bytes).to_le_bytes());
        }
        at += len;
    }
    let Some(at) = differ_at else {
        return Ok(Some(Verdict::Same(before.length)));
    };
    let after = client.replica(&config, config.primary).await?;
    if after.committed != before.committed || client.config(handle).await?.epoch != config.epoch {
        return Ok(None);
    }
    let mut camps: BTreeMap<Vec<u8>, Vec<StoreId>> = BTreeMap::new();
    for (member, digest) in served {
        camps.entry(digest).or_default().push(member);
    }
    let camps = camps.into_values().collect();
    Ok(Some(Verdict::Differ(Difference { config, at, camps })))
}

/// Has one made anew that most disagree with. That changes the epoch: another one is left to the next
/// audit.
async fn repair(client: &Client, difference: &Difference) -> Result<Option<StoreId>, Error> {
    let ChunkConfig { handle, epoch, .. } = difference.config;
    let wrong = difference.wrong().first().copied();
    if let Some(store) = wrong {
        client.condemn(handle, epoch, store).await?;
    }
    Ok(wrong)
}

fn tell_unread(path: &[u8], handle: ChunkHandle, why: &str, json: bool) {
    match json {
        true => print(&json!({"path": show(path), "handle": handle.to_string(), "unread": why})),
        false => println!("{}: {handle} could not be compared: {why}", show(path)),
    }
}

fn tell_difference(path: &[u8], found: &Difference, repaired: Option<StoreId>, json: bool) {
    let handle = found.config.handle;
    let wrong = found.wrong();
    let ids = |stores: &[StoreId]| stores.iter().map(|s| s.0).collect::<Vec<_>>();
    if json {
        let camps: Vec<_> = found.camps.iter().map(|camp| ids(camp)).collect();
        return print(
            &json!({"path": show(path), "handle": handle.to_string(), "at": found.at, "camps": camps,
            "wrong": ids(&wrong), "made_anew": repaired.map(|s| s.0)}),
        );
    }
    let list = |stores: &[StoreId]| stores.iter().map(|s| s.to_string()).collect::<Vec<_>>().join(", ");
    let camps = found.camps.iter().map(|camp| list(camp)).collect::<Vec<_>>().join(" | ");
    let (path, at) = (show(path), found.at);
    println!("{path}: the replicas of {handle} differ from byte {at} of it on: {camps}");
    match repaired {
        Some(store) => println!("  {store} is made anew"),
        None if wrong.is_empty() => println!("  no side has a majority: see the runbook replicas-differ"),
        None => println!("  most disagree with {}: --repair has it made anew", list(&wrong)),
    }
}
