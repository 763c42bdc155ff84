//! Drills: a cluster of real processes under load, something is killed or paused, and every
//! acknowledged byte is checked afterwards. Prints the gap that clients saw.

mod full_disk;
mod grow;
mod load;
mod registers;
mod storm;

use crate::cluster::{Cluster, Spec, signal};
use anyhow::{Context, bail};
use common::StoreId;
use load::{Load, Report};
use rand::RngExt;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// A drill: its name, what it does, and whom it hits.
pub struct Drill {
    /// Its name on the command line.
    pub name: &'static str,
    /// What happens.
    pub what: &'static str,
    hit: Hit,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Hit {
    Leader,
    LeaderPause,
    TwoMasters,
    Rolling,
    Drain,
    Grow,
    Worker,
    Server,
    Pause,
    Everything,
    Lost,
    FullDisk,
    Storm,
}

impl Drill {
    /// Whether its load puts files of 1 GiB.
    fn long_puts(&self) -> bool {
        matches!(self.hit, Hit::Worker | Hit::Server)
    }
}

/// All drills.
pub const DRILLS: &[Drill] = &[
    Drill { name: "leader-kill", what: "kill -9 of the leading master", hit: Hit::Leader },
    Drill { name: "leader-pause", what: "SIGSTOP of the leading master for 6 s", hit: Hit::LeaderPause },
    Drill {
        name: "masters-lost",
        what: "kill -9 of two of three masters, which are back after 4 s",
        hit: Hit::TwoMasters,
    },
    Drill {
        name: "rolling-restart",
        what: "every server is stopped and started, one after another",
        hit: Hit::Rolling,
    },
    Drill { name: "drain", what: "a chunkserver is drained, and then used again", hit: Hit::Drain },
    Drill { name: "grow", what: "an empty chunkserver joins full ones", hit: Hit::Grow },
    Drill {
        name: "worker-kill",
        what: "kill -9 of a chunkserver's worker; its parent sees it",
        hit: Hit::Worker,
    },
    Drill {
        name: "server-kill",
        what: "kill -9 of a chunkserver's parent; the worker dies with it",
        hit: Hit::Server,
    },
    Drill { name: "server-pause", what: "SIGSTOP of a chunkserver's worker for 6 s", hit: Hit::Pause },
    Drill { name: "kill-all", what: "kill -9 of every process at once, then a start", hit: Hit::Everything },
    Drill { name: "store-lost", what: "a chunkserver is killed and never comes back", hit: Hit::Lost },
    Drill {
        name: "append-storm",
        what: "16 appenders, 100,000 records a repeat, while primaries and leaders are killed",
        hit: Hit::Storm,
    },
    Drill { name: "full-disk", what: "everything on one small disk, until it is full", hit: Hit::FullDisk },
];

/// How long the load runs before and after the blow.
const SETTLE: Duration = Duration::from_millis(1000);

/// Every chunk has all its members within this after a blow.
const WHOLE_WITHIN: Duration = Duration::from_secs(120);

/// What repeats of one drill came to.
#[derive(Default)]
struct Sum {
    gaps: Vec<(&'static str, Duration)>,
    /// The longest before the blow.
    calm: BTreeMap<&'static str, Duration>,
    acked: u64,
    verified: u64,
    /// Reads and writes of registers, all linearizable.
    linear: u64,
    recovery: Vec<Duration>,
    /// From the blow until every chunk had all its members again.
    whole: Vec<Duration>,
    /// What else is to be told.
    notes: Vec<String>,
}

/// Runs a drill `repeats` times on a fresh cluster below `dir`, which goes away if all was well.
/// An interrupt ends it, and all its processes.
pub async fn run(name: &str, repeats: u32, dir: &Path, binary: &Path, json: bool) -> anyhow::Result<()> {
    tokio::select! {
        done = run_to_end(name, repeats, dir, binary, json) => done,
        _ = tokio::signal::ctrl_c() => bail!("interrupted; the drill's directory is left in {}", dir.display()),
    }
}

async fn run_to_end(name: &str, repeats: u32, dir: &Path, binary: &Path, json: bool) -> anyhow::Result<()> {
    let Some(drill) = DRILLS.iter().find(|d| d.name == name) else {
        let names: Vec<&str> = DRILLS.iter().map(|d| d.name).collect();
        bail!("no such drill; there are: {}, and all", names.join(", "));
    };
    let home = dir.join(format!("cairn-drill-{}-{:08x}", drill.name, rand::random::<u32>()));
    if drill.hit == Hit::FullDisk {
        return fill_disk(drill, repeats, &home, binary, json).await;
    }
    if drill.hit == Hit::Storm {
        return append_storm(drill, repeats, &home, binary, json).await;
    }
    let spec = Spec {
        chunkserver_extra: format!(
            "segment_bytes = 67108864\nahead_bytes = {}\nlog_segment_bytes = 16777216\ncapacity_bytes = {}\n",
            // One put must find its room zero-filled, or that is what the gap shows.
            if drill.long_puts() { 768 << 20 } else { 64 << 20 },
            // 0: what the disk has.
            if drill.hit == Hit::Grow { grow::CAPACITY } else { 0 },
        ),
        ..Spec::small(3, 5)
    };
    let mut cluster = Cluster::open(&home, &spec, binary)?;
    cluster.start_all()?;
    cluster.healthy().await?;
    // The grace after a start, in which members that have not registered are not removed; and time
    // to zero-fill.
    tokio::time::sleep(Duration::from_secs(if drill.long_puts() { 8 } else { 3 })).await;
    let mut sum = Sum::default();
    for round in 0..repeats {
        let done = one(drill, &spec, &mut cluster, round, &mut sum).await;
        done.with_context(|| {
            format!("{} round {round}; its cluster is left in {}", drill.name, home.display())
        })?;
    }
    cluster.stop()?;
    drop(cluster);
    std::fs::remove_dir_all(&home)?;
    print(drill, repeats, &sum, json);
    Ok(())
}

async fn fill_disk(
    drill: &Drill,
    repeats: u32,
    home: &Path,
    binary: &Path,
    json: bool,
) -> anyhow::Result<()> {
    for round in 0..repeats {
        let home = home.join(round.to_string());
        let done = full_disk::run(&home, binary).await.with_context(|| {
            format!("{} round {round}; its disk is left in {}", drill.name, home.display())
        })?;
        let full_disk::Outcome { refused_after, writable_after, acked } = done;
        let (refused_ms, writable_ms) = (refused_after.as_millis() as u64, writable_after.as_millis() as u64);
        match json {
            true => println!(
                "{}",
                json!({"drill": drill.name, "files": acked, "lost": 0, "corrupt": 0, "refused_after_ms": refused_ms, "writable_after_ms": writable_ms})
            ),
            false => println!(
                "{}: {}\n  refused after {refused_ms} ms, writable {writable_ms} ms after half was deleted; {acked} files verified before and after a restart, lost 0, corrupt 0",
                drill.name, drill.what
            ),
        }
    }
    std::fs::remove_dir_all(home)?;
    Ok(())
}

async fn append_storm(
    drill: &Drill,
    repeats: u32,
    home: &Path,
    binary: &Path,
    json: bool,
) -> anyhow::Result<()> {
    let done = storm::run(repeats, home, binary).await;
    let done = done.with_context(|| format!("{}; the cluster is left in {}", drill.name, home.display()))?;
    let storm::Outcome { acked, primaries_killed, leaders_killed, longest, took } = done;
    let (longest_ms, rate) = (longest.as_millis() as u64, acked as f64 / took.as_secs_f64());
    match json {
        true => println!(
            "{}",
            json!({"drill": drill.name, "acknowledged": acked, "primaries_killed": primaries_killed, "leaders_killed": leaders_killed, "gap_ms_max": longest_ms, "records_s": rate, "lost": 0, "duplicated": 0, "corrupt": 0})
        ),
        false => println!(
            "{}: {}\n  {acked} records acknowledged, each found once and nothing else; {primaries_killed} primaries and {leaders_killed} leaders killed; longest gap {longest_ms} ms, {rate:.0} records/s, errors 0",
            drill.name, drill.what
        ),
    }
    std::fs::remove_dir_all(home)?;
    Ok(())
}

async fn one(
    drill: &Drill,
    spec: &Spec,
    cluster: &mut Cluster,
    round: u32,
    sum: &mut Sum,
) -> anyhow::Result<()> {
    let client = cluster.healthy().await?;
    let put_blocks = if drill.long_puts() { load::LONG_PUT_BLOCKS } else { load::PUT_BLOCKS };
    let load = Load::start(cluster.client_file()?.config()?, round, put_blocks, drill.hit != Hit::Everything)
        .await?;
    let wait = if drill.hit == Hit::Everything {
        rand::rng().random_range(50..800)
    } else {
        SETTLE.as_millis() as u64
    };
    tokio::time::sleep(Duration::from_millis(wait)).await;
    load.mark();
    let struck = Instant::now();
    let down = match drill.hit {
        Hit::Grow => {
            sum.notes.push(grow::run(cluster, spec, &client, round).await?);
            vec![]
        }
        hit => strike(hit, cluster, &client, &load).await?,
    };
    let after = match drill.hit {
        Hit::Pause | Hit::LeaderPause => Duration::from_secs(8),
        Hit::Everything => Duration::from_millis(300),
        _ => Duration::from_millis(2500),
    };
    if drill.hit == Hit::Everything {
        let began = Instant::now();
        cluster.start_all()?;
        cluster.healthy().await?;
        sum.recovery.push(began.elapsed());
    }
    tokio::time::sleep(after).await;
    for name in down.iter().filter(|_| drill.hit != Hit::Lost) {
        cluster.start(name)?;
    }
    let Report { gaps, calm, acked, registers } = load.stop().await?;
    sum.linear += registers.check(cluster.dir())?;
    let client = match drill.hit {
        Hit::Lost => client,
        _ => cluster.healthy().await?,
    };
    whole(&client).await?;
    sum.whole.push(struck.elapsed());
    sum.gaps.extend(gaps);
    for (kind, longest) in calm {
        let known = sum.calm.entry(kind).or_default();
        *known = longest.max(*known);
    }
    sum.acked += acked.len() as u64;
    sum.verified += load::verify(&client, round, put_blocks, &acked).await?;
    for name in down.iter().filter(|_| drill.hit == Hit::Lost) {
        cluster.start(name)?;
    }
    load::remove(&client, round).await
}

/// Waits until every chunk has all its members.
async fn whole(client: &client::Client) -> anyhow::Result<()> {
    let began = Instant::now();
    while client.status().await?.degraded > 0 || client.repairs().await?.1 > 0 {
        if began.elapsed() > WHOLE_WITHIN {
            let (items, count) = client.repairs().await?;
            bail!("{count} chunks still lack members: {:?}", items.first());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Strikes; gives the servers that must be started again.
async fn strike(
    hit: Hit,
    cluster: &mut Cluster,
    client: &client::Client,
    load: &Load,
) -> anyhow::Result<Vec<String>> {
    match hit {
        Hit::Leader => {
            let leader = client.status().await?.leader.context("nobody leads")?;
            let name = format!("m{leader}");
            cluster.kill(&name)?;
            Ok(vec![name])
        }
        Hit::LeaderPause => {
            let leader = client.status().await?.leader.context("nobody leads")?;
            let pid = cluster.pid(&format!("m{leader}")).context("the leader does not run")?;
            pause(pid, Duration::from_secs(6))?;
            Ok(vec![])
        }
        Hit::TwoMasters => {
            let leader = client.status().await?.leader.context("nobody leads")?;
            let other = leader % 3 + 1;
            let names = [format!("m{leader}"), format!("m{other}")];
            for name in &names {
                cluster.kill(name)?;
            }
            tokio::time::sleep(Duration::from_secs(4)).await;
            for name in &names {
                cluster.start(name)?;
            }
            Ok(vec![])
        }
        Hit::Drain => {
            let name = victim(cluster, client, load).await?;
            let store = store_of(cluster, &name)?;
            let stores = client.stores().await?;
            let server = stores.iter().find(|s| s.store == store).context("it is not in the table")?.server;
            client.drain(server, true).await?;
            let began = Instant::now();
            while client.drains().await?.iter().any(|d| d.server == server && d.chunks + d.copies > 0) {
                if began.elapsed() > WHOLE_WITHIN {
                    bail!(
                        "{:?}: not drained; {:?}",
                        client.drains().await?,
                        client.repairs().await?.0.first()
                    );
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            client.drain(server, false).await?;
            Ok(vec![])
        }
        Hit::Rolling => {
            for name in cluster.names()? {
                cluster.end(&name)?;
                cluster.start(&name)?;
                whole(&cluster.healthy().await?).await?;
            }
            Ok(vec![])
        }
        Hit::Worker | Hit::Server | Hit::Lost | Hit::Pause => {
            let name = victim(cluster, client, load).await?;
            match hit {
                Hit::Worker => {
                    let pid = cluster.worker_pid(&name).context("the worker does not run")?;
                    signal(pid, "KILL")?;
                    Ok(vec![name])
                }
                Hit::Server | Hit::Lost => {
                    cluster.kill(&name)?;
                    // As `cairn up` does when it sees the end of a parent.
                    let config = cluster.config_of(&name);
                    report_exit(&config).await?;
                    Ok(vec![name])
                }
                _ => {
                    let pid = cluster.worker_pid(&name).context("the worker does not run")?;
                    pause(pid, Duration::from_secs(6))?;
                    Ok(vec![])
                }
            }
        }
        Hit::Grow | Hit::FullDisk | Hit::Storm => unreachable!("they have a course of their own"),
        Hit::Everything => {
            for name in cluster.names()? {
                cluster.kill(&name)?;
            }
            Ok(vec![])
        }
    }
}

/// Stops a process for a while.
fn pause(pid: u32, time: Duration) -> anyhow::Result<()> {
    signal(pid, "STOP")?;
    tokio::spawn(async move {
        tokio::time::sleep(time).await;
        // If it ended meanwhile there is nothing to wake.
        let _ = signal(pid, "CONT");
    });
    Ok(())
}

async fn report_exit(config: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(config)?;
    let config = chunkserver::config::Config::parse(&text).map_err(anyhow::Error::msg)?;
    tokio::task::spawn_blocking(move || chunkserver::parent::report_exit(&config)).await?
}

/// A server that holds the file that is being appended to: in turn its primary and a secondary.
async fn victim(cluster: &Cluster, client: &client::Client, load: &Load) -> anyhow::Result<String> {
    let attr = client.lookup(&load.log_path()).await?;
    let layout = client.layout(attr.file).await?;
    let config = &layout.chunks().last().context("the log has no chunk yet")?.config;
    let store = if load.round().is_multiple_of(2) {
        config.members.iter().copied().find(|m| *m != config.primary).unwrap_or(config.primary)
    } else {
        config.primary
    };
    let stores = client.stores().await?;
    let addr = stores.iter().find(|s| s.store == store).context("the store is not in the table")?.addr;
    for name in cluster.names()?.into_iter().filter(|n| n.starts_with("cs")) {
        if store_of(cluster, &name)? == store {
            return Ok(name);
        }
    }
    bail!("nobody serves {store} at {addr}")
}

/// The store of a chunkserver.
fn store_of(cluster: &Cluster, name: &str) -> anyhow::Result<StoreId> {
    let meta = std::fs::read_to_string(cluster.dir().join(name).join("data/meta.toml"))?;
    let id = meta.lines().find_map(|l| l.strip_prefix("store = ")).context("meta.toml names no store")?;
    Ok(StoreId(id.parse()?))
}

fn quantile(sorted: &[Duration], q: f64) -> f64 {
    let at = ((sorted.len() as f64 * q).ceil() as usize).clamp(1, sorted.len());
    sorted[at - 1].as_secs_f64() * 1e3
}

fn print(drill: &Drill, repeats: u32, sum: &Sum, json: bool) {
    let mut kinds: Vec<&'static str> = sum.gaps.iter().map(|(kind, _)| *kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let mut rows = vec![];
    for kind in kinds {
        let mut gaps: Vec<Duration> = sum.gaps.iter().filter(|(k, _)| *k == kind).map(|(_, g)| *g).collect();
        gaps.sort_unstable();
        let calm = sum.calm.get(kind).copied().unwrap_or_default().as_secs_f64() * 1e3;
        rows.push((kind, calm, quantile(&gaps, 0.5), quantile(&gaps, 0.99), quantile(&gaps, 1.0)));
    }
    let sorted = |times: &[Duration]| {
        let mut times = times.to_vec();
        times.sort_unstable();
        times
    };
    let (recovery, whole) = (sorted(&sum.recovery), sorted(&sum.whole));
    if json {
        for (load, calm, p50, p99, max) in &rows {
            println!(
                "{}",
                json!({"drill": drill.name, "repeats": repeats, "load": load, "gap_ms_p50": p50, "gap_ms_p99": p99, "gap_ms_max": max, "before_ms_max": calm})
            );
        }
        println!(
            "{}",
            json!({"drill": drill.name, "acknowledged": sum.acked, "verified": sum.verified, "linearizable": sum.linear, "lost": 0, "duplicated": 0, "corrupt": 0, "all_members_ms_p50": quantile(&whole, 0.5), "all_members_ms_max": quantile(&whole, 1.0), "notes": sum.notes})
        );
        return;
    }
    println!("{}: {}, {repeats} times", drill.name, drill.what);
    for (load, calm, p50, p99, max) in rows {
        println!(
            "  longest gap of {load:<10} p50 {p50:>7.0} ms   p99 {p99:>7.0} ms   max {max:>7.0} ms   before {calm:>5.0} ms"
        );
    }
    if !recovery.is_empty() {
        println!(
            "  healthy again after    p50 {:>7.0} ms   max {:>7.0} ms",
            quantile(&recovery, 0.5),
            quantile(&recovery, 1.0)
        );
    }
    println!(
        "  all members again after p50 {:>6.1} s    max {:>7.1} s",
        quantile(&whole, 0.5) / 1e3,
        quantile(&whole, 1.0) / 1e3
    );
    sum.notes.iter().for_each(|note| println!("  {note}"));
    println!("  {} reads and writes of registers: linearizable", sum.linear);
    // When everything is killed nothing can answer: there errors are allowed, and not counted.
    let errors = if drill.hit == Hit::Everything { "errors allowed" } else { "errors 0" };
    println!(
        "  {} operations acknowledged, {} verified; lost 0, duplicated 0, corrupt 0, {errors}",
        sum.acked, sum.verified
    );
}
