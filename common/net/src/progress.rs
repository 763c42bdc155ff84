//! Waiting as long as something moves. On a slow or busy link a large answer takes long however healthy everybody is;
//! that nothing moves at all is what tells a hung server or a cut cable from it.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When something last moved. Clones share it.
#[derive(Clone, Debug)]
pub struct Progress(Arc<Moved>);

#[derive(Debug)]
struct Moved {
    began: Instant,
    /// Microseconds since then.
    last: AtomicU64,
}

/// How long something is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// While nothing moves.
    pub quiet: Duration,
    /// At most, however much moves.
    pub most: Duration,
}

impl Default for Progress {
    fn default() -> Self {
        Progress(Arc::new(Moved { began: Instant::now(), last: AtomicU64::new(0) }))
    }
}

impl Progress {
    /// Something moves now.
    pub fn made(&self) {
        self.0.last.fetch_max(self.0.began.elapsed().as_micros() as u64, Ordering::Relaxed);
    }

    /// For how long nothing has moved.
    pub fn quiet(&self) -> Duration {
        self.0.began.elapsed().saturating_sub(Duration::from_micros(self.0.last.load(Ordering::Relaxed)))
    }

    /// Whether anybody else keeps this.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Waits for what comes; `None` once patience ends.
    pub async fn wait<T>(&self, patience: Patience, what: impl Future<Output = T>) -> Option<T> {
        let began = Instant::now();
        let mut what = std::pin::pin!(what);
        let mut wait = patience.quiet;
        loop {
            if let Ok(done) = tokio::time::timeout(wait, &mut what).await {
                return Some(done);
            }
            // What moved before the wait began does not shorten it.
            let waited = began.elapsed();
            wait = patience
                .quiet
                .saturating_sub(self.quiet().min(waited))
                .min(patience.most.saturating_sub(waited));
            if wait.is_zero() {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience =
        Patience { quiet: Duration::from_millis(100), most: Duration::from_millis(600) };

    async fn waited(progress: &Progress) -> Duration {
        let began = Instant::now();
        assert!(progress.wait(PATIENCE, std::future::pending::<()>()).await.is_none());
        began.elapsed()
    }

    #[tokio::test]
    async fn who_is_quiet_is_given_up_soon_and_who_moves_only_at_the_end() {
        let progress = Progress::default();
        // That it was quiet long before is no reason to give up at once.
        tokio::time::sleep(PATIENCE.quiet * 2).await;
        let quiet = waited(&progress).await;
        assert!(quiet >= PATIENCE.quiet && quiet < PATIENCE.most, "{quiet:?}");
        let mover = tokio::spawn({
            let progress = progress.clone();
            async move {
                loop {
                    progress.made();
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        });
        let moving = waited(&progress).await;
        mover.abort();
        assert!(moving >= PATIENCE.most, "{moving:?}");
    }
}
