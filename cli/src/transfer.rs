//! `put` and `get`: files and trees, in and out.

use crate::fs::{join, path};
use crate::output::{human, print, show};
use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use client::{Attr, Client, FileKind};
use common::Code;
use common::limits::WRITE_BYTES_MAX;
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::ffi::{OsStr, OsString};
use std::fs::{File, FileTimes, Metadata};
use std::io::{IsTerminal, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Files of a tree that are under way at a time.
pub const FILES_UNDER_WAY: usize = 16;
/// Blocks that are read from the local disk ahead of the network.
const BLOCKS_AHEAD: usize = 4;

struct Progress {
    bar: ProgressBar,
    began: Instant,
    files: u64,
    bytes: u64,
}

impl Progress {
    fn new(total: u64) -> Progress {
        let bar =
            if std::io::stderr().is_terminal() { ProgressBar::new(total) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
        bar.set_style(style.expect("a fixed template"));
        Progress { bar, began: Instant::now(), files: 0, bytes: 0 }
    }

    fn done(self, json: bool) {
        self.bar.finish_and_clear();
        let secs = self.began.elapsed().as_secs_f64();
        if json {
            print(&json!({"files": self.files, "bytes": self.bytes, "seconds": secs}));
        } else if std::io::stderr().is_terminal() {
            let rate = human((self.bytes as f64 / secs.max(1e-6)) as u64);
            eprintln!("{} files, {} in {secs:.1} s ({rate}/s)", self.files, human(self.bytes));
        }
    }
}

// --- put -----------------------------------------------------------------------------------

/// What goes where: sources, a path in Cairn, and whether that is a directory which they go into.
pub async fn ends<'a>(
    client: &Client,
    paths: &'a [OsString],
) -> anyhow::Result<(&'a [OsString], Vec<u8>, bool)> {
    let (to, sources) = paths.split_last().expect("clap demands two");
    let to = path(to);
    let into = client.lookup(&to).await.is_ok_and(|a| a.kind == FileKind::Directory);
    if sources.len() > 1 && !into {
        bail!("{}: it is no directory, and there are {} sources", show(&to), sources.len());
    }
    Ok((sources, to, into))
}

pub async fn put(client: Client, recursive: bool, paths: &[OsString], json: bool) -> anyhow::Result<()> {
    let (sources, to, into) = ends(&client, paths).await?;
    let mut total = Progress::new(0);
    for source in sources {
        if source == OsStr::new("-") {
            if into {
                bail!("{}: it is a directory; standard input needs a file's name", show(&to));
            }
            total.bytes +=
                put_reader(&client, std::io::stdin(), &to, 0o644, now_ns(), total.bar.clone()).await?;
            total.files += 1;
            continue;
        }
        let local = PathBuf::from(source);
        let meta = std::fs::symlink_metadata(&local).with_context(|| format!("read {}", local.display()))?;
        let target = match (into, local.canonicalize()?.file_name()) {
            (true, Some(name)) => join(&to, local.file_name().unwrap_or(name).as_bytes()),
            _ => to.clone(),
        };
        if meta.is_dir() {
            if !recursive {
                bail!("{}: it is a directory; -r stores it with all that is in it", local.display());
            }
            put_tree(&client, &local, &target, &mut total).await?;
        } else {
            let bytes = put_one(&client, &local, &target, total.bar.clone()).await?;
            total.bytes += bytes;
            total.files += 1;
        }
    }
    total.done(json);
    Ok(())
}

async fn put_tree(client: &Client, root: &Path, to: &[u8], total: &mut Progress) -> anyhow::Result<()> {
    client.mkdir(to, true, 0o755).await?;
    let mut dirs = vec![(root.to_path_buf(), to.to_vec())];
    let mut made = vec![];
    let mut under_way: JoinSet<anyhow::Result<u64>> = JoinSet::new();
    while let Some((dir, to)) = dirs.pop() {
        let listing = std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))?;
        for entry in listing {
            let entry = entry?;
            let target = join(&to, entry.file_name().as_bytes());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                client.mkdir(&target, true, 0o755).await?;
                dirs.push((entry.path(), target));
                continue;
            }
            if !kind.is_file() && !kind.is_symlink() {
                eprintln!(
                    "cairn: {}: neither file nor directory nor symlink, left out",
                    entry.path().display()
                );
                continue;
            }
            while under_way.len() >= FILES_UNDER_WAY {
                one_done(&mut under_way, total).await?;
            }
            let (client, local, bar) = (client.clone(), entry.path(), total.bar.clone());
            total.bar.inc_length(entry.metadata()?.len());
            under_way.spawn(async move { put_one(&client, &local, &target, bar).await });
        }
        made.push((dir, to));
    }
    while !under_way.is_empty() {
        one_done(&mut under_way, total).await?;
    }
    // What was stored in them changed their times.
    for (dir, to) in made.into_iter().rev() {
        let meta = std::fs::metadata(&dir)?;
        client.set_attr(&to, Some(meta.mode() & 0o7777), Some(mtime_ns(&meta))).await?;
    }
    Ok(())
}

