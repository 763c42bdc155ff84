//! Threads that wait for disks of this machine, so that those that take requests from the kernel need not: these are
//! few, since each more of them is woken in turn where one would have gone on (docs/perf/0010).

use std::io;
use tokio::runtime::{Builder, Runtime};

/// Most reads of disks of this machine at a time; what is asked beyond waits for one of them.
const READERS_MAX: usize = 16;

/// Threads that read. They are a runtime's own for what blocks, and nothing else runs there: what else a mount has that
/// blocks may wait for reads (`Shared::see_again`), and must not be before them.
pub struct Readers(Option<Runtime>);

impl Readers {
    pub fn new() -> io::Result<Readers> {
        let threads =
            Builder::new_current_thread().max_blocking_threads(READERS_MAX).thread_name("reader").build()?;
        Ok(Readers(Some(threads)))
    }

    /// Has one of the threads read.
    pub fn spawn(&self, read: impl FnOnce() + Send + 'static) {
        self.0.as_ref().expect("it is there until it is dropped").spawn_blocking(read);
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        // Nobody waits any more for what is read.
        if let Some(threads) = self.0.take() {
            threads.shutdown_background();
        }
    }
}
