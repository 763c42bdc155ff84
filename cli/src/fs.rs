//! Commands on files.

use crate::args::Fs;
use crate::copy;
use crate::output::{attr_json, human, mode, print, show, time};
use crate::transfer;
use anyhow::bail;
use client::{Client, Entry, FileKind};
use common::Code;
use common::wire::path::Route;
use futures::StreamExt;
use serde_json::json;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::time::{SystemTime, UNIX_EPOCH};

/// A path in Cairn: from the root, whatever was typed, or from an inode (`@f7/b`); `.` and `..` are resolved
/// here.
pub fn path(typed: &OsStr) -> Vec<u8> {
    let mut names: Vec<&[u8]> = vec![];
    for name in typed.as_bytes().split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    let mut path = vec![];
    for name in names {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    match () {
        _ if path.is_empty() => vec![b'/'],
        _ if !typed.as_bytes().starts_with(b"/") && Route::of(&path[1..]).is_ok() => path.split_off(1),
        _ => path,
    }
}

/// A path below another.
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = dir.to_vec();
    if path.last() != Some(&b'/') {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

pub async fn run(client: Client, command: Fs, json: bool) -> anyhow::Result<()> {
    match command {
        Fs::Put { recursive, paths } => transfer::put(client, recursive, &paths, json).await,
        Fs::Get { recursive, paths } => transfer::get(client, recursive, &paths, json).await,
        Fs::Cat { paths } => cat(&client, &paths).await,
        Fs::Ls { long, recursive, path: p } => ls(&client, &path(&p), long, recursive, json).await,
        Fs::Stat { paths } => stat(&client, &paths, json).await,
        Fs::Mkdir { parents, paths } => {
            for p in &paths {
                client.mkdir(&path(p), parents, 0o755).await?;
            }
            Ok(())
        }
        Fs::Cp { recursive, paths } => copy::cp(client, recursive, &paths, json).await,
        Fs::Mv { no_clobber, from, to } => mv(&client, &path(&from), &path(&to), no_clobber).await,
        Fs::Ln { symbolic: true, target, name } => {
            Ok(client.symlink(&path(&name), &target.into_encoded_bytes()).await?)
        }
        Fs::Ln { symbolic: false, target, name } => {
            Ok(client.link(path(&target), path(&name)).await.map(drop)?)
        }
        Fs::Rm { recursive, force, paths } => rm(&client, recursive, force, &paths).await,
        Fs::Tree { path: p } => tree(&client, &path(&p)).await,
        Fs::Du { path: p } => du(&client, &path(&p), json).await,
        Fs::Append { lines, path: p, text } => append(&client, &path(&p), text, lines, json).await,
        Fs::Touch { paths } => touch(&client, &paths).await,
        Fs::Truncate { path: p, length } => Ok(client.truncate(&path(&p), length).await.map(drop)?),
        Fs::Undelete { path: Some(p), to } => {
            let from = path(&p);
            let to = to.map_or(from.clone(), |t| path(&t));
            Ok(client.undelete(&from, &to).await?)
        }
        Fs::Undelete { path: None, .. } => trash(&client, json).await,
    }
}

async fn cat(client: &Client, paths: &[OsString]) -> anyhow::Result<()> {
    for p in paths {
        let file = client.open(&path(p)).await?;
        let mut parts = Box::pin(file.stream(0, file.len()));
        let mut out = std::io::stdout().lock();
        while let Some(part) = parts.next().await {
            out.write_all(&part?)?;
        }
        out.flush()?;
    }
    Ok(())
}

async fn ls(client: &Client, dir: &[u8], long: bool, recursive: bool, json: bool) -> anyhow::Result<()> {
    let attr = client.lookup(dir).await?;
    if attr.kind != FileKind::Directory {
        let name = dir.rsplit(|b| *b == b'/').next().unwrap_or(dir).to_vec();
        line(dir, &Entry { name, attr }, long, json);
        return Ok(());
    }
    let mut dirs = vec![dir.to_vec()];
    while let Some(dir) = dirs.pop() {
        if recursive && !json {
            println!("{}:", show(&dir));
        }
        let mut below = vec![];
        for entry in client.list(&dir).await? {
            let full = join(&dir, &entry.name);
            line(&full, &entry, long, json);
            if recursive && entry.attr.kind == FileKind::Directory {
                below.push(full);
            }
        }
        dirs.extend(below.into_iter().rev());
    }
    Ok(())
}

fn line(full: &[u8], entry: &Entry, long: bool, json: bool) {
    let attr = &entry.attr;
    if json {
        return print(&attr_json(full, attr));
    }
    let slash = if attr.kind == FileKind::Directory { "/" } else { "" };
    if !long {
        return println!("{}{slash}", show(&entry.name));
    }
    let target = if attr.target.is_empty() { String::new() } else { format!(" -> {}", show(&attr.target)) };
    println!(
        "{} {:>12} {} {}{slash}{target}",
        mode(attr),
        attr.length,
        time(attr.mtime_ns),
        show(&entry.name)
    );
}

async fn stat(client: &Client, paths: &[OsString], json: bool) -> anyhow::Result<()> {
    for p in paths {
        let full = path(p);
        let attr = client.stat(&full).await?;
        if json {
            print(&attr_json(&full, &attr));
            continue;
        }
        println!("path    {}", show(&full));
        println!("kind    {:?}", attr.kind);
        println!("mode    {} ({:04o})", mode(&attr), attr.mode);
        println!("length  {} ({})", attr.length, human(attr.length));
        println!("owner   {}:{}", attr.uid, attr.gid);
        println!("mtime   {} UTC", time(attr.mtime_ns));
        println!("ctime   {} UTC", time(attr.ctime_ns));
        println!("links   {}", attr.links);
        println!("id      {}", attr.file);
        let (what, open) = match attr.kind {
            FileKind::Directory => ("entries", ""),
            _ => ("chunks ", if attr.open.is_some() { " (the last is open)" } else { "" }),
        };
        println!("{what} {}{open}", attr.count);
    }
    Ok(())
}

async fn mv(client: &Client, from: &[u8], to: &[u8], no_clobber: bool) -> anyhow::Result<()> {
    let into = client.lookup(to).await.is_ok_and(|a| a.kind == FileKind::Directory);
    let name = from.rsplit(|b| *b == b'/').next().unwrap_or(from);
    let to = if into { join(to, name) } else { to.to_vec() };
    Ok(client.rename(from, &to, !no_clobber).await?)
}

async fn rm(client: &Client, recursive: bool, force: bool, paths: &[OsString]) -> anyhow::Result<()> {
    for p in paths {
        let full = path(p);
        let attr = match client.lookup(&full).await {
            Err(e) if force && e.code() == Some(Code::NotFound) => continue,
            found => found?,
        };
        if attr.kind == FileKind::Directory && !recursive {
            bail!("{}: it is a directory; -r deletes it with all that is in it", show(&full));
        }
        client.unlink(&full, recursive).await?;
    }
    Ok(())
}

async fn tree(client: &Client, root: &[u8]) -> anyhow::Result<()> {
    println!("{}", show(root));
    let mut stack: Vec<(Vec<u8>, String, std::vec::IntoIter<Entry>)> =
        vec![(root.to_vec(), String::new(), client.list(root).await?.into_iter())];
    let (mut dirs, mut files) = (0u64, 0u64);
    while let Some((dir, indent, entries)) = stack.last_mut() {
        let Some(entry) = entries.next() else {
            stack.pop();
            continue;
        };
        let last = entries.len() == 0;
        println!("{indent}{}{}", if last { "└── " } else { "├── " }, show(&entry.name));
        if entry.attr.kind == FileKind::Directory {
            dirs += 1;
            let full = join(dir, &entry.name);
            let indent = format!("{indent}{}", if last { "    " } else { "│   " });
            let below = client.list(&full).await?.into_iter();
            stack.push((full, indent, below));
        } else {
            files += 1;
        }
    }
    println!("\n{dirs} directories, {files} files");
    Ok(())
}

async fn du(client: &Client, root: &[u8], json: bool) -> anyhow::Result<()> {
    let usage = client.usage(root).await?;
    match json {
        true => print(&json!({"path": show(root), "bytes": usage.bytes, "entries": usage.entries,
            "quota": {"bytes": usage.quota.bytes, "entries": usage.quota.entries}})),
        false => println!("{} in {} entries  {}", human(usage.bytes), usage.entries, show(root)),
    }
    Ok(())
}

async fn append(
    client: &Client,
    file: &[u8],
    text: Option<OsString>,
    lines: bool,
    json: bool,
) -> anyhow::Result<()> {
    let input = match text {
        Some(text) => text.as_bytes().to_vec(),
        None => {
            tokio::task::spawn_blocking(|| {
                let mut all = vec![];
                std::io::Read::read_to_end(&mut std::io::stdin().lock(), &mut all).map(|_| all)
            })
            .await??
        }
    };
    let mut appender = client.appender(file).await?;
    let records: Vec<&[u8]> = match lines {
        true => input.split_inclusive(|b| *b == b'\n').collect(),
        false => vec![&input],
    };
    for record in records.into_iter().filter(|r| !r.is_empty()) {
        let offset = appender.append(record).await?;
        if json {
            print(&json!({"offset": offset, "bytes": record.len()}));
        }
    }
    Ok(appender.close().await?)
}

async fn touch(client: &Client, paths: &[OsString]) -> anyhow::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as i64;
    for p in paths {
        let full = path(p);
        match client.set_attr(&full, None, Some(now)).await {
            Err(e) if e.code() == Some(Code::NotFound) => drop(client.create(&full, false).await?),
            done => done?,
        }
    }
    Ok(())
}

async fn trash(client: &Client, json: bool) -> anyhow::Result<()> {
    for t in client.trash().await? {
        if json {
            print(
                &json!({"path": String::from_utf8_lossy(&t.path), "id": t.file.0, "deleted_ns": t.deleted_ns}),
            );
        } else {
            println!("{}  {}", time(t.deleted_ns), show(&t.path));
        }
    }
    Ok(())
}