async fn one_done(under_way: &mut JoinSet<anyhow::Result<u64>>, total: &mut Progress) -> anyhow::Result<()> {
    if let Some(done) = under_way.join_next().await {
        total.bytes += done??;
        total.files += 1;
    }
    Ok(())
}

async fn put_one(client: &Client, local: &Path, to: &[u8], bar: ProgressBar) -> anyhow::Result<u64> {
    let about = || format!("store {}", local.display());
    let meta = std::fs::symlink_metadata(local).with_context(about)?;
    if meta.is_symlink() {
        let target = std::fs::read_link(local).with_context(about)?;
        client.symlink(to, target.as_os_str().as_bytes()).await.with_context(about)?;
        return Ok(0);
    }
    let file = File::open(local).with_context(about)?;
    put_reader(client, file, to, meta.mode() & 0o7777, mtime_ns(&meta), bar).await.with_context(about)
}

/// Stores what a reader gives. The file has no name until all of it is durable.
async fn put_reader(
    client: &Client,
    reader: impl Read + Send + 'static,
    to: &[u8],
    mode: u32,
    mtime_ns: i64,
    bar: ProgressBar,
) -> anyhow::Result<u64> {
    let (send, mut blocks) = mpsc::channel::<std::io::Result<Bytes>>(BLOCKS_AHEAD);
    let reading = tokio::task::spawn_blocking(move || read_blocks(reader, send));
    let mut file = client.put(to).await?;
    while let Some(block) = blocks.recv().await {
        let block = block?;
        bar.inc(block.len() as u64);
        file.write_block(block).await?;
    }
    reading.await?;
    let bytes = file.len();
    file.finish(mode, mtime_ns, true).await?;
    Ok(bytes)
}

fn read_blocks(mut reader: impl Read, send: mpsc::Sender<std::io::Result<Bytes>>) {
    loop {
        let mut block = BytesMut::zeroed(WRITE_BYTES_MAX);
        let mut at = 0;
        while at < block.len() {
            match reader.read(&mut block[at..]) {
                Ok(0) => break,
                Ok(n) => at += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    // Whoever stores may have failed already.
                    let _ = send.blocking_send(Err(e));
                    return;
                }
            }
        }
        block.truncate(at);
        let end = at < WRITE_BYTES_MAX;
        if at > 0 && send.blocking_send(Ok(block.freeze())).is_err() {
            return;
        }
        if end {
            return;
        }
    }
}

fn mtime_ns(meta: &Metadata) -> i64 {
    meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec())
}

fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64)
}

// --- get -----------------------------------------------------------------------------------

pub async fn get(client: Client, recursive: bool, paths: &[OsString], json: bool) -> anyhow::Result<()> {
    let (to, sources) = paths.split_last().expect("clap demands two");
    let stdout = to == OsStr::new("-");
    let to = PathBuf::from(to);
    let into = !stdout && to.is_dir();
    if sources.len() > 1 && !into && !stdout {
        bail!("{}: it is no directory, and there are {} sources", to.display(), sources.len());
    }
    let mut total = Progress::new(0);
    for source in sources {
        let from = path(source);
        let attr = client.lookup(&from).await?;
        let name = OsString::from_vec(from.rsplit(|b| *b == b'/').next().unwrap_or_default().to_vec());
        let target = if into && !name.is_empty() { to.join(name) } else { to.clone() };
        match attr.kind {
            FileKind::Directory if !recursive => {
                bail!("{}: it is a directory; -r fetches it with all that is in it", show(&from))
            }
            FileKind::Directory if stdout => {
                bail!("{}: a directory cannot go to standard output", show(&from))
            }
            FileKind::Directory => get_tree(&client, from, attr, &target, &mut total).await?,
            _ if stdout => {
                let file = client.open_file(attr).await?;
                total.bytes += copy_out(&file, std::io::stdout(), &total.bar).await?;
                total.files += 1;
            }
            _ => {
                total.bytes += get_one(&client, &from, attr, &target, total.bar.clone()).await?;
                total.files += 1;
            }
        }
    }
    total.done(json);
    Ok(())
}

