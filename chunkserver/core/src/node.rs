//! The node of one store: routes what happens, keeps the clock, and tidies up after each step.

use crate::checkpoint::Checkpoint;
use crate::chunks::Chunks;
use crate::floors::Floors;
use crate::gather::Gather;
use crate::held::{HeldPieces, Upstream, piece_len};
use crate::io::{Ask, ConnId, Input, MasterAsk, Outbox, Output};
use crate::learner::Learner;
use crate::local::Board;
use crate::pace::{Pace, Wait};
use crate::primary::Lead;
use crate::reads::{PendingRead, ReadFor};
use crate::scrub::Scrub;
use crate::secondary::Follow;
use crate::slow::Slow;
use crate::state::ChunkState;
use crate::store::format::Record;
use crate::store::{Event, PieceTicket, Recovered, Sort, Store, Ticket};
use crate::teacher::Taught;
use crate::timers::{Timer, Timers};
use bytes::Bytes;
use common::limits::{CHUNK_WAITING_MAX, COMMIT_LOGGED_EVERY, REPLICATION_MAX};
use common::wire::chunk_chunk::Peer;
use common::wire::chunk_master::Order;
use common::wire::client_chunk::{ClientChunk, ClientChunkReply};
use common::wire::local::{Head, Post};
use common::wire::{ChunkConfig, Piece};
use common::{ChunkHandle, Code, Epoch, Mutant, Refusal, RequestId, Serial, SessionId, Span, StoreId, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;

/// A client's request that waits for its chunk.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub conn: ConnId,
    pub request: u64,
    pub epoch: Epoch,
    pub snapshot: u64,
    pub msg: ClientChunk,
    pub data: Bytes,
}

/// A chunk at this store.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    /// Changed by `Chunks::state_mut` alone.
    pub state: Arc<ChunkState>,
    /// No file of the checkpoint has it as it is, and that is known.
    pub is_unwritten: bool,
    /// The session in which the masters confirmed the configuration.
    pub confirmed: Option<SessionId>,
    /// Everything up to here is durable here.
    pub durable: Serial,
    /// The highest commit point that the log says or will say.
    pub logged_commit: Serial,
    /// If this store leads the chunk.
    pub lead: Option<Box<Lead>>,
    /// What came from the primary and is not in the log yet.
    pub follow: Follow,
    /// A question to the masters is under way, with this number.
    pub asking: Option<NonZeroU32>,
    /// Client requests that wait.
    pub waiting: Vec<Waiting>,
    /// Reads that wait for the primary's commit point.
    pub reads: Vec<PendingRead>,
}

impl Chunk {
    pub(crate) fn new(state: Arc<ChunkState>) -> Chunk {
        Chunk {
            durable: state.last_point().1,
            logged_commit: state.committed(),
            state,
            is_unwritten: false,
            confirmed: None,
            lead: None,
            follow: Follow::default(),
            asking: None,
            waiting: vec![],
            reads: vec![],
        }
    }

    pub(crate) fn config(&self) -> &ChunkConfig {
        &self.state.config
    }

    /// Whether the store is no member in this epoch: who was removed may have become a member again, in a
    /// later one than it knows, and not been told yet.
    pub(crate) fn is_over(&self, epoch: Epoch) -> bool {
        self.state.removed && epoch <= self.state.config.epoch
    }

    /// Whether this store leads the chunk and knows all that was ever acknowledged of it.
    pub(crate) fn leads_surely(&self) -> bool {
        let serving = |lead: &Lead| matches!(lead.phase, crate::takeover::Phase::Serving);
        let resolved = |lead: &Lead| self.state.committed() >= lead.resolved || Mutant::ReadUnresolved.on();
        self.lead.as_ref().is_some_and(|lead| serving(lead) && resolved(lead))
    }

    /// Gives back the memory that a burst took: chunks are many, and most are at rest.
    pub(crate) fn rest(&mut self) {
        if self.waiting.is_empty() {
            self.waiting = vec![];
        }
        if self.reads.is_empty() {
            self.reads = vec![];
        }
        if self.follow.queue.is_empty() {
            self.follow.queue = Default::default();
        }
    }
}

/// A chunk as administrators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkView {
    /// Its configuration here.
    pub config: ChunkConfig,
    /// Committed bytes.
    pub length: u64,
    /// Commit point.
    pub committed: Serial,
    /// Last durable serial.
    pub durable: Serial,
}

