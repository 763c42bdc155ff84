//! The metadata against a model, and what placement promises. Random tests print their seed.

mod driver;

use common::wire::client_master::{MasterReply, Mutation, Only, Owner, Policy, Quota};
use common::*;
use driver::{CAPACITY, Driver, code, create, image, register};
use master_core::placement::{SCATTER_WIDTH, Wish, place};
use master_core::{Before, CROWDED_PER_MILLE, Command, Metadata, Reply};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;

/// A tree of names: what a path is, if anything: a directory or a file.
type Model = BTreeMap<Vec<String>, bool>;

fn names(path: &str) -> Vec<String> {
    path.split('/').filter(|n| !n.is_empty()).map(str::to_owned).collect()
}

#[test]
fn the_name_space_is_that_of_a_plain_model() {
    for seed in 0..30 {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut d = Driver::new();
        let mut model = Model::from([(vec![], true)]);
        for _ in 0..400 {
            let path = |rng: &mut StdRng| {
                let depth = rng.random_range(1..4);
                (0..depth)
                    .map(|_| format!("/{}", ["a", "b", "c"][rng.random_range(0..3)]))
                    .collect::<String>()
            };
            let p = path(&mut rng);
            let key = names(&p);
            let parent_is_dir = model.get(&key[..key.len() - 1]) == Some(&true);
            match rng.random_range(0..4) {
                0 => {
                    let reply = d.mutate(Mutation::Mkdir {
                        path: p.clone().into(),
                        parents: false,
                        mode: 0o755,
                        owner: Owner::default(),
                    });
                    let works = parent_is_dir && !model.contains_key(&key);
                    assert_eq!(code(&reply).is_none(), works, "mkdir {p}: {reply:?}");
                    if works {
                        model.insert(key, true);
                    }
                }
                1 => {
                    let mutation = Mutation::Create {
                        path: p.clone().into(),
                        mode: 0o644,
                        owner: Owner::default(),
                        exclusive: true,
                        parents: false,
                        chunk: false,
                        near: String::new(),
                    };
                    let reply = d.mutate(mutation);
                    let works = parent_is_dir && !model.contains_key(&key);
                    assert_eq!(code(&reply).is_none(), works, "create {p}: {reply:?}");
                    if works {
                        model.insert(key, false);
                    }
                }
                2 => {
                    let reply = d.mutate(Mutation::Unlink {
                        path: p.clone().into(),
                        recursive: true,
                        only: Only::Anything,
                    });
                    let works = model.contains_key(&key);
                    assert_eq!(code(&reply).is_none(), works, "unlink {p}: {reply:?}");
                    model.retain(|k, _| !k.starts_with(&key));
                }
                _ => {
                    let q = path(&mut rng);
                    let to = names(&q);
                    let reply = d.mutate(Mutation::Rename {
                        from: p.clone().into(),
                        to: q.clone().into(),
                        replace: true,
                    });
                    let from_kind = model.get(&key).copied();
                    let to_kind = model.get(&to).copied();
                    let to_parent = model.get(&to[..to.len() - 1]) == Some(&true);
                    let to_empty = model.keys().filter(|k| k.starts_with(&to)).count() <= 1;
                    let into_itself = to.len() > key.len() && to.starts_with(&key);
                    let works = from_kind.is_some()
                        && to_parent
                        && !into_itself
                        && (key == to
                            || match (from_kind, to_kind) {
                                (_, None) => true,
                                (Some(a), Some(b)) => a == b && (!b || to_empty),
                                _ => false,
                            });
                    assert_eq!(code(&reply).is_none(), works, "mv {p} {q}: {reply:?}");
                    if works && key != to {
                        model.retain(|k, _| !k.starts_with(&to));
                        let moved: Vec<_> = model.keys().filter(|k| k.starts_with(&key)).cloned().collect();
                        for old in moved {
                            let kind = model.remove(&old).unwrap();
                            let new = [to.clone(), old[key.len()..].to_vec()].concat();
                            model.insert(new, kind);
                        }
                    }
                }
            }
            d.state.check();
        }
        for (key, is_dir) in &model {
            let path = format!("/{}", key.join("/"));
            let attr = d.state.stat(path.as_bytes()).expect("the model has it");
            assert_eq!(attr.kind == common::wire::client_master::FileKind::Directory, *is_dir);
        }
    }
}

