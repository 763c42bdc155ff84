//! Clients on the same machine read the store's files themselves (`common::wire::local`): they are told where bytes
//! lie, under a stamp that stays on the board as long as that is so and a read would be answered with these bytes.
//!
//! A stamp is given only where a read would be answered at once: within the session, by a member that knows of no
//! record that may or may not be committed. Anything that may change that about a chunk goes through
//! `Chunks::get_mut`, and takes the stamp away; what else a read depends on, the session, is on the board too. Blocks
//! of an extent are not written to while a chunk refers to them.

use crate::io::{Outbox, Output};
use crate::node::{Node, Waiting, handle_of, refuse};
use crate::reads::ReadFor;
use crate::store::index::{Extent, Home};
use common::limits::LOCATED_BYTES_MAX;
use common::wire::client_chunk::{ClientChunk, ClientChunkReply};
use common::wire::local::{Post, slot_of};
use common::{ChunkHandle, Code, Mutant};
use std::collections::BTreeMap;

/// Bytes of places in one answer, about; what does not fit is not told.
const PLACES_BYTES: usize = 12 * 1024;
/// Bytes of a place without its checksums, and of one of these, at most.
const PLACE_BYTES: usize = 32;
const CRC_BYTES: usize = 5;

/// The stamps that the board shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Board(BTreeMap<u32, u64>);

impl Board {
    /// The stamp of a chunk's slot; this fresh one, if it has none.
    fn stamp(&mut self, handle: ChunkHandle, fresh: u64, out: &mut Outbox) -> u64 {
        let slot = slot_of(handle);
        *self.0.entry(slot).or_insert_with(|| {
            out.push(Output::Post(Post::Slot { slot, stamp: fresh }));
            fresh
        })
    }

    /// What was told of a chunk may not be so any more.
    pub fn clear(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let slot = slot_of(handle);
        if !Mutant::StampStays.on() && self.0.remove(&slot).is_some() {
            out.push(Output::Post(Post::Slot { slot, stamp: 0 }));
        }
    }
}

impl Node {
    /// A client on this machine wants to know where bytes lie.
    pub(crate) fn locate(&mut self, ask: Waiting, out: &mut Outbox) {
        let ClientChunk::Locate { offset, len, .. } = ask.msg else { unreachable!() };
        if len == 0 || len > LOCATED_BYTES_MAX || offset > u64::from(u32::MAX) {
            return refuse(&ask, Code::BadArgument, out);
        }
        let Some(ask) = self.may_serve(ask, out) else {
            return;
        };
        let extents = match self.at_rest(&ask) {
            Some(extents) => extents,
            None => return refuse(&ask, Code::Busy, out),
        };
        let missing = extents.iter().flat_map(|e| self.store.missing_pages(e)).collect::<Vec<_>>();
        if missing.is_empty() {
            return self.located(ask, extents, out);
        }
        let job = self.store.load_pages(missing, out);
        self.reads.insert(job, ReadFor::Locate(Box::new(ask)));
    }

    /// The extents in the asked range, if all of the chunk is committed and all of the range is on disk.
    fn at_rest(&self, ask: &Waiting) -> Option<Vec<Extent>> {
        let ClientChunk::Locate { offset, len, .. } = ask.msg else { unreachable!() };
        let state = &self.chunks[&handle_of(&ask.msg)].state;
        if !state.tail.is_empty() && !Mutant::StampWithTail.on() {
            return None;
        }
        let to = (offset + u64::from(len)).min(u64::from(state.length));
        let extents = state.extents.range(offset as u32, (to as u32).max(offset as u32));
        let on_disk = |e: &Extent| matches!(e.home, Home::Disk { .. });
        extents.iter().all(on_disk).then_some(extents)
    }

    /// The checksums are at hand.
    pub(crate) fn pages_loaded(&mut self, ask: Waiting, out: &mut Outbox) {
        // Anything may have happened meanwhile.
        let Some(ask) = self.may_serve(ask, out) else { return };
        let extents = self.at_rest(&ask);
        match extents.filter(|all| all.iter().all(|e| self.store.missing_pages(e).is_empty())) {
            Some(extents) => self.located(ask, extents, out),
            None => refuse(&ask, Code::Busy, out),
        }
    }

    fn located(&mut self, ask: Waiting, extents: Vec<Extent>, out: &mut Outbox) {
        let ClientChunk::Locate { handle, offset, len } = ask.msg else { unreachable!() };
        let session = self.in_session().expect("it may be served");
        let mut to = (offset + u64::from(len)).min(u64::from(self.chunks[&handle].state.length));
        let (mut places, mut bytes) = (vec![], 0);
        for extent in &extents {
            let Some(place) = self.store.place_of(extent) else {
                return refuse(&ask, Code::Busy, out);
            };
            bytes += PLACE_BYTES + place.crcs.len() * CRC_BYTES;
            if bytes > PLACES_BYTES {
                to = u64::from(place.offset);
                break;
            }
            places.push(place);
        }
        let fresh = self.store.next_nonce();
        let stamp = self.board.stamp(handle, fresh, out);
        let len = to.saturating_sub(offset) as u32;
        let msg = ClientChunkReply::Located { session, stamp, len, places };
        out.push(Output::Reply { conn: ask.conn, request: ask.request, msg, data: vec![] });
    }
}
