//! The store on a disk that loses, tears and rots: each case of the recovery table, every flush.

use bytes::Bytes;
use chunkserver_core::Node;
use chunkserver_core::io::{DiskKind, DiskOp, FileRef, Input, Output};
use chunkserver_core::store::StoreConfig;
use chunkserver_core::store::recover::RecoverError;
use common::limits::{INLINE_BYTES_MAX, PIECE_BYTES_MAX};
use common::wire::chunk_chunk::{Origin, Peer, WriteOp};
use common::wire::chunk_master::Order;
use common::wire::client_chunk::{ClientChunk, ClientChunkReply};
use common::wire::{ChunkConfig, Piece};
use common::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sim::disk::MemDisk;
use sim::world::{empty_disk, open, small_store};
use std::collections::VecDeque;

/// One node with one-replica chunks on one disk, driven by hand.
struct One {
    node: Node,
    disk: MemDisk,
    now: Time,
    client: ClientId,
    seq: u64,
    /// The last write that another store has had applied here.
    applied: Serial,
    asks: VecDeque<DiskOp>,
    /// Files whose disk operations do not begin, and those that have not.
    stall: fn(FileRef) -> bool,
    stalled: VecDeque<DiskOp>,
    replies: Vec<(u64, ClientChunkReply, Vec<u8>)>,
    /// Chunks that the masters have deleted.
    deleted: Vec<u64>,
    /// How another store's writes were refused.
    refused: Vec<Code>,
}

fn chunk(n: u64) -> ChunkConfig {
    let (handle, primary) = (ChunkHandle(n), StoreId(1));
    ChunkConfig { handle, epoch: Epoch::first(0), primary, members: vec![primary], sealed: None, wait_ms: 0 }
}

fn led_by_other(n: u64) -> ChunkConfig {
    let other = StoreId(2);
    ChunkConfig { primary: other, members: vec![StoreId(1), other], ..chunk(n) }
}

impl One {
    fn open(config: StoreConfig, mut disk: MemDisk) -> Result<One, RecoverError> {
        let client = ClientId(config.incarnation as u128 + 5);
        let node = Node::new(StoreId(1), open(config, &mut disk)?);
        let mut one = One {
            node,
            disk,
            client,
            now: Time(1),
            seq: 0,
            applied: Serial(0),
            asks: VecDeque::new(),
            stall: |_| false,
            stalled: VecDeque::new(),
            replies: vec![],
            deleted: vec![],
            refused: vec![],
        };
        one.step(Input::Session { session: SessionId(1), until: Time::NEVER, next_chunk: ChunkHandle(0) });
        one.settle();
        Ok(one)
    }

    fn step(&mut self, input: Input) {
        self.now = self.now + Span::from_ms(1);
        let mut out = vec![];
        self.node.step(self.now, input, &mut out);
        self.node.check();
        for output in out {
            match output {
                Output::Disk(op) if (self.stall)(op.file) => self.stalled.push_back(op),
                Output::Disk(op) => self.asks.push_back(op),
                Output::Reply { request, msg, data, .. } => self.replies.push((request, msg, data.concat())),
                // The masters know each chunk as it was made; a restart gives a new epoch.
                Output::Master(ask) if self.deleted.contains(&ask.handle.0) => {
                    let answer = Err(Refusal::new(Code::NoSuchChunk, ask.handle));
                    self.step(Input::Master { handle: ask.handle, number: ask.number, answer });
                }
                Output::Master(ask) => {
                    let now = self.node.chunk_view(ask.handle).map_or(chunk(ask.handle.0), |v| v.config);
                    let epoch = match ask.what {
                        chunkserver_core::io::Ask::Takeover { epoch } => epoch.next(),
                        _ if now.epoch.number() == 0 => Epoch::first(0),
                        _ => now.epoch,
                    };
                    if let chunkserver_core::io::Ask::Corrupt { .. } = ask.what {
                        // The only replica there is: it stays.
                        let answer = Err(Code::Frozen.into());
                        self.step(Input::Master { handle: ask.handle, number: ask.number, answer });
                        continue;
                    }
                    let answer = Ok(ChunkConfig { epoch, ..chunk(ask.handle.0) });
                    self.step(Input::Master { handle: ask.handle, number: ask.number, answer });
                }
                Output::Peer { msg: Peer::ApplyRefused { code, .. }, .. } => self.refused.push(code),
                Output::Failed(why) => panic!("{why}"),
                _ => {}
            }
        }
    }

