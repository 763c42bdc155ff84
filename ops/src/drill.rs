//! Drills: a cluster of real processes under load, something is killed, paused or cut off, and
//! every acknowledged byte is checked afterwards. Tells the gap that clients saw.

mod away;
mod clients;
mod crowd;
mod disk;
mod files;
mod full_disk;
mod grow;
mod load;
mod many;
mod mounted;
mod outcome;
mod pulled;
mod registers;
mod snapshots;
mod storm;
mod strike;

use crate::cluster::{Cluster, Spec};
use crate::net::Net;
use anyhow::{Context, bail};
use common::StoreId;
pub use disk::FileSystem;
use disk::LoopDisk;
use load::{Load, Puts, Report};
pub use outcome::{Outcome, write_table};
use rand::RngExt;
use std::path::Path;
use std::time::{Duration, Instant};
use strike::{Hit, Scene, whole};

/// A drill: its name, what it does, and whom it hits.
pub struct Drill {
    /// Its name on the command line.
    pub name: &'static str,
    /// What happens.
    pub what: &'static str,
    hit: Hit,
}

const fn drill(name: &'static str, hit: Hit, what: &'static str) -> Drill {
    Drill { name, what, hit }
}

/// All drills.
pub const DRILLS: &[Drill] = &[
    drill("leader-kill", Hit::Leader, "kill -9 of the leading master"),
    drill("leader-pause", Hit::LeaderPause, "SIGSTOP of the leading master for 6 s"),
    drill("masters-lost", Hit::TwoMasters, "kill -9 of two of three masters, which are back after 4 s"),
    drill("rolling-restart", Hit::Rolling, "every server is stopped and started, one after another"),
    drill("drain", Hit::Drain, "a chunkserver is drained, and then used again"),
    drill("grow", Hit::Grow, "an empty chunkserver joins full ones"),
    drill("worker-kill", Hit::Worker, "kill -9 of a chunkserver's worker; its parent sees it"),
    drill("server-kill", Hit::Server, "kill -9 of a chunkserver's parent; the worker dies with it"),
    drill("server-pause", Hit::Pause, "SIGSTOP of a chunkserver's worker for 6 s"),
    drill("server-slow", Hit::Slow, "a chunkserver's worker runs for 20 ms of every 200, for 10 s"),
    drill(
        "server-away",
        Hit::Away,
        "a chunkserver is away for a minute of writes, and copies what it missed",
    ),
    drill(
        "client-kill",
        Hit::Clients,
        "kill -9 of 48 clients a repeat in the middle of appends and puts; another one appends",
    ),
    drill("cut-server", Hit::Cut, "a chunkserver's cable is pulled for 6 s"),
    drill("cut-leader", Hit::CutLeader, "the leading master's cable is pulled for 6 s"),
    drill("cut-rack", Hit::CutRack, "the cables of a rack and of the leading master are pulled for 6 s"),
    drill(
        "cut-one-way",
        Hit::CutOneWay,
        "what a primary sends to a secondary, or it to the primary, is lost for 6 s",
    ),
    drill(
        "cut-primary",
        Hit::CutPrimary,
        "what a primary sends to all other chunkservers is lost for 6 s; masters and clients hear it",
    ),
    drill("kill-all", Hit::Everything, "kill -9 of every process at once, then a start"),
    drill(
        "power-loss",
        Hit::Power,
        "kill -9 of every process at once, and their file system forgets what was not synced",
    ),
    drill("disk-hang", Hit::Hang, "a chunkserver's disk completes no write for 6 s"),
    drill("leader-disk-hang", Hit::LeaderHang, "the leading master's disk completes no write for 6 s"),
    drill("disk-slow", Hit::SlowDisk, "a chunkserver's disk does 20 writes a second, for 10 s"),
    drill("disk-pulled", Hit::Pulled, "a chunkserver's disk answers every request with an error"),
    drill("store-lost", Hit::Lost, "a chunkserver is killed and never comes back"),
    drill(
        "append-storm",
        Hit::Storm,
        "16 appenders, 100,000 records a repeat, while primaries and leaders are killed",
    ),
    drill(
        "snapshots",
        Hit::Snapshots,
        "a tree of 100,000 files changes after a snapshot of it, while servers die; then all is deleted",
    ),
    drill(
        "many-chunks",
        Hit::Many,
        "with a million chunks a chunkserver is killed and restarted, then the leader is killed (not of `all`)",
    ),
    drill(
        "crowd",
        Hit::Crowd,
        "1,000 clients append, 10,000 files are open on a mount, with 100,000 chunks: memory is bounded (not of `all`)",
    ),
    drill(
        "mount",
        Hit::Mounted,
        "programs write through a mount; a primary is killed, then the leading master",
    ),
    drill(
        "files",
        Hit::Files,
        "programs change files through two mounts as chance has it, with clones and snapshots, while servers die",
    ),
    drill("full-disk", Hit::FullDisk, "everything on one small disk, until it is full"),
];

