//! Names that one machine changes while the kernel of another still believes what it was told of them. Needs root and
//! `/dev/fuse`; without them, says so.

mod listings;
mod mounted;

use mounted::{Again, Mounted, can_mount};
use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Two mounts: what the second believes, the first changes.
struct Two {
    /// It ends first, while there is a cluster.
    other: Again,
    m: Mounted,
}

impl Two {
    fn start() -> Two {
        let m = Mounted::start(1, 3, &["--allow-other"]);
        let other = m.again("other", &["--allow-other"]);
        Two { other, m }
    }

    fn here(&self, name: &str) -> PathBuf {
        self.m.at(name)
    }

    fn there(&self, name: &str) -> PathBuf {
        self.other.point.join(name)
    }

    /// Puts another file in place of one.
    fn replace(&self, name: &str, bytes: &str) {
        let new = self.here(&format!("{name}.new"));
        fs::write(&new, bytes).unwrap();
        fs::rename(new, self.here(name)).unwrap();
    }
}

/// Whoever has waited for a lock looks whether its file is still the one that is meant: whoever had it may have deleted it, and
/// somebody else may be about to make and lock another.
#[test]
fn who_gets_a_lock_sees_that_its_file_is_gone() {
    if !can_mount() {
        return;
    }
    let two = Two::start();
    for n in 0..5 {
        let (here, there) = (two.here(&format!("lock{n}")), two.there(&format!("lock{n}")));
        let first = File::create(&here).unwrap();
        first.lock().unwrap();
        let second = File::open(&there).unwrap();
        assert_eq!(second.metadata().unwrap().nlink(), 1);
        assert_eq!(second.try_lock().unwrap_err().to_string(), fs::TryLockError::WouldBlock.to_string());
        let is_moved = n % 2 == 1;
        match is_moved {
            false => fs::remove_file(&here).unwrap(),
            true => fs::rename(&here, here.with_extension("old")).unwrap(),
        }
        drop(first);
        second.lock().unwrap();
        assert_eq!(
            second.metadata().unwrap().nlink(),
            u64::from(is_moved),
            "it believes that the name is there"
        );
        assert_eq!(
            fs::metadata(&there).unwrap_err().kind(),
            ErrorKind::NotFound,
            "it is led there by a name"
        );
        let third = File::create_new(&there).unwrap();
        assert_ne!(third.metadata().unwrap().ino(), second.metadata().unwrap().ino());
    }
}

#[test]
fn what_was_replaced_elsewhere_is_not_what_a_name_leads_to() {
    if !can_mount() {
        return;
    }
    let two = Two::start();
    for n in 0..5 {
        let name = |what: &str| format!("{what}{n}");

        // It is open here, too.
        fs::write(two.here(&name("open")), "old").unwrap();
        let mut open = File::open(two.there(&name("open"))).unwrap();
        two.replace(&name("open"), "new");
        assert_eq!(fs::read_to_string(two.there(&name("open"))).unwrap(), "new");
        let mut text = String::new();
        open.read_to_string(&mut text).unwrap();
        assert_eq!(text, "old");
        for _ in 0..2 {
            let again = format!("/proc/self/fd/{}", open.as_raw_fd());
            assert_eq!(fs::read_to_string(again).unwrap(), "old", "who has it open can open it again");
        }

        // It was moved away, and another one made.
        fs::write(two.here(&name("log")), "old").unwrap();
        let open = File::open(two.there(&name("log"))).unwrap();
        let believed_only = name("other-log");
        fs::write(two.here(&believed_only), "old").unwrap();
        fs::metadata(two.there(&believed_only)).unwrap();
        for log in [name("log"), believed_only] {
            fs::rename(two.here(&log), two.here(&format!("{log}.1"))).unwrap();
            fs::write(two.here(&log), "new").unwrap();
            assert_eq!(fs::read_to_string(two.there(&log)).unwrap(), "new", "{log}");
            assert_eq!(fs::read_to_string(two.there(&format!("{log}.1"))).unwrap(), "old", "{log}");
        }
        let again = format!("/proc/self/fd/{}", open.as_raw_fd());
        assert_eq!(fs::read_to_string(again).unwrap(), "old");

        let believed = |what: &str| {
            fs::write(two.here(&name(what)), "old").unwrap();
            fs::metadata(two.there(&name(what))).unwrap();
            two.replace(&name(what), "newer");
            (two.here(&name(what)), two.there(&name(what)))
        };
        let is_newer = |path: &Path| assert_eq!(fs::read_to_string(path).unwrap(), "newer");

        let (_, there) = believed("mode");
        fs::set_permissions(&there, Permissions::from_mode(0o600)).unwrap();
        let mode = two.m.runtime.block_on(two.m.client.lookup(name("/mode").as_bytes())).unwrap().mode;
        assert_eq!(mode & 0o777, 0o600, "the mode of the other one was changed");
        is_newer(&there);
        let (_, there) = believed("owner");
        chown(&there, Some(7), None).unwrap();
        let uid = two.m.runtime.block_on(two.m.client.lookup(name("/owner").as_bytes())).unwrap().uid;
        assert_eq!(uid, 7, "the other one was given away");
        let (_, there) = believed("cut");
        truncate(&there, 2);
        assert_eq!(fs::read_to_string(&there).unwrap(), "ne", "the other one was cut");
        let (_, there) = believed("link");
        fs::hard_link(&there, there.with_extension("too")).unwrap();
        is_newer(&there.with_extension("too"));
    }
}