    /// Performs one waiting disk operation.
    fn disk_one(&mut self) -> bool {
        let Some(op) = self.asks.pop_front() else {
            return false;
        };
        let done = self.disk.perform(op);
        self.step(Input::Disk(done));
        true
    }

    fn settle(&mut self) {
        while self.disk_one() {}
    }

    fn send_write(&mut self, n: u64, offset: Option<u64>, data: &[u8]) -> u64 {
        self.seq += 1;
        let request = RequestId { client: self.client, seq: self.seq };
        let epoch = self.node.chunk_view(ChunkHandle(n)).map_or(Epoch::first(0), |v| v.config.epoch);
        let small = data.len() <= INLINE_BYTES_MAX;
        if !small {
            for (index, part) in data.chunks(PIECE_BYTES_MAX).enumerate() {
                let msg = ClientChunk::Push {
                    request,
                    handle: ChunkHandle(n),
                    index: index as u16,
                    total: data.len() as u32,
                    chain: vec![],
                    piece: Piece::of(part),
                };
                self.step(Input::Client {
                    snapshot: 0,
                    conn: 1,
                    request: 0,
                    epoch,
                    msg,
                    data: Bytes::copy_from_slice(part),
                });
            }
        }
        let inline = small.then(|| Piece::of(data));
        let payload = if small { Bytes::copy_from_slice(data) } else { Bytes::new() };
        let msg = ClientChunk::Write {
            request,
            lowest: self.seq.saturating_sub(8).max(1),
            handle: ChunkHandle(n),
            offset,
            len: data.len() as u32,
            inline,
            create: Some(chunk(n)),
        };
        let msg = if epoch == Epoch::first(0) { msg } else { strip(msg) };
        let id = self.seq;
        self.step(Input::Client { conn: 1, request: id, epoch, snapshot: 0, msg, data: payload });
        id
    }

