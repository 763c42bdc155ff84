//! The masters: the real state machine under a log that never fails, and around it what a leader
//! counts by its own clock - sessions, complaints - as `master/src/rpc` and its steward do.

use super::{Carrying, Event, LATE_BY, World, register};
use chunkserver_core::io::{Ask, Input, MasterAsk};
use common::limits::{DRIFT_PERCENT, HEARTBEAT_MS, ORDERS_MAX, SESSION_MS};
use common::wire::ChunkConfig;
use common::wire::chunk_master::{CutsHeard, Order, StoreReply};
use common::wire::client_master::{MasterReply, Mutation};
use common::{ChunkHandle, ClientId, Code, Epoch, Refusal, RequestId, SessionId, Span, StoreId, Time};
use master_core::{
    Command, Complaint, Decision, Entry, Metadata, Reply, Standing, Store, StoreState, Suspicion, Verdict,
};
use rand::RngExt;
use std::collections::BTreeMap;

/// A store that was heard of within this is not taken for dead at once.
const ALIVE: Span = Span::from_ms(600);
/// A question is given up after this, and asked again after that.
const ASK_LIMIT: Span = Span::from_ms(5000);
const ASK_AGAIN: Span = Span::from_ms(50);
/// How many answers to questions are lost on their way.
const ANSWERS_LOST: f64 = 0.02;
/// How many answers are late on their way.
const ANSWERS_LATE: f64 = 0.02;
/// How often a chunk is moved for no reason.
const MOVES: f64 = 0.002;
/// Who makes the files.
const MASTER_CLIENT: ClientId = ClientId(0xface);

/// What the leader knows.
#[derive(Default)]
pub(super) struct Masters {
    pub state: Metadata,
    requests: u64,
    /// Since when this leader counts; nobody leads before `away_until`.
    began: Time,
    pub away_until: Time,
    renewed: BTreeMap<StoreId, (SessionId, Time)>,
    suspicion: Suspicion,
    /// Each leader has another.
    term: u64,
}

impl World {
    pub(super) fn apply(&mut self, command: Command) -> Reply {
        let salt = self.rng.random();
        let entry = Entry { stamp_ns: self.now.0, wall_ns: 0, salt, command };
        let reply = self.masters.state.apply(&entry);
        self.masters.state.check();
        reply
    }

    pub(super) fn mutate(&mut self, mutation: Mutation) -> MasterReply {
        self.masters.requests += 1;
        let seq = self.masters.requests;
        let request = RequestId { client: MASTER_CLIENT, seq };
        match self.apply(Command::Mutate { request, lowest: seq, mutation }) {
            Reply::Master(reply) => reply,
            Reply::Store(_) => panic!("a mutation has a client's answer"),
        }
    }

    /// A server is drained, or that is taken back.
    pub(super) fn drain(&mut self, n: usize, on: bool) {
        let server = self.masters.state.store(self.servers[n].id).expect("it has registered").server;
        self.trace.push(format!("{} drain {n} {on}", self.now.0));
        self.mutate(Mutation::Drain { server, on });
    }

    /// Somebody says that a store will never come back, as soon as the masters hear it.
    pub(super) fn give_up(&mut self, n: usize) {
        let store = self.servers[n].id;
        if !self.masters_lead() || self.is_up(store) {
            return self.at(self.now + ASK_AGAIN, Event::GiveUp { store: n });
        }
        self.trace.push(format!("{} give up {n}", self.now.0));
        assert_eq!(self.mutate(Mutation::GiveUp { store }), MasterReply::Done);
    }

    /// Whether somebody leads.
    pub(super) fn masters_lead(&self) -> bool {
        self.now >= self.masters.away_until
    }

    /// Nobody leads for some time; then somebody who has counted no session.
    pub(super) fn election(&mut self, ms: u64) {
        self.masters.away_until = self.masters.away_until.max(self.now + Span::from_ms(ms));
        self.masters.began = self.masters.away_until;
        self.masters.renewed.clear();
        self.masters.suspicion = Suspicion::default();
        self.masters.term += 1;
    }

