//! Forks: before a primary admits the first write to a chunk since a snapshot was taken, it asks the
//! masters whether a snapshot needs the chunk as it is. If so, it stops admitting until the chunk is
//! at rest, and every member makes another chunk of the same blocks, durably. Then the masters let
//! it stand in for the chunk, and give the chunk a new epoch: who read it for a snapshot does so no
//! more.
//!
//! A client can ask for a fork, too, to begin a chunk of another file with it; the masters have named it, and
//! what becomes of it is between them and the client.

use crate::io::{Ask, ConnId, Outbox, Output};
use crate::node::{Chunk, Node, Waiting, refuse, reply};
use crate::state::ChunkState;
use crate::store::Ticket;
use crate::store::format::Record;
use crate::takeover::Phase;
use crate::timers::Timer;
use common::limits::{APPLY_TIMEOUT_MS, CHUNK_WAITING_MAX};
use common::wire::ChunkConfig;
use common::wire::chunk_chunk::{LogPoint, Peer};
use common::wire::chunk_master::Order;
use common::wire::client_chunk::{ClientChunk, ClientChunkReply};
use common::{ChunkHandle, Code, Epoch, Mutant, Refusal, Span, StoreId, Time};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What was not answered is asked again after this.
const ASK_AGAIN_MS: u64 = 100;
/// Whether the chunk is at rest is looked at this often.
const LOOK_AGAIN_MS: u64 = 5;

/// While there is one, a primary admits nothing.
#[derive(Clone, Debug)]
pub(crate) struct Forking {
    why: Why,
    since: Time,
    step: Step,
}

#[derive(Clone, Debug)]
enum Why {
    /// The masters are asked for the sake of this snapshot.
    Snapshot(u64),
    /// These requests of clients wait for it.
    Clone(Vec<(ConnId, u64)>),
}

#[derive(Clone, Debug)]
enum Step {
    /// The masters say whether a fork is needed.
    Asking,
    /// The chunk comes to rest.
    Resting(ChunkConfig),
    /// Members make it.
    Making(ChunkConfig, BTreeSet<StoreId>),
    /// All have made it: the masters are told.
    Made(ChunkConfig),
}

impl Node {
    /// A snapshot was taken, as the masters or another store say.
    pub(crate) fn snapshot_taken(&mut self, number: u64) {
        self.snapshot = self.snapshot.max(number);
    }

    /// Whether the chunk may be written to, though this snapshot was taken; else that is seen to.
    pub(crate) fn is_after_snapshot(&mut self, handle: ChunkHandle, stamp: u64, out: &mut Outbox) -> bool {
        let wanted = self.snapshot.max(if Mutant::NoStamp.on() { 0 } else { stamp });
        let lead = self.chunks.get_mut(&handle).and_then(|c| c.lead.as_mut()).expect("led");
        if Mutant::CloneAdmits.on() && lead.forking.as_ref().is_some_and(|f| matches!(f.why, Why::Clone(_))) {
            return true;
        }
        // Nothing is written any more to one that is gone, and it is not held up for it: others may have it copied.
        let is_known = lead.snapshot.is_some_and(|known| known >= wanted);
        if lead.is_gone || lead.forking.is_none() && (is_known || Mutant::NoFork.on()) {
            return true;
        }
        if lead.forking.is_none() {
            let why = Why::Snapshot(wanted);
            lead.forking = Some(Box::new(Forking { why, since: self.now, step: Step::Asking }));
            self.fork_on(handle, out);
        }
        false
    }

    /// The masters say whether a chunk must be forked, under which configuration, and up to which
    /// snapshot that is good.
    pub(crate) fn fork_told(
        &mut self,
        handle: ChunkHandle,
        epoch: Epoch,
        to: Option<ChunkConfig>,
        snapshot: u64,
        out: &mut Outbox,
    ) {
        self.snapshot_taken(snapshot);
        let now = self.now;
        let Some(chunk) = self.chunks.get_mut(&handle) else { return };
        let same = chunk.config().epoch == epoch;
        let Some(lead) = chunk.lead.as_mut().filter(|_| same) else { return };
        let asked = |f: &&mut Box<Forking>| matches!(f.step, Step::Asking);
        let Some(forking) = lead.forking.as_mut().filter(asked) else { return };
        match to {
            Some(to) if to.invalid().is_none() && to.members == chunk.state.config.members => {
                forking.step = Step::Resting(to);
                forking.since = now;
                self.fork_on(handle, out);
            }
            Some(_) => {}
            None => {
                // Who named a snapshot that is not known to the masters waited for nothing.
                let Why::Snapshot(wanted) = forking.why else { unreachable!("the masters were asked") };
                if self.snapshot == wanted {
                    self.snapshot = snapshot;
                }
                lead.snapshot = Some(snapshot);
                lead.forking = None;
                for ask in chunk.waiting.iter_mut().filter(|ask| ask.snapshot <= wanted) {
                    ask.snapshot = 0;
                }
                self.run_waiting(handle, out);
            }
        }
    }