#[test]
fn the_same_log_gives_the_same_state_through_a_snapshot_too() {
    let mut d = Driver::new();
    d.servers(&["r1", "r2", "r3", "r1"], |_| 0);
    for i in 0..700 {
        d.mutate(create(&format!("/d{}/f{i}", i % 7), true));
        if i % 5 == 0 {
            d.mutate(Mutation::Unlink {
                path: format!("/d{}/f{i}", i % 7).into(),
                recursive: false,
                only: Only::Anything,
            });
        }
        if i % 50 == 0 {
            d.apply(Command::Expire {
                before: Before { trash_ns: u64::MAX, ..Default::default() },
                budget: 100,
            });
        }
    }
    let mut again = Metadata::new();
    for (i, entry) in d.log.iter().enumerate() {
        again.apply(entry);
        if i == d.log.len() / 2 {
            let parts = image(&again);
            again = Metadata::decode(parts.iter().map(|p| p.as_slice())).expect("what was encoded decodes");
        }
    }
    again.check();
    assert_eq!(image(&again), image(&d.state));
    assert_eq!(again.fixed_digest(), d.state.fixed_digest());
}

#[test]
fn a_damaged_snapshot_is_refused_or_read_but_never_a_panic() {
    let mut d = Driver::new();
    d.servers(&["r1", "r2", "r3"], |_| 0);
    d.mutate(create("/a", true));
    let parts = image(&d.state);
    let mut rng = StdRng::seed_from_u64(3);
    for _ in 0..5000 {
        let mut damaged = parts.clone();
        let p = rng.random_range(0..damaged.len());
        let at = rng.random_range(0..damaged[p].len());
        damaged[p][at] = rng.random();
        let _ = Metadata::decode(damaged.iter().map(|p| p.as_slice()));
    }
}

#[test]
fn a_mutation_is_carried_out_once() {
    let mut d = Driver::new();
    let request = RequestId { client: ClientId(9), seq: 1 };
    let mutate = |lowest| Command::Mutate { request, lowest, mutation: create("/x", false) };
    let first = d.apply(mutate(1));
    let again = d.apply(mutate(1));
    assert_eq!(first, again);
    assert!(matches!(first, Reply::Master(MasterReply::Opened { .. })));
    let next = RequestId { seq: 2, ..request };
    d.apply(Command::Mutate { request: next, lowest: 2, mutation: create("/y", false) });
    let Reply::Master(late) = d.apply(mutate(1)) else { panic!() };
    assert_eq!(code(&late), Some(Code::OutsideWindow));
    let stranger = RequestId { client: ClientId(10), seq: 7 };
    let Reply::Master(late) =
        d.apply(Command::Mutate { request: stranger, lowest: 7, mutation: create("/z", false) })
    else {
        panic!()
    };
    assert_eq!(code(&late), Some(Code::ClientEnded));
}

#[test]
fn ten_thousand_allocations_narrow_the_spread_and_keep_the_racks_apart() {
    let racks = ["r1", "r1", "r1", "r1", "r2", "r2", "r2", "r2", "r3", "r3", "r3", "r3"];
    let mut d = Driver::new();
    let start = |n: usize| (n as u64 % 4) * CAPACITY / 10;
    d.servers(&racks, start);
    let mut used: Vec<u64> = (0..racks.len()).map(start).collect();
    let spread = |used: &[u64]| {
        let share = |u: &u64| *u as f64 * 100.0 / CAPACITY as f64;
        let (min, max) = (used.iter().min().unwrap(), used.iter().max().unwrap());
        share(max) - share(min)
    };
    let before = spread(&used);
    println!("allocation  least full  fullest  (percent of capacity)");
    for i in 0..10_000u64 {
        let MasterReply::Opened { chunk: Some(chunk), .. } =
            d.mutate(create(&format!("/{}/{i}", i % 100), true))
        else {
            panic!()
        };
        let members = &chunk.config.members;
        let mut of: Vec<&str> = members.iter().map(|m| racks[m.0 as usize - 1]).collect();
        of.sort_unstable();
        assert_eq!(of, ["r1", "r2", "r3"], "allocation {i}");
        for m in members {
            used[m.0 as usize - 1] += limits::CHUNK_BYTES_MAX;
        }
        if i % 50 == 49 {
            let stores = used.iter().zip(1..).map(|(u, n)| (StoreId(n), CAPACITY, *u)).collect();
            d.apply(Command::Usage { stores });
        }
        if i % 1000 == 999 {
            let share = |u: &u64| *u as f64 * 100.0 / CAPACITY as f64;
            println!(
                "{:>10}  {:>9.1}%  {:>6.1}%",
                i + 1,
                share(used.iter().min().unwrap()),
                share(used.iter().max().unwrap())
            );
        }
    }
    let after = spread(&used);
    println!("spread before {before:.1} points, after {after:.1}");
    assert!(after < before / 2.0, "{before} -> {after}");
}

