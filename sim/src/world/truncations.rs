//! Truncations: a client has the file of a chunk cut, at any moment, as `client/src/cut.rs` does - it has the chunk sealed,
//! asks the masters, and tells the primary. What is begun after that and lies behind the cut must not be acknowledged: nobody
//! would ever read it. Or it has the file emptied, whatever its chunk is, and tells the primary.

use super::{Acked, Event, World};
use bytes::Bytes;
use chunkserver_core::io::Input;
use common::limits::SESSION_MS;
use common::wire::ChunkConfig;
use common::wire::client_chunk::{ClientChunk, ClientChunkReply};
use common::wire::client_master::{MasterReply, Mutation};
use common::{ChunkHandle, Code, FileId, Refusal, Span, Time};
use rand::RngExt;

/// Connections from this number on are those of clients that cut.
pub(super) const CUTTERS: u64 = 1 << 52;
/// Who is not answered asks again after this.
const PATIENCE: Span = Span::from_ms(60);
/// Who leads the chunk, and cannot be told, knows it after this from the masters, or is in no session.
const GONE: Span = Span::from_ms(2 * SESSION_MS);
/// How many of all truncations leave nothing.
const TO_NOTHING: f64 = 0.2;
/// How many of all clients that cut die before they have told the primary.
const DIE: f64 = 0.1;

/// A truncation, by its client.
#[derive(Clone, Debug)]
pub(super) struct Truncation {
    handle: ChunkHandle,
    file: FileId,
    /// The chunk as its client knows it.
    config: ChunkConfig,
    /// What the masters have left of the chunk, and when; the last snapshot that they knew of.
    cut: Option<(u64, Time, u64)>,
    /// The primary knows it.
    told: Option<Time>,
    /// The client goes on no more.
    over: bool,
}

impl World {
    /// Somebody cuts the file of a chunk; without a leader nothing comes of it.
    pub(super) fn begin_truncation(&mut self, chunk: usize, empties: bool) {
        let handle = self.handles[chunk % self.handles.len()];
        if !self.masters_lead() || self.is_without_file(handle) {
            return;
        }
        let config = self.config(handle);
        let file = self.masters.state.chunk(handle).expect("it has a file").file;
        let number = self.truncations.len();
        self.truncations.push(Truncation { handle, file, config, cut: None, told: None, over: false });
        if empties {
            let mutation = Mutation::Empty { file, only: Some(handle), chunk: false, near: String::new() };
            match self.mutate(mutation) {
                MasterReply::Opened { .. } => return self.is_cut_to(number, 0),
                MasterReply::Refused { code: Code::WrongChunkIndex, .. } => {}
                other => panic!("{file:?} is not emptied: {other:?}"),
            }
        }
        self.ask_to_cut(number);
    }

    /// Asks the primary for the end of the chunk, or tells it.
    fn ask_to_cut(&mut self, number: usize) {
        let Truncation { handle, config, cut, .. } = &self.truncations[number];
        let (handle, epoch, primary) = (*handle, config.epoch, config.primary);
        let (msg, snapshot) = match cut {
            None => (ClientChunk::Seal { handle }, 0),
            Some((length, _, snapshot)) => (ClientChunk::Cut { handle, within: *length > 0 }, *snapshot),
        };
        let (conn, request) = (CUTTERS + number as u64, cut.is_some() as u64);
        let n = self.index(primary);
        let life = self.servers[n].life;
        let input = Input::Client { conn, request, epoch, snapshot, msg, data: Bytes::new() };
        self.later(Event::Step { store: n, life, input: Box::new(input) });
        self.at(self.now + PATIENCE, Event::Truncator { number });
    }

    /// Its client has waited: it asks the masters how the chunk is, and then its primary again.
    pub(super) fn truncator(&mut self, number: usize) {
        let Truncation { handle, cut, over, .. } = self.truncations[number];
        if over {
            return;
        }
        if self.masters_lead() {
            match self.is_deleted(handle) {
                true if cut.is_none() => return self.end_truncation(number),
                _ if cut.is_some_and(|(_, at, _)| self.now.since(at) >= GONE) => {
                    return self.primary_is_told(number);
                }
                true => {}
                false if self.is_lost(handle) => return self.end_truncation(number),
                false => self.truncations[number].config = self.primary_is_silent(handle),
            }
        }
        self.ask_to_cut(number);
    }