    /// A client wants a chunk forked, for another file.
    pub(crate) fn client_fork(&mut self, ask: Waiting, out: &mut Outbox) {
        let Some(ask) = self.led(ask, out) else { return };
        let ClientChunk::Fork { handle, to } = &ask.msg else { unreachable!() };
        let (handle, to) = (*handle, to.clone());
        let made = self.chunks.get(&to.handle).filter(|fork| fork.config().epoch.number() > 0);
        let made = made.map(|fork| fork.state.length as u64);
        let is_over = self.is_fork_over(to.handle);
        let chunk = self.chunks.get_mut(&handle).expect("led");
        let ours = chunk.config();
        // Only under the epoch that the masters named the fork with: what of it was made is the same then.
        let fits = ask.epoch == ours.epoch
            && to.invalid().is_none()
            && to.handle != handle
            && (to.primary, &to.members) == (ours.primary, &ours.members)
            && (to.epoch.number(), to.sealed) == (1, None);
        if !fits {
            return refuse(&ask, Code::BadArgument, out);
        }
        if is_over {
            return refuse(&ask, Code::NoSuchChunk, out);
        }
        let lead = chunk.lead.as_mut().expect("led");
        match lead.forking.as_mut().map(|forking| (forking.to() == Some(to.handle), &mut forking.why)) {
            Some((true, Why::Clone(asks))) if asks.len() < CHUNK_WAITING_MAX => {
                asks.push((ask.conn, ask.request))
            }
            Some(_) => self.park(handle, ask, out),
            None => match made {
                Some(length) => reply(&ask, ClientChunkReply::Forked { length }, out),
                None => {
                    let why = Why::Clone(vec![(ask.conn, ask.request)]);
                    let forking = Forking { why, since: self.now, step: Step::Resting(to) };
                    lead.forking = Some(Box::new(forking));
                    self.fork_on(handle, out);
                }
            },
        }
    }

    /// The fork that clients have asked for is made, or will never be.
    fn end_client_fork(&mut self, handle: ChunkHandle, answer: Result<u64, Code>, out: &mut Outbox) {
        let lead = self.chunks.get_mut(&handle).and_then(|c| c.lead.as_mut()).expect("it forks");
        let forking = lead.forking.take().expect("it forks");
        let (Some(to), Why::Clone(asks)) = (forking.to(), forking.why) else { unreachable!("for a client") };
        if answer.is_err() && !Mutant::CloneTwice.on() {
            // Who has not made it yet could make it of what is written from now on.
            self.remove(Order { handle: to, epoch: Epoch::DELETED, discard: true }, Ticket::None, out);
        }
        for (conn, request) in asks {
            let msg = match answer {
                Ok(length) => ClientChunkReply::Forked { length },
                Err(code) => ClientChunkReply::Refused(Refusal::new(code, to)),
            };
            out.push(Output::Reply { conn, request, msg, data: vec![] });
        }
        self.run_waiting(handle, out);
    }

