//! A new epoch: the primary collects the tails, adopts the longest, and brings all members to it.
//!
//! Every member makes the epoch durable before it answers, so nothing of an older epoch can be
//! acknowledged any more. Tails are compared by their last record's (origin, serial), never by
//! the promised epoch. What lies beyond the last common record is discarded, durably.

use crate::io::{Ask, Outbox, Output};
use crate::node::Node;
use crate::primary::Lead;
use crate::store::Ticket;
use crate::store::format::Record;
use crate::timers::Timer;
use common::wire::ChunkConfig;
use common::wire::chunk_chunk::{LogPoint, Peer};
use common::wire::client_chunk::ClientChunkReply;
use common::{ChunkHandle, Code, Epoch, Mutant, Refusal, Serial, Span, StoreId};
use std::collections::{BTreeMap, BTreeSet};

/// While a removed member is waited for, the masters are asked this often whether that is over.
const HOLD_LOOK_MS: u64 = 100;

/// The tail of a member, as it told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TailReport {
    committed: Serial,
    tail: Vec<LogPoint>,
    last: LogPoint,
}

impl TailReport {
    fn point(&self, serial: Serial) -> Option<LogPoint> {
        let at = serial.0.checked_sub(self.committed.0 + 1)?;
        self.tail.get(at as usize).copied()
    }

    /// The last serial up to which both have the same records. What either knows as committed,
    /// the other has too: all members of an epoch hold what it committed.
    fn common(&self, other: &TailReport) -> Serial {
        let sure = self.committed.max(other.committed);
        let end = self.last.1.min(other.last.1);
        let mut serial = sure.min(end);
        while serial < end && self.point(serial.next()) == other.point(serial.next()) {
            serial = serial.next();
        }
        serial
    }
}

/// How far a primary is with its epoch.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    /// Members make the epoch durable and tell their tails.
    Collecting { reports: BTreeMap<StoreId, TailReport>, durable_here: bool },
    /// Another member has the longest tail: its records are fetched.
    Fetching { from: StoreId, reports: BTreeMap<StoreId, TailReport>, upto: Serial },
    /// Members cut what is not in the adopted tail.
    Aligning { awaiting: BTreeSet<StoreId> },
    /// Writes are taken.
    Serving,
}

impl Phase {
    /// Whether this member's answer is missing.
    pub fn awaits(&self, member: StoreId) -> bool {
        match self {
            Phase::Collecting { reports, .. } => !reports.contains_key(&member),
            Phase::Fetching { from, .. } => *from == member,
            Phase::Aligning { awaiting } => awaiting.contains(&member),
            Phase::Serving => false,
        }
    }
}

impl Node {
    /// The masters made this store primary of a new epoch.
    pub(crate) fn begin_takeover(&mut self, config: ChunkConfig, out: &mut Outbox) {
        let (handle, epoch) = (config.handle, config.epoch);
        let wait_ms = if Mutant::ForgetHold.on() { 0 } else { config.wait_ms };
        let hold_until = self.now + Span::from_ms(wait_ms);
        let session = self.in_session();
        let chunk = self.chunks.get_mut(&handle);
        let follows = chunk.as_ref().is_some_and(|c| c.config().epoch.next() == epoch);
        let before = chunk.and_then(|c| c.lead.take());
        self.set_config(ChunkConfig { wait_ms: 0, ..config.clone() }, Ticket::Config(handle, epoch));
        let mut lead = Lead::new(&config.members, self.now, hold_until);
        // The file may have dropped the chunk, and a snapshot that was not heard of here may have it: who led it before may
        // be the only one that knows. Only a sealed chunk is dropped.
        let may_be_dropped = config.sealed.is_some() && !Mutant::TakenOverUnasked.on();
        lead.snapshot = (!may_be_dropped).then_some(0);
        if let Some(before) = before {
            let forking = before.forking.into_iter().flat_map(|forking| forking.into_asks());
            for (conn, request) in forking.chain(before.cuts.into_asks()) {
                let msg = ClientChunkReply::Refused(Refusal::new(Code::StaleEpoch, handle));
                out.push(Output::Reply { conn, request, msg, data: vec![] });
            }
            lead.replies = before.replies;
            lead.sealing = before.sealing;
            lead.snapshot = before.snapshot.filter(|_| follows || !may_be_dropped);
            lead.is_gone = before.is_gone;
            lead.hold_until = hold_until.max(before.hold_until);
        }
        lead.phase = Phase::Collecting { reports: BTreeMap::new(), durable_here: false };
        let hold = lead.hold_until > self.now;
        let chunk = self.chunks.get_mut(&handle).expect("just set");
        chunk.confirmed = session;
        chunk.lead = Some(Box::new(lead));
        if hold {
            self.hold(handle);
        }
        self.await_answers(handle);
        for to in config.members.iter().copied().filter(|m| *m != self.id) {
            let config = ChunkConfig { wait_ms: 0, ..config.clone() };
            out.push(Output::Peer { to, msg: Peer::NewEpoch { config }, data: vec![] });
        }
    }

