//! A world of chunk nodes and one modelled master, under one seed and virtual time. Messages are
//! delayed and lost with their connections; processes are killed, or stand still for longer than
//! their session lasts; power fails; now and then a disk or the masters are slow.
//!
//! Fault model: a connection delivers in order or breaks; a crash is proved to the master at
//! once; disks keep what they flushed. The master is the real state machine under a log that
//! never fails: leader changes are Raft's business and are tested there.

mod check;
mod clients;

use crate::disk::MemDisk;
use bytes::Bytes;
use chunkserver_core::Node;
use chunkserver_core::io::{Ask, DiskOp, Input, MasterAsk, Output};
use chunkserver_core::store::recover::{RecoverError, first_checkpoint, recover};
use chunkserver_core::store::{Recovered, StoreConfig};
use common::limits::LOG_GROUP_BYTES_MAX;
use common::wire::ChunkConfig;
use common::wire::chunk_chunk::Peer;
use common::wire::chunk_master::{Register, StoreReply};
use common::wire::client_master::{MasterReply, Mutation};
use common::wire::frame::Kind;
use common::{ChunkHandle, ClientId, Code, Epoch, Refusal, RequestId, SessionId, Span, StoreId, Time};
use master_core::{Command, Entry, Metadata, Reply};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, BinaryHeap};

/// A store's configuration that is small enough for a test.
pub fn small_store(tag: u64, incarnation: u64) -> StoreConfig {
    StoreConfig {
        tag,
        incarnation,
        log_segment_bytes: 4 * LOG_GROUP_BYTES_MAX as u64,
        log_segments: 4,
        extent_segment_bytes: 16 * 1024 * 1024,
        segments_max: 8,
        ahead_bytes: 1024 * 1024,
        scrub_period_s: 1,
    }
}

/// A disk with an empty store on it.
pub fn empty_disk(config: &StoreConfig) -> MemDisk {
    use chunkserver_core::io::FileRef;
    let mut disk = MemDisk::default().with_file(FileRef::Checkpoint(1), first_checkpoint(config));
    for slot in 0..config.log_segments as u32 {
        disk = disk.with_file(FileRef::Log(slot), vec![0; config.log_segment_bytes as usize]);
    }
    disk
}

/// Recovers a store from a disk, as a server does: what a killed process wrote is made durable first.
pub fn open(config: StoreConfig, disk: &mut MemDisk) -> Result<Recovered, RecoverError> {
    disk.sync();
    recover(config, &mut |file, offset, len| Ok(disk.read(file, offset, len)))
}

enum Event {
    Step { store: usize, life: u64, input: Box<Input> },
    Disk { store: usize, life: u64, op: DiskOp },
    Ask { store: usize, life: u64, ask: MasterAsk },
    Wake { store: usize, life: u64 },
    Client { client: usize },
    Read,
    Tend,
    Lapse { store: StoreId, session: SessionId },
    Resume { store: usize, life: u64 },
    Restart { store: usize },
}

struct Queued {
    at: Time,
    order: u64,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // The heap gives the greatest: the earliest must be that.
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

struct Server {
    id: StoreId,
    config: StoreConfig,
    disk: MemDisk,
    node: Option<Node>,
    life: u64,
    session: SessionId,
    /// The process stands still until then.
    paused: Option<Time>,
    woken_at: Option<Time>,
}

/// What a client wants to write.
#[derive(Clone, Debug)]
struct Wanted {
    request: RequestId,
    offset: Option<u64>,
    data: Bytes,
    push_left: Vec<u16>,
    pushed: bool,
    alone: bool,
    sent_at: Time,
}

/// An acknowledged write.
#[derive(Clone, Debug)]
pub struct Acked {
    /// Who.
    pub client: usize,
    /// Where.
    pub offset: u64,
    /// What.
    pub data: Bytes,
    /// Its serial.
    pub serial: u64,
    /// Whether it was an append.
    pub append: bool,
}

struct Writer {
    config: ChunkConfig,
    id: ClientId,
    seq: u64,
    wanted: Option<Wanted>,
    left: u32,
}

/// How the world shall be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Stores.
    pub stores: u32,
    /// Replicas of the chunk.
    pub replicas: u8,
    /// Writers.
    pub writers: u32,
    /// Writes of each.
    pub writes: u32,
    /// Kills of a process during the run.
    pub kills: u32,
    /// Whether most kills are losses of power.
    pub power: bool,
    /// Whether records are appended, or blocks overwritten.
    pub append: bool,
}

