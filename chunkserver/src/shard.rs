//! One store, one thread, one ring: gathers what happens, steps the node, performs what it says.

use crate::config::Config;
use crate::dir::{DataDir, Meta};
use crate::disk::{Disk, Engine};
use crate::files::{self, Files};
use crate::links::{self, Class};
use crate::local::Board;
use crate::net::{self, Queue};
use crate::now;
use crate::sock::{Listener, Sock};
use anyhow::Context;
use chunkserver_core::io::{ConnId, DiskDone, DiskKind, Input, MasterAsk, Output};
use chunkserver_core::{Node, Stats};
use common::wire::chunk_master::{CutsHeard, Order, RepairOrder};
use common::wire::{self, ChunkConfig, Message, StoreInfo};
use common::{ChunkHandle, ClusterId, Epoch, Refusal, SessionId, StoreId, Time};
use common_net::here;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};

/// What the control thread tells a shard.
pub enum ToShard {
    /// The masters gave the store its id, and the cluster is this.
    Begin(StoreId, ClusterId, ChunkHandle),
    /// The stores and their addresses.
    Table(Vec<StoreInfo>),
    /// The session holds until then.
    /// And the next chunk that the masters name has this handle or a later one.
    Session(SessionId, Time, ChunkHandle),
    /// The last snapshot that was taken.
    Snapshot(u64),
    /// Files were cut within these chunks; in any, if nobody knows.
    Cut(Option<Vec<ChunkHandle>>),
    /// Whether a chunk must be forked.
    Fork(MasterAsk, Epoch, Option<ChunkConfig>, u64),
    /// To be carried out; answered by `FromShard::Confirmed`.
    Orders(Vec<Order>),
    /// Chunks of which the store shall become a member.
    Repairs(Vec<RepairOrder>),
    /// The answer to a question.
    Master(MasterAsk, Result<ChunkConfig, Refusal>),
    /// How is it?
    Probe(oneshot::Sender<Report>),
    /// Write a checkpoint and end.
    Stop,
}

/// What a shard tells the control thread.
pub enum FromShard {
    /// A question to the masters.
    Ask(MasterAsk),
    /// Orders that are carried out.
    Confirmed(Vec<Order>),
    /// A store could not be reached where the table says.
    TableStale,
    /// The disk has failed.
    Failed(String),
}

/// How a shard is.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Figures of the node.
    pub stats: Stats,
    /// Age of the oldest disk operation under way, in milliseconds.
    pub oldest_disk_op_ms: u64,
    /// For how long it has been able to accept no connection, in milliseconds; 0 if the last one was.
    pub deaf_ms: u64,
}

/// A shard, as the control thread sees it.
pub struct ShardHandle {
    /// To it.
    pub to: mpsc::UnboundedSender<ToShard>,
    /// From it.
    pub from: mpsc::UnboundedReceiver<FromShard>,
    /// Its data port.
    pub addr: SocketAddr,
    /// What its directory says.
    pub meta: Meta,
    /// Where that is.
    pub path: PathBuf,
    /// What clients on this machine see.
    pub board: Arc<Board>,
    /// Device and inode of the directory.
    pub dev_ino: (u64, u64),
    /// Bytes that the store may use.
    pub capacity: u64,
    /// Up to where it has heard of files that were cut.
    pub heard: CutsHeard,
}

/// A shard.
pub struct Shard {
    pub id: Cell<StoreId>,
    pub cluster: ClusterId,
    pub engine: Engine,
    conns_max: usize,
    /// Since when no connection could be accepted, for want of files.
    deaf_since: Cell<Option<Time>>,
    node: RefCell<Node>,
    disk: Disk,
    board: Arc<Board>,
    control: mpsc::UnboundedSender<FromShard>,
    pub conns: RefCell<HashMap<ConnId, Rc<Queue>>>,
    next_conn: Cell<ConnId>,
    pub links: RefCell<BTreeMap<(StoreId, Class), Rc<Queue>>>,
    /// Those that could not be made when that was last tried: what was queued for them is lost.
    pub lost: RefCell<BTreeSet<(StoreId, Class)>>,
    pub table: RefCell<HashMap<StoreId, SocketAddr>>,
    /// The table has come anew.
    pub table_told: Notify,
    /// When each disk operation under way began.
    disk_ops: RefCell<BTreeMap<u64, Time>>,
    deadline: Cell<Option<Time>>,
    deadline_moved: Notify,
}

