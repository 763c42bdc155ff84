//! A model check: every state that the replica core can come to within small bounds. One chunk with
//! three members, writers that append, a crash: whatever can happen next is tried in every order,
//! and each new state is checked. The nodes, their stores and the masters' state machine are the
//! real ones. Depth first; states are told apart by a hash of all that they are.
//!
//! What is left out, for the states to be few: time stands still until nothing else can happen (then
//! the earliest timer goes off), the masters decide at once, a session ends with its process, and
//! appends are small: they travel in the request and in the primary's messages, not along a chain.

use crate::disk::MemDisk;
use crate::run::quietly;
use crate::world::{empty_disk, open, register, small_store};
use bytes::Bytes;
use chunkserver_core::Node;
use chunkserver_core::io::{Ask, DiskOp, Input, MasterAsk, Output};
use chunkserver_core::store::StoreConfig;
use common::limits::ORDERS_MAX;
use common::wire::chunk_master::StoreReply;
use common::wire::client_chunk::{ClientChunk, ClientChunkReply};
use common::wire::client_master::{MasterReply, Mutation, Owner};
use common::wire::{ChunkConfig, Piece};
use common::{ChunkHandle, ClientId, Code, Refusal, RequestId, SessionId, Span, StoreId, Time};
use foldhash::quality::{FixedState, FoldHasher};
use master_core::{Command, Entry, Metadata, Reply};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt::{Debug, Write};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

/// How far the check goes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Writers; each has one append under way at a time.
    pub writers: u8,
    /// Appends of each.
    pub writes: u8,
    /// Crashes, each of any store at any moment, which comes back at any moment.
    pub crashes: u8,
    /// Answers to writers that are lost.
    pub answers_lost: u8,
    /// Whether disk operations are steps of their own, so that a crash comes between them and takes
    /// with it what was not flushed.
    pub disk: bool,
    /// Whether a store that was removed and is back becomes a member again.
    pub repair: bool,
    /// More states than this are too many.
    pub states_max: u64,
}

/// What a check that found nothing came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Different states.
    pub states: u64,
    /// Steps between them.
    pub steps: u64,
    /// States in which everything has come to rest.
    pub ends: u64,
    /// The longest way to a state.
    pub depth: u64,
}

/// A way to a state that must not be.
#[derive(Clone, Debug)]
pub struct Wrong {
    /// What is wrong with it.
    pub what: String,
    /// The steps.
    pub path: Vec<String>,
}

/// Stores, and members of the chunk.
const STORES: u32 = 3;
/// When everything begins; and sessions last for ever.
const BEGINNING: Time = Time(1_000_000_000);
const FOR_EVER: Time = Time(u64::MAX / 4);
/// Timers that go off one after another before everything must be at rest.
const FIRES_MAX: u32 = 400;
/// The same while a store is down: what can be done without it is done by then.
const FIRES_DOWN_MAX: u32 = 3;
/// Connections of writers have their numbers; that of whoever checks has this one.
const CHECKER: u64 = u64::MAX;
const MASTER_CLIENT: ClientId = ClientId(0xface);

#[derive(Clone)]
struct Server {
    config: StoreConfig,
    node: Option<Node>,
    disk: MemDisk,
    life: u64,
    session: SessionId,
    /// Operations that the disk has not done yet.
    ops: VecDeque<DiskOp>,
    hash: u64,
}

impl Server {
    fn rehash(&mut self) {
        self.hash = hash_of(&(
            &self.node,
            FixedState::default().hash_one(&self.disk),
            self.life,
            self.session,
            &self.ops,
        ));
    }
}

