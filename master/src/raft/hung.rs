//! For how long the log's disk has completed nothing. The threads that wait for it cannot say so, and others have to know: a
//! leader whose own write is late needs all its followers (`spare`), and whoever runs it should look at its disk.

use common::limits::DISK_HUNG_MS;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

const TOO_LONG: Duration = Duration::from_millis(DISK_HUNG_MS);

/// When the write that is under way began.
#[derive(Debug)]
pub struct Hung {
    opened: Instant,
    /// Milliseconds after that, and one; 0 if none is under way.
    began: AtomicU64,
}

impl Default for Hung {
    fn default() -> Hung {
        Hung { opened: Instant::now(), began: AtomicU64::new(0) }
    }
}

impl Hung {
    /// Watches a log in this directory, on a thread of its own, until it is dropped.
    pub fn watch(dir: &Path) -> std::io::Result<Arc<Hung>> {
        let hung = Arc::new(Hung::default());
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

    /// For how long nothing has been completed that is under way; zero if nothing is. Exact to a millisecond.
    pub fn stands_for(&self) -> Duration {
        match self.began.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            began => Duration::from_millis(self.now().saturating_sub(began)),
        }
    }
}

fn look(watched: &Weak<Hung>, dir: &Path) {
    let mut said = false;
    loop {
        std::thread::sleep(Duration::from_millis(DISK_HUNG_MS / 2));
        let Some(hung) = watched.upgrade() else { return };
        match hung.stands_for() {
            since if since >= TOO_LONG && !said => {
                tracing::warn!(?since, ?dir, "the disk of the Raft log completes no write; look at it");
                said = true;
            }
            since if since < TOO_LONG && said => {
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
        let (hung, pause) = (Hung::default(), Duration::from_millis(20));
        std::thread::sleep(pause);
        assert_eq!(hung.stands_for(), Duration::ZERO, "nothing is under way");
        hung.during(|| {
            let began = hung.stands_for();
            std::thread::sleep(pause);
            assert!(hung.stands_for() >= began + pause - Duration::from_millis(1));
        });
        assert_eq!(hung.stands_for(), Duration::ZERO);
    }
}
