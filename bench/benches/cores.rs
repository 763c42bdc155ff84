//! The cores by themselves: apply, placement, codec, checksums, log groups, store writes and
//! reads. `cargo bench -p bench`; `cargo test` runs each once.

use bytes::Bytes;
use chunkserver_core::Node;
use chunkserver_core::io::{DiskDone, DiskKind, Input, Output};
use chunkserver_core::store::checkpoint::first_checkpoint;
use chunkserver_core::store::format::Record;
use chunkserver_core::store::log::Log;
use chunkserver_core::store::recover::recover;
use chunkserver_core::store::{StoreConfig, Ticket};
use common::wire::chunk_master::Register;
use common::wire::client_chunk::ClientChunk;
use common::wire::client_master::{Mutation, Owner};
use common::wire::{self, ChunkConfig, Piece};
use common::*;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use master_core::placement::{Wish, place};
use master_core::{Command, Entry, Metadata};
use std::collections::{BTreeMap, VecDeque};
use std::hint::black_box;

fn metadata(servers: usize) -> Metadata {
    let mut state = Metadata::new();
    for n in 0..servers {
        let register = Register {
            store: None,
            uuid: n as u128 + 1,
            server_uuid: n as u128 + 1,
            incarnation: 1,
            boot_id: 1,
            dev_ino: (1, n as u64),
            rack: format!("r{}", n % 8),
            addr: ([127, 0, 0, 1], 1).into(),
            capacity: 1 << 44,
            used: 0,
        };
        state.apply(&entry(0, Command::Register(register)));
    }
    state
}

fn entry(salt: u64, command: Command) -> Entry {
    Entry { stamp_ns: salt, wall_ns: 0, salt, command }
}

fn create(seq: u64) -> Command {
    let request = RequestId { client: ClientId(1), seq };
    let path = format!("/d{}/f{seq}", seq % 64).into_bytes();
    let mutation = Mutation::Create {
        path,
        mode: 0o644,
        owner: Owner::default(),
        exclusive: true,
        parents: true,
        chunk: true,
        near: String::new(),
    };
    Command::Mutate { request, lowest: seq, mutation }
}

fn master(c: &mut Criterion) {
    let mut state = metadata(12);
    let mut seq = 0;
    c.bench_function("apply create with chunk", |b| {
        b.iter(|| {
            seq += 1;
            black_box(state.apply(&entry(seq, create(seq))))
        })
    });
    c.bench_function("clone of the state", |b| b.iter(|| black_box(state.clone())));
    let large = metadata(200);
    let mut salt = 0;
    c.bench_function("place 3 of 200", |b| {
        b.iter(|| {
            salt += 1;
            black_box(place(&large, &Wish { replicas: 3, chunk_bytes: 1 << 26, label: "", near: "r1", salt }))
        })
    });
}

fn codec(c: &mut Criterion) {
    let data = vec![5u8; 256 * 1024];
    let request = RequestId { client: ClientId(1), seq: 1 };
    let push = ClientChunk::Push {
        request,
        handle: ChunkHandle(1),
        index: 0,
        total: 1 << 20,
        chain: vec![StoreId(1), StoreId(2)],
        piece: Piece::of(&data),
    };
    let body = wire::encode(&push);
    c.bench_function("encode a push of 256 KiB", |b| b.iter(|| black_box(wire::encode(&push))));
    c.bench_function("decode a push of 256 KiB", |b| {
        b.iter(|| black_box(wire::decode::<ClientChunk>(&body)))
    });
    let mut group = c.benchmark_group("checksums");
    group.throughput(Throughput::Bytes(data.len() as u64));
    group.bench_function("CRC-32C of 64 slices", |b| b.iter(|| black_box(checksum::slice_crcs(&data))));
    group.finish();
    let mut log: Log<Ticket> = Log::new(1 << 26, 4, 1, 1, 0, 0);
    let record = Record::Committed { handle: ChunkHandle(1), serial: Serial(1) };
    c.bench_function("log group of 64 records", |b| {
        b.iter(|| {
            for _ in 0..64 {
                log.push(&record, Ticket::None);
            }
            let group = log.next_group(common::Time(0));
            let tickets = log.durable();
            log.truncate(log.head());
            black_box((group, tickets))
        })
    });
}

