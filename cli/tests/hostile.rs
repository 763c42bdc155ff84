//! Hostile frames on every port of a cluster of real processes. `FRAMES=n` sends more.
//!
//! Two kinds: messages that are well formed and mean nonsense, which the server must decode,
//! judge and answer (a question behind them, on the same connection, is answered last); and bytes
//! that are no message, at which the server hangs up. The servers trust their network, so nothing
//! here names the one file that must survive: a well-formed order to delete it would be obeyed.

use common::wire::chunk_chunk::{Answer, Answers, CopyId, Origin, Peer, WriteOp};
use common::wire::chunk_master::{Beat, CutsHeard, Order, StoreRequest};
use common::wire::client_chunk::ClientChunk;
use common::wire::client_master::{
    FileKind, MasterRequest, Mutation, NameChange, Only, Owner, Policy, Quota, Report, SetTime,
};
use common::wire::frame::{HEADER_BYTES, Header, Kind};
use common::wire::local::{ANSWER_BYTES, Wanted, socket_name};
use common::wire::{self, Caller, ChunkConfig, Hello, Message, Piece};
use common::*;
use ops::cluster::{Cluster, Spec};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as SocketName, UnixStream};
use std::path::Path;
use std::time::Duration;

/// What a process may grow by under all this, in KiB: caches and buffers, no leak.
const GROWTH_KIB_MAX: u64 = 150_000;
/// A server answers within this.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// Names the question that ends a connection's well-formed frames.
const LAST: u64 = 0x1a57;

/// One master, three chunkservers, and who speaks with them properly.
fn begin(dir: &Path) -> (tokio::runtime::Runtime, Cluster, client::Client) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_cairn"));
    let mut servers = Cluster::open(&dir.join("c"), &Spec::small(1, 3), binary).unwrap();
    servers.start_all().unwrap();
    let client = runtime.block_on(servers.healthy()).unwrap();
    (runtime, servers, client)
}

#[test]
fn hostile_frames_do_no_harm_to_any_port() {
    let frames: u64 = std::env::var("FRAMES").ok().and_then(|v| v.parse().ok()).unwrap_or(100_000);
    let seed: u64 = std::env::var("SEED").ok().and_then(|v| v.parse().ok()).unwrap_or(21);
    println!("seed {seed}, {frames} well-formed frames");
    let dir = tempfile::TempDir::new().unwrap();
    let (runtime, mut servers, client) = begin(dir.path());
    runtime.block_on(client.create_with(b"/kept", b"kept")).unwrap();
    let kept = runtime.block_on(client.lookup(b"/kept")).unwrap();
    let layout = runtime.block_on(client.layout(kept.file)).unwrap();
    let file = servers.client_file().unwrap();
    let cluster = ClusterId(u64::from_str_radix(&file.cluster, 16).unwrap());
    let mut hostile = Hostile {
        rng: StdRng::seed_from_u64(seed),
        cluster,
        kept: (kept.file, layout.chunks()[0].config.handle),
    };
    let stores = runtime.block_on(client.stores()).unwrap();
    let mut ports: Vec<(SocketAddr, bool)> = stores.iter().map(|s| (s.addr, false)).collect();
    ports.extend(file.masters.iter().map(|m| (m.parse().unwrap(), true)));
    let before: Vec<(u32, u64)> = pids(&servers).into_iter().map(|pid| (pid, resident(pid))).collect();
    let (mut understood, mut garbage) = (0, 0);
    while understood < frames {
        let (addr, master) = *ports.choose(&mut hostile.rng).unwrap();
        let many = hostile.rng.random_range(1..500);
        if let Err(why) = hostile.visit(addr, master, many) {
            let logs = logs(&servers);
            panic!("{addr}, after {understood} frames: {why}\n{logs}");
        }
        understood += many;
        let many = hostile.rng.random_range(1..50);
        hostile.insult(addr, many);
        garbage += many;
        let neighbour = stores.choose(&mut hostile.rng).unwrap().store;
        hostile.pry(neighbour);
        if let Some(dead) = servers.exited() {
            let logs = logs(&servers);
            panic!("{dead} has died after {understood} frames\n{}", logs);
        }
    }
    println!("{understood} frames decoded, {garbage} pieces of garbage sent");
    for (pid, before) in before {
        let now = resident(pid);
        println!("process {pid} had {before} KiB and has {now}");
        assert!(now < before + GROWTH_KIB_MAX, "process {pid} grew from {before} to {now} KiB");
    }
    let now = runtime.block_on(async { client.open(b"/kept").await?.read_at(0, 99).await });
    assert_eq!(now.unwrap(), b"kept");
    let logs = logs(&servers);
    assert!(!logs.contains("panicked"), "{logs}");
}

