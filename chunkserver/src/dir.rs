//! The data directory: who it belongs to, who holds it, and its first contents.

use crate::config::Config;
use crate::disk::{allocate, path_of, space};
use crate::files::Files;
use anyhow::{Context, bail};
use bytes::Bytes;
use chunkserver_core::io::FileRef;
use chunkserver_core::store::checkpoint::first_checkpoint;
use chunkserver_core::store::recover::{ReadFn, recover};
use chunkserver_core::store::{Recovered, StoreConfig};
use common::limits::{BLOCK_BYTES, LOG_SEGMENTS};
use rustix::fs::{CWD, FlockOperation, RenameFlags};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The version of the directory that this build makes, and makes of earlier ones: `chunkserver/FORMAT.md`.
pub const FORMAT: u16 = 2;

/// What a directory says of itself: `meta.toml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// Version of the directory.
    pub format: u16,
    /// The cluster, once known: hexadecimal; empty before.
    pub cluster: String,
    /// 128 random bits of this directory.
    pub uuid: String,
    /// The id that the masters gave it; 0 before.
    pub store: u32,
    /// Rises with each start.
    pub incarnation: u64,
    /// Bytes of a segment of extents.
    pub segment_bytes: u64,
    /// Bytes of a segment of the log.
    pub log_segment_bytes: u64,
}

/// A directory that this process holds.
pub struct DataDir {
    /// Where.
    pub path: PathBuf,
    /// What it says of itself.
    pub meta: Meta,
    /// What recovery found.
    pub recovered: Recovered,
    /// Files whose locks are held, open for the I/O.
    pub locked: Vec<(FileRef, File)>,
    /// The lock on `LOCK`, whose content says who holds the directory.
    pub lock: File,
    /// Device and inode.
    pub dev_ino: (u64, u64),
    /// Bytes that the store may use.
    pub capacity: u64,
}

/// Takes an exclusive lock, or says that another has it.
pub fn try_lock(file: &File) -> bool {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

/// Takes the lock; whoever only looks whether it is free holds it for a moment.
fn lock_within(file: &File) -> bool {
    const TRIES: u32 = 100;
    (0..TRIES).any(|_| {
        try_lock(file) || {
            std::thread::sleep(std::time::Duration::from_millis(10));
            false
        }
    })
}

/// Opens a directory, making it if it is empty; holds it until the process ends.
pub fn open(path: &Path, config: &Config, files: Files) -> anyhow::Result<DataDir> {
    if !path.is_dir() {
        bail!("the directory does not exist; make it first (this protects against an unmounted disk)");
    }
    let lock_path = path.join("LOCK");
    let lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&lock_path)?;
    if !lock_within(&lock) {
        let holder = std::fs::read_to_string(&lock_path).unwrap_or_default();
        bail!("another process serves it ({}); two servers cannot share a directory", holder.trim());
    }
    overwrite(&lock, format!("pid {}\n", std::process::id()).as_bytes())?;
    let mut meta = match std::fs::read_to_string(path.join("meta.toml")) {
        Ok(text) => toml::from_str::<Meta>(&text).context("read meta.toml")?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => format(path, config)?,
        Err(e) => return Err(e).context("read meta.toml"),
    };
    if !(1..=FORMAT).contains(&meta.format) {
        bail!("it has format {}, this build reads formats up to {FORMAT}", meta.format);
    }
    // From here on an earlier build would not find its way, and says so.
    meta.format = FORMAT;
    meta.incarnation += 1;
    write_meta(path, &meta)?;
    // The lock on the very file through which I/O goes: an operation under way of a dead process
    // holds its open file, so this is free only after its last write has landed.
    let log = path_of(path, FileRef::Log(0));
    let log =
        OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(&log).context("open the log")?;
    if !lock_within(&log) {
        bail!("writes of the process that served it before are still under way");
    }
    // They may be in the disk's cache alone; what recovery finds is told to others as durable.
    rustix::fs::syncfs(&log).context("flush the disk")?;
    let (total, free) = space(path)?;
    let used = used_bytes(path)?;
    let room = (free + used).min(total) * 15 / 16;
    let capacity = match config.capacity_bytes {
        0 => room,
        asked => asked.min(room),
    };
    let segments_max = (capacity / meta.segment_bytes).clamp(1, u32::MAX as u64) as u32;
    if segments_max > files.segments {
        let (path, open) = (path.display(), files.segments);
        tracing::warn!(%path, segments_max, open, "the disk has room for more segments than can be open, and counts as full \
            then; raise LimitNOFILE, or make the store with larger `segment_bytes`");
    }
    let store = StoreConfig {
        tag: u128::from_str_radix(&meta.uuid, 16).context("uuid in meta.toml")? as u64,
        incarnation: meta.incarnation,
        log_segment_bytes: meta.log_segment_bytes,
        log_segments: LOG_SEGMENTS,
        extent_segment_bytes: meta.segment_bytes,
        segments_max: segments_max.min(files.segments),
        scrub_period_s: config.scrub_period_s,
        ..StoreConfig::default()
    };
    let recovered = read_all(path, store)?;
    let stat = std::fs::metadata(path)?;
    let dev_ino = (stat.dev(), stat.ino());
    Ok(DataDir {
        path: path.into(),
        meta,
        recovered,
        locked: vec![(FileRef::Log(0), log)],
        lock,
        dev_ino,
        capacity,
    })
}

