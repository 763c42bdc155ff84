//! Reads: any member answers, under its session, what is committed. A member that holds more
//! than it knows to be committed asks the primary first.

use crate::io::{ConnId, Outbox, Output};
use crate::node::{Node, Waiting, handle_of, refuse, reply};
use crate::pace::{SMALL_READ_BYTES, Wait};
use crate::store::format::Place;
use crate::store::index::{Extent, Home, InlineRun};
use crate::store::read::{Part, ReadResult, one_piece, parts_of};
use crate::teacher::Question;
use crate::timers::Timer;
use common::limits::PIECE_BYTES_MAX;
use common::wire::chunk_chunk::{LogPoint, Peer, WriteOp};
use common::wire::client_chunk::{ClientChunk, ClientChunkReply};
use common::{ChunkHandle, Code, Epoch, Mutant, Refusal, Serial, Span, StoreId, Time};
use std::sync::Arc;

/// How long a read waits for the primary's commit point before it is refused.
const ASK_COMMIT_MS: u64 = 300;

/// A read that waits for the primary's commit point.
#[derive(Clone, Debug)]
pub(crate) struct PendingRead {
    pub nonce: u64,
    pub ask: Waiting,
}

/// For whom the disk reads.
#[derive(Clone, Debug)]
pub(crate) enum ReadFor {
    Scrub {
        handle: ChunkHandle,
    },
    Gather {
        handle: ChunkHandle,
    },
    Client {
        conn: ConnId,
        request: u64,
        handle: ChunkHandle,
        began: Time,
        len: u32,
    },
    Copy {
        question: Question,
        at: u32,
        committed: LogPoint,
        length: u32,
    },
    Fetch {
        to: StoreId,
        handle: ChunkHandle,
        epoch: Epoch,
        op: WriteOp,
        index: u16,
    },
    /// Pages of checksums, not bytes.
    Locate(Box<Waiting>),
}

impl ReadFor {
    fn handle(&self) -> ChunkHandle {
        match self {
            ReadFor::Scrub { handle }
            | ReadFor::Gather { handle }
            | ReadFor::Client { handle, .. }
            | ReadFor::Fetch { handle, .. } => *handle,
            ReadFor::Copy { question: (_, copy, _), .. } => copy.handle,
            ReadFor::Locate(ask) => handle_of(&ask.msg),
        }
    }
}

impl Node {
    pub(crate) fn read(&mut self, ask: Waiting, out: &mut Outbox) {
        let ClientChunk::Read { len, stale, .. } = ask.msg else { unreachable!() };
        if len == 0 || len as usize > PIECE_BYTES_MAX {
            return refuse(&ask, Code::BadArgument, out);
        }
        let Some(ask) = self.may_serve(ask, out) else {
            return;
        };
        let handle = handle_of(&ask.msg);
        let chunk = &self.chunks[&handle];
        if chunk.state.tail.is_empty() || chunk.leads_surely() || stale || Mutant::ReadWithoutAsking.on() {
            return self.read_now(ask, out);
        }
        if chunk.config().primary == self.id {
            if let Some(ask) = self.sure(ask, out) {
                self.read_now(ask, out);
            }
            return;
        }
        self.ask_commit(ask, out);
    }

    /// The request, if this store may serve the chunk's reads under its epoch.
    pub(crate) fn may_serve(&mut self, ask: Waiting, out: &mut Outbox) -> Option<Waiting> {
        let handle = handle_of(&ask.msg);
        let session = self.in_session();
        let Some(chunk) = self.chunks.get(&handle) else {
            self.unknown_chunk(handle, ask, out);
            return None;
        };
        let epoch = chunk.config().epoch;
        if chunk.is_over(ask.epoch) || (ask.epoch.0 != 0 && ask.epoch < epoch) {
            refuse(&ask, Code::StaleEpoch, out);
            return None;
        }
        if session.is_none() {
            refuse(&ask, Code::NotInSession, out);
            return None;
        }
        if epoch.number() == 0
            || ask.epoch > epoch
            || (chunk.confirmed != session && !(Mutant::ConfirmOnce.on() && chunk.confirmed.is_some()))
        {
            self.park(handle, ask, out);
            self.ask(handle, crate::io::Ask::Confirm, out);
            return None;
        }
        Some(ask)
    }