/// Who asks for much and takes no answer has few of them in the server's memory, and holds nobody else up.
#[test]
fn who_asks_and_does_not_listen_is_not_read_any_more() {
    const CALLERS: u64 = 4;
    const QUESTIONS: u64 = 4000;
    const MIB: usize = 1024 * 1024;
    /// For each of them: the bound, the batch that is on its way to the socket, and what is read when the bound is passed.
    const GROWTH_KIB_MAX: u64 = CALLERS * 3 * limits::CONN_ANSWERS_BYTES_MAX as u64 / 1024;
    let dir = tempfile::TempDir::new().unwrap();
    let (runtime, servers, client) = begin(dir.path());
    let bytes: Vec<u8> = (0..MIB).map(|n| n as u8).collect();
    runtime.block_on(client.create_with(b"/read", &bytes)).unwrap();
    let file = runtime.block_on(client.lookup(b"/read")).unwrap().file;
    let handle = runtime.block_on(client.layout(file)).unwrap().chunks()[0].config.handle;
    let stores = runtime.block_on(client.stores()).unwrap();
    let addr = stores[0].addr;
    let cluster = ClusterId(u64::from_str_radix(&servers.client_file().unwrap().cluster, 16).unwrap());
    let before: Vec<(u32, u64)> = pids(&servers).into_iter().map(|pid| (pid, resident(pid))).collect();
    let grown = || before.iter().map(|(pid, before)| resident(*pid).saturating_sub(*before)).max().unwrap();
    let len = limits::PIECE_BYTES_MAX as u32;
    let ask = |caller| {
        let mut stream = dial(addr, caller % 2 == 0);
        stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut all = wire::frame(cluster, 0, 0, &Hello::new(Caller::Client), 0);
        for n in 0..QUESTIONS {
            all.extend(wire::frame(
                cluster,
                n + 1,
                0,
                &ClientChunk::Read { handle, offset: 0, len, stale: true },
                0,
            ));
        }
        // The server may have stopped reading before it is all sent.
        let _ = stream.write_all(&all);
        stream
    };
    let callers: Vec<TcpStream> = (0..CALLERS).map(ask).collect();
    let began = std::time::Instant::now();
    let mut most = 0;
    while began.elapsed() < Duration::from_secs(2) {
        let again = runtime.block_on(async { client.open(b"/read").await?.read_at(0, MIB as u64).await });
        assert!(again.unwrap() == bytes, "others are answered meanwhile");
        most = most.max(grown());
    }
    println!("a server grew by {most} KiB at most");
    assert!(most < GROWTH_KIB_MAX);
    // None of them was hung up on: who listens after all gets all answers.
    for stream in callers {
        stream.set_read_timeout(Some(ANSWER_LIMIT)).unwrap();
        let mut answers = std::io::BufReader::with_capacity(MIB, stream);
        let mut head = [0; HEADER_BYTES];
        let mut last = 0;
        while last < QUESTIONS {
            answers.read_exact(&mut head).unwrap();
            let header = Header::decode(&head).unwrap();
            last = last.max(header.request);
            let rest = u64::from(header.body_len) + u64::from(header.payload_len);
            std::io::copy(&mut (&mut answers).take(rest), &mut std::io::sink()).unwrap();
        }
    }
}

struct Hostile {
    rng: StdRng,
    cluster: ClusterId,
    /// The file that must survive, and its chunk.
    kept: (FileId, ChunkHandle),
}

