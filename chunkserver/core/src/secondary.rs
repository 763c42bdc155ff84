//! The secondary: takes the primary's writes in order, makes them durable, says so.

use crate::held::Upstream;
use crate::io::{Outbox, Output};
use crate::node::Node;
use crate::store::alloc::Blocks;
use crate::store::format::{Place, Record, Run};
use crate::store::{PieceTicket, Sort, Ticket};
use bytes::Bytes;
use common::limits::{BLOCK_BYTES, CHUNK_WINDOW, INLINE_BYTES_MAX, PIECE_BYTES_MAX};
use common::wire::chunk_chunk::{Origin, Peer, WriteOp};
use common::wire::{ChunkConfig, Piece};
use common::{ChunkHandle, Code, Epoch, Mutant, RequestId, Serial, Span, StoreId, Time};
use std::collections::VecDeque;

/// When nothing came of a fetch for so long it is asked for again: question or answer may be lost. Sooner it would
/// only make a busy link busier.
const FETCH_AGAIN_MS: u64 = 500;

/// A write from the primary whose turn or bytes have not come.
#[derive(Clone, Debug)]
pub(crate) struct QueuedApply {
    op: WriteOp,
    from: StoreId,
    inline: Option<(Piece, Bytes)>,
}

/// A record whose bytes are fetched, 256 KiB at a time.
#[derive(Clone, Debug)]
pub(crate) struct Fetch {
    pub from: StoreId,
    pub serial: Serial,
    index: u16,
    op: Option<WriteOp>,
    blocks: Option<Blocks>,
    /// A piece is being written into the blocks.
    writing: bool,
    crcs: Vec<u32>,
    /// When its present piece was last asked for.
    asked: Time,
}

/// What came from the primary and is not in the log yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Follow {
    pub queue: VecDeque<QueuedApply>,
    pub fetch: Option<Box<Fetch>>,
}

impl Node {
    pub(crate) fn peer(&mut self, from: StoreId, msg: Peer, data: Bytes, out: &mut Outbox) {
        if self.store.failed().is_some() {
            return;
        }
        match msg {
            Peer::Forward { request, handle, index, total, chain, piece } => {
                self.push(request, handle, (index, total), chain, piece, data, Upstream::Store(from), out)
            }
            Peer::Held { request, index, refused } => {
                self.held_downstream(from, request, index, refused, out)
            }
            Peer::Apply { handle, epoch, op, after, inline, committed, create } => {
                let inline = inline.map(|piece| (piece, data));
                let apply = QueuedApply { op, from, inline };
                self.apply(handle, epoch, apply, after, committed, create, out)
            }
            Peer::Applied { handle, epoch, serial } => self.applied(from, handle, epoch, serial, out),
            Peer::ApplyRefused { handle, epoch, applied, code } => {
                self.apply_refused(from, handle, epoch, applied, code, out)
            }
            Peer::Commit { handle, epoch, committed, nonce } => {
                self.commit_told(from, handle, epoch, committed, nonce, out)
            }
            Peer::AskCommit { handle, epoch, nonce } => self.commit_asked(from, handle, epoch, nonce, out),
            Peer::NewEpoch { config } => self.new_epoch(from, config, out),
            Peer::Tail { handle, epoch, committed, tail, last } => {
                self.tail_told(from, handle, epoch, committed, tail, last, out)
            }
            Peer::Adopt { handle, epoch, keep, committed } => {
                self.adopt_asked(from, handle, epoch, keep, committed, out)
            }
            Peer::Adopted { handle, epoch } => self.adopted(from, handle, epoch, out),
            Peer::Copy { copy, nonce, since, from: at, halt } => {
                self.copy_asked((from, copy, nonce), since, at, halt, out)
            }
            Peer::CopyData { copy, nonce, piece, committed, length } => {
                self.copy_data((from, copy, nonce), piece, committed, length, data, out)
            }
            Peer::CopyAnswers { copy, nonce, after } => self.answers_asked((from, copy, nonce), after, out),
            Peer::CopiedAnswers { copy, nonce, answers, more } => {
                self.copied_answers((from, copy, nonce), answers, more, out)
            }
            Peer::Copied { copy, point } => self.copied(from, copy, point, out),
            Peer::CopyRefused { copy, code: _ } => self.copy_refused(from, copy),
            Peer::Fork { handle, epoch, point, config } => {
                self.fork_asked(from, handle, epoch, point, config, out)
            }
            Peer::Forked { handle, epoch, to } => self.forked(from, handle, epoch, to, out),
            Peer::Fetch { handle, epoch, serial, index } => {
                self.fetch_asked(from, handle, epoch, serial, index, out)
            }
            Peer::Fetched { handle, epoch, op, index, piece } => {
                self.fetched(from, handle, epoch, op, index, piece, data, out)
            }
        }
    }

