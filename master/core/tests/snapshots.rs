//! Snapshots against a model: trees as they were, with what their files held.

mod driver;

use common::wire::chunk_master::{CutsHeard, StoreReply};
use common::wire::client_master::{FileKind, MasterReply, Mutation, NameChange, Only, Owner, Quota, SetTime};
use common::*;
use driver::{Driver, code, create, image};
use master_core::{Before, Command, Reply};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Held {
    /// Which bytes, as a number: those of each write are others.
    bytes: u64,
    length: u64,
}

/// What a path is: a directory, or a file.
type Files = BTreeMap<String, Option<Held>>;

struct Model {
    live: Files,
    /// Directory and name: the tree as it was.
    taken: BTreeMap<(String, String), Files>,
    /// What each chunk holds, as its stores know it: they are not told when a file is cut.
    chunks: BTreeMap<ChunkHandle, Held>,
    next: u64,
}

fn below(files: &Files, dir: &str) -> Files {
    let prefix = format!("{dir}/");
    let inside = files.iter().filter(|(path, _)| path.starts_with(&prefix));
    inside.map(|(path, what)| (path[dir.len()..].to_owned(), *what)).collect()
}

fn chunk_of(d: &Driver, path: &str) -> ChunkHandle {
    let attr = d.state.stat(path.as_bytes()).unwrap_or_else(|e| panic!("{path}: {e}"));
    let Ok(MasterReply::Layout { chunks, .. }) = d.state.layout(attr.file, 0, 10) else { panic!("{path}") };
    chunks[0].config.handle
}

impl Model {
    /// A primary writes to the file's chunk, after a fork if it must be one.
    fn write(&mut self, d: &mut Driver, path: &str, rng: &mut StdRng) {
        let handle = chunk_of(d, path);
        loop {
            let epoch = d.state.config(handle).unwrap().epoch;
            match d.apply(Command::Fork { handle, epoch }) {
                Reply::Store(StoreReply::Fork { to: None, .. }) => break,
                // It was cut while a snapshot needed it, and that is gone: the primary hears what is left, and asks again.
                Reply::Store(StoreReply::Config(config)) => assert_eq!(config.epoch, epoch),
                Reply::Store(StoreReply::Fork { to: Some(to), .. }) => {
                    if rng.random_bool(0.3) {
                        // The primary dies, and another one begins anew.
                        d.apply(Command::Reconfigure { handle, epoch, remove: vec![], primary: None });
                        continue;
                    }
                    let held = self.chunks[&handle];
                    self.chunks.insert(to.handle, held);
                    d.apply(Command::Forked { handle, epoch, to: to.handle, length: held.length });
                    assert!(
                        d.state.config(handle).unwrap().epoch > epoch,
                        "who reads the old chunk is fenced"
                    );
                }
                other => panic!("{other:?}"),
            }
        }
        self.next += 1;
        let (mut held, mut chunk) = (self.live[path].expect("a file"), self.chunks[&handle]);
        (held.bytes, chunk.bytes) = (self.next, self.next);
        if d.state.config(handle).unwrap().sealed.is_none() {
            // It grows.
            (held.length, chunk.length) = (self.next, self.next);
            d.mutate(Mutation::ReportLength { handle, length: self.next });
        }
        self.chunks.insert(handle, chunk);
        self.live.insert(path.into(), Some(held));
    }

    /// The file is cut, or extended by a hole.
    fn truncate(&mut self, d: &mut Driver, path: &str, length: u64) {
        let attr = d.state.stat(path.as_bytes()).unwrap();
        if let Some(handle) = attr.open {
            let (epoch, length) = (d.state.config(handle).unwrap().epoch, self.chunks[&handle].length);
            d.apply(Command::Seal { handle, epoch, length });
        }
        assert_eq!(code(&d.mutate(Mutation::Truncate { file: attr.file, length })), None);
        self.live.get_mut(path).unwrap().as_mut().expect("a file").length = length;
    }