    fn write(&mut self, n: u64, offset: Option<u64>, data: &[u8]) {
        loop {
            let id = self.send_write(n, offset, data);
            self.settle();
            let answer = self
                .replies
                .iter()
                .find(|r| r.0 == id)
                .unwrap_or_else(|| panic!("no answer to {id}: {:?}", self.replies));
            match &answer.1 {
                ClientChunkReply::Written { .. } => return,
                // The first write after a restart makes the primary start over in a new epoch.
                ClientChunkReply::Refused(r) if r.code == Code::StaleEpoch => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Another store leads chunk 9, of which this one is a member, and has it written to.
    fn apply(&mut self, data: &[u8]) {
        self.applied = self.applied.next();
        self.apply_to(9, data);
    }

    /// The same of any chunk, once more.
    fn apply_to(&mut self, n: u64, data: &[u8]) {
        let (handle, epoch, other) = (ChunkHandle(n), Epoch::first(0), StoreId(2));
        let origin = Origin { epoch, incarnation: 1 };
        let op = WriteOp {
            request: RequestId { client: ClientId(9), seq: self.applied.0 },
            lowest: self.applied.0,
            offset: 0,
            len: data.len() as u32,
            serial: self.applied,
            origin,
        };
        let config = led_by_other(n);
        let msg = Peer::Apply {
            handle,
            epoch,
            after: if self.applied == Serial(1) { Origin::default() } else { origin },
            op,
            inline: Some(Piece::of(data)),
            committed: Serial(self.applied.0 - 1),
            create: Some(config),
        };
        self.step(Input::Peer { from: other, snapshot: 0, msg, data: Bytes::copy_from_slice(data) });
        self.settle();
    }

    fn read(&mut self, n: u64, offset: u64, len: u32) -> Result<Vec<u8>, Code> {
        self.replies.clear();
        let msg = ClientChunk::Read { handle: ChunkHandle(n), offset, len, stale: false };
        self.step(Input::Client {
            conn: 1,
            request: 7_000_000,
            epoch: Epoch(0),
            snapshot: 0,
            msg,
            data: Bytes::new(),
        });
        self.settle();
        match self.replies.pop().expect("an answer") {
            (_, ClientChunkReply::Data { pieces }, bytes) => {
                let mut at = 0;
                for piece in pieces {
                    piece.verify(&bytes[at..at + piece.len as usize]).expect("what is served verifies");
                    at += piece.len as usize;
                }
                Ok(bytes)
            }
            (_, ClientChunkReply::Refused(r), _) => Err(r.code),
            other => panic!("{other:?}"),
        }
    }

    fn read_all(&mut self, n: u64) -> Result<Vec<u8>, Code> {
        let mut all = vec![];
        loop {
            let part = self.read(n, all.len() as u64, PIECE_BYTES_MAX as u32)?;
            if part.is_empty() {
                return Ok(all);
            }
            all.extend(part);
        }
    }

    fn delete(&mut self, n: u64) {
        self.deleted.push(n);
        self.step(Input::Orders(vec![Order {
            handle: ChunkHandle(n),
            epoch: Epoch::DELETED,
            discard: true,
        }]));
        self.settle();
    }

    /// The process ends, or the power, perhaps in the middle of a checkpoint; and it is opened again.
    fn end(mut self, config: StoreConfig, rng: &mut StdRng) -> One {
        self.step(Input::Checkpoint { gathers: rng.random() });
        for _ in 0..rng.random_range(0..30) {
            self.disk_one();
            self.step(Input::Wake);
        }
        if rng.random() {
            self.disk.power_lost(rng);
        }
        let deleted = self.deleted;
        One { deleted, ..One::open(config, self.disk).expect("it opens") }
    }

    fn checkpoint(&mut self) {
        self.step(Input::Checkpoint { gathers: false });
        self.settle();
    }
}

fn strip(msg: ClientChunk) -> ClientChunk {
    match msg {
        ClientChunk::Write { request, lowest, handle, offset, len, inline, .. } => {
            ClientChunk::Write { request, lowest, handle, offset, len, inline, create: None }
        }
        other => other,
    }
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    StdRng::seed_from_u64(seed).fill(&mut data[..]);
    data
}

fn config(incarnation: u64) -> StoreConfig {
    small_store(77, incarnation)
}

fn fresh() -> One {
    One::open(config(1), empty_disk(&config(1))).expect("an empty store opens")
}

fn model_put(model: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if model.len() < offset + data.len() {
        model.resize(offset + data.len(), 0);
    }
    model[offset..offset + data.len()].copy_from_slice(data);
}

#[test]
fn every_size_and_offset_is_read_back_before_and_after_a_checkpoint_and_a_restart() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut one = fresh();
    let mut models = vec![vec![]; 4];
    for round in 0..60 {
        let n = rng.random_range(1..=3);
        let len = [1, 100, 4096, 5000, 65_536, 65_537, 300_000, 1_000_000][rng.random_range(0..8)];
        let offset = rng.random_range(0..200_000);
        let data = bytes(round, len);
        one.write(n, Some(offset), &data);
        model_put(&mut models[n as usize], offset as usize, &data);
        if round % 17 == 16 {
            one.checkpoint();
        }
        if round % 23 == 22 {
            one = One::open(config(round + 2), one.disk).expect("it opens");
        }
        for n in 1..=3u64 {
            let model = &models[n as usize];
            if model.is_empty() {
                continue;
            }
            let at = rng.random_range(0..model.len());
            let len = rng.random_range(1..=(model.len() - at).min(PIECE_BYTES_MAX));
            assert!(one.read(n, at as u64, len as u32).unwrap() == model[at..at + len], "round {round}");
        }
    }
    for n in 1..=3u64 {
        assert!(one.read_all(n).unwrap() == models[n as usize]);
    }
    // Cases A and B: good groups, then none.
}

/// An operation for each would hold up whoever writes meanwhile.
#[test]
fn small_writes_of_several_chunks_go_home_side_by_side() {
    let (mut one, mut models) = (fresh(), vec![vec![]; 4]);
    let put = |one: &mut One, models: &mut Vec<Vec<u8>>, n: u64, at: u64, len: usize| {
        let data = bytes(at + n, len);
        one.write(n, Some(at), &data);
        model_put(&mut models[n as usize], at as usize, &data);
    };
    // Two in three lie by themselves; one goes on where another ends, in the middle of a block.
    for i in 0..40 {
        for n in 1..=3 {
            put(&mut one, &mut models, n, i * 12_288, 3000);
            if i % 3 == 0 {
                put(&mut one, &mut models, n, i * 12_288 + 3000, 3000);
            }
        }
    }
    one.stall = |file| matches!(file, FileRef::Extents(_));
    one.checkpoint();
    let lens = |ops: &VecDeque<DiskOp>| -> Vec<usize> {
        let written = |op: &DiskOp| match &op.kind {
            DiskKind::Write { data, .. } => data.len(),
            other => panic!("{other:?}"),
        };
        ops.iter().map(written).collect()
    };
    let runs = 3 * (40 + 14) * 4096;
    assert_eq!(lens(&one.stalled), [PIECE_BYTES_MAX, PIECE_BYTES_MAX, runs - 2 * PIECE_BYTES_MAX]);
    // What is overwritten on its way stays what it is; what comes behind it waits for the next one.
    put(&mut one, &mut models, 1, 0, 4096);
    put(&mut one, &mut models, 2, 12_288 + 1000, 100);
    one.stall = |_| false;
    one.asks.append(&mut one.stalled);
    one.settle();
    for n in 1..=3 {
        assert!(one.read_all(n).unwrap() == models[n as usize], "chunk {n}");
    }
    let in_memory = one.node.stats().log_bytes;
    assert!(in_memory < 100_000, "{in_memory} bytes would be replayed");
    let mut again = One::open(config(2), one.disk).expect("it opens");
    for n in 1..=3 {
        assert!(again.read_all(n).unwrap() == models[n as usize], "chunk {n} after a restart");
    }
}

/// Room for one block here and there is room for all.
#[test]
fn small_writes_go_home_to_a_full_store_one_by_one() {
    let (mut one, mut models) = (fresh(), vec![vec![]; 4]);
    let is_full = |one: &mut One, n: u64, at: u64| {
        let id = one.send_write(n, Some(at), &bytes(at + n, PIECE_BYTES_MAX));
        one.settle();
        let answer = one.replies.iter().find(|r| r.0 == id).map(|r| &r.1);
        match answer.expect("an answer") {
            ClientChunkReply::Written { .. } => false,
            ClientChunkReply::Refused(r) if matches!(r.code, Code::DiskFull | Code::PieceMissing) => true,
            other => panic!("{other:?}"),
        }
    };
    'fill: for n in 1..=3 {
        for at in (0..64 << 20).step_by(PIECE_BYTES_MAX) {
            if is_full(&mut one, n, at) {
                break 'fill;
            }
            model_put(&mut models[n as usize], at as usize, &bytes(at + n, PIECE_BYTES_MAX));
        }
    }
    // Each takes a block of what lies together and is kept for the last, and leaves one behind that lies alone.
    for i in 0..3000 {
        let data = bytes(i, 4096);
        one.write(1, Some(i * 12_288), &data);
        model_put(&mut models[1], i as usize * 12_288, &data);
        if i % 100 == 99 {
            one.checkpoint();
        }
    }
    one.replies.clear();
    let msg = ClientChunk::Locate { handle: ChunkHandle(1), offset: 2950 * 12_288, len: 1 << 19 };
    let (conn, request, epoch, snapshot, data) = (1, 7_000_000, Epoch(0), 0, Bytes::new());
    one.step(Input::Client { conn, request, epoch, snapshot, msg, data });
    one.settle();
    let answer = one.replies.pop().expect("an answer").1;
    assert!(matches!(answer, ClientChunkReply::Located { .. }), "not all is home: {answer:?}");
    let mut again = One::open(config(2), one.disk).expect("it opens");
    for n in 1..=3 {
        assert!(again.read_all(n).unwrap_or_default() == models[n as usize], "chunk {n} after a restart");
    }
}

/// What is in the log only, clients on the same machine cannot read there.
#[test]
fn what_nobody_writes_to_any_more_goes_home_by_itself() {
    let mut one = fresh();
    let is_located = |one: &mut One| {
        one.replies.clear();
        let msg = ClientChunk::Locate { handle: ChunkHandle(1), offset: 0, len: 1 << 20 };
        let (conn, request, epoch, snapshot, data) = (1, 7_000_000, Epoch(0), 0, Bytes::new());
        one.step(Input::Client { conn, request, epoch, snapshot, msg, data });
        one.settle();
        match one.replies.pop().expect("an answer").1 {
            ClientChunkReply::Located { .. } => true,
            ClientChunkReply::Refused(r) if r.code == Code::Busy => false,
            other => panic!("{other:?}"),
        }
    };
    // More than is worth it, and less than what a checkpoint does not wait for.
    for n in 0..24 {
        one.write(1, Some(n * 60_000), &bytes(n, 60_000));
    }
    let later = |one: &mut One, ms| {
        one.now = one.now + Span::from_ms(ms);
        one.step(Input::Wake);
        one.settle();
    };
    // That the last one is committed is said a moment later, and goes to the log another moment later.
    later(&mut one, 50);
    later(&mut one, 50);
    later(&mut one, 4900);
    assert!(!is_located(&mut one), "somebody may go on");
    later(&mut one, 200);
    assert!(is_located(&mut one));
    assert!(one.node.stats().log_bytes < 100_000, "it need not be replayed");
}

#[test]
fn at_every_flush_a_power_failure_loses_nothing_that_was_acknowledged() {
    // Once to count the flushes, then once for each: power fails right before the next flush is
    // performed, and again between any two operations.
    let run = |stop_after: Option<u64>, seed: u64| -> (u64, bool) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut one = fresh();
        let mut model: Vec<u8> = vec![];
        let mut acked = 0;
        let mut script = vec![];
        for i in 0..24u64 {
            let len = [500, 4096, 70_000, 300_000][rng.random_range(0..4)];
            script.push((rng.random_range(0..300_000u64), bytes(seed * 100 + i, len)));
        }
        let mut stopped = false;
        'run: for (i, (offset, data)) in script.iter().enumerate() {
            let id = one.send_write(1, Some(*offset), data);
            if i == 12 {
                one.step(Input::Checkpoint { gathers: false });
            }
            loop {
                let due = stop_after.is_some_and(|n| one.disk.flushes >= n);
                if due && (one.disk.flushes > stop_after.unwrap() || rng.random_bool(0.3)) {
                    stopped = true;
                    break 'run;
                }
                if !one.disk_one() {
                    break;
                }
                if one.replies.iter().any(|r| r.0 == id) && acked == i {
                    acked = i + 1;
                }
            }
            if one.replies.iter().any(|r| r.0 == id) {
                acked = i + 1;
            }
        }
        for (offset, data) in &script[..acked] {
            model_put(&mut model, *offset as usize, data);
        }
        let flushes = one.disk.flushes;
        let mut disk = one.disk;
        disk.power_lost(&mut rng);
        let mut again =
            One::open(config(2), disk).unwrap_or_else(|e| panic!("seed {seed}, flush {stop_after:?}: {e}"));
        if acked > 0 {
            let all = again.read_all(1).unwrap_or_else(|e| panic!("seed {seed}, flush {stop_after:?}: {e}"));
            // The write under way may be there as well, whole.
            let mut with_next = model.clone();
            if let Some((offset, data)) = script.get(acked) {
                model_put(&mut with_next, *offset as usize, data);
            }
            assert!(
                all == model || all == with_next,
                "seed {seed}, flush {stop_after:?}, {acked} acknowledged"
            );
        }
        again.write(1, Some(0), b"it goes on");
        (flushes, stopped)
    };
    let (flushes, _) = run(None, 1);
    println!("{flushes} flushes");
    for n in 0..flushes {
        for seed in 1..6 {
            run(Some(n), seed);
        }
    }
}