    /// The primary answers.
    pub(super) fn cutter_is_answered(&mut self, number: usize, request: u64, msg: ClientChunkReply) {
        let Truncation { handle, cut, over, .. } = self.truncations[number];
        if over || request != cut.is_some() as u64 {
            return;
        }
        self.trace.push(format!("{} truncation {number} of {handle}: {msg:?}", self.now.0));
        match msg {
            ClientChunkReply::Sealed { length } if cut.is_none() => self.cut_file(number, length),
            ClientChunkReply::Sealed { .. } => self.primary_is_told(number),
            ClientChunkReply::Refused(Refusal { code: Code::NoSuchChunk, .. }) if cut.is_some() => {
                self.primary_is_told(number)
            }
            _ => {}
        }
    }

    fn cut_file(&mut self, number: usize, length: u64) {
        if !self.masters_lead() {
            return;
        }
        let left = match self.rng.random_bool(TO_NOTHING) {
            true => 0,
            false => self.rng.random_range(0..=length),
        };
        let Truncation { handle, file, .. } = self.truncations[number];
        let length = self.left_of(handle, self.now).min(left);
        let done = self.mutate(Mutation::Truncate { file, length });
        assert!(matches!(done, MasterReply::Attr(_)), "{file:?} is not cut: {done:?}");
        self.is_cut_to(number, length);
    }

    /// The masters have cut the file.
    fn is_cut_to(&mut self, number: usize, length: u64) {
        let handle = self.truncations[number].handle;
        let snapshot = self.masters.state.last_snapshot();
        self.trace.push(format!("{} truncation {number} of {handle} leaves {length}", self.now.0));
        self.truncations[number].cut = Some((length, self.now, snapshot));
        if self.rng.random_bool(DIE) {
            // Then the masters tell the primary: by this time, or it is in no session.
            self.truncations[number].told = Some(self.now + Span::from_ms(SESSION_MS));
            return self.end_truncation(number);
        }
        self.ask_to_cut(number);
    }

    fn primary_is_told(&mut self, number: usize) {
        self.truncations[number].told = Some(self.now);
        self.trace.push(format!("{} truncation {number} is done", self.now.0));
        self.end_truncation(number);
    }

    fn end_truncation(&mut self, number: usize) {
        self.truncations[number].over = true;
    }

    /// Whether nobody is cutting anything.
    pub(super) fn truncations_are_over(&self) -> bool {
        self.truncations.iter().all(|t| t.over)
    }

    /// Whether the chunk has been sealed, or is about to be.
    pub(super) fn is_cut(&self, handle: ChunkHandle) -> bool {
        self.truncations.iter().any(|t| t.handle == handle)
    }

    /// What the file had of the chunk then: all, if nobody had cut it.
    pub(super) fn left_of(&self, handle: ChunkHandle, then: Time) -> u64 {
        let cuts = self.truncations.iter().filter(|t| t.handle == handle).filter_map(|t| t.cut);
        cuts.filter(|(_, at, _)| *at <= then).map(|(length, ..)| length).min().unwrap_or(u64::MAX)
    }

    /// All that the file had of the chunk at some moment of these.
    pub(super) fn lefts_of(&self, handle: ChunkHandle, since: Time, until: Time) -> Vec<u64> {
        let cuts = self.truncations.iter().filter(|t| t.handle == handle).filter_map(|t| t.cut);
        let between = cuts.map(|(_, at, _)| at).filter(|at| (since..=until).contains(at));
        std::iter::once(since).chain(between).map(|at| self.left_of(handle, at)).collect()
    }

    /// Whether its file has dropped the chunk: snapshots may still have it.
    pub(super) fn is_dropped(&self, handle: ChunkHandle) -> bool {
        self.left_of(handle, self.now) == 0
    }

    /// A write is acknowledged: nobody may have cut the file before it was begun, and said so.
    pub(super) fn check_not_behind(&self, acked: &Acked) {
        let all = self.truncations.iter().enumerate();
        for (number, t) in all.filter(|(_, t)| t.handle == acked.handle) {
            let Some((length, ..)) = t.cut.filter(|_| t.told.is_some_and(|told| told < acked.begun_at))
            else {
                continue;
            };
            let end = acked.offset + acked.data.len() as u64;
            assert!(
                end <= length,
                "a write of {} up to {end} was begun after truncation {number} had left {length}, and is acknowledged",
                acked.handle
            );
        }
    }
}