    fn silent_for(&self, store: StoreId, session: SessionId) -> Span {
        let heard = self.masters.renewed.get(&store).filter(|(s, _)| *s == session).map(|(_, at)| *at);
        self.now.since(heard.unwrap_or(self.masters.began))
    }

    /// Whether the masters take a store for alive.
    pub(super) fn is_up(&self, id: StoreId) -> bool {
        self.masters.state.store(id).is_some_and(|s| s.session().is_some())
    }

    /// How the masters say the chunk is.
    pub(super) fn config(&self, handle: ChunkHandle) -> ChunkConfig {
        self.masters.state.config(handle).expect("the chunk is not deleted")
    }

    /// How long a new primary must wait for those that were removed.
    fn with_wait(&self, mut config: ChunkConfig) -> ChunkConfig {
        let removed = self.masters.state.removed_from(config.handle);
        let left = |(store, session): &(StoreId, SessionId)| {
            Span(Span::from_ms(SESSION_MS).0.saturating_sub(self.silent_for(*store, *session).0)).ms_up()
        };
        config.wait_ms = removed.iter().map(left).max().unwrap_or(0);
        config
    }

    // --- sessions --------------------------------------------------------------------------

    /// A store asks for a session; it asks again until somebody leads and hears it.
    pub(super) fn register(&mut self, n: usize) {
        let (id, life) = (self.servers[n].id, self.servers[n].life);
        if !self.masters_lead() || self.is_deaf(n) {
            return self.at(self.now + ASK_AGAIN, Event::Register { store: n, life });
        }
        let known = life > 1 || self.servers[n].session != SessionId(0);
        let register = register(n, known.then_some(id), life);
        let Reply::Store(StoreReply::Registered { store, session, next_chunk, .. }) =
            self.apply(Command::Register(register))
        else {
            panic!("refused");
        };
        assert_eq!(store, id);
        self.masters.renewed.insert(id, (session, self.now));
        let server = &mut self.servers[n];
        server.node.as_mut().expect("it asks").begins_with(next_chunk);
        (server.session, server.carrying, server.done) = (session, None, vec![]);
        self.later(Event::Beat { store: n, life, session });
    }

    /// A store's heartbeat: on its way at the store's own time.
    pub(super) fn beat(&mut self, n: usize, session: SessionId) {
        let life = self.servers[n].life;
        if self.servers[n].session != session {
            return;
        }
        let early = Span(self.rng.random_range(0..Span::from_ms(HEARTBEAT_MS).0 / 4));
        let next = self.now + Span::from_ms(HEARTBEAT_MS) - early;
        self.at(next, Event::Beat { store: n, life, session });
        if self.servers[n].carrying.is_none() {
            let sent = self.local(n);
            let confirmed = self.servers[n].done.clone();
            let snapshot = self.servers[n].node.as_ref().map_or(0, |node| node.snapshot());
            self.later(Event::Heard { store: n, life, session, sent, confirmed, snapshot });
        }
    }

