//! The control thread: registers the stores, keeps their sessions, carries questions to the
//! leading master and answers back. Ordinary tokio.

use crate::config::Config;
use crate::files::Files;
use crate::now;
use crate::shard::{FromShard, Report, ShardHandle, ToShard};
use chunkserver_core::io::Ask;
use common::limits::{DISK_HUNG_MS, DRIFT_PERCENT, HEARTBEAT_COPYING_MS, HEARTBEAT_MS};
use common::wire::Caller;
use common::wire::chunk_master::{Beat, Order, Register, Renewal, StoreReply, StoreRequest};
use common::{ClusterId, Code, Refusal, SessionId, Span, StoreId};
use common_net::{Masters, Unanswered, Wait};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, oneshot, watch};

/// A heartbeat is answered within this, or another takes its place.
const BEAT_LIMIT: Duration = Duration::from_millis(1000);
/// A question of a shard is given up after this.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// A store that has accepted no connection for so long, though one came, is not renewed.
const DEAF_MS: u64 = 1000;
/// Masters that refuse this server for good are asked again after this.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// Asks the leading master, for so long.
pub(crate) async fn ask(
    masters: &Masters,
    request: &StoreRequest,
    limit: Duration,
) -> Result<StoreReply, Unanswered> {
    masters.ask(request, Wait::Short, Instant::now() + limit).await
}

/// Runs until a signal, or until a store can never serve.
pub fn run(config: Arc<Config>, shards: Vec<ShardHandle>, files: Files) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (stop, stopped) = watch::channel(false);
        let cluster = shards.iter().find_map(|s| u64::from_str_radix(&s.meta.cluster, 16).ok());
        let new = || {
            let cluster = ClusterId(cluster.unwrap_or(0));
            Arc::new(Masters::new(Caller::Server, config.masters.clone(), cluster))
        };
        // What keeps sessions alive has a connection of its own: it must not wait behind questions.
        let (sessions, masters) = (new(), new());
        let server_uuid = shards.iter().map(|s| s.meta.uuid.clone()).min().expect("at least one store");
        let server_uuid = u128::from_str_radix(&server_uuid, 16)?;
        let mut tasks = tokio::task::JoinSet::new();
        for shard in shards {
            let links = (sessions.clone(), masters.clone());
            tasks.spawn(store(config.clone(), files, links, shard, server_uuid, stopped.clone()));
        }
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let outcome = tokio::select! {
            _ = term.recv() => Ok(()),
            _ = tokio::signal::ctrl_c() => Ok(()),
            Some(ended) = tasks.join_next() => ended?,
        };
        stop.send_replace(true);
        while tasks.join_next().await.is_some() {}
        outcome
    })
}

/// One store: registered, kept in session, served with answers; to its end.
async fn store(
    config: Arc<Config>,
    files: Files,
    (sessions, masters): (Arc<Masters>, Arc<Masters>),
    mut shard: ShardHandle,
    server_uuid: u128,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let (to_confirm, confirmed) = mpsc::unbounded_channel();
    let failed = Arc::new(Mutex::new(None::<String>));
    // The next heartbeat shall not wait for its time.
    let early = Arc::new(Notify::new());
    let session = async {
        let from = std::mem::replace(&mut shard.from, mpsc::unbounded_channel().1);
        let current = Arc::new(Mutex::new((StoreId(0), SessionId(0))));
        let answering = answer_shard(
            masters.clone(),
            shard.to.clone(),
            from,
            to_confirm,
            current.clone(),
            failed.clone(),
            early.clone(),
        );
        let keeping = keep_session(
            (&config, files),
            &sessions,
            &mut shard,
            server_uuid,
            confirmed,
            current,
            failed.clone(),
            &early,
        );
        tokio::select! {
            done = keeping => done,
            _ = answering => Ok(()),
        }
    };
    let outcome = tokio::select! {
        done = session => done,
        _ = stopped.wait_for(|stop| *stop) => Ok(()),
    };
    // The shard may have ended by itself.
    let _ = shard.to.send(ToShard::Stop);
    outcome
}

