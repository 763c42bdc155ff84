//! A world of chunk nodes, clients and masters, under one seed and virtual time. The nodes, their
//! stores and the masters' state machine are the real ones.
//!
//! Fault model: a connection delivers in order, or breaks; what it carries may be held up. Processes
//! are killed, or stand still; power fails; a disk keeps what it flushed, and now and then it or
//! the masters are slow. Clocks run at different speeds. The masters' log never fails (that is
//! Raft's business, tested there), but leaders come and go, and answers are lost.

mod check;
mod clients;
mod clones;
mod local;
mod masters;
pub mod plan;
mod snapshots;
mod truncations;

use crate::disk::MemDisk;
use bytes::Bytes;
use chunkserver_core::Node;
use chunkserver_core::io::{DiskKind, DiskOp, FileRef, Input, MasterAsk, Output};
use chunkserver_core::store::checkpoint::first_checkpoint;
use chunkserver_core::store::recover::{RecoverError, recover};
use chunkserver_core::store::{Recovered, StoreConfig};
use clones::CLONERS;
use common::limits::LOG_GROUP_BYTES_MAX;
use common::wire::ChunkConfig;
use common::wire::chunk_chunk::Peer;
use common::wire::chunk_master::{CutsHeard, Order, Register, RepairOrder};
use common::wire::client_master::{MasterReply, Mutation, Owner, Policy};
use common::wire::frame::Kind;
use common::{ChunkHandle, ClientId, Code, RequestId, SessionId, Span, StoreId, Time};
use local::Told;
use masters::Masters;
use plan::{Plan, What};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use snapshots::Taken;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Range;
use truncations::CUTTERS;

/// A store's configuration that is small enough for a test: its log is soon full.
pub fn small_store(tag: u64, incarnation: u64) -> StoreConfig {
    StoreConfig {
        tag,
        incarnation,
        log_segment_bytes: LOG_GROUP_BYTES_MAX as u64 + 64 * 1024,
        log_segments: 4,
        extent_segment_bytes: 16 * 1024 * 1024,
        segments_max: 8,
        scrub_period_s: 1,
        horizon_ms: 300,
        release_ms: 20,
    }
}

/// A disk with an empty store on it.
pub fn empty_disk(config: &StoreConfig) -> MemDisk {
    let mut disk = MemDisk::default();
    let checkpoint = first_checkpoint(config);
    disk = disk.with_file(FileRef::Checkpoint(1), &checkpoint, checkpoint.len() as u64);
    for slot in 0..config.log_segments as u32 {
        disk = disk.with_file(FileRef::Log(slot), &[], config.log_segment_bytes);
    }
    disk
}

/// How the n-th store registers: each is a server of its own, in a rack of its own.
pub fn register(n: usize, store: Option<StoreId>, incarnation: u64) -> Register {
    Register {
        store,
        uuid: 7000 + n as u128,
        server_uuid: 9000 + n as u128,
        incarnation,
        boot_id: 1,
        dev_ino: (1, n as u64),
        rack: format!("r{n}"),
        addr: ([127, 0, 0, 1], 1000 + n as u16).into(),
        capacity: 1 << 40,
        used: 0,
    }
}

/// Recovers a store from a disk, as a server does: what a killed process wrote is made durable first.
pub fn open(config: StoreConfig, disk: &mut MemDisk) -> Result<Recovered, RecoverError> {
    disk.sync_all();
    let bytes = config.extent_segment_bytes;
    let mut read = |file, offset, len| Ok(disk.read(file, offset, len));
    recover(config, &mut read, &|segment| disk.len(FileRef::Extents(segment)) >= bytes)
}

/// Makes a file, or opens the one that is there.
fn create(path: String, chunk: bool) -> Mutation {
    Mutation::Create {
        path: path.into_bytes(),
        mode: 0o644,
        owner: Owner::default(),
        exclusive: false,
        parents: false,
        chunk,
        near: String::new(),
    }
}