/// Figures of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Chunks.
    pub chunks: u64,
    /// Bytes of data in extents.
    pub used_bytes: u64,
    /// Bytes of the log since the last checkpoint.
    pub log_bytes: u64,
    /// Bytes held for commits.
    pub held_bytes: u64,
    /// The last snapshot that is known here.
    pub snapshot: u64,
    /// Chunks that are being copied here.
    pub copies: u64,
    /// Bytes that were copied here since the start.
    pub copied_bytes: u64,
    /// Bytes a second that are copied from and to here at most, for the sake of clients; 0: no limit.
    pub copy_rate: u64,
    /// Bytes that lay scattered and were gathered since the start.
    pub gathered_bytes: u64,
    /// How often everything was read and verified since the start.
    pub scrubs: u64,
    /// Checksum mismatches found on reads.
    pub corrupt: u64,
    /// Floors: chunks that were here and are remembered for it.
    pub floors: u64,
}

/// The node of one store.
#[derive(Clone, Debug)]
pub struct Node {
    pub(crate) id: StoreId,
    pub(crate) now: Time,
    session: Option<(SessionId, Time)>,
    /// Chunks from this on were made in this life; all were, as long as nobody has said (`None`).
    first_chunk: Option<ChunkHandle>,
    /// The last snapshot that was taken.
    pub(crate) snapshot: u64,
    pub(crate) store: Store,
    pub(crate) chunks: Chunks,
    /// What clients on this machine see.
    pub(crate) board: Board,
    pub(crate) floors: Floors,
    pub(crate) held: HeldPieces,
    pub(crate) reads: BTreeMap<u64, ReadFor>,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) gather: Gather,
    pub(crate) gathered_bytes: u64,
    pub(crate) timers: Timers,
    /// Chunks that this store leads and that are not at rest.
    pub(crate) busy: BTreeSet<ChunkHandle>,
    /// Stores that cannot be reached, as far as is known: nobody waits for them before the masters are
    /// asked.
    pub(crate) lost: BTreeSet<StoreId>,
    /// When stores last acknowledged a write that they had not before, of any chunk that this store leads; or said that
    /// they have no room just now.
    pub(crate) moved: BTreeMap<StoreId, Time>,
    /// Chunks of which records are fetched.
    pub(crate) fetching: BTreeSet<ChunkHandle>,
    /// Chunks whose secondaries' durability must be told to their primary.
    pub(crate) acks: BTreeSet<ChunkHandle>,
    pub(crate) corrupt: u64,
    /// Chunks that are being copied to this store, and bytes that were.
    pub(crate) learners: BTreeMap<ChunkHandle, Learner>,
    pub(crate) copied_bytes: u64,
    /// Questions of copies that are answered when it is their turn.
    pub(crate) taught: BTreeMap<ChunkHandle, Taught>,
    pub(crate) pace: Pace,
    pub(crate) slow: Slow,
    pub(crate) scrub: Scrub,
    /// Chunks whose copy here has rotted.
    pub(crate) rotten: BTreeSet<ChunkHandle>,
    /// Chunks of which files were cut: what is left of them is to be asked.
    pub(crate) unsure: BTreeSet<ChunkHandle>,
    reported_failure: bool,
    held_check: Time,
}

/// Pieces without a commit are looked for this often.
const HELD_CHECK_MS: u64 = 1000;

impl Node {
    /// When it registers for the first time, a store is told which chunks are made after that. It may
    /// have made, led and lost older ones in an earlier life: their other members can hold records of
    /// it that it does not know of, so those it takes over as if it had known them.
    pub fn begins_with(&mut self, next_chunk: ChunkHandle) {
        self.first_chunk.get_or_insert(next_chunk);
    }

    /// Whether a chunk that is not here was never here, either.
    pub(crate) fn is_new(&self, handle: ChunkHandle) -> bool {
        let made_before = self.first_chunk.is_some_and(|first| handle < first);
        !made_before && !self.floors.may_be_forgotten(handle) || Mutant::LedAsNew.on()
    }

