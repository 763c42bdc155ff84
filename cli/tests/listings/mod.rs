//! Names that a mount answers from a listing of their directory.

use crate::mounted::{Mounted, can_mount, until};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::fs::XattrFlags;
use std::fs::{self, File, FileTimes, Metadata, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// What the kernel of this machine drops: names that nobody uses.
const DROP_NAMES: &str = "2";
const FORGET: &str = "/proc/sys/vm/drop_caches";
const THREADS: u64 = 3;
/// Of each thread; all are in one directory.
const FILES: u64 = 60;
const TIME: Duration = Duration::from_secs(6);

/// A file as its thread has made it; other threads do not touch it.
struct Made {
    mode: u32,
    length: u64,
    mtime: SystemTime,
    ctime: (i64, i64),
    ino: u64,
    linked: bool,
}

struct Maker {
    dir: PathBuf,
    n: u64,
    rng: StdRng,
    files: Vec<Option<Made>>,
}

impl Maker {
    fn path(&self, file: usize) -> PathBuf {
        self.dir.join(format!("{}-{file}", self.n))
    }

    fn link(&self, file: usize) -> PathBuf {
        self.dir.join(format!("{}-{file}.link", self.n))
    }

    /// All that can be seen of a file is as it was made.
    fn check(&mut self, file: usize, what: &str) {
        let seen = fs::symlink_metadata(self.path(file));
        let Some(made) = &mut self.files[file] else {
            let error = seen.err().map(|e| e.kind());
            assert_eq!(error, Some(ErrorKind::NotFound), "{file} after {what}");
            return;
        };
        let seen = seen.unwrap_or_else(|e| panic!("{file} after {what}: {e}"));
        let ctime = (seen.ctime(), seen.ctime_nsec());
        let links = if made.linked { 2 } else { 1 };
        assert_eq!((seen.mode() & 0o7777, seen.nlink()), (made.mode, links), "{file} after {what}");
        assert_eq!((seen.len(), seen.ino()), (made.length, made.ino), "{file} after {what}");
        assert_eq!(seen.modified().unwrap(), made.mtime, "{file} after {what}");
        assert!(ctime >= made.ctime, "{file} after {what}: {ctime:?} after {:?}", made.ctime);
        made.ctime = ctime;
    }

    /// Makes or changes a file: what that was, as its descriptor tells.
    fn step(&mut self) {
        let file = self.rng.random_range(0..self.files.len());
        let (path, link) = (self.path(file), self.link(file));
        let Some(mut made) = self.files[file].take() else {
            let new = File::create_new(&path).unwrap();
            let seen = new.metadata().unwrap();
            let ctime = (seen.ctime(), seen.ctime_nsec());
            let (mode, mtime, ino) = (seen.mode() & 0o7777, seen.modified().unwrap(), seen.ino());
            self.files[file] = Some(Made { mode, length: 0, mtime, ctime, ino, linked: false });
            return self.check(file, "make");
        };
        let what = match self.rng.random_range(0..8) {
            0 => {
                made.mode = self.rng.random_range(0..0o1000) | 0o600;
                fs::set_permissions(&path, Permissions::from_mode(made.mode)).unwrap();
                "chmod"
            }
            1 => {
                made.mtime = SystemTime::UNIX_EPOCH + Duration::from_secs(self.rng.random_range(1..1 << 30));
                let times = FileTimes::new().set_modified(made.mtime);
                File::open(&path).unwrap().set_times(times).unwrap();
                "utimens"
            }
            2 => {
                made.length = self.rng.random_range(0..5000);
                let open = OpenOptions::new().write(true).open(&path).unwrap();
                open.set_len(made.length).unwrap();
                made.mtime = open.metadata().unwrap().modified().unwrap();
                "truncate"
            }
            3 => {
                let mut open = OpenOptions::new().append(true).open(&path).unwrap();
                open.write_all(&[7; 100]).unwrap();
                open.sync_all().unwrap();
                made.length += 100;
                made.mtime = open.metadata().unwrap().modified().unwrap();
                "write"
            }
            4 => {
                rustix::fs::setxattr(&path, "user.seen", &self.rng.random::<[u8; 8]>(), XattrFlags::empty())
                    .unwrap();
                made.ctime.1 += 1;
                "setxattr"
            }
            5 => {
                let there =
                    (0..self.files.len()).find(|other| self.files[*other].is_none() && *other != file);
                let to = there.unwrap_or_else(|| (file + 1) % self.files.len());
                if let Some(gone) = self.files[to].take()
                    && gone.linked
                {
                    fs::remove_file(self.link(to)).unwrap();
                }
                fs::rename(&path, self.path(to)).unwrap();
                if made.linked {
                    fs::rename(&link, self.link(to)).unwrap();
                }
                self.files[to] = Some(made);
                self.check(to, "rename to it");
                return self.check(file, "rename");
            }
            6 if made.linked => {
                fs::remove_file(&link).unwrap();
                made.linked = false;
                "unlink of the other name"
            }
            6 => {
                fs::hard_link(&path, &link).unwrap();
                made.linked = true;
                "link"
            }
            _ => {
                if made.linked {
                    fs::remove_file(&link).unwrap();
                }
                fs::remove_file(&path).unwrap();
                return self.check(file, "unlink");
            }
        };
        self.files[file] = Some(made);
        self.check(file, what);
    }
}

/// Whether the kernel can be made to forget names: then it has to look for each again.
fn can_forget() -> bool {
    let can = fs::write(FORGET, DROP_NAMES);
    if let Err(error) = &can {
        println!("not tested: {FORGET} cannot be written: {error}");
    }
    can.is_ok()
}

/// Makes the kernel forget names until this is done.
fn forget_until<T>(f: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fs::write(FORGET, DROP_NAMES).unwrap();
            }
        });
        let ended = panic::catch_unwind(AssertUnwindSafe(f));
        done.store(true, Ordering::Relaxed);
        ended.unwrap_or_else(|e| panic::resume_unwind(e))
    })
}