/// The world.
pub struct World {
    rng: StdRng,
    now: Time,
    order: u64,
    queue: BinaryHeap<Queued>,
    servers: Vec<Server>,
    master: Metadata,
    master_requests: u64,
    writers: Vec<Writer>,
    /// Reads under way: where, and the byte that was acknowledged there before they began.
    reads: BTreeMap<u64, (u64, u8)>,
    next_read: u64,
    /// The answer to whoever checks.
    caught: Option<Result<Vec<u8>, Code>>,
    /// Reads that gave what they must.
    pub reads_done: u64,
    /// Attempts to make a replica.
    pub repairs_begun: u64,
    handle: ChunkHandle,
    options: Options,
    /// Connections deliver in order: when the last message arrives.
    last_arrival: BTreeMap<(usize, usize), Time>,
    /// Acknowledged writes.
    pub acked: Vec<Acked>,
    /// A line an event, for comparison of two runs.
    pub trace: Vec<String>,
}

/// Connections from this number on are readers'.
const READERS: u64 = 1_000_000;
/// How many of all disk operations and questions to the masters are slow, and how long those take,
/// in nanoseconds: longer than a primary waits for a new member.
const SLOW: f64 = 0.003;
const SLOW_DISK: (u64, u64) = (100_000_000, 800_000_000);
const SLOW_MASTERS: (u64, u64) = (300_000_000, 1_500_000_000);
/// How many of all blows are pauses and no kills.
const PAUSES: f64 = 0.3;
/// Where power can fail: how many of all kills are that, and not of the process alone.
const POWER_LOST: f64 = 0.7;
/// How many of all answers to writes are lost.
const ANSWERS_LOST: f64 = 0.1;
/// Time between two reads.
const READ_EVERY: Span = Span(3_000_000);

const MASTER_CLIENT: ClientId = ClientId(0xface);

impl World {
    /// A world of this seed.
    pub fn new(seed: u64, options: Options) -> World {
        let mut world = World {
            rng: StdRng::seed_from_u64(seed),
            now: Time(1_000_000_000),
            order: 0,
            queue: BinaryHeap::new(),
            servers: vec![],
            master: Metadata::new(),
            master_requests: 0,
            writers: vec![],
            reads: BTreeMap::new(),
            next_read: READERS,
            caught: None,
            reads_done: 0,
            repairs_begun: 0,
            handle: ChunkHandle::HOLE,
            last_arrival: BTreeMap::new(),
            acked: vec![],
            trace: vec![],
            options,
        };
        for n in 0..world.options.stores {
            let config = small_store(1000 + n as u64, 0);
            let disk = empty_disk(&config);
            let server = Server {
                id: StoreId(n + 1),
                config,
                disk,
                node: None,
                life: 0,
                session: SessionId(0),
                paused: None,
                woken_at: None,
            };
            world.servers.push(server);
            world.restart(n as usize);
        }
        let policy = common::wire::client_master::Policy {
            replication: Some(world.options.replicas),
            ..Default::default()
        };
        world.mutate(Mutation::SetPolicy { path: b"/".to_vec(), policy });
        let create = Mutation::Create {
            path: b"/f".to_vec(),
            mode: 0o644,
            exclusive: true,
            parents: false,
            chunk: true,
            near: String::new(),
        };
        let MasterReply::Opened { chunk: Some(chunk), .. } = world.mutate(create) else { panic!("no chunk") };
        world.handle = chunk.config.handle;
        if world.options.append {
            world.later(Event::Read);
        }
        world.later(Event::Tend);
        for n in 0..world.options.writers {
            let left = world.options.writes;
            let id = ClientId(n as u128 + 1);
            world.writers.push(Writer { config: chunk.config.clone(), id, seq: 0, wanted: None, left });
            world.later(Event::Client { client: n as usize });
        }
        world
    }