/// Starts the shards; each has bound its port and waits for its store's id.
pub fn start(
    dirs: Vec<DataDir>,
    config: &Arc<Config>,
    engine: Engine,
    files: Files,
) -> anyhow::Result<(Vec<ShardHandle>, Vec<JoinHandle<()>>)> {
    let mut handles = vec![];
    let mut threads = vec![];
    for (i, dir) in dirs.into_iter().enumerate() {
        let port = if config.port == 0 { 0 } else { config.port + i as u16 };
        let addr = SocketAddr::new(config.bind, port);
        let listener =
            common_net::listen(addr).with_context(|| format!("bind the data port {addr}; is it in use?"))?;
        let addr = listener.local_addr()?;
        let (to, inbox) = mpsc::unbounded_channel();
        let (outbox, from) = mpsc::unbounded_channel();
        let board = Arc::new(Board::new().context("make a file in memory")?);
        let handle = ShardHandle {
            to,
            from,
            addr,
            meta: dir.meta.clone(),
            path: dir.path.clone(),
            board: board.clone(),
            dev_ino: dir.dev_ino,
            capacity: dir.capacity,
            heard: CutsHeard::default(),
        };
        let (up, is_up) = std_mpsc::channel();
        let name = format!("shard-{i}");
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let main = run(dir, listener, (engine, files), board, (inbox, outbox), up);
            match engine {
                Engine::Uring => {
                    let mut ring = tokio_uring::uring_builder();
                    ring.setup_cqsize(4096).setup_coop_taskrun().setup_single_issuer();
                    tokio_uring::builder().entries(256).uring_builder(&ring).start(main);
                }
                Engine::Threads => {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                    let runtime = runtime.expect("a runtime without a ring needs nothing");
                    tokio::task::LocalSet::new().block_on(&runtime, main);
                }
            }
        })?;
        is_up
            .recv()
            .context("a shard's thread ended at once; io_uring may be limited here (RLIMIT_MEMLOCK?)")?;
        handles.push(handle);
        threads.push(thread);
    }
    Ok((handles, threads))
}

async fn run(
    dir: DataDir,
    listener: std::net::TcpListener,
    (engine, files): (Engine, Files),
    board: Arc<Board>,
    (mut inbox, control): (mpsc::UnboundedReceiver<ToShard>, mpsc::UnboundedSender<FromShard>),
    up: std_mpsc::Sender<()>,
) {
    // The control thread waits for this; it cannot be gone.
    let _ = up.send(());
    let DataDir { path, recovered, locked, lock, .. } = dir;
    let (id, cluster, next_chunk) = loop {
        match inbox.recv().await {
            Some(ToShard::Begin(id, cluster, next_chunk)) => break (id, cluster, next_chunk),
            Some(ToShard::Probe(answer)) => {
                let _ = answer.send(Report { stats: Stats::default(), oldest_disk_op_ms: 0, deaf_ms: 0 });
            }
            Some(ToShard::Stop) | None => return,
            Some(_) => {}
        }
    };
    let disk = match Disk::new(engine, path, locked) {
        Ok(disk) => disk,
        Err(e) => {
            let _ = control.send(FromShard::Failed(format!("open the log: {e}")));
            return;
        }
    };
    let mut node = Node::new(id, recovered);
    node.begins_with(next_chunk);
    let shard = Rc::new(Shard {
        id: Cell::new(id),
        cluster,
        engine,
        conns_max: files.conns,
        deaf_since: Cell::new(None),
        node: RefCell::new(node),
        disk,
        board,
        control,
        conns: RefCell::default(),
        next_conn: Cell::new(1),
        links: RefCell::default(),
        lost: RefCell::default(),
        table: RefCell::default(),
        table_told: Notify::new(),
        disk_ops: RefCell::default(),
        deadline: Cell::new(None),
        deadline_moved: Notify::new(),
    });
    tokio::task::spawn_local(timer(shard.clone()));
    tokio::task::spawn_local(accept(shard.clone(), listener));
    shard.feed(Input::Wake);
    while let Some(message) = inbox.recv().await {
        match message {
            ToShard::Begin(..) => {}
            ToShard::Table(stores) => {
                *shard.table.borrow_mut() = stores.into_iter().map(|s| (s.store, s.addr)).collect();
                shard.table_told.notify_waiters();
            }
            ToShard::Session(session, until, next_chunk) => {
                shard.feed(Input::Session { session, until, next_chunk })
            }
            ToShard::Snapshot(number) => shard.feed(Input::Snapshot(number)),
            ToShard::Cut(chunks) => shard.feed(Input::Cut(chunks)),
            ToShard::Fork(MasterAsk { handle, number, .. }, epoch, to, snapshot) => {
                shard.feed(Input::Fork { handle, number, epoch, to, snapshot })
            }
            ToShard::Orders(orders) => shard.feed(Input::Orders(orders)),
            ToShard::Repairs(repairs) => shard.feed(Input::Repairs(repairs)),
            ToShard::Master(MasterAsk { handle, number, .. }, answer) => {
                shard.feed(Input::Master { handle, number, answer })
            }
            ToShard::Probe(answer) => {
                let _ = answer.send(shard.report());
            }
            ToShard::Stop => break,
        }
    }
    shard.stop().await;
    drop(lock);
}

impl Shard {
    pub fn next_conn(&self) -> ConnId {
        let conn = self.next_conn.get();
        self.next_conn.set(conn + 1);
        conn
    }

    /// Asks for the table at once.
    pub fn table_is_stale(&self) {
        self.tell(FromShard::TableStale);
    }

