//! A store that is to become a member of a chunk copies it from the primary, in rounds: first
//! everything it lacks, then what was written meanwhile, until little is left. Then the primary
//! stops admitting, the last round finds the chunk at rest, and one record makes the copy durable.
//! Only then does the primary ask the masters for an epoch with the new member.
//!
//! Until that record nothing refers to the copied extents, so a crash only frees them; an old
//! copy that the store still has is what the new one is made of, and stays until it is replaced.

use crate::io::{Outbox, Output};
use crate::node::{Chunk, Node};
use crate::state::ChunkState;
use crate::store::alloc::Blocks;
use crate::store::format::{Place, Record, Run};
use crate::store::{PieceTicket, Sort, Ticket};
use crate::teacher::Question;
use crate::timers::Timer;
use bytes::Bytes;
use common::limits::{BLOCK_BYTES, LEARNERS_MAX, LOG_GROUP_BYTES_MAX};
use common::wire::chunk_chunk::{Answers, CopyId, LogPoint, Peer};
use common::wire::chunk_master::{Order, RepairOrder};
use common::wire::{ChunkConfig, Piece};
use common::{ChunkHandle, ClientId, Epoch, Mutant, Serial, Span, StoreId, Time};
use std::sync::Arc;

/// A question that is not answered is asked again after this.
const ASK_AGAIN_MS: u64 = 100;
/// In the last round sooner: clients wait.
const ASK_AGAIN_HALTED_MS: u64 = 10;
/// A round that copied at most so much is followed by the last one.
const LAST_ROUND_BYTES: u64 = 512 * 1024;
/// After so many rounds the last one comes anyway: the writers are faster than the copy.
const ROUNDS_MAX: u32 = 8;
/// An old copy in more parts than this is not built on: one record must hold the new one.
const BASE_EXTENTS_MAX: usize = 4096;

/// A chunk that is being copied to this store.
#[derive(Clone, Debug)]
pub(crate) struct Learner {
    config: ChunkConfig,
    id: CopyId,
    /// The copy as it grows, beginning with what an old copy holds.
    state: ChunkState,
    /// Blocks that were taken for it, and what was written into them.
    taken: Vec<Blocks>,
    runs: Vec<Run>,
    /// Bytes under way to the disk: where they go.
    writing: Option<(u32, Run, LogPoint)>,
    /// This round asks for what was written after this.
    since: Serial,
    /// The last committed record when the round began.
    round: Option<LogPoint>,
    rounds: u32,
    round_bytes: u64,
    /// When the next bytes may be asked for, for the sake of clients; and what the last took of the disks: most chunks
    /// are small, and need no more time than they take.
    turn: Option<Time>,
    took: u64,
    /// The last question, and when it is asked again.
    nonce: u64,
    again_at: Time,
    /// Where the next question of the round begins.
    from: u32,
    /// The last round: the primary admits nothing.
    halt: bool,
    answers: Option<Vec<Answers>>,
    /// The copy is in the log, and durable there.
    installed: bool,
    durable: bool,
}

impl Learner {
    fn last_client(&self) -> Option<ClientId> {
        self.answers.as_ref().and_then(|a| a.last()).map(|a| a.client)
    }
}

impl Node {
    /// The masters say what is to be copied: what is not in their list any more has ended.
    pub(crate) fn repairs(&mut self, orders: Vec<RepairOrder>, out: &mut Outbox) {
        let known: Vec<CopyId> = self.learners.values().map(|l| l.id).collect();
        for id in known {
            if !orders.iter().any(|o| o.attempt == id.attempt && o.config.handle == id.handle) {
                self.end_copy(id.handle);
            }
        }
        for RepairOrder { config, attempt } in orders {
            self.begin_copy(config, attempt, out);
        }
    }

    fn begin_copy(&mut self, config: ChunkConfig, attempt: u64, out: &mut Outbox) {
        let handle = config.handle;
        let id = CopyId { handle, epoch: config.epoch, attempt };
        let sound = config.invalid().is_none() && !config.members.contains(&self.id);
        let floor = self.floors.of(handle);
        if !sound || floor > config.epoch || self.learners.get(&handle).is_some_and(|l| l.id == id) {
            return;
        }
        self.end_copy(handle);
        if self.learners.len() >= LEARNERS_MAX {
            return;
        }
        if self.chunks.get(&handle).is_some_and(|c| c.config().epoch < config.epoch && !c.state.removed) {
            // It was paused, perhaps as the primary, and has not heard that it is no member.
            let order = Order { handle, epoch: config.epoch, discard: false };
            self.remove(order, Ticket::None, out);
        }
        let mut state = ChunkState::new(config.clone());
        if let Some(chunk) = self.chunks.get(&handle).filter(|c| c.config().epoch.number() > 0) {
            if chunk.config().epoch > config.epoch {
                return;
            }
            // Bytes that have no home yet get one first, and their checksums must be durable: the
            // record of the whole copy names only those of what is copied. The order comes again.
            if chunk.state.extents.has_inline() {
                return self.want_checkpoint(false);
            }
            if !self.checkpoint.is_idle() {
                return self.gather.stop();
            }
            if chunk.state.extents.count() <= BASE_EXTENTS_MAX {
                state.extents = chunk.state.extents.clone();
                state.last = chunk.state.last;
            }
        }
        let since = if Mutant::CopyFromTail.on() {
            self.chunks.get(&handle).map_or(Serial(0), |c| c.state.last_point().1)
        } else {
            state.committed()
        };
        let learner = Learner {
            config,
            id,
            state,
            taken: vec![],
            runs: vec![],
            writing: None,
            since,
            round: None,
            rounds: 0,
            round_bytes: 0,
            turn: None,
            took: BLOCK_BYTES as u64,
            nonce: 0,
            again_at: self.now,
            from: 0,
            halt: false,
            answers: None,
            installed: false,
            durable: false,
        };
        self.learners.insert(handle, learner);
        self.copy_on(handle, out);
    }

