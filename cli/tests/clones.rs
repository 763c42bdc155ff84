//! Copies that name bytes once more, through a mount and `cairn cp`, of a cluster of real processes.

mod mounted;

use common::wire::client_master::Policy;
use mounted::{Mounted, cairn, can_mount};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

const MIB: usize = 1 << 20;

fn random(len: usize, rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rng.fill(&mut bytes[..]);
    bytes
}

/// A cluster whose chunks are small, mounted.
fn start() -> Mounted {
    let m = Mounted::start(1, 3, &[]);
    let policy = Policy { chunk_bytes: Some(MIB as u64), ..Default::default() };
    m.runtime.block_on(m.client.set_policy(b"/", policy)).unwrap();
    m
}

/// How many chunks a file has, and whether the last of them still grows: one that was cloned does not.
fn chunks(m: &Mounted, name: &str) -> (u64, bool) {
    let path = format!("/{name}");
    let attr = m.runtime.block_on(m.client.lookup(path.as_bytes())).unwrap();
    let layout = m.runtime.block_on(m.client.layout(attr.file)).unwrap();
    let grows = layout.chunks().last().is_some_and(|c| c.config.sealed.is_none());
    (layout.chunks().len() as u64, grows)
}

/// Copies a range by `copy_file_range`, as the standard library does: bytes copied.
fn copy_range(from: &mut File, from_at: usize, to: &mut File, to_at: usize, len: usize) -> u64 {
    from.seek(SeekFrom::Start(from_at as u64)).unwrap();
    to.seek(SeekFrom::Start(to_at as u64)).unwrap();
    std::io::copy(&mut from.take(len as u64), to).unwrap()
}