impl Drill {
    /// The drill of a name.
    pub fn named(name: &str) -> anyhow::Result<&'static Drill> {
        let names = || DRILLS.iter().map(|d| d.name).collect::<Vec<_>>().join(", ");
        let found = DRILLS.iter().find(|d| d.name == name);
        found.with_context(|| format!("no such drill; there are: {}, and all", names()))
    }

    /// Whether it must run in a network of its own.
    pub fn needs_network(&self) -> bool {
        matches!(self.hit, Hit::Cut | Hit::CutLeader | Hit::CutRack | Hit::CutOneWay | Hit::CutPrimary)
    }

    /// Whether `all` runs it.
    pub fn in_all(&self) -> bool {
        !matches!(self.hit, Hit::Many | Hit::Crowd)
    }

    /// Whether its load puts files of 1 GiB.
    fn long_puts(&self) -> bool {
        matches!(self.hit, Hit::Worker | Hit::Server)
    }

    fn puts(&self) -> Puts {
        match self.hit {
            Hit::Grow => Puts::SLOW,
            _ if self.long_puts() => Puts::LONG,
            _ => Puts::USUAL,
        }
    }

    /// Whether everything ends at once: then nothing can answer, and clients see errors.
    fn errors_allowed(&self) -> bool {
        matches!(self.hit, Hit::Everything | Hit::Power)
    }

    /// How long the load goes on after the blow.
    fn after(&self) -> Duration {
        match self.hit {
            Hit::Everything | Hit::Power => Duration::from_millis(300),
            _ => Duration::from_millis(2500),
        }
    }

    fn spec(&self) -> Spec {
        Spec {
            chunkserver_extra: format!(
                "segment_bytes = 67108864\nlog_segment_bytes = 16777216\ncapacity_bytes = {}\n",
                match self.hit {
                    Hit::Grow => grow::CAPACITY,
                    Hit::Power => POWER_DISK_BYTES / 8,
                    // What the disk has.
                    _ => 0,
                }
            ),
            // Three racks would have to be of one size.
            racks: if self.hit == Hit::Grow { 6 } else { 3 },
            ..Spec::small(3, 6)
        }
    }
}

/// How long the load runs before the blow.
const SETTLE: Duration = Duration::from_millis(1000);

/// Every chunk has all its members within this after a blow.
const WHOLE_WITHIN: Duration = Duration::from_secs(120);

/// Bytes of the disk on which a whole cluster loses power.
const POWER_DISK_BYTES: u64 = 24 << 30;

/// Runs a drill `repeats` times on a fresh cluster below `dir`, which goes away if all was well.
/// An interrupt ends it, and all its processes.
/// `disks`: what file system its disks have, if it makes some.
pub async fn run(
    drill: &'static Drill,
    repeats: u32,
    dir: &Path,
    disks: FileSystem,
    binary: &Path,
) -> anyhow::Result<Outcome> {
    let home = dir.join(format!("cairn-drill-{}-{:08x}", drill.name, rand::random::<u32>()));
    let course = async {
        let mut outcome = Outcome::new(drill, repeats);
        match drill.hit {
            Hit::FullDisk => full_disk::run(&home, binary, repeats, disks, &mut outcome).await,
            Hit::Away => away::run(&home, binary, repeats, &mut outcome).await,
            Hit::Snapshots => snapshots::run(&home, binary, repeats, &mut outcome).await,
            Hit::Files => files::run(&home, binary, repeats, &mut outcome).await,
            Hit::Mounted => mounted::run(&home, binary, repeats, &mut outcome).await,
            Hit::Many => many::run(&home, binary, repeats, &mut outcome).await,
            Hit::Crowd => crowd::run(&home, binary, repeats, &mut outcome).await,
            Hit::Clients => clients::run(&home, binary, repeats, &mut outcome).await,
            Hit::Storm => storm::run(&home, binary, repeats, &mut outcome).await,
            _ => under_load(drill, &home, binary, repeats, disks, &mut outcome).await,
        }
        .with_context(|| format!("{}; its cluster is left in {}", drill.name, home.display()))?;
        std::fs::remove_dir_all(&home).with_context(|| format!("remove {}", home.display()))?;
        Ok(outcome)
    };
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let interrupted = async {
        tokio::select! {
            done = tokio::signal::ctrl_c() => drop(done),
            _ = terminated.recv() => {}
        }
    };
    tokio::select! {
        done = course => done,
        () = interrupted => bail!("interrupted; the drill's directory is left in {}", home.display()),
    }
}

