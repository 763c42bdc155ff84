//! What programs that know POSIX expect of names, times and attributes. Random tests print their seed.

mod driver;

use common::wire::client_master::{
    Attr, ChunkInfo, FileKind, MasterReply, Mutation, NameChange, Only, Owner, Policy, Quota, Report,
    SNAPSHOT_DIR, SetTime,
};
use common::wire::path::{at, name_in};
use common::*;
use driver::{Driver, code, create};
use master_core::{Before, Command};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};

const ME: Owner = Owner { uid: 7, gid: 8 };

fn attr(reply: &MasterReply) -> Attr {
    match reply {
        MasterReply::Attr(attr) | MasterReply::Opened { attr, .. } => attr.clone(),
        other => panic!("no attributes: {other:?}"),
    }
}

fn chunk(reply: MasterReply) -> ChunkInfo {
    match reply {
        MasterReply::Chunk(info) => info,
        other => panic!("no chunk: {other:?}"),
    }
}

fn mkdir(path: &str) -> Mutation {
    Mutation::Mkdir { path: path.into(), parents: false, mode: 0o755, owner: ME }
}

fn link(from: &str, to: &str) -> Mutation {
    Mutation::Link { from: from.into(), to: to.into() }
}

fn unlink(path: &str) -> Mutation {
    Mutation::Unlink { path: path.into(), recursive: false, only: Only::Anything }
}

fn rename(from: &str, to: &str) -> Mutation {
    Mutation::Rename { from: from.into(), to: to.into(), replace: true }
}

fn times(path: &str, atime: SetTime, mtime: SetTime) -> Mutation {
    Mutation::SetAttr { path: path.into(), mode: None, atime, mtime, uid: None, gid: None }
}

/// Files and directories by number, and the names that lead to them.
#[derive(Default)]
struct Model {
    names: BTreeMap<String, FileId>,
    directories: BTreeSet<FileId>,
}

impl Model {
    fn children(&self, dir: &str) -> usize {
        self.names.keys().filter(|name| name.starts_with(&format!("{dir}/"))).count()
    }

    fn parent_is_there(&self, path: &str) -> bool {
        let parent = path.rsplit_once('/').expect("it begins at the root").0;
        parent.is_empty() || self.names.get(parent).is_some_and(|id| self.directories.contains(id))
    }

    fn links(&self, id: FileId) -> u32 {
        self.names.values().filter(|other| **other == id).count() as u32
    }

    fn move_tree(&mut self, from: &str, to: &str) {
        let inside = |name: &String| name == from || name.starts_with(&format!("{from}/"));
        let moved: Vec<(String, FileId)> =
            self.names.iter().filter(|(name, _)| inside(name)).map(|(n, id)| (n.clone(), *id)).collect();
        self.names.retain(|name, _| !inside(name));
        self.names.extend(moved.into_iter().map(|(name, id)| (format!("{to}{}", &name[from.len()..]), id)));
    }
}

/// The same path, told from a directory on its way.
fn from_an_inode(model: &Model, path: &str, rng: &mut StdRng) -> Vec<u8> {
    let cuts: Vec<usize> = path.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0).collect();
    let known: Vec<(usize, FileId)> =
        cuts.iter().filter_map(|at| Some((*at, *model.names.get(&path[..*at])?))).collect();
    if known.is_empty() || rng.random() {
        return path.into();
    }
    let (cut, id) = known[rng.random_range(0..known.len())];
    [at(id), path.as_bytes()[cut..].to_vec()].concat()
}