enum Event {
    /// What befalls the world, by its number in the plan.
    Fault {
        number: usize,
    },
    Step {
        store: usize,
        life: u64,
        input: Box<Input>,
    },
    Disk {
        store: usize,
        life: u64,
        op: DiskOp,
    },
    Wake {
        store: usize,
        life: u64,
    },
    Restart {
        store: usize,
    },
    Client {
        client: usize,
    },
    Read,
    Locate,
    /// Who was told where bytes lie at a store reads them itself.
    ReadHere {
        store: usize,
        life: u64,
        told: Box<Told>,
    },
    // Between stores and masters.
    Register {
        store: usize,
        life: u64,
    },
    Beat {
        store: usize,
        life: u64,
        session: SessionId,
    },
    Heard {
        store: usize,
        life: u64,
        session: SessionId,
        sent: Time,
        confirmed: Vec<Order>,
        snapshot: u64,
    },
    Renewed {
        store: usize,
        life: u64,
        renewal: Box<Carrying>,
        orders: Vec<Order>,
        heard: CutsHeard,
        cut: Option<Vec<ChunkHandle>>,
    },
    Lapsed {
        store: usize,
        life: u64,
        session: SessionId,
    },
    /// A question to the masters, as it was asked in that session.
    Ask {
        store: usize,
        life: u64,
        session: SessionId,
        ask: MasterAsk,
        since: Time,
    },
    /// Who wanted a clone waits no longer.
    CloneOver {
        number: u64,
    },
    /// Who cuts a file has waited for an answer.
    Truncator {
        number: usize,
    },
    Tend,
    Undrain {
        store: usize,
    },
    GiveUp {
        store: usize,
    },
}

impl Event {
    /// The process that has to run for it, and which start of it.
    fn process(&self) -> Option<(usize, u64)> {
        match self {
            Event::Step { store, life, .. }
            | Event::Disk { store, life, .. }
            | Event::Wake { store, life }
            | Event::Register { store, life }
            | Event::Beat { store, life, .. }
            | Event::Renewed { store, life, .. }
            | Event::Lapsed { store, life, .. } => Some((*store, *life)),
            // These are with the masters.
            Event::Heard { .. } | Event::Ask { .. } => None,
            _ => None,
        }
    }
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
    /// How much faster than the masters' its clock runs, in millionths.
    drift_ppm: i64,
    /// The process stands still until then.
    paused: Option<Time>,
    /// It never comes back.
    lost: bool,
    /// It and the masters do not hear each other until then.
    deaf_until: Time,
    woken_at: Option<Time>,
    /// Orders that must be durable before the session goes on.
    carrying: Option<Carrying>,
    /// Orders that are durable, for the next heartbeat.
    done: Vec<Order>,
    /// What its board says; it goes with the process.
    board: local::Board,
    /// Up to where it has heard of files that were cut.
    heard: CutsHeard,
}

struct Carrying {
    left: usize,
    session: SessionId,
    until: Time,
    repairs: Vec<RepairOrder>,
    snapshot: u64,
    next_chunk: ChunkHandle,
}

/// A connection that does not deliver.
struct Cut {
    from: usize,
    to: usize,
    until: Time,
    breaks: bool,
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
    /// When it was sent first, and the last snapshot that the client knew of then.
    begun_at: Time,
    stamp: u64,
}

/// An acknowledged write.
#[derive(Clone, Debug)]
pub struct Acked {
    /// Who.
    pub client: usize,
    /// Of which chunk.
    pub handle: ChunkHandle,
    /// Where.
    pub offset: u64,
    /// What.
    pub data: Bytes,
    /// Its serial.
    pub serial: u64,
    /// Whether it was an append.
    pub append: bool,
    /// When it was sent first, and when it was acknowledged.
    pub begun_at: Time,
    /// When.
    pub acked_at: Time,
    /// The last snapshot that its client knew of when it was begun.
    pub stamp: u64,
}

#[derive(Clone)]
struct Writer {
    config: ChunkConfig,
    id: ClientId,
    seq: u64,
    wanted: Option<Wanted>,
    left: u32,
    /// An answer was lost, and it does not ask again before.
    thinks_until: Time,
    /// The last snapshot that it has heard of.
    stamp: u64,
}