    /// A node on a recovered store.
    pub fn new(id: StoreId, recovered: Recovered) -> Node {
        let chunks: Chunks =
            recovered.chunks.into_iter().map(|(h, s)| (h, Box::new(Chunk::new(s)))).collect();
        Node {
            id,
            now: Time(0),
            session: None,
            first_chunk: None,
            snapshot: 0,
            store: recovered.store,
            gather: Gather::recovered(recovered.of_older, &chunks),
            chunks,
            board: Board::default(),
            floors: Floors::recovered(recovered.floors, recovered.horizon),
            held: HeldPieces::default(),
            reads: BTreeMap::new(),
            checkpoint: Checkpoint::new(recovered.checkpoint),
            gathered_bytes: 0,
            timers: Timers::default(),
            busy: BTreeSet::new(),
            lost: BTreeSet::new(),
            moved: BTreeMap::new(),
            fetching: BTreeSet::new(),
            acks: BTreeSet::new(),
            corrupt: 0,
            learners: BTreeMap::new(),
            copied_bytes: 0,
            taught: BTreeMap::new(),
            pace: Pace::default(),
            slow: Slow::default(),
            scrub: Scrub::default(),
            rotten: BTreeSet::new(),
            unsure: BTreeSet::new(),
            reported_failure: false,
            held_check: Time(0),
        }
    }

    /// The masters gave the store its id.
    pub fn set_id(&mut self, id: StoreId) {
        self.id = id;
    }

    /// The only door.
    pub fn step(&mut self, now: Time, input: Input, out: &mut Outbox) {
        self.now = self.now.max(now);
        match input {
            Input::Client { conn, request, epoch, snapshot, msg, data } => {
                self.client(Waiting { conn, request, epoch, snapshot, msg, data }, out)
            }
            Input::Peer { from, snapshot, msg, data } => {
                self.lost.remove(&from);
                self.snapshot_taken(snapshot);
                self.peer(from, msg, data, out)
            }
            Input::PeerReset { peer } => self.peer_reset(peer, out),
            Input::PeerLost { peer } => self.peer_lost(peer, out),
            Input::Master { handle, number, answer } => {
                if self.is_answered(handle, number) {
                    self.master_answers(handle, answer, out)
                }
            }
            Input::Session { session, until, next_chunk } => {
                let age = Span::from_ms(self.store.config().horizon_ms);
                self.floors.next_chunk(self.now, next_chunk, age);
                self.session = Some((session, until));
                out.push(Output::Post(Post::Head(Head { session, until })));
            }
            Input::Cut(chunks) => self.cut_elsewhere(chunks),
            Input::Snapshot(number) => self.snapshot_taken(number),
            Input::Fork { handle, number, epoch, to, snapshot } => {
                if self.is_answered(handle, number) {
                    self.fork_told(handle, epoch, to, snapshot, out);
                    self.seal_on(handle, out);
                    self.ask_for_cuts(handle, out);
                }
            }
            Input::Orders(orders) => self.orders(orders, out),
            Input::Repairs(orders) => self.repairs(orders, out),
            Input::Disk(done) => {
                for event in self.store.done(self.now, done, out) {
                    self.event(event, out);
                }
            }
            Input::Checkpoint { gathers } => self.want_checkpoint(gathers),
            Input::Wake => {}
        }
        self.settle(out);
    }

    fn settle(&mut self, out: &mut Outbox) {
        while let Some(timer) = self.timers.due(self.now) {
            self.fire(timer, out);
        }
        if self.held_check <= self.now {
            self.held_check = self.now + Span::from_ms(HELD_CHECK_MS);
            let expired = self.held.expire(self.now);
            self.store.free(expired);
        }
        self.send_acks(out);
        self.drive_checkpoint(out);
        self.scrub(out);
        self.store.settle(self.now, out);
        if let Some(why) = self.store.failed().map(str::to_owned).filter(|_| !self.reported_failure) {
            self.reported_failure = true;
            self.session = None;
            out.push(Output::Post(Post::Head(Head::default())));
            out.push(Output::Failed(why));
        }
        for handle in self.chunks.touched() {
            self.board.clear(handle, out);
        }
    }

    fn fire(&mut self, timer: Timer, out: &mut Outbox) {
        match timer {
            Timer::Answers(handle) => self.answers_are_late(handle, out),
            Timer::IdleCommit(handle) => self.tell_commit(handle, out),
            Timer::Hold(handle) => self.hold_goes_on(handle, out),
            Timer::AskAgain(handle) => self.ask_again(handle, out),
            Timer::Read(handle) => self.reads_are_late(handle, out),
            Timer::Copy(handle) => self.copy_is_late(handle, out),
            Timer::Fork(handle) => self.fork_on(handle, out),
            Timer::SendAgain(handle) => self.send_again_to_full(handle, out),
            Timer::Teach(handle) => self.teach(handle, out),
            Timer::Rotten(handle) => self.rotten_again(handle, out),
            Timer::HaltOver(handle) => self.halt_is_over(handle, out),
            // The checkpoint goes on after every step.
            Timer::Gather => {}
        }
    }