#[test]
fn names_are_those_of_a_plain_model() {
    for seed in 0..30 {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut d = Driver::new();
        let mut model = Model::default();
        let quota = Quota { entries: Some(1_000_000), bytes: None };
        d.mutate(Mutation::SetQuota { path: b"/".to_vec(), quota });
        for step in 0..500 {
            let draw = |rng: &mut StdRng| {
                let depth = rng.random_range(1..4);
                (0..depth).map(|_| ["/a", "/b", "/c"][rng.random_range(0..3)]).collect::<String>()
            };
            let (p, q) = (draw(&mut rng), draw(&mut rng));
            let (path, other) = (from_an_inode(&model, &p, &mut rng), from_an_inode(&model, &q, &mut rng));
            let (there, dir) = (model.names.get(&p).copied(), |id| model.directories.contains(&id));
            let (target, room) = (model.names.get(&q).copied(), model.parent_is_there(&q));
            let within = q == p || q.starts_with(&format!("{p}/"));
            let (what, works) = match rng.random_range(0..6) {
                0 => {
                    let reply = d.mutate(Mutation::Mkdir { path, parents: false, mode: 0o755, owner: ME });
                    let works = model.parent_is_there(&p) && there.is_none();
                    assert_eq!(code(&reply).is_none(), works, "mkdir {p}: {reply:?}");
                    if works {
                        model.directories.insert(attr(&reply).file);
                        model.names.insert(p.clone(), attr(&reply).file);
                    }
                    ("mkdir", works)
                }
                1 => {
                    let kind = FileKind::Fifo;
                    let reply =
                        d.mutate(Mutation::MakeSpecial { path, kind, device: 0, mode: 0o644, owner: ME });
                    let works = model.parent_is_there(&p) && there.is_none();
                    assert_eq!(code(&reply).is_none(), works, "make {p}: {reply:?}");
                    if works {
                        model.names.insert(p.clone(), attr(&reply).file);
                    }
                    ("make", works)
                }
                2 => {
                    let reply = d.mutate(Mutation::Link { from: path, to: other });
                    let works = there.is_some_and(|id| !dir(id)) && target.is_none() && room;
                    assert_eq!(code(&reply).is_none(), works, "link {p} {q}: {reply:?}");
                    if works {
                        model.names.insert(q.clone(), there.unwrap());
                    }
                    ("link", works)
                }
                3 => {
                    let only = [Only::Anything, Only::NoDirectory, Only::Directory][rng.random_range(0..3)];
                    let reply = d.mutate(Mutation::Unlink { path, recursive: false, only });
                    let fits = |id| match only {
                        Only::Anything => true,
                        Only::NoDirectory => !dir(id),
                        Only::Directory => dir(id),
                    };
                    let works = there.is_some_and(fits) && model.children(&p) == 0;
                    assert_eq!(code(&reply).is_none(), works, "unlink {p} {only:?}: {reply:?}");
                    if works {
                        model.names.remove(&p);
                    }
                    ("unlink", works)
                }
                4 => {
                    let reply = d.mutate(Mutation::Rename { from: path, to: other, replace: true });
                    let replaces = target.is_none_or(|to| match (there.is_some_and(dir), dir(to)) {
                        (true, true) => model.children(&q) == 0,
                        (false, false) => true,
                        _ => false,
                    });
                    let same = there.is_some() && there == target;
                    let into_itself = within && q != p && there.is_some_and(dir);
                    let works = there.is_some() && room && !into_itself && (same || replaces);
                    assert_eq!(code(&reply).is_none(), works, "rename {p} {q}: {reply:?}");
                    if works && !same {
                        model.names.remove(&q);
                        model.move_tree(&p, &q);
                    }
                    ("rename", works)
                }
                _ => {
                    let reply = d.mutate(Mutation::Exchange { a: path, b: other });
                    let nested = p != q && (within || p.starts_with(&format!("{q}/")));
                    let works = there.is_some() && target.is_some() && !nested;
                    assert_eq!(code(&reply).is_none(), works, "exchange {p} {q}: {reply:?}");
                    if works && p != q {
                        model.move_tree(&p, "/x");
                        model.move_tree(&q, &p);
                        model.move_tree("/x", &q);
                    }
                    ("exchange", works)
                }
            };
            if step % 50 == 0 || works {
                d.state.check();
            }
            for (name, id) in &model.names {
                let attr = d.state.stat(name.as_bytes()).unwrap_or_else(|e| panic!("{what}: {name}: {e}"));
                assert_eq!(attr.file, *id, "after {what} {p} {q}: {name}");
                assert_eq!(d.state.stat(&at(*id)).unwrap(), attr);
                if model.directories.contains(id) {
                    assert_eq!(attr.count as usize, children_of(&model, name), "{name}");
                } else {
                    assert_eq!(attr.links, model.links(*id), "{name}");
                }
            }
        }
        let read = d.reread();
        for (name, id) in &model.names {
            assert_eq!(read.stat(name.as_bytes()).unwrap(), d.state.attr(*id));
        }
    }
}

