//! What must hold once all has come to rest.

use super::{Acked, World};
use bytes::Bytes;
use chunkserver_core::io::Input;
use common::limits::{MIN_REPLICAS, PIECE_BYTES_MAX};
use common::wire::client_chunk::{ClientChunk, ClientChunkReply};
use common::{ChunkHandle, Code, Span, StoreId};
use std::collections::BTreeMap;

/// The members of a chunk at rest change at most so often.
const MEMBERS_CHANGE_MAX: u32 = 10;
/// The connection of whoever checks.
pub(super) const CHECKER: u64 = u64::MAX;
/// Its questions: for bytes, and for nothing but to be asked.
const READ: u64 = 1;
const POKE: u64 = 0;
/// A read that was refused is asked again after this.
const ASK_AGAIN: Span = Span::from_ms(5);
/// A read at rest is answered within this.
const READ_LIMIT: Span = Span::from_ms(20_000);

impl World {
    /// The whole chunk as one member serves it now; or its refusal.
    pub fn read_from(&mut self, handle: ChunkHandle, store: StoreId) -> Result<Vec<u8>, Code> {
        let mut all = vec![];
        loop {
            let part = self.read_part(handle, store, all.len() as u64)?;
            if part.is_empty() {
                return Ok(all);
            }
            all.extend(part);
        }
    }

    fn read_part(&mut self, handle: ChunkHandle, store: StoreId, offset: u64) -> Result<Vec<u8>, Code> {
        let deadline = self.now + READ_LIMIT;
        let mut refused = None;
        let len = PIECE_BYTES_MAX as u32;
        while self.now < deadline {
            if !self.config(handle).members.contains(&store) {
                return Err(Code::StaleEpoch);
            }
            self.caught = None;
            let read = ClientChunk::Read { handle, offset, len, stale: false };
            self.ask_as_checker(handle, store, READ, read);
            while self.caught.is_none() && self.now < deadline {
                self.next();
            }
            match self.caught.take() {
                Some(Err(
                    code @ (Code::Reconfiguring
                    | Code::Busy
                    | Code::StaleEpoch
                    | Code::UnknownEpoch
                    | Code::NotInSession
                    | Code::Unavailable),
                )) => {
                    refused = Some(code);
                    // Like a client that wants to write: a primary that was restarted takes its
                    // chunk over.
                    let primary = self.config(handle).primary;
                    self.ask_as_checker(handle, primary, POKE, ClientChunk::Stat { handle });
                    let again = self.now + ASK_AGAIN;
                    while self.now < again {
                        self.next();
                    }
                }
                Some(done) => return done,
                None => {}
            }
        }
        panic!("a read of {store} has no answer but {refused:?}; {handle} has {:?}", self.config(handle));
    }

    fn ask_as_checker(&mut self, handle: ChunkHandle, store: StoreId, request: u64, msg: ClientChunk) {
        let epoch = self.config(handle).epoch;
        let n = self.index(store);
        self.step(n, Input::Client { conn: CHECKER, request, epoch, snapshot: 0, msg, data: Bytes::new() });
    }

    pub(super) fn checker_is_answered(&mut self, request: u64, msg: ClientChunkReply, data: Vec<Bytes>) {
        if request != READ {
            return;
        }
        self.caught = match msg {
            ClientChunkReply::Data { pieces } => {
                let (mut at, all) = (0, data.concat());
                for piece in &pieces {
                    let end = at + piece.len as usize;
                    piece.verify(&all[at..end]).expect("served bytes match their checksums");
                    at = end;
                }
                Some(Ok(all))
            }
            ClientChunkReply::Refused(refusal) => Some(Err(refusal.code)),
            _ => return,
        };
    }

    /// P1, P3, P4 at rest: every member serves the same bytes; every acknowledged append is there
    /// once, whole; overwrites are those of the highest serial.
    pub fn check_promises(&mut self) {
        for handle in self.handles.clone() {
            match self.is_lost(handle) {
                true => self.check_lost(handle),
                false if self.is_dropped(handle) => {}
                false => self.check_chunk(handle),
            }
        }
    }

