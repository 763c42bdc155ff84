//! The master: metadata in `master_core::Metadata`, replicated by Raft; never in the data path.

pub mod config;
mod groups;
mod handover;
mod leader;
mod locks;
pub mod raft;
mod repair;
mod rpc;
mod steward;

use anyhow::{Context, bail};
use config::Config;
use openraft::BasicNode;
use raft::log::LogStore;
use raft::network::{Acknowledged, Network};
use raft::room::Room;
use raft::spare::Spares;
use raft::state_machine::StateMachine;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Who was killed gives its memory back before it lets go of its directory: a second or so for millions of files. Who comes
/// after it waits for so long.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
/// And looks again after this.
const LOCK_AGAIN: Duration = Duration::from_millis(50);

/// Runs a master until it is told to stop (SIGTERM, SIGINT) or cannot go on.
pub fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let started = Instant::now();
    std::fs::create_dir_all(&config.dir).with_context(|| format!("make {}", config.dir.display()))?;
    let lock_path = config.dir.join("LOCK");
    let lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&lock_path)?;
    let began = Instant::now();
    while lock.try_lock().is_err() {
        if began.elapsed() > LOCK_LIMIT {
            bail!("another master serves {}", config.dir.display());
        }
        tokio::time::sleep(LOCK_AGAIN).await;
    }
    check_identity(&config)?;
    let listener = tokio::net::TcpListener::bind(&config.listen).await;
    let listener = listener.with_context(|| format!("bind {}; is the port in use?", config.listen))?;
    let room = Room::open(&config.dir.join("snapshot")).context("take room for an image")?;
    // Both take seconds where there are millions of files, and neither needs the other.
    let opening = room.clone();
    let state_machine = std::thread::spawn(move || StateMachine::open(opening));
    let log = LogStore::open(&config.dir.join("log"), config.id, room.clone()).context("open the Raft log");
    let state_machine = state_machine.join().expect("it does not panic").context("open the last image")?;
    let log = log?;
    let is_new = log.is_new();
    let (state, images) = (state_machine.shared(), state_machine.images());
    let cluster = config.cluster_id();
    let acknowledged = Arc::new(Acknowledged::default());
    let (hung, segments) = (log.hung(), log.clone());
    let spares = Arc::new(Spares::new(hung.clone()));
    let network =
        Network { id: config.id, cluster, acknowledged: acknowledged.clone(), spares: spares.clone() };
    let raft =
        openraft::Raft::new(config.id, raft::config(config.time_scale), network, log, state_machine).await?;
    let leader = leader::Leader::start(raft.clone(), state, acknowledged, spares, config.time_scale)?;
    let rpc = Arc::new(rpc::Rpc {
        leader: leader.clone(),
        id: config.id,
        started,
        is_new,
        room: room.clone(),
        images,
        time_scale: config.time_scale,
        usage: rpc::Usage::default(),
    });
    tokio::spawn(common_net::serve(listener, cluster, Arc::new(rpc::Door(rpc.clone()))));
    tokio::spawn(handover::watch(leader.clone(), hung, config.time_scale));
    tokio::spawn(raft::compaction::run(raft.clone(), segments.clone(), room.clone()));
    tokio::spawn(handover::watch_room(leader.clone(), room, segments));
    tokio::spawn(steward::run(leader.clone(), steward::from(rpc)));
    // The lowest id founds a new cluster; the others wait to be told.
    let founds = config.initial.iter().map(|m| m.id).min() == Some(config.id);
    if is_new && founds {
        let members: BTreeMap<u64, BasicNode> =
            config.initial.iter().map(|m| (m.id, BasicNode::new(&m.addr))).collect();
        raft.initialize(members).await.context("found the cluster")?;
    }
    tracing::info!(id = config.id, listen = %config.listen, "master started");
    stopped(&raft).await?;
    handover::leave(&leader).await;
    raft.shutdown().await.context("stop Raft")?;
    drop(lock);
    Ok(())
}

/// A directory belongs to one master of one cluster for ever.
fn check_identity(config: &Config) -> anyhow::Result<()> {
    let path = config.dir.join("identity");
    let mine = format!("cluster {}\nmaster {}\n", config.cluster, config.id);
    match std::fs::read_to_string(&path) {
        Ok(found) if found == mine => Ok(()),
        Ok(found) => bail!("{} belongs to another: {}", config.dir.display(), found.replace('\n', " ")),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // Whole or not at all: half of it would belong to another.
            let aside = config.dir.join("identity.tmp");
            let mut file = File::create(&aside)?;
            file.write_all(mine.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&aside, &path)?;
            Ok(File::open(&config.dir)?.sync_all()?)
        }
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

async fn stopped(raft: &raft::Raft) -> anyhow::Result<()> {
    use openraft::async_runtime::watch::WatchReceiver;
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let broken = async {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if let Err(fatal) = &raft.metrics().borrow_watched().running_state {
                return fatal.to_string();
            }
        }
    };
    tokio::select! {
        _ = term.recv() => Ok(()),
        _ = tokio::signal::ctrl_c() => Ok(()),
        why = broken => bail!("Raft has stopped: {why}"),
    }
}
