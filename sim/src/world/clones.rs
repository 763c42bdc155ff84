//! Clones: a client has a chunk forked for a file of its own, at any moment, and hears of it or not.

use super::{Event, World, Writer, create};
use bytes::Bytes;
use chunkserver_core::io::Input;
use common::wire::ChunkConfig;
use common::wire::client_chunk::{ClientChunk, ClientChunkReply};
use common::wire::client_master::{MasterReply, Mutation};
use common::{ChunkHandle, Span, Time};
use rand::RngExt;

/// A clone. Its requests come over a connection of its own.
#[derive(Clone, Debug)]
pub(super) struct Clone {
    /// The chunk of the live tree that its client saw there, or in a snapshot.
    seen: ChunkHandle,
    /// What the file had of it, if it had been cut.
    left: u64,
    to: ChunkConfig,
    /// It has what the chunk had at some moment from here on: when it was asked for, or the snapshot was.
    since: Time,
    /// And until here: when the masters had put it into its file, or the snapshot was there.
    until: Option<Time>,
    /// It was put into its file.
    done: bool,
    /// It was put there, or given up.
    over: bool,
}

/// Connections from this number on are those of clones.
pub(super) const CLONERS: u64 = 1 << 50;
/// How many of all requests for a fork are sent twice.
const SENT_TWICE: f64 = 0.8;
/// How many of all answers are lost.
const ANSWERS_LOST: f64 = 0.4;
/// How many of all clones are of what a snapshot has, where files are cut and snapshots taken.
const OF_SNAPSHOTS: f64 = 0.4;
/// After so long a client gives up, in milliseconds.
const PATIENCE: (u64, u64) = (20, 4000);
/// Bytes that are written over a clone in the end.
const WRITTEN: usize = 9000;

impl World {
    /// Somebody wants a file that has what this chunk has, or had in a snapshot; without a leader nothing comes of it.
    pub(super) fn begin_clone(&mut self, chunk: usize) {
        let seen = self.handles[chunk % self.handles.len()];
        let snapshot = self.snapshot_to_clone();
        let (number, since, until) =
            snapshot.map_or((0, self.now, None), |(n, asked, told)| (n, asked, Some(told)));
        let left = self.left_of(seen, since);
        if !self.masters_lead() || self.is_lost(seen) || left == 0 {
            return;
        }
        let clone = self.clones.len() as u64;
        let create = create(format!("/clone{clone}"), false);
        let MasterReply::Opened { attr, .. } = self.mutate(create) else { panic!("no file") };
        let begin = Mutation::BeginClone { of: seen, snapshot: number, file: attr.file, at: 0 };
        // A member may be away.
        let MasterReply::Clone { of, to } = self.mutate(begin) else { return };
        self.clones.push(Clone { seen, left, to: to.clone(), since, until, done: false, over: false });
        let (handle, number) = (of.handle, clone);
        let n = self.index(of.primary);
        let life = self.servers[n].life;
        let msg = ClientChunk::Fork { handle, to };
        let (conn, epoch, data) = (CLONERS + number, of.epoch, Bytes::new());
        let input = Input::Client { conn, request: number, epoch, snapshot: 0, msg, data };
        if self.rng.random_bool(SENT_TWICE) {
            let late = Span::from_ms(self.rng.random_range(0..PATIENCE.1));
            self.at(self.now + late, Event::Step { store: n, life, input: Box::new(input.clone()) });
        }
        self.later(Event::Step { store: n, life, input: Box::new(input) });
        let patience = Span::from_ms(self.rng.random_range(PATIENCE.0..PATIENCE.1));
        self.at(self.now + patience, Event::CloneOver { number });
    }

    /// The primary answers.
    pub(super) fn fork_answered(&mut self, number: u64, msg: ClientChunkReply) {
        self.trace.push(format!("{} clone {number}: {msg:?}", self.now.0));
        if self.rng.random_bool(ANSWERS_LOST) || !self.masters_lead() {
            return;
        }
        match msg {
            ClientChunkReply::Forked { length } => {
                // As `client/src/clones.rs` has it: a file that was cut may have less than its chunk.
                let left = self.clones[number as usize].left;
                self.end_clone(number, Some(length).filter(|length| left == u64::MAX || *length == left))
            }
            ClientChunkReply::Refused(_) => self.end_clone(number, None),
            other => panic!("a fork was asked for, and this is the answer: {other:?}"),
        }
    }

