//! The primary's side of a copy: answers questions about what is committed, stops admitting for
//! the last round, and proposes the new member.

use crate::io::{Ask, Outbox, Output};
use crate::node::Node;
use crate::reads::ReadFor;
use crate::store::read::{ReadResult, one_piece, parts_of};
use crate::takeover::Phase;
use crate::timers::Timer;
use common::limits::{HALT_MS, PIECE_BYTES_MAX};
use common::wire::chunk_chunk::{COPY_ANSWERS_MAX, CopyId, LogPoint, Peer};
use common::{ChunkHandle, ClientId, Code, Mutant, Serial, Span, StoreId, Time};

/// Who asks, of which copy, and the question's number.
pub(crate) type Question = (StoreId, CopyId, u64);

/// A question about bytes that waits for its turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taught {
    at: Time,
    question: Question,
    since: Serial,
    from: u32,
}

/// While there is one, a primary admits nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Joining {
    learner: StoreId,
    copy: CopyId,
    /// The learner has so long, unless the masters were asked already.
    until: Time,
    /// The masters were asked: only their answer ends this.
    asked: bool,
}

impl Node {
    fn refuse_copy(&self, to: StoreId, copy: CopyId, code: Code, out: &mut Outbox) {
        out.push(Output::Peer { to, msg: Peer::CopyRefused { copy, code }, data: vec![] });
    }

    /// Whether this store leads the chunk of a copy under its epoch; else the learner is told, or
    /// asks again when it does.
    fn teaches(&mut self, to: StoreId, copy: CopyId, out: &mut Outbox) -> bool {
        let CopyId { handle, epoch, .. } = copy;
        if self.floors.of(handle) > epoch {
            self.refuse_copy(to, copy, Code::StaleEpoch, out);
            return false;
        }
        // Nobody has written to it yet, or this store has lost it: it leads it all the same.
        if !self.chunks.contains_key(&handle) {
            self.placeholder(handle);
        }
        let chunk = &self.chunks[&handle];
        let known = chunk.config().epoch;
        if known > epoch || chunk.is_over(epoch) {
            self.refuse_copy(to, copy, Code::StaleEpoch, out);
            return false;
        }
        if known < epoch {
            self.ask(handle, Ask::Confirm, out);
            return false;
        }
        if chunk.config().primary != self.id {
            self.refuse_copy(to, copy, Code::NotPrimary, out);
            return false;
        }
        match &chunk.lead {
            Some(lead) => matches!(lead.phase, Phase::Serving),
            None => {
                self.ask(handle, Ask::Takeover { epoch }, out);
                false
            }
        }
    }

    pub(crate) fn copy_asked(
        &mut self,
        question: Question,
        since: Serial,
        from: u32,
        halt: bool,
        out: &mut Outbox,
    ) {
        let (to, copy, _) = question;
        if self.in_session().is_none() || !self.teaches(to, copy, out) {
            return;
        }
        if halt && !self.halted_for(to, copy) {
            // The tail is not committed yet: the learner asks again.
            return;
        }
        let at = match self.taught.get(&copy.handle) {
            // Clients wait for the last round to end.
            _ if halt => self.now,
            // Asked again while it waits: it keeps its turn.
            Some(taught) if taught.question.1 == copy => taught.at,
            _ => self.pace.book(self.now, PIECE_BYTES_MAX as u64),
        };
        if at > self.now {
            self.taught.insert(copy.handle, Taught { at, question, since, from });
            return self.timer(at, Timer::Teach(copy.handle));
        }
        self.taught.remove(&copy.handle);
        self.copy_answered(question, since, from, out);
    }

    /// It is the turn of a question that waits, if it is still a question.
    pub(crate) fn teach(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let now = self.now;
        if let Some(Taught { question, since, from, .. }) =
            self.taught.get(&handle).copied().filter(|t| t.at <= now)
        {
            self.taught.remove(&handle);
            if self.in_session().is_some() && self.teaches(question.0, question.1, out) {
                self.copy_answered(question, since, from, out);
            }
        }
    }

    fn copy_answered(&mut self, question: Question, since: Serial, from: u32, out: &mut Outbox) {
        let (to, copy, nonce) = question;
        let state = &self.chunks[&copy.handle].state;
        let (committed, length) = (state.last, state.length);
        let Some((at, end)) = state.extents.changed(from, since, PIECE_BYTES_MAX as u32) else {
            let msg = Peer::CopyData { copy, nonce, piece: None, committed, length };
            return out.push(Output::Peer { to, msg, data: vec![] });
        };
        let parts = parts_of(state.extents.range(at, end), at, end);
        let job = self.store.read(parts, out);
        self.reads.insert(job, ReadFor::Copy { question, at, committed, length });
        if let Some(result) = self.store.finish_ready(job) {
            self.read_done(job, result, out);
        }
    }