/// The world.
pub struct World {
    plan: Plan,
    rng: StdRng,
    now: Time,
    order: u64,
    queue: BinaryHeap<Queued>,
    servers: Vec<Server>,
    masters: Masters,
    handles: Vec<ChunkHandle>,
    writers: Vec<Writer>,
    cuts: Vec<Cut>,
    faults_left: usize,
    taken: Vec<Taken>,
    clones: Vec<clones::Clone>,
    truncations: Vec<truncations::Truncation>,
    /// The last snapshot that stores know of, as their heartbeats say.
    known: BTreeMap<StoreId, (SessionId, u64)>,
    /// Reads under way: at which offset, the byte that was acknowledged there before they began, of which
    /// chunk, and at which member.
    reads: BTreeMap<u64, (u64, u8, ChunkHandle, StoreId)>,
    next_read: u64,
    /// Questions where bytes lie, under way: in which chunk, and from where on.
    locating: BTreeMap<u64, (ChunkHandle, u64)>,
    /// Configurations as readers remember them: they ask anew only now and then.
    remembered: Vec<ChunkConfig>,
    /// The answer to whoever checks.
    caught: Option<Result<Vec<u8>, Code>>,
    /// Reads that gave what they must.
    pub reads_done: u64,
    /// Of those, how many took the bytes off a store's disk themselves.
    pub reads_here: u64,
    /// Attempts to make a replica.
    pub repairs_begun: u64,
    /// Chunks that were lost, and said to be.
    pub chunks_lost: u64,
    /// Chunks that began as clones of others.
    pub clones_made: u64,
    /// Connections deliver in order: when the last message arrives, by sender, receiver and class.
    last_arrival: BTreeMap<(usize, usize, bool), Time>,
    /// Writes to chunks that their files have dropped, of which nobody heard what became of them.
    unknown: Vec<(ChunkHandle, Range<usize>)>,
    /// Acknowledged writes.
    pub acked: Vec<Acked>,
    /// A line an event, for comparison of two runs.
    pub trace: Vec<String>,
}

/// Where the world's time begins.
const BEGINNING: Time = Time(1_000_000_000);
/// Connections from this number on are readers'.
const READERS: u64 = 1_000_000;
/// And from this one on, those of readers that want to know where bytes lie.
const LOCATORS: u64 = 1 << 40;
/// Clocks run faster or slower than the masters' by at most so many millionths.
const DRIFT_PPM: i64 = 20_000;
/// How many of all disk operations and questions to the masters are slow, and how long those take,
/// in nanoseconds: longer than a primary waits for a new member.
const SLOW: f64 = 0.003;
const SLOW_READ: f64 = 0.02;
const SLOW_DISK: (u64, u64) = (100_000_000, 800_000_000);
const SLOW_MASTERS: (u64, u64) = (300_000_000, 1_500_000_000);
/// By how much messages are late that are, in nanoseconds: sessions come and go meanwhile.
const LATE_BY: (u64, u64) = (10_000_000, 4_000_000_000);
/// How many of all answers to writes are lost, and how many writers that lose one think for long.
const ANSWERS_LOST: f64 = 0.1;
const LONG_THOUGHTS: f64 = 0.3;
/// How many of all readers ask the masters how a chunk is, before they ask a member.
const READERS_ASK: f64 = 0.02;
/// Time between two reads.
const READ_EVERY: Span = Span(3_000_000);

