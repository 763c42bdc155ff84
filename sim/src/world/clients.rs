//! Writers and readers: a writer sends one write until it is acknowledged, a reader asks for what
//! was acknowledged before.

use super::{ANSWERS_LOST, Acked, Event, LATE_BY, LONG_THOUGHTS, READ_EVERY, READERS_ASK, Wanted, World};
use bytes::Bytes;
use chunkserver_core::io::Input;
use common::limits::PIECE_BYTES_MAX;
use common::wire::Piece;
use common::wire::client_chunk::{ClientChunk, ClientChunkReply};
use common::{Code, Epoch, RequestId, Span, StoreId};
use rand::RngExt;

/// How much of all that writers send comes late.
const LATE: f64 = 0.01;
/// Overwrites begin below this: so narrow that most bytes are overwritten many times.
const OVERWRITTEN: u64 = 100_000;

impl World {
    pub(super) fn client(&mut self, c: usize) {
        const PATIENCE: Span = Span::from_ms(80);
        if self.writers[c].wanted.is_none() {
            if self.writers[c].left == 0 {
                return;
            }
            self.writers[c].left -= 1;
            self.writers[c].seq += 1;
            let len = match (self.rng.random_range(0..4), self.plan.options.small) {
                (0, _) => self.rng.random_range(1..200),
                (2, _) => 4096,
                (_, true) => self.rng.random_range(1..6000),
                (1, false) => self.rng.random_range(1..20_000),
                (_, false) => self.rng.random_range(1..90_000),
            };
            if self.plan.options.snapshots > 0 {
                // With what it wrote to one chunk comes what it had written to another.
                let n = self.rng.random_range(0..self.handles.len());
                self.writers[c].config = self.remembered[n].clone();
            }
            let mut data = vec![0u8; len];
            self.rng.fill(&mut data[..]);
            let offset = (!self.plan.options.append).then(|| self.rng.random_range(0..OVERWRITTEN));
            self.begin_write(c, offset, data.into());
        } else {
            let sent = self.writers[c].wanted.as_ref().expect("checked").sent_at;
            if self.now.since(sent) >= PATIENCE && self.now >= self.writers[c].thinks_until {
                self.ask_anew(c);
            }
        }
        self.at(self.now + PATIENCE, Event::Client { client: c });
    }

    /// A write under the writer's present number.
    pub(super) fn begin_write(&mut self, c: usize, offset: Option<u64>, data: Bytes) {
        let (client, seq) = (self.writers[c].id, self.writers[c].seq);
        let inline = data.len() <= common::limits::INLINE_BYTES_MAX && self.rng.random_bool(0.6);
        self.writers[c].wanted = Some(Wanted {
            request: RequestId { client, seq },
            offset,
            data,
            push_left: vec![],
            pushed: inline,
            alone: false,
            sent_at: self.now,
            begun_at: self.now,
            stamp: self.writers[c].stamp,
        });
        self.send(c);
    }

    /// Asks the master how the chunk stands, and sends again under the same request.
    fn ask_anew(&mut self, c: usize) {
        if self.masters_lead() {
            let handle = self.writers[c].config.handle;
            if self.is_deleted(handle) {
                return self.write_is_refused(c);
            }
            self.writers[c].config = self.primary_is_silent(handle);
        }
        self.send(c);
    }

    fn send(&mut self, c: usize) {
        let config = self.writers[c].config.clone();
        let now = self.now;
        let wanted = self.writers[c].wanted.as_mut().expect("something is wanted");
        wanted.sent_at = now;
        let Wanted { request, offset, data, pushed, alone, .. } = wanted.clone();
        let small = data.len() <= common::limits::INLINE_BYTES_MAX;
        if !pushed {
            let chain: Vec<StoreId> = if alone { vec![config.primary] } else { config.members.clone() };
            wanted.push_left = (0..data.len().div_ceil(PIECE_BYTES_MAX) as u16).collect();
            for index in 0..data.len().div_ceil(PIECE_BYTES_MAX) {
                let at = index * PIECE_BYTES_MAX;
                let part = data.slice(at..(at + PIECE_BYTES_MAX).min(data.len()));
                let msg = ClientChunk::Push {
                    request,
                    handle: config.handle,
                    index: index as u16,
                    total: data.len() as u32,
                    chain: chain[1..].to_vec(),
                    piece: Piece::of(&part),
                };
                self.send_to_store(c, chain[0], config.epoch, msg, part);
            }
            return;
        }
        let inline_now =
            small && self.writers[c].wanted.as_ref().is_some_and(|w| w.push_left.is_empty() && !w.alone);
        let inline = inline_now.then(|| Piece::of(&data));
        let payload = if inline_now { data.clone() } else { Bytes::new() };
        let create = (config.epoch.number() == 1).then(|| config.clone());
        let msg = ClientChunk::Write {
            request,
            lowest: request.seq,
            handle: config.handle,
            offset,
            len: data.len() as u32,
            inline,
            create,
        };
        self.send_to_store(c, config.primary, config.epoch, msg, payload);
    }

