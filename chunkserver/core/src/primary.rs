//! The primary: admit, give the next serial, tell all members at once, gather their answers,
//! commit, answer.

use crate::cuts::Cuts;
use crate::fork::Forking;
use crate::io::{Ask, ConnId, Outbox, Output};
use crate::node::{Node, Waiting, handle_of, refuse, reply};
use crate::slow::Alone;
use crate::state::TailRecord;
use crate::store::format::{Place, Record};
use crate::store::{Sort, Ticket};
use crate::takeover::Phase;
use crate::teacher::Joining;
use crate::timers::Timer;
use common::limits::{
    APPLY_TIMEOUT_MS, BUSY_TIMEOUT_MS, CHUNK_BYTES_MAX, CHUNK_WINDOW, INLINE_BYTES_MAX, WRITE_BYTES_MAX,
};
use common::wire::chunk_chunk::{LogPoint, Origin, Peer, WriteOp};
use common::wire::client_chunk::{ClientChunk, ClientChunkReply};
use common::wire::{ChunkConfig, Piece};
use common::{ChunkHandle, Code, Mutant, Refusal, RequestId, Serial, Span, StoreId, Time};
use std::collections::{BTreeMap, BTreeSet};

/// After this long without another message, the secondaries are told the commit point.
const IDLE_COMMIT_MS: u64 = 20;
/// After a refusal the masters are asked again.
const ASK_AGAIN_MS: u64 = 100;
/// A member that had no room for a write is sent it again after this.
const SEND_AGAIN_MS: u64 = 20;

/// What a primary keeps of a chunk it leads.
#[derive(Clone, Debug)]
pub(crate) struct Lead {
    pub phase: Phase,
    /// Last durable serial of each member, this store among them.
    pub acked: BTreeMap<StoreId, Serial>,
    /// The commit point does not move before.
    pub hold_until: Time,
    /// Who waits for which write.
    pub replies: BTreeMap<RequestId, Vec<(ConnId, u64)>>,
    /// The end of the tail that was adopted with the epoch. Until it is committed nobody can say
    /// what of it was acknowledged before: nothing is readable, and no commit point is told.
    pub resolved: Serial,
    /// When something last moved.
    pub progress: Time,
    /// Members that fetch writes from here piece by piece: which they last came to ask for, and when.
    pub fetching: BTreeMap<StoreId, ((Serial, u16), Time)>,
    /// Who is waited for alone.
    pub alone: Alone,
    /// Who had no room for what it was sent last.
    pub no_room: BTreeSet<StoreId>,
    /// Of whom the masters were last told that it does not answer.
    pub accused: Option<StoreId>,
    /// While some member is late: who of the others was asked for a sign of life, and has not given it
    /// since.
    pub probed: BTreeMap<StoreId, Time>,
    /// A store is about to become a member; while it is, nothing is admitted.
    pub joining: Option<Joining>,
    /// The snapshots up to this one need nothing of the chunk any more, as the masters say; `None` if they are to be
    /// asked in any case.
    pub snapshot: Option<u64>,
    /// A fork is made; while it is, nothing is admitted.
    pub forking: Option<Box<Forking>>,
    /// Clients that wait for the seal; while there are any, nothing is admitted.
    pub sealing: Vec<(ConnId, u64)>,
    /// Who has the chunk's file cut.
    pub cuts: Cuts,
    /// The masters know it no more: nothing is admitted.
    pub is_gone: bool,
    /// The commit point that the secondaries were told.
    pub told: Serial,
    /// The secondaries may not know the chunk yet: each Apply says how to make it.
    pub fresh: bool,
}

impl Lead {
    /// Leads a chunk that has just come into being: all members are at serial 0.
    pub fn fresh(members: &[StoreId], now: Time) -> Lead {
        Lead { fresh: true, phase: Phase::Serving, ..Lead::new(members, now, now) }
    }

