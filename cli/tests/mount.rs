//! The cluster as a directory of this machine: what programs expect of a file system, a random history against
//! a plain model, and deaths of servers under it. Needs root and `/dev/fuse`; without them, says so.

mod mounted;

use client::Quota;
use mounted::{Mounted, cairn, can_mount, is_mounted, until};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

fn random(len: usize, rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rng.fill(&mut bytes[..]);
    bytes
}

#[test]
fn what_programs_expect_of_a_file_system() {
    if !can_mount() {
        return;
    }
    let m = Mounted::start(1, 3, &[]);
    let mut rng = StdRng::seed_from_u64(1);

    // Names.
    fs::create_dir(m.at("d")).unwrap();
    fs::write(m.at("a"), b"hello").unwrap();
    fs::hard_link(m.at("a"), m.at("d/b")).unwrap();
    symlink("a", m.at("s")).unwrap();
    assert_eq!(fs::read_to_string(m.at("s")).unwrap(), "hello");
    let (a, b) = (fs::metadata(m.at("a")).unwrap(), fs::metadata(m.at("d/b")).unwrap());
    assert_eq!((a.ino(), b.nlink()), (b.ino(), 2));
    fs::rename(m.at("a"), m.at("d/c")).unwrap();
    fs::remove_file(m.at("d/b")).unwrap();
    assert_eq!(fs::read_to_string(m.at("d/c")).unwrap(), "hello");
    let kind = |e: std::io::Result<()>| e.unwrap_err().kind();
    assert_eq!(kind(fs::remove_dir(m.at("d"))), ErrorKind::DirectoryNotEmpty);
    assert_eq!(kind(fs::remove_file(m.at("d/none"))), ErrorKind::NotFound);
    assert_eq!(kind(fs::create_dir(m.at("d"))), ErrorKind::AlreadyExists);
    assert_eq!(kind(fs::remove_dir(m.at("d/c"))), ErrorKind::NotADirectory);
    assert_eq!(kind(fs::create_dir(m.at(&"x".repeat(256)))), ErrorKind::InvalidFilename);
    let odd = m.point.join(std::ffi::OsStr::from_bytes(b"\xff \n"));
    fs::write(&odd, b"odd").unwrap();
    assert!(fs::read_dir(&m.point).unwrap().any(|e| e.unwrap().path() == odd));
    let made = Command::new("mkfifo").arg(m.at("pipe")).status().unwrap();
    assert!(made.success() && fs::metadata(m.at("pipe")).unwrap().file_type().is_fifo());

    // A large directory, page by page.
    fs::create_dir(m.at("large")).unwrap();
    for n in 0..5000 {
        File::create(m.at(&format!("large/{n:04}"))).unwrap();
    }
    let mut names: Vec<_> = fs::read_dir(m.at("large")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names.len(), 5000);
    assert_eq!(names[4999], "4999");

    // Attributes.
    let file = File::options().write(true).open(m.at("d/c")).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
    file.set_times(fs::FileTimes::new().set_accessed(time).set_modified(time - Duration::from_secs(1)))
        .unwrap();
    fs::set_permissions(m.at("d/c"), fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(m.at("d/c"), Some(12), Some(13)).unwrap();
    let meta = fs::metadata(m.at("d/c")).unwrap();
    assert_eq!((meta.accessed().unwrap(), meta.modified().unwrap()), (time, time - Duration::from_secs(1)));
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o640, 12, 13));

    // What is open stays, though it has no name; what is put in its place is another file.
    let mut open = File::options().read(true).write(true).create_new(true).open(m.at("gone")).unwrap();
    open.write_all(b"still here").unwrap();
    fs::remove_file(m.at("gone")).unwrap();
    let mut replaced = File::open(m.at("d/c")).unwrap();
    fs::write(m.at("new"), b"new").unwrap();
    fs::rename(m.at("new"), m.at("d/c")).unwrap();
    let mut text = String::new();
    replaced.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), fs::read_to_string(m.at("d/c")).unwrap().as_str()), ("hello", "new"));
    open.seek(SeekFrom::Start(0)).unwrap();
    text.clear();
    open.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), open.metadata().unwrap().nlink()), ("still here", 0));

    // Holes are written into, and cut.
    let hole = File::options().read(true).write(true).create(true).truncate(true).open(m.at("hole")).unwrap();
    hole.set_len(200 << 20).unwrap();
    let bytes = random(5000, &mut rng);
    hole.write_all_at(&bytes, 100 << 20).unwrap();
    let mut read = vec![1; 5020];
    hole.read_exact_at(&mut read, (100 << 20) - 10).unwrap();
    assert_eq!(read, [&[0; 10][..], &bytes, &[0; 10]].concat());
    hole.set_len((100 << 20) + 100).unwrap();
    hole.set_len((100 << 20) + 200).unwrap();
    hole.read_exact_at(&mut read[..200], 100 << 20).unwrap();
    assert_eq!(read[..200], [&bytes[..100], &[0; 100]].concat());

    // Appends of two programs.
    let append = || File::options().append(true).create(true).open(m.at("log")).unwrap();
    let (mut one, mut two) = (append(), append());
    for n in 0..20 {
        writeln!(one, "one {n:02}").unwrap();
        writeln!(two, "two {n:02}").unwrap();
    }
    drop((one, two));
    let log = fs::read_to_string(m.at("log")).unwrap();
    assert_eq!((log.lines().count(), log.lines().filter(|l| l.starts_with("one")).count()), (40, 20));

    // What is synced is there for everybody; what is closed, too.
    let mut synced = File::create(m.at("synced")).unwrap();
    let bytes = random(3 << 20, &mut rng);
    synced.write_all(&bytes).unwrap();
    synced.sync_all().unwrap();
    let seen =
        m.runtime.block_on(async { m.client.open(b"/synced").await.unwrap().read_at(0, u64::MAX).await });
    assert_eq!(seen.unwrap(), bytes);
    drop(synced);
    m.runtime.block_on(m.client.create_with(b"/by-another", b"seen")).unwrap();
    assert_eq!(fs::read_to_string(m.at("by-another")).unwrap(), "seen");
    let mut sync = File::options();
    sync.write(true).create(true).truncate(true).custom_flags(libc::O_SYNC);
    sync.open(m.at("direct")).unwrap().write_all(b"at once").unwrap();
}

