//! A primary whose member does not do its part, and masters who cannot help.

use bytes::Bytes;
use chunkserver_core::Node;
use chunkserver_core::io::{Ask, Input, MasterAsk, Output};
use common::limits::{APPLY_TIMEOUT_MS, BUSY_TIMEOUT_MS};
use common::wire::chunk_chunk::{Origin, Peer};
use common::wire::client_chunk::{ClientChunk, ClientChunkReply};
use common::wire::{ChunkConfig, Piece};
use common::*;
use sim::world::{empty_disk, open, small_store};

const MEMBERS: [StoreId; 2] = [StoreId(2), StoreId(3)];
/// Simulated time of a test.
const SPAN_MS: u64 = 3000;
/// How often masters that refused are asked again, in milliseconds; as in the primary.
const AGAIN_MS: u64 = 100;

fn config(handle: ChunkHandle, epoch: Epoch) -> ChunkConfig {
    let members = [StoreId(1)].into_iter().chain(MEMBERS).collect();
    ChunkConfig { handle, epoch, primary: StoreId(1), members, sealed: None, wait_ms: 0 }
}

fn write(seq: u64, handle: ChunkHandle) -> Input {
    let config = config(handle, Epoch::first(0));
    let data = vec![7; 512];
    let msg = ClientChunk::Write {
        request: RequestId { client: ClientId(9), seq },
        lowest: 1,
        handle,
        offset: None,
        len: data.len() as u32,
        inline: Some(Piece::of(&data)),
        create: Some(config),
    };
    Input::Client { conn: 1, request: seq, epoch: Epoch::first(0), snapshot: 0, msg, data: data.into() }
}

/// From a client that knows the chunk so.
fn stat(config: &ChunkConfig) -> Input {
    let msg = ClientChunk::Stat { handle: config.handle };
    Input::Client { conn: 2, request: 1, epoch: config.epoch, snapshot: 0, msg, data: Bytes::new() }
}

/// Runs a primary, to whom so many writes come, one every 30 ms, beside members that answer thus and
/// masters who refuse everything at once: of whom those were told, each time, and how many writes were
/// answered.
fn run(writes: u64, member: impl FnMut(StoreId, Peer) -> Option<Peer>) -> (Vec<StoreId>, usize) {
    let (told, written) = run_chunks(1, writes, member);
    (told.into_iter().map(|(_, accused)| accused).collect(), written)
}

/// As `run`, with writes to so many chunks in turn; with when the masters were told, in milliseconds.
fn run_chunks(
    chunks: u64,
    writes: u64,
    member: impl FnMut(StoreId, Peer) -> Option<Peer>,
) -> (Vec<(u64, StoreId)>, usize) {
    run_told(chunks, writes, None, member)
}