impl Hostile {
    /// Bytes, well-formed or not, on the socket that clients on this machine use: it answers, or hangs up.
    fn pry(&mut self, store: StoreId) {
        let name = SocketName::from_abstract_name(socket_name(self.cluster, store)).unwrap();
        let mut stream = UnixStream::connect_addr(&name).unwrap();
        stream.set_read_timeout(Some(ANSWER_LIMIT)).unwrap();
        let mut bytes = match self.rng.random_range(0..3) {
            0 => Wanted::Segment(self.number() as u32).encode().to_vec(),
            1 => Wanted::Board.encode().to_vec(),
            _ => (0..self.rng.random_range(0..40)).map(|_| self.rng.random()).collect(),
        };
        if self.flag() {
            let more = self.rng.random_range(0..20);
            bytes.extend((0..more).map(|_| self.rng.random::<u8>()));
        }
        // It may have hung up already.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = vec![];
        if let Err(why) = stream.read_to_end(&mut answer) {
            assert_ne!(why.kind(), std::io::ErrorKind::WouldBlock, "neither an answer nor the end");
        }
        assert!(answer.len() <= ANSWER_BYTES, "{answer:?}");
    }

    /// Well-formed nonsense, then a question, whose answer says that all was decoded.
    fn visit(&mut self, addr: SocketAddr, master: bool, many: u64) -> Result<(), String> {
        let callers = [
            Caller::Client,
            Caller::Store(StoreId(self.rng.random_range(0..5))),
            Caller::Server,
            Caller::Master(self.rng.random_range(0..4)),
        ];
        // Only stores say things to stores.
        let caller = if master { callers.choose(&mut self.rng).unwrap() } else { &callers[1] }.clone();
        let store = matches!(caller, Caller::Store(_));
        let mut bytes = wire::frame(self.cluster, 0, 0, &Hello::new(caller), 0);
        for _ in 0..many {
            match (master, self.rng.random()) {
                (true, true) if store => bytes.extend(self.store_request()),
                (true, _) => bytes.extend(self.master_request()),
                (false, true) => bytes.extend(self.client_chunk()),
                (false, false) => bytes.extend(self.peer()),
            }
        }
        match master {
            true => bytes.extend(self.frame(LAST, &MasterRequest::Status, &[])),
            false => bytes.extend(self.frame(LAST, &ClientChunk::Stat { handle: ChunkHandle::HOLE }, &[])),
        }
        let stream = dial(addr, self.flag());
        let mut writer = stream.try_clone().unwrap();
        // Answers are read while frames are still written: neither side's buffers fill up.
        let writer = std::thread::spawn(move || writer.write_all(&bytes));
        let answered = answers_until_last(stream);
        writer.join().unwrap().map_err(|e| format!("hung up on well-formed frames: {e}"))?;
        answered.map_err(|e| format!("the last question was not answered: {e}"))
    }

    /// Bytes that are no message: the server hangs up, with or without a word.
    fn insult(&mut self, addr: SocketAddr, many: u64) {
        let mut stream = dial(addr, self.flag());
        if self.rng.random_bool(0.9) {
            stream.write_all(&wire::frame(self.cluster, 0, 0, &Hello::new(Caller::Client), 0)).unwrap();
        }
        for _ in 0..many {
            let frame = self.garbage();
            // The other side may have hung up already: that is a good answer.
            if stream.write_all(&frame).is_err() {
                break;
            }
        }
        let _ = stream.set_read_timeout(Some(Duration::from_millis(1)));
        let _ = stream.read(&mut [0; 4096]);
    }

    fn frame<M: Message>(&self, request: u64, msg: &M, payload: &[u8]) -> Vec<u8> {
        let mut frame = wire::frame(self.cluster, request, 1, msg, payload.len());
        frame.extend_from_slice(payload);
        frame
    }

    /// A number that is small, large, or just at an edge.
    fn number(&mut self) -> u64 {
        let edges = [0, 1, 2, 4095, 4096, 1 << 20, (1 << 26) - 1, 1 << 26, 1 << 32, 1 << 63, u64::MAX - 1];
        match self.rng.random_range(0..4) {
            0 => *edges.choose(&mut self.rng).unwrap(),
            1 => u64::MAX,
            2 => self.rng.random_range(0..16),
            _ => self.rng.random(),
        }
    }

    fn flag(&mut self) -> bool {
        self.rng.random()
    }

    fn owner(&mut self) -> Owner {
        Owner { uid: self.number() as u32, gid: self.number() as u32 }
    }

    fn time(&mut self) -> SetTime {
        [SetTime::Keep, SetTime::Now, SetTime::At(self.number() as i64)][self.rng.random_range(0..3)]
    }