fn children_of(model: &Model, dir: &str) -> usize {
    let direct =
        |name: &&String| name.strip_prefix(&format!("{dir}/")).is_some_and(|rest| !rest.contains('/'));
    model.names.keys().filter(direct).count()
}

#[test]
fn a_path_begins_at_the_root_or_at_an_inode_that_is_there() {
    let mut d = Driver::new();
    let dir = attr(&d.mutate(mkdir("/d"))).file;
    let file = attr(&d.mutate(create("/d/f", false))).file;
    assert_eq!(d.state.stat(&name_in(dir, b"f")).unwrap().file, file);
    assert_eq!(d.state.stat(b"@f1").unwrap().file, FileId::ROOT);
    d.mutate(rename("/d", "/e"));
    assert_eq!(d.state.stat(&name_in(dir, b"f")).unwrap().file, file, "it goes with the directory");
    assert_eq!(d.state.stat(&name_in(file, b"x")).unwrap_err().code, Code::NotADirectory);
    assert_eq!(d.state.stat(b"@f99").unwrap_err().code, Code::NoSuchFileId);
    // Nothing is made in a directory that nobody finds any more; what is open can still be looked at.
    d.mutate(Mutation::Unlink { path: b"/e".to_vec(), recursive: true, only: Only::Anything });
    let made = d.mutate(Mutation::Mkdir { path: name_in(dir, b"x"), parents: false, mode: 0, owner: ME });
    assert_eq!(code(&made), Some(Code::NotFound));
    assert!(d.state.stat(&at(file)).is_ok());
    d.state.check();
}

#[test]
fn what_was_unlinked_by_an_inode_is_found_in_the_trash_by_its_path() {
    let mut d = Driver::new();
    let dir = attr(&d.mutate(mkdir("/d"))).file;
    let file = attr(&d.mutate(create("/d/f", false))).file;
    let deep = attr(&d.mutate(create("/d/e/f", false))).file;
    for path in [name_in(dir, b"f"), [at(dir), b"/e/f".to_vec()].concat()] {
        d.mutate(Mutation::Unlink { path, recursive: false, only: Only::Anything });
    }
    let paths: Vec<_> = d.state.list_trash((0, FileId(0)), 9).into_iter().map(|t| t.path).collect();
    assert_eq!(paths, [&b"/d/f"[..], b"/d/e/f"]);
    for (path, file) in [("/d/f", file), ("/d/e/f", deep)] {
        let to = format!("/back-{file}").into();
        assert_eq!(attr(&d.mutate(Mutation::Undelete { path: path.into(), to })).file, file);
    }
    d.state.check();
}

#[test]
fn a_snapshot_is_reached_by_inodes_too() {
    let mut d = Driver::new();
    let dir = attr(&d.mutate(mkdir("/d"))).file;
    let file = attr(&d.mutate(create("/d/f", false))).file;
    d.mutate(mkdir("/out"));
    d.mutate(create("/out/g", false));
    d.mutate(link("/out/g", "/d/g"));
    let taken = d.mutate(Mutation::Snapshot { path: b"/d".to_vec(), name: b"s".to_vec() });
    assert_eq!(code(&taken), None);
    let list = d.state.stat(&name_in(dir, SNAPSHOT_DIR)).unwrap().file;
    assert_ne!(list, dir, "the list of snapshots is no directory that is elsewhere");
    let seen = d.state.stat(&name_in(list, b"s")).unwrap().file;
    assert_eq!(d.state.stat(&name_in(seen, b"f")).unwrap().file.seen().1, file);
    for path in [name_in(seen, b"x"), name_in(list, b"x"), at(seen)] {
        let made = d.mutate(Mutation::Mkdir { path, parents: true, mode: 0, owner: ME });
        assert_eq!(code(&made), Some(Code::ReadOnly));
    }
    // A file that is named from outside, too, is in the snapshot all the same.
    d.mutate(unlink("/d/g"));
    d.mutate(unlink("/out/g"));
    assert!(d.state.stat(b"/d/.snapshot/s/g").is_ok());
    d.state.check();
}