/// A store with some writes in its log, not checkpointed; gives where its groups are.
fn with_log() -> One {
    let mut one = fresh();
    for i in 0..6 {
        one.write(1, Some(i * 1000), &bytes(i, 1000));
    }
    one
}

#[test]
fn case_c_a_torn_last_group_was_never_acknowledged() {
    let mut one = with_log();
    let before = one.read_all(1).unwrap();
    let head = one.node.stats().log_bytes;
    one.send_write(1, Some(6000), &bytes(9, 3000));
    while one.disk_one() {}
    // The last group's body is damaged where nothing follows: it counts as torn.
    one.disk.flip(FileRef::Log(0), head + 70, 3);
    let mut again = One::open(config(2), one.disk).expect("a torn tail is no damage");
    assert!(again.read_all(1).unwrap() == before);
}

#[test]
fn case_d_rot_before_the_last_group_is_refused() {
    let one = with_log();
    for byte in [20, 70, 4096 + 100] {
        let mut disk = one.disk.clone();
        disk.flip(FileRef::Log(0), byte, 1);
        let Err(error) = One::open(config(2), disk) else { panic!("rot at {byte} was not found") };
        assert!(matches!(error, RecoverError::LogRot { case: 'D', .. }), "{error}");
    }
}

#[test]
fn case_e_a_last_group_whose_data_did_not_land_is_dropped() {
    let mut one = fresh();
    one.write(1, Some(0), b"first");
    let data = bytes(3, 200_000);
    one.write(1, Some(10), &data);
    // As if the data's blocks had not reached the medium although the log did.
    let found = (0..one.disk.len(FileRef::Extents(0)))
        .step_by(4096)
        .find(|at| one.disk.read(FileRef::Extents(0), *at, 4096)[..100] == data[..100]);
    one.disk.flip(FileRef::Extents(0), found.expect("the data is in the segment") + 5, 0);
    // The commit point may have been logged after it: only a bare last group is dropped.
    let mut again = match One::open(config(2), one.disk) {
        Ok(one) => one,
        Err(e) => panic!("{e}"),
    };
    let all = again.read_all(1);
    assert!(all == Ok(b"first".to_vec()) || all == Err(Code::Corrupt), "{all:?}");
}

