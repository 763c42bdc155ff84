//! The program that asks. The kernel says who it is, but fuser tells us neither whether a lock is one of `flock` or of
//! `fcntl`, nor that a program was interrupted while it waits; `/proc` knows both.

use crate::shared::Outcome;
use fuser::Errno;
use std::future::Future;
use std::time::Duration;

/// A program that waits is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A thread that has asked sleeps a moment later; so often it is looked for there ...
const LOOKS: u32 = 40;
/// ... this far apart.
const LOOKS_APART: Duration = Duration::from_micros(50);

/// A thread of a program; 0 if it is in another name space of processes than the mount.
#[derive(Clone, Copy, Debug)]
pub struct Caller(pub u32);

impl Caller {
    /// Whether it is in `flock`, and not in `fcntl`. If that cannot be seen it counts as `fcntl`, as with NFS.
    pub fn is_in_flock(self) -> bool {
        for _ in 0..LOOKS {
            match std::fs::read_to_string(format!("/proc/{}/syscall", self.0)) {
                Ok(line) if line.starts_with("running") => std::thread::sleep(LOOKS_APART),
                Ok(line) => return line.split(' ').next() == Some(libc::SYS_flock.to_string().as_str()),
                Err(_) => break,
            }
        }
        false
    }

    /// Whether a signal waits for it that it takes.
    fn is_interrupted(self) -> bool {
        let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", self.0)) else { return false };
        let signals = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|set| u64::from_str_radix(set.trim_start_matches(':').trim(), 16).ok()).unwrap_or(0)
        };
        (signals("SigPnd") | signals("ShdPnd")) & !signals("SigBlk") & !signals("SigIgn") != 0
    }

    /// Waits for something, unless the program is interrupted.
    pub async fn wait<T>(self, what: impl Future<Output = T>) -> Outcome<T> {
        let interrupted = async {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                if self.is_interrupted() {
                    return;
                }
            }
        };
        tokio::select! {
            done = what => Ok(done),
            () = interrupted => Err(Errno::EINTR),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::sync::mpsc;

    #[test]
    fn a_thread_that_waits_in_flock_is_seen_there() {
        let path = std::env::temp_dir().join(format!("cairn-flock-{}", std::process::id()));
        let held = File::create(&path).unwrap();
        held.lock().unwrap();
        let (tell, told) = mpsc::channel();
        let waits = std::thread::spawn({
            let path = path.clone();
            move || {
                let me = std::fs::read_link("/proc/thread-self").unwrap();
                tell.send(me.file_name().unwrap().to_str().unwrap().parse().unwrap()).unwrap();
                File::open(&path).unwrap().lock().unwrap();
            }
        });
        let caller = Caller(told.recv().unwrap());
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while !caller.is_in_flock() {
            assert!(std::time::Instant::now() < end, "it is never seen in flock");
        }
        assert!(!caller.is_interrupted());
        held.unlock().unwrap();
        waits.join().unwrap();
        assert!(!caller.is_in_flock(), "it is gone");
        std::fs::remove_file(path).unwrap();
    }
}