#[test]
fn a_file_with_several_names_counts_where_one_of_them_is() {
    let mut d = Driver::new();
    d.servers(&["r1", "r2", "r3"], |_| 0);
    d.mutate(mkdir("/a"));
    d.mutate(mkdir("/b"));
    let file = attr(&d.mutate(create("/a/f", false))).file;
    d.mutate(Mutation::AddHole { file, index: 0, length: 1000 });
    d.mutate(link("/a/f", "/b/g"));
    let bytes = |d: &Driver, path: &[u8]| d.state.usage_of(path).unwrap().bytes;
    assert_eq!((bytes(&d, b"/a"), bytes(&d, b"/b"), bytes(&d, b"/")), (1000, 0, 1000));
    d.mutate(unlink("/a/f"));
    assert_eq!((bytes(&d, b"/a"), bytes(&d, b"/b"), bytes(&d, b"/")), (0, 1000, 1000));
    assert_eq!(d.state.stat(b"/b/g").unwrap().links, 1);
    assert!(d.state.list_trash((0, FileId(0)), 9).is_empty(), "it is not deleted");
    d.state.check();
}

#[test]
fn times_are_what_was_set_or_when_it_happened() {
    let mut d = Driver::new();
    d.mutate(create("/f", false));
    // The driver's clock always says 5.
    let seen = |d: &Driver| {
        let attr = d.state.stat(b"/f").unwrap();
        (attr.atime_ns, attr.mtime_ns, attr.ctime_ns)
    };
    assert_eq!(seen(&d), (5, 5, 5));
    d.mutate(times("/f", SetTime::Keep, SetTime::At(100)));
    assert_eq!(seen(&d), (5, 100, 5));
    d.mutate(times("/f", SetTime::At(-3), SetTime::Keep));
    assert_eq!(seen(&d), (-3, 100, 5));
    d.mutate(times("/f", SetTime::Now, SetTime::At(9)));
    assert_eq!(seen(&d), (5, 9, 5));
    d.mutate(times("/f", SetTime::At(9), SetTime::Keep));
    assert_eq!(seen(&d), (9, 9, 5));
}

#[test]
fn what_is_made_in_a_directory_that_hands_its_group_on_gets_that_group() {
    let mut d = Driver::new();
    d.mutate(mkdir("/d"));
    let mode = Some(0o2755);
    let (atime, mtime) = (SetTime::Keep, SetTime::Keep);
    d.mutate(Mutation::SetAttr { path: b"/d".to_vec(), mode, atime, mtime, uid: None, gid: Some(99) });
    d.mutate(mkdir("/d/e"));
    d.mutate(create("/d/e/f", false));
    let e = d.state.stat(b"/d/e").unwrap();
    assert_eq!((e.uid, e.gid, e.mode), (7, 99, 0o2755));
    let f = d.state.stat(b"/d/e/f").unwrap();
    assert_eq!((f.uid, f.gid, f.mode), (0, 99, 0o644));
}

#[test]
fn extended_attributes_are_bounded_and_kept_by_snapshots() {
    let mut d = Driver::new();
    d.mutate(mkdir("/d"));
    let set = |name: &str, value: Option<Vec<u8>>, there| Mutation::SetXattr {
        path: b"/d".to_vec(),
        name: name.into(),
        value,
        there,
    };
    assert_eq!(code(&d.mutate(set("user.a", None, None))), Some(Code::NoSuchAttribute));
    assert_eq!(code(&d.mutate(set("user.a", Some(vec![1]), Some(true)))), Some(Code::NoSuchAttribute));
    assert_eq!(code(&d.mutate(set("user.a", Some(vec![1]), Some(false)))), None);
    assert_eq!(code(&d.mutate(set("user.a", Some(vec![2]), Some(false)))), Some(Code::Exists));
    d.mutate(Mutation::Snapshot { path: b"/d".to_vec(), name: b"s".to_vec() });
    assert_eq!(code(&d.mutate(set("user.a", Some(vec![2]), Some(true)))), None);
    let big = vec![0; common::limits::XATTR_BYTES_MAX - 12];
    assert_eq!(code(&d.mutate(set("user.b", Some(big.clone()), None))), Some(Code::AttributesTooBig));
    assert_eq!(code(&d.mutate(set("user.a", Some(big), None))), None);
    assert_eq!(code(&d.mutate(set("user.a", Some(vec![3]), None))), None);
    assert_eq!(d.state.xattrs(b"/d").unwrap(), vec![(b"user.a".to_vec(), vec![3])]);
    assert_eq!(d.state.xattrs(b"/d/.snapshot/s").unwrap(), vec![(b"user.a".to_vec(), vec![1])]);
    let read = d.reread();
    assert_eq!(read.xattrs(b"/d").unwrap(), vec![(b"user.a".to_vec(), vec![3])]);
    assert_eq!(read.xattrs(b"/d/.snapshot/s").unwrap(), vec![(b"user.a".to_vec(), vec![1])]);
}