impl World {
    /// The world of this plan.
    pub fn new(plan: Plan) -> World {
        let options = plan.options.clone();
        let mut world = World {
            rng: StdRng::seed_from_u64(plan.seed),
            now: BEGINNING,
            order: 0,
            queue: BinaryHeap::new(),
            servers: vec![],
            masters: Masters::default(),
            handles: vec![],
            writers: vec![],
            cuts: vec![],
            faults_left: plan.faults.len(),
            taken: vec![],
            clones: vec![],
            truncations: vec![],
            known: BTreeMap::new(),
            reads: BTreeMap::new(),
            next_read: READERS,
            locating: BTreeMap::new(),
            remembered: vec![],
            caught: None,
            reads_done: 0,
            reads_here: 0,
            repairs_begun: 0,
            chunks_lost: 0,
            clones_made: 0,
            last_arrival: BTreeMap::new(),
            unknown: vec![],
            acked: vec![],
            trace: vec![],
            plan,
        };
        for n in 0..options.stores {
            let config = small_store(1000 + n as u64, 0);
            let disk = empty_disk(&config);
            let drift_ppm = world.rng.random_range(-DRIFT_PPM..=DRIFT_PPM);
            let server = Server {
                id: StoreId(n + 1),
                config,
                disk,
                node: None,
                life: 0,
                session: SessionId(0),
                drift_ppm,
                paused: None,
                lost: false,
                deaf_until: Time(0),
                woken_at: None,
                carrying: None,
                done: vec![],
                board: local::Board::default(),
                heard: CutsHeard::default(),
            };
            world.servers.push(server);
            world.restart(n as usize);
        }
        let policy = Policy { replication: Some(options.replicas), ..Default::default() };
        world.mutate(Mutation::SetPolicy { path: b"/".to_vec(), policy });
        let mut configs = vec![];
        for n in 0..options.chunks {
            let create = create(format!("/f{n}"), true);
            let MasterReply::Opened { chunk: Some(chunk), .. } = world.mutate(create) else {
                panic!("no chunk")
            };
            world.handles.push(chunk.config.handle);
            configs.push(chunk.config);
        }
        if options.append {
            world.later(Event::Read);
        }
        world.later(Event::Locate);
        world.remembered = configs.clone();
        world.later(Event::Tend);
        for n in 0..options.writers {
            let config = configs[(n % options.chunks) as usize].clone();
            let id = ClientId(n as u128 + 1);
            world.writers.push(Writer {
                config,
                id,
                seq: 0,
                wanted: None,
                left: options.writes,
                thinks_until: Time(0),
                stamp: 0,
            });
            // Most begin at once; others later, so that chunks come into being at any time.
            let first = Span::from_ms(world.rng.random_range(0..=options.span_ms / 2) * (n % 3) as u64 / 2);
            world.at(BEGINNING + first, Event::Client { client: n as usize });
        }
        for number in 0..world.plan.faults.len() {
            let at = BEGINNING + Span(world.plan.faults[number].at_us * 1000);
            world.at(at, Event::Fault { number });
        }
        world
    }

    /// Bytes that lay scattered and were gathered, in the lives of processes that still last.
    pub fn gathered_bytes(&self) -> u64 {
        let nodes = self.servers.iter().filter_map(|s| s.node.as_ref());
        nodes.map(|node| node.stats().gathered_bytes).sum()
    }

    /// Virtual milliseconds since the beginning.
    pub fn ms(&self) -> u64 {
        self.now.since(BEGINNING).ms_up()
    }

    fn later(&mut self, event: Event) {
        let delay = Span(self.rng.random_range(20_000..400_000));
        self.at(self.now + delay, event);
    }

    fn at(&mut self, at: Time, event: Event) {
        self.order += 1;
        self.queue.push(Queued { at, order: self.order, event });
    }

    fn index(&self, id: StoreId) -> usize {
        id.0 as usize - 1
    }

    fn is_deaf(&self, n: usize) -> bool {
        self.now < self.servers[n].deaf_until
    }

    // --- clocks ----------------------------------------------------------------------------

    /// A store's own time.
    fn local(&self, n: usize) -> Time {
        let now = self.now.0 as i128;
        Time((now + now * self.servers[n].drift_ppm as i128 / 1_000_000) as u64)
    }

    /// When a store's clock shows this.
    fn global(&self, n: usize, local: Time) -> Time {
        let ppm = 1_000_000 + self.servers[n].drift_ppm as i128;
        Time((local.0 as i128 * 1_000_000 / ppm) as u64 + 2)
    }