    pub fn new(members: &[StoreId], now: Time, hold_until: Time) -> Lead {
        Lead {
            phase: Phase::Serving,
            acked: members.iter().map(|m| (*m, Serial(0))).collect(),
            hold_until,
            replies: BTreeMap::new(),
            resolved: Serial(0),
            progress: now,
            fetching: BTreeMap::new(),
            alone: Alone::default(),
            no_room: BTreeSet::new(),
            accused: None,
            probed: BTreeMap::new(),
            joining: None,
            snapshot: Some(0),
            forking: None,
            sealing: vec![],
            cuts: Cuts::default(),
            is_gone: false,
            told: Serial(0),
            fresh: false,
        }
    }
}

impl Node {
    pub(crate) fn write(&mut self, ask: Waiting, out: &mut Outbox) {
        let ClientChunk::Write { handle, len, inline, create, offset, .. } = &ask.msg else { unreachable!() };
        let (handle, len) = (*handle, *len);
        let inline_fits =
            |p: &Piece| p.len == len && ask.data.len() == len as usize && len as usize <= INLINE_BYTES_MAX;
        let fits = len > 0
            && len as usize <= WRITE_BYTES_MAX
            && inline.as_ref().is_none_or(inline_fits)
            && offset.is_none_or(|o| o <= CHUNK_BYTES_MAX && o + len as u64 <= CHUNK_BYTES_MAX);
        if !fits {
            return refuse(&ask, Code::BadArgument, out);
        }
        if !self.chunks.contains_key(&handle) {
            let is_new = self.is_new(handle) && !self.unsure.contains(&handle);
            let first = |c: &&ChunkConfig| {
                c.invalid().is_none()
                    && is_new
                    && c.handle == handle
                    && c.epoch == ask.epoch
                    && c.epoch.number() == 1
                    && c.primary == self.id
                    && c.sealed.is_none()
                    && !self.floors.is_over(handle)
            };
            let Some(config) = create.as_ref().filter(first).cloned() else {
                return self.unknown_chunk(handle, ask, out);
            };
            let members = config.members.clone();
            self.create(ChunkConfig { wait_ms: 0, ..config }, Ticket::None);
            let chunk = self.chunks.get_mut(&handle).expect("just made");
            chunk.lead = Some(Box::new(Lead::fresh(&members, self.now)));
        }
        if let Some(ask) = self.led(ask, out) {
            self.admit(ask, out);
        }
    }

    /// The request, if this store leads its chunk under the epoch it names and serves. Else it
    /// is refused, or parked until that is so.
    pub(crate) fn led(&mut self, ask: Waiting, out: &mut Outbox) -> Option<Waiting> {
        let handle = handle_of(&ask.msg);
        let Some(chunk) = self.chunks.get(&handle) else {
            self.unknown_chunk(handle, ask, out);
            return None;
        };
        let epoch = chunk.config().epoch;
        if epoch.number() == 0 {
            self.park(handle, ask, out);
            return None;
        }
        if chunk.is_over(ask.epoch) || (ask.epoch.0 != 0 && ask.epoch < epoch) {
            refuse(&ask, Code::StaleEpoch, out);
            return None;
        }
        if ask.epoch > epoch {
            self.park(handle, ask, out);
            self.ask(handle, Ask::Confirm, out);
            return None;
        }
        if chunk.config().primary != self.id {
            refuse(&ask, Code::NotPrimary, out);
            return None;
        }
        match chunk.lead.as_ref().map(|l| matches!(l.phase, Phase::Serving)) {
            Some(true) => Some(ask),
            Some(false) => {
                self.park(handle, ask, out);
                None
            }
            None => {
                // Restarted: which writes the others hold is not known any more.
                self.park(handle, ask, out);
                self.ask(handle, Ask::Takeover { epoch }, out);
                None
            }
        }
    }