    /// The next step of a fork, or the same once more.
    pub(crate) fn fork_on(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let (me, now) = (self.id, self.now);
        let forking = self.chunks.get(&handle).and_then(|c| c.lead.as_ref()?.forking.as_ref());
        let is_over = forking.and_then(|f| f.to()).is_some_and(|to| self.is_fork_over(to));
        let Some(chunk) = self.chunks.get_mut(&handle) else { return };
        let Some(lead) = chunk.lead.as_mut().filter(|l| matches!(l.phase, Phase::Serving)) else { return };
        let Some(forking) = &mut lead.forking else { return };
        let epoch = chunk.state.config.epoch;
        let at_rest = chunk.state.tail.is_empty() && lead.joining.is_none() && lead.sealing.is_empty();
        let mut again = ASK_AGAIN_MS;
        if matches!(forking.why, Why::Clone(_)) {
            let late = now.since(forking.since) >= Span::from_ms(APPLY_TIMEOUT_MS);
            match &forking.step {
                Step::Made(_) => {
                    let length = chunk.state.length as u64;
                    return self.end_client_fork(handle, Ok(length), out);
                }
                _ if is_over => return self.end_client_fork(handle, Err(Code::NoSuchChunk), out),
                // Nobody is accused: the client can do without it, and a write will show who does not answer.
                _ if late => return self.end_client_fork(handle, Err(Code::Busy), out),
                _ => {}
            }
        }
        match forking.step.clone() {
            Step::Asking => self.ask(handle, Ask::Fork { epoch }, out),
            // Under a new epoch they name another.
            Step::Resting(_) | Step::Making(..) if is_over => self.ask(handle, Ask::Takeover { epoch }, out),
            Step::Resting(to) if at_rest || Mutant::ForkWithTail.on() => {
                forking.since = now;
                forking.step = Step::Making(to.clone(), chunk.state.config.members.iter().copied().collect());
                let to = ChunkConfig { sealed: Some(chunk.state.length as u64), ..to };
                self.busy.insert(handle);
                self.make_fork(handle, to);
                self.ask_forks(handle, out);
            }
            Step::Resting(_) => again = LOOK_AGAIN_MS,
            Step::Making(to, awaiting) if awaiting.is_empty() => {
                forking.step = Step::Made(to);
                return self.fork_on(handle, out);
            }
            Step::Making(_, awaiting) => {
                let late = now.since(forking.since) >= Span::from_ms(APPLY_TIMEOUT_MS);
                let late = |m: &StoreId| *m != me && (late || self.lost.contains(m));
                if let Some(accused) = awaiting.into_iter().find(late) {
                    self.accuse(handle, accused, out);
                }
                self.ask_forks(handle, out);
            }
            Step::Made(to) => {
                let (to, length) = (to.handle, chunk.state.length as u64);
                self.ask(handle, Ask::Forked { epoch, to, length }, out);
            }
        }
        self.timer(now + Span::from_ms(again), Timer::Fork(handle));
    }

    /// Asks the members that have not made the fork.
    fn ask_forks(&self, handle: ChunkHandle, out: &mut Outbox) {
        let state = &self.chunks[&handle].state;
        let forking = self.chunks[&handle].lead.as_ref().and_then(|l| l.forking.as_ref());
        let Some(Forking { step: Step::Making(to, awaiting), .. }) = forking.map(|f| &**f) else { return };
        for to_store in awaiting.iter().copied().filter(|m| *m != self.id) {
            let config = ChunkConfig { sealed: Some(state.length as u64), ..to.clone() };
            let msg = Peer::Fork { handle, epoch: state.config.epoch, point: state.last, config };
            out.push(Output::Peer { to: to_store, msg, data: vec![] });
        }
    }

    /// The primary wants a fork, of the chunk as it is at this point.
    pub(crate) fn fork_asked(
        &mut self,
        from: StoreId,
        handle: ChunkHandle,
        epoch: Epoch,
        point: LogPoint,
        config: ChunkConfig,
        out: &mut Outbox,
    ) {
        let Some(chunk) = self.chunks.get(&handle).filter(|c| c.config().epoch.number() > 0) else {
            // A chunk that was never written to is made by its first write, and this comes before that. Under a new
            // epoch its primary tells all members of it.
            return self.refuse_apply(from, handle, Code::NoSuchChunk, out);
        };
        let ours = chunk.config();
        let follows = ours.epoch == epoch && ours.primary == from && !chunk.state.removed;
        if !follows || config.members != ours.members || self.floors.is_over(config.handle) {
            return;
        }
        if self.is_fork_over(config.handle) {
            // Under a new epoch the masters name another.
            return self.refuse_apply(from, handle, Code::NoSuchChunk, out);
        }
        self.advance(handle, point.1);
        let state = &self.chunks[&handle].state;
        let at_rest = state.last == point && state.tail.is_empty() || Mutant::ForkWithTail.on();
        // Whoever is not that far yet is asked again.
        if at_rest && config.sealed == Some(state.length as u64) {
            let to = config.handle;
            self.make_fork(handle, config);
            if Mutant::ForkEarly.on() {
                self.fork_durable(handle, epoch, to, out);
            }
        }
    }