/// By its path, without opening it, as no program of the shell does.
fn truncate(path: &Path, length: u64) {
    let mut perl = Command::new("perl");
    perl.args(["-e", "truncate($ARGV[0], $ARGV[1]) or die $!"]).arg(path).arg(length.to_string());
    assert!(perl.status().unwrap().success());
}

/// Who may take a name away in a directory like `/tmp` is for the kernel to see, by what it believes of the name, and for the
/// masters, by what is there.
#[test]
fn what_is_anothers_stays_in_a_directory_with_the_sticky_bit() {
    if !can_mount() {
        return;
    }
    const MINE: u32 = 1001;
    const HIS: u32 = 1002;
    let two = Two::start();
    fs::create_dir(two.here("tmp")).unwrap();
    fs::set_permissions(two.here("tmp"), Permissions::from_mode(0o1777)).unwrap();
    let does = |uid: u32, script: &str, path: &Path| {
        let mut shell = Command::new("sh");
        shell.args(["-ec", script, "sh"]).arg(path).uid(uid).gid(uid).current_dir("/").stderr(Stdio::null());
        shell.status().unwrap().success()
    };
    for n in 0..3 {
        // Made elsewhere, where this kernel believes that there is nothing.
        let (here, there) = (two.here(&format!("tmp/over{n}")), two.there(&format!("tmp/over{n}")));
        assert!(does(MINE, "echo mine > $1.mine", &there));
        assert!(does(HIS, "echo his > $1", &here));
        assert!(!does(MINE, "exec mv -fT $1.mine $1", &there), "his file was replaced");
        assert_eq!(fs::read_to_string(&here).unwrap(), "his\n");

        // Made elsewhere, where this kernel believes that there is a file of the user's own.
        for script in ["exec rm -f $1", "exec mv -f $1 $1.stolen"] {
            let name = format!("tmp/{n}-{}", script.len());
            let (here, there) = (two.here(&name), two.there(&name));
            assert!(does(MINE, "echo mine > $1", &here));
            assert_eq!(fs::metadata(&there).unwrap().uid(), MINE);
            assert!(does(MINE, "rm $1", &here) && does(HIS, "echo his > $1", &here));
            assert!(!does(MINE, script, &there), "{script}");
            assert_eq!(fs::read_to_string(&here).unwrap(), "his\n", "after {script}");
            assert!(does(HIS, script, &there) || does(HIS, script, &here), "his own: {script}");
        }
        assert!(does(0, "rm $1", &here), "root may");
    }
}

/// The kernel looks again once for a program: of a name that changes all the time no open may fail for that.
#[test]
fn a_name_that_changes_all_the_time_is_always_opened() {
    if !can_mount() {
        return;
    }
    let two = Two::start();
    fs::write(two.here("f"), "first").unwrap();
    let end = Instant::now() + Duration::from_secs(3);
    let (two, opened) = (&two, &AtomicU32::new(0));
    std::thread::scope(|scope| {
        for n in 0..2 {
            scope.spawn(move || {
                let new = two.here(&format!("new{n}"));
                while Instant::now() < end {
                    fs::write(&new, "newer").unwrap();
                    fs::rename(&new, two.here("f")).unwrap();
                }
            });
        }
        for path in [two.here("f"), two.here("f"), two.there("f"), two.there("f")] {
            scope.spawn(move || {
                while Instant::now() < end {
                    let text = fs::read_to_string(&path).unwrap();
                    assert!(text == "first" || text == "newer", "{text}");
                    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
                    opened.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    println!("opened {} times", opened.load(Ordering::Relaxed));
}