    /// A copy has ended, whichever way: what it took and did not make durable is free.
    pub(crate) fn end_copy(&mut self, handle: ChunkHandle) {
        let Some(learner) = self.learners.remove(&handle) else { return };
        if learner.installed {
            return;
        }
        // Bytes that are under way to the disk free their blocks when they have landed.
        let landing = learner.writing.map(|(_, run, _)| blocks_of(&run));
        let free = learner.taken.into_iter().filter(|b| Some(*b) != landing).collect();
        self.store.free(free);
    }

    /// Asks the next question of a copy.
    pub(crate) fn copy_on(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let nonce = self.store.next_nonce();
        let Some(learner) = self.learners.get_mut(&handle) else { return };
        if learner.writing.is_some() {
            return;
        }
        if learner.answers.is_none() && !learner.halt {
            let turn = *learner.turn.get_or_insert_with(|| self.pace.book(self.now, learner.took));
            if turn > self.now {
                learner.again_at = turn;
                return self.timer(turn, Timer::Copy(handle));
            }
        }
        learner.nonce = nonce;
        let (copy, to) = (learner.id, learner.config.primary);
        let msg = match &learner.answers {
            _ if learner.durable => Peer::Copied { copy, point: learner.state.last },
            _ if learner.installed => return,
            Some(_) => Peer::CopyAnswers { copy, nonce, after: learner.last_client() },
            None => {
                let (since, from, halt) = (learner.since, learner.from, learner.halt);
                Peer::Copy { copy, nonce, since, from, halt }
            }
        };
        let again = if learner.halt { ASK_AGAIN_HALTED_MS } else { ASK_AGAIN_MS };
        learner.again_at = self.now + Span::from_ms(again);
        let at = learner.again_at;
        self.timer(at, Timer::Copy(handle));
        out.push(Output::Peer { to, msg, data: vec![] });
    }

    /// A question may not have been answered.
    pub(crate) fn copy_is_late(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        if self.learners.get(&handle).is_some_and(|l| l.again_at <= self.now) {
            self.copy_on(handle, out);
        }
    }

    fn asked(&mut self, (from, copy, nonce): Question) -> Option<&mut Learner> {
        self.learner_of(from, copy).filter(|l| l.nonce == nonce)
    }

    fn learner_of(&mut self, from: StoreId, copy: CopyId) -> Option<&mut Learner> {
        self.learners.get_mut(&copy.handle).filter(|l| l.id == copy && l.config.primary == from)
    }

    pub(crate) fn copy_data(
        &mut self,
        question: Question,
        piece: Option<(u32, Piece)>,
        committed: LogPoint,
        length: u32,
        data: Bytes,
        out: &mut Outbox,
    ) {
        let copy = question.1;
        let asks = |l: &&mut Learner| l.writing.is_none() && l.answers.is_none();
        let Some(learner) = self.asked(question).filter(asks) else { return };
        // Each question takes one answer.
        learner.nonce = 0;
        learner.turn = None;
        learner.took = piece.as_ref().map_or(0, |(_, piece)| piece.len as u64).max(BLOCK_BYTES as u64);
        if learner.halt && learner.round.is_some_and(|point| point != committed) {
            // The primary waited no longer, and admitted writes: the last round begins anew.
            (learner.round, learner.from) = (None, 0);
            return self.copy_on(copy.handle, out);
        }
        learner.round.get_or_insert(committed);
        let Some((at, piece)) = piece else {
            return self.copy_round_ends(copy.handle, committed, length, out);
        };
        let Ok(blocks) = self.store.take(piece.len, Sort::New) else {
            // No room now: the next segment may not be made yet, so it asks for these bytes again. On a full disk
            // it does so until the attempt's time is over; then the masters look for another place.
            return;
        };
        let run = Run { segment: blocks.segment, block: blocks.block, len: piece.len, crcs: piece.crcs };
        let learner = self.learners.get_mut(&copy.handle).expect("just found");
        learner.taken.push(blocks);
        learner.writing = Some((at, run, committed));
        learner.round_bytes += piece.len as u64;
        self.copied_bytes += piece.len as u64;
        self.store.write_piece(blocks, data, PieceTicket::Copied(copy, blocks), out);
    }