/// Offsets, lengths, cuts and syncs drawn from a seed, against bytes in memory.
fn history(path: &Path, seed: u64, steps: u32) {
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut model: Vec<u8> = vec![];
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    for step in 0..steps {
        match rng.random_range(0..12) {
            0..6 => {
                let (at, len) = (rng.random_range(0..400_000), rng.random_range(1..60_000));
                let bytes = random(len, &mut rng);
                model.resize(model.len().max(at + len), 0);
                model[at..at + len].copy_from_slice(&bytes);
                file.write_all_at(&bytes, at as u64).unwrap();
            }
            6..9 => {
                let (at, len) = (rng.random_range(0..500_000), rng.random_range(1..100_000));
                let mut bytes = vec![0; len];
                let n = file.read_at(&mut bytes, at as u64).unwrap();
                let (from, to) = (at.min(model.len()), (at + len).min(model.len()));
                assert!(bytes[..n] == model[from..to], "step {step}: {len} bytes at {at}");
            }
            9 => {
                let len = rng.random_range(0..450_000);
                model.resize(len, 0);
                file.set_len(len as u64).unwrap();
            }
            10 => file.sync_all().unwrap(),
            _ => assert_eq!(file.metadata().unwrap().len(), model.len() as u64, "step {step}"),
        }
    }
    drop(file);
    assert!(fs::read(path).unwrap() == model, "the end differs");
}