#[test]
fn placement_keeps_its_hard_rules() {
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let n = rng.random_range(1..30);
        let racks = rng.random_range(1..8);
        let mut d = Driver::new();
        for i in 0..n {
            let mut r =
                register(i, &format!("r{}", rng.random_range(0..racks)), rng.random_range(0..CAPACITY));
            // Some servers have two stores.
            r.server_uuid = (i / 2 + 1) as u128;
            d.apply(Command::Register(r));
            if rng.random_bool(0.2) {
                let id = StoreId(i as u32 + 1);
                let session = d.state.store(id).unwrap().session().unwrap();
                d.apply(Command::StoreDown { store: id, session });
            }
        }
        let replicas = rng.random_range(1..6);
        let wish = Wish { replicas, chunk_bytes: 1 << 26, label: "", near: "r1", salt: seed };
        let chosen = place(&d.state, &wish);
        let store = |id: &StoreId| d.state.store(*id).unwrap();
        let usable: Vec<_> = d
            .state
            .all_stores()
            .filter(|(_, s)| {
                s.session().is_some()
                    && s.permille() < 950
                    && s.register.capacity - s.register.used >= 2 << 26
            })
            .collect();
        let mut servers: Vec<_> = chosen.iter().map(|c| store(c).server).collect();
        let mut of: Vec<_> = chosen.iter().map(|c| store(c).register.rack.clone()).collect();
        let first = of.first().cloned();
        servers.sort();
        servers.dedup();
        assert_eq!(servers.len(), chosen.len(), "seed {seed}: a server twice");
        assert!(
            chosen.iter().all(|c| usable.iter().any(|(id, _)| id == c)),
            "seed {seed}: an unusable store"
        );
        of.sort();
        of.dedup();
        let mut there: Vec<_> = usable.iter().map(|(_, s)| s.register.rack.clone()).collect();
        there.sort();
        there.dedup();
        // Servers with stores on two racks may take one rack away from another.
        assert!(of.len() + 1 >= chosen.len().min(there.len()), "seed {seed}: {of:?} of {there:?}");
        if of.contains(&"r1".to_string()) {
            assert_eq!(first.as_deref(), Some("r1"), "seed {seed}: the primary is not the closest");
        }
    }
}

#[test]
fn the_scatter_of_a_store_is_bounded() {
    let racks: Vec<String> = (0..90).map(|i| format!("r{}", i % 3)).collect();
    let mut d = Driver::new();
    d.servers(&racks.iter().map(|r| r.as_str()).collect::<Vec<_>>(), |_| 0);
    for i in 0..3000 {
        d.mutate(create(&format!("/{i}"), true));
    }
    let widest = (1..=90).map(|n| d.state.scatter(StoreId(n))).max().unwrap();
    println!("widest scatter {widest} (width {SCATTER_WIDTH})");
    assert!(widest <= SCATTER_WIDTH + 2, "{widest}");
}

