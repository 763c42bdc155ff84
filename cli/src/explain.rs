//! `cairn admin explain`: the whole story of a chunk, in sentences.

use crate::output::{human, print, show};
use client::{Client, Story};
use common::wire::StoreInfo;
use common::{ChunkHandle, StoreId};
use serde_json::json;

pub async fn run(client: &Client, handle: ChunkHandle, json: bool) -> anyhow::Result<()> {
    let story = client.explain(handle).await?;
    let stores = client.stores().await?;
    let mut views = vec![];
    for store in &story.config.members {
        views.push((*store, client.replica(&story.config, *store).await));
    }
    let config = &story.config;
    if json {
        let ids = |list: &[StoreId]| list.iter().map(|s| s.0).collect::<Vec<_>>();
        let replicas: Vec<_> = views
            .iter()
            .map(|(store, view)| match view {
                Ok(v) => json!({"store": store.0, "epoch": v.epoch.0, "length": v.length,
                    "committed": v.committed.0, "applied": v.applied.0}),
                Err(e) => json!({"store": store.0, "error": e.to_string()}),
            })
            .collect();
        let forks: Vec<_> =
            story.forks.iter().map(|(h, n)| json!({"handle": h.to_string(), "upto": n})).collect();
        print(&json!({"handle": handle.to_string(), "epoch": config.epoch.0, "primary": config.primary.0,
            "want": story.want, "length": story.length, "sealed": config.sealed.is_some(), "file": story.file.0,
            "path": story.path.as_ref().map(|p| show(p)), "kept_for": story.kept,
            "fork_of": story.fork_of.map(|(h, n)| json!({"handle": h.to_string(), "upto": n})), "forks": forks,
            "leaving": ids(&story.leaving), "target": story.target.map(|s| s.0), "old_copies": ids(&story.old),
            "unconfirmed": ids(&story.unconfirmed), "wait_ms": config.wait_ms,
            "lacking_ms": story.lacking.as_ref().map(|(ms, _)| *ms),
            "why": story.lacking.as_ref().map(|(_, why)| why.clone()), "replicas": replicas}));
        return Ok(());
    }
    println!("{}", belongs(handle, &story));
    let state = match config.sealed {
        Some(length) => format!("sealed at {} ({length} bytes)", human(length)),
        None => format!("open, {} as last reported", human(story.length)),
    };
    println!("It is {state}, at {}; {} of {} members.", config.epoch, config.members.len(), story.want);
    for (store, view) in &views {
        let role = if *store == config.primary { "primary" } else { "secondary" };
        let place = place(&stores, *store);
        match view {
            Ok(v) => println!(
                "  {store} ({role}) {place}: {}, {} bytes, committed {}, applied {}",
                v.epoch, v.length, v.committed, v.applied
            ),
            Err(e) => println!("  {store} ({role}) {place}: {e}"),
        }
    }
    for line in doings(&story, &stores) {
        println!("{line}");
    }
    Ok(())
}

fn place(stores: &[StoreInfo], id: StoreId) -> String {
    let Some(s) = stores.iter().find(|s| s.store == id) else { return "unknown".into() };
    let state = match (s.up, s.doubted) {
        (true, true) => ", which seems to be sick",
        (true, false) => "",
        (false, _) if s.given_up => ", which was given up",
        (false, _) => ", which is down",
    };
    format!("on {} in rack {} at {}{state}", s.server, s.rack, s.addr)
}

fn belongs(handle: ChunkHandle, story: &Story) -> String {
    let of = match &story.path {
        Some(path) => show(path),
        None => format!("a file without a name ({})", story.file),
    };
    match (story.fork_of, story.kept) {
        (Some((chunk, number)), _) => {
            format!("{handle} is a fork: it holds what {chunk} of {of} held up to snapshot {number}.")
        }
        (None, Some(number)) => {
            format!("{handle} was a chunk of {of}, and is kept for snapshots up to number {number}.")
        }
        (None, None) => format!("{handle} is a chunk of {of}."),
    }
}

/// What is done about it, and what it waits for.
fn doings(story: &Story, stores: &[StoreInfo]) -> Vec<String> {
    let mut lines = vec![];
    let list = |stores: &[StoreId]| stores.iter().map(|s| s.to_string()).collect::<Vec<_>>().join(", ");
    for (fork, number) in &story.forks {
        lines.push(format!("{fork} stands in for it up to snapshot {number}."));
    }
    if !story.leaving.is_empty() {
        lines.push(format!("{} shall leave it, when there are enough others.", list(&story.leaving)));
    }
    if let Some(target) = story.target {
        lines.push(format!("It is being copied to {target} {}.", place(stores, target)));
    }
    if !story.unconfirmed.is_empty() {
        lines.push(format!(
            "{} left it and may still serve it: writes wait for at most {} ms more.",
            list(&story.unconfirmed),
            story.config.wait_ms
        ));
    }
    if !story.old.is_empty() {
        lines.push(format!("Old copies are on {}.", list(&story.old)));
    }
    match &story.lacking {
        Some((ms, why)) if why.is_empty() => {
            lines.push(format!("It has lacked members for {:.1} s, and is next.", *ms as f64 / 1e3));
        }
        Some((ms, why)) => {
            lines.push(format!("It has lacked members for {:.1} s, and waits: {why}.", *ms as f64 / 1e3));
        }
        None => {}
    }
    if lines.is_empty() {
        lines.push("Nothing is to be done.".into());
    }
    lines
}
