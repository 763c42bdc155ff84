//! Clients on a store's machine: they ask where bytes lie, read them off its disk some time later, and look at its
//! board. P2: what the board says to hold must not be from before what was acknowledged when it was read.

use super::{Acked, Event, LOCATORS, Time, World};
use bytes::Bytes;
use chunkserver_core::io::{FileRef, Input};
use common::checksum::crc32c;
use common::limits::{BLOCK_BYTES, LOCATED_BYTES_MAX};
use common::wire::client_chunk::{ClientChunk, ClientChunkReply, Place};
use common::wire::local::{Head, Post, slot_of};
use common::{ChunkHandle, SessionId, Span};
use rand::RngExt;
use std::collections::BTreeMap;

/// Time between two questions.
const LOCATE_EVERY: Span = Span(7_000_000);
/// So often what was told is read, at most so long after that, in nanoseconds.
const READS: usize = 4;
const LATER: u64 = 400_000_000;
/// Bytes that are compared: so many that different writes differ.
const COMPARED: u64 = 8;
/// Of so many of the last acknowledged writes one is looked at.
const RECENT: usize = 24;

/// A store's board.
#[derive(Clone, Debug, Default)]
pub(super) struct Board {
    head: Head,
    slots: BTreeMap<u32, u64>,
}

/// Where the bytes of a chunk lie, as a store has told.
#[derive(Clone, Debug)]
pub(super) struct Told {
    handle: ChunkHandle,
    session: SessionId,
    stamp: u64,
    from: u64,
    len: u32,
    places: Vec<Place>,
}

impl Board {
    pub fn post(&mut self, post: Post) {
        match post {
            Post::Head(head) => self.head = head,
            Post::Slot { slot, stamp } => drop(self.slots.insert(slot, stamp)),
        }
    }

    fn says(&self, told: &Told, now: Time) -> bool {
        self.head.session == told.session
            && now < self.head.until
            && self.slots.get(&slot_of(told.handle)) == Some(&told.stamp)
    }
}

impl World {
    pub(super) fn begin_locate(&mut self) {
        self.at(self.now + LOCATE_EVERY, Event::Locate);
        let n = self.rng.random_range(0..self.handles.len());
        let (handle, config) = (self.handles[n], self.remembered[n].clone());
        let member = config.members[self.rng.random_range(0..config.members.len())];
        let store = self.index(member);
        let ends = self.acked.iter().filter(|a| a.handle == handle).map(|a| a.offset + a.data.len() as u64);
        let end = ends.max().unwrap_or(1);
        let offset = self.rng.random_range(0..end);
        let conn = LOCATORS + self.next_read;
        self.next_read += 1;
        self.locating.insert(conn, (handle, offset));
        let msg = ClientChunk::Locate { handle, offset, len: LOCATED_BYTES_MAX };
        let epoch = config.epoch;
        let input = Input::Client { conn, request: 0, epoch, snapshot: 0, msg, data: Bytes::new() };
        let life = self.servers[store].life;
        self.later(Event::Step { store, life, input: Box::new(input) });
    }

    pub(super) fn located(&mut self, store: usize, life: u64, conn: u64, msg: ClientChunkReply) {
        let Some((handle, from)) = self.locating.remove(&conn) else { return };
        let ClientChunkReply::Located { session, stamp, len, places } = msg else { return };
        assert!(places.iter().all(Place::is_sound), "{places:?}");
        let told = Told { handle, session, stamp, from, len, places };
        for _ in 0..READS {
            let at = self.now + Span(self.rng.random_range(1..LATER));
            self.at(at, Event::ReadHere { store, life, told: Box::new(told.clone()) });
        }
    }

    pub(super) fn read_here(&mut self, store: usize, life: u64, told: Told) {
        // The end of its process ends the connection with it. One that stands still keeps that.
        let now = self.local(store);
        let server = &self.servers[store];
        // What becomes of a write to a chunk that is about to go nobody knows.
        let is_of_use = server.board.says(&told, now) && !self.is_dropped(told.handle);
        if server.life != life || server.node.is_none() || !is_of_use {
            return;
        }
        let inside = |a: &&Acked| {
            a.handle == told.handle
                && a.data.len() as u64 >= COMPARED
                && a.offset >= told.from
                && a.offset + a.data.len() as u64 <= told.from + u64::from(told.len)
        };
        let recent: Vec<&Acked> = self.acked.iter().rev().filter(inside).take(RECENT).collect();
        if recent.is_empty() {
            return;
        }
        let acked = recent[self.rng.random_range(0..recent.len())];
        let at = acked.offset + self.rng.random_range(0..=acked.data.len() as u64 - COMPARED);
        let Some(got) = self.bytes_at(store, &told, at) else {
            // Other bytes lie there by now, and the board is about to say so: nothing else may.
            panic!("the board of {} says that {told:?} holds, and the bytes do not match", server.id);
        };
        // The newest of what covers the range in part or as a whole; what is not acknowledged may be there, too.
        let touches = |offset: u64, len: usize| offset < at + COMPARED && at < offset + len as u64;
        let covers = |offset: u64, len: usize| offset <= at && at + COMPARED <= offset + len as u64;
        let same = self.acked.iter().filter(|a| a.handle == told.handle);
        let newest = same.filter(|a| touches(a.offset, a.data.len())).max_by_key(|a| a.serial);
        let newest = newest.expect("one was chosen");
        let under_way = self.writers.iter().filter(|w| w.config.handle == told.handle);
        let wanted = under_way.filter_map(|w| w.wanted.as_ref());
        let disturbed = wanted.clone().any(|w| w.offset.is_some_and(|o| touches(o, w.data.len())));
        if disturbed || !covers(newest.offset, newest.data.len()) {
            return;
        }
        let from = (at - newest.offset) as usize;
        assert_eq!(
            got,
            newest.data[from..from + COMPARED as usize],
            "what was read of {} at {at} off the disk of {} is from before the acknowledgement of {}",
            told.handle,
            server.id,
            newest.serial
        );
        self.reads_done += 1;
        self.reads_here += 1;
    }

    /// The compared bytes off a store's disk, if they match their checksums.
    fn bytes_at(&self, store: usize, told: &Told, at: u64) -> Option<Vec<u8>> {
        let mut out = vec![0; COMPARED as usize];
        for place in &told.places {
            let (from, to) = (u64::from(place.offset), u64::from(place.offset + place.len));
            for (i, byte) in out.iter_mut().enumerate() {
                let pos = at + i as u64;
                if !(from..to).contains(&pos) {
                    continue;
                }
                let in_run = (pos - from) as usize + place.skip as usize;
                let slice = in_run / BLOCK_BYTES;
                let len = BLOCK_BYTES.min(place.run as usize - slice * BLOCK_BYTES);
                let offset = (u64::from(place.block) + slice as u64) * BLOCK_BYTES as u64;
                let disk = &self.servers[store].disk;
                let bytes = disk.read(FileRef::Extents(place.segment), offset, BLOCK_BYTES as u32);
                if crc32c(&bytes[..len]) != place.crcs[slice] {
                    return None;
                }
                *byte = bytes[in_run % BLOCK_BYTES];
            }
        }
        Some(out)
    }
}