    pub(crate) fn copy_read(
        &mut self,
        (to, copy, nonce): Question,
        at: u32,
        committed: LogPoint,
        length: u32,
        result: ReadResult,
        out: &mut Outbox,
    ) {
        let (piece, data) = match result {
            Ok(read) => one_piece(read),
            Err(code) => return self.refuse_copy(to, copy, code, out),
        };
        let msg = Peer::CopyData { copy, nonce, piece: Some((at, piece)), committed, length };
        out.push(Output::Peer { to, msg, data: vec![data] });
    }

    /// Stops admitting for this copy, and says whether the chunk is at rest.
    fn halted_for(&mut self, learner: StoreId, copy: CopyId) -> bool {
        let until = self.now + Span::from_ms(HALT_MS);
        let chunk = self.chunks.get_mut(&copy.handle).expect("it is led");
        let lead = chunk.lead.as_mut().expect("it is led");
        if !lead.sealing.is_empty() || lead.forking.is_some() {
            return false;
        }
        match &lead.joining {
            Some(joining) if joining.copy == copy => {}
            Some(joining) if joining.asked => return false,
            _ => {
                lead.joining = Some(Joining { learner, copy, until, asked: false });
                self.timer(until, Timer::HaltOver(copy.handle));
            }
        }
        self.chunks[&copy.handle].state.tail.is_empty() || Mutant::LastRoundWithTail.on()
    }

    /// The learner took too long: admits again, if the masters were not asked.
    pub(crate) fn halt_is_over(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let now = self.now;
        let Some(lead) = self.chunks.get_mut(&handle).and_then(|c| c.lead.as_mut()) else { return };
        match &lead.joining {
            Some(joining) if joining.asked && !Mutant::GoOnAfterAsked.on() => self.join_again(handle, out),
            Some(joining) if joining.until <= now => {
                lead.joining = None;
                self.run_waiting(handle, out);
            }
            _ => {}
        }
    }

    pub(crate) fn answers_asked(
        &mut self,
        (to, copy, nonce): Question,
        after: Option<ClientId>,
        out: &mut Outbox,
    ) {
        if !self.teaches(to, copy, out) {
            return;
        }
        if !self.joins(copy) {
            return self.refuse_copy(to, copy, Code::Reconfiguring, out);
        }
        let all = &self.chunks[&copy.handle].state.answers;
        let mut rest = all.iter().filter(|a| after.is_none_or(|after| a.client > after));
        let answers = rest.by_ref().take(COPY_ANSWERS_MAX).cloned().collect();
        let more = rest.next().is_some();
        out.push(Output::Peer { to, msg: Peer::CopiedAnswers { copy, nonce, answers, more }, data: vec![] });
    }

    fn joins(&self, copy: CopyId) -> bool {
        let lead = self.chunks.get(&copy.handle).and_then(|c| c.lead.as_ref());
        lead.is_some_and(|l| l.joining.is_some_and(|j| j.copy == copy))
    }

    /// The learner holds everything, durably: the masters are asked for an epoch with it. From
    /// here on nothing is admitted until they have answered, for or against: an epoch that comes
    /// late would have a member that lacks what was acknowledged meanwhile.
    pub(crate) fn copied(&mut self, from: StoreId, copy: CopyId, point: LogPoint, out: &mut Outbox) {
        if !self.teaches(from, copy, out) {
            return;
        }
        let chunk = self.chunks.get_mut(&copy.handle).expect("it is led");
        let at_rest =
            chunk.state.tail.is_empty() && chunk.state.last == point || Mutant::LastRoundWithTail.on();
        let lead = chunk.lead.as_mut().expect("it is led");
        match &mut lead.joining {
            Some(joining) if joining.copy == copy && joining.learner == from && at_rest => {
                if !std::mem::replace(&mut joining.asked, true) {
                    self.join_again(copy.handle, out);
                }
            }
            _ => self.refuse_copy(from, copy, Code::Reconfiguring, out),
        }
    }

    fn join_again(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let lead = self.chunks[&handle].lead.as_ref().expect("it is led");
        let Some(Joining { learner, copy, .. }) = lead.joining else { return };
        let CopyId { epoch, attempt, .. } = copy;
        self.ask(handle, Ask::Join { epoch, learner, attempt }, out);
        self.timer(self.now + Span::from_ms(HALT_MS), Timer::HaltOver(handle));
    }

    /// The masters refused: the attempt is over, for good, if they say so.
    pub(crate) fn join_refused(&mut self, handle: ChunkHandle, code: Code, out: &mut Outbox) {
        let Some(lead) = self.chunks.get_mut(&handle).and_then(|c| c.lead.as_mut()) else { return };
        if code == Code::RepairVoid
            && let Some(joining) = lead.joining.take_if(|j| j.asked)
        {
            self.refuse_copy(joining.learner, joining.copy, code, out);
            self.run_waiting(handle, out);
        }
    }
}