#[test]
fn case_e_what_the_last_group_lets_go_of_is_no_witness() {
    let log_stalls = |file| matches!(file, FileRef::Log(_));
    let mut one = fresh();
    one.write(1, Some(0), &bytes(1, 100_000));
    // A write and the order to delete the chunks lie in one group, the last: the log is busy until
    // both are there.
    one.stall = log_stalls;
    one.send_write(2, Some(0), b"keeps the log busy");
    one.send_write(1, Some(0), &bytes(2, 200_000));
    one.settle();
    let delete = |n| Order { handle: ChunkHandle(n), epoch: Epoch::DELETED, discard: true };
    one.step(Input::Orders(vec![delete(1), delete(2)]));
    one.stall = |_| false;
    one.asks.append(&mut one.stalled);
    one.settle();
    // Killed. What comes next goes where the deleted bytes were, and never gets a record.
    let mut again = One::open(config(2), one.disk).expect("it opens");
    again.stall = log_stalls;
    again.send_write(3, Some(0), &bytes(3, 1_000_000));
    again.settle();
    let mut last = One::open(config(3), again.disk).expect("it opens");
    assert_eq!(last.read(1, 0, 10), Err(Code::NoSuchChunk), "it was confirmed that the chunk is gone");
}

#[test]
fn what_a_killed_process_wrote_is_durable_once_it_is_recovered() {
    let mut one = fresh();
    let data = bytes(1, 200_000);
    // The group is written, and its flush has not begun.
    one.send_write(1, Some(0), &data);
    while one.asks.front().is_some_and(|op| !matches!(op.kind, DiskKind::Sync)) {
        one.disk_one();
    }
    let mut again = One::open(config(2), one.disk).expect("it opens");
    assert!(again.read_all(1).unwrap() == data, "it is found, and served");
    again.disk.power_lost(&mut StdRng::seed_from_u64(1));
    let mut last = One::open(config(3), again.disk).expect("it opens");
    assert!(last.read_all(1).unwrap() == data, "what was served is lost");
}