#[derive(Clone, Debug)]
struct Writer {
    seq: u64,
    waits: bool,
    /// The life of the store that was asked: if it ends, nobody answers.
    asked: (usize, u64),
    /// Nobody will answer what it asked; or it was refused, then.
    forlorn: bool,
    refused_at: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Acked {
    offset: u64,
    writer: u8,
    seq: u64,
}

#[derive(Clone)]
struct State {
    now: Time,
    servers: Vec<Arc<Server>>,
    masters: Metadata,
    requests: u64,
    /// What is under way from a store to another, by class.
    wires: BTreeMap<(usize, usize, bool), VecDeque<Input>>,
    /// From writers to stores.
    asks: BTreeMap<(u8, usize), VecDeque<Input>>,
    /// From stores to writers.
    replies: BTreeMap<u8, VecDeque<(u64, ClientChunkReply)>>,
    /// From the masters to stores.
    answers: BTreeMap<usize, VecDeque<Vec<Input>>>,
    writers: Vec<Writer>,
    acked: Vec<Acked>,
    crashes: u8,
    answers_lost: u8,
    fires: u32,
}

/// What can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Deliver(usize, usize, bool),
    Ask(u8, usize),
    Reply(u8),
    LoseReply(u8),
    Answer(usize),
    Disk(usize),
    Crash(usize),
    Restart(usize),
    Retry(u8),
    Repair,
    Fire,
}