/// Carries the shard's questions to the masters.
async fn answer_shard(
    masters: Arc<Masters>,
    to: mpsc::UnboundedSender<ToShard>,
    mut from: mpsc::UnboundedReceiver<FromShard>,
    confirmed: mpsc::UnboundedSender<Vec<Order>>,
    current: Arc<Mutex<(StoreId, SessionId)>>,
    failed: Arc<Mutex<Option<String>>>,
    early: Arc<Notify>,
) {
    while let Some(message) = from.recv().await {
        match message {
            FromShard::Ask(asked) => {
                let (masters, to) = (masters.clone(), to.clone());
                let (store, session) = *current.lock().expect("never poisoned");
                tokio::spawn(async move {
                    let request = asked.request(store, session);
                    let began = Instant::now();
                    let answer = match ask(&masters, &request, ASK_LIMIT).await {
                        Ok(StoreReply::Config(mut config)) => {
                            // The wait counts from receipt; what lies between is on the safe side.
                            config.wait_ms += began.elapsed().as_millis() as u64 * DRIFT_PERCENT / 100;
                            Ok(config)
                        }
                        Ok(StoreReply::Fork { to: fork, snapshot }) => {
                            let Ask::Fork { epoch } = asked.what else { return };
                            let _ = to.send(ToShard::Fork(asked, epoch, fork, snapshot));
                            return;
                        }
                        Ok(StoreReply::Refused { refusal, .. }) => Err(refusal),
                        Ok(other) => Err(Refusal::new(Code::Unexpected, format!("{other:?}"))),
                        Err(_) => Err(Code::Unavailable.into()),
                    };
                    let _ = to.send(ToShard::Master(asked, answer));
                });
            }
            FromShard::TableStale => early.notify_one(),
            FromShard::Confirmed(orders) => {
                let _ = confirmed.send(orders);
            }
            FromShard::Failed(why) => {
                tracing::error!(%why, "the disk has failed: the store goes out of service");
                *failed.lock().expect("never poisoned") = Some(why);
            }
        }
    }
}

/// Registers, then heartbeats; registers anew when the session has lapsed.
#[expect(clippy::too_many_arguments, reason = "what a store and its shard share")]
async fn keep_session(
    (config, files): (&Config, Files),
    masters: &Masters,
    shard: &mut ShardHandle,
    server_uuid: u128,
    mut confirmed: mpsc::UnboundedReceiver<Vec<Order>>,
    current: Arc<Mutex<(StoreId, SessionId)>>,
    failed: Arc<Mutex<Option<String>>>,
    early: &Notify,
) -> anyhow::Result<()> {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let boot_id = u128::from_str_radix(&boot_id.trim().replace('-', ""), 16).unwrap_or(0);
    let mut local = tokio::task::JoinSet::new();
    loop {
        let register = StoreRequest::Register(Register {
            store: (shard.meta.store != 0).then_some(StoreId(shard.meta.store)),
            uuid: u128::from_str_radix(&shard.meta.uuid, 16)?,
            server_uuid,
            incarnation: shard.meta.incarnation,
            boot_id,
            dev_ino: shard.dev_ino,
            rack: config.rack.clone(),
            addr: shard.addr,
            capacity: shard.capacity,
            used: 0,
        });
        let (store, session, next_chunk) = match ask(masters, &register, BEAT_LIMIT).await {
            Ok(StoreReply::Registered { store, session, next_chunk, .. }) => (store, session, next_chunk),
            Ok(StoreReply::Refused { refusal, .. }) => {
                anyhow::bail!("the masters refuse this store: {refusal}");
            }
            Err(Unanswered::Refused(refusal)) => {
                tracing::warn!(%refusal, "the masters refuse this server; are its addresses right?");
                tokio::time::sleep(REFUSED_PAUSE).await;
                continue;
            }
            Ok(_) | Err(Unanswered::Late { .. }) => continue,
        };
        if shard.meta.store != store.0 || shard.meta.cluster.is_empty() {
            shard.meta.store = store.0;
            shard.meta.cluster = masters.cluster().to_string();
            crate::dir::write_meta(&shard.path, &shard.meta)?;
        }
        tracing::info!(%store, %session, addr = %shard.addr, "in session");
        *current.lock().expect("never poisoned") = (store, session);
        let _ = shard.to.send(ToShard::Begin(store, masters.cluster(), next_chunk));
        if local.is_empty() {
            let (dir, board) = (shard.path.clone(), shard.board.clone());
            local.spawn(crate::local::serve(masters.cluster(), store, dir, board, files.local_conns));
        }
        heartbeat(masters, shard, store, session, &mut confirmed, &failed, early).await?;
        tracing::warn!(%store, %session, "the session has lapsed; registering anew");
    }
}

