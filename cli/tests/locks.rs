//! Locks between machines: two mounts of one cluster, each as good as a machine of its own. Needs root and `/dev/fuse`;
//! without them, says so.

mod mounted;

use mounted::{Mounted, can_mount, until};
use ops::cluster::signal;
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// What has to come about comes about within this.
const LIMIT: Duration = Duration::from_secs(60);

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn is_locked(outcome: Result<(), TryLockError>) -> bool {
    match outcome {
        Ok(()) => false,
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(e)) => panic!("cannot tell: {e}"),
    }
}

/// The same by `fcntl`.
fn is_range_locked(file: &File, how: FlockOperation) -> bool {
    match fcntl_lock(file, how) {
        Ok(()) => false,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => true,
        Err(e) => panic!("cannot tell: {e}"),
    }
}

#[test]
fn what_one_machine_has_locked_another_cannot_lock() {
    if !can_mount() {
        return;
    }
    let m = Mounted::start(1, 3, &[]);
    let other = m.again("other", &[]);
    let (here, there) = (m.at("f"), other.point.join("f"));
    let (a, b) = (open(&here), open(&there));

    // flock.
    a.lock().unwrap();
    assert!(is_locked(b.try_lock()) && is_locked(b.try_lock_shared()));
    assert!(is_locked(open(&here).try_lock()), "one that was opened on its own, on the same machine");
    a.unlock().unwrap();
    assert!(!is_locked(b.try_lock()));
    assert!(is_locked(a.try_lock()));
    b.lock_shared().unwrap();
    assert!(!is_locked(a.try_lock_shared()), "both can share it");
    assert!(is_locked(a.try_lock()), "and neither have it alone");
    // What it had is given up for what it did not get, as on any file system of Linux.
    assert!(!is_locked(b.try_lock()));
    b.unlock().unwrap();

    // fcntl: by process, and nothing to flock.
    use FlockOperation::{LockExclusive, NonBlockingLockExclusive, NonBlockingLockShared, Unlock};
    a.lock().unwrap();
    assert!(!is_range_locked(&b, NonBlockingLockExclusive), "flock and fcntl know nothing of each other");
    assert!(is_range_locked(&a, NonBlockingLockShared));
    fcntl_lock(&b, Unlock).unwrap();
    a.unlock().unwrap();
    fcntl_lock(&a, LockExclusive).unwrap();
    assert!(is_range_locked(&b, NonBlockingLockExclusive));
    drop(File::open(&here).unwrap());
    assert!(!is_range_locked(&b, NonBlockingLockExclusive), "who closes a file unlocks all of it");
    drop(b);
    assert!(!is_range_locked(&a, NonBlockingLockExclusive));
    fcntl_lock(&a, Unlock).unwrap();

    // Who waits gets it when it is free.
    a.lock().unwrap();
    let (tell, told) = mpsc::channel();
    let waits = std::thread::spawn(move || {
        let b = open(&there);
        tell.send(()).unwrap();
        b.lock().unwrap();
        tell.send(()).unwrap();
        b
    });
    told.recv().unwrap();
    assert!(told.recv_timeout(Duration::from_millis(300)).is_err(), "it is locked");
    let began = Instant::now();
    // Closed, not unlocked.
    drop(a);
    told.recv_timeout(LIMIT).expect("it is free");
    println!("handed over within {} ms", began.elapsed().as_millis());
    drop(waits.join().unwrap());
}

#[test]
fn what_is_written_under_a_lock_is_seen_under_the_next() {
    if !can_mount() {
        return;
    }
    const TIMES: u64 = 150;
    let m = Mounted::start(3, 3, &[]);
    let other = m.again("other", &[]);
    let flock = |file: &File, lock: bool| if lock { file.lock() } else { file.unlock() };
    let range = |file: &File, lock: bool| {
        fcntl_lock(file, if lock { FlockOperation::LockExclusive } else { FlockOperation::Unlock })
            .map_err(Into::into)
    };
    type Lock = fn(&File, bool) -> std::io::Result<()>;
    for (name, lock) in [("flock", flock as Lock), ("fcntl", range as Lock)] {
        let count = |path: std::path::PathBuf| {
            std::thread::spawn(move || {
                let file = open(&path);
                let mut seen = vec![];
                for _ in 0..TIMES {
                    lock(&file, true).unwrap();
                    let mut number = [0; 8];
                    let n = file.read_at(&mut number, 0).unwrap();
                    assert!(n == 0 || n == 8);
                    seen.push(u64::from_le_bytes(number));
                    let next = u64::from_le_bytes(number) + 1;
                    file.write_all_at(&next.to_le_bytes(), 0).unwrap();
                    lock(&file, false).unwrap();
                }
                seen
            })
        };
        let began = Instant::now();
        let both = [count(m.at(name)), count(other.point.join(name))];
        let seen = both.map(|one| one.join().unwrap());
        let number = fs::read(m.at(name)).unwrap();
        assert_eq!(number, (2 * TIMES).to_le_bytes(), "{name}: a number was lost: {seen:?}");
        println!("{name}: {} locks in turn in {} ms", 2 * TIMES, began.elapsed().as_millis());
    }
}