    /// The leader hears a heartbeat.
    pub(super) fn heard(
        &mut self,
        n: usize,
        session: SessionId,
        sent: Time,
        confirmed: Vec<Order>,
        known: u64,
    ) {
        let (store, life) = (self.servers[n].id, self.servers[n].life);
        if !self.masters_lead() || self.is_deaf(n) {
            return;
        }
        let received = self.now;
        let up = |world: &World| {
            world.masters.state.store(store).is_some_and(|s| s.state == StoreState::Up(session))
        };
        if !up(self) {
            return self.later(Event::Lapsed { store: n, life, session });
        }
        if !confirmed.is_empty() {
            self.apply(Command::Confirmed { store, session, orders: confirmed });
        }
        self.masters.renewed.insert(store, (session, received));
        self.knows_snapshot(store, session, known);
        let (orders, all) = self.masters.state.orders_for(store, ORDERS_MAX);
        let repairs = self.masters.state.repairs_for(store);
        let held = if all { SESSION_MS * (100 - DRIFT_PERCENT) / 100 } else { 0 };
        let until = sent + Span::from_ms(held);
        let snapshot = self.masters.state.last_snapshot();
        let next_chunk = self.masters.state.next_chunk();
        let server = &self.servers[n];
        let (heard, cut) = self.masters.state.cuts_for(server.id, self.masters.term, server.heard);
        let left = orders.len();
        let renewal = Box::new(Carrying { left, session, until, repairs, snapshot, next_chunk });
        self.later(Event::Renewed { store: n, life, renewal, orders, heard, cut });
    }

    /// A store hears that its session goes on; first it carries out what it was told to.
    pub(super) fn renewed(
        &mut self,
        n: usize,
        renewal: Carrying,
        orders: Vec<Order>,
        (heard, cut): (CutsHeard, Option<Vec<ChunkHandle>>),
    ) {
        if self.servers[n].session != renewal.session || self.is_deaf(n) {
            return;
        }
        self.servers[n].heard = heard;
        self.step(n, Input::Cut(cut));
        self.servers[n].done.clear();
        if orders.is_empty() {
            return self.carried(n, renewal);
        }
        self.servers[n].carrying = Some(renewal);
        self.step(n, Input::Orders(orders));
    }

    fn carried(&mut self, n: usize, renewal: Carrying) {
        let Carrying { session, until, repairs, snapshot, next_chunk, .. } = renewal;
        self.step(n, Input::Snapshot(snapshot));
        self.step(n, Input::Repairs(repairs));
        self.step(n, Input::Session { session, until, next_chunk });
    }

    /// A store has carried out orders, durably.
    pub(super) fn carried_out(&mut self, n: usize, orders: Vec<Order>) {
        let server = &mut self.servers[n];
        server.done.extend(orders.iter().copied());
        let Some(carrying) = &mut server.carrying else { return };
        carrying.left = carrying.left.saturating_sub(orders.len());
        if carrying.left > 0 {
            return;
        }
        let renewal = server.carrying.take().expect("just seen");
        self.carried(n, renewal);
    }

    // --- questions -------------------------------------------------------------------------

    /// A question on its way: answered, lost, or given up.
    pub(super) fn asked(&mut self, n: usize, session: SessionId, ask: MasterAsk, since: Time) {
        let (MasterAsk { handle, number, .. }, life) = (ask, self.servers[n].life);
        let given_up = || Input::Master { handle, number, answer: Err(Code::Unavailable.into()) };
        if self.now.since(since) > ASK_LIMIT {
            return self.step(n, given_up());
        }
        let again = Event::Ask { store: n, life, session, ask, since };
        if !self.masters_lead() || self.is_deaf(n) {
            return self.at(self.now + ASK_AGAIN, again);
        }
        let input = match self.answer(self.servers[n].id, session, ask) {
            StoreReply::Config(config) => {
                Input::Master { handle, number, answer: Ok(self.with_wait(config)) }
            }
            StoreReply::Fork { to, snapshot } => {
                let Ask::Fork { epoch } = ask.what else { panic!("{ask:?} is answered with a fork") };
                Input::Fork { handle, number, epoch, to, snapshot }
            }
            StoreReply::Refused { refusal, .. } => Input::Master { handle, number, answer: Err(refusal) },
            other => panic!("{ask:?} is answered with {other:?}"),
        };
        if self.rng.random_bool(ANSWERS_LOST) {
            return self.at(self.now + ASK_AGAIN, again);
        }
        let answer = |input| Event::Step { store: n, life, input: Box::new(input) };
        if self.plan.options.late_answers && self.rng.random_bool(ANSWERS_LATE) {
            let late = self.now + Span(self.rng.random_range(LATE_BY.0..LATE_BY.1));
            return match late.since(since) > ASK_LIMIT {
                true => self.at(since + ASK_LIMIT, answer(given_up())),
                false => self.at(late, answer(input)),
            };
        }
        self.later(answer(input));
    }