    fn hold(&mut self, handle: ChunkHandle) {
        let Some(lead) = self.chunks.get(&handle).and_then(|c| c.lead.as_ref()) else { return };
        let look = self.now + Span::from_ms(HOLD_LOOK_MS);
        self.timer(lead.hold_until.min(look), Timer::Hold(handle));
    }

    /// The time to wait for a removed member is over, or it has confirmed meanwhile that it serves
    /// no more: the masters know.
    pub(crate) fn hold_goes_on(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let now = self.now;
        let Some(lead) = self.chunks.get(&handle).and_then(|c| c.lead.as_ref()) else { return };
        if now >= lead.hold_until {
            return self.try_commit(handle, out);
        }
        self.ask(handle, Ask::Confirm, out);
        self.hold(handle);
    }

    /// The masters say for how long a removed member must still be waited for.
    pub(crate) fn hold_told(&mut self, handle: ChunkHandle, wait_ms: u64, out: &mut Outbox) {
        let until = self.now + Span::from_ms(wait_ms);
        let Some(lead) = self.chunks.get_mut(&handle).and_then(|c| c.lead.as_mut()) else { return };
        if until < lead.hold_until {
            lead.hold_until = until;
            self.hold(handle);
            self.try_commit(handle, out);
        }
    }

    /// A member may have missed what it was sent.
    pub(crate) fn takeover_again(&mut self, handle: ChunkHandle, peer: StoreId, out: &mut Outbox) {
        let chunk = &self.chunks[&handle];
        let lead = chunk.lead.as_ref().expect("takes over");
        let config = chunk.config().clone();
        let (epoch, committed) = (config.epoch, chunk.state.committed());
        match &lead.phase {
            phase if !phase.awaits(peer) => {}
            Phase::Collecting { .. } => {
                out.push(Output::Peer { to: peer, msg: Peer::NewEpoch { config }, data: vec![] })
            }
            Phase::Fetching { .. } if chunk.follow.fetch.is_some() => self.fetch_again(handle, out),
            Phase::Fetching { from, .. } => {
                let (from, serial) = (*from, chunk.state.last_point().1.next());
                self.start_fetch(handle, from, serial, out);
            }
            Phase::Aligning { .. } => {
                let keep = lead.acked[&peer];
                let msg = Peer::Adopt { handle, epoch, keep, committed: committed.min(keep) };
                out.push(Output::Peer { to: peer, msg, data: vec![] });
            }
            Phase::Serving => {}
        }
    }

    /// A member hears of a new epoch from its primary.
    pub(crate) fn new_epoch(&mut self, from: StoreId, config: ChunkConfig, out: &mut Outbox) {
        let (handle, epoch) = (config.handle, config.epoch);
        let refuse = |code, known, out: &mut Outbox| {
            let msg = Peer::ApplyRefused { handle, epoch: known, applied: Serial(0), code };
            out.push(Output::Peer { to: from, msg, data: vec![] });
        };
        if config.invalid().is_some() || config.primary != from || !config.members.contains(&self.id) {
            return refuse(Code::BadArgument, Epoch(0), out);
        }
        let floor = self.floors.of(handle);
        let known = self.chunks.get(&handle).map_or(Epoch(0), |c| c.config().epoch);
        if epoch < floor || epoch < known {
            return refuse(Code::StaleEpoch, floor.max(known), out);
        }
        let ticket = Ticket::Config(handle, epoch);
        let config = ChunkConfig { wait_ms: 0, ..config };
        if known.number() == 0 && self.floors.may_be_forgotten(handle) {
            // The primary says so again.
            return self.ask_before_making(handle, out);
        }
        if known.number() == 0 {
            self.create(config, ticket);
        } else if epoch > known {
            self.step_down(handle, &Refusal::new(Code::Reconfiguring, handle), out);
            self.fail_reads(handle, Code::Reconfiguring, out);
            self.set_config(config, ticket);
            if Mutant::TailBeforeDurable.on() {
                self.config_durable(handle, epoch, out);
            }
        } else {
            // Asked again: the record may not be durable yet, so it is written again.
            self.store.record(&Record::Config(config), ticket);
        }
        self.forget_applies(handle);
    }