    fn apply(&mut self, command: Command) -> Reply {
        let salt = self.rng.random();
        let entry = Entry { stamp_ns: self.now.0, wall_ns: 0, salt, command };
        let reply = self.master.apply(&entry);
        self.master.check();
        reply
    }

    fn mutate(&mut self, mutation: Mutation) -> MasterReply {
        self.master_requests += 1;
        let request = RequestId { client: MASTER_CLIENT, seq: self.master_requests };
        match self.apply(Command::Mutate { request, lowest: self.master_requests, mutation }) {
            Reply::Master(reply) => reply,
            Reply::Store(_) => panic!("a mutation has a client's answer"),
        }
    }

    fn later(&mut self, event: Event) {
        let delay = Span(self.rng.random_range(20_000..400_000));
        self.at(self.now + delay, event);
    }

    fn at(&mut self, at: Time, event: Event) {
        self.order += 1;
        self.queue.push(Queued { at, order: self.order, event });
    }

    /// A message from one store to another: in order.
    fn deliver(&mut self, from: usize, to: usize, input: Input) {
        let delay = Span(self.rng.random_range(20_000..400_000));
        let last = self.last_arrival.get(&(from, to)).copied().unwrap_or(Time(0));
        let at = (self.now + delay).max(last + Span(1));
        self.last_arrival.insert((from, to), at);
        let life = self.servers[to].life;
        self.at(at, Event::Step { store: to, life, input: Box::new(input) });
    }

    fn index(&self, id: StoreId) -> usize {
        id.0 as usize - 1
    }

    fn restart(&mut self, n: usize) {
        let server = &mut self.servers[n];
        server.life += 1;
        server.config.incarnation = server.life;
        let recovered = open(server.config.clone(), &mut server.disk);
        let recovered = recovered.unwrap_or_else(|e| panic!("{}: {e}", server.id));
        let id = server.id;
        server.node = Some(Node::new(id, recovered));
        self.register(n);
        self.trace.push(format!("{} restart {n}", self.now.0));
    }

    /// A store begins a session.
    fn register(&mut self, n: usize) {
        let (id, life) = (self.servers[n].id, self.servers[n].life);
        let register = Register {
            store: (life > 1 || self.servers[n].session != SessionId(0)).then_some(id),
            uuid: 7000 + n as u128,
            server_uuid: 9000 + n as u128,
            incarnation: life,
            boot_id: 1,
            dev_ino: (1, n as u64),
            rack: format!("r{n}"),
            addr: ([127, 0, 0, 1], 1000 + n as u16).into(),
            capacity: 1 << 40,
            used: 0,
        };
        let Reply::Store(StoreReply::Registered { store, session, .. }) =
            self.apply(Command::Register(register))
        else {
            panic!("refused");
        };
        assert_eq!(store, id);
        self.servers[n].session = session;
        let (orders, _) = self.master.orders_for(id, 1000);
        self.step(n, Input::Orders(orders));
        self.step(n, Input::Session { session, until: Time::NEVER });
    }

    /// A store's process stands still for longer than its session lasts, and goes on.
    fn pause(&mut self, n: usize) {
        let Server { id, session, life, .. } = self.servers[n];
        if self.servers[n].node.is_none() || self.servers[n].paused.is_some() {
            return;
        }
        let until = self.now + Span::from_ms(20);
        self.step(n, Input::Session { session, until });
        let end = until + Span::from_ms(self.rng.random_range(10..150));
        self.servers[n].paused = Some(end);
        self.at(until + Span(1), Event::Lapse { store: id, session });
        self.at(end, Event::Resume { store: n, life });
        self.trace.push(format!("{} pause {n}", self.now.0));
    }

    fn resume(&mut self, n: usize) {
        self.servers[n].paused = None;
        self.trace.push(format!("{} resume {n}", self.now.0));
        self.register(n);
    }

    /// Whether the masters take a store for alive.
    fn is_up(&self, id: StoreId) -> bool {
        self.master.store(id).is_some_and(|s| s.session().is_some())
    }