struct HashWriter(FoldHasher<'static>);

impl Write for HashWriter {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

fn hash_of(what: &impl Debug) -> u64 {
    let mut writer = HashWriter(FixedState::default().build_hasher());
    write!(writer, "{what:?}").expect("hashing does not fail");
    writer.0.finish()
}

/// Tries everything within the bounds.
pub fn check(bounds: &Bounds) -> Result<Found, Box<Wrong>> {
    let mut path = vec![];
    let done = quietly(|| explore(bounds, &mut path));
    done.map_err(|what| Box::new(Wrong { what, path }))
}

/// Depth first: the stack holds, for each state on the way, what is still to be tried there.
fn explore(bounds: &Bounds, path: &mut Vec<String>) -> Found {
    let mut seen = HashSet::new();
    let mut found = Found::default();
    let first = State::new(bounds);
    seen.insert(first.hash());
    let mut stack = vec![(first.clone(), first.actions(bounds))];
    while let Some((state, todo)) = stack.last_mut() {
        let Some(action) = todo.pop() else {
            stack.pop();
            path.pop();
            continue;
        };
        path.push(format!("{action:?}"));
        let mut next = state.clone();
        next.act(action, bounds);
        found.steps += 1;
        if !seen.insert(next.hash()) {
            path.pop();
            continue;
        }
        found.states += 1;
        found.depth = found.depth.max(path.len() as u64);
        assert!(found.states <= bounds.states_max, "more than {} states", bounds.states_max);
        next.check_reads();
        let todo = next.actions(bounds);
        if todo.is_empty() {
            next.check_end(bounds);
            found.ends += 1;
        }
        stack.push((next, todo));
    }
    found
}

fn record(writer: u8, seq: u64) -> Bytes {
    vec![writer * 16 + seq as u8 + 1; 8].into()
}

impl State {
    fn new(bounds: &Bounds) -> State {
        let mut state = State {
            now: BEGINNING,
            servers: vec![],
            masters: Metadata::new(),
            requests: 0,
            wires: BTreeMap::new(),
            asks: BTreeMap::new(),
            replies: BTreeMap::new(),
            answers: BTreeMap::new(),
            writers: vec![],
            acked: vec![],
            crashes: bounds.crashes,
            answers_lost: bounds.answers_lost,
            fires: 0,
        };
        for n in 0..STORES {
            // A segment is filled in one step: more of them are more orders of the same.
            let extent_segment_bytes = 4 * 1024 * 1024;
            let small = small_store(1000 + n as u64, 0);
            let config = StoreConfig { scrub_period_s: 1 << 40, extent_segment_bytes, ..small };
            let disk = empty_disk(&config);
            let server = Server {
                config,
                node: None,
                disk,
                life: 0,
                session: SessionId(0),
                ops: VecDeque::new(),
                hash: 0,
            };
            state.servers.push(Arc::new(server));
        }
        for n in 0..STORES as usize {
            state.restart(n);
            state.act(Action::Answer(n), bounds);
        }
        let create = Mutation::Create {
            path: b"/f".to_vec(),
            mode: 0o644,
            owner: Owner::default(),
            exclusive: true,
            parents: false,
            chunk: true,
            near: String::new(),
        };
        let made = state.mutate(create);
        assert!(matches!(made, MasterReply::Opened { chunk: Some(_), .. }), "no chunk");
        for writer in 0..bounds.writers {
            state.writers.push(Writer {
                seq: 0,
                waits: false,
                asked: (0, 0),
                forlorn: false,
                refused_at: None,
            });
            state.begin_write(writer);
        }
        state
    }

    fn hash(&self) -> u64 {
        let servers: Vec<u64> = self.servers.iter().map(|s| s.hash).collect();
        let wires: Vec<_> = self.wires.iter().filter(|(_, queue)| !queue.is_empty()).collect();
        let asks: Vec<_> = self.asks.iter().filter(|(_, queue)| !queue.is_empty()).collect();
        let replies: Vec<_> = self.replies.iter().filter(|(_, queue)| !queue.is_empty()).collect();
        let answers: Vec<_> = self.answers.iter().filter(|(_, queue)| !queue.is_empty()).collect();
        let handle = self.handle();
        let masters = (self.masters.chunk(handle), self.masters.repair(handle), self.masters.store_table());
        hash_of(&(
            (self.now, servers, wires, asks, replies, answers, masters),
            (&self.writers, &self.acked, self.crashes, self.answers_lost, self.fires),
        ))
    }

    // --- masters ---------------------------------------------------------------------------

    fn apply(&mut self, command: Command) -> Reply {
        let entry = Entry { stamp_ns: self.now.0, wall_ns: 0, salt: 0, command };
        let reply = self.masters.apply(&entry);
        self.masters.check();
        reply
    }

    fn mutate(&mut self, mutation: Mutation) -> MasterReply {
        self.requests += 1;
        let request = RequestId { client: MASTER_CLIENT, seq: self.requests };
        match self.apply(Command::Mutate { request, lowest: self.requests, mutation }) {
            Reply::Master(reply) => reply,
            Reply::Store(_) => panic!("a mutation has a client's answer"),
        }
    }

    fn handle(&self) -> ChunkHandle {
        ChunkHandle::new(0, 1)
    }

    fn config(&self) -> ChunkConfig {
        self.masters.config(self.handle()).expect("the chunk is there")
    }

    fn config_of(&mut self, command: Command) -> Result<ChunkConfig, Refusal> {
        match self.apply(command) {
            Reply::Store(StoreReply::Config(config)) => Ok(config),
            Reply::Store(StoreReply::Refused { refusal, .. }) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    fn is_up(&self, id: StoreId) -> bool {
        self.servers[id.0 as usize - 1].node.is_some()
    }

    fn answer(&mut self, n: usize, ask: MasterAsk) -> Result<ChunkConfig, Refusal> {
        let handle = ask.handle;
        let store = StoreId(n as u32 + 1);
        let config = self.masters.config(handle)?;
        let theirs = |epoch| config.epoch != epoch || config.primary != store;
        match ask.what {
            Ask::Confirm => Ok(config),
            Ask::Takeover { epoch } | Ask::Silent { epoch, .. } if theirs(epoch) => Ok(config),
            Ask::Takeover { epoch } => {
                self.config_of(Command::Reconfigure { handle, epoch, remove: vec![], primary: Some(store) })
            }
            Ask::Silent { accused, .. } if self.is_up(accused) => {
                Err(Refusal::new(Code::Busy, "it is alive"))
            }
            Ask::Silent { epoch, accused } => {
                self.config_of(Command::Reconfigure { handle, epoch, remove: vec![accused], primary: None })
            }
            Ask::Slow { .. } => panic!("time stands still, and {store} finds somebody slow"),
            Ask::Fork { .. } | Ask::Forked { .. } => {
                panic!("{store} asks for a fork, and there is no snapshot")
            }
            Ask::Corrupt { .. } => panic!("{store} finds rot, and there is none"),
            Ask::Join { epoch, learner, attempt } => {
                self.config_of(Command::Join { handle, epoch, learner, attempt })
            }
            Ask::Seal { epoch, length, .. } => self.config_of(Command::Seal { handle, epoch, length }),
        }
    }

    /// Orders, attempts and the session, as a heartbeat's answer brings them.
    fn renew(&mut self, n: usize) {
        let store = StoreId(n as u32 + 1);
        let (orders, _) = self.masters.orders_for(store, ORDERS_MAX);
        let repairs = self.masters.repairs_for(store);
        let session = self.servers[n].session;
        let orders = (!orders.is_empty()).then_some(Input::Orders(orders));
        let rest = [
            Input::Repairs(repairs),
            Input::Session { session, until: FOR_EVER, next_chunk: ChunkHandle(0) },
        ];
        self.answers.entry(n).or_default().push_back(orders.into_iter().chain(rest).collect());
    }

    // --- processes -------------------------------------------------------------------------

    fn restart(&mut self, n: usize) {
        let store = StoreId(n as u32 + 1);
        let server = Arc::make_mut(&mut self.servers[n]);
        server.life += 1;
        server.config.incarnation = server.life;
        let recovered = open(server.config.clone(), &mut server.disk);
        let recovered = recovered.unwrap_or_else(|e| panic!("{store}: {e}"));
        server.node = Some(Node::new(store, recovered));
        let (life, known) = (server.life, server.session != SessionId(0));
        let register = register(n, known.then_some(store), life);
        let Reply::Store(StoreReply::Registered { session, .. }) = self.apply(Command::Register(register))
        else {
            panic!("refused");
        };
        Arc::make_mut(&mut self.servers[n]).session = session;
        self.answers.remove(&n);
        self.renew(n);
        for other in (0..STORES as usize).filter(|other| *other != n) {
            if self.servers[other].node.is_some() && life > 1 {
                self.send(n, other, false, Input::PeerReset { peer: store });
            }
        }
        Arc::make_mut(&mut self.servers[n]).rehash();
    }

    /// The process and its machine's power: what was not flushed is gone, and so is what was under
    /// way to it. What it sent before still arrives.
    fn crash(&mut self, n: usize) {
        let (store, session) = (StoreId(n as u32 + 1), self.servers[n].session);
        let server = Arc::make_mut(&mut self.servers[n]);
        server.node = None;
        server.ops.clear();
        server.disk.lose_unflushed();
        server.rehash();
        self.apply(Command::StoreDown { store, session });
        self.wires.retain(|(_, to, _), _| *to != n);
        self.asks.retain(|(_, to), _| *to != n);
        self.answers.remove(&n);
        let life = self.servers[n].life;
        for writer in self.writers.iter_mut().filter(|w| w.waits && w.asked == (n, life)) {
            writer.forlorn = true;
        }
        for other in (0..STORES as usize).filter(|other| *other != n) {
            if self.servers[other].node.is_some() {
                self.send(n, other, false, Input::PeerLost { peer: store });
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, bulk: bool, input: Input) {
        self.wires.entry((from, to, bulk)).or_default().push_back(input);
    }

    fn step(&mut self, n: usize, input: Input, bounds: &Bounds) {
        let now = self.now;
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let server = Arc::make_mut(&mut self.servers[n]);
            let node = server.node.as_mut().expect("it runs");
            let mut out = vec![];
            node.step(now, input, &mut out);
            node.check();
            for output in out {
                match output {
                    Output::Disk(op) if bounds.disk => {
                        Arc::make_mut(&mut self.servers[n]).ops.push_back(op);
                    }
                    Output::Disk(op) => {
                        let done = Arc::make_mut(&mut self.servers[n]).disk.perform(op);
                        inputs.push_back(Input::Disk(done));
                    }
                    other => self.output(n, other),
                }
            }
        }
        Arc::make_mut(&mut self.servers[n]).rehash();
    }

    fn output(&mut self, n: usize, output: Output) {
        let from = StoreId(n as u32 + 1);
        match output {
            Output::Peer { to, msg, data } => {
                assert_eq!(msg.invalid(), None, "{from} says what {to} will not hear: {msg:?}");
                let to_n = to.0 as usize - 1;
                match self.is_up(to) {
                    true => {
                        let (bulk, data) = (msg.is_bulk(), data.concat().into());
                        self.send(n, to_n, bulk, Input::Peer { from, snapshot: 0, msg, data });
                    }
                    false => self.send(to_n, n, false, Input::PeerLost { peer: to }),
                }
            }
            Output::Reply { conn, request, msg, .. } => {
                self.replies.entry(conn as u8).or_default().push_back((request, msg));
            }
            Output::Master(ask) => {
                let answer = self.answer(n, ask);
                let input = Input::Master { handle: ask.handle, number: ask.number, answer };
                self.answers.entry(n).or_default().push_back(vec![input]);
            }
            Output::Confirmed(orders) => {
                let session = self.servers[n].session;
                self.apply(Command::Confirmed { store: from, session, orders });
            }
            Output::Failed(why) => panic!("a disk that does not fail has failed: {why}"),
            Output::Disk(_) => unreachable!("done by whoever calls"),
            // Nobody looks at the board.
            Output::Post(_) => {}
        }
    }

    // --- writers ---------------------------------------------------------------------------

    fn begin_write(&mut self, w: u8) {
        let writer = &mut self.writers[w as usize];
        writer.seq += 1;
        writer.waits = true;
        self.send_write(w);
    }

    /// Asks the masters how the chunk is, and its primary to append.
    fn send_write(&mut self, w: u8) {
        let config = self.config();
        let (store, seq) = (config.primary, self.writers[w as usize].seq);
        let n = store.0 as usize - 1;
        let data = record(w, seq);
        let msg = ClientChunk::Write {
            request: RequestId { client: ClientId(w as u128 + 1), seq },
            lowest: seq,
            handle: config.handle,
            offset: None,
            len: data.len() as u32,
            inline: Some(Piece::of(&data)),
            create: (config.epoch.number() == 1).then(|| config.clone()),
        };
        let input =
            Input::Client { conn: w as u64, request: seq, epoch: config.epoch, snapshot: 0, msg, data };
        let life = self.servers[n].life;
        let writer = &mut self.writers[w as usize];
        (writer.asked, writer.forlorn, writer.refused_at) = ((n, life), false, None);
        match self.is_up(store) {
            true => self.asks.entry((w, n)).or_default().push_back(input),
            false => self.writers[w as usize].forlorn = true,
        }
    }

    /// Nobody answers: if the primary is down, another one leads.
    fn retry(&mut self, w: u8) {
        let config = self.config();
        if !self.is_up(config.primary) {
            // Too few may be left: then the chunk is frozen until somebody is back.
            let _ = self.config_of(Command::Reconfigure {
                handle: config.handle,
                epoch: config.epoch,
                remove: vec![config.primary],
                primary: None,
            });
        }
        self.send_write(w);
        if !self.is_up(self.config().primary) {
            // Not before something else has happened.
            (self.writers[w as usize].forlorn, self.writers[w as usize].refused_at) =
                (false, Some(self.now.0));
        }
    }

    fn reply(&mut self, w: u8, request: u64, msg: ClientChunkReply, bounds: &Bounds) {
        let now = self.now;
        let writer = &mut self.writers[w as usize];
        if !writer.waits || writer.seq != request {
            return;
        }
        match msg {
            ClientChunkReply::Written { offset, .. } => {
                let seq = writer.seq;
                writer.waits = false;
                (writer.forlorn, writer.refused_at) = (false, None);
                self.acked.push(Acked { offset, writer: w, seq });
                self.acked.sort();
                if seq < bounds.writes as u64 {
                    self.begin_write(w);
                }
            }
            ClientChunkReply::Refused(_) => writer.refused_at = Some(now.0),
            other => panic!("a write is answered with {other:?}"),
        }
    }

    // --- steps -----------------------------------------------------------------------------

    fn actions(&self, bounds: &Bounds) -> Vec<Action> {
        let mut actions = vec![];
        let waiting = |queue: &VecDeque<Input>| !queue.is_empty();
        let wires = self.wires.iter().filter(|(_, queue)| waiting(queue));
        actions.extend(wires.map(|((from, to, bulk), _)| Action::Deliver(*from, *to, *bulk)));
        actions.extend(self.asks.iter().filter(|(_, q)| waiting(q)).map(|((w, n), _)| Action::Ask(*w, *n)));
        for (w, _) in self.replies.iter().filter(|(_, queue)| !queue.is_empty()) {
            actions.push(Action::Reply(*w));
            if self.answers_lost > 0 {
                actions.push(Action::LoseReply(*w));
            }
        }
        actions.extend(self.answers.iter().filter(|(_, q)| !q.is_empty()).map(|(n, _)| Action::Answer(*n)));
        for (n, server) in self.servers.iter().enumerate() {
            actions.extend((!server.ops.is_empty()).then_some(Action::Disk(n)));
        }
        for (w, writer) in self.writers.iter().enumerate().filter(|(_, writer)| writer.waits) {
            let refused = writer.refused_at.is_some_and(|at| at < self.now.0);
            actions.extend((writer.forlorn || refused).then_some(Action::Retry(w as u8)));
        }
        let at_rest = actions.is_empty();
        let mut down = false;
        for (n, server) in self.servers.iter().enumerate() {
            if server.node.is_none() {
                down = true;
                actions.push(Action::Restart(n));
            } else if self.crashes > 0 && !self.is_over(bounds) {
                actions.push(Action::Crash(n));
            }
        }
        if bounds.repair && self.wants_repair() {
            actions.push(Action::Repair);
        }
        let fires = if down { FIRES_DOWN_MAX } else { FIRES_MAX };
        if at_rest && !self.is_over(bounds) && self.fires < fires {
            actions.push(Action::Fire);
        }
        actions
    }

    /// Everything is acknowledged, everybody is there, and every member serves it.
    fn is_over(&self, bounds: &Bounds) -> bool {
        let all = bounds.writers as usize * bounds.writes as usize;
        let whole = !bounds.repair || self.config().members.len() == STORES as usize;
        self.acked.len() == all
            && self.servers.iter().all(|s| s.node.is_some())
            && whole
            && self.config().members.iter().all(|m| self.read(*m).is_some())
    }

    fn wants_repair(&self) -> bool {
        let handle = self.handle();
        self.config().members.len() < STORES as usize
            && self.masters.repair(handle).is_none()
            && self.servers.iter().all(|s| s.node.is_some())
    }

    fn act(&mut self, action: Action, bounds: &Bounds) {
        if matches!(action, Action::Crash(_) | Action::Restart(_) | Action::Reply(_)) {
            self.fires = 0;
        }
        match action {
            Action::Deliver(from, to, bulk) => {
                let input = pop(self.wires.get_mut(&(from, to, bulk)));
                self.step(to, input, bounds);
            }
            Action::Ask(w, n) => {
                let input = pop(self.asks.get_mut(&(w, n)));
                self.step(n, input, bounds);
            }
            Action::Reply(w) => {
                let (request, msg) = pop(self.replies.get_mut(&w));
                self.reply(w, request, msg, bounds);
            }
            Action::LoseReply(w) => {
                let _ = pop(self.replies.get_mut(&w));
                self.answers_lost -= 1;
                self.writers[w as usize].forlorn = true;
            }
            Action::Answer(n) => {
                for input in pop(self.answers.get_mut(&n)) {
                    self.step(n, input, bounds);
                }
            }
            Action::Disk(n) => {
                let server = Arc::make_mut(&mut self.servers[n]);
                let op = server.ops.pop_front().expect("enabled");
                let done = server.disk.perform(op);
                self.step(n, Input::Disk(done), bounds);
            }
            Action::Crash(n) => {
                self.crashes -= 1;
                self.crash(n);
            }
            Action::Restart(n) => self.restart(n),
            Action::Retry(w) => self.retry(w),
            Action::Repair => {
                let (handle, epoch) = (self.handle(), self.config().epoch);
                // It may be that a copy must go first.
                let _ = self.apply(Command::BeginRepair { handle, epoch });
                (0..STORES as usize).for_each(|n| self.renew(n));
            }
            Action::Fire => {
                self.fires += 1;
                let due = self.servers.iter().filter_map(|s| s.node.as_ref()?.deadline()).min();
                self.now = due.unwrap_or(self.now).max(self.now + Span(1));
                for n in 0..STORES as usize {
                    if self.servers[n].node.is_some() {
                        self.step(n, Input::Wake, bounds);
                        if !self.masters.orders_for(StoreId(n as u32 + 1), 1).0.is_empty() {
                            self.renew(n);
                        }
                    }
                }
            }
        }
    }

    // --- what must hold --------------------------------------------------------------------

    /// The whole chunk as a member serves it at once; nothing if it refuses or must ask first.
    fn read(&self, store: StoreId) -> Option<Vec<u8>> {
        let server = &self.servers[store.0 as usize - 1];
        let (mut node, mut disk) = (server.node.clone()?, server.disk.clone());
        let epoch = node.chunk_view(self.handle())?.config.epoch;
        let msg = ClientChunk::Read { handle: self.handle(), offset: 0, len: 4096, stale: false };
        let read = Input::Client { conn: CHECKER, request: 0, epoch, snapshot: 0, msg, data: Bytes::new() };
        let mut inputs = VecDeque::from([read]);
        while let Some(input) = inputs.pop_front() {
            let mut out = vec![];
            node.step(self.now, input, &mut out);
            for output in out {
                match output {
                    Output::Disk(op) => inputs.push_back(Input::Disk(disk.perform(op))),
                    Output::Reply { conn: CHECKER, msg: ClientChunkReply::Data { .. }, data, .. } => {
                        return Some(data.concat());
                    }
                    Output::Master(MasterAsk { handle, number, what: Ask::Confirm }) => {
                        inputs.push_back(Input::Master { handle, number, answer: Ok(self.config()) });
                    }
                    _ => {}
                }
            }
        }
        None
    }

    /// P2: whoever serves a read serves all that was acknowledged before.
    fn check_reads(&self) {
        for n in 1..=STORES {
            let Some(bytes) = self.read(StoreId(n)) else { continue };
            for Acked { offset, writer, seq } in &self.acked {
                let (wanted, at) = (record(*writer, *seq), *offset as usize);
                let got = bytes.get(at..at + wanted.len());
                assert_eq!(got, Some(&wanted[..]), "s{n} serves a read without {writer}/{seq} at {at}");
            }
        }
    }

    /// P1, P3: nothing can happen any more, and everything is acknowledged, each record once, the
    /// same at every member.
    fn check_end(&self, bounds: &Bounds) {
        assert!(
            self.is_over(bounds),
            "stuck: {:?} acknowledged, {:?}, writers {:?}, served {:?}",
            self.acked,
            self.config(),
            self.writers,
            self.config().members.iter().map(|m| self.read(*m)).collect::<Vec<_>>()
        );
        let all: Vec<u8> = self.acked.iter().flat_map(|a| record(a.writer, a.seq)).collect();
        for member in self.config().members {
            let bytes = self.read(member).expect("it is over");
            assert_eq!(bytes, all, "{member} serves something else than what was acknowledged, in order");
        }
    }
}

fn pop<T>(queue: Option<&mut VecDeque<T>>) -> T {
    queue.and_then(|q| q.pop_front()).expect("enabled")
}
