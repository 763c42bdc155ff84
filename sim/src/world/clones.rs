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
    of: ChunkConfig,
    to: ChunkConfig,
    /// When it was asked for, and when the masters had put it into its file.
    begun: Time,
    done: Option<Time>,
    /// It was put there, or given up.
    over: bool,
}

/// Connections from this number on are those of clones.
pub(super) const CLONERS: u64 = 1 << 50;
/// How many of all requests for a fork are sent twice.
const SENT_TWICE: f64 = 0.8;
/// How many of all answers are lost.
const ANSWERS_LOST: f64 = 0.4;
/// After so long a client gives up, in milliseconds.
const PATIENCE: (u64, u64) = (20, 4000);
/// Bytes that are written over a clone in the end.
const WRITTEN: usize = 9000;

impl World {
    /// Somebody wants a file that has what this chunk has; without a leader nothing comes of it.
    pub(super) fn begin_clone(&mut self, chunk: usize) {
        let handle = self.handles[chunk % self.handles.len()];
        if !self.masters_lead() || self.is_without_file(handle) {
            return;
        }
        let number = self.clones.len() as u64;
        let create = create(format!("/clone{number}"), false);
        let MasterReply::Opened { attr, .. } = self.mutate(create) else { panic!("no file") };
        let begin = Mutation::BeginClone { of: handle, snapshot: 0, file: attr.file, at: 0 };
        // A member may be away.
        let MasterReply::Clone { of, to } = self.mutate(begin) else { return };
        self.clones.push(Clone { of: of.clone(), to: to.clone(), begun: self.now, done: None, over: false });
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
            ClientChunkReply::Forked { length } => self.end_clone(number, Some(length)),
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
        clone.over = true;
        clone.done = matches!(reply, MasterReply::Chunk(_)).then_some(now);
    }

    /// The chunks that files have by now which were begun as clones.
    pub(super) fn cloned(&self) -> Vec<ChunkHandle> {
        self.clones.iter().filter(|c| c.done.is_some()).map(|c| c.to.handle).collect()
    }

    /// Whether no clone is being made.
    pub(super) fn clones_are_over(&self) -> bool {
        self.clones.iter().all(|c| c.over)
    }

    /// A clone has what the other chunk had at some moment between question and answer.
    pub fn check_clones(&mut self) {
        for clone in self.clones.clone() {
            let Some(done) = clone.done.filter(|_| !self.is_lost(clone.to.handle)) else { continue };
            let (of, to) = (clone.of.handle, clone.to.handle);
            let bytes = self.read_all(to, u64::MAX);
            let upto = self.serials_of(of, &bytes, u64::MAX, &format!("the clone {to}"));
            for a in self.acked.iter().filter(|a| a.handle == of) {
                let what = format!("the clone {to} and the write {} of {of}", a.serial);
                if a.acked_at < clone.begun {
                    assert!(a.serial <= upto.1, "{what}: it was acknowledged before, and is not there");
                }
                if a.begun_at > done {
                    assert!(a.serial > upto.0, "{what}: it was begun after, and is there");
                }
            }
            self.clones_made = self.clones_made.max(self.cloned().len() as u64);
        }
    }

    /// What is written to a clone does not show in the other chunk.
    pub fn write_to_clones(&mut self) {
        for clone in self.clones.clone() {
            let (of, to) = (clone.of.handle, clone.to.handle);
            if clone.done.is_none() || self.is_lost(of) || self.is_lost(to) || self.plan.options.append {
                continue;
            }
            let (other, mut model) = (self.read_all(of, u64::MAX), self.read_all(to, u64::MAX));
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
            assert!(self.read_all(of, u64::MAX) == other, "{of} has what was written to its clone {to}");
        }
    }
}