/// Renews a session until it lapses.
async fn heartbeat(
    masters: &Masters,
    shard: &mut ShardHandle,
    store: StoreId,
    session: SessionId,
    confirmed: &mut mpsc::UnboundedReceiver<Vec<Order>>,
    failed: &Mutex<Option<String>>,
    early: &Notify,
) -> anyhow::Result<()> {
    let mut table = 0;
    // Bytes copied as a new member, and gathered, as far as the log says it; and how many were gathered a moment ago.
    let (mut told, mut gathered, mut before) = (0, 0, 0);
    let mut done: Vec<Order> = vec![];
    let mut ticks = tokio::time::interval(Duration::from_millis(HEARTBEAT_MS));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = early.notified() => {}
        }
        let why = failed.lock().expect("never poisoned").clone();
        if let Some(why) = why {
            // What is not told now the masters see when the session has lapsed.
            let _ = ask(masters, &StoreRequest::OutOfService { store, session }, ASK_LIMIT).await;
            anyhow::bail!("the disk has failed: {why}");
        }
        // Only a store whose shard answers through its own loop, and whose disk does not hang,
        // is renewed: a hung disk must look hung.
        let Some(report) = probe(shard).await else {
            continue;
        };
        if report.oldest_disk_op_ms > DISK_HUNG_MS {
            tracing::warn!(%store, ms = report.oldest_disk_op_ms, "a disk operation hangs");
            continue;
        }
        // Who asks for it must not wait for ever, and the masters tell nobody else.
        if report.deaf_ms > DEAF_MS {
            tracing::warn!(%store, ms = report.deaf_ms, "no connection can be accepted; raise LimitNOFILE");
            continue;
        }
        while let Ok(more) = confirmed.try_recv() {
            done.extend(more);
        }
        done.truncate(common::limits::ORDERS_MAX);
        if report.stats.copies == 0 && report.stats.copied_bytes > told {
            let (bytes, limit) = (report.stats.copied_bytes - told, report.stats.copy_rate);
            tracing::info!(%store, bytes, limit, "copied as a new member");
            told = report.stats.copied_bytes;
        }
        if report.stats.gathered_bytes > gathered && report.stats.gathered_bytes == before {
            tracing::info!(%store, bytes = before - gathered, "gathered what lay scattered");
            gathered = before;
        }
        before = report.stats.gathered_bytes;
        let sent = now();
        let beat = Beat {
            store,
            session,
            capacity: shard.capacity,
            used: report.stats.used_bytes,
            confirmed: done.clone(),
            table,
            snapshot: report.stats.snapshot,
        };
        let beat = StoreRequest::HeartbeatSince { beat, heard: shard.heard };
        match ask(masters, &beat, BEAT_LIMIT).await {
            Ok(StoreReply::RenewedSince { renewal, heard, cut }) => {
                let Renewal { session_ms, orders, repairs, table: version, stores, snapshot, next_chunk } =
                    renewal;
                done.clear();
                // Before the deadline moves: what is admitted after it comes after the snapshot.
                if snapshot > report.stats.snapshot {
                    let _ = shard.to.send(ToShard::Snapshot(snapshot));
                    // Somebody waits until all stores know.
                    early.notify_one();
                }
                // Before it, too: what is admitted after it goes where its file still has something.
                if cut.as_ref().is_none_or(|cut| !cut.is_empty()) {
                    let _ = shard.to.send(ToShard::Cut(cut));
                }
                shard.heard = heard;
                if let Some(stores) = stores {
                    table = version;
                    let _ = shard.to.send(ToShard::Table(stores));
                }
                if !orders.is_empty() {
                    let removed = orders.iter().any(|order| !order.discard);
                    done = carry_out(shard, orders, confirmed).await;
                    if removed {
                        // A primary may be waiting for just this.
                        early.notify_one();
                    }
                }
                if !repairs.is_empty() {
                    ticks.reset_after(Duration::from_millis(HEARTBEAT_COPYING_MS));
                }
                let _ = shard.to.send(ToShard::Repairs(repairs));
                let held = Span::from_ms(session_ms * (100 - DRIFT_PERCENT) / 100);
                let _ = shard.to.send(ToShard::Session(session, sent + held, next_chunk));
            }
            Ok(StoreReply::Lapsed) => return Ok(()),
            Ok(StoreReply::Refused { refusal, .. }) => {
                tracing::warn!(%refusal, "heartbeat refused")
            }
            _ => {}
        }
    }
}

/// Orders are carried out, durably, before the session's deadline moves.
async fn carry_out(
    shard: &ShardHandle,
    orders: Vec<Order>,
    confirmed: &mut mpsc::UnboundedReceiver<Vec<Order>>,
) -> Vec<Order> {
    let mut done = vec![];
    let _ = shard.to.send(ToShard::Orders(orders.clone()));
    while done.len() < orders.len() {
        match confirmed.recv().await {
            Some(more) => done.extend(more),
            None => break,
        }
    }
    done
}

async fn probe(shard: &ShardHandle) -> Option<Report> {
    let (answer, report) = oneshot::channel();
    shard.to.send(ToShard::Probe(answer)).ok()?;
    tokio::time::timeout(Duration::from_millis(DISK_HUNG_MS), report).await.ok()?.ok()
}