    pub(crate) fn timer(&mut self, at: Time, timer: Timer) {
        self.timers.set(at, timer);
    }

    /// When `step` must be called again at the latest.
    pub fn deadline(&self) -> Option<Time> {
        let held = (self.held.bytes() > 0).then_some(self.held_check);
        let scrub = self.scrub.due();
        let log = self.store.log.next_due(self.now);
        self.timers.first().into_iter().chain(held).chain(scrub).chain(log).min()
    }

    /// The session, if it still holds.
    pub(crate) fn in_session(&self) -> Option<SessionId> {
        self.session
            .filter(|(_, until)| self.now < *until || Mutant::ServeAfterSession.on())
            .map(|(session, _)| session)
    }

    // --- clients -------------------------------------------------------------------------

    fn client(&mut self, ask: Waiting, out: &mut Outbox) {
        if self.store.failed().is_some() {
            return refuse(&ask, Code::DiskFailed, out);
        }
        if self.in_session().is_none() {
            return refuse(&ask, Code::NotInSession, out);
        }
        match &ask.msg {
            ClientChunk::Push { request, index, total, chain, piece, .. } => {
                let (request, index, total) = (*request, *index, *total);
                let upstream = Upstream::Client(ask.conn, ask.request);
                let (chain, piece, handle) = (chain.clone(), piece.clone(), handle_of(&ask.msg));
                self.push(request, handle, (index, total), chain, piece, ask.data, upstream, out)
            }
            ClientChunk::Write { .. } => self.write(ask, out),
            ClientChunk::Read { .. } => self.read(ask, out),
            ClientChunk::Stat { .. } => self.stat(ask, out),
            ClientChunk::Seal { .. } => self.client_seal(ask, out),
            ClientChunk::Locate { .. } => self.locate(ask, out),
            ClientChunk::Fork { .. } => self.client_fork(ask, out),
            ClientChunk::Cut { .. } => self.client_cut(ask, out),
        }
    }

    /// A piece comes, from a client or along the chain: check, forward at once, write.
    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(crate) fn push(
        &mut self,
        request: RequestId,
        handle: ChunkHandle,
        (index, total): (u16, u32),
        chain: Vec<StoreId>,
        piece: Piece,
        data: Bytes,
        upstream: Upstream,
        out: &mut Outbox,
    ) {
        let fits = piece_len(total, index) == Some(piece.len)
            && data.len() == piece.len as usize
            && total as usize <= common::limits::WRITE_BYTES_MAX
            && self.held.total(request).is_none_or(|t| t == total)
            && chain.len() < REPLICATION_MAX as usize
            && !chain.contains(&self.id);
        if !fits {
            return self.tell_held(request, index, upstream, Some(Code::BadArgument), out);
        }
        let next = chain.first().copied();
        if let Some(known) = self.held.get_mut(request, index) {
            // A retry: answer again when it is held; it is here already.
            known.upstream = Some(upstream);
            known.awaits = next;
        } else {
            if self.held.is_full(data.len()) {
                return self.tell_held(request, index, upstream, Some(Code::Busy), out);
            }
            let store = &mut self.store;
            let ends = (next, upstream);
            let taken = self.held.add(self.now, request, (index, total), piece.clone(), ends, |bytes| {
                store.take(bytes, Sort::New)
            });
            match taken {
                Ok(blocks) => {
                    let ticket = PieceTicket::Held(request, index);
                    self.store.write_piece(blocks, data.clone(), ticket, out);
                }
                Err(code) => return self.tell_held(request, index, upstream, Some(code), out),
            }
        }
        if let Some(to) = next {
            let chain = chain[1..].to_vec();
            let msg = Peer::Forward { request, handle, index, total, chain, piece };
            out.push(Output::Peer { to, msg, data: vec![data] });
        }
        self.piece_progress(request, index, out);
    }

    /// Tells upstream if the piece is held from here on.
    pub(crate) fn piece_progress(&mut self, request: RequestId, index: u16, out: &mut Outbox) {
        if let Some(upstream) = self.held.ready(request, index) {
            self.tell_held(request, index, upstream, None, out);
        }
    }