    /// A chunk is lost only if all members that it had in the end are, and so only beyond the fault
    /// model; and whoever looks for what is missing is told.
    fn check_lost(&mut self, handle: ChunkHandle) {
        let members = self.config(handle).members;
        assert!(members.iter().all(|m| self.servers[self.index(*m)].lost), "{handle} is given up too early");
        let lost = self.servers.iter().filter(|s| s.lost).count();
        let least = MIN_REPLICAS.min(self.plan.options.replicas as usize);
        assert!(lost >= least, "{handle} is lost with {lost} stores");
        let said = self.masters.state.loss_of(members[0]).expect("it is known").items;
        assert!(said.iter().any(|i| i.handle == handle), "nobody is told that {handle} is lost");
        self.chunks_lost += 1;
    }

    /// What all members of a chunk serve, as far as its file has it. Who lags behind the masters' patience may still leave it:
    /// then those that are members later are asked.
    pub(super) fn read_all(&mut self, handle: ChunkHandle, left: u64) -> Vec<u8> {
        for _ in 0..MEMBERS_CHANGE_MAX {
            self.run();
            let members = self.config(handle).members;
            let read: Vec<_> = members.iter().map(|m| (*m, self.read_from(handle, *m))).collect();
            if self.config(handle).members != members {
                continue;
            }
            // What lies behind a cut nobody reads: who has forgotten it and who has not does not matter.
            let mut served = read.into_iter().map(|(m, read)| {
                let mut bytes = read.expect("a member serves");
                bytes.truncate(left as usize);
                (m, bytes)
            });
            let (first, bytes) = served.next().expect("it has members");
            for (other, same) in served {
                let at = bytes.iter().zip(&same).position(|(a, b)| a != b);
                assert!(
                    bytes == same,
                    "{handle}: {first} ({}) and {other} ({}) differ at {at:?}",
                    bytes.len(),
                    same.len()
                );
            }
            return bytes;
        }
        panic!("{handle} does not come to rest");
    }

    /// The acknowledged writes of a chunk, in the order of their serials.
    pub(super) fn acked_in(&self, handle: ChunkHandle) -> Vec<Acked> {
        let mut acked: Vec<_> = self.acked.iter().filter(|a| a.handle == handle).cloned().collect();
        acked.sort_by_key(|a| a.serial);
        acked
    }

    fn check_chunk(&mut self, handle: ChunkHandle) {
        let left = self.left_of(handle, self.now);
        let first = self.read_all(handle, left);
        assert!(left == u64::MAX || first.len() as u64 == left, "{handle} has less than its file");
        let acked = self.acked_in(handle);
        for pair in acked.windows(2) {
            assert!(pair[0].serial < pair[1].serial, "two writes have serial {}", pair[0].serial);
        }
        if self.plan.options.append {
            let mut ends: BTreeMap<u64, u64> = BTreeMap::new();
            for a in acked.iter().filter(|a| a.offset < left) {
                let end = left.min(a.offset + a.data.len() as u64);
                let (offset, len) = (a.offset as usize, (end - a.offset) as usize);
                assert!(
                    first.get(offset..offset + len) == Some(&a.data[..len]),
                    "an acknowledged record at {} is not there",
                    a.offset
                );
                assert!(ends.insert(a.offset, end).is_none(), "two records at {}", a.offset);
            }
            let mut at = 0;
            for (start, end) in &ends {
                assert_eq!(*start, at, "something that nobody was told of lies at {at}");
                at = *end;
            }
            assert_eq!(first.len() as u64, at, "something that nobody was told of lies at the end");
        } else {
            let mut model: Vec<u8> = vec![];
            for a in &acked {
                let end = a.offset as usize + a.data.len();
                if model.len() < end {
                    model.resize(end, 0);
                }
                model[a.offset as usize..end].copy_from_slice(&a.data);
            }
            model.truncate(left as usize);
            assert!(model == first, "the bytes are not those of the acknowledged writes");
        }
    }
}