    // --- connections -----------------------------------------------------------------------

    /// Something that comes from one store to another, in the order of its connection.
    fn deliver(&mut self, from: usize, to: usize, bulk: bool, input: Input) {
        let delay = Span(self.rng.random_range(20_000..400_000));
        let last = self.last_arrival.get(&(from, to, bulk)).copied().unwrap_or(Time(0));
        let mut at = (self.now + delay).max(last + Span(1));
        let now = self.now;
        if let Some(cut) = self.cuts.iter().find(|c| (c.from, c.to) == (from, to) && now < c.until) {
            match cut.breaks {
                true => return,
                false => at = at.max(cut.until),
            }
        }
        self.last_arrival.insert((from, to, bulk), at);
        let life = self.servers[to].life;
        self.at(at, Event::Step { store: to, life, input: Box::new(input) });
    }

    /// A connection that broke stands again.
    fn mend(&mut self, from: usize, to: usize) {
        let heard = self.servers[to].id;
        self.tell(from, Input::PeerReset { peer: heard });
    }

    /// Something that a process finds out by itself.
    fn tell(&mut self, n: usize, input: Input) {
        let life = self.servers[n].life;
        self.later(Event::Step { store: n, life, input: Box::new(input) });
    }

    // --- processes -------------------------------------------------------------------------

    fn restart(&mut self, n: usize) {
        let server = &mut self.servers[n];
        server.life += 1;
        server.config.incarnation = server.life;
        let recovered = open(server.config.clone(), &mut server.disk);
        let recovered = recovered.unwrap_or_else(|e| panic!("{}: {e}", server.id));
        server.node = Some(Node::new(server.id, recovered));
        (server.carrying, server.done, server.woken_at) = (None, vec![], None);
        server.board = local::Board::default();
        server.heard = CutsHeard::default();
        self.trace.push(format!("{} restart {n}", self.now.0));
        self.register(n);
    }

    /// Kills a store's process; its connections break.
    fn kill(&mut self, n: usize, power: bool, told: bool) {
        let server = &mut self.servers[n];
        if server.node.take().is_none() {
            return;
        }
        server.paused = None;
        server.life += 1;
        if power {
            server.disk.power_lost(&mut self.rng);
        }
        let (store, session) = (server.id, server.session);
        if told && self.masters_lead() {
            self.apply(master_core::Command::StoreDown { store, session });
        }
        self.trace.push(format!("{} kill {n} power {power} told {told}", self.now.0));
        for other in 0..self.servers.len() {
            if other != n && self.servers[other].node.is_some() {
                self.deliver(n, other, false, Input::PeerLost { peer: store });
            }
        }
    }

    fn befall(&mut self, what: What) {
        self.trace.push(format!("{} {what:?}", self.now.0));
        match what {
            What::Kill { store, power, told, back_ms } => {
                self.kill(store, power, told);
                self.at(self.now + Span::from_ms(back_ms), Event::Restart { store });
            }
            What::Pause { store, ms } => {
                let until = self.now + Span::from_ms(ms);
                let server = &mut self.servers[store];
                if server.node.is_some() {
                    server.paused = Some(until.max(server.paused.unwrap_or(until)));
                }
            }
            What::Cut { from, to, ms, breaks } => {
                let until = self.now + Span::from_ms(ms);
                self.cuts.push(Cut { from, to, until, breaks });
                if breaks {
                    // A new connection cannot be made, until then.
                    let heard = self.servers[to].id;
                    self.tell(from, Input::PeerLost { peer: heard });
                }
            }
            What::Deaf { store, ms } => {
                self.servers[store].deaf_until = self.now + Span::from_ms(ms);
            }
            What::Island { store, ms, breaks } => {
                self.servers[store].deaf_until = self.now + Span::from_ms(ms);
                for other in (0..self.servers.len()).filter(|n| *n != store) {
                    self.befall(What::Cut { from: store, to: other, ms, breaks });
                    self.befall(What::Cut { from: other, to: store, ms, breaks });
                }
            }
            What::Drain { store, ms } => {
                self.drain(store, true);
                self.at(self.now + Span::from_ms(ms), Event::Undrain { store });
            }
            What::Lose { store, told, after_ms } => {
                self.kill(store, false, told);
                self.servers[store].lost = true;
                self.at(self.now + Span::from_ms(after_ms), Event::GiveUp { store });
            }
            What::Election { ms } => self.election(ms),
            What::Snapshot => self.take_snapshot(),
            What::DeleteSnapshot => self.delete_snapshot(),
            What::Clone { chunk } => self.begin_clone(chunk),
            What::Truncate { chunk } => self.begin_truncation(chunk, false),
            What::Empty { chunk } => self.begin_truncation(chunk, true),
            What::Checkpoint { store } => self.tell(store, Input::Checkpoint { gathers: true }),
        }
    }