    /// Everything is seen as it was.
    fn check(&self, d: &Driver, seed: u64) {
        self.check_tree(d, "", &self.live, seed);
        for ((dir, name), files) in &self.taken {
            self.check_tree(d, &format!("{dir}/.snapshot/{name}"), files, seed);
        }
    }

    fn check_tree(&self, d: &Driver, at: &str, files: &Files, seed: u64) {
        for (path, what) in files {
            let path = format!("{at}{path}");
            let attr = d.state.stat(path.as_bytes()).unwrap_or_else(|e| panic!("seed {seed}: {path}: {e}"));
            match what {
                None => {
                    assert_eq!(attr.kind, FileKind::Directory, "seed {seed}: {path}");
                    let Ok(MasterReply::Entries { entries, .. }) = d.state.list(path.as_bytes(), b"", 1000)
                    else {
                        panic!("{path}")
                    };
                    let inside = path[at.len()..].to_owned() + "/";
                    let direct = files
                        .keys()
                        .filter(|p| p.strip_prefix(&inside).is_some_and(|rest| !rest.contains('/')));
                    assert_eq!(entries.len(), direct.count(), "seed {seed}: {path}");
                }
                Some(held) => {
                    let handle = chunk_of(d, &path);
                    let chunk = self.chunks[&handle];
                    assert_eq!(chunk.bytes, held.bytes, "seed {seed}: {path} is {handle}");
                    assert_eq!(attr.length, held.length, "seed {seed}: {path} is {handle}");
                    if at.is_empty() {
                        // What snapshots keep of it says nothing of the file itself.
                        let open = d.state.config(handle).unwrap().sealed.is_none();
                        assert_eq!(attr.open, open.then_some(handle), "seed {seed}: {path}");
                    }
                }
            }
        }
    }
}

/// Who asks for this hears that there is no such chunk.
fn refused(d: &mut Driver, command: Command) {
    match d.apply(command) {
        Reply::Store(StoreReply::Refused { refusal, .. }) => assert_eq!(refusal.code, Code::NoSuchChunk),
        other => panic!("{other:?}"),
    }
}

fn expire(d: &mut Driver, budget: u32) {
    d.apply(Command::Expire { before: Before { trash_ns: u64::MAX, ..Default::default() }, budget });
}

