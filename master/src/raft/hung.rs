//! Says when the log's disk completes nothing: the threads that wait for it cannot. Nothing else follows from it. A leader's
//! entries count when its followers have them, and who is needed and does not answer is needed no more (0027).

use common::limits::DISK_HUNG_MS;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// When the write that is under way began.
#[derive(Debug)]
pub struct Hung {
    opened: Instant,
    /// Milliseconds after that, and one; 0 if none is under way.
    began: AtomicU64,
}

impl Hung {
    /// Watches a log in this directory, on a thread of its own, until it is dropped.
    pub fn watch(dir: &Path) -> std::io::Result<Arc<Hung>> {
        let hung = Arc::new(Hung { opened: Instant::now(), began: AtomicU64::new(0) });
        let (watched, dir) = (Arc::downgrade(&hung), dir.to_owned());
        std::thread::Builder::new().name("raft-disk".into()).spawn(move || look(&watched, &dir))?;
        Ok(hung)
    }

    fn now(&self) -> u64 {
        self.opened.elapsed().as_millis() as u64 + 1
    }

    /// Does something that waits for the disk.
    pub fn during<T>(&self, write: impl FnOnce() -> T) -> T {
        self.began.store(self.now(), Ordering::Relaxed);
        let done = write();
        self.began.store(0, Ordering::Relaxed);
        done
    }

    /// For how long nothing has been completed that was under way, if that is too long.
    fn stands_for(&self) -> Option<Duration> {
        let began = self.began.load(Ordering::Relaxed);
        let stands = self.now().saturating_sub(began);
        (began > 0 && stands >= DISK_HUNG_MS).then_some(Duration::from_millis(stands))
    }
}

fn look(watched: &Weak<Hung>, dir: &Path) {
    let mut said = false;
    loop {
        std::thread::sleep(Duration::from_millis(DISK_HUNG_MS / 2));
        let Some(hung) = watched.upgrade() else { return };
        match hung.stands_for() {
            Some(for_) if !said => {
                tracing::warn!(?for_, ?dir, "the disk of the Raft log completes no write; look at it");
                said = true;
            }
            None if said => {
                tracing::info!(?dir, "the disk of the Raft log completes writes again");
                said = false;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_write_that_is_under_way_stands() {
        let hung = Hung::watch(Path::new("none")).expect("a thread");
        let past = Duration::from_millis(DISK_HUNG_MS);
        assert_eq!(hung.stands_for(), None);
        hung.during(|| {
            assert_eq!(hung.stands_for(), None, "it has just begun");
            std::thread::sleep(past);
            assert!(hung.stands_for().is_some_and(|stands| stands >= past));
        });
        std::thread::sleep(past);
        assert_eq!(hung.stands_for(), None);
    }
}
