//! Clones: what the masters let become of a fork that a client has begun.

mod driver;

use common::limits::CLONE_MS;
use common::wire::ChunkConfig;
use common::wire::client_master::{MasterReply, Mutation, Policy};
use common::*;
use driver::{Driver, code, create, image};
use master_core::{Before, Command};

const LENGTH: u64 = 1 << 20;

fn driver() -> Driver {
    let mut d = Driver::new();
    d.servers(&["a", "b", "c"], |_| 0);
    d
}

fn file(d: &mut Driver, path: &str, chunk: bool) -> FileId {
    match d.mutate(create(path, chunk)) {
        MasterReply::Opened { attr, .. } => attr.file,
        other => panic!("{other:?}"),
    }
}

/// The chunks of a file.
fn chunks(d: &Driver, file: FileId) -> Vec<(ChunkConfig, u64)> {
    let Ok(MasterReply::Layout { chunks, .. }) = d.state.layout(file, 0, 10) else { panic!("{file}") };
    chunks.into_iter().map(|c| (c.config, c.length)).collect()
}

/// A file with one chunk that is sealed, and that chunk.
fn source(d: &mut Driver) -> ChunkConfig {
    let file = file(d, "/source", true);
    let config = chunks(d, file)[0].0.clone();
    d.apply(Command::Seal { handle: config.handle, epoch: config.epoch, length: LENGTH });
    config
}

fn begin(d: &mut Driver, of: &ChunkConfig, file: FileId, at: u64) -> Result<ChunkConfig, Code> {
    match d.mutate(Mutation::BeginClone { of: of.handle, snapshot: 0, file, at }) {
        MasterReply::Clone { of: now, to } => {
            assert_eq!(now.members, to.members);
            Ok(to)
        }
        reply => Err(code(&reply).unwrap_or_else(|| panic!("{reply:?}"))),
    }
}

fn end(d: &mut Driver, to: &ChunkConfig) -> MasterReply {
    d.mutate(Mutation::EndClone { to: to.handle, length: Some(LENGTH) })
}

/// Whether all who may have made a fork are told to discard it.
fn is_discarded(d: &Driver, to: &ChunkConfig) -> bool {
    let told = |store: &StoreId| {
        let (orders, _) = d.state.orders_for(*store, 1000);
        orders.iter().any(|o| o.handle == to.handle && o.discard && o.epoch == Epoch::DELETED)
    };
    assert_eq!(to.members.len(), 3);
    to.members.iter().all(told)
}

#[test]
fn a_clone_is_the_files_next_chunk() {
    let mut d = driver();
    let of = source(&mut d);
    let file = file(&mut d, "/copy", false);
    let first = begin(&mut d, &of, file, 0).unwrap();
    assert!(chunks(&d, file).is_empty(), "it is nobody's yet");
    // Masters that begin anew go on with it.
    d.state = d.reread();
    assert!(matches!(end(&mut d, &first), MasterReply::Chunk(c) if c.length == LENGTH && c.index == 0));
    let second = begin(&mut d, &of, file, LENGTH).unwrap();
    assert!(matches!(end(&mut d, &second), MasterReply::Chunk(c) if c.start == LENGTH && c.index == 1));
    let sealed = |to: &ChunkConfig| (ChunkConfig { sealed: Some(LENGTH), ..to.clone() }, LENGTH);
    assert_eq!(chunks(&d, file), [sealed(&first), sealed(&second)]);
    let attr = d.state.stat(b"/copy").unwrap();
    assert_eq!((attr.length, attr.open), (2 * LENGTH, None));
    assert!(!is_discarded(&d, &first) && !is_discarded(&d, &second));
    assert_eq!(d.state.usage_of(b"/").unwrap().bytes, 3 * LENGTH);
    assert_eq!(image(&d.state), image(&d.reread()));
    d.state.check();
}