/// As `run_chunks`; at a time, in milliseconds, a client comes with another configuration of a chunk, and the masters have
/// it, too.
fn run_told(
    chunks: u64,
    writes: u64,
    told: Option<(u64, ChunkConfig)>,
    mut member: impl FnMut(StoreId, Peer) -> Option<Peer>,
) -> (Vec<(u64, StoreId)>, usize) {
    let config = small_store(77, 1);
    let mut disk = empty_disk(&config);
    let mut node = Node::new(StoreId(1), open(config, &mut disk).expect("an empty store opens"));
    let (mut now, mut inputs) = (Time(1), vec![]);
    inputs.push(Input::Session { session: SessionId(1), until: Time::NEVER, next_chunk: ChunkHandle(0) });
    let (mut accused_of, mut written, mut seq) = (vec![], 0, 0);
    let (mut to_come, mut known) = (told, None);
    while now < Time(Span::from_ms(SPAN_MS).0) {
        if seq < writes && seq * 30 < now.0 / 1_000_000 {
            seq += 1;
            inputs.push(write(seq, ChunkHandle(1 + seq % chunks)));
        }
        if let Some((_, config)) = to_come.take_if(|(at, _)| now.0 / 1_000_000 >= *at) {
            inputs.push(stat(&config));
            known = Some(config);
        }
        let input = inputs.pop().unwrap_or(Input::Wake);
        let mut out = vec![];
        node.step(now, input, &mut out);
        node.check();
        for output in out {
            match output {
                Output::Disk(op) => inputs.push(Input::Disk(disk.perform(op))),
                Output::Master(ask) => {
                    match ask.what {
                        Ask::Silent { accused, .. } => accused_of.push((now.0 / 1_000_000, accused)),
                        Ask::Takeover { .. } => panic!("the primary starts over"),
                        _ => {}
                    }
                    let MasterAsk { handle, number, .. } = ask;
                    let answer = known.clone().filter(|config| config.handle == handle);
                    let answer = answer.ok_or(Code::Frozen.into());
                    inputs.push(Input::Master { handle, number, answer });
                }
                Output::Peer { to, msg, .. } => {
                    let answer = member(to, msg).map(|msg| Input::Peer {
                        from: to,
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
    (accused_of, written)
}

/// An endless stream of writes.
const ALWAYS: u64 = u64::MAX;

fn acknowledged(msg: Peer) -> Option<Peer> {
    match msg {
        Peer::Apply { handle, epoch, op, .. } => Some(Peer::Applied { handle, epoch, serial: op.serial }),
        _ => None,
    }
}

#[test]
fn masters_who_refuse_are_asked_again_in_their_time() {
    let most = (2 * SPAN_MS / AGAIN_MS) as usize;
    let full = |_, msg| match msg {
        Peer::Apply { handle, epoch, .. } => {
            Some(Peer::ApplyRefused { handle, epoch, applied: Serial(0), code: Code::DiskFull })
        }
        _ => None,
    };
    let (asked, written) = run(ALWAYS, full);
    println!("full members: asked {} times", asked.len());
    assert!(asked.len() > 5 && asked.len() <= most && written == 0, "asked {asked:?}, {written} answers");
    let (asked, written) = run(ALWAYS, |_, _| None);
    println!("silent members: asked {} times", asked.len());
    assert!(asked.len() > 5 && asked.len() <= most && written == 0, "asked {asked:?}, {written} answers");
}

#[test]
fn nobody_is_asked_while_all_answer() {
    let (asked, written) = run(ALWAYS, |_, msg| acknowledged(msg));
    assert!(asked.is_empty() && written > 50, "asked {asked:?}, {written} answers");
}

#[test]
fn who_owes_nothing_but_gives_no_sign_is_complained_of_too() {
    let mut answers = 0;
    let (asked, _) = run(1, |from, msg| {
        let answer = acknowledged(msg).filter(|_| from == MEMBERS[0] && answers == 0);
        answers += u32::from(answer.is_some());
        answer
    });
    assert!(MEMBERS.iter().all(|m| asked.contains(m)), "asked {asked:?}");
}

#[test]
fn who_gives_a_sign_is_not_complained_of() {
    let (asked, _) = run(1, |from, msg| acknowledged(msg).filter(|_| from == MEMBERS[0]));
    assert!(asked.len() > 5 && !asked.contains(&MEMBERS[0]), "asked {asked:?}");
}

/// Whether an apply is one to the second of two chunks.
fn is_second(msg: &Peer) -> bool {
    matches!(msg, Peer::Apply { handle: ChunkHandle(2), .. })
}

#[test]
fn who_acknowledges_other_chunks_is_waited_for_longer_but_not_for_ever() {
    let (told, _) = run_chunks(2, ALWAYS, |from, msg| {
        acknowledged(msg.clone()).filter(|_| from == MEMBERS[0] || !is_second(&msg))
    });
    let first = told.first().expect("masters are told in the end").0;
    let within = BUSY_TIMEOUT_MS..BUSY_TIMEOUT_MS + 100;
    assert!(within.contains(&first) && told.iter().all(|(_, who)| *who == MEMBERS[1]), "{told:?}");
    // It falls silent altogether: that counts from there on.
    let mut acknowledgements = 0;
    let (told, _) = run_chunks(2, ALWAYS, |from, msg| {
        let answers = from == MEMBERS[0] || !is_second(&msg) && acknowledgements < 20;
        let answer = acknowledged(msg).filter(|_| answers);
        acknowledgements += u64::from(answer.is_some() && from == MEMBERS[1]);
        answer
    });
    let first = told.first().expect("masters are told").0;
    // One write of that chunk comes every 60 ms.
    let within = 20 * 60 + APPLY_TIMEOUT_MS - 200..20 * 60 + APPLY_TIMEOUT_MS + 200;
    assert!(within.contains(&first), "told after {first} ms, not within {within:?}");
}

#[test]
fn who_has_no_room_just_now_is_sent_it_again_until_it_has() {
    // Longer than who says nothing is waited for.
    const REFUSALS: u32 = 50;
    let mut refused = 0;
    let (told, written) = run(10, |to, msg| match msg {
        Peer::Apply { handle, epoch, .. } if to == MEMBERS[1] && refused < REFUSALS => {
            refused += 1;
            Some(Peer::ApplyRefused { handle, epoch, applied: Serial(0), code: Code::Busy })
        }
        msg => acknowledged(msg),
    });
    assert!(told.is_empty(), "{told:?} were accused");
    assert_eq!((refused, written), (REFUSALS, 10));
}

/// It answers for other chunks, so that it is busy, not silent; and it hears of the new epoch each time.
#[test]
fn whose_answer_to_a_new_epoch_is_lost_is_asked_again_soon() {
    let handle = ChunkHandle(1);
    let next = config(handle, Epoch::first(0).next());
    let told = Some((SPAN_MS / 2, next));
    let mut asked = 0;
    let (accused, _) = run_told(2, ALWAYS, told, |to, msg| {
        asked += u64::from(to == MEMBERS[1] && matches!(msg, Peer::NewEpoch { .. }));
        acknowledged(msg)
    });
    assert!(accused.is_empty(), "{accused:?} were accused");
    let (least, most) = (SPAN_MS / 2 / AGAIN_MS - 3, SPAN_MS / 2 / AGAIN_MS + 1);
    assert!((least..=most).contains(&asked), "asked {asked} times");
}

/// A chunk is made by its first write. If a snapshot is taken before that, the fork comes first.
#[test]
fn who_does_not_know_a_chunk_that_is_to_be_forked_says_so() {
    let disk_config = small_store(78, 1);
    let mut disk = empty_disk(&disk_config);
    let mut node = Node::new(MEMBERS[0], open(disk_config, &mut disk).expect("an empty store opens"));
    let handle = ChunkHandle(1);
    let to = ChunkConfig { sealed: Some(0), ..config(ChunkHandle(2), Epoch::first(0)) };
    let msg =
        Peer::Fork { handle, epoch: Epoch::first(0), point: (Origin::default(), Serial(0)), config: to };
    let asked = Input::Peer { from: StoreId(1), snapshot: 1, msg, data: Bytes::new() };
    let mut out = vec![];
    node.step(Time(1), asked, &mut out);
    let refused = |output: &Output| match output {
        Output::Peer { to: StoreId(1), msg: Peer::ApplyRefused { code, .. }, .. } => Some(*code),
        _ => None,
    };
    assert!(out.iter().any(|output| refused(output) == Some(Code::NoSuchChunk)), "{out:?}");
}