fn read_all(path: &Path, store: StoreConfig) -> anyhow::Result<Recovered> {
    let mut open: std::collections::BTreeMap<FileRef, File> = Default::default();
    let mut read = |file: FileRef, offset: u64, len: u32| -> Result<Bytes, String> {
        let mut buf = vec![0; len as usize];
        let handle = match open.entry(file) {
            std::collections::btree_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::btree_map::Entry::Vacant(e) => match File::open(path_of(path, file)) {
                Ok(file) => e.insert(file),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(buf.into()),
                Err(e) => return Err(e.to_string()),
            },
        };
        let mut at = 0;
        while at < buf.len() {
            match handle.read_at(&mut buf[at..], offset + at as u64) {
                Ok(0) => break,
                Ok(n) => at += n,
                Err(e) => return Err(e.to_string()),
            }
        }
        Ok(buf.into())
    };
    let read: &mut ReadFn = &mut read;
    let started = std::time::Instant::now();
    let bytes = store.extent_segment_bytes;
    let has_room = |segment| {
        std::fs::metadata(path_of(path, FileRef::Extents(segment))).is_ok_and(|file| file.len() >= bytes)
    };
    let recovered = recover(store, read, &has_room)?;
    tracing::info!(
        path = %path.display(),
        chunks = recovered.chunks.len(),
        replayed = recovered.replayed,
        ms = started.elapsed().as_millis() as u64,
        "store recovered"
    );
    Ok(recovered)
}

/// Makes a new store in an empty directory. `meta.toml` comes last: without it there is none.
fn format(path: &Path, config: &Config) -> anyhow::Result<Meta> {
    let known = ["LOCK", "log", "extents", "checkpoint", "lost+found"];
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name();
        if !known.iter().any(|k| name == *k) {
            bail!("it is not empty ({:?} is in it) and holds no store", name);
        }
    }
    for sub in ["log", "extents", "checkpoint"] {
        std::fs::create_dir_all(path.join(sub))?;
        if let Err(error) = common_net::disk::overwrite_in_place(&path.join(sub)) {
            tracing::warn!(%error, path = %path.display(), "small writes will be slow");
        }
    }
    let uuid: u128 = rand::random();
    let meta = Meta {
        format: FORMAT,
        cluster: String::new(),
        uuid: format!("{uuid:032x}"),
        store: 0,
        incarnation: 0,
        segment_bytes: config.segment_bytes,
        log_segment_bytes: config.log_segment_bytes,
    };
    for slot in 0..LOG_SEGMENTS as u32 {
        allocate(path, FileRef::Log(slot), meta.log_segment_bytes).context("make the log")?;
    }
    let store = StoreConfig { tag: uuid as u64, ..StoreConfig::default() };
    let checkpoint = first_checkpoint(&store);
    assert!(checkpoint.len().is_multiple_of(BLOCK_BYTES));
    durable_file(&path_of(path, FileRef::Checkpoint(1)), &checkpoint)?;
    Ok(meta)
}

/// Writes `meta.toml`, whole or not at all. The file that it was stays aside: the next one is written in its room, on a
/// full disk, too.
pub fn write_meta(path: &Path, meta: &Meta) -> anyhow::Result<()> {
    let text = toml::to_string(meta).context("encode meta.toml")?;
    let (aside, at) = (path.join("meta.toml.tmp"), path.join("meta.toml"));
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&aside)?;
    overwrite(&file, text.as_bytes())?;
    file.sync_all()?;
    if rustix::fs::renameat_with(CWD, &aside, CWD, &at, RenameFlags::EXCHANGE).is_err() {
        // There was none, or the file system cannot.
        std::fs::rename(&aside, &at)?;
    }
    File::open(path)?.sync_all()?;
    Ok(())
}

/// Writes a small file over where it lies: that takes no room, if it had a block.
fn overwrite(file: &File, bytes: &[u8]) -> std::io::Result<()> {
    file.write_all_at(bytes, 0)?;
    file.set_len(bytes.len() as u64)
}

/// What a directory says of itself, without holding it.
pub fn read_meta(path: &Path) -> anyhow::Result<Meta> {
    Ok(toml::from_str(&std::fs::read_to_string(path.join("meta.toml"))?)?)
}

fn durable_file(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    File::open(path.parent().expect("in a directory"))?.sync_all()?;
    Ok(())
}

fn used_bytes(path: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for sub in ["log", "extents", "checkpoint"] {
        for entry in std::fs::read_dir(path.join(sub))? {
            sum += entry?.metadata()?.len();
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_an_earlier_format_is_opened_and_one_of_a_later_is_not() {
        let path = std::env::temp_dir().join(format!("cairn-format-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let text = format!("masters = []\nrack = \"r1\"\ndata = [{path:?}]\nlog_segment_bytes = {}", 4 << 20);
        let config: Config = toml::from_str(&text).unwrap();
        let opened = || open(&path, &config, Files::allowed(1)).map(|dir| dir.meta);
        let made = opened().unwrap();
        let with_format = |format| write_meta(&path, &Meta { format, ..made.clone() }).unwrap();
        with_format(1);
        let again = opened().unwrap();
        assert_eq!((again.format, again.incarnation), (FORMAT, made.incarnation + 1));
        with_format(FORMAT + 1);
        let refused = opened().unwrap_err().to_string();
        std::fs::remove_dir_all(&path).unwrap();
        assert!(
            refused.contains(&format!("format {}, this build reads formats up to {FORMAT}", FORMAT + 1)),
            "{refused}"
        );
    }
}