    fn admit(&mut self, ask: Waiting, out: &mut Outbox) {
        let ClientChunk::Write { request, lowest, handle, offset, len, inline, .. } = ask.msg.clone() else {
            unreachable!()
        };
        if let Some(answer) = self.answered(handle, request).filter(|_| !Mutant::NoAnswers.on()) {
            match answer {
                Ok(msg) => reply(&ask, msg, out),
                Err(code) => refuse(&ask, code, out),
            }
            return;
        }
        let no_room = self.store.log.admits_no_more();
        let chunk = self.chunks.get_mut(&handle).expect("led");
        let lead = chunk.lead.as_mut().expect("led");
        if chunk.state.tail.iter().any(|r| r.op.request == request) && !Mutant::NoDedupInTail.on() {
            // It is under way, perhaps from a primary before this one: it is answered when it
            // is committed.
            lead.replies.entry(request).or_default().push((ask.conn, ask.request));
            return;
        }
        if lead.joining.is_some() && !Mutant::AdmitWhileJoining.on() {
            return self.park(handle, ask, out);
        }
        if !self.is_after_snapshot(handle, ask.snapshot, out) || !self.is_after_cut(handle, out) {
            return self.park(handle, ask, out);
        }
        let chunk = self.chunks.get_mut(&handle).expect("led");
        let lead = chunk.lead.as_mut().expect("led");
        let at = offset.unwrap_or(chunk.state.length_with_tail());
        let end = at + len as u64;
        let refused = match (chunk.state.config.sealed, offset) {
            _ if lead.is_gone && !Mutant::GoneAdmits.on() => Some(Code::NoSuchChunk),
            _ if !lead.sealing.is_empty() => Some(Code::Sealed),
            (Some(_), None) => Some(Code::Sealed),
            (Some(sealed), Some(_)) if end > sealed => Some(Code::BeyondEnd),
            _ if end > CHUNK_BYTES_MAX => Some(Code::ChunkFull),
            _ if chunk.state.tail.len() >= CHUNK_WINDOW || no_room => Some(Code::Busy),
            _ => None,
        };
        if let Some(code) = refused {
            return refuse(&ask, code, out);
        }
        let place = match &inline {
            Some(_) if self.store.has_room(len, Sort::New).is_err() => {
                return refuse(&ask, Code::DiskFull, out);
            }
            Some(piece) => Place::Inline { data: ask.data.to_vec(), crcs: piece.crcs.clone() },
            None if self.held.complete(request) == Some(len) => self.held.claim(request),
            None if self.held.want(request, len, handle) => return self.park(handle, ask, out),
            None => return refuse(&ask, Code::PieceMissing, out),
        };
        let chunk = self.chunks.get_mut(&handle).expect("led");
        let origin = Origin { epoch: chunk.state.config.epoch, incarnation: self.store.config().incarnation };
        let serial = chunk.state.last_point().1.next();
        let op = WriteOp { origin, serial, request, lowest, offset: at, len };
        let lead = chunk.lead.as_mut().expect("led");
        lead.replies.insert(request, vec![(ask.conn, ask.request)]);
        if chunk.state.tail.is_empty() {
            lead.progress = self.now;
            self.await_answers(handle);
        }
        self.append(handle, op, place);
        self.send_applies(handle, None, serial, out);
    }

    /// The answer that a write had, or why it can have none; `None` if it is new.
    fn answered(&self, handle: ChunkHandle, request: RequestId) -> Option<Result<ClientChunkReply, Code>> {
        let chunk = &self.chunks[&handle];
        let known = chunk.state.answers_of(request.client)?;
        if let Ok(at) = known.answers.binary_search_by_key(&request.seq, |a| a.seq) {
            let a = known.answers[at];
            let replicas = chunk.state.config.members.len() as u8;
            return Some(Ok(ClientChunkReply::Written {
                offset: a.offset,
                len: a.len,
                serial: a.serial,
                replicas,
            }));
        }
        (request.seq < known.lowest).then_some(Err(Code::OutsideWindow))
    }