    fn mend_what_is_over(&mut self) {
        let now = self.now;
        let over: Vec<Cut> = self.cuts.extract_if(.., |c| c.until <= now).collect();
        for cut in over.into_iter().filter(|c| c.breaks) {
            self.mend(cut.from, cut.to);
        }
        for n in 0..self.servers.len() {
            self.servers[n].paused.take_if(|until| *until <= now);
        }
    }

    fn step(&mut self, n: usize, input: Input) {
        let now = self.local(n);
        if let Input::Master { handle, answer, .. } = &input {
            let said = answer.as_ref().map(|c| (c.epoch, c.primary, &c.members, c.sealed));
            self.trace.push(format!("{} masters->s{} {handle} {said:?}", self.now.0, n + 1));
        }
        let Some(node) = &mut self.servers[n].node else {
            return;
        };
        let mut out = vec![];
        node.step(now, input, &mut out);
        node.check();
        let deadline = node.deadline();
        let life = self.servers[n].life;
        for output in out.extract_if(.., |output| matches!(output, Output::Post(_))) {
            if let Output::Post(post) = output {
                self.servers[n].board.post(post);
            }
        }
        for output in out {
            self.output(n, life, output);
        }
        let due = deadline.filter(|at| self.servers[n].woken_at != Some(*at));
        if let Some(at) = due {
            self.servers[n].woken_at = Some(at);
            let at = self.global(n, at).max(self.now + Span(1));
            self.at(at, Event::Wake { store: n, life });
        }
    }

    fn output(&mut self, n: usize, life: u64, output: Output) {
        match output {
            Output::Disk(op) => {
                let read = matches!(op.kind, DiskKind::Read { .. });
                let slow = self.rng.random_bool(if read { SLOW_READ } else { SLOW });
                let delay = if slow { SLOW_DISK } else { (30_000, 900_000) };
                let delay = Span(self.rng.random_range(delay.0..delay.1));
                self.at(self.now + delay, Event::Disk { store: n, life, op });
            }
            Output::Peer { to, msg, data } => {
                let (from, to_n) = (self.servers[n].id, self.index(to));
                if self.servers[to_n].node.is_none() {
                    return self.deliver(to_n, n, false, Input::PeerLost { peer: to });
                }
                assert_eq!(msg.invalid(), None, "{from} says what {to} will not hear: {msg:?}");
                let bytes = common::wire::encode(&msg).len();
                assert!(bytes <= Kind::Peer.body_bytes_max(), "{bytes} bytes: {msg:?}");
                let data = data.concat().into();
                let snapshot = self.servers[n].node.as_ref().expect("it says so").snapshot();
                self.trace.push(format!("{} {from}->{to} {}", self.now.0, name(&msg)));
                self.deliver(n, to_n, msg.is_bulk(), Input::Peer { from, snapshot, msg, data });
            }
            Output::Reply { ref msg, .. }
                if common::wire::to_vec(msg).len() > Kind::ClientChunkReply.body_bytes_max() =>
            {
                panic!("an answer does not fit its frame: {msg:?}");
            }
            Output::Reply { conn: check::CHECKER, request, msg, data } => {
                self.checker_is_answered(request, msg, data)
            }
            Output::Reply { conn, request, msg, .. } if conn >= CUTTERS => {
                self.cutter_is_answered((conn - CUTTERS) as usize, request, msg)
            }
            Output::Reply { conn, msg, .. } if conn >= CLONERS => self.fork_answered(conn - CLONERS, msg),
            Output::Reply { conn, msg, .. } if conn >= LOCATORS => self.located(n, life, conn, msg),
            Output::Reply { conn, msg, data, .. } if conn >= READERS => self.read_answered(conn, msg, data),
            Output::Reply { conn, request, msg, .. } => {
                let stamp = self.servers[n].node.as_ref().map_or(0, |node| node.snapshot());
                let writer = &mut self.writers[conn as usize];
                writer.stamp = writer.stamp.max(stamp);
                self.reply(conn as usize, request, msg)
            }
            Output::Master(ask) => {
                let slow = self.rng.random_bool(SLOW);
                let delay = if slow { SLOW_MASTERS } else { (200_000, 2_000_000) };
                let at = self.now + Span(self.rng.random_range(delay.0..delay.1));
                let session = self.servers[n].session;
                self.at(at, Event::Ask { store: n, life, session, ask, since: self.now });
            }
            Output::Confirmed(orders) => self.carried_out(n, orders),
            Output::Post(_) => unreachable!("done by whoever calls"),
            Output::Failed(why) => panic!("a disk that does not fail has failed: {why}"),
        }
    }