    fn only(&mut self) -> Only {
        [Only::Anything, Only::NoDirectory, Only::Directory][self.rng.random_range(0..3)]
    }

    fn kind(&mut self) -> FileKind {
        let kinds = [FileKind::File, FileKind::Fifo, FileKind::Socket, FileKind::CharacterDevice];
        kinds[self.rng.random_range(0..kinds.len())]
    }

    fn maybe(&mut self) -> Option<u64> {
        if self.flag() { Some(self.number()) } else { None }
    }

    fn handle(&mut self) -> ChunkHandle {
        let handle = match self.flag() {
            true => ChunkHandle(self.rng.random_range(2..60)),
            false => ChunkHandle(self.number()),
        };
        if handle == self.kept.1 { ChunkHandle::HOLE } else { handle }
    }

    fn file(&mut self) -> FileId {
        let file = if self.flag() { FileId(self.rng.random_range(0..300)) } else { FileId(self.number()) };
        if file == self.kept.0 { FileId(0) } else { file }
    }

    fn path(&mut self) -> Vec<u8> {
        let parts = ["a", "b", "..", ".", "", "\0", "\u{fffd}", "long", ".snapshot"];
        let mut path = String::from("/nonsense");
        for _ in 0..self.rng.random_range(0..6) {
            path.push('/');
            match *parts.choose(&mut self.rng).unwrap() {
                "long" => path.push_str(&"x".repeat(self.rng.random_range(0..600))),
                part => path.push_str(part),
            }
        }
        path.into_bytes()
    }

    fn text(&mut self) -> String {
        "n".repeat(*[0, 1, 255, 256, 1000].choose(&mut self.rng).unwrap())
    }

    fn store(&mut self) -> StoreId {
        StoreId(self.rng.random_range(0..6))
    }

    fn stores(&mut self) -> Vec<StoreId> {
        (0..self.rng.random_range(0..7)).map(|_| self.store()).collect()
    }

    fn request(&mut self) -> RequestId {
        RequestId { client: ClientId(self.rng.random_range(0..50)), seq: self.number() }
    }

    /// Often one that a young chunk has, so that nonsense gets as far as it can.
    fn epoch(&mut self) -> Epoch {
        if self.rng.random_bool(0.7) { Epoch(self.rng.random_range(1..4)) } else { Epoch(self.number()) }
    }

    fn serial(&mut self) -> Serial {
        if self.rng.random_bool(0.7) { Serial(self.rng.random_range(0..5)) } else { Serial(self.number()) }
    }

    fn piece(&mut self, payload: &[u8]) -> Piece {
        let mut piece = Piece::of(payload);
        match self.rng.random_range(0..8) {
            0 => piece.len = self.number() as u32,
            1 => piece.crcs.push(7),
            2 => piece.crcs.iter_mut().for_each(|c| *c ^= 1),
            _ => {}
        }
        piece
    }

    fn payload(&mut self) -> Vec<u8> {
        let len = *[0, 1, 100, 4096, 5000].choose(&mut self.rng).unwrap();
        vec![7; len]
    }

    fn config(&mut self) -> ChunkConfig {
        let sensible = self.rng.random_bool(0.8);
        ChunkConfig {
            handle: self.handle(),
            epoch: self.epoch(),
            primary: StoreId(self.rng.random_range(1..4)),
            members: if sensible { vec![StoreId(1), StoreId(2), StoreId(3)] } else { self.stores() },
            sealed: if sensible { None } else { self.maybe() },
            wait_ms: if sensible { 0 } else { self.number() },
        }
    }

    fn client_chunk(&mut self) -> Vec<u8> {
        let payload = self.payload();
        let (handle, request, piece) = (self.handle(), self.request(), self.piece(&payload));
        let msg = match self.rng.random_range(0..8) {
            0 => ClientChunk::Push {
                request,
                handle,
                index: self.number() as u16,
                total: if self.flag() { payload.len() as u32 } else { self.number() as u32 },
                chain: self.stores(),
                piece,
            },
            1 => ClientChunk::Write {
                request,
                lowest: self.number(),
                handle,
                offset: self.maybe(),
                len: if self.flag() { payload.len() as u32 } else { self.number() as u32 },
                inline: self.flag().then_some(piece),
                create: if self.flag() { Some(ChunkConfig { handle, ..self.config() }) } else { None },
            },
            2 => ClientChunk::Read {
                handle,
                offset: self.number(),
                len: self.number() as u32,
                stale: self.flag(),
            },
            3 => ClientChunk::Stat { handle },
            4 => ClientChunk::Locate { handle, offset: self.number(), len: self.number() as u32 },
            5 => ClientChunk::Fork { handle, to: self.config() },
            6 => ClientChunk::Cut { handle, within: self.flag() },
            _ => ClientChunk::Seal { handle },
        };
        let id = self.rng.random_range(1000..u64::MAX);
        self.frame(id, &msg, &payload)
    }