    /// Puts the next record into the tail and the log.
    pub(crate) fn append(&mut self, handle: ChunkHandle, op: WriteOp, place: Place) {
        if let Place::Runs(runs) = &place {
            for run in runs {
                self.store.crcs.set(run.segment, run.block, &run.crcs);
            }
        }
        let ticket = Ticket::Write(handle, (op.origin, op.serial));
        let state = self.chunks.state_mut(&handle).expect("appended to a chunk that is here");
        let record = Record::Write { handle, op, place };
        self.store.record(&record, ticket);
        let Record::Write { op, place, .. } = record else { unreachable!() };
        state.push(op, place);
    }

    /// Sends the records from `first` on to one secondary, or to all.
    pub(crate) fn send_applies(
        &mut self,
        handle: ChunkHandle,
        to: Option<StoreId>,
        first: Serial,
        out: &mut Outbox,
    ) {
        let me = self.id;
        let Some(chunk) = self.chunks.get_mut(&handle) else {
            return;
        };
        let Some(lead) = &mut chunk.lead else { return };
        let state = &chunk.state;
        let committed = state.committed();
        if to.is_none() {
            lead.told = committed;
        }
        let create = lead.fresh.then(|| state.config.clone());
        for member in state.config.members.iter().copied().filter(|m| *m != me && to.is_none_or(|t| t == *m))
        {
            let before = std::iter::once(state.last.0).chain(state.tail.iter().map(|r| r.op.origin));
            let records = state.tail.iter().zip(before).filter(|(r, _)| r.op.serial >= first);
            for (TailRecord { op, place }, after) in records {
                let (inline, data) = match place {
                    Place::Inline { data, crcs } => {
                        let piece = Piece { len: op.len, crcs: crcs.clone() };
                        (Some(piece), vec![bytes::Bytes::copy_from_slice(data)])
                    }
                    Place::Runs(_) => (None, vec![]),
                };
                let (op, create, epoch) = (op.clone(), create.clone(), state.config.epoch);
                let msg = Peer::Apply { handle, epoch, op, after, inline, committed, create };
                out.push(Output::Peer { to: member, msg, data });
            }
        }
    }

    /// A write is durable here.
    pub(crate) fn write_durable(
        &mut self,
        handle: ChunkHandle,
        (origin, serial): LogPoint,
        out: &mut Outbox,
    ) {
        let Some(chunk) = self.chunks.get_mut(&handle) else {
            return;
        };
        // A record that was cut meanwhile counts for nothing.
        if chunk.state.tail_record(serial).is_none_or(|r| r.op.origin != origin) {
            return;
        }
        chunk.durable = chunk.durable.max(serial);
        let durable = chunk.durable;
        match &mut chunk.lead {
            Some(lead) => {
                lead.acked.insert(self.id, durable);
                self.who_is_slow(handle, out);
                self.takeover_progress(handle, out);
                self.try_commit(handle, out);
            }
            None => {
                self.acks.insert(handle);
            }
        }
    }

    pub(crate) fn applied(
        &mut self,
        from: StoreId,
        handle: ChunkHandle,
        epoch: common::Epoch,
        serial: Serial,
        out: &mut Outbox,
    ) {
        let Some(chunk) = self.chunks.get_mut(&handle) else {
            return;
        };
        if chunk.state.config.epoch != epoch {
            return;
        }
        let last = chunk.state.last_point().1;
        // Before that a member may tell of a tail that it is about to cut.
        let serving = |l: &&mut Box<Lead>| matches!(l.phase, Phase::Serving);
        let Some(lead) = chunk.lead.as_mut().filter(serving) else { return };
        if let Some(acked) = lead.acked.get_mut(&from) {
            lead.probed.remove(&from);
            if serial.min(last) > *acked {
                *acked = serial.min(last);
                self.moved.insert(from, self.now);
            }
            self.who_is_slow(handle, out);
            self.try_commit(handle, out);
        }
    }