    pub(crate) fn tell_held(
        &self,
        request: RequestId,
        index: u16,
        to: Upstream,
        refused: Option<Code>,
        out: &mut Outbox,
    ) {
        match to {
            Upstream::Client(conn, id) => {
                let msg = match refused {
                    None => ClientChunkReply::Held,
                    Some(code) => ClientChunkReply::Refused(Refusal::new(code, self.id)),
                };
                out.push(Output::Reply { conn, request: id, msg, data: vec![] });
            }
            Upstream::Store(to) => {
                out.push(Output::Peer { to, msg: Peer::Held { request, index, refused }, data: vec![] })
            }
        }
    }

    /// Parks a client's request until the chunk's standing is known.
    pub(crate) fn park(&mut self, handle: ChunkHandle, ask: Waiting, out: &mut Outbox) {
        let chunk = self.chunks.get_mut(&handle).expect("parked at a chunk that is here");
        if chunk.waiting.len() >= CHUNK_WAITING_MAX {
            return refuse(&ask, Code::Busy, out);
        }
        chunk.waiting.push(ask);
    }

    /// Runs what waited once more.
    pub(crate) fn run_waiting(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let Some(chunk) = self.chunks.get_mut(&handle) else {
            return;
        };
        for ask in std::mem::take(&mut chunk.waiting) {
            self.client(ask, out);
        }
    }

    /// Refuses what waits.
    pub(crate) fn refuse_waiting(&mut self, handle: ChunkHandle, refusal: &Refusal, out: &mut Outbox) {
        let Some(chunk) = self.chunks.get_mut(&handle) else {
            return;
        };
        for ask in std::mem::take(&mut chunk.waiting) {
            reply(&ask, ClientChunkReply::Refused(refusal.clone()), out);
        }
    }

    /// Asks the masters about a chunk, one question at a time.
    pub(crate) fn ask(&mut self, handle: ChunkHandle, what: Ask, out: &mut Outbox) {
        let number = self.chunks.question();
        let Some(chunk) = self.chunks.get_mut(&handle) else {
            return;
        };
        if chunk.asking.is_none() {
            chunk.asking = Some(number);
            out.push(Output::Master(MasterAsk { handle, number, what }));
        }
    }

    /// Whether this is the answer that the chunk waits for. It waits no longer. What an earlier life of it asked is answered
    /// too late: it may be a member no more.
    pub(crate) fn is_answered(&mut self, handle: ChunkHandle, number: NonZeroU32) -> bool {
        let chunk = self.chunks.get_mut(&handle);
        let asks = |asking: &NonZeroU32| *asking == number || Mutant::LateAnswer.on();
        chunk.is_some_and(|chunk| chunk.asking.take_if(|asking| asks(asking)).is_some())
    }

    /// The chunk, made as an empty one that has yet to be confirmed if it is not known here.
    /// A floor says that it may not be.
    pub(crate) fn unknown_chunk(&mut self, handle: ChunkHandle, ask: Waiting, out: &mut Outbox) {
        if self.floors.of(handle) == Epoch::DELETED || handle == ChunkHandle::HOLE {
            return refuse(&ask, Code::NoSuchChunk, out);
        }
        self.ask_before_making(handle, out);
        self.park(handle, ask, out);
    }

    /// The chunk may have been here once and been deleted: the masters know, and make it if it is not.
    pub(crate) fn ask_before_making(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        if !self.chunks.contains_key(&handle) {
            self.placeholder(handle);
        }
        self.ask(handle, Ask::Confirm, out);
    }

    /// A chunk that exists in memory only, until the masters say what it is.
    pub(crate) fn placeholder(&mut self, handle: ChunkHandle) {
        let config = ChunkConfig {
            handle,
            epoch: Epoch(0),
            primary: StoreId(0),
            members: vec![],
            sealed: None,
            wait_ms: 0,
        };
        self.chunks.insert(handle, Box::new(Chunk::new(Arc::new(ChunkState::new(config)))));
    }

    /// Makes a chunk under its first configuration here. Durable with the next group.
    pub(crate) fn create(&mut self, config: ChunkConfig, ticket: Ticket) {
        let handle = config.handle;
        self.store.record(&Record::Config(config.clone()), ticket);
        let mut chunk = Chunk::new(Arc::new(ChunkState::new(config)));
        if let Some(old) = self.chunks.remove(&handle) {
            chunk.waiting = old.waiting;
            chunk.asking = old.asking;
        }
        self.chunks.insert(handle, Box::new(chunk));
    }