    fn op(&mut self) -> WriteOp {
        WriteOp {
            origin: Origin { epoch: self.epoch(), incarnation: self.number() },
            serial: self.serial(),
            request: self.request(),
            lowest: self.number(),
            offset: self.number(),
            len: self.number() as u32,
        }
    }

    fn peer(&mut self) -> Vec<u8> {
        let mut payload = vec![];
        let (handle, epoch, serial) = (self.handle(), self.epoch(), self.serial());
        let code = *Code::ALL.choose(&mut self.rng).unwrap();
        let copy = CopyId { handle, epoch, attempt: self.number() };
        let (nonce, committed) = (self.number(), (self.op().origin, serial));
        let msg = match self.rng.random_range(0..21) {
            0 => {
                payload = vec![9; self.rng.random_range(1..5000)];
                Peer::Forward {
                    request: self.request(),
                    handle,
                    index: self.number() as u16,
                    total: payload.len() as u32,
                    chain: self.stores(),
                    piece: Piece::of(&payload),
                }
            }
            1 => Peer::Held {
                request: self.request(),
                index: self.number() as u16,
                refused: self.flag().then_some(code),
            },
            2 => {
                payload = vec![9; self.rng.random_range(1..5000)];
                Peer::Apply {
                    handle,
                    epoch,
                    op: WriteOp { len: payload.len() as u32, ..self.op() },
                    after: self.op().origin,
                    inline: Some(Piece::of(&payload)),
                    committed: serial,
                    create: if self.flag() { Some(ChunkConfig { handle, ..self.config() }) } else { None },
                }
            }
            3 => {
                let (op, after) = (self.op(), self.op().origin);
                Peer::Apply { handle, epoch, op, after, inline: None, committed: serial, create: None }
            }
            4 => Peer::Applied { handle, epoch, serial },
            5 => Peer::ApplyRefused { handle, epoch, applied: serial, code },
            6 => Peer::Commit { handle, epoch, committed: serial, nonce: self.number() },
            7 => Peer::AskCommit { handle, epoch, nonce: self.number() },
            8 => Peer::NewEpoch { config: self.config() },
            9 => {
                let points = self.rng.random_range(0..5);
                let tail = (0..points).map(|_| (self.op().origin, self.serial())).collect();
                Peer::Tail { handle, epoch, committed: serial, tail, last: (self.op().origin, serial) }
            }
            10 => Peer::Adopt { handle, epoch, keep: self.serial(), committed: serial },
            11 => Peer::Adopted { handle, epoch },
            12 => Peer::Copy {
                copy,
                nonce,
                since: serial,
                from: self.number() as u32,
                halt: self.rng.random_bool(0.2),
            },
            13 => {
                payload = vec![9; self.rng.random_range(1..5000)];
                let piece = self.flag().then(|| (self.number() as u32, Piece::of(&payload)));
                if piece.is_none() {
                    payload = vec![];
                }
                Peer::CopyData { copy, nonce, piece, committed, length: self.number() as u32 }
            }
            14 => Peer::CopyAnswers { copy, nonce, after: self.flag().then_some(ClientId(1)) },
            15 => {
                let answer = Answer { seq: self.number(), offset: self.number(), len: 1, serial };
                let client = ClientId(self.rng.random_range(0..50));
                let answers = vec![Answers { client, lowest: self.number(), answers: vec![answer; 3] }];
                Peer::CopiedAnswers { copy, nonce, answers, more: self.flag() }
            }
            16 => Peer::Copied { copy, point: committed },
            17 => Peer::CopyRefused { copy, code },
            18 => Peer::Fork { handle, epoch, point: committed, config: self.config() },
            19 => Peer::Forked { handle, epoch, to: self.handle() },
            _ => match self.flag() {
                true => Peer::Fetch { handle, epoch, serial, index: self.number() as u16 },
                false => {
                    payload = vec![9; self.rng.random_range(1..5000)];
                    let piece = Some(Piece::of(&payload));
                    Peer::Fetched { handle, epoch, op: self.op(), index: self.number() as u16, piece }
                }
            },
        };
        self.frame(0, &msg, &payload)
    }