    fn send_to_store(&mut self, c: usize, to: StoreId, epoch: Epoch, msg: ClientChunk, data: Bytes) {
        let n = self.index(to);
        let life = self.servers[n].life;
        // Answers name the write that they are for: one that was sent twice is answered twice.
        let request = self.writers[c].seq;
        let snapshot = self.writers[c].stamp;
        let input = Input::Client { conn: c as u64, request, epoch, snapshot, msg, data };
        if self.plan.options.late_writes && self.rng.random_bool(LATE) {
            // Over a connection that stood still: whoever sent it has long asked again, and gone on.
            let late = Span(self.rng.random_range(LATE_BY.0..LATE_BY.1));
            return self.at(self.now + late, Event::Step { store: n, life, input: Box::new(input) });
        }
        self.later(Event::Step { store: n, life, input: Box::new(input) });
    }

    pub(super) fn reply(&mut self, c: usize, request: u64, msg: ClientChunkReply) {
        let Some(wanted) = self.writers[c].wanted.as_mut().filter(|w| w.request.seq == request) else {
            return;
        };
        match msg {
            ClientChunkReply::Held => {
                wanted.push_left.pop();
                if wanted.push_left.is_empty() && !wanted.pushed {
                    wanted.pushed = true;
                    wanted.alone = true;
                    self.send(c);
                }
            }
            // An answer that is lost: the client asks again, and must be told the same.
            ClientChunkReply::Written { .. } if self.rng.random_bool(ANSWERS_LOST) => {
                let longest = if self.rng.random_bool(LONG_THOUGHTS) { 4000 } else { 1 };
                let thought = Span::from_ms(self.rng.random_range(0..longest));
                self.writers[c].thinks_until = self.now + thought;
            }
            ClientChunkReply::Written { offset, serial, .. } => {
                let wanted = self.writers[c].wanted.take().expect("checked");
                let append = wanted.offset.is_none();
                self.trace.push(format!("{} acked {} at {offset} {serial}", self.now.0, wanted.request));
                let handle = self.writers[c].config.handle;
                let acked = Acked {
                    client: c,
                    handle,
                    offset,
                    data: wanted.data,
                    serial: serial.0,
                    append,
                    begun_at: wanted.begun_at,
                    acked_at: self.now,
                    stamp: wanted.stamp,
                };
                self.check_not_behind(&acked);
                self.acked.push(acked);
                self.later(Event::Client { client: c });
            }
            ClientChunkReply::Refused(refusal) => {
                if matches!(refusal.code, Code::PieceMissing | Code::ChainBroken) {
                    wanted.pushed = false;
                    wanted.alone = true;
                }
                let is_append = wanted.offset.is_none();
                self.trace.push(format!("{} refused {refusal}", self.now.0));
                let handle = self.writers[c].config.handle;
                let for_good = match refusal.code {
                    // It is being sealed, or has been.
                    Code::Sealed => is_append,
                    Code::BeyondEnd => true,
                    Code::NoSuchChunk => self.is_dropped(handle),
                    _ => false,
                };
                if for_good && self.is_cut(handle) {
                    self.write_is_refused(c);
                }
            }
            _ => {}
        }
    }

    /// Its file was cut: the write is given up, and nothing of it may ever be seen; but in a snapshot, if the file had the
    /// chunk when it was begun.
    fn write_is_refused(&mut self, c: usize) {
        let handle = self.writers[c].config.handle;
        let Wanted { offset, data, begun_at, .. } = self.writers[c].wanted.take().expect("it is refused");
        let is_unknown = self.is_dropped(handle) && self.left_of(handle, begun_at) > 0;
        if let Some(offset) = offset.filter(|_| is_unknown) {
            self.unknown.push((handle, offset as usize..offset as usize + data.len()));
        }
        self.later(Event::Client { client: c });
    }

    /// Reads the last byte of a record that was acknowledged, at a random member. P2: whatever
    /// the answer is, it must not be from before the acknowledgement.
    pub(super) fn begin_read(&mut self) {
        let next = self.now + READ_EVERY;
        self.at(next, Event::Read);
        if self.acked.is_empty() {
            return;
        }
        let acked = &self.acked[self.rng.random_range(0..self.acked.len())];
        let (handle, at, byte) = (
            acked.handle,
            acked.offset + acked.data.len() as u64 - 1,
            *acked.data.last().expect("not empty"),
        );
        let n = self.handles.iter().position(|h| *h == handle).expect("it is one of them");
        if self.rng.random_bool(READERS_ASK) && !self.is_deleted(handle) {
            self.remembered[n] = self.config(handle);
        }
        let config = self.remembered[n].clone();
        let member = config.members[self.rng.random_range(0..config.members.len())];
        self.next_read += 1;
        self.reads.insert(self.next_read, (at, byte, handle, member));
        let n = self.index(member);
        let (life, conn) = (self.servers[n].life, self.next_read);
        let msg = ClientChunk::Read { handle, offset: at, len: 1, stale: false };
        let input =
            Input::Client { conn, request: 0, epoch: config.epoch, snapshot: 0, msg, data: Bytes::new() };
        self.later(Event::Step { store: n, life, input: Box::new(input) });
    }

    pub(super) fn read_answered(&mut self, conn: u64, msg: ClientChunkReply, data: Vec<Bytes>) {
        let Some((at, byte, handle, member)) = self.reads.remove(&conn) else { return };
        if self.left_of(handle, self.now) <= at {
            return;
        }
        if let ClientChunkReply::Data { .. } = msg {
            let got = data.concat();
            assert_eq!(
                got,
                [byte],
                "a read of {handle} at {at} from {member} is from before the acknowledgement"
            );
            self.reads_done += 1;
        }
    }
}