#[test]
fn whatever_comes_between_gives_a_clone_up() {
    type Between = fn(&mut Driver, &ChunkConfig, FileId);
    let between: [(&str, Between); 7] = [
        ("another chunk", |d, _, file| {
            d.mutate(Mutation::AddChunk { file, index: 0, declare: None, near: String::new() });
        }),
        ("a hole", |d, _, file| {
            d.mutate(Mutation::AddHole { file, index: 0, length: 5 });
        }),
        ("another epoch", |d, of, _| {
            let (handle, epoch) = (of.handle, of.epoch);
            d.apply(Command::Reconfigure { handle, epoch, remove: vec![], primary: None });
        }),
        ("a snapshot", |d, _, _| {
            d.mutate(Mutation::Snapshot { path: b"/".to_vec(), name: b"s".to_vec() });
        }),
        ("the end of the source", |d, _, _| {
            let only = common::wire::client_master::Only::Anything;
            d.mutate(Mutation::SetPolicy {
                path: b"/".to_vec(),
                policy: Policy { trash: Some(false), ..Default::default() },
            });
            d.mutate(Mutation::Unlink { path: b"/source".to_vec(), recursive: false, only });
            let all = d.state.clock_ns() + 1;
            let before = Before { trash_ns: all, uploads_ns: all, open_ns: all, clients_ns: 0 };
            d.apply(Command::Expire { before, budget: 100 });
        }),
        ("nothing, but that it is not wanted any more", |_, _, _| {}),
        ("time", |d, _, _| {
            d.ahead_ns += CLONE_MS * 1_000_000 + 1;
            d.apply(Command::Expire { before: Before::default(), budget: 100 });
        }),
    ];
    for (what, between) in between {
        let mut d = driver();
        let of = source(&mut d);
        let file = file(&mut d, "/copy", false);
        let to = begin(&mut d, &of, file, 0).unwrap();
        assert!(!is_discarded(&d, &to), "{what}");
        between(&mut d, &of, file);
        let before = chunks(&d, file);
        let reply = match what.starts_with("nothing") {
            true => d.mutate(Mutation::EndClone { to: to.handle, length: None }),
            false => end(&mut d, &to),
        };
        let said =
            if what.starts_with("nothing") { reply == MasterReply::Done } else { code(&reply).is_some() };
        assert!(said, "{what}: {reply:?}");
        assert_eq!(chunks(&d, file), before, "{what}: the file is changed");
        assert!(is_discarded(&d, &to), "{what}: it stays at the stores");
        assert_eq!(code(&end(&mut d, &to)), Some(Code::NoSuchChunk), "{what}");
        d.state.check();
    }
}

#[test]
fn clones_are_refused_where_they_cannot_be() {
    let mut d = driver();
    let of = source(&mut d);
    let copy = file(&mut d, "/copy", false);
    assert_eq!(begin(&mut d, &of, copy, 1), Err(Code::WrongChunkIndex), "behind the end");
    let open = file(&mut d, "/open", true);
    assert_eq!(begin(&mut d, &of, open, 0), Err(Code::WrongChunkIndex), "its last chunk grows");
    assert_eq!(begin(&mut d, &of, FileId(99), 0), Err(Code::NoSuchFileId));
    let none = ChunkConfig { handle: ChunkHandle(99), ..of.clone() };
    assert_eq!(begin(&mut d, &none, copy, 0), Err(Code::NoSuchChunk));
    let policy = Policy { replication: Some(2), ..Default::default() };
    d.mutate(Mutation::Mkdir {
        path: b"/two".to_vec(),
        parents: false,
        mode: 0o755,
        owner: Default::default(),
    });
    d.mutate(Mutation::SetPolicy { path: b"/two".to_vec(), policy });
    let two = file(&mut d, "/two/copy", false);
    assert_eq!(begin(&mut d, &of, two, 0), Err(Code::BadArgument), "it wants fewer replicas");
    // A last chunk that was sealed while empty makes room.
    let config = chunks(&d, open)[0].0.clone();
    d.apply(Command::Seal { handle: config.handle, epoch: config.epoch, length: 0 });
    let to = begin(&mut d, &of, open, 0).unwrap();
    assert!(matches!(end(&mut d, &to), MasterReply::Chunk(c) if c.index == 0));
    assert_eq!(chunks(&d, open).len(), 1);
    d.state.check();
}
