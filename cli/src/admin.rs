//! Commands for administrators.

use crate::args::{Admin, MasterCommand};
use crate::fs::path;
use crate::output::{human, print, show};
use client::{Client, Policy, Quota};
use common::wire::StoreInfo;
use common::{ChunkHandle, ServerId, StoreId};
use serde_json::json;

pub async fn run(client: Client, command: Admin, json: bool) -> anyhow::Result<()> {
    match command {
        Admin::Status => status(&client, json).await,
        Admin::Servers => servers(&client, json).await,
        Admin::Chunks { path: p } => chunks(&client, &path(&p), json).await,
        Admin::Explain { chunk } => crate::explain::run(&client, ChunkHandle(chunk), json).await,
        Admin::Audit { path: p, from, rate, repair } => {
            let from = from.map(|p| path(&p));
            crate::audit::run(&client, &path(&p), crate::audit::Options { from, rate, repair, json }).await
        }
        Admin::Locate { path: p, offset } => locate(&client, &path(&p), offset, json).await,
        Admin::Policy { path: p, replication, chunk_mib, label, trash } => {
            let chunk_bytes = chunk_mib.map(|m| m * 1024 * 1024);
            let given = Policy { replication, chunk_bytes, memory: None, label, trash };
            let policy = match given == Policy::default() {
                true => client.policy(&path(&p)).await?,
                false => client.set_policy(&path(&p), given).await?,
            };
            show_policy(&policy, json);
            Ok(())
        }
        Admin::Quota { path: p, entries, bytes, remove } => {
            quota(&client, &path(&p), Quota { entries, bytes }, remove, json).await
        }
        Admin::Master { command: MasterCommand::Add { id, addr } } => Ok(client.add_master(id, addr).await?),
        Admin::Master { command: MasterCommand::Remove { id } } => Ok(client.remove_master(id).await?),
        Admin::Master { command: MasterCommand::Transfer { id } } => Ok(client.transfer_leader(id).await?),
        Admin::Repair { wait } => repair(&client, wait, json).await,
        Admin::Drain { server, undo, wait } => drain(&client, server.map(ServerId), undo, wait, json).await,
        Admin::Maintenance { server, minutes, end } => {
            maintenance(&client, server.map(ServerId), minutes, end, json).await
        }
        Admin::Locks => locks(&client, json).await,
        Admin::AcceptLoss { store, yes } => accept_loss(&client, StoreId(store), yes, json).await,
        Admin::EmptyTrash => Ok(client.empty_trash().await?),
    }
}

async fn status(client: &Client, json: bool) -> anyhow::Result<()> {
    let any = client.status().await?;
    let mut masters = vec![];
    for (id, addr, votes) in &any.masters {
        masters.push((*id, addr.clone(), *votes, client.status_of(addr).await));
    }
    let digests: Vec<(u64, u64)> = masters.iter().filter_map(|m| m.3.as_ref()).map(|s| s.digest).collect();
    let drift = digests.iter().any(|a| digests.iter().any(|b| a.0 == b.0 && a.1 != b.1));
    if json {
        let list: Vec<_> = masters
            .iter()
            .map(|(id, addr, votes, s)| {
                json!({"id": id, "addr": addr, "votes": votes, "answers": s.is_some(),
                       "applied": s.as_ref().map(|s| s.applied), "last_log": s.as_ref().map(|s| s.last_log),
                       "snapshot": s.as_ref().map(|s| s.snapshot)})
            })
            .collect();
        print(&json!({"leader": any.leader, "term": any.term, "masters": list, "files": any.files,
            "chunks": any.chunks, "degraded": any.degraded, "stores": any.stores.0, "stores_up": any.stores.1,
            "digests_agree": !drift}));
        return Ok(());
    }
    println!(
        "{:>6}  {:<22} {:<9} {:>10} {:>10} {:>10}",
        "master", "address", "role", "applied", "log", "snapshot"
    );
    for (id, addr, votes, s) in &masters {
        let role = match (any.leader == Some(*id), votes) {
            (true, _) => "leader",
            (_, true) => "follower",
            (_, false) => "learner",
        };
        match s {
            Some(s) => println!(
                "{id:>6}  {addr:<22} {role:<9} {:>10} {:>10} {:>10}",
                s.applied, s.last_log, s.snapshot
            ),
            None => println!("{id:>6}  {addr:<22} {role:<9} does not answer"),
        }
    }
    println!(
        "term {}, {} files, {} chunks ({} degraded), {} of {} stores up, digests {}",
        any.term,
        any.files,
        any.chunks,
        any.degraded,
        any.stores.1,
        any.stores.0,
        if drift { "DIFFER: a master has drifted" } else { "agree" }
    );
    Ok(())
}