    /// Moves the commit point to what every member of the epoch holds, and answers.
    pub(crate) fn try_commit(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let now = self.now;
        let Some(chunk) = self.chunks.get_mut(&handle) else {
            return;
        };
        let Some(lead) = &mut chunk.lead else { return };
        if !matches!(lead.phase, Phase::Serving) || now < lead.hold_until {
            return;
        }
        let members = &chunk.state.config.members;
        let last = chunk.state.last_point().1;
        let me = self.id;
        let held = members.iter().map(|m| match Mutant::SelfAckEarly.on() && *m == me {
            true => last,
            false => lead.acked.get(m).copied().unwrap_or_default(),
        });
        let held = if Mutant::CommitAtFastest.on() { held.max() } else { held.min() };
        let held = held.expect("a configuration has members");
        if held > chunk.state.committed() {
            let replicas = members.len() as u8;
            for record in chunk.state.tail.iter().take_while(|r| r.op.serial <= held) {
                let WriteOp { request, offset, len, serial, .. } = record.op;
                for (conn, id) in lead.replies.remove(&request).unwrap_or_default() {
                    let msg = ClientChunkReply::Written { offset, len, serial, replicas };
                    out.push(Output::Reply { conn, request: id, msg, data: vec![] });
                }
            }
            lead.progress = now;
            lead.fetching.clear();
            lead.probed.clear();
            lead.fresh = false;
            let resolves = chunk.state.committed() < lead.resolved && held >= lead.resolved;
            self.advance(handle, held);
            if resolves {
                self.run_waiting(handle, out);
            }
        }
        let Some(chunk) = self.chunks.get_mut(&handle) else { return };
        if chunk.state.tail.is_empty() {
            let Some(lead) = &chunk.lead else { return };
            let (sealing, untold) = (!lead.sealing.is_empty(), lead.told < chunk.state.committed());
            let at_rest = lead.forking.is_none() && self.busy.remove(&handle);
            if at_rest && untold {
                self.timer(now + Span::from_ms(IDLE_COMMIT_MS), Timer::IdleCommit(handle));
            }
            if sealing {
                self.ask_seal(handle, out);
            }
        }
    }

    /// Tells the secondaries the commit point.
    pub(crate) fn tell_commit(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let me = self.id;
        let Some(chunk) = self.chunks.get_mut(&handle) else {
            return;
        };
        let Some(lead) = &mut chunk.lead else { return };
        if lead.replies.is_empty() {
            lead.replies = BTreeMap::new();
        }
        let committed = chunk.state.committed();
        if lead.told >= committed || !matches!(lead.phase, Phase::Serving) {
            return;
        }
        let due = lead.progress + Span::from_ms(IDLE_COMMIT_MS);
        if self.now < due {
            // More was committed since: what comes next may tell of it.
            return self.timer(due, Timer::IdleCommit(handle));
        }
        lead.told = committed;
        let epoch = chunk.state.config.epoch;
        for to in chunk.state.config.members.iter().copied().filter(|m| *m != me) {
            out.push(Output::Peer {
                to,
                msg: Peer::Commit { handle, epoch, committed, nonce: 0 },
                data: vec![],
            });
        }
        chunk.rest();
        if chunk.logged_commit < committed {
            chunk.logged_commit = committed;
            self.store.record_later(&Record::Committed { handle, serial: committed }, Ticket::None, self.now);
        }
    }

    /// From now on members of a chunk that this store leads owe an answer.
    pub(crate) fn await_answers(&mut self, handle: ChunkHandle) {
        self.busy.insert(handle);
        let chunk = &self.chunks[&handle];
        let one_is_lost = chunk.config().members.iter().any(|m| self.lost.contains(m));
        let takes_over = chunk.lead.as_ref().is_some_and(|lead| !matches!(lead.phase, Phase::Serving));
        let wait = match (one_is_lost, takes_over) {
            (true, _) => 0,
            (false, true) => ASK_AGAIN_MS,
            (false, false) => APPLY_TIMEOUT_MS,
        };
        self.timer(self.now + Span::from_ms(wait), Timer::Answers(handle));
    }