    /// The client has waited long enough.
    pub(super) fn clone_is_over(&mut self, number: u64) {
        match self.masters_lead() {
            true => self.end_clone(number, None),
            false => self.at(self.now + Span::from_ms(PATIENCE.0), Event::CloneOver { number }),
        }
    }

    fn end_clone(&mut self, number: u64, length: Option<u64>) {
        let clone = self.clones[number as usize].clone();
        if clone.over {
            return;
        }
        let reply = self.mutate(Mutation::EndClone { to: clone.to.handle, length });
        let now = self.now;
        let clone = &mut self.clones[number as usize];
        (clone.over, clone.done) = (true, matches!(reply, MasterReply::Chunk(_)));
        clone.until.get_or_insert(now);
    }

    /// A snapshot that is there, as somebody knows who was told so: its number, and when it was asked for and there.
    fn snapshot_to_clone(&mut self) -> Option<(u64, Time, Time)> {
        if self.plan.options.truncations == 0 || !self.rng.random_bool(OF_SNAPSHOTS) {
            return None;
        }
        let there: Vec<_> = self.taken.iter().filter_map(|t| Some((t.number, t.asked, t.told?))).collect();
        (!there.is_empty()).then(|| there[self.rng.random_range(0..there.len())])
    }

    /// The chunks that files have by now which were begun as clones.
    pub(super) fn cloned(&self) -> Vec<ChunkHandle> {
        self.clones.iter().filter(|c| c.done).map(|c| c.to.handle).collect()
    }

    /// Whether no clone is being made.
    pub(super) fn clones_are_over(&self) -> bool {
        self.clones.iter().all(|c| c.over)
    }

    /// A clone has what the other chunk had at some moment between question and answer, or in the snapshot.
    pub fn check_clones(&mut self) {
        for clone in self.clones.clone() {
            let (of, to) = (clone.seen, clone.to.handle);
            if !clone.done || self.is_lost(to) {
                continue;
            }
            let until = clone.until.expect("it is done");
            let what = format!("the clone {to} of {of}");
            let bytes = self.read_all(to, u64::MAX);
            let lefts = self.lefts_of(of, clone.since, until);
            let first = lefts.iter().find_map(|left| self.serials_if(of, &bytes, *left));
            let upto =
                first.unwrap_or_else(|| panic!("{what}: there never were these {} bytes", bytes.len()));
            for a in self.acked.iter().filter(|a| a.handle == of) {
                let what = format!("{what} and the write {}", a.serial);
                if a.acked_at < clone.since {
                    assert!(a.serial <= upto.1, "{what}: it was acknowledged before, and is not there");
                }
                if a.begun_at > until {
                    assert!(a.serial > upto.0, "{what}: it was begun after, and is there");
                }
            }
            self.clones_made = self.clones_made.max(self.cloned().len() as u64);
        }
    }

    /// What is written to a clone does not show in the other chunk.
    pub fn write_to_clones(&mut self) {
        for clone in self.clones.clone() {
            let (of, to) = (clone.seen, clone.to.handle);
            if !clone.done || self.is_without_file(of) || self.is_lost(to) || self.plan.options.append {
                continue;
            }
            let left = self.left_of(of, self.now);
            let (other, mut model) = (self.read_all(of, left), self.read_all(to, u64::MAX));
            let len = model.len().min(WRITTEN);
            let mut data = vec![0; len];
            self.rng.fill(&mut data[..]);
            let offset = self.rng.random_range(0..=model.len() - len);
            model[offset..offset + len].copy_from_slice(&data);
            let config = self.config(to);
            self.writers[0] = Writer { config, wanted: None, left: 0, ..self.writers[0].clone() };
            self.writers[0].seq += 1;
            self.begin_write(0, Some(offset as u64), data.into());
            self.later(Event::Client { client: 0 });
            self.run_until("a write to a clone", |world| world.writers[0].wanted.is_none());
            assert!(self.read_all(to, u64::MAX) == model, "{to} does not have what was written to it");
            assert!(self.read_all(of, left) == other, "{of} has what was written to its clone {to}");
        }
    }
}