#[test]
fn a_chunk_is_never_reduced_below_the_floor() {
    let mut d = Driver::new();
    d.servers(&["r1", "r2", "r3"], |_| 0);
    let MasterReply::Opened { chunk: Some(chunk), .. } = d.mutate(create("/f", true)) else { panic!() };
    let config = chunk.config;
    let down = |d: &mut Driver, id: StoreId| {
        let session = d.state.store(id).unwrap().session().unwrap();
        d.apply(Command::StoreDown { store: id, session });
    };
    let (handle, first) = (config.handle, config.members[0]);
    down(&mut d, first);
    let Reply::Store(common::wire::chunk_master::StoreReply::Config(two)) =
        d.apply(Command::Reconfigure { handle, epoch: config.epoch, remove: vec![first], primary: None })
    else {
        panic!()
    };
    assert_eq!(two.members.len(), 2);
    assert!(two.epoch > config.epoch);
    down(&mut d, two.members[1]);
    let reply = d.apply(Command::Reconfigure {
        handle,
        epoch: two.epoch,
        remove: vec![two.members[1]],
        primary: None,
    });
    assert!(
        matches!(reply, Reply::Store(common::wire::chunk_master::StoreReply::Refused { ref refusal, .. }) if refusal.code == Code::Frozen),
        "{reply:?}"
    );
    assert_eq!(d.state.config(handle).unwrap().epoch, two.epoch, "frozen: nothing changed");
}

#[test]
fn a_removed_member_is_waited_for_until_it_confirms_or_its_session_ends() {
    let mut d = Driver::new();
    d.servers(&["r1", "r2", "r3"], |_| 0);
    let MasterReply::Opened { chunk: Some(chunk), .. } = d.mutate(create("/f", true)) else { panic!() };
    let config = chunk.config;
    let gone = config.members[2];
    let session = d.state.store(gone).unwrap().session().unwrap();
    d.apply(Command::Reconfigure {
        handle: config.handle,
        epoch: config.epoch,
        remove: vec![gone],
        primary: None,
    });
    assert_eq!(d.state.removed_from(config.handle), vec![(gone, session)]);
    let (orders, all) = d.state.orders_for(gone, 10);
    assert!(all && orders.len() == 1);
    d.apply(Command::Confirmed { store: gone, session, orders });
    assert!(d.state.removed_from(config.handle).is_empty());
    let second = d.state.config(config.handle).unwrap();
    assert_eq!(second.members.len(), 2);
}

#[test]
fn policies_are_inherited_downwards() {
    let mut d = Driver::new();
    d.mutate(Mutation::Mkdir { path: b"/a/b".to_vec(), parents: true, mode: 0o755, owner: Owner::default() });
    let set = |replication, chunk_bytes| Policy { replication, chunk_bytes, ..Policy::default() };
    d.mutate(Mutation::SetPolicy { path: b"/".to_vec(), policy: set(Some(2), None) });
    d.mutate(Mutation::SetPolicy { path: b"/a".to_vec(), policy: set(None, Some(1 << 20)) });
    let policy = d.state.policy_at(b"/a/b/c").unwrap();
    assert_eq!((policy.replication, policy.chunk_bytes), (Some(2), Some(1 << 20)));
    let bad = d.mutate(Mutation::SetPolicy { path: b"/".to_vec(), policy: set(Some(6), None) });
    assert_eq!(code(&bad), Some(Code::BadArgument));
}

#[test]
fn deletion_is_ordered_of_every_member_until_it_confirms() {
    let mut d = Driver::new();
    d.servers(&["r1", "r2", "r3"], |_| 0);
    let MasterReply::Opened { chunk: Some(chunk), .. } = d.mutate(create("/f", true)) else { panic!() };
    d.mutate(Mutation::Unlink { path: b"/f".to_vec(), recursive: false, only: Only::Anything });
    let expire = |d: &mut Driver| {
        d.apply(Command::Expire { before: Before { trash_ns: u64::MAX, ..Default::default() }, budget: 10 })
    };
    expire(&mut d);
    for member in chunk.config.members {
        let (orders, _) = d.state.orders_for(member, 10);
        assert_eq!(orders.len(), 1);
        assert_eq!(orders[0].epoch, Epoch::DELETED);
        let session = d.state.store(member).unwrap().session().unwrap();
        d.apply(Command::Confirmed { store: member, session, orders });
        assert!(d.state.orders_for(member, 10).0.is_empty());
    }
}