#[test]
fn who_looks_into_a_directory_is_told_what_a_look_at_each_entry_tells() {
    let mut d = Driver::new();
    d.servers(&["a", "b", "c"], |_| 0);
    d.mutate(mkdir("/d"));
    d.mutate(mkdir("/d/a"));
    d.mutate(create("/d/b", true));
    d.mutate(create("/d/c", false));
    let (path, name, value) = (b"/d/c".to_vec(), b"user.a".to_vec(), Some(vec![1]));
    d.mutate(Mutation::SetXattr { path, name, value, there: None });
    d.mutate(Mutation::Snapshot { path: b"/d".to_vec(), name: b"s".to_vec() });
    for (dir, live) in [("/d", true), ("/d/.snapshot/s", false)] {
        let page = |after: &[u8], limit| match d.state.look_in(dir.as_bytes(), after, limit).unwrap() {
            MasterReply::Looked { entries, more } => (entries, more),
            other => panic!("{other:?}"),
        };
        let (entries, more) = page(b"", 2);
        assert!(more && !page(b"b", 2).1);
        for entry in entries.into_iter().chain(page(b"b", 2).0) {
            let path = [dir.as_bytes(), b"/", &entry.name].concat();
            let MasterReply::Opened { attr, chunk } = d.state.look(&path).unwrap() else { panic!() };
            assert_eq!((&entry.attr, &entry.chunk), (&attr, &chunk), "{path:?}");
            assert_eq!(entry.chunk.is_some(), live && entry.name == b"b");
            assert_eq!(entry.has_xattrs, entry.name == b"c");
        }
    }
    assert_eq!(d.state.look_in(b"/d/b", b"", 1).unwrap_err().code, Code::NotADirectory);
}

#[test]
fn a_hole_is_filled_where_it_is_written_to() {
    const MIB: u64 = 1024 * 1024;
    let mut d = Driver::new();
    d.servers(&["r1", "r2", "r3"], |_| 0);
    let file = attr(&d.mutate(create("/f", false))).file;
    d.mutate(Mutation::Truncate { file, length: 200 * MIB + 5 });
    let fill = |offset| Mutation::FillHole { file, offset, near: String::new() };
    let info = chunk(d.mutate(fill(100 * MIB)));
    assert_eq!((info.index, info.start, info.length), (1, 64 * MIB, 64 * MIB));
    assert_eq!(chunk(d.mutate(fill(64 * MIB))), info, "it is there by now");
    let last = chunk(d.mutate(fill(200 * MIB)));
    assert_eq!((last.index, last.start, last.length), (3, 192 * MIB, 8 * MIB + 5));
    assert_eq!(code(&d.mutate(fill(200 * MIB + 5))), Some(Code::BeyondEnd));
    let first = chunk(d.mutate(fill(0)));
    assert_eq!((first.index, first.start, first.length), (0, 0, 64 * MIB));
    let MasterReply::Layout { chunks, .. } = d.state.layout(file, 0, 100).unwrap() else { panic!() };
    let lengths: Vec<u64> = chunks.iter().map(|c| c.length / MIB).collect();
    assert_eq!(lengths, [64, 64, 64, 8]);
    assert_eq!(d.state.stat(b"/f").unwrap().length, 200 * MIB + 5);
    d.state.check();
}