#[test]
fn who_waits_can_be_interrupted() {
    if !can_mount() {
        return;
    }
    let m = Mounted::start(1, 3, &[]);
    let other = m.again("other", &[]);
    let a = open(&m.at("f"));
    a.lock().unwrap();
    // Once on the machine that has it locked, once on another.
    for path in [m.at("f"), other.point.join("f")] {
        let mut waits =
            Command::new("flock").arg(&path).args(["echo", "locked"]).stdout(Stdio::piped()).spawn().unwrap();
        let call = format!("/proc/{}/syscall", waits.id());
        let flock = libc::SYS_flock.to_string();
        until("it does not wait", || {
            fs::read_to_string(&call).is_ok_and(|line| line.split(' ').next() == Some(&flock))
        });
        signal(waits.id(), "TERM").unwrap();
        until("it waits on", || waits.try_wait().unwrap().is_some());
        let output = waits.wait_with_output().unwrap();
        assert!(!output.status.success() && output.stdout.is_empty(), "it has got what was locked");
    }
    a.unlock().unwrap();
    let b = open(&other.point.join("f"));
    until("it is not free", || !is_locked(b.try_lock()));
}

#[test]
fn locks_outlive_a_leader_and_end_with_their_machine() {
    if !can_mount() {
        return;
    }
    let mut m = Mounted::start(3, 3, &[]);
    let (mut dies, sleeps) = (m.again("dies", &[]), m.again("sleeps", &[]));
    let open_both = |dir: &Path| (open(&dir.join("d")), open(&dir.join("s")));
    let (d, _) = open_both(&dies.point);
    let (_, s) = open_both(&sleeps.point);
    let (here_d, here_s) = open_both(&m.point);
    d.lock().unwrap();
    s.lock().unwrap();
    assert!(is_locked(here_d.try_lock()) && is_locked(here_s.try_lock()));

    let leader = m.runtime.block_on(m.client.status()).unwrap().leader.unwrap();
    m.cluster.kill(&format!("m{leader}")).unwrap();
    assert!(is_locked(here_d.try_lock()) && is_locked(here_s.try_lock()), "the next leader knows");
    s.write_all_at(b"mine", 0).unwrap();
    s.sync_all().unwrap();
    assert_eq!(fs::read(m.at("s")).unwrap(), b"mine");
    // Taken by the mount, and not on its way yet. (No child is started from here on: it would close our files first, which
    // sends what was taken, and asks a mount that sleeps.)
    s.write_all_at(b"older", 0).unwrap();

    // One machine dies, one is away for a while: what they had locked is free after a lease.
    let began = Instant::now();
    dies.process.kill().unwrap();
    dies.process.wait().unwrap();
    let sleeper = Pid::from_child(&sleeps.process);
    kill_process(sleeper, Signal::STOP).unwrap();
    assert!(is_locked(here_d.try_lock()) && is_locked(here_s.try_lock()), "nobody knows yet");
    here_d.lock().unwrap();
    here_s.lock().unwrap();
    let after = began.elapsed();
    println!("free after {} ms", after.as_millis());
    let lease = Duration::from_millis(common::limits::LOCK_LEASE_MS);
    assert!(lease.saturating_sub(Duration::from_secs(2)) < after && after < LIMIT, "{after:?}");
    assert_eq!(fs::read(m.at("s")).unwrap(), b"mine");
    here_s.write_all_at(b"ours", 0).unwrap();
    here_s.sync_all().unwrap();

    // Who comes back has lost it, and is told so; it can lock again what it opens again.
    kill_process(sleeper, Signal::CONT).unwrap();
    let failed = |e: std::io::Result<()>| e.unwrap_err().raw_os_error() == Some(libc::EIO);
    assert!(failed(s.write_all_at(b"late", 0)), "it has lost the lock under which it writes");
    assert!(failed(s.lock()) && failed(s.sync_all()));
    drop(s);
    assert_eq!(fs::read(sleeps.point.join("s")).unwrap(), b"ours", "what it wrote under the lock came late");
    let again = open(&sleeps.point.join("s"));
    assert!(is_locked(again.try_lock()));
    here_s.unlock().unwrap();
    assert!(!is_locked(again.try_lock()));
}