    fn master_request(&mut self) -> Vec<u8> {
        let path = self.path();
        let msg = match self.rng.random_range(0..20) {
            0 => MasterRequest::Stat { path },
            16 => MasterRequest::Recalls { holder: self.request().client },
            17 => MasterRequest::InTheWay {
                holder: self.request().client,
                of: self.lockable(),
                range: self.lock_range(),
                patient: self.flag(),
            },
            18 => {
                let after = self.flag().then(|| (self.lockable(), self.request().client));
                MasterRequest::Locks { after, limit: self.number() as u32 }
            }
            1 => MasterRequest::List { path, after: vec![b'z'; 300], limit: self.number() as u32 },
            19 => MasterRequest::LookIn { path, after: vec![b'a'; 3], limit: self.number() as u32 },
            2 => MasterRequest::Layout {
                file: self.file(),
                from: self.number() as u32,
                limit: self.number() as u32,
            },
            3 => MasterRequest::Config { handle: self.handle(), snapshot: self.number() },
            4 => MasterRequest::PrimarySilent { handle: self.handle(), epoch: self.epoch() },
            5 => MasterRequest::Trash { after: (self.number(), self.file()), limit: self.number() as u32 },
            6 => MasterRequest::Policy { path },
            7 => MasterRequest::Repairs,
            8 => MasterRequest::Drains,
            11 => MasterRequest::Maintenance,
            12 => MasterRequest::Loss { store: self.store() },
            14 => MasterRequest::Condemn { handle: self.handle(), epoch: self.epoch(), store: self.store() },
            13 => MasterRequest::Usage { path },
            10 => MasterRequest::Explain { handle: self.handle() },
            9 => MasterRequest::Snapshots { after: self.number(), limit: self.number() as u32 },
            _ => MasterRequest::Mutate {
                request: self.request(),
                lowest: if self.flag() { 1 } else { self.number() },
                mutation: self.mutation(),
            },
        };
        let id = self.rng.random_range(1000..u64::MAX);
        self.frame(id, &msg, &[])
    }

    fn lockable(&mut self) -> Lockable {
        Lockable { file: self.file(), flock: self.flag() }
    }

    fn lock_range(&mut self) -> LockRange {
        // Not only such as there can be.
        LockRange { first: self.number(), last: self.number(), exclusive: self.flag() }
    }