#[test]
fn many_deletions_do_not_hold_up_a_session_and_removals_come_first() {
    let mut d = Driver::new();
    d.servers(&["r1", "r2", "r3"], |_| 0);
    let MasterReply::Opened { chunk: Some(kept), .. } = d.mutate(create("/kept", true)) else { panic!() };
    for i in 0..300 {
        d.mutate(create(&format!("/{i}"), true));
        d.mutate(Mutation::Unlink { path: format!("/{i}").into(), recursive: false, only: Only::Anything });
    }
    for _ in 0..10 {
        d.apply(Command::Expire { before: Before { trash_ns: u64::MAX, ..Default::default() }, budget: 100 });
    }
    let gone = kept.config.members[1];
    d.apply(Command::Reconfigure {
        handle: kept.config.handle,
        epoch: kept.config.epoch,
        remove: vec![gone],
        primary: None,
    });
    let (orders, all_removals) = d.state.orders_for(gone, 100);
    assert_eq!(orders.len(), 100);
    assert!(all_removals, "deletions may wait, removals may not");
    assert_eq!(orders[0].handle, kept.config.handle);
}

/// Deleted in another order than made, and with long names: pages lose nothing, and fit a frame.
#[test]
fn the_trash_is_listed_page_by_page_in_the_order_of_deletion() {
    let mut d = Driver::new();
    let count = 3000;
    let deep = "/d".repeat(1000);
    for n in 1..=1000 {
        d.mutate(Mutation::Mkdir {
            path: "/d".repeat(n).into(),
            mode: 0o755,
            parents: false,
            owner: Owner::default(),
        });
    }
    for i in 0..count {
        d.mutate(create(&format!("{deep}/{i}"), false));
    }
    let mut deleted = vec![];
    for i in (0..count).rev() {
        let path = format!("{deep}/{i}").into_bytes();
        d.mutate(Mutation::Unlink { path: path.clone(), recursive: false, only: Only::Anything });
        deleted.push(path);
    }
    let (mut listed, mut after, mut pages) = (vec![], (0, FileId(0)), 0);
    loop {
        let page = d.state.list_trash(after, 4096);
        let Some(last) = page.last() else { break };
        after = last.key();
        pages += 1;
        let reply = MasterReply::Trash(page.clone());
        assert!(common::wire::to_vec(&reply).len() < common::wire::frame::Kind::MasterReply.body_bytes_max());
        listed.extend(page.into_iter().map(|t| t.path));
    }
    assert!(pages > 1);
    assert_eq!(listed, deleted);
}

#[test]
fn an_emptied_trash_gives_nothing_back_and_what_comes_later_stays() {
    let mut d = Driver::new();
    let delete = |d: &mut Driver, path: &str| {
        d.mutate(create(path, false));
        d.mutate(Mutation::Unlink { path: path.into(), recursive: false, only: Only::Anything });
    };
    let undelete = |d: &mut Driver, path: &str| {
        code(&d.mutate(Mutation::Undelete { path: path.into(), to: path.into() }))
    };
    (0..3).for_each(|i| delete(&mut d, &format!("/{i}")));
    let before = d.state.counts().0;
    d.mutate(Mutation::EmptyTrash { before_ns: u64::MAX });
    delete(&mut d, "/later");
    assert_eq!(undelete(&mut d, "/1"), Some(Code::NotInTrash));
    let listed: Vec<_> = d.state.list_trash((0, FileId(0)), 10).into_iter().map(|t| t.path).collect();
    assert_eq!(listed, [b"/later".to_vec()]);
    assert!(d.state.has_expired(&Before::default()));
    d.apply(Command::Expire { before: Before::default(), budget: 100 });
    assert!(!d.state.has_expired(&Before::default()));
    assert_eq!(d.state.counts().0, before + 1 - 3, "the three are gone, the later one is not");
    assert_eq!(undelete(&mut d, "/later"), None);
    d.state.check();
}

fn layout_of(d: &Driver, file: FileId) -> Vec<ChunkHandle> {
    let Ok(MasterReply::Layout { chunks, .. }) = d.state.layout(file, 0, 100) else { return vec![] };
    chunks.into_iter().map(|chunk| chunk.config.handle).collect()
}