    fn held_downstream(
        &mut self,
        from: StoreId,
        request: RequestId,
        index: u16,
        refused: Option<Code>,
        out: &mut Outbox,
    ) {
        let Some(piece) = self.held.get_mut(request, index) else {
            return;
        };
        if piece.awaits != Some(from) {
            return;
        }
        piece.awaits = None;
        match refused {
            None => self.piece_progress(request, index, out),
            Some(code) => {
                if let Some(upstream) = piece.upstream.take() {
                    self.tell_held(request, index, upstream, Some(code), out);
                }
            }
        }
    }

    /// All pieces of a write are here: whoever waits for them goes on.
    pub(crate) fn pieces_complete(&mut self, request: RequestId, out: &mut Outbox) {
        if let Some(handle) = self.held.wanted_by(request) {
            self.run_waiting(handle, out);
            self.drain(handle, out);
        }
    }

    pub(crate) fn refuse_apply(&self, to: StoreId, handle: ChunkHandle, code: Code, out: &mut Outbox) {
        let chunk = self.chunks.get(&handle);
        let applied = chunk.map_or(Serial(0), |c| c.state.last_point().1);
        let known = chunk.map_or(Epoch(0), |c| c.config().epoch);
        let epoch = known.max(self.floors.of(handle));
        out.push(Output::Peer { to, msg: Peer::ApplyRefused { handle, epoch, applied, code }, data: vec![] });
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    fn apply(
        &mut self,
        handle: ChunkHandle,
        epoch: Epoch,
        apply: QueuedApply,
        after: Origin,
        committed: Serial,
        create: Option<ChunkConfig>,
        out: &mut Outbox,
    ) {
        let from = apply.from;
        if epoch < self.floors.of(handle) {
            return self.refuse_apply(from, handle, Code::StaleEpoch, out);
        }
        let exists = self.chunks.get(&handle).is_some_and(|c| c.config().epoch.number() > 0);
        if !exists {
            let good = |c: &ChunkConfig| {
                c.invalid().is_none()
                    && c.handle == handle
                    && c.epoch == epoch
                    && c.epoch.number() == 1
                    && c.primary == from
                    && c.members.contains(&self.id)
            };
            match create.filter(good) {
                Some(_) if self.floors.may_be_forgotten(handle) => {
                    self.ask_before_making(handle, out);
                    // Who cannot be answered is not to be waited for.
                    let code = if self.in_session().is_some() { Code::Busy } else { Code::NoSuchChunk };
                    return self.refuse_apply(from, handle, code, out);
                }
                Some(config) => self.create(ChunkConfig { wait_ms: 0, ..config }, Ticket::None),
                None => return self.refuse_apply(from, handle, Code::NoSuchChunk, out),
            }
        }
        let config = self.chunks[&handle].config();
        if epoch < config.epoch || (epoch == config.epoch && config.primary != from) {
            return self.refuse_apply(from, handle, Code::StaleEpoch, out);
        }
        if epoch > config.epoch {
            return self.refuse_apply(from, handle, Code::UnknownEpoch, out);
        }
        // A second lock, as Raft's on its log: what comes next follows only what the primary believes to
        // be here. Two members that differ are never told so by acknowledging what comes after.
        let chunk = &self.chunks[&handle];
        let newest = |a: &QueuedApply| (a.op.origin, a.op.serial);
        let before = chunk.follow.queue.back().map_or(chunk.state.last_point(), newest);
        let follows = after == before.0 || Mutant::LedAsNew.on();
        if apply.op.serial.0 == before.1.0 + 1 && !follows {
            return self.refuse_apply(from, handle, Code::Reconfiguring, out);
        }
        self.advance(handle, committed);
        let chunk = self.chunks.get_mut(&handle).expect("it exists");
        let last = chunk.state.last_point().1;
        let serial = apply.op.serial;
        if serial <= last {
            let same = |r: &crate::state::TailRecord| {
                r.op.origin == apply.op.origin && r.op.request == apply.op.request
            };
            if serial > chunk.state.committed() && !chunk.state.tail_record(serial).is_some_and(same) {
                return self.refuse_apply(from, handle, Code::Reconfiguring, out);
            }
            self.acks.insert(handle);
            return;
        }
        let expected = last.0 + 1 + chunk.follow.queue.len() as u64;
        if serial.0 < expected {
            // Sent again: if its bytes are being fetched, the question may have been lost; if they could not
            // be had, or there was no room for them, now they may.
            match chunk.follow.fetch {
                Some(_) => self.fetch_again(handle, out),
                None => self.drain(handle, out),
            }
            return;
        }
        if serial.0 > expected {
            return self.refuse_apply(from, handle, Code::Gap, out);
        }
        if chunk.follow.queue.len() >= CHUNK_WINDOW {
            return self.refuse_apply(from, handle, Code::Busy, out);
        }
        // Inline bytes take their room later, when a checkpoint gives them a home.
        if let Some(code) =
            self.store.has_room(apply.op.len, Sort::Promised).err().filter(|_| apply.inline.is_some())
        {
            return self.refuse_apply(from, handle, code, out);
        }
        chunk.follow.queue.push_back(apply);
        self.drain(handle, out);
    }

    /// Appends queued writes, in order, as far as their bytes are here.
    pub(crate) fn drain(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        loop {
            let Some(chunk) = self.chunks.get_mut(&handle) else {
                return;
            };
            let Some(front) = chunk.follow.queue.front() else {
                return;
            };
            let request = front.op.request;
            let place = match &front.inline {
                Some((piece, data)) => Place::Inline { data: data.to_vec(), crcs: piece.crcs.clone() },
                None if chunk.follow.fetch.is_some() => return,
                None if self.held.complete(request) == Some(front.op.len) => self.held.claim(request),
                None if self.held.want(request, front.op.len, handle) => return,
                None => {
                    let (from, serial) = (front.from, front.op.serial);
                    return self.start_fetch(handle, from, serial, out);
                }
            };
            let op = chunk.follow.queue.pop_front().expect("there is a front").op;
            self.append(handle, op, place);
        }
    }

    /// Fetches a record from a store that has it in its tail.
    pub(crate) fn start_fetch(
        &mut self,
        handle: ChunkHandle,
        from: StoreId,
        serial: Serial,
        out: &mut Outbox,
    ) {
        self.end_fetch(handle);
        let chunk = self.chunks.get_mut(&handle).expect("fetched for a chunk that is here");
        let (op, blocks, crcs, asked) = (None, None, vec![], self.now);
        let fetch = Fetch { from, serial, index: 0, op, blocks, writing: false, crcs, asked };
        chunk.follow.fetch = Some(Box::new(fetch));
        self.fetching.insert(handle);
        self.ask_fetch(handle, out);
    }

    /// Asks for the piece of a fetch that is due.
    fn ask_fetch(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let now = self.now;
        let Some(chunk) = self.chunks.get_mut(&handle) else { return };
        let epoch = chunk.config().epoch;
        let Some(fetch) = chunk.follow.fetch.as_mut().filter(|f| !f.writing) else { return };
        fetch.asked = now;
        let msg = Peer::Fetch { handle, epoch, serial: fetch.serial, index: fetch.index };
        out.push(Output::Peer { to: fetch.from, msg, data: vec![] });
    }

    /// Asks again, if nothing has come for too long.
    pub(crate) fn fetch_again(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let quiet = |f: &Fetch| self.now >= f.asked + Span::from_ms(FETCH_AGAIN_MS);
        if self.chunks.get(&handle).and_then(|c| c.follow.fetch.as_deref()).is_some_and(quiet) {
            self.ask_fetch(handle, out);
        }
    }

    /// The connection to a store broke and stands again: what it was asked for may be lost.
    pub(crate) fn fetch_anew(&mut self, from: StoreId, out: &mut Outbox) {
        let fetched = |c: &crate::node::Chunk| c.follow.fetch.as_ref().is_some_and(|f| f.from == from);
        let again = self.fetching.iter().copied();
        let again: Vec<_> = again.filter(|handle| self.chunks.get(handle).is_some_and(fetched)).collect();
        for handle in again {
            self.ask_fetch(handle, out);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    fn fetched(
        &mut self,
        from: StoreId,
        handle: ChunkHandle,
        epoch: Epoch,
        op: WriteOp,
        index: u16,
        piece: Option<Piece>,
        data: Bytes,
        out: &mut Outbox,
    ) {
        let Some(chunk) = self.chunks.get_mut(&handle) else {
            return;
        };
        if chunk.state.config.epoch != epoch {
            return;
        }
        let Some(fetch) = &mut chunk.follow.fetch else {
            return;
        };
        if fetch.from != from || fetch.serial != op.serial || fetch.index != index || fetch.writing {
            return;
        }
        if fetch.op.as_ref().is_some_and(|first| *first != op) {
            return;
        }
        let expected = crate::held::piece_len(op.len, index);
        let Some(piece) = piece.filter(|p| Some(p.len) == expected && p.len as usize == data.len()) else {
            // It cannot be had there now: forget it, the primary sends the write again.
            self.end_fetch(handle);
            return self.refuse_apply(from, handle, Code::Gap, out);
        };
        if index == 0 && op.len as usize <= INLINE_BYTES_MAX {
            let place = Place::Inline { data: data.to_vec(), crcs: piece.crcs };
            return self.fetch_complete(handle, op, place, out);
        }
        if fetch.blocks.is_none() {
            match self.store.take(op.len, Sort::Promised) {
                Ok(blocks) => fetch.blocks = Some(blocks),
                Err(code) => {
                    self.end_fetch(handle);
                    return self.refuse_apply(from, handle, code, out);
                }
            }
        }
        let all = fetch.blocks.expect("just taken");
        fetch.crcs.extend(piece.crcs);
        let serial = op.serial;
        fetch.op = Some(op);
        let first = index as u32 * (PIECE_BYTES_MAX / BLOCK_BYTES) as u32;
        let count = (data.len() as u32).div_ceil(BLOCK_BYTES as u32);
        let at = Blocks { segment: all.segment, block: all.block + first, count };
        fetch.writing = true;
        self.store.write_piece(at, data, PieceTicket::Fetched(handle, serial, index, all), out);
    }

    pub(crate) fn fetched_written(
        &mut self,
        handle: ChunkHandle,
        (serial, index, blocks): (Serial, u16, Blocks),
        out: &mut Outbox,
    ) {
        let chunk = self.chunks.get_mut(&handle);
        let stands = |f: &&mut Box<Fetch>| (f.serial, f.index, f.blocks) == (serial, index, Some(blocks));
        let fetch = chunk.and_then(|c| c.follow.fetch.as_mut()).filter(stands);
        let Some((fetch, op)) = fetch.and_then(|f| f.op.clone().map(|op| (f, op))) else {
            // The fetch ended while its bytes were on their way to the disk.
            return self.store.free(vec![blocks]);
        };
        fetch.writing = false;
        if (index as u64 + 1) * (PIECE_BYTES_MAX as u64) < op.len as u64 {
            fetch.index += 1;
            return self.ask_fetch(handle, out);
        }
        let crcs = std::mem::take(&mut fetch.crcs);
        let run = Run { segment: blocks.segment, block: blocks.block, len: op.len, crcs };
        self.fetch_complete(handle, op, Place::Runs(vec![run]), out);
    }

    fn fetch_complete(&mut self, handle: ChunkHandle, op: WriteOp, place: Place, out: &mut Outbox) {
        let chunk = self.chunks.get_mut(&handle).expect("the caller found it");
        chunk.follow.fetch = None;
        self.fetching.remove(&handle);
        if op.serial != chunk.state.last_point().1.next() {
            let blocks = crate::state::blocks_of(&place);
            return self.store.free(blocks);
        }
        if chunk.follow.queue.front().is_some_and(|f| f.op.serial == op.serial) {
            chunk.follow.queue.pop_front();
        }
        self.append(handle, op, place);
        self.drain(handle, out);
        self.takeover_progress(handle, out);
    }

    /// Drops a fetch. Blocks that are being written come back when that is done.
    fn end_fetch(&mut self, handle: ChunkHandle) {
        self.fetching.remove(&handle);
        let fetch = self.chunks.get_mut(&handle).and_then(|c| c.follow.fetch.take());
        if let Some(blocks) = fetch.filter(|f| !f.writing).and_then(|f| f.blocks) {
            self.store.free(vec![blocks]);
        }
    }

    /// Drops what came from a primary and is not in the log.
    pub(crate) fn forget_applies(&mut self, handle: ChunkHandle) {
        self.end_fetch(handle);
        if let Some(chunk) = self.chunks.get_mut(&handle) {
            chunk.follow = Follow::default();
        }
    }

    /// Tells primaries what is durable here: once a step, however many writes it was.
    pub(crate) fn send_acks(&mut self, out: &mut Outbox) {
        for handle in std::mem::take(&mut self.acks) {
            let Some(chunk) = self.chunks.get(&handle) else {
                continue;
            };
            let ChunkConfig { epoch, primary, .. } = *chunk.config();
            if primary != self.id && !chunk.state.removed {
                let msg = Peer::Applied { handle, epoch, serial: chunk.durable };
                out.push(Output::Peer { to: primary, msg, data: vec![] });
            }
        }
    }

    fn commit_told(
        &mut self,
        from: StoreId,
        handle: ChunkHandle,
        epoch: Epoch,
        committed: Serial,
        nonce: u64,
        out: &mut Outbox,
    ) {
        let Some(chunk) = self.chunks.get(&handle) else {
            return;
        };
        if chunk.config().epoch != epoch || chunk.config().primary != from {
            return;
        }
        self.advance(handle, committed);
        let chunk = self.chunks.get_mut(&handle).expect("it was here");
        let now_committed = chunk.state.committed();
        chunk.rest();
        if chunk.state.tail.is_empty() && chunk.logged_commit < now_committed {
            // It spares the next start a question.
            chunk.logged_commit = now_committed;
            let record = Record::Committed { handle, serial: now_committed };
            self.store.record_later(&record, Ticket::None, self.now);
        }
        if nonce > 0 {
            self.reads_told(handle, nonce, out);
        }
    }

    fn commit_asked(
        &mut self,
        from: StoreId,
        handle: ChunkHandle,
        epoch: Epoch,
        nonce: u64,
        out: &mut Outbox,
    ) {
        let Some(chunk) = self.chunks.get(&handle) else {
            return;
        };
        if chunk.config().epoch < epoch {
            // Another member knows more: perhaps that this store leads.
            return self.ask(handle, crate::io::Ask::Confirm, out);
        }
        if chunk.config().epoch != epoch || chunk.config().primary != self.id {
            return;
        }
        match &chunk.lead {
            Some(_) if chunk.leads_surely() => {
                let committed = chunk.state.committed();
                let msg = Peer::Commit { handle, epoch, committed, nonce };
                out.push(Output::Peer { to: from, msg, data: vec![] });
            }
            // Not known yet: the secondary's read asks again.
            Some(_) => {}
            None => self.ask(handle, crate::io::Ask::Takeover { epoch }, out),
        }
    }
}
