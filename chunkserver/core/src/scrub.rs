//! Reads everything once in a period, a piece at a time, and has a copy that does not match its
//! checksums made anew.

use crate::io::{Ask, Outbox, Output};
use crate::node::Node;
use crate::reads::ReadFor;
use crate::store::read::parts_of;
use crate::timers::Timer;
use common::limits::PIECE_BYTES_MAX;
use common::wire::chunk_chunk::Peer;
use common::{ChunkHandle, Serial, Span, Time};

/// Time between two pieces, at least and at most, in milliseconds.
const PAUSE_MS: (u64, u64) = (2, 1000);

/// A copy that has rotted is reported this often, in milliseconds.
const ASK_AGAIN_MS: u64 = 500;

/// Where the scrub is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scrub {
    /// The next byte to read.
    at: (ChunkHandle, u32),
    reading: bool,
    next: Time,
    /// Passes over everything that are done.
    pub passes: u64,
}

impl Scrub {
    /// When the next piece is read, if none is.
    pub fn due(&self) -> Option<Time> {
        (!self.reading).then_some(self.next)
    }
}

impl Node {
    /// Reads the next piece, if its time has come.
    pub(crate) fn scrub(&mut self, out: &mut Outbox) {
        if self.scrub.reading || self.now < self.scrub.next || self.store.failed().is_some() {
            return;
        }
        // A chunk's last piece may be a short one, and one more step finds its end.
        let steps = self.store.used_bytes() / PIECE_BYTES_MAX as u64 + 2 * self.chunks.len() as u64;
        let pause = self.store.config().scrub_period_s.saturating_mul(1000) / steps.max(1);
        self.scrub.next = self.now + Span::from_ms(pause.clamp(PAUSE_MS.0, PAUSE_MS.1));
        let (handle, from) = self.scrub.at;
        let Some((handle, chunk)) = self.chunks.range(handle..).next() else {
            self.scrub.passes += 1;
            self.scrub.at = Default::default();
            return;
        };
        let handle = *handle;
        let state = chunk.state.clone();
        let from = if handle == self.scrub.at.0 { from } else { 0 };
        if from == 0 && chunk.lead.is_none() {
            self.settle_tail(handle, out);
        }
        let extents = &state.extents;
        let Some((at, end)) = extents.changed(from, Serial(0), PIECE_BYTES_MAX as u32) else {
            self.scrub.at = (ChunkHandle(handle.0.saturating_add(1)), 0);
            return;
        };
        let parts = parts_of(extents.range(at, end), at, end);
        self.scrub.at = (handle, end);
        self.scrub.reading = true;
        let job = self.store.read(parts, out);
        self.reads.insert(job, ReadFor::Scrub { handle });
        if let Some(result) = self.store.finish_ready(job) {
            self.read_done(job, result, out);
        }
    }

    /// After a restart a store does not know which of its last writes are committed, and nobody
    /// tells it about a chunk at rest: it asks.
    fn settle_tail(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let state = &self.chunks[&handle].state;
        let (epoch, primary) = (state.config.epoch, state.config.primary);
        if state.tail.is_empty() || state.removed || epoch.number() == 0 || self.in_session().is_none() {
            return;
        }
        if primary == self.id {
            return self.ask(handle, Ask::Takeover { epoch }, out);
        }
        let nonce = self.store.next_nonce();
        out.push(Output::Peer { to: primary, msg: Peer::AskCommit { handle, epoch, nonce }, data: vec![] });
    }

    /// The piece is read.
    pub(crate) fn scrubbed(&mut self) {
        self.scrub.reading = false;
    }

    /// A copy does not match its checksums: the masters take it out of the chunk, if enough good
    /// ones are left, and have it made anew. They are asked again until they do.
    pub(crate) fn found_corrupt(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let Some(chunk) = self.chunks.get(&handle) else { return };
        let epoch = chunk.config().epoch;
        let member = epoch.number() > 0 && !chunk.state.removed;
        let unsettled = self.busy.contains(&handle) || !chunk.waiting.is_empty();
        if member && !unsettled {
            self.ask(handle, Ask::Corrupt { epoch }, out);
        }
        if member && self.rotten.insert(handle) {
            self.timer(self.now + Span::from_ms(ASK_AGAIN_MS), Timer::Rotten(handle));
        }
    }

    /// Asks again, until the chunk is somebody else's.
    pub(crate) fn rotten_again(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        if self.rotten.remove(&handle) {
            self.found_corrupt(handle, out);
        }
    }
}