/// How often the state of repairs or drains is asked for while it is waited for.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(500);

async fn repair(client: &Client, wait: bool, json: bool) -> anyhow::Result<()> {
    loop {
        let degraded = client.status().await?.degraded;
        let (items, count) = client.repairs().await?;
        if !wait || (degraded == 0 && count == 0) {
            show_repairs(&items, count.max(degraded), json);
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn drain(
    client: &Client,
    server: Option<ServerId>,
    undo: bool,
    wait: bool,
    json: bool,
) -> anyhow::Result<()> {
    if let Some(server) = server {
        client.drain(server, !undo).await?;
    }
    loop {
        let mut items = client.drains().await?;
        items.retain(|i| server.is_none_or(|s| s == i.server));
        let left = items.iter().any(|i| i.chunks + i.copies > 0);
        if !wait || !left {
            show_drains(&items, &client.stores().await?, json);
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn maintenance(
    client: &Client,
    server: Option<ServerId>,
    minutes: u64,
    end: bool,
    json: bool,
) -> anyhow::Result<()> {
    if let Some(server) = server {
        let minutes = if end { 0 } else { minutes };
        client.maintain(server, std::time::Duration::from_secs(minutes * 60)).await?;
    }
    let mut items = client.maintained().await?;
    items.retain(|i| server.is_none_or(|s| s == i.server));
    for i in &items {
        let safe = i.at_risk == 0;
        let left = i.left_ms.div_ceil(60_000);
        match (json, safe) {
            (true, _) => print(&json!({"server": i.server.0, "left_ms": i.left_ms, "chunks": i.chunks,
                "at_risk": i.at_risk, "safe": safe})),
            (false, true) => println!(
                "{} is waited for {left} min more; it can be stopped: its {} chunks have enough other live members",
                i.server, i.chunks
            ),
            (false, false) => println!(
                "{} is waited for {left} min more; do NOT stop it: {} of its {} chunks would have too few live members (`admin repair` says why)",
                i.server, i.at_risk, i.chunks
            ),
        }
    }
    if items.is_empty() && !json {
        println!("no server is maintained");
    }
    Ok(())
}

async fn locks(client: &Client, json: bool) -> anyhow::Result<()> {
    let items = client.locks().await?;
    for item in &items {
        let path = item.path.as_ref().map(|path| show(path));
        let kind = if item.of.flock { "flock" } else { "fcntl" };
        if json {
            let ranges: Vec<_> = item
                .ranges
                .iter()
                .map(|r| json!({"first": r.first, "last": r.last, "exclusive": r.exclusive}))
                .collect();
            print(
                &json!({"file": item.of.file.0, "path": path, "kind": kind, "holder": item.holder.to_string(),
                "mount": item.name, "ranges": ranges, "may_not_be_needed": item.wide}),
            );
            continue;
        }
        let range = |r: &common::LockRange| {
            let how = if r.exclusive { "alone" } else { "shared" };
            // The kernel's own last offset means the same.
            match (r.first, r.last >= i64::MAX as u64) {
                (0, true) => format!("all, {how}"),
                (first, true) => format!("from {first}, {how}"),
                (first, false) => format!("{first}-{}, {how}", r.last),
            }
        };
        let ranges: Vec<String> = item.ranges.iter().map(range).collect();
        let what = if item.wide { "may lock it without asking".to_owned() } else { ranges.join("; ") };
        let path = path.unwrap_or_else(|| format!("{} (it has no name)", item.of.file));
        println!("{path}  {kind}  {}  {what}", item.name);
    }
    if items.is_empty() && !json {
        println!("nothing is locked");
    }
    Ok(())
}

async fn quota(client: &Client, dir: &[u8], new: Quota, remove: bool, json: bool) -> anyhow::Result<()> {
    let mut usage = client.usage(dir).await?;
    if remove || new != Quota::default() {
        let old = if remove { Quota::default() } else { usage.quota };
        let quota = Quota { entries: new.entries.or(old.entries), bytes: new.bytes.or(old.bytes) };
        usage = client.set_quota(dir, quota).await?;
    }
    let Quota { entries, bytes } = usage.quota;
    if json {
        print(&json!({"path": show(dir), "entries": usage.entries, "bytes": usage.bytes,
            "max_entries": entries, "max_bytes": bytes}));
        return Ok(());
    }
    let of = |max: Option<String>| max.map_or("no limit".into(), |max| format!("of {max}"));
    println!("{} entries, {}", usage.entries, of(entries.map(|n| n.to_string())));
    println!("{}, {}", human(usage.bytes), of(bytes.map(human)));
    Ok(())
}

async fn accept_loss(client: &Client, store: StoreId, yes: bool, json: bool) -> anyhow::Result<()> {
    let loss = client.loss(store).await?;
    if yes {
        client.give_up(store).await?;
    }
    if json {
        let items: Vec<_> = loss
            .items
            .iter()
            .map(|i| {
                json!({"handle": i.handle.to_string(),
            "path": i.path.as_ref().map(|p| show(p)), "length": i.length})
            })
            .collect();
        print(&json!({"store": store.0, "up": loss.up, "chunks": loss.chunks, "single": loss.single,
            "lost": loss.lost, "given_up": yes, "lost_chunks": items}));
        return Ok(());
    }
    println!("{store} is a member of {} chunks. Without it, and all that were given up before:", loss.chunks);
    println!("  {} go on with two members or more", loss.chunks - loss.single - loss.lost);
    println!("  {} go on with a single one: nothing that was acknowledged is missing from it", loss.single);
    println!("  {} are lost{}", loss.lost, if loss.lost > 0 { ": nobody else holds them" } else { "" });
    for i in &loss.items {
        let path = i.path.as_ref().map_or("a file without a name".into(), |p| show(p));
        println!("    {} of {path}, {}", i.handle, human(i.length));
    }
    if loss.lost > loss.items.len() as u64 {
        println!("    and {} more", loss.lost - loss.items.len() as u64);
    }
    match (yes, loss.up) {
        (true, _) => println!("{store} is given up; `admin repair --wait` waits until all chunks are whole"),
        (false, true) => println!("It is in service, and cannot be given up: drain its server instead."),
        (false, false) => println!("Nothing was done. If it will never come back, add --yes."),
    }
    Ok(())
}

fn show_drains(items: &[client::DrainItem], stores: &[StoreInfo], json: bool) {
    for i in items {
        // Its number is the masters': its addresses tell which it is.
        let addrs = stores.iter().filter(|s| s.server == i.server).map(|s| s.addr.to_string());
        let addrs = addrs.collect::<Vec<_>>().join(", ");
        let safe = i.chunks + i.copies == 0;
        match (json, safe) {
            (true, _) => print(
                &json!({"server": i.server.0, "chunks": i.chunks, "copies": i.copies, "safe": safe, "addrs": addrs}),
            ),
            (false, true) => println!("{} at {addrs}: holds nothing; it can be stopped for good", i.server),
            (false, false) => println!(
                "{} at {addrs}: {} chunks have a replica there, {} old copies are still to go",
                i.server, i.chunks, i.copies
            ),
        }
    }
    if items.is_empty() && !json {
        println!("no server is drained");
    }
}

fn show_repairs(items: &[client::RepairItem], count: u64, json: bool) {
    for i in items {
        let target = i.target.map(|t| t.0);
        if json {
            print(&json!({"handle": i.handle.to_string(), "live": i.live, "want": i.want,
                "target": target, "ms": i.ms, "why": i.why}));
            continue;
        }
        let state = match (i.target, i.why.as_str()) {
            (Some(target), _) => format!("is copied to {target}"),
            (None, "") => "is next".into(),
            (None, why) => format!("waits: {why}"),
        };
        println!("{}  {} of {} members  {:>6.1} s  {state}", i.handle, i.live, i.want, i.ms as f64 / 1e3);
    }
    match (json, count) {
        (true, _) => print(&json!({"lacking": count})),
        (false, 0) => println!("every chunk has all its members"),
        (false, n) => println!("{n} chunks lack members"),
    }
}

async fn servers(client: &Client, json: bool) -> anyhow::Result<()> {
    let stores = client.stores().await?;
    if !json {
        println!(
            "{:>6} {:>6} {:<10} {:<22} {:<5} {:>12} {:>12} {:>6}",
            "store", "server", "rack", "address", "state", "used", "capacity", "full"
        );
    }
    for s in stores {
        if json {
            print(
                &json!({"store": s.store.0, "server": s.server.0, "rack": s.rack, "addr": s.addr.to_string(),
                "up": s.up, "doubted": s.doubted, "given_up": s.given_up, "used": s.used, "capacity": s.capacity}),
            );
            continue;
        }
        let full = s.used as f64 * 100.0 / s.capacity.max(1) as f64;
        let state = match (s.up, s.doubted) {
            (true, true) => "sick?",
            (true, false) => "up",
            (false, _) if s.given_up => "gone",
            (false, _) => "down",
        };
        println!(
            "{:>6} {:>6} {:<10} {:<22} {state:<5} {:>12} {:>12} {full:>5.1}%",
            s.store.to_string(),
            s.server.to_string(),
            s.rack,
            s.addr.to_string(),
            human(s.used),
            human(s.capacity)
        );
    }
    Ok(())
}

fn rack(stores: &[StoreInfo], id: StoreId) -> &str {
    stores.iter().find(|s| s.store == id).map_or("?", |s| s.rack.as_str())
}

async fn chunks(client: &Client, file: &[u8], json: bool) -> anyhow::Result<()> {
    let attr = client.lookup(file).await?;
    let layout = client.layout(attr.file).await?;
    let stores = client.stores().await?;
    for chunk in layout.chunks() {
        let config = &chunk.config;
        if config.handle == ChunkHandle::HOLE {
            if json {
                print(
                    &json!({"index": chunk.index, "hole": true, "start": chunk.start, "length": chunk.length}),
                );
            } else {
                println!("{:>5} hole at {} length {}", chunk.index, chunk.start, chunk.length);
            }
            continue;
        }
        let mut replicas = vec![];
        for store in &config.members {
            replicas.push((*store, client.replica(config, *store).await));
        }
        if json {
            let list: Vec<_> = replicas
                .iter()
                .map(|(store, view)| match view {
                    Ok(v) => json!({"store": store.0, "rack": rack(&stores, *store), "epoch": v.epoch.0,
                        "length": v.length, "committed": v.committed.0, "applied": v.applied.0}),
                    Err(e) => {
                        json!({"store": store.0, "rack": rack(&stores, *store), "error": e.to_string()})
                    }
                })
                .collect();
            print(
                &json!({"index": chunk.index, "handle": config.handle.to_string(), "epoch": config.epoch.0,
                "start": chunk.start, "length": chunk.length, "sealed": config.sealed.is_some(),
                "primary": config.primary.0, "replicas": list}),
            );
            continue;
        }
        let state = if config.sealed.is_some() { "sealed" } else { "open" };
        println!(
            "{:>5} {} {} start {} length {} {state} primary {}",
            chunk.index, config.handle, config.epoch, chunk.start, chunk.length, config.primary
        );
        for (store, view) in replicas {
            let place = format!("{store} on rack {}", rack(&stores, store));
            match view {
                Ok(v) => println!(
                    "      {place}: {}, serials committed {} applied {}, {} bytes",
                    v.epoch, v.committed, v.applied, v.length
                ),
                Err(e) => println!("      {place}: {e}"),
            }
        }
    }
    Ok(())
}

async fn locate(client: &Client, file: &[u8], offset: u64, json: bool) -> anyhow::Result<()> {
    let attr = client.lookup(file).await?;
    let layout = client.layout(attr.file).await?;
    let stores = client.stores().await?;
    let Some(span) = layout.spans(offset, 1, 1).into_iter().next() else {
        anyhow::bail!("byte {offset} lies beyond the end ({} bytes)", layout.len());
    };
    let config = &layout.chunks()[span.chunk].config;
    for store in &config.members {
        let info = stores.iter().find(|s| s.store == *store);
        let (rack, addr) = info.map_or(("?".into(), "?".into()), |s| (s.rack.clone(), s.addr.to_string()));
        let role = if *store == config.primary { "primary" } else { "secondary" };
        if json {
            print(
                &json!({"handle": config.handle.to_string(), "offset_in_chunk": span.offset, "store": store.0,
                "rack": rack, "addr": addr, "role": role}),
            );
        } else {
            println!("{} + {}: {store} ({role}) on rack {rack} at {addr}", config.handle, span.offset);
        }
    }
    Ok(())
}

fn show_policy(policy: &Policy, json: bool) {
    let (replication, chunk) = (policy.replication.unwrap_or(0), policy.chunk_bytes.unwrap_or(0));
    let label = policy.label.clone().unwrap_or_default();
    let trash = policy.trash != Some(false);
    if json {
        return print(
            &json!({"replication": replication, "chunk_bytes": chunk, "label": label, "durability": "disk", "trash": trash}),
        );
    }
    println!(
        "replication {replication}, chunks of {}, racks {}, {}",
        human(chunk),
        if label.is_empty() { "any" } else { &label },
        if trash { "what is deleted lies in the trash for a day" } else { "what is deleted is gone" }
    );
}