#[test]
fn trees_are_seen_as_they_were_whatever_comes_later() {
    for seed in 0..60 {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut d = Driver::new();
        d.servers(&["r1", "r2", "r3", "r1"], |_| 0);
        let mut m = Model { live: Files::new(), taken: BTreeMap::new(), chunks: BTreeMap::new(), next: 0 };
        for dir in ["/a", "/a/b", "/c"] {
            d.mutate(Mutation::Mkdir {
                path: dir.into(),
                parents: false,
                mode: 0o755,
                owner: Owner::default(),
            });
            m.live.insert(dir.into(), None);
        }
        for step in 0..300 {
            let dirs: Vec<String> =
                m.live.iter().filter(|(_, w)| w.is_none()).map(|(p, _)| p.clone()).collect();
            let files: Vec<String> =
                m.live.iter().filter(|(_, w)| w.is_some()).map(|(p, _)| p.clone()).collect();
            let dir = dirs.choose(&mut rng).cloned().unwrap_or_default();
            let file = files.choose(&mut rng).cloned();
            let fresh = format!("{dir}/n{step}");
            match (rng.random_range(0..13), file) {
                (0..3, _) => {
                    let reply = d.mutate(create(&fresh, true));
                    assert_eq!(code(&reply), None);
                    let held = Held { bytes: 0, length: 0 };
                    m.chunks.insert(chunk_of(&d, &fresh), held);
                    m.live.insert(fresh, Some(held));
                }
                (3..6, Some(file)) => m.write(&mut d, &file, &mut rng),
                (6, Some(file)) => {
                    d.mutate(Mutation::Unlink {
                        path: file.clone().into(),
                        recursive: false,
                        only: Only::Anything,
                    });
                    m.live.remove(&file);
                    expire(&mut d, 3);
                }
                (7, Some(file)) => {
                    let (from, to) = (file.clone().into(), fresh.clone().into());
                    assert_eq!(code(&d.mutate(Mutation::Rename { from, to, replace: false })), None);
                    let what = m.live.remove(&file).unwrap();
                    m.live.insert(fresh, what);
                }
                (8, _) => {
                    let path = dir.clone().into_bytes();
                    let path = if path.is_empty() { b"/".to_vec() } else { path };
                    let name = format!("s{step}");
                    let reply = d.mutate(Mutation::Snapshot { path, name: name.clone().into() });
                    assert_eq!(code(&reply), None);
                    m.taken.insert((dir.clone(), name), below(&m.live, &dir));
                }
                (9, _) if rng.random() => {
                    let Some((dir, name)) = m.taken.keys().next().cloned() else { continue };
                    let path = if dir.is_empty() { "/".into() } else { dir.clone() };
                    let reply =
                        d.mutate(Mutation::DeleteSnapshot { path: path.into(), name: name.clone().into() });
                    assert_eq!(code(&reply), None);
                    m.taken.remove(&(dir, name));
                    expire(&mut d, rng.random_range(0..10));
                }
                // Its chunk stays.
                (11, Some(file)) if m.live[&file].is_some_and(|held| held.length > 1) => {
                    let length = m.live[&file].expect("a file").length;
                    m.truncate(&mut d, &file, rng.random_range(1..length + length / 2));
                }
                (10, _) => {
                    let reply = d.mutate(Mutation::Unlink {
                        path: dir.clone().into(),
                        recursive: true,
                        only: Only::Anything,
                    });
                    let holds = |of: &str| of == dir || of.starts_with(&format!("{dir}/"));
                    let snapshots = m.taken.keys().any(|(of, _)| holds(of));
                    let wanted = match (dir.is_empty(), snapshots) {
                        (true, _) => Some(Code::BadName),
                        (_, true) => Some(Code::HasSnapshots),
                        _ => None,
                    };
                    assert_eq!(code(&reply), wanted, "seed {seed}: unlink {dir}");
                    if wanted.is_none() {
                        m.live.retain(|path, _| !holds(path));
                    }
                    expire(&mut d, rng.random_range(0..30));
                }
                _ => {
                    let again = d.reread();
                    assert_eq!(image(&again), image(&d.state), "seed {seed}: the same after encoding");
                    d.state = again;
                }
            }
            d.state.check();
            m.check(&d, seed);
        }
        for ((dir, name), _) in std::mem::take(&mut m.taken) {
            let path = if dir.is_empty() { "/".into() } else { dir };
            d.mutate(Mutation::DeleteSnapshot { path: path.into(), name: name.into() });
        }
        expire(&mut d, 10_000);
        d.state.check();
        m.check(&d, seed);
        let (files, chunks, _) = d.state.counts();
        let live = m.live.values().filter(|w| w.is_some()).count() as u64;
        assert_eq!((files, chunks), (m.live.len() as u64 + 1, live), "seed {seed}: nothing is left behind");
    }
}