    /// Whether a fork is not to be made any more. Nobody makes one that was named so long ago that its floor may be forgotten;
    /// the masters do not know it yet, and cannot be asked.
    fn is_fork_over(&self, to: ChunkHandle) -> bool {
        self.floors.is_over(to) || self.floors.may_be_forgotten(to) && !self.chunks.contains_key(&to)
    }

    /// Makes a fork of a chunk that is at rest, or says once more that it is made.
    fn make_fork(&mut self, handle: ChunkHandle, config: ChunkConfig) {
        let chunk = self.chunks.get_mut(&handle).expect("it is forked");
        let (point, to) = (chunk.state.last, config.handle);
        let ticket = Ticket::Forked { of: handle, epoch: chunk.config().epoch, to };
        // After a restart it must be known to be at rest just there.
        chunk.logged_commit = point.1;
        self.store.record(&Record::Committed { handle, serial: point.1 }, Ticket::None);
        if self.chunks.get(&to).is_some_and(|c| c.config().epoch.number() > 0) {
            return self.store.record(&Record::Committed { handle, serial: point.1 }, ticket);
        }
        let state = self.chunks[&handle].state.fork(config.clone());
        for blocks in state.blocks() {
            for block in blocks.block..blocks.block + blocks.count {
                self.store.alloc.share(blocks.segment, block);
            }
        }
        self.store.record(&Record::Fork { handle, point, config }, ticket);
        let mut fork = Chunk::new(Arc::new(state));
        if let Some(old) = self.chunks.remove(&to) {
            (fork.waiting, fork.asking) = (old.waiting, old.asking);
        }
        self.chunks.insert(to, Box::new(fork));
    }

    /// A fork is durable here.
    pub(crate) fn fork_durable(
        &mut self,
        handle: ChunkHandle,
        epoch: Epoch,
        to: ChunkHandle,
        out: &mut Outbox,
    ) {
        let Some(chunk) = self.chunks.get(&handle).filter(|c| c.config().epoch == epoch) else { return };
        if chunk.lead.is_some() {
            return self.forked(self.id, handle, epoch, to, out);
        }
        let (msg, primary) = (Peer::Forked { handle, epoch, to }, chunk.config().primary);
        out.push(Output::Peer { to: primary, msg, data: vec![] });
    }

    /// A member has made the fork.
    pub(crate) fn forked(
        &mut self,
        from: StoreId,
        handle: ChunkHandle,
        epoch: Epoch,
        to: ChunkHandle,
        out: &mut Outbox,
    ) {
        let Some(chunk) = self.chunks.get_mut(&handle).filter(|c| c.config().epoch == epoch) else { return };
        let Some(forking) = chunk.lead.as_mut().and_then(|l| l.forking.as_mut()) else { return };
        if let Step::Making(config, awaiting) = &mut forking.step
            && config.handle == to
            && awaiting.remove(&from)
            && awaiting.is_empty()
        {
            self.fork_on(handle, out);
        }
    }

    /// The masters answer with the epoch that is known: they did not take the fork, and are asked
    /// anew.
    pub(crate) fn fork_refused(&mut self, handle: ChunkHandle) {
        let Some(lead) = self.chunks.get_mut(&handle).and_then(|c| c.lead.as_mut()) else { return };
        if let Some(forking) = lead.forking.as_mut().filter(|f| matches!(f.step, Step::Made(_))) {
            forking.step = Step::Asking;
        }
    }
}

impl Forking {
    /// Whether a write waits for it, and no client that wants it for a file of its own.
    pub fn is_for_a_write(&self) -> bool {
        matches!(self.why, Why::Snapshot(_))
    }

    /// The fork, once it has a name.
    fn to(&self) -> Option<ChunkHandle> {
        match &self.step {
            Step::Asking => None,
            Step::Resting(to) | Step::Making(to, _) | Step::Made(to) => Some(to.handle),
        }
    }

    /// The requests of clients that wait for it.
    pub(crate) fn into_asks(self) -> Vec<(ConnId, u64)> {
        match self.why {
            Why::Snapshot(_) => vec![],
            Why::Clone(asks) => asks,
        }
    }
}

impl ChunkState {
    /// Another chunk of the same committed bytes.
    pub(crate) fn fork(&self, config: ChunkConfig) -> ChunkState {
        ChunkState {
            length: self.length,
            last: self.last,
            extents: self.extents.clone(),
            ..ChunkState::new(config)
        }
    }
}