    // --- the run ---------------------------------------------------------------------------

    /// Runs to the end: faults on the way, everything alive at the end, all writes answered, all
    /// chunks with all their members. Panics with a sentence if a promise is broken.
    pub fn run(&mut self) {
        /// Events after which a run that has not come to rest is stuck.
        const EVENTS_MAX: u64 = 3_000_000;
        for _ in 0..EVENTS_MAX {
            if self.faults_left == 0 && self.is_well() && self.writers.iter().all(|w| self.has_written(w)) {
                return;
            }
            self.next();
        }
        for handle in &self.handles {
            self.trace.push(format!("masters: {:?}", self.masters.state.config(*handle)));
            for server in &self.servers {
                let view = server.node.as_ref().and_then(|n| n.chunk_view(*handle));
                self.trace.push(format!("{} alive {} {view:?}", server.id, server.node.is_some()));
            }
        }
        let state = &self.masters.state;
        let (drained, moving): (Vec<_>, Vec<_>) = (state.draining().collect(), state.moving().collect());
        self.trace.push(format!("drained {drained:?} moving {moving:?}"));
        let total = self.plan.options.writers * self.plan.options.writes;
        panic!("stuck: {} of {total} writes are acknowledged at {}", self.acked.len(), self.now.0);
    }

    /// Whether a writer has nothing left to do; or cannot do it.
    fn has_written(&self, writer: &Writer) -> bool {
        writer.left == 0 && writer.wanted.is_none() || self.is_lost(writer.config.handle)
    }

    /// Whether the masters say that a chunk is lost.
    fn is_lost(&self, handle: ChunkHandle) -> bool {
        self.masters.state.is_lost(handle)
    }

    /// Whether the masters know a chunk no more.
    fn is_deleted(&self, handle: ChunkHandle) -> bool {
        self.masters.state.chunk(handle).is_none()
    }

    /// Whether no file has a chunk any more: it is lost, or its file was cut.
    fn is_without_file(&self, handle: ChunkHandle) -> bool {
        self.is_lost(handle) || self.is_dropped(handle)
    }

    /// Runs until something is so; panics with this sentence if it never is.
    fn run_until(&mut self, or_else: &str, done: impl Fn(&World) -> bool) {
        const EVENTS_MAX: u64 = 300_000;
        for _ in 0..EVENTS_MAX {
            if done(self) {
                return;
            }
            self.next();
        }
        panic!("stuck: {or_else}");
    }