    fn ask_commit(&mut self, ask: Waiting, out: &mut Outbox) {
        let handle = handle_of(&ask.msg);
        let at = self.now + Span::from_ms(ASK_COMMIT_MS);
        let nonce = self.store.next_nonce();
        let chunk = self.chunks.get_mut(&handle).expect("served");
        if chunk.reads.len() >= common::limits::CHUNK_WAITING_MAX {
            return refuse(&ask, Code::Busy, out);
        }
        let (to, epoch) = (chunk.config().primary, chunk.config().epoch);
        chunk.reads.push(PendingRead { nonce, ask });
        out.push(Output::Peer { to, msg: Peer::AskCommit { handle, epoch, nonce }, data: vec![] });
        self.timer(at, Timer::Read(handle));
    }

    /// The primary answered a question: the reads that asked it, or an earlier one, go on.
    pub(crate) fn reads_told(&mut self, handle: ChunkHandle, nonce: u64, out: &mut Outbox) {
        let Some(chunk) = self.chunks.get_mut(&handle) else {
            return;
        };
        let (told, wait) = std::mem::take(&mut chunk.reads).into_iter().partition(|r| r.nonce <= nonce);
        chunk.reads = wait;
        for read in Vec::<PendingRead>::from_iter(told) {
            self.read_now(read.ask, out);
        }
    }

    pub(crate) fn reads_are_late(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        // The client asks another member; a read that came later is refused early, no harm.
        self.fail_reads(handle, Code::Reconfiguring, out);
    }

    pub(crate) fn fail_reads(&mut self, handle: ChunkHandle, code: Code, out: &mut Outbox) {
        let Some(chunk) = self.chunks.get_mut(&handle) else {
            return;
        };
        for read in std::mem::take(&mut chunk.reads) {
            refuse(&read.ask, code, out);
        }
    }

    /// Reads what is committed.
    fn read_now(&mut self, ask: Waiting, out: &mut Outbox) {
        let ClientChunk::Read { handle, offset, len, .. } = ask.msg else { unreachable!() };
        let state = &self.chunks[&handle].state;
        let from = offset.min(state.length as u64) as u32;
        let to = (offset.saturating_add(len as u64)).min(state.length as u64) as u32;
        if from >= to {
            return reply(&ask, ClientChunkReply::Data { pieces: vec![] }, out);
        }
        let parts = parts_of(state.extents.range(from, to), from, to);
        let job = self.store.read(parts, out);
        let (conn, request, began) = (ask.conn, ask.request, self.now);
        self.reads.insert(job, ReadFor::Client { conn, request, handle, began, len: to - from });
        if let Some(result) = self.store.finish_ready(job) {
            self.read_done(job, result, out);
        }
    }

    pub(crate) fn read_done(&mut self, job: u64, result: ReadResult, out: &mut Outbox) {
        let reader = self.reads.remove(&job).expect("a read is done once");
        if matches!(result, Err(Code::Corrupt)) {
            self.corrupt += 1;
            self.found_corrupt(reader.handle(), out);
        }
        match reader {
            ReadFor::Scrub { .. } => self.scrubbed(),
            ReadFor::Gather { .. } => self.gather_read(result, out),
            ReadFor::Locate(ask) => self.pages_loaded(*ask, out),
            ReadFor::Client { conn, request, handle, began, len } => {
                if len <= SMALL_READ_BYTES {
                    self.pace.waited(self.now, Wait::Read, self.now.since(began));
                }
                let (msg, data) = match result {
                    Ok((pieces, data)) => (ClientChunkReply::Data { pieces }, data),
                    Err(code) => (
                        ClientChunkReply::Refused(Refusal::new(code, format!("{handle} on {}", self.id))),
                        vec![],
                    ),
                };
                out.push(Output::Reply { conn, request, msg, data });
            }
            ReadFor::Copy { question, at, committed, length } => {
                self.copy_read(question, at, committed, length, result, out)
            }
            ReadFor::Fetch { to, handle, epoch, op, index } => {
                let (piece, data) = result.map(one_piece).ok().unzip();
                let data = Vec::from_iter(data);
                out.push(Output::Peer { to, msg: Peer::Fetched { handle, epoch, op, index, piece }, data });
            }
        }
    }