#[test]
fn cases_g_and_h_checkpoints() {
    let mut one = with_log();
    let all = one.read_all(1).unwrap();
    one.checkpoint();
    let (newest, older) = (FileRef::Checkpoint(0), FileRef::Checkpoint(1));
    // H: the newest is rotten, the other good, and the log still reaches back.
    let mut disk = one.disk.clone();
    disk.flip(newest, 40, 2);
    let mut again = One::open(config(2), disk.clone()).expect("case H");
    assert!(again.read_all(1).unwrap() == all);
    // G: both.
    disk.flip(older, 40, 2);
    assert!(matches!(One::open(config(2), disk), Err(RecoverError::NoCheckpoint)));
}

#[test]
fn case_f_a_log_that_was_recycled_past_the_checkpoint_is_refused() {
    let ring = config(1).log_segment_bytes * config(1).log_segments;
    // Groups of other sizes: what lies at the old position is the head of a group, or its middle.
    for (step, len) in [60_000, 4_000, 21_000, 43_000].into_iter().enumerate() {
        let mut one = fresh();
        let fill = |one: &mut One, upto: u64| {
            for i in 0.. {
                if one.node.stats().log_bytes >= upto {
                    break;
                }
                // What this store leads fills half of the ring at most, what others lead all of it.
                match upto <= ring / 2 {
                    true => one.write(i % 3 + 1, Some(0), &bytes(i, len)),
                    false => one.apply(&bytes(i, len)),
                }
            }
        };
        fill(&mut one, ring / 16);
        one.checkpoint();
        // The next checkpoint is slow, and so lies more than a segment later.
        one.stall = |file| matches!(file, FileRef::Checkpoint(_));
        fill(&mut one, ring * 5 / 16);
        one.stall = |_| false;
        one.asks.append(&mut one.stalled);
        one.settle();
        // The one after it never gets to the disk, and the log goes on as far as it may: beyond
        // where the older checkpoint would start, nearly up to where the newer one does.
        one.stall = |file| matches!(file, FileRef::Checkpoint(_));
        fill(&mut one, ring * (14 + step as u64 % 2) / 16);
        let refused = [0, 1].map(|slot| {
            let mut disk = one.disk.clone();
            disk.flip(FileRef::Checkpoint(slot), 40, 2);
            One::open(config(2), disk).err()
        });
        // With the newer one all is fine; the older one alone is of no use any more.
        match refused {
            [None, Some(RecoverError::LogRot { case: 'F', .. })]
            | [Some(RecoverError::LogRot { case: 'F', .. }), None] => {}
            other => panic!("groups of {len}: {other:?}"),
        }
    }
}