async fn get_tree(
    client: &Client,
    from: Vec<u8>,
    attr: Attr,
    to: &Path,
    total: &mut Progress,
) -> anyhow::Result<()> {
    let mut dirs = vec![(from, attr, to.to_path_buf())];
    let mut made = vec![];
    let mut under_way: JoinSet<anyhow::Result<u64>> = JoinSet::new();
    while let Some((from, attr, to)) = dirs.pop() {
        std::fs::create_dir_all(&to).with_context(|| format!("make {}", to.display()))?;
        for entry in client.list(&from).await? {
            let (full, local) = (join(&from, &entry.name), to.join(OsStr::from_bytes(&entry.name)));
            if entry.attr.kind == FileKind::Directory {
                dirs.push((full, entry.attr, local));
                continue;
            }
            while under_way.len() >= FILES_UNDER_WAY {
                one_done(&mut under_way, total).await?;
            }
            total.bar.inc_length(entry.attr.length);
            let (client, bar) = (client.clone(), total.bar.clone());
            under_way.spawn(async move { get_one(&client, &full, entry.attr, &local, bar).await });
        }
        made.push((to, attr));
    }
    while !under_way.is_empty() {
        one_done(&mut under_way, total).await?;
    }
    for (dir, attr) in made.into_iter().rev() {
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(attr.mode))?;
        File::open(&dir)?.set_times(FileTimes::new().set_modified(system_time(attr.mtime_ns)))?;
    }
    Ok(())
}

/// Fetches one file: written beside, named when it is whole.
async fn get_one(
    client: &Client,
    from: &[u8],
    attr: Attr,
    to: &Path,
    bar: ProgressBar,
) -> anyhow::Result<u64> {
    let about = || format!("fetch {} to {}", show(from), to.display());
    if attr.kind == FileKind::Symlink {
        let _ = std::fs::remove_file(to);
        std::os::unix::fs::symlink(OsStr::from_bytes(&attr.target), to).with_context(about)?;
        return Ok(0);
    }
    let (mode, mtime) = (attr.mode, attr.mtime_ns);
    let file = client.open_file(attr).await.with_context(about)?;
    let parent = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let tmp = parent.join(format!(".cairn-get-{:016x}", rand::random::<u64>()));
    let local = File::create_new(&tmp).with_context(about)?;
    let fetched = async {
        let bytes = copy_out(&file, local.try_clone()?, &bar).await?;
        local.set_permissions(std::fs::Permissions::from_mode(mode))?;
        local.set_times(FileTimes::new().set_modified(system_time(mtime)))?;
        std::fs::rename(&tmp, to)?;
        Ok(bytes)
    };
    // Ctrl-C cleans up too.
    let done: anyhow::Result<u64> = tokio::select! {
        done = fetched => done,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    if done.is_err() {
        let _ = std::fs::remove_file(&tmp);
    }
    done.with_context(about)
}

async fn copy_out(
    file: &client::FileReader,
    out: impl Write + Send + 'static,
    bar: &ProgressBar,
) -> anyhow::Result<u64> {
    let (send, mut parts) = mpsc::channel::<Bytes>(16);
    let writing = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        let mut out = std::io::BufWriter::with_capacity(256 * 1024, out);
        while let Some(part) = parts.blocking_recv() {
            out.write_all(&part)?;
        }
        out.flush()
    });
    let mut bytes = 0;
    let mut stream = Box::pin(file.stream(0, file.len()));
    while let Some(part) = stream.next().await {
        let part = part?;
        bytes += part.len() as u64;
        bar.inc(part.len() as u64);
        if send.send(part).await.is_err() {
            break;
        }
    }
    drop(send);
    writing.await??;
    if bytes != file.len() {
        return Err(client::Error::from(Code::Deadline).into());
    }
    Ok(bytes)
}

fn system_time(ns: i64) -> SystemTime {
    match u64::try_from(ns) {
        Ok(ns) => UNIX_EPOCH + Duration::from_nanos(ns),
        Err(_) => UNIX_EPOCH - Duration::from_nanos(ns.unsigned_abs()),
    }
}