#[test]
fn reports_may_come_after_anything() {
    let mut d = Driver::new();
    d.servers(&["r1", "r2", "r3"], |_| 0);
    let opened = |path: &str, d: &mut Driver| match d.mutate(create(path, true)) {
        MasterReply::Opened { attr, chunk } => (attr.file, chunk.expect("it was wanted").config.handle),
        other => panic!("{other:?}"),
    };
    let ((a, in_a), (b, in_b), (cut, in_cut)) =
        (opened("/a", &mut d), opened("/b", &mut d), opened("/cut", &mut d));
    let set = SetTime::At(5);
    let set =
        Mutation::SetAttr { path: at(b), mode: None, atime: SetTime::Keep, mtime: set, uid: None, gid: None };
    assert_eq!(attr(&d.mutate(set)).mtime_ns, 5);
    d.apply(Command::Seal { handle: in_cut, epoch: Epoch::first(0), length: 50 });
    assert_eq!(code(&d.mutate(Mutation::Truncate { file: cut, length: 10 })), None);
    let report = |file, handle, length, mtime_ns| Report { file, open: Some((handle, length)), mtime_ns };
    let files = vec![
        report(cut, in_cut, 100, Some(7)),
        report(FileId(999), in_a, 100, Some(7)),
        report(a, in_a, 100, Some(7)),
        report(b, in_b, 200, None),
    ];
    assert_eq!(d.mutate(Mutation::Written { files }), MasterReply::Done);
    let seen = |path: &[u8]| d.state.stat(path).map(|attr| (attr.length, attr.mtime_ns)).unwrap();
    assert_eq!(seen(b"/a"), (100, 7));
    assert_eq!(seen(b"/b"), (200, 5), "the time was set since");
    assert_eq!(seen(b"/cut").0, 10, "it was cut since");
    let MasterReply::Opened { chunk: Some(chunk), .. } = d.state.look(b"/a").unwrap() else { panic!() };
    assert_eq!((chunk.config.handle, chunk.length, chunk.start), (in_a, 100, 0));
    d.state.check();
}

#[test]
fn who_has_a_file_open_keeps_it_though_it_has_no_name() {
    let mut d = Driver::new();
    let expire = |d: &mut Driver, before: u64| {
        let clock = d.state.clock_ns();
        d.apply(Command::Expire {
            before: Before { trash_ns: clock - before, open_ns: clock - before, ..Default::default() },
            budget: 100,
        });
    };
    let replaced = attr(&d.mutate(create("/old", false))).file;
    d.mutate(create("/new", false));
    d.mutate(rename("/new", "/old"));
    let unlinked = attr(&d.mutate(create("/f", false))).file;
    d.mutate(unlink("/f"));
    assert_eq!(d.state.nameless(&[replaced, unlinked, FileId(99), FileId::ROOT]), [replaced, unlinked]);
    // What lies in the trash is brought back from there, and not named by its number.
    d.mutate(Mutation::Hold { files: vec![unlinked] });
    let named = d.mutate(Mutation::Link { from: at(unlinked), to: b"/again".to_vec() });
    assert_eq!(code(&named), Some(Code::NotFound));
    for _ in 0..10 {
        d.mutate(Mutation::Hold { files: vec![replaced, unlinked] });
        expire(&mut d, 5000);
        assert!(d.state.stat(&at(replaced)).is_ok() && d.state.stat(&at(unlinked)).is_ok());
        d.state.check();
    }
    // Nobody asks for them any more.
    for _ in 0..10 {
        d.mutate(create(&format!("/{}", d.log.len()), false));
    }
    for _ in 0..3 {
        expire(&mut d, 5000);
    }
    assert_eq!(d.state.nameless(&[replaced, unlinked]), []);
    d.state.check();
}

#[test]
fn what_nobody_asks_for_gives_its_room_back_soon() {
    let mut d = Driver::new();
    // The log has been there for longer than any of this takes.
    let began = 2 * limits::NAMELESS_MS;
    d.ahead_ns = began * 1_000_000;
    let mut replaced = |path: &str| {
        let file = attr(&d.mutate(create(path, false))).file;
        d.mutate(create("/new", false));
        d.mutate(rename("/new", path));
        file
    };
    let files = [replaced("/open"), replaced("/closed")];
    d.mutate(Mutation::Hold { files: vec![files[0]] });
    // As the steward asks for it.
    let mut after = |ms: u64| {
        d.ahead_ns = (began + ms) * 1_000_000;
        d.mutate(create("/tick", false));
        let before = Before {
            open_ns: d.state.clock_ns().saturating_sub(limits::NAMELESS_MS * 1_000_000),
            ..Default::default()
        };
        d.apply(Command::Expire { before, budget: 100 });
        d.state.check();
        d.state.nameless(&files)
    };
    assert_eq!(after(limits::UNHELD_MS - 1000), files);
    assert_eq!(after(limits::UNHELD_MS + 1000), [files[0]]);
    assert_eq!(after(limits::NAMELESS_MS - 1000), [files[0]]);
    assert_eq!(after(limits::NAMELESS_MS + 1000), []);
}