    fn answer(&mut self, store: StoreId, session: SessionId, ask: MasterAsk) -> StoreReply {
        match self.masters.state.decide(&ask.request(store, session)) {
            Ok(Decision::Answer(reply)) => reply,
            Ok(Decision::Propose(command)) => self.apply_for_store(command),
            Ok(Decision::Count) => {
                let answer = self.complaint(ask, store);
                answer.unwrap_or_else(|refusal| StoreReply::Refused { refusal, leader: None })
            }
            Err(refusal) => StoreReply::Refused { refusal, leader: None },
        }
    }

    /// A client says that a primary does not answer: how the chunk is then.
    pub(super) fn primary_is_silent(&mut self, handle: ChunkHandle) -> ChunkConfig {
        let config = self.config(handle);
        let session = self.masters.state.store(config.primary).and_then(|s| s.session());
        if session.is_some_and(|session| self.silent_for(config.primary, session) < ALIVE) {
            return config;
        }
        let (epoch, primary) = (config.epoch, config.primary);
        self.reconfigure(handle, epoch, vec![primary], None).unwrap_or(config)
    }

    /// As `master/src/rpc/chunkserver.rs` has it.
    fn complaint(
        &mut self,
        MasterAsk { handle, what, .. }: MasterAsk,
        store: StoreId,
    ) -> Result<StoreReply, Refusal> {
        let (epoch, accused, complaint) = match what {
            Ask::Silent { epoch, accused } => (epoch, accused, Complaint::Silent),
            Ask::Slow { epoch, accused } => (epoch, accused, Complaint::Slow),
            Ask::Corrupt { epoch } => panic!("{store} finds rot at {epoch}, and there is none"),
            other => unreachable!("{other:?} is decided by the state"),
        };
        let config = self.masters.state.config(handle)?;
        if (config.epoch, config.primary) != (epoch, store) {
            return Ok(StoreReply::Config(config));
        }
        let remove = self.judge(store, accused, complaint, &config.members);
        if remove.is_empty() {
            return Err(Refusal::new(Code::Busy, "it is alive"));
        }
        Ok(self.apply_for_store(Command::Reconfigure { handle, epoch, remove, primary: None }))
    }

    fn judge(
        &mut self,
        accuser: StoreId,
        accused: StoreId,
        what: Complaint,
        members: &[StoreId],
    ) -> Vec<StoreId> {
        let standing = |(id, store): (StoreId, &Store)| match store.session() {
            Some(session) if self.silent_for(id, session) < ALIVE => (id, Standing::Live),
            _ => (id, Standing::Gone),
        };
        let standing: BTreeMap<_, _> = self.masters.state.all_stores().map(standing).collect();
        let Verdict { remove, doubt } =
            self.masters.suspicion.judge(self.now, accuser, &[accused], what, members, |id| standing[&id]);
        for store in doubt {
            self.apply(Command::Doubt { store, doubted: true });
        }
        remove
    }

    pub(super) fn reconfigure(
        &mut self,
        handle: ChunkHandle,
        epoch: Epoch,
        remove: Vec<StoreId>,
        primary: Option<StoreId>,
    ) -> Result<ChunkConfig, Refusal> {
        self.config_of(Command::Reconfigure { handle, epoch, remove, primary })
    }