/// Whatever is done to files of a directory that is listed all the time, and whose names the kernel has to look for all the time, whoever
/// did it sees it at once.
#[test]
fn what_is_changed_here_is_seen_at_once() {
    if !can_mount() || !can_forget() {
        return;
    }
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let m = Mounted::start(1, 3, &[]);
    let dir = m.at("d");
    fs::create_dir(&dir).unwrap();
    forget_until(|| {
        std::thread::scope(|scope| {
            for n in 0..THREADS {
                let (dir, rng) = (dir.clone(), StdRng::seed_from_u64(seed.wrapping_add(n)));
                scope.spawn(move || {
                    let mut maker = Maker { dir, n, rng, files: (0..FILES).map(|_| None).collect() };
                    let (end, mut steps) = (Instant::now() + TIME, 0);
                    while Instant::now() < end {
                        maker.step();
                        for _ in 0..10 {
                            let other = maker.rng.random_range(0..maker.files.len());
                            maker.check(other, "others");
                        }
                        steps += 1;
                    }
                    println!("thread {n}: {steps} steps");
                });
            }
        });
    });
}

/// What is done elsewhere is seen within the time for which the kernel may believe names, though they are looked for all the time.
#[test]
fn what_is_changed_elsewhere_is_seen_soon() {
    if !can_mount() || !can_forget() {
        return;
    }
    let m = Mounted::start(1, 3, &[]);
    let other = m.again("other", &[]);
    let paths = |point: &Path| (0..FILES).map(|n| point.join(n.to_string())).collect::<Vec<_>>();
    let (here, there) = (paths(&m.point), paths(&other.point));
    here.iter().for_each(|path| fs::write(path, "x").unwrap());
    let look = || there.iter().map(|path| fs::metadata(path).ok()).collect::<Vec<_>>();
    let seen = |what: &str, is_seen: &dyn Fn(&[Option<Metadata>]) -> bool| {
        let began = Instant::now();
        until(what, || is_seen(&look()));
        println!("{what} after {:?}", began.elapsed());
    };
    forget_until(|| {
        for mode in [0o600, 0o640, 0o644] {
            fs::set_permissions(&here[7], Permissions::from_mode(mode)).unwrap();
            seen("chmod", &|all| all[7].as_ref().is_some_and(|seen| seen.mode() & 0o7777 == mode));
            fs::rename(&here[8], &here[9]).unwrap();
            seen("rename", &|all| all[8].is_none());
            fs::write(&here[8], "more").unwrap();
            seen("write", &|all| all[8].as_ref().is_some_and(|seen| seen.len() == 4));
        }
    });
    drop(other);
}