    /// Takes over a configuration, durably with the next group.
    pub(crate) fn set_config(&mut self, config: ChunkConfig, ticket: Ticket) {
        let handle = config.handle;
        self.store.record(&Record::Config(config.clone()), ticket);
        let state = self.chunks.state_mut(&handle).expect("the chunk is here");
        state.removed = false;
        let epoch = config.epoch;
        state.config = config;
        self.copy_overtaken(handle, epoch);
        self.forget_applies(handle);
    }

    // --- masters -------------------------------------------------------------------------

    fn master_answers(
        &mut self,
        handle: ChunkHandle,
        answer: Result<ChunkConfig, Refusal>,
        out: &mut Outbox,
    ) {
        // From before the store was told that it is a member no more, or that the chunk is deleted.
        let floor = self.floors.of(handle);
        let is_late = |config: &ChunkConfig| config.epoch < floor && !Mutant::LateAnswer.on();
        let answer = match answer {
            Ok(config) if is_late(&config) => Err(Refusal::new(Code::StaleEpoch, handle)),
            answer => answer,
        };
        if let Err(refusal) = &answer {
            self.join_refused(handle, refusal.code, out);
        }
        let epoch = self.chunks.get(&handle).map(|chunk| chunk.config().epoch);
        let left = match &answer {
            Err(refusal) => Err(refusal.clone()),
            Ok(config) if Some(config.epoch) != epoch => Err(Refusal::new(Code::StaleEpoch, handle)),
            Ok(config) => Ok(config.sealed),
        };
        let asked = self.cuts_asked(handle);
        self.is_sure(handle, &asked, &left);
        match answer {
            Err(refusal) => self.master_refused(handle, refusal, out),
            // An older one says nothing of now: whoever waits asks again.
            Ok(config) if Some(config.epoch) >= epoch && !config.members.contains(&self.id) => {
                self.not_a_member(handle, config.epoch, out)
            }
            Ok(config) => {
                self.config_told(config, out);
                self.seal_on(handle, out);
            }
        }
        self.cuts_told(handle, asked, left, out);
    }

    fn config_told(&mut self, config: ChunkConfig, out: &mut Outbox) {
        let handle = config.handle;
        let known = self.chunks[&handle].config().epoch;
        let session = self.in_session();
        if known.number() == 0 {
            // Never created here: it is empty, whatever its epoch.
            let begins = config.primary == self.id && config.epoch.number() == 1 && self.is_new(handle);
            let others = config.members.clone();
            // A primary that takes it over waits for what is here.
            let ticket = Ticket::Config(handle, config.epoch);
            self.create(config, ticket);
            let chunk = self.chunks.get_mut(&handle).expect("just made");
            chunk.confirmed = session;
            if begins {
                chunk.lead = Some(Box::new(Lead::fresh(&others, self.now)));
            }
            return self.run_waiting(handle, out);
        }
        if config.epoch > known && config.primary == self.id {
            return self.begin_takeover(config, out);
        }
        if config.epoch > known {
            // The new primary will say so; until then nothing is served. If it was restarted, and
            // nobody writes, nothing else makes it.
            let (to, epoch, nonce) = (config.primary, config.epoch, self.store.next_nonce());
            out.push(Output::Peer { to, msg: Peer::AskCommit { handle, epoch, nonce }, data: vec![] });
            return self.refuse_waiting(handle, &Refusal::new(Code::Reconfiguring, handle), out);
        }
        let chunk = self.chunks.get_mut(&handle).expect("known");
        if config.epoch == known {
            chunk.confirmed = session;
            self.fork_refused(handle);
            self.hold_told(handle, config.wait_ms, out);
            let chunk = self.chunks.get_mut(&handle).expect("known");
            // Who waits for the seal may do so since before an epoch that began sealed.
            let waits = chunk.lead.as_ref().is_some_and(|lead| !lead.sealing.is_empty());
            if config.sealed.is_some() && (waits || chunk.config().sealed != config.sealed) {
                self.sealed(config, out);
            }
        }
        self.run_waiting(handle, out);
    }