    fn config_of(&mut self, command: Command) -> Result<ChunkConfig, Refusal> {
        match self.apply_for_store(command) {
            StoreReply::Config(config) => Ok(config),
            StoreReply::Refused { refusal, .. } => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    fn apply_for_store(&mut self, command: Command) -> StoreReply {
        match self.apply(command) {
            Reply::Store(reply) => reply,
            Reply::Master(_) => panic!("a store's command has a store's answer"),
        }
    }

    // --- the steward -----------------------------------------------------------------------

    /// What the steward does: ends sessions that have lapsed, removes who is down, begins attempts
    /// to make replicas, and gives up those whose target is down, and now and then any.
    pub(super) fn tend(&mut self) {
        let next = self.now + Span::from_ms(self.rng.random_range(5..40));
        self.at(next, Event::Tend);
        if !self.masters_lead() {
            return;
        }
        let up: Vec<(StoreId, SessionId)> =
            self.masters.state.all_stores().filter_map(|(id, s)| Some((id, s.session()?))).collect();
        for (store, session) in up {
            if self.silent_for(store, session) > Span::from_ms(SESSION_MS) {
                self.trace.push(format!("{} lapse {store}", self.now.0));
                self.apply(Command::StoreDown { store, session });
            }
        }
        let doubted = self.masters.state.all_stores().filter(|(_, s)| s.doubted).map(|(id, _)| id);
        for store in doubted.collect::<Vec<_>>() {
            if self.masters.suspicion.doubt_is_over(self.now, store) {
                self.apply(Command::Doubt { store, doubted: false });
            }
        }
        if self.plan.options.deletions > 0 {
            self.expire();
        }
        let forks: Vec<ChunkHandle> = self.masters.state.forks().collect();
        for handle in self.handles.clone().into_iter().chain(forks).chain(self.cloned()) {
            self.tend_chunk(handle);
        }
    }

    fn tend_chunk(&mut self, handle: ChunkHandle) {
        if self.is_deleted(handle) {
            return;
        }
        if self.is_lost(handle) {
            // What was begun with it comes to nothing.
            if let Some(repair) = self.masters.state.repair(handle) {
                self.apply(Command::EndRepair { handle, attempt: repair.attempt });
            }
            self.apply(Command::EndMove { handle });
            return;
        }
        let config = self.config(handle);
        let dead: Vec<StoreId> = config.members.iter().copied().filter(|m| !self.is_up(*m)).collect();
        if !dead.is_empty() && self.rng.random_bool(0.3) {
            // Too few may be left: then the chunk is frozen until somebody is back.
            let _ = self.reconfigure(handle, config.epoch, dead, None);
            return;
        }
        let chunk = self.masters.state.chunk(handle).expect("it is not deleted");
        let (want, staying) = (chunk.want as usize, self.masters.state.staying(handle, chunk));
        let leaving = self.masters.state.leaving(handle, chunk);
        if !leaving.is_empty() {
            let _ = self.reconfigure(handle, config.epoch, leaving, None);
            return;
        }
        match self.masters.state.repair(handle) {
            Some(repair) if !self.is_up(repair.target) || self.rng.random_bool(0.01) => {
                self.apply(Command::EndRepair { handle, attempt: repair.attempt });
            }
            Some(_) => {}
            // There may be no other place (any more).
            None if self.masters.state.moving().any(|(h, _)| h == handle) && self.rng.random_bool(0.01) => {
                self.apply(Command::EndMove { handle });
            }
            None if staying.len() < want => {
                let reply = self.apply(Command::BeginRepair { handle, epoch: config.epoch });
                if matches!(reply, Reply::Store(StoreReply::Done)) {
                    let repair = self.masters.state.repair(handle);
                    self.trace.push(format!("{} repair {handle} {repair:?}", self.now.0));
                    self.repairs_begun += 1;
                }
            }
            None if self.faults_left > 0
                && staying.len() == want
                && self.servers.len() > want
                && self.rng.random_bool(MOVES) =>
            {
                let from = config.members[self.rng.random_range(0..want)];
                self.trace.push(format!("{} move {handle} off {from}", self.now.0));
                self.apply(Command::Move { handle, epoch: config.epoch, from });
            }
            None => {}
        }
    }
}