    /// Members have not answered for too long: the masters decide.
    pub(crate) fn answers_are_late(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let (me, now) = (self.id, self.now);
        if !self.busy.contains(&handle) {
            return;
        }
        let Some(chunk) = self.chunks.get(&handle) else {
            return;
        };
        let Some(lead) = &chunk.lead else { return };
        let moved =
            |m: &StoreId| lead.fetching.get(m).map_or(lead.progress, |(_, at)| lead.progress.max(*at));
        let late_at = |m: &StoreId| {
            let (here, anywhere) = (moved(m), self.moved.get(m).copied().unwrap_or_default());
            // Who moves elsewhere is busy.
            let silent_at = here.max(anywhere) + Span::from_ms(APPLY_TIMEOUT_MS);
            silent_at.min(here + Span::from_ms(BUSY_TIMEOUT_MS))
        };
        let overdue = |m: &StoreId| now >= late_at(m) || self.lost.contains(m);
        let last = chunk.state.last_point().1;
        let is_late = |m: &StoreId| match &lead.phase {
            Phase::Serving => lead.acked.get(m).is_none_or(|s| *s < last),
            phase => phase.awaits(*m),
        };
        let others = || chunk.state.config.members.iter().copied().filter(|m| *m != me);
        let mut late: Vec<StoreId> = others().filter(|m| is_late(m) && overdue(m)).collect();
        let next = others().filter(is_late).map(|m| late_at(&m)).min().unwrap_or(late_at(&me));
        if late.is_empty() && now < next {
            let mut again = next;
            if !matches!(lead.phase, Phase::Serving) {
                // A member that was started anew meanwhile, or knows this store's old address, may have answered to nobody.
                for member in others().filter(is_late).collect::<Vec<_>>() {
                    self.takeover_again(handle, member, out);
                }
                again = next.min(now + Span::from_ms(ASK_AGAIN_MS));
            }
            return self.timer(again, Timer::Answers(handle));
        }
        if !late.is_empty() && matches!(lead.phase, Phase::Serving) {
            late.extend(self.without_a_sign(handle, &late, out));
        }
        let Some(lead) = self.chunks.get(&handle).and_then(|c| c.lead.as_ref()) else { return };
        // In turn: one that only lags behind a hung one must not shield it.
        let after = |m: &&StoreId| lead.accused.is_some_and(|last| **m > last);
        let accused = late.iter().filter(after).min().or(late.iter().min()).copied();
        if let Some(accused) = accused {
            self.accuse(handle, accused, out);
        }
        self.timer(now + Span::from_ms(ASK_AGAIN_MS), Timer::Answers(handle));
    }

    /// Some members are late. Those that are not have nothing to answer, and may be just as far away if
    /// it is this store that cannot be heard: whoever complains of one alone is believed
    /// (`docs/decisions/0009`). So each of them gets the last write again, which it acknowledges again. Gives
    /// those that have not for too long.
    fn without_a_sign(&mut self, handle: ChunkHandle, late: &[StoreId], out: &mut Outbox) -> Vec<StoreId> {
        let (me, now) = (self.id, self.now);
        let Some(chunk) = self.chunks.get_mut(&handle) else { return vec![] };
        let Some(lead) = &mut chunk.lead else { return vec![] };
        let last = chunk.state.last_point().1;
        let (mut silent, mut ask) = (vec![], vec![]);
        for member in chunk.state.config.members.iter().filter(|m| **m != me && !late.contains(m)) {
            match lead.probed.get(member) {
                Some(since) if now >= *since + Span::from_ms(APPLY_TIMEOUT_MS) => silent.push(*member),
                Some(_) => {}
                None => {
                    lead.probed.insert(*member, now);
                    ask.push(*member);
                }
            }
        }
        for member in ask {
            self.send_applies(handle, Some(member), last, out);
        }
        silent
    }