    fn report(&self) -> Report {
        let oldest = self.disk_ops.borrow().values().min().copied();
        let age_ms = |since: Option<Time>| since.map_or(0, |since| now().since(since).0 / 1_000_000);
        Report {
            stats: self.node.borrow().stats(),
            oldest_disk_op_ms: age_ms(oldest),
            deaf_ms: age_ms(self.deaf_since.get()),
        }
    }

    /// Something happened: the node decides, this performs.
    pub fn feed(self: &Rc<Self>, input: Input) {
        let mut out = vec![];
        let deadline = {
            let mut node = self.node.borrow_mut();
            node.step(now(), input, &mut out);
            node.deadline()
        };
        for output in &out {
            if let Output::Post(post) = output {
                self.board.post(*post);
            }
        }
        for output in out {
            self.perform(output);
        }
        if deadline != self.deadline.replace(deadline) {
            self.deadline_moved.notify_one();
        }
    }

    fn perform(self: &Rc<Self>, output: Output) {
        match output {
            Output::Reply { conn, request, msg, data } => {
                // A client that is gone wants no answer.
                if let Some(queue) = self.conns.borrow().get(&conn) {
                    let len = data.iter().map(|d| d.len()).sum();
                    queue.answered(request);
                    queue.push(self.frame(request, &msg, len), data);
                }
            }
            Output::Peer { to, msg, data } => links::send(self, to, &msg, data),
            Output::Master(ask) => self.tell(FromShard::Ask(ask)),
            Output::Confirmed(orders) => self.tell(FromShard::Confirmed(orders)),
            Output::Failed(why) => self.tell(FromShard::Failed(why)),
            // It is done.
            Output::Post(_) => {}
            Output::Disk(op) => {
                self.disk_ops.borrow_mut().insert(op.token, now());
                let shard = self.clone();
                tokio::task::spawn_local(async move {
                    if crate::disk::may_wait(&op) {
                        shard.disk_ops.borrow_mut().remove(&op.token);
                    }
                    let consequence = match op.kind {
                        DiskKind::Allocate { .. } => Some("the store counts as full"),
                        DiskKind::Release => Some("an empty segment keeps its room"),
                        _ => None,
                    };
                    let result = shard.disk.perform(op.file, op.kind).await;
                    if let (Some(consequence), Err(why)) = (consequence, &result) {
                        tracing::warn!(%why, "{consequence}");
                    }
                    shard.disk_ops.borrow_mut().remove(&op.token);
                    shard.feed(Input::Disk(DiskDone { token: op.token, result }));
                });
            }
        }
    }

    /// A frame that says which snapshot is known here.
    pub fn frame<M: Message>(&self, request: u64, msg: &M, payload_len: usize) -> Vec<u8> {
        let frame = wire::frame(self.cluster, request, 0, msg, payload_len);
        wire::stamp(frame, self.node.borrow().snapshot())
    }

    fn tell(&self, message: FromShard) {
        // The control thread is gone only when the process ends.
        let _ = self.control.send(message);
    }

    /// A last checkpoint, so that the next start is quick; not waited for too long.
    async fn stop(self: &Rc<Self>) {
        const LIMIT: Duration = Duration::from_secs(5);
        self.feed(Input::Checkpoint { gathers: false });
        let began = std::time::Instant::now();
        while !self.node.borrow().is_idle() && began.elapsed() < LIMIT {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Wakes the node when it asked for it.
async fn timer(shard: Rc<Shard>) {
    loop {
        let moved = shard.deadline_moved.notified();
        match shard.deadline.get() {
            None => moved.await,
            Some(at) => {
                let wait = Duration::from_nanos(at.since(now()).0);
                if tokio::time::timeout(wait, moved).await.is_err() {
                    shard.feed(Input::Wake);
                }
            }
        }
    }
}

/// Takes connections as they come, those from this machine over a unix socket.
async fn accept(shard: Rc<Shard>, listener: std::net::TcpListener) {
    let here = listener.local_addr().ok().and_then(here::Listener::new);
    let listener = Listener::new(listener, shard.engine).expect("a bound listener can be used");
    let far = async {
        loop {
            admit(&shard, listener.accept().await).await;
        }
    };
    let near = async {
        loop {
            admit(&shard, here::accept(&here).await).await;
        }
    };
    tokio::join!(far, near);
}

async fn admit(shard: &Rc<Shard>, accepted: std::io::Result<TcpStream>) {
    let accepted = accepted.and_then(|stream| Sock::new(stream, shard.engine));
    // A caller that is gone already says nothing of the next one.
    let is_deaf = accepted.as_ref().is_err_and(files::are_none_left);
    shard.deaf_since.set(is_deaf.then(|| shard.deaf_since.get().unwrap_or_else(now)));
    match accepted {
        Ok(sock) if shard.conns.borrow().len() >= shard.conns_max => sock.close(),
        Ok(sock) => {
            tokio::task::spawn_local(net::serve(shard.clone(), sock));
        }
        Err(error) => {
            tracing::debug!(%error, "accept failed");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