/// A drill under the common load.
async fn under_load(
    drill: &'static Drill,
    home: &Path,
    binary: &Path,
    repeats: u32,
    file_system: FileSystem,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let spec = drill.spec();
    let net = if drill.needs_network() { Some(Net::new(spec.names())?) } else { None };
    std::fs::create_dir_all(home)?;
    let (bytes, on_disks) = match drill.hit {
        Hit::Power => (POWER_DISK_BYTES, vec![spec.names()]),
        Hit::Pulled | Hit::Hang | Hit::SlowDisk => {
            (pulled::DISK_BYTES, vec![vec![pulled::VICTIM.to_owned()]])
        }
        Hit::LeaderHang => {
            let masters = spec.names().into_iter().filter(|name| name.starts_with('m'));
            (pulled::MASTER_DISK_BYTES, masters.map(|name| vec![name]).collect())
        }
        _ => (0, vec![]),
    };
    // Dropped after the cluster.
    let new = |(n, _)| LoopDisk::new(&home.join(format!("disk{n}")), bytes, file_system);
    let disks = on_disks.iter().enumerate().map(new).collect::<anyhow::Result<Vec<_>>>()?;
    let mut cluster = Cluster::open_on(&home.join("cluster"), &spec, binary, net)?;
    for (disk, names) in disks.iter().zip(&on_disks) {
        names.iter().try_for_each(|name| disk.hold(&cluster, name))?;
    }
    cluster.start_all()?;
    cluster.healthy().await?;
    // The grace after a start, in which members that have not registered are not removed.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for round in 0..repeats {
        let done = one(drill, &spec, &mut cluster, &disks, round, outcome).await;
        done.with_context(|| format!("round {round}"))?;
    }
    cluster.stop()
}

async fn one(
    drill: &Drill,
    spec: &Spec,
    cluster: &mut Cluster,
    disks: &[LoopDisk],
    round: u32,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let client = cluster.healthy().await?;
    let puts = drill.puts();
    let config = cluster.client_file()?.config()?;
    let load = Load::start(config, round, puts, !drill.errors_allowed()).await?;
    let settle = match drill.errors_allowed() {
        true => Duration::from_millis(rand::rng().random_range(50..800)),
        false => SETTLE,
    };
    tokio::time::sleep(settle).await;
    if !matches!(drill.hit, Hit::Slow | Hit::SlowDisk) {
        load.mark();
    }
    let struck = Instant::now();
    let down = match (drill.hit, disks.first()) {
        (Hit::Grow, _) => {
            outcome.notes.push(grow::run(cluster, spec, &client, round).await?);
            vec![]
        }
        (Hit::Hang, Some(disk)) => {
            pulled::hang(cluster, disk, &client).await?;
            vec![]
        }
        (Hit::LeaderHang, _) => {
            let leader = Scene { cluster, client: &client, load: &load }.leader().await?;
            let its =
                disks.iter().find(|disk| disk.holds(&leader)).context("the leader has a disk of its own")?;
            outcome.notes.push(pulled::hang_leader(its, &client).await?);
            vec![]
        }
        (Hit::SlowDisk, Some(disk)) => {
            pulled::slow(cluster, disk, &client, &load).await?;
            vec![]
        }
        (Hit::Pulled, Some(disk)) => {
            outcome.notes.push(pulled::run(cluster, disk, &client).await?);
            vec![]
        }
        (hit, _) => Scene { cluster, client: &client, load: &load }.strike(hit).await?,
    };
    if drill.errors_allowed() {
        for disk in disks {
            disk.pull()?;
            disk.plug()?;
        }
        let began = Instant::now();
        cluster.start_all()?;
        cluster.healthy().await?;
        outcome.recovery.push(began.elapsed());
    }
    tokio::time::sleep(drill.after()).await;
    for name in down.iter().filter(|_| drill.hit != Hit::Lost) {
        cluster.start(name)?;
    }
    let Report { sides, acked, registers } = load.stop().await?;
    outcome.count("operations on registers linearizable", registers.check(cluster.dir())?);
    let client = match drill.hit {
        Hit::Lost => client,
        _ => cluster.healthy().await?,
    };
    whole(&client).await?;
    outcome.whole.push(struck.elapsed());
    for (kind, [before, after]) in sides {
        outcome.calm(kind, before.longest);
        outcome.gap(kind, after.longest);
        outcome.rates(kind, before.per_s(), after.per_s());
    }
    outcome.count("operations acknowledged", acked.len() as u64);
    outcome.count("operations verified", load::verify(&client, round, puts.blocks, &acked).await?);
    for name in down.iter().filter(|_| drill.hit == Hit::Lost) {
        cluster.start(name)?;
    }
    load::remove(&client, round).await
}

async fn report_exit(config: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(config)?;
    let config = chunkserver::config::Config::parse(&text).map_err(anyhow::Error::msg)?;
    tokio::task::spawn_blocking(move || chunkserver::parent::report_exit(&config)).await?
}

/// The store of a chunkserver.
fn store_of(cluster: &Cluster, name: &str) -> anyhow::Result<StoreId> {
    cluster.store(name)?.with_context(|| format!("{name} is not registered"))
}