    /// Kills a store's process; its connections break, and its death is proved.
    pub fn kill(&mut self, n: usize) {
        let server = &mut self.servers[n];
        if server.node.take().is_none() {
            return;
        }
        server.paused = None;
        server.life += 1;
        if self.options.power && self.rng.random_bool(POWER_LOST) {
            server.disk.power_lost(&mut self.rng);
        }
        let (id, session) = (server.id, server.session);
        self.apply(Command::StoreDown { store: id, session });
        self.trace.push(format!("{} kill {n}", self.now.0));
        for other in 0..self.servers.len() {
            if other != n && self.servers[other].node.is_some() {
                self.deliver(n, other, Input::PeerLost { peer: id });
                self.deliver(n, other, Input::UpstreamLost { peer: id });
            }
        }
    }

    fn step(&mut self, n: usize, input: Input) {
        let now = self.now;
        let Some(node) = &mut self.servers[n].node else {
            return;
        };
        let mut out = vec![];
        node.step(now, input, &mut out);
        node.check();
        let deadline = node.deadline();
        let life = self.servers[n].life;
        for output in out {
            self.output(n, life, output);
        }
        let due = deadline.filter(|at| self.servers[n].woken_at != Some(*at));
        if let Some(at) = due {
            self.servers[n].woken_at = Some(at);
            self.at(at.max(now + Span(1)), Event::Wake { store: n, life });
        }
    }

    fn output(&mut self, n: usize, life: u64, output: Output) {
        match output {
            Output::Disk(op) => {
                let slow = self.rng.random_bool(SLOW);
                let delay = if slow { SLOW_DISK } else { (30_000, 900_000) };
                let delay = Span(self.rng.random_range(delay.0..delay.1));
                self.at(self.now + delay, Event::Disk { store: n, life, op });
            }
            Output::Peer { to, msg, data } => {
                let (from, to_n) = (self.servers[n].id, self.index(to));
                if self.servers[to_n].node.is_none() {
                    return self.deliver(to_n, n, Input::PeerLost { peer: to });
                }
                assert_eq!(msg.invalid(), None, "{from} says what {to} will not hear: {msg:?}");
                let bytes = common::wire::encode(&msg).len();
                assert!(bytes <= Kind::Peer.body_bytes_max(), "{bytes} bytes: {msg:?}");
                let data = data.concat().into();
                self.trace.push(format!("{} {from}->{to} {}", self.now.0, name(&msg)));
                self.deliver(n, to_n, Input::Peer { from, msg, data });
            }
            Output::Reply { conn: check::CHECKER, request, msg, data } => {
                self.checker_is_answered(request, msg, data)
            }
            Output::Reply { conn, msg, data, .. } if conn >= READERS => self.read_answered(conn, msg, data),
            Output::Reply { conn, request, msg, .. } => self.reply(conn as usize, request, msg),
            Output::Master(ask) => {
                let slow = self.rng.random_bool(SLOW);
                let delay = if slow { SLOW_MASTERS } else { (200_000, 2_000_000) };
                let at = self.now + Span(self.rng.random_range(delay.0..delay.1));
                self.at(at, Event::Ask { store: n, life, ask });
            }
            Output::Confirmed(orders) => {
                let (store, session) = (self.servers[n].id, self.servers[n].session);
                self.apply(Command::Confirmed { store, session, orders });
            }
            Output::Failed(why) => panic!("a disk that does not fail has failed: {why}"),
        }
    }

    fn answer(&mut self, n: usize, ask: MasterAsk) {
        let handle = ask.handle;
        let store = self.servers[n].id;
        let config = self.master.config(handle);
        let answer = match (config, ask.what) {
            (Err(refusal), _) => Err(refusal),
            (Ok(config), Ask::Confirm) => Ok(config),
            (Ok(config), Ask::Takeover { epoch }) if config.epoch != epoch || config.primary != store => {
                Ok(config)
            }
            (Ok(config), Ask::Silent { epoch, .. }) if config.epoch != epoch || config.primary != store => {
                Ok(config)
            }
            (Ok(_), Ask::Takeover { epoch }) => self.reconfigure(handle, epoch, vec![], Some(store)),
            (Ok(_), Ask::Silent { epoch, accused }) => match self.is_up(accused) {
                true => Err(Refusal::new(Code::Busy, "it is alive")),
                false => self.reconfigure(handle, epoch, vec![accused], None),
            },
            (Ok(_), Ask::Corrupt { epoch }) => panic!("{store} finds rot at {epoch}, and there is none"),
            (Ok(_), Ask::Join { epoch, learner, attempt }) => {
                self.config_of(Command::Join { handle, epoch, learner, attempt })
            }
            (Ok(_), Ask::Seal { epoch, length, .. }) => {
                self.config_of(Command::Seal { handle, epoch, length })
            }
        };
        let mut answer = answer;
        if let Ok(config) = &mut answer
            && config.epoch.number() > 1
        {
            // As if the removed member's session had to run out: longer than needed is allowed.
            config.wait_ms = self.rng.random_range(0..100);
        }
        self.step(n, Input::Master { handle, answer });
        self.heartbeats();
    }