fn copy_all(from: &Path, to: &Path) {
    let status = Command::new("cp").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

#[test]
fn copies_share_bytes_until_one_is_written_to() {
    if !can_mount() {
        return;
    }
    let mut m = start();
    let mut rng = StdRng::seed_from_u64(1);
    let bytes = random(3 * MIB + 400_000, &mut rng);
    fs::write(m.at("a"), &bytes).unwrap();
    // All of it, the last chunk too, which still grows.
    let (mut from, mut to) = (File::open(m.at("a")).unwrap(), File::create(m.at("b")).unwrap());
    assert_eq!(copy_range(&mut from, 0, &mut to, 0, 100 * MIB), bytes.len() as u64);
    drop(to);
    assert_eq!((chunks(&m, "a"), chunks(&m, "b")), ((4, true), (4, false)));
    assert!(fs::read(m.at("b")).unwrap() == bytes);
    // What is written to one does not show in the other, whichever it is; nor what is cut.
    let (mut a, mut b) = (bytes.clone(), bytes.clone());
    for n in 0..40 {
        let (name, model) = if n % 2 == 0 { ("a", &mut a) } else { ("b", &mut b) };
        let offset = rng.random_range(0..model.len() - 9000);
        let len = rng.random_range(1..9000);
        let patch = random(len, &mut rng);
        model[offset..offset + patch.len()].copy_from_slice(&patch);
        let file = OpenOptions::new().write(true).open(m.at(name)).unwrap();
        file.write_all_at(&patch, offset as u64).unwrap();
    }
    let more = random(MIB, &mut rng);
    OpenOptions::new().append(true).open(m.at("b")).unwrap().write_all(&more).unwrap();
    b.extend(&more);
    OpenOptions::new().write(true).open(m.at("a")).unwrap().set_len(2_500_000).unwrap();
    a.truncate(2_500_000);
    let agree = |m: &Mounted, other: &str| {
        let other = m.again(other, &[]);
        for (name, model) in [("a", &a), ("b", &b)] {
            assert!(fs::read(m.at(name)).unwrap() == *model, "{name}");
            assert!(fs::read(other.point.join(name)).unwrap() == *model, "{name}, by another mount");
        }
    };
    agree(&m, "before");
    // After everybody was killed, too.
    for name in m.cluster.names().unwrap().into_iter().filter(|name| name.starts_with("cs")) {
        m.cluster.kill(&name).unwrap();
        m.cluster.start(&name).unwrap();
    }
    m.runtime.block_on(m.cluster.healthy()).unwrap();
    agree(&m, "after");
    // The original goes, the copy stays.
    fs::remove_file(m.at("a")).unwrap();
    m.runtime.block_on(m.client.empty_trash()).unwrap();
    assert!(fs::read(m.at("b")).unwrap() == b);
    m.end();
}

#[test]
fn what_cannot_be_shared_is_copied() {
    if !can_mount() {
        return;
    }
    let mut m = start();
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let names = ["x", "y", "z"];
    let mut models: Vec<Vec<u8>> = vec![];
    for name in names {
        let len = rng.random_range(MIB..4 * MIB);
        models.push(random(len, &mut rng));
        fs::write(m.at(name), models.last().unwrap()).unwrap();
    }
    // Copies at any offset, or chunk by chunk, over what is there and behind it.
    for _ in 0..30 {
        let (from, to) = (rng.random_range(0..3), rng.random_range(0..3));
        if from == to {
            continue;
        }
        let (source, target) = (models[from].clone(), &mut models[to]);
        let whole = rng.random_bool(0.7);
        let step = if whole { MIB } else { 1 };
        let from_at = rng.random_range(0..=source.len() / step) * step;
        let to_at = match rng.random_range(0..3) {
            0 => target.len(),
            1 => (target.len() / MIB + 2) * MIB,
            _ => rng.random_range(0..=target.len() / step) * step,
        };
        let len = rng.random_range(0..3 * MIB);
        if rng.random_bool(0.5) {
            target.truncate(to_at);
        }
        let mut a = File::open(m.at(names[from])).unwrap();
        let mut b = OpenOptions::new().write(true).open(m.at(names[to])).unwrap();
        b.set_len(target.len() as u64).unwrap();
        let len = len.min(source.len() - from_at.min(source.len())).min(8 * MIB - to_at.min(8 * MIB));
        assert_eq!(copy_range(&mut a, from_at, &mut b, to_at, len), len as u64);
        if len > 0 {
            target.resize(target.len().max(to_at + len), 0);
            target[to_at..to_at + len].copy_from_slice(&source[from_at..from_at + len]);
        }
        drop(b);
        for (name, model) in names.iter().zip(&models) {
            assert!(fs::read(m.at(name)).unwrap() == *model, "{name} after {from_at}+{len} to {to_at}");
        }
    }
    m.end();
}

#[test]
fn a_tree_is_copied_within_the_cluster() {
    if !can_mount() {
        return;
    }
    let mut m = start();
    let mut rng = StdRng::seed_from_u64(2);
    fs::create_dir_all(m.at("tree/sub/empty")).unwrap();
    let large = random(2 * MIB + 300_000, &mut rng);
    fs::write(m.at("tree/large"), &large).unwrap();
    fs::write(m.at("tree/sub/small"), b"small").unwrap();
    std::os::unix::fs::symlink("../large", m.at("tree/sub/link")).unwrap();
    let sparse = File::create(m.at("tree/sparse")).unwrap();
    sparse.write_all_at(b"end", 5_000_000).unwrap();
    drop(sparse);
    let run = |args: &[&str]| {
        let out = Command::new(cairn()).arg("--cluster").arg(m.cluster.dir()).args(args).output().unwrap();
        let text = String::from_utf8_lossy(if out.status.success() { &out.stdout } else { &out.stderr });
        (out.status.success(), text.into_owned())
    };
    let (done, said) = run(&["cp", "-r", "--json", "/tree", "/copy"]);
    assert!(done, "{said}");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (said["files"].as_u64(), said["bytes"].as_u64()),
        (Some(4), Some(5_000_008 + large.len() as u64))
    );
    // All of the large one, and the holes of the sparse one.
    assert!(said["by_reference"].as_u64() >= Some(large.len() as u64 + 4_000_000), "{said}");
    assert!(fs::read(m.at("copy/large")).unwrap() == large);
    assert_eq!(fs::read(m.at("copy/sub/small")).unwrap(), b"small");
    assert_eq!(fs::read_link(m.at("copy/sub/link")).unwrap(), Path::new("../large"));
    assert!(fs::read(m.at("copy/sparse")).unwrap() == fs::read(m.at("tree/sparse")).unwrap());
    assert!(m.at("copy/sub/empty").is_dir());
    // What a snapshot holds comes back the same way, as it was.
    assert!(run(&["snapshot", "create", "/tree", "s"]).0);
    let file = OpenOptions::new().write(true).open(m.at("tree/large")).unwrap();
    file.write_all_at(&[7; 100_000], 1_000_000).unwrap();
    drop(file);
    copy_all(&m.at("tree/.snapshot/s/large"), &m.at("back"));
    assert!(fs::read(m.at("back")).unwrap() == large);
    assert_eq!(chunks(&m, "back"), (3, false));
    for (args, why) in [
        (vec!["cp", "/tree", "/other"], "-r copies it"),
        (vec!["cp", "/nothing", "/other"], "no such file"),
        (vec!["cp", "-r", "/tree", "/tree/sub/tree"], "lies within"),
        (vec!["cp", "/tree/large", "/tree/large"], "same file"),
        (vec!["cp", "/tree/large", "/copy/large", "/other"], "no directory"),
    ] {
        let (done, said) = run(&args);
        assert!(!done && said.contains(why), "{args:?}: {said}");
    }
    m.end();
}