    fn master_refused(&mut self, handle: ChunkHandle, refusal: Refusal, out: &mut Outbox) {
        let refusal = self.cut_before_it_was_made(handle, refusal);
        self.refuse_waiting(handle, &refusal, out);
        let chunk = self.chunks.get_mut(&handle).expect("the caller found it");
        if chunk.config().epoch.number() == 0 {
            self.chunks.remove(&handle);
        } else if let Some(lead) = &mut chunk.lead {
            if refusal.code == Code::NoSuchChunk {
                lead.is_gone = true;
                lead.forking.take_if(|forking| forking.is_for_a_write());
            }
            self.ask_later(handle);
        }
    }

    /// The store is no member of a chunk (any more).
    fn not_a_member(&mut self, handle: ChunkHandle, epoch: Epoch, out: &mut Outbox) {
        self.remove(Order { handle, epoch, discard: false }, Ticket::None, out);
    }

    fn orders(&mut self, orders: Vec<Order>, out: &mut Outbox) {
        for order in orders {
            self.remove(order, Ticket::Order(order), out);
        }
    }

    /// From this epoch on the store takes no part in the chunk; or the chunk is deleted.
    pub(crate) fn remove(&mut self, order: Order, ticket: Ticket, out: &mut Outbox) {
        let Order { handle, epoch, discard } = order;
        self.floors.raise(handle, epoch);
        self.copy_overtaken(handle, epoch);
        let stays = self.chunks.get(&handle).is_some_and(|c| c.config().epoch >= epoch);
        let record = match discard && epoch != Epoch::DELETED {
            true => Record::Discarded { handle, epoch },
            false => Record::Removed { handle, epoch },
        };
        self.store.record(&record, ticket);
        if stays || !self.chunks.contains_key(&handle) {
            return;
        }
        let code = if epoch == Epoch::DELETED { Code::NoSuchChunk } else { Code::StaleEpoch };
        let refusal = Refusal::new(code, handle);
        self.step_down(handle, &refusal, out);
        self.refuse_waiting(handle, &refusal, out);
        self.fail_reads(handle, code, out);
        self.forget_applies(handle);
        let placeholder = self.chunks[&handle].config().epoch.number() == 0;
        self.rotten.remove(&handle);
        if discard || placeholder {
            // A copy may be made of what goes now.
            self.end_copy(handle);
            let chunk = self.chunks.remove(&handle).expect("it was here");
            let blocks = chunk.state.blocks();
            if !blocks.is_empty() {
                // Free once the removal is durable: the log is in order.
                let serial = chunk.state.committed();
                self.store.record(&Record::Committed { handle, serial }, Ticket::Free(blocks));
            }
        } else {
            self.chunks.state_mut(&handle).expect("it is here").removed = true;
            self.chunks.get_mut(&handle).expect("it is here").confirmed = None;
        }
    }

    // --- the disk ------------------------------------------------------------------------

    fn event(&mut self, event: Event, out: &mut Outbox) {
        match event {
            Event::Flushed(latency, bulk) => {
                let what = if bulk { Wait::BulkFlush } else { Wait::Flush };
                self.pace.waited(self.now, what, latency);
            }
            Event::Durable(ticket) => self.durable(ticket, out),
            Event::Written(PieceTicket::Held(request, index)) => {
                self.held.written(request, index);
                self.piece_progress(request, index, out);
                if self.held.complete(request).is_some() {
                    self.pieces_complete(request, out);
                }
            }
            Event::Written(PieceTicket::Fetched(handle, serial, index, blocks)) => {
                self.fetched_written(handle, (serial, index, blocks), out)
            }
            Event::Written(PieceTicket::Copied(copy, blocks)) => self.copy_written(copy, blocks, out),
            Event::Written(PieceTicket::Homed(number)) => self.homed(number),
            Event::Written(PieceTicket::Gathered) => self.gathered(),
            Event::Read(job, result) => self.read_done(job, result, out),
            Event::Checkpoint(done) => self.checkpoint_event(done, out),
        }
    }

    fn durable(&mut self, ticket: Ticket, out: &mut Outbox) {
        match ticket {
            Ticket::None => {}
            Ticket::Free(blocks) => self.store.free(blocks),
            Ticket::Installed(copy, blocks) => self.installed(copy, blocks, out),
            Ticket::Forked { of, epoch, to } => self.fork_durable(of, epoch, to, out),
            Ticket::Order(order) => out.push(Output::Confirmed(vec![order])),
            Ticket::Write(handle, point) => self.write_durable(handle, point, out),
            Ticket::Config(handle, epoch) => self.config_durable(handle, epoch, out),
            Ticket::Cut(handle, epoch) => self.cut_durable(handle, epoch, out),
        }
    }