    /// Orders and repairs reach whoever is alive with its next heartbeat.
    fn heartbeats(&mut self) {
        for other in 0..self.servers.len() {
            if self.servers[other].node.is_none() {
                continue;
            }
            let (id, life) = (self.servers[other].id, self.servers[other].life);
            let (orders, _) = self.master.orders_for(id, 1000);
            if !orders.is_empty() {
                self.later(Event::Step { store: other, life, input: Box::new(Input::Orders(orders)) });
            }
            let repairs = self.master.repairs_for(id);
            self.later(Event::Step { store: other, life, input: Box::new(Input::Repairs(repairs)) });
        }
    }

    /// What the steward does: an attempt for a chunk that lacks a member; one whose target is
    /// down, and now and then any, is given up.
    fn tend(&mut self) {
        let next = self.now + Span::from_ms(self.rng.random_range(5..40));
        self.at(next, Event::Tend);
        let handle = self.handle;
        let config = self.master.config(handle).expect("the chunk is not deleted");
        let dead: Vec<StoreId> = config.members.iter().copied().filter(|m| !self.is_up(*m)).collect();
        if !dead.is_empty() && self.rng.random_bool(0.3) {
            // Too few may be left: then the chunk is frozen until somebody is back.
            let _ = self.reconfigure(handle, config.epoch, dead, None);
            return self.heartbeats();
        }
        match self.master.repair(handle) {
            Some(repair) if !self.is_up(repair.target) || self.rng.random_bool(0.05) => {
                self.apply(Command::EndRepair { handle, attempt: repair.attempt });
            }
            Some(_) => {}
            None if config.members.len() < self.options.replicas as usize => {
                let reply = self.apply(Command::BeginRepair { handle, epoch: config.epoch });
                if matches!(reply, Reply::Store(StoreReply::Done)) {
                    self.trace.push(format!("{} repair {:?}", self.now.0, self.master.repair(handle)));
                    self.repairs_begun += 1;
                }
            }
            None => {}
        }
        self.heartbeats();
    }

    fn reconfigure(
        &mut self,
        handle: ChunkHandle,
        epoch: Epoch,
        remove: Vec<StoreId>,
        primary: Option<StoreId>,
    ) -> Result<ChunkConfig, Refusal> {
        self.config_of(Command::Reconfigure { handle, epoch, remove, primary })
    }