    fn mutation(&mut self) -> Mutation {
        let (path, file, mode) = (self.path(), self.file(), self.number() as u32);
        let (near, index) = (self.text(), self.number() as u32);
        match self.rng.random_range(0..37) {
            0 => Mutation::Mkdir { path, parents: self.flag(), mode, owner: self.owner() },
            29 => Mutation::BeginLocks { holder: self.request().client, name: self.text() },
            30 => Mutation::Claim {
                holder: self.request().client,
                of: self.lockable(),
                range: self.lock_range(),
                patient: self.flag(),
            },
            31 => Mutation::Unclaim {
                holder: self.request().client,
                of: self.lockable(),
                keep: [self.lock_range(), self.lock_range()].into_iter().collect(),
                recalled: self.flag(),
            },
            32 => Mutation::EndLocks { holder: self.request().client },
            33 => {
                Mutation::BeginClone { of: self.handle(), snapshot: self.number(), file, at: self.number() }
            }
            34 => Mutation::EndClone { to: self.handle(), length: self.maybe() },
            1 => Mutation::Create {
                path,
                mode,
                owner: self.owner(),
                exclusive: self.flag(),
                parents: self.flag(),
                chunk: self.flag(),
                near,
            },
            2 => Mutation::CreateUnnamed { like: path, chunk: self.flag(), near },
            3 => Mutation::Publish {
                file,
                path,
                length: self.number(),
                mode,
                owner: self.owner(),
                mtime_ns: self.number() as i64,
                parents: self.flag(),
            },
            4 => Mutation::AddChunk { file, index, declare: self.maybe(), near },
            5 => Mutation::AddHole { file, index, length: self.number() },
            6 => Mutation::ReportLength { handle: self.handle(), length: self.number() },
            7 => Mutation::SetAttr {
                path,
                mode: self.maybe().map(|n| n as u32),
                atime: self.time(),
                mtime: self.time(),
                uid: self.maybe().map(|n| n as u32),
                gid: self.maybe().map(|n| n as u32),
            },
            8 => Mutation::Rename { from: path, to: self.path(), replace: self.flag() },
            9 => Mutation::Unlink { path, recursive: self.flag(), only: self.only() },
            10 => Mutation::Undelete { path, to: self.path() },
            11 => Mutation::Truncate { file, length: self.number() },
            35 => {
                Mutation::Empty { file, only: self.flag().then(|| self.handle()), chunk: self.flag(), near }
            }
            36 => {
                let change = match self.rng.random_range(0..3) {
                    0 => NameChange::Rename { from: path, to: self.path(), replace: self.flag() },
                    1 => NameChange::Unlink { path, only: self.only() },
                    _ => NameChange::Exchange { a: path, b: self.path() },
                };
                Mutation::ByUser { user: self.number() as u32, change }
            }
            12 => Mutation::Symlink {
                path,
                target: self.text().into_bytes(),
                parents: self.flag(),
                owner: self.owner(),
            },
            21 => Mutation::Link { from: path, to: self.path() },
            22 => Mutation::Exchange { a: path, b: self.path() },
            23 => Mutation::MakeSpecial {
                path,
                kind: self.kind(),
                device: self.number() as u32,
                mode,
                owner: self.owner(),
            },
            24 => Mutation::SetXattr {
                path,
                name: near.into_bytes(),
                value: self.flag().then(|| self.text().into_bytes()),
                there: self.maybe().map(|n| n % 2 == 1),
            },
            25 => Mutation::FillHole { file, offset: self.number(), near },
            27 => {
                let mut report = || Report {
                    file,
                    open: self.flag().then(|| (self.handle(), self.number())),
                    mtime_ns: self.maybe().map(|n| n as i64),
                };
                Mutation::Written { files: vec![report(), report()] }
            }
            26 => Mutation::Hold { files: vec![file; self.rng.random_range(0..4)] },
            13 => Mutation::SetPolicy {
                path,
                policy: Policy {
                    replication: self.maybe().map(|n| n as u8),
                    chunk_bytes: self.maybe(),
                    memory: self.maybe().map(|n| n % 2 == 1),
                    label: self.flag().then_some(near),
                    trash: self.flag().then_some(self.flag()),
                },
            },
            14 => Mutation::EmptyTrash { before_ns: self.number() },
            // No server that there is: the kept file's chunk shall stay where it is.
            18 => Mutation::Maintain { server: ServerId(1000), ms: self.number() },
            20 => Mutation::SetQuota {
                path: [&path[..], b"/q"].concat(),
                quota: Quota { entries: self.maybe(), bytes: self.maybe() },
            },
            19 => Mutation::GiveUp { store: StoreId(1000 + self.number() as u32 % 1000) },
            16 => Mutation::Snapshot { path, name: self.text().into_bytes() },
            17 => Mutation::DeleteSnapshot { path, name: self.text().into_bytes() },
            15 => Mutation::Drain { server: ServerId(1000 + self.number() as u32 % 1000), on: self.flag() },
            _ => Mutation::EndClient,
        }
    }

