//! A primary whose member does not do its part, and masters who cannot help.

use bytes::Bytes;
use chunkserver_core::Node;
use chunkserver_core::io::{Ask, Input, Output};
use common::wire::chunk_chunk::Peer;
use common::wire::client_chunk::{ClientChunk, ClientChunkReply};
use common::wire::{ChunkConfig, Piece};
use common::*;
use sim::world::{empty_disk, open, small_store};

const CHUNK: ChunkHandle = ChunkHandle(1);
const MEMBER: StoreId = StoreId(2);
/// Simulated time of a test.
const SPAN_MS: u64 = 3000;
/// How often masters that refused are asked again, in milliseconds; as in the primary.
const AGAIN_MS: u64 = 100;

fn write(seq: u64) -> Input {
    let config = ChunkConfig {
        handle: CHUNK,
        epoch: Epoch::first(0),
        primary: StoreId(1),
        members: vec![StoreId(1), MEMBER],
        sealed: None,
        wait_ms: 0,
    };
    let data = vec![7; 512];
    let msg = ClientChunk::Write {
        request: RequestId { client: ClientId(9), seq },
        lowest: 1,
        handle: CHUNK,
        offset: None,
        len: data.len() as u32,
        inline: Some(Piece::of(&data)),
        create: Some(config),
    };
    Input::Client { conn: 1, request: seq, epoch: Epoch::first(0), snapshot: 0, msg, data: data.into() }
}

/// Runs a primary, to whom writes come all the time, beside a member that answers each Apply thus and
/// masters who refuse everything at once: how often those were asked, and how many writes were answered.
fn run(member: impl Fn(Peer) -> Option<Peer>) -> (usize, usize) {
    let config = small_store(77, 1);
    let mut disk = empty_disk(&config);
    let mut node = Node::new(StoreId(1), open(config, &mut disk).expect("an empty store opens"));
    let (mut now, mut inputs) = (Time(1), vec![]);
    inputs.push(Input::Session { session: SessionId(1), until: Time::NEVER });
    let (mut asked, mut written, mut seq) = (0, 0, 0);
    while now < Time(Span::from_ms(SPAN_MS).0) {
        if seq * 30 < now.0 / 1_000_000 {
            seq += 1;
            inputs.push(write(seq));
        }
        let input = inputs.pop().unwrap_or(Input::Wake);
        let mut out = vec![];
        node.step(now, input, &mut out);
        node.check();
        for output in out {
            match output {
                Output::Disk(op) => inputs.push(Input::Disk(disk.perform(op))),
                Output::Master(ask) => {
                    asked += usize::from(matches!(ask.what, Ask::Silent { .. }));
                    inputs.push(Input::Master { handle: ask.handle, answer: Err(Code::Frozen.into()) });
                }
                Output::Peer { msg, .. } => {
                    let answer = member(msg).map(|msg| Input::Peer {
                        from: MEMBER,
                        snapshot: 0,
                        msg,
                        data: Bytes::new(),
                    });
                    inputs.extend(answer);
                }
                Output::Reply { msg: ClientChunkReply::Written { .. }, .. } => written += 1,
                _ => {}
            }
        }
        // Everything takes a while; with nothing to do it goes on at the node's next deadline.
        let soon = now + Span(100_000);
        let next = node.deadline().unwrap_or(Time::NEVER).max(soon);
        now = if inputs.is_empty() { next.min(now + Span::from_ms(10)) } else { soon };
    }
    (asked, written)
}

#[test]
fn masters_who_refuse_are_asked_again_in_their_time() {
    let most = (2 * SPAN_MS / AGAIN_MS) as usize;
    let full = |msg| match msg {
        Peer::Apply { handle, epoch, .. } => {
            Some(Peer::ApplyRefused { handle, epoch, applied: Serial(0), code: Code::DiskFull })
        }
        _ => None,
    };
    let (asked, written) = run(full);
    println!("a full member: asked {asked} times");
    assert!(asked > 5 && asked <= most && written == 0, "asked {asked} times, {written} answers");
    let (asked, written) = run(|_| None);
    println!("a silent member: asked {asked} times");
    assert!(asked > 5 && asked <= most && written == 0, "asked {asked} times, {written} answers");
}

#[test]
fn nobody_is_asked_while_all_answer() {
    let (asked, written) = run(|msg| match msg {
        Peer::Apply { handle, epoch, op, .. } => Some(Peer::Applied { handle, epoch, serial: op.serial }),
        _ => None,
    });
    assert!(asked == 0 && written > 50, "asked {asked} times, {written} answers");
}