#[test]
fn half_of_the_log_is_for_what_other_primaries_have_admitted() {
    let ring = config(1).log_segment_bytes * config(1).log_segments;
    let mut one = fresh();
    one.stall = |file| matches!(file, FileRef::Checkpoint(_));
    let refused = (0..).find(|n| {
        let id = one.send_write(1, Some(0), &bytes(*n, 40_000));
        one.settle();
        let answer = one.replies.iter().find(|r| r.0 == id);
        matches!(&answer.expect("an answer").1, ClientChunkReply::Refused(r) if r.code == Code::Busy)
    });
    let used = one.node.stats().log_bytes;
    println!("write {refused:?} is refused with {used} of {ring} bytes used");
    assert!((ring / 2..ring / 2 + 100_000).contains(&used), "{used} of {ring}");
    while one.node.stats().log_bytes < ring * 3 / 4 {
        let before = one.node.stats().log_bytes;
        one.apply(&bytes(1, 40_000));
        assert!(one.node.stats().log_bytes > before, "what others have admitted is taken");
    }
    one.stall = |_| false;
    one.asks.append(&mut one.stalled);
    one.settle();
    one.write(1, Some(0), &bytes(1, 40_000));
}

#[test]
fn a_flipped_bit_in_data_or_checksum_table_is_never_served() {
    let mut one = fresh();
    let data = bytes(1, 500_000);
    one.write(1, Some(0), &data);
    one.checkpoint();
    // After a restart the checksums are only on disk.
    let disk = One::open(config(2), one.disk).map(|o| o.disk).unwrap_or_else(|e| panic!("{e}"));
    let mut rng = StdRng::seed_from_u64(4);
    let len = disk.len(FileRef::Extents(0)).min(8 * 1024 * 1024);
    let (mut found, mut harmless) = (0, 0);
    for _ in 0..300 {
        let mut rotten = disk.clone();
        rotten.flip(FileRef::Extents(0), rng.random_range(0..len), rng.random_range(0..8));
        let mut again = One::open(config(3), rotten).expect("the log is good");
        match again.read_all(1) {
            Ok(all) => {
                assert!(all == data, "wrong bytes were served");
                harmless += 1;
            }
            Err(code) => {
                assert_eq!(code, Code::Corrupt);
                found += 1;
            }
        }
    }
    println!("{found} flips found, {harmless} hit nothing in use");
    assert!(found > 10);
}

#[test]
fn a_full_disk_refuses_and_keeps_what_it_has() {
    let mut one = fresh();
    one.disk.segments_max = Some(1);
    let mut n = 0u64;
    let refused = loop {
        n += 1;
        let id = one.send_write(n, Some(0), &bytes(n, 1_000_000));
        one.settle();
        let answers: Vec<_> = one.replies.iter().filter(|r| r.0 == id).map(|r| r.1.clone()).collect();
        match answers.first() {
            Some(ClientChunkReply::Written { .. }) => {}
            other => break format!("{other:?} {:?}", one.replies.last()),
        }
        assert!(n < 100, "a full disk takes no more");
    };
    println!("after {n} MB: {refused}");
    let (used, segment) = (one.node.stats().used_bytes, config(1).extent_segment_bytes);
    assert!(used <= segment - segment / 4, "{used} bytes: no room is left for what was promised");
    for k in 1..n {
        assert!(one.read_all(k).unwrap() == bytes(k, 1_000_000), "chunk {k}");
    }
    let mut again = One::open(config(2), one.disk).expect("a full store opens");
    assert!(again.read_all(1).unwrap() == bytes(1, 1_000_000));
}

#[test]
fn a_checksum_page_that_a_checkpoint_writes_while_it_is_read_is_read_again() {
    // Of the first five million bytes the last lie in the second page, which no scrub reads early.
    let mut one = fresh();
    for n in 0..5 {
        one.write(1, Some(n * 1_000_000), &bytes(n, 1_000_000));
    }
    one.checkpoint();
    let slow_scrub = StoreConfig { scrub_period_s: 1_000_000, ..config(2) };
    let mut one = One::open(slow_scrub, one.disk).expect("it opens");
    // The disk has read the page, and its answer is on its way.
    let msg = ClientChunk::Read { handle: ChunkHandle(1), offset: 4_900_000, len: 10, stale: false };
    one.step(Input::Client { conn: 1, request: 1, epoch: Epoch(0), snapshot: 0, msg, data: Bytes::new() });
    let read: Vec<_> = one.asks.drain(..).map(|op| one.disk.perform(op)).collect();
    assert!(read.len() > 1, "bytes, and their page");
    one.write(1, Some(5_000_000), &bytes(5, 100_000));
    one.checkpoint();
    for done in read {
        one.step(Input::Disk(done));
    }
    one.settle();
    assert!(one.read(1, 5_000_000, 100_000).unwrap() == bytes(5, 100_000));
}

