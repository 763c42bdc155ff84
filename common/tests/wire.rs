//! The wire: golden bytes, and hostile input for every decoder. `CASES=n` runs more.

use common::wire::chunk_chunk::{Answer, Answers, CopyId, Origin, Peer, WriteOp};
use common::wire::chunk_master::{CutsHeard, Order, Renewal, RepairOrder, StoreReply, StoreRequest};
use common::wire::client_chunk::{ClientChunk, ClientChunkReply, Place};
use common::wire::client_master::{Attr, ChunkInfo, FileKind, Looked, MasterReply, MasterRequest, Mutation};
use common::wire::frame::{HEADER_BYTES, Header, Kind, Version};
use common::wire::{self, Caller, ChunkConfig, Hello, HelloOk, Message, Piece};
use common::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

#[test]
fn the_header_has_just_these_bytes() {
    let header = Header {
        kind: Kind::ClientChunk,
        cluster: ClusterId(0x1122_3344_5566_7788),
        request: 9,
        epoch: 3,
        snapshot: 6,
        body_len: 5,
        payload_len: 4096,
        body_crc: 0xaabb_ccdd,
    };
    let mut golden = vec![];
    golden.extend_from_slice(b"CRN1");
    golden.extend_from_slice(&[2, 0, 40, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 16, 0, 0, 0xdd, 0xcc, 0xbb, 0xaa]);
    golden.extend_from_slice(&[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
    golden.extend_from_slice(&[9, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    golden.extend_from_slice(&[6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    golden.extend_from_slice(&checksum::crc32c(&golden).to_le_bytes());
    assert_eq!(header.encode().to_vec(), golden);
    assert_eq!(Header::decode(&header.encode()), Ok(header));
}

#[test]
fn messages_have_just_these_bytes() {
    let read = ClientChunk::Read { handle: ChunkHandle(7), offset: 4096, len: 100, stale: false };
    assert_eq!(wire::encode(&read), [2, 7, 251, 0, 16, 100, 0]);
    let locate = ClientChunk::Locate { handle: ChunkHandle(7), offset: 4096, len: 100 };
    assert_eq!(wire::encode(&locate), [5, 7, 251, 0, 16, 100]);
    let place = Place { offset: 1, len: 2, segment: 3, block: 4, skip: 5, run: 7, crcs: vec![6] };
    let located = ClientChunkReply::Located { session: SessionId(8), stamp: 9, len: 2, places: vec![place] };
    assert_eq!(wire::encode(&located), [6, 8, 9, 2, 1, 1, 2, 3, 4, 5, 7, 1, 6]);
    let op = WriteOp {
        origin: Origin { epoch: Epoch(1), incarnation: 2 },
        serial: Serial(3),
        request: RequestId { client: ClientId(4), seq: 5 },
        lowest: 5,
        offset: 6,
        len: 7,
    };
    let piece = Some(Piece { len: 7, crcs: vec![0x0102_0304] });
    let apply = Peer::Apply {
        handle: ChunkHandle(8),
        epoch: Epoch(1),
        op,
        after: Origin { epoch: Epoch(1), incarnation: 1 },
        inline: piece,
        committed: Serial(2),
        create: None,
    };
    assert_eq!(wire::encode(&apply), [2, 8, 1, 1, 2, 3, 4, 5, 5, 6, 7, 1, 1, 1, 7, 1, 252, 4, 3, 2, 1, 2, 0]);
    assert_eq!(wire::encode(&Hello::new(Caller::Store(StoreId(3)))), [1, 3, 2, 2]);
    assert_eq!(wire::encode(&Refusal::new(Code::Busy, "x")), [65, 1, b'x']);
}

#[test]
fn lengths_versions_and_kinds_that_are_not_allowed_are_refused_before_anything_is_read() {
    let good = Header {
        kind: Kind::Hello,
        cluster: ClusterId(0),
        request: 0,
        epoch: 0,
        snapshot: 0,
        body_len: 10,
        payload_len: 0,
        body_crc: 0,
    };
    let with = |change: &dyn Fn(&mut [u8])| {
        let mut bytes = good.encode();
        change(&mut bytes);
        let crc = checksum::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        Header::decode(&bytes)
    };
    assert_eq!(with(&|_| {}), Ok(good));
    assert_eq!(with(&|b| b[0] = 0), Err(Code::BadFrame));
    assert_eq!(with(&|b| b[4] = 1), Err(Code::UnknownVersion), "an earlier one");
    assert_eq!(with(&|b| b[4] = 3), Err(Code::UnknownVersion), "a later one");
    assert_eq!(with(&|b| b[6] = 99), Err(Code::Unexpected));
    assert_eq!(with(&|b| b[8] = 1), Err(Code::BadFrame), "flags");
    assert_eq!(with(&|b| b[15] = 0x7f), Err(Code::TooLong), "body");
    assert_eq!(with(&|b| b[16] = 1), Err(Code::TooLong), "payload of a kind that has none");
    assert_eq!(with(&|b| b[57] = 1), Err(Code::BadFrame), "reserved");
    let mut flipped = good.encode();
    flipped[30] ^= 1;
    assert_eq!(Header::decode(&flipped), Err(Code::BadFrame));
}

fn cases() -> u64 {
    std::env::var("CASES").ok().and_then(|v| v.parse().ok()).unwrap_or(20_000)
}

/// Random and mutated bytes: an error or a message, and a message encodes to the same bytes.
fn hostile<M: Message + PartialEq + std::fmt::Debug>(seeds: &[Vec<u8>]) {
    let mut rng = StdRng::seed_from_u64(11);
    println!("seed 11, {} cases of {:?}", cases(), M::KIND);
    for _ in 0..cases() {
        let mut bytes = match rng.random_range(0..3) {
            0 => (0..rng.random_range(0..80)).map(|_| rng.random()).collect(),
            _ => seeds[rng.random_range(0..seeds.len())].clone(),
        };
        for _ in 0..rng.random_range(0..4) {
            if bytes.is_empty() {
                break;
            }
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..4) {
                0 => bytes[at] = rng.random(),
                1 => bytes[at] = [251, 252, 253, 254, 255][rng.random_range(0..5)],
                2 => bytes.truncate(at),
                _ => bytes.insert(at, rng.random()),
            }
        }
        if let Ok(message) = wire::decode::<M>(&bytes) {
            let again = wire::encode(&message);
            assert_eq!(wire::decode::<M>(&again).as_ref(), Ok(&message));
        }
    }
}

#[test]
fn hostile_bodies_do_no_harm() {
    let request = RequestId { client: ClientId(1), seq: 1 };
    let piece = Piece::of(&[1; 5000]);
    let ranges: LockRanges = [LockRange::ALL].into_iter().collect();
    let of = Lockable { file: FileId(9), flock: true };
    let config = ChunkConfig {
        handle: ChunkHandle(7),
        epoch: Epoch(3),
        primary: StoreId(1),
        members: vec![StoreId(1), StoreId(2)],
        sealed: Some(9),
        wait_ms: 4,
    };
    let chunk = ChunkInfo { index: 1, length: 9, config: config.clone(), start: 64 };
    let attr = Attr {
        file: FileId(5),
        kind: FileKind::File,
        mode: 0o644,
        uid: 1,
        gid: 2,
        mtime_ns: -1,
        length: 9,
        count: 1,
        open: Some(ChunkHandle(7)),
        target: vec![],
        chunk_bytes: 64 << 20,
        atime_ns: 3,
        ctime_ns: 4,
        links: 1,
        device: 0,
    };
    let looked = Looked { name: b"n".to_vec(), attr, chunk: Some(chunk), has_xattrs: true };
    let unclaim = Mutation::Unclaim { holder: ClientId(3), of, keep: ranges.clone(), recalled: true };
    hostile::<Hello>(&[wire::encode(&Hello::new(Caller::Client))]);
    hostile::<HelloOk>(&[wire::encode(&HelloOk { cluster: ClusterId(1), version: 1 })]);
    hostile::<Refusal>(&[wire::encode(&Refusal::new(Code::Busy, "about"))]);
    hostile::<MasterRequest>(&[
        wire::encode(&MasterRequest::Stat { path: b"/a/b".to_vec() }),
        wire::encode(&MasterRequest::List { path: b"/".to_vec(), after: vec![1, 2], limit: 9 }),
        wire::encode(&MasterRequest::LookIn { path: b"/".to_vec(), after: vec![1, 2], limit: 9 }),
        wire::encode(&MasterRequest::Mutate { request, lowest: 1, mutation: unclaim }),
    ]);
    hostile::<MasterReply>(&[
        wire::encode(&MasterReply::refused(Code::NotFound, "x")),
        wire::encode(&MasterReply::Claimed { ranges, wide: true }),
        wire::encode(&MasterReply::Clone { of: config.clone(), to: config.clone() }),
        wire::encode(&MasterReply::Looked { entries: vec![looked], more: true }),
    ]);
    let (store, handle, epoch) = (StoreId(1), config.handle, config.epoch);
    hostile::<StoreRequest>(&[
        wire::encode(&StoreRequest::Exited { uuid: 1, incarnation: 2 }),
        wire::encode(&StoreRequest::Corrupt { store, handle, epoch }),
        wire::encode(&StoreRequest::Join { store, handle, epoch, learner: StoreId(3), attempt: 5 }),
        wire::encode(&StoreRequest::Fork { store, handle, epoch }),
        wire::encode(&StoreRequest::Forked { store, handle, epoch, to: ChunkHandle(8), length: 9 }),
    ]);
    hostile::<StoreReply>(&[
        wire::encode(&StoreReply::Lapsed),
        wire::encode(&StoreReply::RenewedSince {
            renewal: Renewal {
                session_ms: 2200,
                orders: vec![Order { handle, epoch, discard: true }],
                repairs: vec![RepairOrder { config: config.clone(), attempt: 5 }],
                table: 3,
                stores: None,
                snapshot: 6,
                next_chunk: ChunkHandle(9),
            },
            heard: CutsHeard { term: 7, number: 1 },
            cut: Some(vec![ChunkHandle(8)]),
        }),
        wire::encode(&StoreReply::Fork { to: Some(config.clone()), snapshot: 6 }),
    ]);
    hostile::<ClientChunk>(&[wire::encode(&ClientChunk::Push {
        request,
        handle: ChunkHandle(1),
        index: 0,
        total: 5000,
        chain: vec![StoreId(1), StoreId(2)],
        piece: piece.clone(),
    })]);
    let place = Place { offset: 1, len: 5, segment: 2, block: 300, skip: 4, run: 5000, crcs: vec![7, 8] };
    let located = ClientChunkReply::Located {
        session: SessionId(3),
        stamp: 1 << 40,
        len: 9,
        places: vec![place.clone(), place],
    };
    hostile::<ClientChunkReply>(&[
        wire::encode(&ClientChunkReply::Data { pieces: vec![piece.clone()] }),
        wire::encode(&located),
    ]);
    let copy = CopyId { handle, epoch, attempt: 5 };
    let answer = Answer { seq: 1, offset: 2, len: 3, serial: Serial(4) };
    let answers = vec![Answers { client: ClientId(1), lowest: 1, answers: vec![answer] }];
    let committed = (Origin { epoch, incarnation: 2 }, Serial(4));
    hostile::<Peer>(&[
        wire::encode(&Peer::Held { request, index: 1, refused: Some(Code::Busy) }),
        wire::encode(&Peer::Copy { copy, nonce: 1, since: Serial(3), from: 4096, halt: true }),
        wire::encode(&Peer::CopyData { copy, nonce: 1, piece: Some((0, piece)), committed, length: 5000 }),
        wire::encode(&Peer::CopyAnswers { copy, nonce: 2, after: Some(ClientId(1)) }),
        wire::encode(&Peer::CopiedAnswers { copy, nonce: 2, answers, more: false }),
        wire::encode(&Peer::Copied { copy, point: committed }),
        wire::encode(&Peer::CopyRefused { copy, code: Code::StaleEpoch }),
        wire::encode(&Peer::Fork { handle, epoch, point: committed, config }),
        wire::encode(&Peer::Forked { handle, epoch, to: ChunkHandle(8) }),
    ]);
}

#[test]
fn hostile_headers_do_no_harm() {
    let mut rng = StdRng::seed_from_u64(5);
    for _ in 0..cases() {
        let mut bytes = [0u8; HEADER_BYTES];
        rng.fill(&mut bytes[..]);
        if rng.random_bool(0.7) {
            bytes[..4].copy_from_slice(b"CRN1");
            bytes[4..6].copy_from_slice(&(Version::CURRENT as u16).to_le_bytes());
            let crc = checksum::crc32c(&bytes[..60]);
            bytes[60..].copy_from_slice(&crc.to_le_bytes());
        }
        if let Ok(header) = Header::decode(&bytes) {
            assert!(header.body_len as usize <= header.kind.body_bytes_max());
            assert!(header.payload_len as usize <= header.kind.payload_bytes_max());
        }
    }
}

#[test]
fn a_huge_length_in_a_small_body_allocates_nothing() {
    // A list of 2^60 entries, told in nine bytes.
    let mut body = vec![0u8, 1];
    body.extend_from_slice(&[253, 0, 0, 0, 0, 0, 0, 0, 16]);
    assert_eq!(wire::decode::<ClientChunkReply>(&[3, 253, 0, 0, 0, 0, 0, 0, 0, 16]), Err(Code::BadBody));
    assert!(wire::decode::<MasterRequest>(&body).is_err());
}