    /// Tells the masters that a member does not do its part; not again before the time that was set when
    /// they refused to hear of it.
    pub(crate) fn accuse(&mut self, handle: ChunkHandle, accused: StoreId, out: &mut Outbox) {
        let Some(chunk) = self.chunks.get_mut(&handle) else { return };
        let Some(lead) = &mut chunk.lead else { return };
        if self.timers.is_set(Timer::AskAgain(handle)) {
            return;
        }
        lead.accused = Some(accused);
        let epoch = chunk.config().epoch;
        self.ask(handle, Ask::Silent { epoch, accused }, out);
    }

    pub(crate) fn ask_later(&mut self, handle: ChunkHandle) {
        self.timer(self.now + Span::from_ms(ASK_AGAIN_MS), Timer::AskAgain(handle));
    }

    pub(crate) fn ask_again(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let Some(chunk) = self.chunks.get(&handle) else {
            return;
        };
        let Some(lead) = &chunk.lead else { return };
        if !lead.sealing.is_empty() && chunk.state.tail.is_empty() {
            return self.ask_seal(handle, out);
        }
        // Whoever was accused may be back, and have missed what it was sent.
        for member in chunk.state.config.members.clone() {
            self.send_again(handle, member, out);
        }
        self.answers_are_late(handle, out);
    }

    /// Members that had no room may have some now.
    pub(crate) fn send_again_to_full(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let Some(lead) = self.chunks.get_mut(&handle).and_then(|c| c.lead.as_mut()) else { return };
        for member in std::mem::take(&mut lead.no_room) {
            self.send_again(handle, member, out);
        }
    }

    /// Sends a member again what it has not answered.
    fn send_again(&mut self, handle: ChunkHandle, member: StoreId, out: &mut Outbox) {
        let Some(lead) = self.chunks.get(&handle).and_then(|c| c.lead.as_ref()) else {
            return;
        };
        match (&lead.phase, lead.acked.get(&member).copied()) {
            _ if member == self.id => {}
            (Phase::Serving, Some(acked)) => self.send_applies(handle, Some(member), acked.next(), out),
            (_, Some(_)) => self.takeover_again(handle, member, out),
            _ => {}
        }
    }

    /// A secondary refuses an Apply, a new epoch, or a cut.
    pub(crate) fn apply_refused(
        &mut self,
        from: StoreId,
        handle: ChunkHandle,
        epoch: common::Epoch,
        applied: Serial,
        code: Code,
        out: &mut Outbox,
    ) {
        let Some(chunk) = self.chunks.get_mut(&handle) else {
            return;
        };
        let ours = chunk.state.config.epoch;
        let Some(lead) = chunk.lead.as_mut().filter(|_| chunk.state.config.members.contains(&from)) else {
            return;
        };
        match code {
            Code::Gap => self.send_applies(handle, Some(from), applied.next(), out),
            Code::StaleEpoch if epoch > ours => {
                // Another leads now: whoever waits shall ask again.
                chunk.confirmed = None;
                self.step_down(handle, &Refusal::new(Code::Reconfiguring, handle), out);
                self.ask(handle, Ask::Confirm, out);
            }
            Code::DiskFull | Code::DiskFailed => self.accuse(handle, from, out),
            Code::Busy if matches!(lead.phase, Phase::Serving) => {
                // It is alive, and has no room just now: its disk may be behind with filling a segment.
                lead.no_room.insert(from);
                self.moved.insert(from, self.now);
                self.timer(self.now + Span::from_ms(SEND_AGAIN_MS), Timer::SendAgain(handle));
            }
            _ => self.ask(handle, Ask::Takeover { epoch: ours }, out),
        }
    }

    /// Leads no more: whoever waits for an answer shall ask elsewhere.
    pub(crate) fn step_down(&mut self, handle: ChunkHandle, refusal: &Refusal, out: &mut Outbox) {
        self.busy.remove(&handle);
        let Some(lead) = self.chunks.get_mut(&handle).and_then(|c| c.lead.take()) else {
            return;
        };
        let forking = lead.forking.into_iter().flat_map(|forking| forking.into_asks());
        let sealing = lead.sealing.into_iter().chain(lead.cuts.into_asks());
        for (conn, request) in lead.replies.into_values().flatten().chain(sealing).chain(forking) {
            let msg = ClientChunkReply::Refused(refusal.clone());
            out.push(Output::Reply { conn, request, msg, data: vec![] });
        }
    }