    /// Everybody is there, in session, and all chunks have all their members.
    fn is_well(&self) -> bool {
        let now = self.now;
        let well = |s: &Server| s.node.is_some() && s.paused.is_none() && s.deaf_until <= now;
        let gone = |s: &Server| s.lost && self.masters.state.is_given_up(s.id);
        self.masters_lead()
            && self.cuts.is_empty()
            && self.masters.state.draining().next().is_none()
            && self.masters.state.moving().next().is_none()
            && self.servers.iter().all(|s| gone(s) || well(s) && self.is_up(s.id))
            && self.handles.iter().all(|h| self.is_whole(*h))
            && self.masters.state.forks().all(|h| self.is_whole(h))
            && self.clones_are_over()
            && self.truncations_are_over()
            && self.cloned().into_iter().all(|h| self.is_whole(h))
    }

    /// Whether the chunk has all its members, none of them given up, and no attempt to make one is
    /// under way; or it will never have any again.
    fn is_whole(&self, handle: ChunkHandle) -> bool {
        if self.is_lost(handle) || self.is_deleted(handle) {
            return true;
        }
        let members = self.config(handle).members;
        members.len() == self.plan.options.replicas as usize
            && !members.iter().any(|m| self.masters.state.is_given_up(*m))
            && self.masters.state.repair(handle).is_none()
    }

    /// The next event.
    fn next(&mut self) {
        let Queued { at, event, .. } = self.queue.pop().expect("the steward never ends");
        self.now = self.now.max(at);
        self.mend_what_is_over();
        if let Some((n, life)) = event.process() {
            if let Some(end) = self.servers[n].paused {
                // In the order in which they would have come.
                return self.at(end + Span(1), event);
            }
            if self.servers[n].life != life {
                return;
            }
        }
        match event {
            Event::Fault { number } => {
                self.faults_left -= 1;
                self.befall(self.plan.faults[number].what.clone());
            }
            Event::Step { store, input, .. } => self.step(store, *input),
            Event::Disk { store, op, .. } => {
                let done = self.servers[store].disk.perform(op);
                self.step(store, Input::Disk(done));
            }
            Event::Wake { store, .. } => {
                self.servers[store].woken_at = None;
                self.step(store, Input::Wake);
            }
            Event::Restart { store } => {
                if self.servers[store].node.is_none() && !self.servers[store].lost {
                    self.restart(store);
                }
            }
            Event::Client { client } => self.client(client),
            Event::Read => self.begin_read(),
            Event::Locate => self.begin_locate(),
            Event::ReadHere { store, life, told } => self.read_here(store, life, *told),
            Event::Register { store, .. } => self.register(store),
            Event::Beat { store, session, .. } => self.beat(store, session),
            Event::Heard { store, life, session, sent, confirmed, snapshot } => {
                // Of one that died meanwhile the session is as good as over: nothing comes of it.
                if self.servers[store].life == life {
                    self.heard(store, session, sent, confirmed, snapshot);
                }
            }
            Event::Renewed { store, renewal, orders, heard, cut, .. } => {
                self.renewed(store, *renewal, orders, (heard, cut))
            }
            Event::Lapsed { store, session, .. } => {
                if self.servers[store].session == session {
                    self.register(store);
                }
            }
            Event::Ask { store, life, session, ask, since } => {
                if self.servers[store].life == life {
                    self.asked(store, session, ask, since);
                }
            }
            Event::CloneOver { number } => self.clone_is_over(number),
            Event::Truncator { number } => self.truncator(number),
            Event::Tend => self.tend(),
            Event::Undrain { store } => self.drain(store, false),
            Event::GiveUp { store } => self.give_up(store),
        }
    }

    /// Kills everything at once, and starts it again.
    pub fn kill_all(&mut self) {
        for n in 0..self.servers.len() {
            self.kill(n, self.plan.options.power, true);
        }
        for n in 0..self.servers.len() {
            if !self.servers[n].lost {
                self.restart(n);
            }
        }
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
        Peer::Fork { .. } => "Fork",
        Peer::Forked { .. } => "Forked",
    }
}