    /// Copied bytes are written.
    pub(crate) fn copy_written(&mut self, copy: CopyId, blocks: Blocks, out: &mut Outbox) {
        // The same attempt may have ended and begun anew meanwhile: only its own blocks count.
        let learner = self.learners.get_mut(&copy.handle).filter(|l| l.id == copy);
        let landed = |l: &mut Learner| l.writing.take_if(|(_, run, _)| blocks_of(run) == blocks);
        let Some((learner, (at, run, last))) = learner.and_then(|l| landed(l).map(|w| (l, w))) else {
            return self.store.free(vec![blocks]);
        };
        self.store.crcs.set(run.segment, run.block, &run.crcs);
        // Which blocks are free by this is settled when the copy is whole.
        learner.state.extents.put(at, &Place::Runs(vec![run.clone()]), last);
        learner.from = at + run.len;
        learner.runs.push(run);
        self.copy_on(copy.handle, out);
    }

    fn copy_round_ends(&mut self, handle: ChunkHandle, point: LogPoint, length: u32, out: &mut Outbox) {
        let learner = self.learners.get_mut(&handle).expect("its round ends");
        if learner.halt {
            // Nothing has changed during the round: this is the chunk.
            learner.state.last = point;
            learner.state.length = length;
            learner.answers = Some(vec![]);
        } else {
            let began = learner.round.take().filter(|_| !Mutant::SinceRoundEnd.on());
            learner.since = began.unwrap_or(point).1;
            learner.rounds += 1;
            learner.halt = learner.round_bytes <= LAST_ROUND_BYTES || learner.rounds >= ROUNDS_MAX;
            learner.round_bytes = 0;
            learner.from = 0;
        }
        self.copy_on(handle, out);
    }

    pub(crate) fn copied_answers(
        &mut self,
        question: Question,
        more: Vec<Answers>,
        goes_on: bool,
        out: &mut Outbox,
    ) {
        let copy = question.1;
        let Some(learner) = self.asked(question).filter(|l| !l.installed) else { return };
        learner.nonce = 0;
        let Some(answers) = &mut learner.answers else { return };
        answers.extend(more);
        match goes_on {
            true => self.copy_on(copy.handle, out),
            false => self.install(copy.handle),
        }
    }

    /// The copy is whole: one record makes it the chunk's copy here.
    fn install(&mut self, handle: ChunkHandle) {
        let learner = self.learners.get_mut(&handle).expect("it is whole");
        let answers = learner.answers.take().expect("it is whole");
        if !Mutant::NoAnswersCopied.on() {
            learner.state.set_answers(answers);
        }
        // It serves nothing until an epoch says that it is a member.
        learner.state.removed = true;
        let dump = learner.state.dump();
        let record = Record::Install { dump, runs: learner.runs.clone() };
        if common::wire::to_vec(&record).len() > LOG_GROUP_BYTES_MAX / 2 {
            // Written to in too many places meanwhile: it begins anew when the order comes again.
            return self.end_copy(handle);
        }
        learner.installed = true;
        let (copy, state) = (learner.id, learner.state.clone());
        let mut held = std::mem::take(&mut learner.taken);
        let old = self.chunks.remove(&handle);
        held.extend(old.iter().flat_map(|c| c.state.blocks()));
        let free = self.store.exchange(held, state.blocks());
        self.store.record(&record, Ticket::Installed(copy, free));
        let mut chunk = Chunk::new(Arc::new(state));
        if let Some(old) = old {
            (chunk.waiting, chunk.asking) = (old.waiting, old.asking);
        }
        self.chunks.insert(handle, Box::new(chunk));
    }

    /// The record of a whole copy is durable: the primary may propose it.
    pub(crate) fn installed(&mut self, copy: CopyId, free: Vec<Blocks>, out: &mut Outbox) {
        self.store.free(free);
        if let Some(learner) = self.learners.get_mut(&copy.handle).filter(|l| l.id == copy) {
            learner.durable = true;
            self.copy_on(copy.handle, out);
        }
    }

    /// The primary does not teach this copy (any more), for whatever reason.
    pub(crate) fn copy_refused(&mut self, from: StoreId, copy: CopyId) {
        if self.learner_of(from, copy).is_some() {
            self.end_copy(copy.handle);
        }
    }

    /// The store is a member of this epoch now, or will never be by an older attempt.
    pub(crate) fn copy_overtaken(&mut self, handle: ChunkHandle, epoch: Epoch) {
        if self.learners.get(&handle).is_some_and(|l| l.id.epoch < epoch) {
            self.end_copy(handle);
        }
    }
}

fn blocks_of(run: &Run) -> Blocks {
    Blocks { segment: run.segment, block: run.block, count: run.blocks() }
}