/// Who has a file open writes to a chunk that has left it meanwhile, and that a snapshot needs.
#[test]
fn who_writes_to_what_only_a_snapshot_has_hears_that_it_is_gone() {
    let mut d = Driver::new();
    d.servers(&["r1", "r2", "r3"], |_| 0);
    assert_eq!(code(&d.mutate(create("/f", true))), None);
    let handle = chunk_of(&d, "/f");
    d.mutate(Mutation::Snapshot { path: b"/".into(), name: b"s".into() });
    d.mutate(Mutation::Unlink { path: b"/f".into(), recursive: false, only: Only::Anything });
    expire(&mut d, 10);
    assert_eq!(chunk_of(&d, "/.snapshot/s/f"), handle);
    let epoch = d.state.config(handle).unwrap().epoch;
    refused(&mut d, Command::Fork { handle, epoch });
    assert_eq!(chunk_of(&d, "/.snapshot/s/f"), handle);

    // It is cut while a fork is made, or before; a later snapshot has the file, and not the chunk.
    for forks_before in [true, false] {
        d.mutate(create("/g", true));
        let (handle, file) = (chunk_of(&d, "/g"), d.state.stat(b"/g").unwrap().file);
        let epoch = d.state.config(handle).unwrap().epoch;
        d.apply(Command::Seal { handle, epoch, length: 9 });
        d.mutate(Mutation::Snapshot { path: b"/".into(), name: b"before".into() });
        let mut to = ChunkHandle::HOLE;
        if forks_before {
            match d.apply(Command::Fork { handle, epoch }) {
                Reply::Store(StoreReply::Fork { to: Some(fork), .. }) => to = fork.handle,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(code(&d.mutate(Mutation::Truncate { file, length: 0 })), None);
        d.mutate(Mutation::Snapshot { path: b"/".into(), name: b"after".into() });
        match forks_before {
            true => refused(&mut d, Command::Forked { handle, epoch, to, length: 9 }),
            false => refused(&mut d, Command::Fork { handle, epoch }),
        }
        assert_eq!(chunk_of(&d, "/.snapshot/before/g"), handle, "nobody has written to it");
        d.state.check();
        for name in ["before", "after"] {
            d.mutate(Mutation::DeleteSnapshot { path: b"/".into(), name: name.into() });
        }
        d.mutate(Mutation::Unlink { path: b"/g".into(), recursive: false, only: Only::Anything });
    }
}

/// It is cut while a snapshot needs it, and that is deleted before a fork is made: whoever asks then hears of the cut.
#[test]
fn what_is_left_of_a_chunk_is_known_when_no_snapshot_needs_it_any_more() {
    for forks_before in [true, false] {
        let mut d = Driver::new();
        d.servers(&["r1", "r2", "r3"], |_| 0);
        d.mutate(create("/f", true));
        let (handle, file) = (chunk_of(&d, "/f"), d.state.stat(b"/f").unwrap().file);
        let epoch = d.state.config(handle).unwrap().epoch;
        d.apply(Command::Seal { handle, epoch, length: 9 });
        d.mutate(Mutation::Snapshot { path: b"/".into(), name: b"s".into() });
        if forks_before {
            d.apply(Command::Fork { handle, epoch });
        }
        assert_eq!(code(&d.mutate(Mutation::Truncate { file, length: 4 })), None);
        assert_eq!(d.state.config(handle).unwrap().sealed, Some(9), "a snapshot has it whole");
        d.mutate(Mutation::DeleteSnapshot { path: b"/".into(), name: b"s".into() });
        assert!(d.state.is_fork_due(handle));
        match d.apply(Command::Fork { handle, epoch }) {
            Reply::Store(StoreReply::Config(config)) => assert_eq!(config.sealed, Some(4)),
            other => panic!("{other:?}"),
        }
        match d.apply(Command::Fork { handle, epoch }) {
            Reply::Store(StoreReply::Fork { to: None, .. }) => {}
            other => panic!("{other:?}"),
        }
        assert!(!d.state.is_fork_due(handle));
        d.state.check();
    }
}

/// Its file dropped it, and the snapshot that had it was deleted just now: whoever asks then hears that it is gone.
#[test]
fn who_writes_to_what_nothing_has_any_more_hears_that_it_is_gone() {
    let mut d = Driver::new();
    d.servers(&["r1", "r2", "r3"], |_| 0);
    d.mutate(create("/f", true));
    let (handle, file) = (chunk_of(&d, "/f"), d.state.stat(b"/f").unwrap().file);
    let epoch = d.state.config(handle).unwrap().epoch;
    assert!(!d.state.is_fork_due(handle));
    d.apply(Command::Seal { handle, epoch, length: 9 });
    d.mutate(Mutation::Snapshot { path: b"/".into(), name: b"s".into() });
    assert_eq!(code(&d.mutate(Mutation::Truncate { file, length: 0 })), None);
    d.mutate(Mutation::DeleteSnapshot { path: b"/".into(), name: b"s".into() });
    assert!(d.state.chunk(handle).is_some(), "it goes in a step of its own");
    assert!(d.state.is_fork_due(handle));
    refused(&mut d, Command::Fork { handle, epoch });
    expire(&mut d, 10);
    assert!(d.state.chunk(handle).is_none());
}

/// A file is emptied while its chunk is open, unless a snapshot needs that; a refusal changes nothing.
#[test]
fn what_nobody_else_needs_goes_in_one_step() {
    let mut d = Driver::new();
    d.mutate(Mutation::Mkdir { path: b"/d".into(), parents: true, mode: 0o755, owner: Owner::default() });
    d.mutate(create("/d/f", false));
    let file = d.state.stat(b"/d/f").unwrap().file;
    let empty = |only, chunk| Mutation::Empty { file, only, chunk, near: String::new() };
    // There are no stores yet.
    assert_eq!(code(&d.mutate(empty(None, true))), Some(Code::NoServers));
    assert_eq!(code(&d.mutate(empty(None, false))), None);
    d.servers(&["r1", "r2", "r3"], |_| 0);
    let quota = Quota { entries: None, bytes: Some(0) };
    d.mutate(Mutation::SetQuota { path: b"/d".into(), quota });
    assert_eq!(code(&d.mutate(empty(None, true))), Some(Code::QuotaExceeded));
    d.mutate(Mutation::SetQuota { path: b"/d".into(), quota: Quota { bytes: Some(50), ..quota } });
    let next = |reply: MasterReply| match reply {
        MasterReply::Opened { attr, chunk: Some(chunk) } => {
            assert_eq!((attr.length, attr.count, attr.open), (0, 1, Some(chunk.config.handle)));
            chunk.config
        }
        other => panic!("{other:?}"),
    };
    let first = next(d.mutate(empty(None, true)));
    d.mutate(Mutation::ReportLength { handle: first.handle, length: 50 });
    assert_eq!(d.state.usage_of(b"/d").unwrap().bytes, 50, "the quota is used up");
    for only in [None, Some(ChunkHandle::HOLE), Some(ChunkHandle(first.handle.0 + 1))] {
        assert_eq!(code(&d.mutate(empty(only, true))), Some(Code::WrongChunkIndex), "{only:?}");
        assert_eq!(chunk_of(&d, "/d/f"), first.handle);
    }
    // Its primary hears of it, though the chunk is gone.
    let heard = d.state.cuts_for(first.primary, 1, CutsHeard { term: 1, number: 0 }).0;
    let second = next(d.mutate(empty(Some(first.handle), true)));
    assert!(d.state.chunk(first.handle).is_none());
    assert_eq!(d.state.cuts_for(first.primary, 1, heard).1, Some(vec![first.handle]));
    let other = *first.members.iter().find(|m| **m != first.primary).unwrap();
    assert_eq!(d.state.cuts_for(other, 1, heard).1, Some(vec![]));
    d.state.check();
    // It can be asked what is left of the second only when that is sealed.
    d.mutate(Mutation::Snapshot { path: b"/d".into(), name: b"s".into() });
    assert_eq!(code(&d.mutate(empty(Some(second.handle), true))), Some(Code::WrongChunkIndex));
    d.apply(Command::Seal { handle: second.handle, epoch: second.epoch, length: 9 });
    let third = next(d.mutate(empty(Some(second.handle), true)));
    assert_eq!(d.state.stat(b"/d/.snapshot/s/f").unwrap().length, 9);
    assert!(d.state.chunk(second.handle).is_some());
    let MasterReply::Opened { attr, chunk: None } = d.mutate(empty(Some(third.handle), false)) else {
        panic!("it wants no other")
    };
    assert_eq!((attr.length, attr.count, attr.open), (0, 0, None));
    d.state.check();
}

#[test]
fn a_snapshot_is_never_changed() {
    let mut d = Driver::new();
    d.servers(&["r1", "r2", "r3"], |_| 0);
    d.mutate(create("/a/f", true));
    d.mutate(Mutation::Snapshot { path: b"/a".to_vec(), name: b"s".to_vec() });
    let file = d.state.stat(b"/a/.snapshot/s/f").unwrap().file;
    let inside = || b"/a/.snapshot/s/f".to_vec();
    let new = || b"/a/.snapshot/s/g".to_vec();
    let by = |change| Mutation::ByUser { user: 1, change };
    let refused = [
        create("/a/.snapshot/s/g", true),
        create("/a/.snapshot", false),
        Mutation::Mkdir { path: new(), parents: true, mode: 0, owner: Owner::default() },
        Mutation::Unlink { path: inside(), recursive: true, only: Only::Anything },
        Mutation::Unlink { path: b"/a/.snapshot".to_vec(), recursive: true, only: Only::Anything },
        Mutation::Rename { from: inside(), to: b"/g".to_vec(), replace: true },
        Mutation::Rename { from: b"/a/f".to_vec(), to: new(), replace: true },
        by(NameChange::Unlink { path: inside(), only: Only::Anything }),
        by(NameChange::Rename { from: inside(), to: b"/g".to_vec(), replace: true }),
        by(NameChange::Rename { from: b"/a/f".to_vec(), to: new(), replace: true }),
        by(NameChange::Exchange { a: b"/a/f".to_vec(), b: inside() }),
        Mutation::SetAttr {
            path: inside(),
            mode: Some(0),
            atime: SetTime::Keep,
            mtime: SetTime::Keep,
            uid: None,
            gid: None,
        },
        Mutation::Symlink { path: new(), target: b"x".to_vec(), parents: true, owner: Owner::default() },
        Mutation::Undelete { path: b"/x".to_vec(), to: new() },
        Mutation::CreateUnnamed { like: new(), chunk: false, near: String::new() },
        Mutation::Snapshot { path: b"/a/.snapshot/s".to_vec(), name: b"t".to_vec() },
        Mutation::AddChunk { file, index: 1, declare: None, near: String::new() },
        Mutation::AddHole { file, index: 1, length: 5 },
        Mutation::Truncate { file, length: 0 },
        Mutation::Empty { file, only: None, chunk: true, near: String::new() },
    ];
    let before = d.state.stat(b"/a/.snapshot/s/f");
    for mutation in refused {
        assert_eq!(code(&d.mutate(mutation.clone())), Some(Code::ReadOnly), "{mutation:?}");
    }
    assert_eq!(d.state.stat(b"/a/.snapshot/s/f"), before);
    let again = Mutation::Snapshot { path: b"/a".to_vec(), name: b"s".to_vec() };
    assert_eq!(code(&d.mutate(again)), Some(Code::Exists));
    for name in [&b""[..], b".", b"..", b".snapshot", b"a/b", &[b'x'; 256]] {
        let bad = Mutation::Snapshot { path: b"/a".to_vec(), name: name.to_vec() };
        assert_eq!(code(&d.mutate(bad)), Some(Code::BadName));
    }
    let onto_a_file = Mutation::Snapshot { path: b"/a/f".to_vec(), name: b"t".to_vec() };
    assert_eq!(code(&d.mutate(onto_a_file)), Some(Code::NotADirectory));
}