/// Whether a program may open a file is for the kernel to see, though it believes that there is none.
#[test]
fn what_was_made_elsewhere_is_opened_by_nobody_who_may_not() {
    if !can_mount() {
        return;
    }
    let m = Mounted::start(1, 3, &["--allow-other"]);
    let made = |path: &str| {
        let made = async {
            m.client.create_with(path.as_bytes(), b"secret").await?;
            m.client.set_attr(path.as_bytes(), Some(0o600), None).await
        };
        m.runtime.block_on(made).unwrap();
    };
    for (n, redirection) in ["3<>$1", "3>$1", "3>>$1"].into_iter().enumerate() {
        let dir = m.at(&n.to_string());
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        made(&format!("/{n}/f"));
        let open = |uid| {
            let script = format!("exec {redirection}");
            let mut shell = Command::new("sh");
            shell.args(["-c", &script, "sh"]).arg(dir.join("f")).uid(uid).gid(uid).stderr(Stdio::null());
            shell.status().unwrap().success()
        };
        assert!(!open(65534), "{redirection} by nobody");
        assert_eq!(fs::read(dir.join("f")).unwrap(), b"secret", "{redirection} by nobody");
        assert!(open(0), "{redirection} by root");
    }
}

#[test]
fn set_id_bits_go_when_a_file_is_written_cut_or_given_away() {
    if !can_mount() {
        return;
    }
    const SET: u32 = 0o6777;
    let m = Mounted::start(1, 3, &["--allow-other"]);
    let path = m.at("f");
    let file = File::create(&path).unwrap();
    fs::set_permissions(&m.point, fs::Permissions::from_mode(0o777)).unwrap();
    let mode = || fs::metadata(m.at("f")).unwrap().mode() & 0o7777;
    let set = || fs::set_permissions(m.at("f"), fs::Permissions::from_mode(SET)).unwrap();
    let nobody = |script: &str| {
        let mut shell = Command::new("sh");
        let done = shell.args(["-ec", script, "sh"]).arg(m.at("f")).uid(65534).gid(65534).status().unwrap();
        assert!(done.success(), "{script}");
    };

    // A new file that is only written goes past the kernel's pages; one that was opened later through them.
    set();
    file.write_all_at(b"root", 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!(mode(), SET, "root may");
    drop(file);
    for script in [
        "printf more >> $1",
        "dd if=/dev/zero of=$1 bs=5 count=1 seek=1 conv=notrunc 2>/dev/null",
        ": > $1",
        "truncate -s 5000 $1",
        "fallocate -l 9000 $1",
        "cp $1 $1.copy; cat $1.copy > $1",
    ] {
        set();
        nobody(script);
        assert_eq!(mode(), SET & 0o777, "after {script}");
    }
    let own = "umask 0; exec 3>$1.new; chmod 6777 $1.new; printf new >&3; exec 3>&-";
    nobody(own);
    assert_eq!(fs::metadata(m.at("f.new")).unwrap().mode() & 0o7777, 0o777, "who made it, too");
    set();
    nobody("cat $1 >/dev/null");
    assert_eq!(mode(), SET, "who reads takes nothing away");
    std::os::unix::fs::chown(&path, Some(1), None).unwrap();
    assert_eq!(mode(), SET & 0o777, "it has another owner");

    // Without the right to execute for the group, the bit is not one of set-id.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o2666)).unwrap();
    std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
    nobody("printf more >> $1");
    assert_eq!(mode(), 0o2666);
    // Of a directory it says who owns what is made there.
    fs::create_dir(m.at("d")).unwrap();
    fs::set_permissions(m.at("d"), fs::Permissions::from_mode(0o2777)).unwrap();
    std::os::unix::fs::chown(m.at("d"), Some(1), Some(1)).unwrap();
    assert_eq!(fs::metadata(m.at("d")).unwrap().mode() & 0o7777, 0o2777);
}

#[test]
fn any_history_of_writes_and_cuts_is_read_as_it_was() {
    if !can_mount() {
        return;
    }
    let m = Mounted::start(1, 3, &[]);
    for seed in 0..8 {
        history(&m.at(&format!("f{seed}")), seed, 300);
    }
}

#[test]
fn a_strict_mount_remembers_nothing() {
    if !can_mount() {
        return;
    }
    let m = Mounted::start(1, 3, &["--strict"]);
    history(&m.at("f"), 100, 150);
    let mut open = File::options().read(true).write(true).create_new(true).open(m.at("shared")).unwrap();
    open.write_all(b"mine").unwrap();
    let theirs = m.runtime.block_on(async {
        let seen = m.client.open(b"/shared").await?.read_at(0, 100).await?;
        m.client.write_at(b"/shared", 0, b"yours").await?;
        client::Result::Ok(seen)
    });
    assert_eq!(theirs.unwrap(), b"mine");
    open.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "yours");
}