/// A node of one replica on a disk that is memory.
struct One {
    node: Node,
    files: BTreeMap<chunkserver_core::io::FileRef, Vec<u8>>,
    seq: u64,
}

impl One {
    fn new() -> One {
        let config = StoreConfig { extent_segment_bytes: 1 << 26, ..StoreConfig::default() };
        let first = first_checkpoint(&config);
        let recovered = recover(
            config,
            &mut |file, offset, len| {
                let mut out = vec![0; len as usize];
                if file == chunkserver_core::io::FileRef::Checkpoint(1) && offset == 0 {
                    out[..first.len()].copy_from_slice(&first);
                }
                Ok(out.into())
            },
            &|_| true,
        );
        let mut one = One {
            node: Node::new(StoreId(1), recovered.expect("an empty store")),
            files: BTreeMap::new(),
            seq: 0,
        };
        one.step(Input::Session { session: SessionId(1), until: Time::NEVER, next_chunk: ChunkHandle(0) });
        one
    }

    fn step(&mut self, input: Input) {
        let mut todo = VecDeque::from([input]);
        while let Some(input) = todo.pop_front() {
            let mut out = vec![];
            self.seq += 1;
            self.node.step(Time(self.seq), input, &mut out);
            for output in out {
                match output {
                    Output::Disk(op) => {
                        let file = self.files.entry(op.file).or_default();
                        let result = match op.kind {
                            DiskKind::Read { offset, len } => {
                                Bytes::copy_from_slice(&file[offset as usize..offset as usize + len as usize])
                            }
                            DiskKind::Write { offset, data, .. } => {
                                let end = offset as usize + data.len().next_multiple_of(4096);
                                if file.len() < end {
                                    file.resize(end, 0);
                                }
                                file[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
                                Bytes::new()
                            }
                            DiskKind::Allocate { len } => {
                                file.resize(len as usize, 0);
                                Bytes::new()
                            }
                            DiskKind::Sync | DiskKind::Release => Bytes::new(),
                        };
                        todo.push_back(Input::Disk(DiskDone { token: op.token, result: Ok(result) }));
                    }
                    // The chunk is what its first write said.
                    Output::Master(ask) => todo.push_back(Input::Master {
                        handle: ask.handle,
                        number: ask.number,
                        answer: Ok(chunk()),
                    }),
                    _ => {}
                }
            }
        }
    }
}

fn chunk() -> ChunkConfig {
    let (handle, primary) = (ChunkHandle(1), StoreId(1));
    ChunkConfig { handle, epoch: Epoch::first(0), primary, members: vec![primary], sealed: None, wait_ms: 0 }
}

fn store(c: &mut Criterion) {
    let mut one = One::new();
    let data = Bytes::from(vec![9u8; 4096]);
    let mut seq = 0;
    c.bench_function("store: write of 4 KiB", |b| {
        b.iter(|| {
            seq += 1;
            let request = RequestId { client: ClientId(1), seq };
            let msg = ClientChunk::Write {
                request,
                lowest: seq,
                handle: ChunkHandle(1),
                offset: Some(seq % 1000 * 4096),
                len: 4096,
                inline: Some(Piece::of(&data)),
                create: Some(chunk()),
            };
            one.step(Input::Client {
                snapshot: 0,
                conn: 1,
                request: seq,
                epoch: Epoch::first(0),
                msg,
                data: data.clone(),
            });
        })
    });
    c.bench_function("store: read of 256 KiB", |b| {
        b.iter(|| {
            let msg = ClientChunk::Read { handle: ChunkHandle(1), offset: 0, len: 256 * 1024, stale: false };
            one.step(Input::Client {
                conn: 1,
                request: 1,
                epoch: Epoch::first(0),
                snapshot: 0,
                msg,
                data: Bytes::new(),
            });
        })
    });
}

criterion_group!(benches, master, codec, store);
criterion_main!(benches);