    fn store_request(&mut self) -> Vec<u8> {
        let (store, session, handle, epoch) =
            (self.store(), SessionId(self.number()), self.handle(), self.epoch());
        let msg = match self.rng.random_range(0..12) {
            n @ (0 | 11) => {
                let beat = Beat {
                    store,
                    session,
                    capacity: self.number(),
                    used: self.number(),
                    confirmed: vec![Order { handle, epoch, discard: self.flag() }],
                    table: self.number(),
                    snapshot: self.number(),
                };
                let heard = CutsHeard { term: self.number(), number: self.number() };
                if n == 0 {
                    StoreRequest::Heartbeat(beat)
                } else {
                    StoreRequest::HeartbeatSince { beat, heard }
                }
            }
            1 => StoreRequest::Exited { uuid: self.number() as u128, incarnation: self.number() },
            2 => StoreRequest::Confirm { store, session, handle },
            3 => StoreRequest::Takeover { store, handle, epoch },
            4 => StoreRequest::Silent { store, handle, epoch, accused: self.stores() },
            5 => StoreRequest::Corrupt { store, handle, epoch },
            6 => StoreRequest::Join { store, handle, epoch, learner: self.store(), attempt: self.number() },
            9 => StoreRequest::Slow { store, handle, epoch, accused: self.store() },
            7 => StoreRequest::Fork { store, handle, epoch },
            8 => StoreRequest::Forked { store, handle, epoch, to: self.handle(), length: self.number() },
            _ => StoreRequest::Seal { store, handle, epoch, length: self.number(), serial: self.serial() },
        };
        let id = self.rng.random_range(1000..u64::MAX);
        self.frame(id, &msg, &[])
    }

    /// A frame that is random, or nearly right.
    fn garbage(&mut self) -> Vec<u8> {
        let rng = &mut self.rng;
        let body: Vec<u8> = (0..rng.random_range(0..60))
            .map(|_| if rng.random_bool(0.3) { rng.random() } else { rng.random_range(0..8) })
            .collect();
        let kind = Kind::ALL[rng.random_range(0..Kind::ALL.len())];
        let large = kind.payload_bytes_max() > 0 && rng.random_bool(0.2);
        let payload = vec![7u8; if large { rng.random_range(0..5000) } else { 0 }];
        let header = Header {
            kind,
            cluster: if rng.random_bool(0.97) { self.cluster } else { ClusterId(rng.random()) },
            request: rng.random(),
            epoch: rng.random_range(0..4),
            snapshot: if rng.random() { 0 } else { rng.random() },
            body_len: body.len() as u32,
            payload_len: payload.len() as u32,
            body_crc: checksum::crc32c(&body),
        };
        let mut head = header.encode();
        if rng.random_bool(0.03) {
            // Over-long lengths, under a good checksum.
            head[12..16].copy_from_slice(&rng.random::<u32>().to_le_bytes());
            let crc = checksum::crc32c(&head[..60]);
            head[60..].copy_from_slice(&crc.to_le_bytes());
        }
        let mut frame = [&head[..], &body, &payload].concat();
        if rng.random_bool(0.05) {
            let at = rng.random_range(0..frame.len());
            frame[at] ^= 1 << rng.random_range(0..8);
        }
        frame
    }
}

/// Connects as those on the same machine do, or as all others.
fn dial(addr: SocketAddr, near: bool) -> TcpStream {
    if !near {
        return TcpStream::connect(addr).unwrap();
    }
    let stream = common_net::here::connect(addr).expect("it listens for its own machine");
    stream.set_nonblocking(false).unwrap();
    stream
}

/// Reads answers until the one to the last question.
fn answers_until_last(stream: TcpStream) -> Result<(), String> {
    stream.set_read_timeout(Some(ANSWER_LIMIT)).unwrap();
    let mut stream = std::io::BufReader::new(stream);
    loop {
        let mut head = [0; HEADER_BYTES];
        stream.read_exact(&mut head).map_err(|e| e.to_string())?;
        let header = Header::decode(&head).unwrap();
        let mut rest = vec![0; (header.body_len + header.payload_len) as usize];
        stream.read_exact(&mut rest).map_err(|e| e.to_string())?;
        if header.request == LAST {
            return Ok(());
        }
        if header.kind == Kind::Refused && header.request == 0 {
            let refusal: Refusal = wire::decode(&rest[..header.body_len as usize]).unwrap();
            return Err(format!("hung up on well-formed frames: {refusal}"));
        }
    }
}

/// What the servers logged.
fn logs(cluster: &Cluster) -> String {
    let log = |name: String| std::fs::read_to_string(cluster.dir().join(name).join("log.txt")).unwrap();
    cluster.names().unwrap().into_iter().map(log).collect()
}

/// The processes that do the work, not their parents.
fn pids(cluster: &Cluster) -> Vec<u32> {
    let all = cluster.processes.iter().map(|p| p.child.id());
    all.map(|pid| ops::cluster::child_of(pid).unwrap_or(pid)).collect()
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