#[test]
fn where_there_is_no_trash_what_is_deleted_goes_when_nobody_has_it_open() {
    let mut d = Driver::new();
    d.mutate(Mutation::Mkdir {
        path: b"/tmp".to_vec(),
        parents: false,
        mode: 0o755,
        owner: Owner::default(),
    });
    d.mutate(Mutation::SetPolicy {
        path: b"/tmp".to_vec(),
        policy: Policy { trash: Some(false), ..Default::default() },
    });
    let before = d.state.counts().0;
    let open = attr(&d.mutate(create("/tmp/d/open", false))).file;
    d.mutate(create("/tmp/f", false));
    d.mutate(unlink("/tmp/d/open"));
    d.mutate(unlink("/tmp/f"));
    d.mutate(Mutation::Unlink { path: b"/tmp/d".to_vec(), recursive: true, only: Only::Anything });
    assert_eq!(d.state.list_trash((0, FileId(0)), 10), []);
    let since = d.state.clock_ns();
    d.mutate(Mutation::Hold { files: vec![open] });
    let go = |d: &mut Driver, open_ns| {
        d.apply(Command::Expire { before: Before { open_ns, ..Default::default() }, budget: 100 });
    };
    go(&mut d, since + 1);
    assert!(d.state.stat(&at(open)).is_ok(), "somebody has it open");
    assert_eq!(d.state.counts().0, before + 1, "the rest is gone");
    go(&mut d, u64::MAX);
    assert_eq!(d.state.counts().0, before);
    d.state.check();
    d.reread();
}

/// Everybody whose a directory and what is in it can be, and everybody who takes it away, in each way.
#[test]
fn who_takes_what_away_from_a_directory_with_the_sticky_bit() {
    const ROOT: u32 = 0;
    let users = [ROOT, 1, 2];
    for (sticky, dir, of, by) in users
        .into_iter()
        .flat_map(|dir| users.into_iter().flat_map(move |of| users.into_iter().map(move |by| (dir, of, by))))
        .flat_map(|(dir, of, by)| [(false, dir, of, by), (true, dir, of, by)])
    {
        let changes = |d: &mut Driver| {
            let owned = |uid| Owner { uid, gid: 0 };
            let mode = if sticky { 0o1777 } else { 0o777 };
            d.mutate(Mutation::Mkdir { path: b"/d".into(), parents: false, mode, owner: owned(dir) });
            d.mutate(Mutation::Mkdir { path: b"/free".into(), parents: false, mode: 0o777, owner: ME });
            let make = |path: &str, uid| Mutation::MakeSpecial {
                path: path.into(),
                kind: FileKind::Fifo,
                device: 0,
                mode: 0o600,
                owner: owned(uid),
            };
            for (path, uid) in [("/d/his", of), ("/d/by", by), ("/free/by", by)] {
                d.mutate(make(path, uid));
            }
            let (his, out) = (b"/d/his".to_vec(), b"/free/out".to_vec());
            let (near, far) = (b"/d/by".to_vec(), b"/free/by".to_vec());
            [
                NameChange::Unlink { path: his.clone(), only: Only::NoDirectory },
                NameChange::Rename { from: his.clone(), to: out, replace: true },
                NameChange::Rename { from: near, to: his.clone(), replace: true },
                NameChange::Rename { from: far.clone(), to: his.clone(), replace: true },
                NameChange::Exchange { a: his.clone(), b: far.clone() },
                NameChange::Exchange { a: far, b: his },
            ]
        };
        let may = !sticky || dir == by || of == by;
        for n in 0..6 {
            let mut d = Driver::new();
            let change = changes(&mut d)[n].clone();
            let before = d.state.stat(b"/d/his").unwrap();
            let refused = code(&d.mutate(Mutation::ByUser { user: by, change: change.clone() }));
            assert_eq!(refused, (!may).then_some(Code::NotYours), "{sticky} {dir} {of} {by}: {change:?}");
            let is_there = d.state.stat(b"/d/his").is_ok_and(|now| now.file == before.file);
            assert_eq!(is_there, !may, "{sticky} {dir} {of} {by}: {change:?}");
            d.state.check();
        }
    }
}