    /// A store cannot be reached. The masters may not know yet that it has ended, and have whoever asks
    /// ask again: until it is heard of, its answers count as late.
    pub(crate) fn peer_lost(&mut self, peer: StoreId, out: &mut Outbox) {
        self.lost.insert(peer);
        for (request, index, upstream) in self.held.chain_lost(peer) {
            self.tell_held(request, index, upstream, Some(Code::ChainBroken), out);
        }
        for handle in self.busy.clone() {
            let chunk = &self.chunks[&handle];
            let epoch = chunk.state.config.epoch;
            if chunk.state.config.members.contains(&peer) {
                self.ask(handle, Ask::Silent { epoch, accused: peer }, out);
                self.timer(self.now + Span::from_ms(ASK_AGAIN_MS), Timer::Answers(handle));
            }
        }
    }

    /// The connection to a member broke and stands again: what it may have missed is sent again.
    pub(crate) fn peer_reset(&mut self, peer: StoreId, out: &mut Outbox) {
        self.lost.remove(&peer);
        for (request, index, upstream) in self.held.chain_lost(peer) {
            self.tell_held(request, index, upstream, Some(Code::ChainBroken), out);
        }
        for handle in self.busy.clone() {
            self.send_again(handle, peer, out);
        }
        self.fetch_anew(peer, out);
        // And what this store had said to a primary.
        let followed = |c: &crate::node::Chunk| c.config().primary == peer && !c.state.tail.is_empty();
        let again = self.chunks.unwritten().filter(|handle| self.chunks.get(handle).is_some_and(followed));
        self.acks.extend(again);
    }

    // --- sealing and length --------------------------------------------------------------

    pub(crate) fn client_seal(&mut self, ask: Waiting, out: &mut Outbox) {
        let Some(ask) = self.led(ask, out) else {
            return;
        };
        let handle = handle_of(&ask.msg);
        let chunk = self.chunks.get_mut(&handle).expect("led");
        if let Some(length) = chunk.state.config.sealed {
            return reply(&ask, ClientChunkReply::Sealed { length }, out);
        }
        let lead = chunk.lead.as_mut().expect("led");
        if lead.joining.is_some() || lead.forking.is_some() {
            return self.park(handle, ask, out);
        }
        lead.sealing.push((ask.conn, ask.request));
        if chunk.state.tail.is_empty() {
            self.ask_seal(handle, out);
        }
    }

    /// The masters have answered something else: the seal could not be asked for meanwhile.
    pub(crate) fn seal_on(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let Some(chunk) = self.chunks.get(&handle).filter(|chunk| chunk.state.tail.is_empty()) else {
            return;
        };
        if chunk.lead.as_ref().is_some_and(|lead| !lead.sealing.is_empty()) {
            self.ask_seal(handle, out);
        }
    }

    fn ask_seal(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let state = &self.chunks[&handle].state;
        let (epoch, length, serial) = (state.config.epoch, state.length as u64, state.committed());
        self.ask(handle, Ask::Seal { epoch, length, serial }, out);
    }

    /// The masters sealed the chunk.
    pub(crate) fn sealed(&mut self, config: ChunkConfig, out: &mut Outbox) {
        let (handle, length) = (config.handle, config.sealed.expect("sealed"));
        self.set_config(ChunkConfig { wait_ms: 0, ..config }, Ticket::None);
        let Some(lead) = &mut self.chunks.get_mut(&handle).expect("just set").lead else {
            return;
        };
        for (conn, request) in std::mem::take(&mut lead.sealing) {
            out.push(Output::Reply { conn, request, msg: ClientChunkReply::Sealed { length }, data: vec![] });
        }
    }
}