#[test]
fn programs_do_not_notice_that_servers_die() {
    if !can_mount() {
        return;
    }
    let mut m = Mounted::start(3, 4, &[]);
    let path = m.at("f");
    let writer = std::thread::spawn(move || {
        let mut longest = Duration::ZERO;
        let file = File::create(&path).unwrap();
        let end = Instant::now() + Duration::from_secs(6);
        let mut n = 0u64;
        while Instant::now() < end {
            let began = Instant::now();
            file.write_all_at(&[n as u8; 4096], n * 4096).unwrap();
            file.sync_data().unwrap();
            longest = longest.max(began.elapsed());
            n += 1;
        }
        (path, n, longest)
    });
    std::thread::sleep(Duration::from_secs(1));
    let leader = m.runtime.block_on(m.client.status()).unwrap().leader.unwrap();
    for name in [format!("m{leader}"), "cs2".to_owned()] {
        m.cluster.kill(&name).unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        m.cluster.start(&name).unwrap();
    }
    let (path, n, longest) = writer.join().unwrap();
    println!("{n} synchronous writes of 4 KiB; the longest took {} ms", longest.as_millis());
    let bytes = fs::read(path).unwrap();
    assert_eq!(bytes.len() as u64, n * 4096);
    assert!(bytes.chunks(4096).enumerate().all(|(n, block)| block.iter().all(|b| *b == n as u8)));
}

#[test]
fn a_dead_mount_is_told_of_and_mounted_over() {
    if !can_mount() {
        return;
    }
    let mut m = Mounted::start(1, 3, &[]);
    fs::write(m.at("f"), b"kept").unwrap();
    m.process.kill().unwrap();
    m.process.wait().unwrap();
    assert_eq!(fs::read(m.at("f")).unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
    let mut command = Command::new(cairn());
    command.arg("--cluster").arg(m.cluster.dir()).arg("mount").arg(&m.point);
    m.process = command.stdout(Stdio::null()).spawn().unwrap();
    until("it is not mounted again", || fs::read(m.at("f")).is_ok_and(|bytes| bytes == b"kept"));
}

#[test]
fn bytes_that_were_taken_and_cannot_be_kept_are_told_of_at_the_next_sync() {
    if !can_mount() {
        return;
    }
    let m = Mounted::start(1, 3, &[]);
    fs::create_dir(m.at("q")).unwrap();
    let none = Quota { bytes: Some(0), ..Default::default() };
    m.runtime.block_on(m.client.set_quota(b"/q", none)).unwrap();
    let file = File::create(m.at("q/f")).unwrap();
    // Gathered, and taken.
    file.write_all_at(&[1; 4096], 0).unwrap();
    // What is gathered must go: this write fails for the bytes of the one before, which nobody has told of yet.
    file.write_all_at(&[2; 4096], 1 << 20).unwrap_err();
    assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(libc::EDQUOT));
    file.sync_all().unwrap();
    drop(file);
    fs::write(m.at("f"), b"elsewhere").unwrap();
}

