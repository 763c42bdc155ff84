//! `cp`: files and trees within the cluster. Large parts of files are named once more, not copied.

use crate::fs::{join, path};
use crate::output::{human, print, show};
use crate::transfer::{FILES_UNDER_WAY, ends};
use anyhow::{Context, bail};
use client::{Client, Copied, FileKind};
use serde_json::json;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::time::Instant;
use tokio::task::JoinSet;

#[derive(Default)]
struct Total {
    files: u64,
    copied: Copied,
}

impl Total {
    fn add(&mut self, copied: Copied) {
        self.files += 1;
        self.copied.bytes += copied.bytes;
        self.copied.by_reference += copied.by_reference;
    }
}

/// Copies files, or with `recursive` trees, to a path or into a directory.
pub async fn cp(client: Client, recursive: bool, paths: &[OsString], json: bool) -> anyhow::Result<()> {
    let (sources, to, into) = ends(&client, paths).await?;
    let began = Instant::now();
    let mut total = Total::default();
    for source in sources.iter().map(|source| path(source)) {
        let attr = client.lookup(&source).await.with_context(|| show(&source))?;
        let name = source.rsplit(|b| *b == b'/').next().unwrap_or_default();
        let target = if into { join(&to, name) } else { to.clone() };
        if target == source || client.lookup(&target).await.is_ok_and(|there| there.file == attr.file) {
            bail!("{} and {} are the same file", show(&source), show(&target));
        }
        if attr.kind == FileKind::Directory {
            if !recursive {
                bail!("{}: it is a directory; -r copies it with all that is in it", show(&source));
            }
            if target.starts_with(&join(&source, b"")) {
                bail!("{}: it lies within {}", show(&target), show(&source));
            }
            tree(&client, source, target, &mut total).await?;
        } else {
            total.add(one(&client, &source, &target, attr.kind, &attr.target).await?);
        }
    }
    let (secs, Copied { bytes, by_reference }) = (began.elapsed().as_secs_f64(), total.copied);
    if json {
        print(&json!({"files": total.files, "bytes": bytes, "by_reference": by_reference, "seconds": secs}));
    } else if std::io::stderr().is_terminal() {
        let (bytes, by_reference) = (human(bytes), human(by_reference));
        eprintln!("{} files, {bytes}, of which {by_reference} by reference, in {secs:.1} s", total.files);
    }
    Ok(())
}

async fn one(
    client: &Client,
    from: &[u8],
    to: &[u8],
    kind: FileKind,
    target: &[u8],
) -> anyhow::Result<Copied> {
    match kind {
        FileKind::File => client.copy(from, to).await.with_context(|| show(from)),
        FileKind::Symlink => {
            client.symlink(to, target).await.with_context(|| show(to))?;
            Ok(Copied::default())
        }
        _ => bail!("{}: neither file nor directory nor symlink", show(from)),
    }
}

async fn tree(client: &Client, from: Vec<u8>, to: Vec<u8>, total: &mut Total) -> anyhow::Result<()> {
    let mut left = vec![(from, to)];
    let mut made = vec![];
    let mut under_way: JoinSet<anyhow::Result<Copied>> = JoinSet::new();
    while let Some((from, to)) = left.pop() {
        let attr = client.lookup(&from).await.with_context(|| show(&from))?;
        client.mkdir(&to, true, 0o755).await.with_context(|| show(&to))?;
        for entry in client.list(&from).await.with_context(|| show(&from))? {
            let (from, to) = (join(&from, &entry.name), join(&to, &entry.name));
            if entry.attr.kind == FileKind::Directory {
                left.push((from, to));
                continue;
            }
            while under_way.len() >= FILES_UNDER_WAY {
                total.add(under_way.join_next().await.expect("some are")??);
            }
            let client = client.clone();
            let (kind, target) = (entry.attr.kind, entry.attr.target);
            under_way.spawn(async move { one(&client, &from, &to, kind, &target).await });
        }
        made.push((to, attr));
    }
    while let Some(done) = under_way.join_next().await {
        total.add(done??);
    }
    // What was copied into them changed their times.
    for (dir, attr) in made.into_iter().rev() {
        client.set_attr(&dir, Some(attr.mode), Some(attr.mtime_ns)).await.with_context(|| show(&dir))?;
    }
    Ok(())
}