#[test]
fn garbage_is_freed() {
    let mut one = fresh();
    let used = |one: &One| one.node.stats().used_bytes;
    for i in 0..50 {
        one.write(1, Some(0), &bytes(i, 1_000_000));
    }
    one.write(1, Some(5), b"x");
    one.checkpoint();
    assert!(used(&one) <= 2 * 1_048_576, "{} bytes in use for one megabyte", used(&one));
    one.delete(1);
    assert_eq!(used(&one), 0);
    assert_eq!(one.read(1, 0, 10), Err(Code::NoSuchChunk));
    // For ever: not even a client that kept its configuration makes it again.
    let id = one.send_write(1, Some(0), b"zombie");
    one.settle();
    assert!(one.replies.iter().any(|r| r.0 == id && matches!(r.1, ClientChunkReply::Refused(_))));
    let mut again = One::open(config(2), one.disk).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(again.read(1, 0, 10), Err(Code::NoSuchChunk));
}

/// The masters say twice, long enough one after the other, that chunks below a handle were named; then come two checkpoints.
fn grow_old(one: &mut One, next: u64) {
    let age = Span::from_ms(config(1).horizon_ms);
    for _ in 0..3 {
        let (session, until, next_chunk) = (SessionId(1), Time::NEVER, ChunkHandle(next));
        one.step(Input::Session { session, until, next_chunk });
        one.now = one.now + age;
        one.write(50, Some(0), b"something for the log");
        one.checkpoint();
    }
}

/// What was deleted long ago takes no room in memory, and comes back all the same on nobody's word but the masters'.
#[test]
fn floors_are_forgotten_and_nothing_comes_back() {
    let order = |n| Order { handle: ChunkHandle(n), epoch: Epoch::DELETED, discard: true };
    let mut one = fresh();
    one.write(1, Some(0), b"one");
    one.apply(b"nine");
    one.deleted = vec![1, 9];
    one.step(Input::Orders(vec![order(1), order(9), order(10)]));
    one.settle();
    assert_eq!(one.node.stats().floors, 3);
    grow_old(&mut one, 10);
    assert_eq!(one.node.stats().floors, 1, "what was named lately could still be on its way");
    for restart in [false, true] {
        if restart {
            let deleted = std::mem::take(&mut one.deleted);
            one = One::open(config(2), one.disk).unwrap_or_else(|e| panic!("{e}"));
            (one.deleted, one.applied) = (deleted, Serial(1));
        }
        let id = one.send_write(1, Some(0), b"zombie");
        one.settle();
        let refused = |r: &(u64, ClientChunkReply, Vec<u8>)| match &r.1 {
            ClientChunkReply::Refused(why) => r.0 == id && why.code == Code::NoSuchChunk,
            _ => false,
        };
        assert!(one.replies.iter().any(refused), "{:?}", one.replies);
        one.refused.clear();
        one.apply_to(9, b"nine");
        assert_eq!(one.refused, [Code::Busy]);
        let config = ChunkConfig { epoch: Epoch::first(0).next(), ..led_by_other(9) };
        one.step(Input::Peer {
            from: StoreId(2),
            snapshot: 0,
            msg: Peer::NewEpoch { config },
            data: Bytes::new(),
        });
        one.settle();
        one.apply_to(10, b"ten");
        assert_eq!(one.refused, [Code::Busy, Code::StaleEpoch], "10 has its floor");
        let there = |n| one.node.chunk_view(ChunkHandle(n)).is_some();
        assert!(!there(1) && !there(9) && !there(10), "after a restart: {restart}");
    }
    // One that is only old is made when the masters have said so.
    one.refused.clear();
    one.apply_to(3, b"three");
    assert_eq!(one.refused, [Code::Busy]);
    assert!(one.node.chunk_view(ChunkHandle(3)).is_some());
}

#[path = "store/changes.rs"]
mod changes;
#[path = "store/gather.rs"]
mod gather;
#[path = "store/room.rs"]
mod room;