    /// A member asks for the bytes of a record of the tail.
    pub(crate) fn fetch_asked(
        &mut self,
        to: StoreId,
        handle: ChunkHandle,
        epoch: Epoch,
        serial: Serial,
        index: u16,
        out: &mut Outbox,
    ) {
        let now = self.now;
        let Some(chunk) = self.chunks.get_mut(&handle) else {
            return;
        };
        if chunk.config().epoch != epoch || !chunk.config().members.contains(&to) {
            return;
        }
        if let (Some(lead), 1..) = (&mut chunk.lead, index) {
            // It has the piece before, so it is slow perhaps, not silent; unless it asks for the same again.
            let at = (serial, index);
            if lead.fetching.get(&to).is_none_or(|(before, _)| *before < at) {
                lead.fetching.insert(to, (at, now));
            }
        }
        let Some(record) = chunk.state.tail_record(serial) else {
            return;
        };
        let Some(len) = crate::held::piece_len(record.op.len, index) else {
            return;
        };
        let from = index as u32 * PIECE_BYTES_MAX as u32;
        let mut at = 0;
        let mut extents = vec![];
        let last = (record.op.origin, serial);
        match &record.place {
            Place::Inline { data, crcs } => {
                let inline = InlineRun { data: data.clone().into(), crcs: crcs.clone() };
                let run = record.op.len;
                let home = Home::Memory(Arc::new(inline));
                extents.push(Extent { offset: 0, len: run, skip: 0, run, home, last });
            }
            Place::Runs(runs) => {
                for run in runs {
                    let home = Home::Disk { segment: run.segment, block: run.block };
                    extents.push(Extent { offset: at, len: run.len, skip: 0, run: run.len, home, last });
                    at += run.len;
                }
            }
        }
        let op = record.op.clone();
        let mut of_record = crate::store::index::Extents::default();
        for extent in extents {
            of_record.put_one(extent, &mut Default::default());
        }
        let parts: Vec<Part> = parts_of(of_record.range(from, from + len), from, from + len);
        let job = self.store.read(parts, out);
        self.reads.insert(job, ReadFor::Fetch { to, handle, epoch, op, index });
        if let Some(result) = self.store.finish_ready(job) {
            self.read_done(job, result, out);
        }
    }

    /// The exact length, and how the chunk stands here.
    pub(crate) fn stat(&mut self, ask: Waiting, out: &mut Outbox) {
        let Some(ask) = self.may_serve(ask, out) else {
            return;
        };
        let handle = handle_of(&ask.msg);
        let chunk = &self.chunks[&handle];
        if chunk.config().primary != self.id || chunk.state.tail.is_empty() {
            return self.stat_now(&ask, out);
        }
        if let Some(ask) = self.sure(ask, out) {
            self.stat_now(&ask, out);
        }
    }

    /// The request, if this store, the primary, knows all that was ever acknowledged; else it is
    /// parked until that is so.
    fn sure(&mut self, ask: Waiting, out: &mut Outbox) -> Option<Waiting> {
        let ask = self.led(ask, out)?;
        let handle = handle_of(&ask.msg);
        if self.chunks[&handle].leads_surely() {
            return Some(ask);
        }
        self.park(handle, ask, out);
        None
    }

    fn stat_now(&self, ask: &Waiting, out: &mut Outbox) {
        let chunk = &self.chunks[&handle_of(&ask.msg)];
        let msg = ClientChunkReply::Stat {
            length: chunk.state.length as u64,
            epoch: chunk.config().epoch,
            committed: chunk.state.committed(),
            applied: chunk.durable,
            sealed: chunk.config().sealed,
        };
        reply(ask, msg, out);
    }
}