    fn config_of(&mut self, command: Command) -> Result<ChunkConfig, Refusal> {
        match self.apply(command) {
            Reply::Store(StoreReply::Config(config)) => Ok(config),
            Reply::Store(StoreReply::Refused { refusal, .. }) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    // --- the run ---------------------------------------------------------------------------

    /// Runs to the end: kills on the way, everything alive at the end, all writes answered.
    /// Panics with a sentence if a promise is broken.
    pub fn run(&mut self) {
        /// Events after which a run that has not come to rest is stuck.
        const EVENTS_MAX: u64 = 3_000_000;
        let total = (self.options.writers * self.options.writes) as usize;
        let mut kills = self.options.kills;
        let mut next_kill = self.now + Span::from_ms(self.rng.random_range(1..60));
        for _ in 0..EVENTS_MAX {
            if kills > 0 && self.now >= next_kill {
                kills -= 1;
                next_kill = self.now + Span::from_ms(self.rng.random_range(1..120));
                let n = self.rng.random_range(0..self.servers.len());
                if self.rng.random_bool(PAUSES) {
                    self.pause(n);
                    continue;
                }
                self.kill(n);
                let back = self.now + Span::from_ms(self.rng.random_range(1..150));
                self.at(back, Event::Restart { store: n });
            }
            let alive = self.servers.iter().all(|s| s.node.is_some() && s.paused.is_none());
            if kills == 0 && self.acked.len() == total && alive && self.is_whole() {
                return;
            }
            let Some(Queued { at, event, .. }) = self.queue.pop() else {
                if kills == 0 {
                    break;
                }
                self.now = next_kill;
                continue;
            };
            self.now = self.now.max(at);
            self.event(event);
        }
        for line in &self.trace[self.trace.len().saturating_sub(60)..] {
            eprintln!("{line}");
        }
        eprintln!("{:?}", self.master.config(self.handle));
        for server in &self.servers {
            let view = server.node.as_ref().and_then(|n| n.chunk_view(self.handle));
            eprintln!("{} alive {} {view:?}", server.id, server.node.is_some());
        }
        panic!("stuck: {} of {total} writes are acknowledged at {}", self.acked.len(), self.now.0);
    }

    /// Whether the chunk has all its members, and no attempt to make one is under way.
    fn is_whole(&self) -> bool {
        self.members().len() >= self.options.replicas as usize && self.master.repair(self.handle).is_none()
    }

    fn event(&mut self, event: Event) {
        let to = match &event {
            Event::Step { store, .. }
            | Event::Disk { store, .. }
            | Event::Ask { store, .. }
            | Event::Wake { store, .. } => Some(*store),
            _ => None,
        };
        if let Some(end) = to.and_then(|n| self.servers[n].paused) {
            // In the order in which they would have come.
            return self.at(end + Span(1), event);
        }
        match event {
            Event::Lapse { store, session } => {
                self.apply(Command::StoreDown { store, session });
            }
            Event::Resume { store, life } if self.servers[store].life == life => self.resume(store),
            Event::Step { store, life, input } if self.servers[store].life == life => {
                self.step(store, *input)
            }
            Event::Disk { store, life, op } if self.servers[store].life == life => {
                let done = self.servers[store].disk.perform(op);
                self.step(store, Input::Disk(done));
            }
            Event::Ask { store, life, ask } if self.servers[store].life == life => self.answer(store, ask),
            Event::Wake { store, life } if self.servers[store].life == life => {
                self.servers[store].woken_at = None;
                self.step(store, Input::Wake);
            }
            Event::Client { client } => self.client(client),
            Event::Read => self.begin_read(),
            Event::Tend => self.tend(),
            Event::Restart { store } if self.servers[store].node.is_none() => self.restart(store),
            _ => {}
        }
    }

    /// Kills everything at once, and starts it again.
    pub fn kill_all(&mut self) {
        for n in 0..self.servers.len() {
            self.kill(n);
        }
        for n in 0..self.servers.len() {
            self.restart(n);
        }
    }

    /// A store's disk.
    pub fn disk(&mut self, n: usize) -> &mut MemDisk {
        &mut self.servers[n].disk
    }
}

fn name(msg: &Peer) -> &'static str {
    match msg {
        Peer::Forward { .. } => "Forward",
        Peer::Held { .. } => "Held",
        Peer::Apply { .. } => "Apply",
        Peer::Applied { .. } => "Applied",
        Peer::ApplyRefused { .. } => "ApplyRefused",
        Peer::Commit { .. } => "Commit",
        Peer::AskCommit { .. } => "AskCommit",
        Peer::NewEpoch { .. } => "NewEpoch",
        Peer::Tail { .. } => "Tail",
        Peer::Adopt { .. } => "Adopt",
        Peer::Adopted { .. } => "Adopted",
        Peer::Fetch { .. } => "Fetch",
        Peer::Fetched { .. } => "Fetched",
        Peer::Copy { halt: false, .. } => "Copy",
        Peer::Copy { halt: true, .. } => "Copy halted",
        Peer::CopyData { .. } => "CopyData",
        Peer::CopyAnswers { .. } => "CopyAnswers",
        Peer::CopiedAnswers { .. } => "CopiedAnswers",
        Peer::Copied { .. } => "Copied",
        Peer::CopyRefused { .. } => "CopyRefused",
    }
}