#[test]
fn options_are_taken_or_refused_by_name() {
    if !can_mount() {
        return;
    }
    let mut m = Mounted::start(1, 3, &["-o", "noexec,_netdev,nosuid"]);
    fs::create_dir(m.at("d")).unwrap();
    fs::write(m.at("d/program"), b"#!/bin/sh\n").unwrap();
    fs::set_permissions(m.at("d/program"), fs::Permissions::from_mode(0o755)).unwrap();
    let error = Command::new(m.at("d/program")).status().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    m.end();

    let cairn_mount = |args: &[&str]| {
        let mut command = Command::new(cairn());
        command.arg("--cluster").arg(m.cluster.dir()).arg("mount").args(args).arg(&m.point);
        command.output().unwrap()
    };
    let refused = cairn_mount(&["-o", "nosuid,nonsense"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("nonsense"), "{refused:?}");
    assert!(!is_mounted(&m.point));
    // A part of the cluster, named without a slash, in the background, read-only.
    let log = m.cluster.dir().join("mount.log");
    let done = cairn_mount(&["--detach", "--read-only", "--root", "d", "--log", log.to_str().unwrap()]);
    assert!(done.status.success(), "{done:?}");
    assert_eq!(fs::read(m.at("program")).unwrap(), b"#!/bin/sh\n");
    let error = fs::write(m.at("x"), b"").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    assert!(log.exists());
    let unmount = || {
        assert!(Command::new("umount").arg(&m.point).status().unwrap().success());
        until("it is mounted still", || !is_mounted(&m.point));
    };
    unmount();
    // As mount(8) does it.
    let helper = m.cluster.dir().join("mount.cairn");
    symlink(cairn(), &helper).unwrap();
    let spec = format!("{}:/d", m.cluster.dir().join("cluster.toml").display());
    let done =
        Command::new(&helper).arg(&spec).arg(&m.point).args(["-n", "-o", "ro,_netdev"]).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(
        mounts.lines().any(|line| line.starts_with(&format!("{spec} "))),
        "its source is shown: {mounts}"
    );
    assert_eq!(fs::read(m.at("program")).unwrap(), b"#!/bin/sh\n");
    unmount();
}

#[test]
fn two_mounts_agree_on_what_was_closed_and_made() {
    if !can_mount() {
        return;
    }
    let m = Mounted::start(3, 3, &[]);
    let other = m.again("other", &[]);
    let there = |name: &str| other.point.join(name);

    // Bytes: whoever opens sees what was closed, though the masters are told later, and though neither
    // length nor time need differ.
    let mut last = vec![];
    for n in 0..200u32 {
        let bytes = [n.to_le_bytes().as_slice(), &[7; 996]].concat();
        fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(m.at("same"))
            .unwrap()
            .write_all(&bytes)
            .unwrap();
        assert!(fs::read(there("same")).unwrap() == bytes, "round {n}: older bytes than were closed");
        assert!(fs::read(m.at("same")).unwrap() == bytes, "round {n}: older bytes than were closed, here");
        last = bytes;
    }
    // What is made elsewhere, while it is known here that the directory has nothing, is emptied if that is asked for.
    for n in 0..20 {
        let name = format!("made{n}");
        fs::create_dir(m.at(&name)).unwrap();
        fs::write(there(&name).join("f"), [b'z'; 100]).unwrap();
        fs::write(m.at(&name).join("f"), "x").unwrap();
        assert_eq!(fs::read(there(&name).join("f")).unwrap(), b"x");
    }
    // What has become longer is seen to its end, though the kernel has just been told its length.
    for n in 1..50usize {
        let mut file = OpenOptions::new().create(true).append(true).open(m.at("longer")).unwrap();
        let seen = fs::metadata(there("longer")).map_or(0, |meta| meta.len());
        file.write_all(&[n as u8; 100]).unwrap();
        drop(file);
        let read = fs::read(there("longer")).unwrap();
        assert_eq!(read.len(), n * 100, "it was told a length of {seen}");
    }
    // So is what has become longer since, though somebody who had opened it before was told so and read it; and what
    // has become shorter in between.
    for cut in [false, true] {
        let name = format!("grows-{cut}");
        let here = File::create(m.at(&name)).unwrap();
        let write = |n: u8| {
            here.write_all_at(&[n; 4096], u64::from(n) * 4096).unwrap();
            here.sync_data().unwrap();
        };
        (0..2).for_each(write);
        let opened = File::open(there(&name)).unwrap();
        write(2);
        until("its length is not told", || fs::metadata(there(&name)).unwrap().len() == 3 * 4096);
        if cut {
            here.set_len(2 * 4096).unwrap();
        }
        let mut found = [0; 3 * 4096];
        let read = opened.read_at(&mut found, 0).unwrap();
        assert_eq!(read, if cut { 2 } else { 3 } * 4096, "as long as was told, or is now");
        write(2);
        let mut found = [0; 4096];
        let opened = File::open(there(&name)).unwrap();
        opened.read_exact_at(&mut found, 2 * 4096).expect("what was synced before it was opened");
        assert_eq!(found, [2; 4096]);
    }
    // Times: they are told, and what was set stays.
    let here = fs::metadata(m.at("same")).unwrap();
    let mtime = |path: &Path| fs::metadata(path).unwrap().mtime_nsec();
    until("the time of the last write is not told", || mtime(&there("same")) == here.mtime_nsec());
    assert_eq!(mtime(&m.at("same")), here.mtime_nsec());
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for n in 0..20 {
        let path = m.at(&format!("old-{n}"));
        let mut file = File::create(&path).unwrap();
        file.write_all(&last).unwrap();
        file.set_modified(long_ago).unwrap();
        drop(file);
        fs::write(m.at(&format!("new-{n}")), b"x").unwrap();
    }
    // After these, all that was to be told before has been told.
    until("what came last is not told", || fs::metadata(there("new-19")).unwrap().len() == 1);
    let end = Instant::now() + Duration::from_millis(200);
    while Instant::now() < end {
        for n in 0..20 {
            let seen = fs::metadata(there(&format!("old-{n}"))).unwrap();
            assert_eq!((seen.mtime(), seen.len()), (1_000_000_000, 1000), "old-{n}");
        }
    }

    // Names: what this mount makes it sees at once; what the other makes it does not make again.
    fs::create_dir(m.at("many")).unwrap();
    until("the directory is not seen", || there("many").is_dir());
    for n in 0..300 {
        let name = format!("many/{n}");
        if n % 3 == 0 {
            fs::write(there(&name), b"other").unwrap();
            let again = OpenOptions::new().write(true).create_new(true).open(m.at(&name));
            assert_eq!(again.map(drop).unwrap_err().kind(), ErrorKind::AlreadyExists, "{name}");
        } else {
            fs::write(m.at(&name), b"mine").unwrap();
            fs::rename(m.at(&name), m.at(&format!("many/{n}.x"))).unwrap();
            assert!(m.at(&format!("many/{n}.x")).exists() && !m.at(&name).exists(), "{name}");
        }
    }
    // The kernel forgets the names, and asks again within the second for which the mount knows what is absent.
    fs::create_dir(m.at("fresh")).unwrap();
    fs::create_dir(m.at("fresh/dir")).unwrap();
    fs::write(m.at("fresh/file"), b"").unwrap();
    fs::rename(m.at("many/0"), m.at("fresh/renamed")).unwrap();
    fs::hard_link(m.at("fresh/file"), m.at("fresh/linked")).unwrap();
    symlink("file", m.at("fresh/symlink")).unwrap();
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    for name in ["dir", "file", "renamed", "linked", "symlink"] {
        assert!(m.at("fresh").join(name).exists(), "{name} was made here");
    }
    // What was unlinked or replaced is not opened, though the kernel may believe the name.
    for n in 0..20 {
        let (here, there) = (m.at(&format!("name-{n}")), there(&format!("name-{n}")));
        fs::write(&here, b"old").unwrap();
        assert_eq!(fs::read(&there).unwrap(), b"old");
        if n % 2 == 0 {
            fs::remove_file(&here).unwrap();
            assert_eq!(File::open(&there).unwrap_err().kind(), ErrorKind::NotFound);
            let new = OpenOptions::new().write(true).create(true).truncate(false).open(&there).unwrap();
            assert_eq!((new.metadata().unwrap().len(), new.metadata().unwrap().nlink()), (0, 1));
        } else {
            fs::write(m.at("new"), b"new").unwrap();
            fs::rename(m.at("new"), &here).unwrap();
            assert_eq!(fs::read(&there).unwrap(), b"new");
        }
    }
    fs::write(there("many/late"), b"late").unwrap();
    until("a name that was made elsewhere is not found", || m.at("many/late").exists());
    assert_eq!(fs::read_dir(m.at("many")).unwrap().count(), 300);
}

/// The kernel takes attributes from listings, too.
#[test]
fn listings_tell_of_files_as_they_are() {
    if !can_mount() {
        return;
    }
    let m = Mounted::start(1, 3, &[]);
    // More names than come at a time; all were looked at, so that the kernel asks for attributes with them.
    fs::create_dir(m.at("many")).unwrap();
    let at = |n: usize| m.at(&format!("many/{n:04}"));
    const FILES: usize = 2000;
    (0..FILES).for_each(|n| drop(File::create(at(n)).unwrap()));
    assert!(fs::read_dir(m.at("many")).unwrap().all(|e| e.unwrap().metadata().unwrap().is_file()));
    let mut names = fs::read_dir(m.at("many")).unwrap().map(|e| e.unwrap().path());
    let first = names.next().unwrap();
    for n in (0..FILES).filter(|n| at(*n) != first) {
        if n % 2 == 0 {
            fs::remove_file(at(n)).unwrap();
        } else {
            fs::set_permissions(at(n), fs::Permissions::from_mode(0o700)).unwrap();
        }
    }
    let rest: Vec<_> = names.collect();
    for n in (0..FILES).filter(|n| at(*n) != first) {
        match fs::metadata(at(n)) {
            Ok(meta) => assert_eq!((n % 2, meta.mode() & 0o7777), (1, 0o700), "{n}"),
            Err(e) => assert_eq!((n % 2, e.kind()), (0, ErrorKind::NotFound), "{n}"),
        }
        assert!(n % 2 == 0 || rest.contains(&at(n)), "{n} was there all the time");
    }

    // Of files that are written to, only their primaries know the length; whoever has looked at some is told of others.
    let other = m.again("other", &[]);
    let mut open = vec![];
    for (d, n) in (0..3).flat_map(|d| (0..20).map(move |n| (d, n))) {
        fs::create_dir_all(m.at(&format!("lengths-{d}"))).unwrap();
        let file = File::create(m.at(&format!("lengths-{d}/{n}"))).unwrap();
        file.write_all_at(&vec![1; 100 * n + 1], 0).unwrap();
        file.sync_data().unwrap();
        open.push(file);
    }
    for d in 0..3 {
        for entry in fs::read_dir(other.point.join(format!("lengths-{d}"))).unwrap().map(Result::unwrap) {
            let n: u64 = entry.file_name().to_str().unwrap().parse().unwrap();
            assert_eq!(entry.metadata().unwrap().len(), 100 * n + 1, "lengths-{d}/{n}");
        }
    }

    // What a program has changed in a mapping stays, whoever lists.
    let mapped = m.point.with_file_name("mapped");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mounted/mapped.c");
    assert!(Command::new("cc").arg("-o").arg(&mapped).arg(source).status().unwrap().success());
    fs::create_dir(m.at("maps")).unwrap();
    let mut program = Command::new(&mapped)
        .arg(m.at("maps/file"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    program.stdout.as_mut().unwrap().read_exact(&mut [0; 7]).unwrap();
    assert_eq!(fs::read_dir(m.at("maps")).unwrap().count(), 1);
    program.stdin.as_mut().unwrap().write_all(b"go on\n").unwrap();
    assert_eq!(program.wait().unwrap().code(), Some(0), "5: what was changed is gone");
    let bytes = fs::read(other.point.join("maps/file")).unwrap();
    assert_eq!((bytes.len(), &bytes[4096..4103]), (8192, &b"changed"[..]));

    // Extended attributes: a listing tells of what has none.
    let path = m.at("lengths-0/0");
    let get = || rustix::fs::getxattr(&path, "user.a", &mut [0; 8]);
    fs::read_dir(m.at("lengths-0")).unwrap().for_each(drop);
    assert_eq!(get(), Err(rustix::io::Errno::NODATA));
    rustix::fs::setxattr(&path, "user.a", b"here", rustix::fs::XattrFlags::empty()).unwrap();
    assert_eq!(get(), Ok(4));
    fs::read_dir(m.at("lengths-0")).unwrap().for_each(drop);
    assert_eq!(get(), Ok(4));
    rustix::fs::setxattr(
        other.point.join("lengths-0/1"),
        "user.a",
        b"there",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    let of_other = || rustix::fs::getxattr(m.at("lengths-0/1"), "user.a", &mut [0; 8]);
    until("what was set elsewhere is not seen", || of_other() == Ok(5));
}

#[test]
fn who_reads_along_sees_all_that_was_written() {
    if !can_mount() {
        return;
    }
    let m = Mounted::start(1, 3, &[]);
    let mut writer = OpenOptions::new().write(true).create_new(true).open(m.at("log")).unwrap();
    let (tell, told) = std::sync::mpsc::channel::<u64>();
    let path = m.at("log");
    let reader = std::thread::spawn(move || {
        let mut file = File::open(path).unwrap();
        let (mut known, mut bytes) = (0, vec![]);
        while let Ok(written) = told.recv() {
            known = told.try_iter().last().unwrap_or(written);
            file.read_to_end(&mut bytes).unwrap();
            assert!(bytes.len() as u64 >= known * 8, "{} bytes of {known} numbers", bytes.len());
            let numbers = bytes.chunks_exact(8).map(|n| u64::from_le_bytes(n.try_into().unwrap()));
            assert!(numbers.enumerate().all(|(i, n)| i as u64 + 1 == n), "other bytes than were written");
            let part = bytes.len() as u64 / 8 * 8;
            bytes.truncate(part as usize);
            file.seek(SeekFrom::Start(part)).unwrap();
        }
        known
    });
    for n in 1..=4000u64 {
        writer.write_all(&n.to_le_bytes()).unwrap();
        tell.send(n).unwrap();
    }
    drop(tell);
    assert_eq!(reader.join().unwrap(), 4000);
}

#[test]
fn records_that_two_machines_append_stay_whole() {
    const RECORD: usize = 5003;
    const RECORDS: usize = 150;
    if !can_mount() {
        return;
    }
    let m = Mounted::start(1, 3, &[]);
    let other = m.again("other", &[]);
    fs::write(m.at("log"), [0; 70]).unwrap();
    let appends = |path: std::path::PathBuf, mark: u8| {
        std::thread::spawn(move || {
            for n in 0..RECORDS {
                let mut log = OpenOptions::new().append(true).open(&path).unwrap();
                log.write_all(&[mark + (n % 100) as u8; RECORD]).unwrap();
            }
        })
    };
    let both = [appends(m.at("log"), 1), appends(other.point.join("log"), 101)];
    both.into_iter().for_each(|thread| thread.join().unwrap());
    let found = fs::read(m.at("log")).unwrap();
    assert_eq!(found.len(), 70 + 2 * RECORDS * RECORD);
    let mut next = [1, 101];
    for record in found[70..].chunks_exact(RECORD) {
        let mark = record[0];
        assert!(record.iter().all(|byte| *byte == mark), "a record of {mark} has bytes of another");
        let of = &mut next[usize::from(mark > 100)];
        assert_eq!(mark, *of, "each machine's records are in its order");
        *of = if mark % 100 == 0 { mark - 99 } else { mark + 1 };
    }
}