/// What a directory holds is what is below it - `check` counts - and quotas are never overrun by more
/// than the last chunks, whatever happens; a copy that was made of an image goes on the same.
#[test]
fn quotas_hold_under_any_changes() {
    let seed: u64 = rand::random();
    println!("SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut d = Driver::new();
    d.servers(&["r1", "r2", "r3"], |_| 0);
    let (max_entries, max_bytes) = (12, 40_000);
    for dir in ["/a", "/a/b", "/a/c", "/e"] {
        d.mutate(Mutation::Mkdir { path: dir.into(), parents: true, mode: 0o755, owner: Owner::default() });
    }
    let quota = Quota { entries: Some(max_entries), bytes: Some(max_bytes) };
    d.mutate(Mutation::SetQuota { path: b"/a".to_vec(), quota });
    let (mut refused, mut done) = (0, 0);
    for _ in 0..3000 {
        let dirs = ["/a", "/a/b", "/a/c", "/a/b/d", "/e", "/e/d"];
        let mut path =
            || format!("{}/{}", dirs[rng.random_range(0..dirs.len())], rng.random_range(0..5)).into_bytes();
        let (one, other) = (path(), path());
        let mutation = match rng.random_range(0..9) {
            0 => Mutation::Mkdir {
                path: [&one[..one.len() - 2], b"/d"].concat(),
                parents: true,
                mode: 0o755,
                owner: Owner::default(),
            },
            1 | 2 => Mutation::Rename { from: one, to: other, replace: rng.random() },
            3 => Mutation::Unlink { path: one, recursive: true, only: Only::Anything },
            4 => Mutation::Undelete { path: one.clone(), to: one },
            5 => {
                Mutation::Symlink { path: one, target: b"x".to_vec(), parents: true, owner: Owner::default() }
            }
            6 => {
                let Ok(attr) = d.state.stat(&one) else { continue };
                match rng.random() {
                    true => Mutation::Truncate { file: attr.file, length: rng.random_range(0..30_000) },
                    false => Mutation::Empty {
                        file: attr.file,
                        only: layout_of(&d, attr.file).first().copied(),
                        chunk: rng.random(),
                        near: String::new(),
                    },
                }
            }
            _ => {
                let unnamed = Mutation::CreateUnnamed { like: one.clone(), chunk: true, near: String::new() };
                let MasterReply::Opened { attr, .. } = d.mutate(unnamed) else { panic!() };
                let length = rng.random_range(1..20_000);
                Mutation::Publish {
                    file: attr.file,
                    path: one,
                    length,
                    mode: 0o644,
                    owner: Owner::default(),
                    mtime_ns: 0,
                    parents: true,
                }
            }
        };
        match code(&d.mutate(mutation)) {
            Some(Code::QuotaExceeded) => refused += 1,
            Some(_) => {}
            None => done += 1,
        }
        d.state.check();
        let usage = d.state.usage_of(b"/a").unwrap();
        assert!(usage.entries <= max_entries && usage.bytes <= max_bytes, "{usage:?}");
    }
    assert!(refused > 50 && done > 500, "{refused} refused, {done} done");
    let read = d.reread();
    assert_eq!(read.usage_of(b"/a"), d.state.usage_of(b"/a"));
}

#[test]
fn a_crowded_store_has_the_oldest_of_the_trash_go() {
    let mut d = Driver::new();
    d.servers(&["r1", "r2", "r3"], |_| 0);
    for i in 0..5 {
        let MasterReply::Opened { attr, .. } = d.mutate(create(&format!("/{i}"), false)) else { panic!() };
        d.mutate(Mutation::Truncate { file: attr.file, length: 100 << 20 });
        d.mutate(Mutation::Unlink { path: format!("/{i}").into(), recursive: false, only: Only::Anything });
    }
    assert_eq!(d.state.trash_in_the_way(10), None, "the disks are empty");
    // What is 150 MiB too much for one store is two files.
    let used = CAPACITY / 1000 * CROWDED_PER_MILLE + (150 << 20);
    let first = d.state.all_stores().next().unwrap().0;
    d.apply(Command::Usage { stores: vec![(first, CAPACITY, used)] });
    let names = |d: &Driver| -> Vec<_> {
        d.state
            .list_trash((0, FileId(0)), 10)
            .into_iter()
            .map(|t| String::from_utf8(t.path).unwrap())
            .collect()
    };
    let trash_ns = d.state.trash_in_the_way(1).unwrap();
    d.apply(Command::Expire { before: Before { trash_ns, ..Default::default() }, budget: 10 });
    assert_eq!(names(&d), ["/1", "/2", "/3", "/4"], "one at most");
    let trash_ns = d.state.trash_in_the_way(10).unwrap();
    d.apply(Command::Expire { before: Before { trash_ns, ..Default::default() }, budget: 10 });
    assert_eq!(names(&d), ["/3", "/4"]);
}