    /// Moves the commit point; the blocks this frees are free once the log says it.
    pub(crate) fn advance(&mut self, handle: ChunkHandle, serial: Serial) {
        let Some(chunk) = self.chunks.get(&handle) else {
            return;
        };
        // An old copy stays as it is: a new one may be made of it, and refers to its blocks.
        if chunk.state.removed {
            return;
        }
        // Only what is durable here can be taken as committed here.
        let serial = serial.min(chunk.durable);
        if serial <= chunk.state.committed() {
            return;
        }
        let freed = self.chunks.state_mut(&handle).expect("it is here").commit(serial);
        for (segment, block) in freed.shared {
            self.store.alloc.share(segment, block);
        }
        let chunk = self.chunks.get_mut(&handle).expect("it is here");
        let overdue = serial.0 - chunk.logged_commit.0 >= COMMIT_LOGGED_EVERY;
        if Mutant::FreeAtCommit.on() {
            self.store.free(freed.free);
        } else if !freed.free.is_empty() || overdue {
            chunk.logged_commit = serial;
            let record = Record::Committed { handle, serial };
            self.store.record_later(&record, Ticket::Free(freed.free), self.now);
        }
    }

    // --- views ---------------------------------------------------------------------------

    /// All chunks, for administrators.
    pub fn chunk_view(&self, handle: ChunkHandle) -> Option<ChunkView> {
        let chunk = self.chunks.get(&handle)?;
        Some(ChunkView {
            config: chunk.config().clone(),
            length: chunk.state.length as u64,
            committed: chunk.state.committed(),
            durable: chunk.durable,
        })
    }

    /// The last snapshot that is known here: what is said to others comes after it.
    pub fn snapshot(&self) -> u64 {
        self.snapshot
    }

    /// Figures.
    pub fn stats(&self) -> Stats {
        Stats {
            chunks: self.chunks.len() as u64,
            used_bytes: self.store.used_bytes(),
            log_bytes: self.store.log.used(),
            held_bytes: self.held.bytes() as u64,
            snapshot: self.snapshot,
            copies: self.learners.len() as u64,
            copied_bytes: self.copied_bytes,
            copy_rate: self.pace.rate().unwrap_or(0),
            gathered_bytes: self.gathered_bytes,
            scrubs: self.scrub.passes,
            corrupt: self.corrupt,
            floors: self.floors.all().len() as u64,
        }
    }

    /// Whether nothing is under way on disk.
    pub fn is_idle(&self) -> bool {
        self.store.log.is_idle() && self.checkpoint.is_idle()
    }

    /// Panics if an invariant does not hold.
    pub fn check(&self) {
        self.chunks.check();
        for (handle, chunk) in self.chunks.iter() {
            let state = &chunk.state;
            assert_eq!(state.config.handle, *handle);
            let last = state.last_point().1;
            assert!(state.committed() <= chunk.durable, "{handle}: committed beyond durable");
            assert!(chunk.durable <= last, "{handle}: durable beyond the last record");
            let is_fetched = chunk.follow.fetch.is_some();
            assert_eq!(is_fetched, self.fetching.contains(handle), "{handle}: whether it is fetched");
            if chunk.lead.is_some() {
                assert_eq!(state.config.primary, self.id, "{handle}: leads without being primary");
            }
        }
    }
}

pub(crate) fn handle_of(msg: &ClientChunk) -> ChunkHandle {
    match msg {
        ClientChunk::Push { handle, .. }
        | ClientChunk::Write { handle, .. }
        | ClientChunk::Read { handle, .. }
        | ClientChunk::Stat { handle }
        | ClientChunk::Seal { handle }
        | ClientChunk::Locate { handle, .. }
        | ClientChunk::Fork { handle, .. }
        | ClientChunk::Cut { handle, .. } => *handle,
    }
}

pub(crate) fn reply(ask: &Waiting, msg: ClientChunkReply, out: &mut Outbox) {
    out.push(Output::Reply { conn: ask.conn, request: ask.request, msg, data: vec![] });
}

pub(crate) fn refuse(ask: &Waiting, code: Code, out: &mut Outbox) {
    let refusal = Refusal::new(code, handle_of(&ask.msg));
    reply(ask, ClientChunkReply::Refused(refusal), out);
}