    fn report(&self, handle: ChunkHandle) -> TailReport {
        let state = &self.chunks[&handle].state;
        let point = |r: &crate::state::TailRecord| (r.op.origin, r.op.serial);
        TailReport {
            committed: state.committed(),
            tail: state.tail.iter().map(point).collect(),
            last: state.last_point(),
        }
    }

    /// A configuration is durable here, and with it every record before it.
    pub(crate) fn config_durable(&mut self, handle: ChunkHandle, epoch: Epoch, out: &mut Outbox) {
        let Some(chunk) = self.chunks.get_mut(&handle) else {
            return;
        };
        if chunk.config().epoch != epoch {
            return;
        }
        if let Some(lead) = &mut chunk.lead {
            if let Phase::Collecting { durable_here, .. } = &mut lead.phase {
                *durable_here = true;
                self.collected(handle, out);
            }
            return;
        }
        let to = chunk.config().primary;
        let TailReport { committed, tail, last } = self.report(handle);
        out.push(Output::Peer { to, msg: Peer::Tail { handle, epoch, committed, tail, last }, data: vec![] });
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(crate) fn tail_told(
        &mut self,
        from: StoreId,
        handle: ChunkHandle,
        epoch: Epoch,
        committed: Serial,
        tail: Vec<LogPoint>,
        last: LogPoint,
        out: &mut Outbox,
    ) {
        let Some(chunk) = self.chunks.get_mut(&handle) else {
            return;
        };
        if chunk.state.config.epoch != epoch || !chunk.state.config.members.contains(&from) {
            return;
        }
        let Some(lead) = &mut chunk.lead else { return };
        if let Phase::Collecting { reports, .. } = &mut lead.phase {
            reports.insert(from, TailReport { committed, tail, last });
            self.collected(handle, out);
        }
    }

    /// All tails are known: the longest is adopted.
    fn collected(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let own = self.report(handle);
        let me = self.id;
        let chunk = self.chunks.get_mut(&handle).expect("takes over");
        let others = chunk.state.config.members.len() - 1;
        let lead = chunk.lead.as_mut().expect("takes over");
        let Phase::Collecting { reports, durable_here } = &mut lead.phase else {
            return;
        };
        if !*durable_here || reports.len() < others {
            return;
        }
        lead.progress = self.now;
        let reports = std::mem::take(reports);
        let best = reports.iter().max_by_key(|(_, r)| r.last).filter(|(_, r)| r.last > own.last);
        let committed = reports.values().map(|r| r.committed).max().unwrap_or_default();
        match best.map(|(id, r)| (*id, r.clone())) {
            None => {
                self.advance(handle, committed);
                self.align(handle, reports, out);
            }
            Some((from, theirs)) => {
                let keep = own.common(&theirs);
                lead.phase = Phase::Fetching { from, reports, upto: theirs.last.1 };
                self.advance(handle, committed.min(keep));
                self.cut_tail(handle, keep, Ticket::None);
                self.chunks
                    .get_mut(&handle)
                    .expect("it is here")
                    .lead
                    .as_mut()
                    .expect("it leads")
                    .acked
                    .insert(me, keep);
                self.takeover_progress(handle, out);
            }
        }
    }

    /// Fetches the next record of the adopted tail, or goes on when all are durable here.
    pub(crate) fn takeover_progress(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let Some(chunk) = self.chunks.get_mut(&handle) else {
            return;
        };
        let last = chunk.state.last_point().1;
        let durable = chunk.durable;
        let Some(lead) = &mut chunk.lead else { return };
        let Phase::Fetching { from, reports, upto } = &mut lead.phase else {
            return;
        };
        lead.progress = self.now;
        if last < *upto {
            let from = *from;
            if chunk.follow.fetch.is_none() {
                self.start_fetch(handle, from, last.next(), out);
            }
        } else if durable >= *upto {
            let reports = std::mem::take(reports);
            let committed = reports.values().map(|r| r.committed).max().unwrap_or_default();
            self.advance(handle, committed);
            self.align(handle, reports, out);
        }
    }

    /// Every member drops what is not in the adopted tail, and gets what it lacks of it.
    fn align(&mut self, handle: ChunkHandle, reports: BTreeMap<StoreId, TailReport>, out: &mut Outbox) {
        let adopted = self.report(handle);
        let me = self.id;
        let chunk = self.chunks.get_mut(&handle).expect("takes over");
        let (epoch, committed, durable) = (chunk.config().epoch, adopted.committed, chunk.durable);
        let lead = chunk.lead.as_mut().expect("takes over");
        lead.acked.insert(me, durable);
        let mut awaiting = BTreeSet::new();
        for (member, report) in &reports {
            let keep = adopted.common(report);
            lead.acked.insert(*member, keep);
            if report.last.1 > keep {
                awaiting.insert(*member);
                let msg = Peer::Adopt { handle, epoch, keep, committed: committed.min(keep) };
                out.push(Output::Peer { to: *member, msg, data: vec![] });
            }
        }
        lead.progress = self.now;
        lead.phase = Phase::Aligning { awaiting };
        self.aligned(handle, out);
    }

    fn aligned(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let me = self.id;
        let chunk = self.chunks.get_mut(&handle).expect("takes over");
        let lead = chunk.lead.as_mut().expect("takes over");
        if !matches!(&lead.phase, Phase::Aligning { awaiting } if awaiting.is_empty()) {
            return;
        }
        lead.phase = Phase::Serving;
        lead.progress = self.now;
        lead.resolved = chunk.state.last_point().1;
        let behind: Vec<(StoreId, Serial)> =
            lead.acked.iter().map(|(m, s)| (*m, *s)).filter(|(m, _)| *m != me).collect();
        // Writes that nobody holds any more will not be answered: their clients ask again.
        let tail: BTreeSet<_> = chunk.state.tail.iter().map(|r| r.op.request).collect();
        let lost: Vec<_> = lead.replies.keys().filter(|r| !tail.contains(r)).copied().collect();
        for request in lost {
            for (conn, id) in lead.replies.remove(&request).unwrap_or_default() {
                let refusal = Refusal::new(Code::Reconfiguring, handle);
                let msg = common::wire::client_chunk::ClientChunkReply::Refused(refusal);
                out.push(Output::Reply { conn, request: id, msg, data: vec![] });
            }
        }
        for (member, acked) in behind {
            self.send_applies(handle, Some(member), acked.next(), out);
        }
        self.try_commit(handle, out);
        self.run_waiting(handle, out);
    }

    /// Drops the tail after `keep`, durably; its blocks are free after that.
    fn cut_tail(&mut self, handle: ChunkHandle, keep: Serial, ticket: Ticket) {
        let state = self.chunks.state_mut(&handle).expect("the chunk is here");
        let keep = keep.max(state.committed());
        let blocks = state.cut(keep);
        let chunk = self.chunks.get_mut(&handle).expect("the chunk is here");
        chunk.durable = chunk.durable.min(keep);
        self.store.record(&Record::Cut { handle, keep }, ticket);
        if !blocks.is_empty() {
            let serial = self.chunks[&handle].state.committed();
            self.store.record(&Record::Committed { handle, serial }, Ticket::Free(blocks));
        }
    }

    pub(crate) fn adopt_asked(
        &mut self,
        from: StoreId,
        handle: ChunkHandle,
        epoch: Epoch,
        keep: Serial,
        committed: Serial,
        _out: &mut Outbox,
    ) {
        let Some(chunk) = self.chunks.get_mut(&handle) else {
            return;
        };
        if chunk.config().epoch != epoch || chunk.config().primary != from {
            return;
        }
        self.forget_applies(handle);
        self.advance(handle, committed);
        self.cut_tail(handle, keep, Ticket::Cut(handle, epoch));
    }

    pub(crate) fn cut_durable(&mut self, handle: ChunkHandle, epoch: Epoch, out: &mut Outbox) {
        let Some(chunk) = self.chunks.get(&handle) else {
            return;
        };
        if chunk.config().epoch == epoch && chunk.lead.is_none() {
            let to = chunk.config().primary;
            out.push(Output::Peer { to, msg: Peer::Adopted { handle, epoch }, data: vec![] });
        }
    }

    pub(crate) fn adopted(&mut self, from: StoreId, handle: ChunkHandle, epoch: Epoch, out: &mut Outbox) {
        let Some(chunk) = self.chunks.get_mut(&handle) else {
            return;
        };
        if chunk.state.config.epoch != epoch {
            return;
        }
        let Some(lead) = &mut chunk.lead else { return };
        if let Phase::Aligning { awaiting } = &mut lead.phase {
            awaiting.remove(&from);
            self.aligned(handle, out);
        }
    }
}
