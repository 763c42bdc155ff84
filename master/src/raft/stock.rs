//! Segments that are ready to be begun: files of zeros. Old ones are taken again; if there are none, one is made when the log
//! is half through its last. That is 16 MiB for the disk, so a thread of its own does it, and nobody waits for it who
//! writes the log - unless the last is full before the next is there.

use super::direct::{self, Pieces};
use super::room::Room;
use super::segment::SEGMENT_BYTES;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};

/// Old segments that are kept to be taken again, at most.
const KEPT_MAX: usize = 4;

/// What is ready for one log.
pub(super) struct Stock {
    dir: PathBuf,
    room: Arc<Room>,
    ready: Mutex<Vec<PathBuf>>,
    /// Whoever makes one.
    making: Mutex<()>,
    wanted: mpsc::SyncSender<()>,
}

impl Stock {
    /// An empty one for the log in this directory.
    pub fn open(dir: &Path, room: Arc<Room>) -> io::Result<Arc<Stock>> {
        let (wanted, wants) = mpsc::sync_channel(1);
        let stock =
            Stock { dir: dir.into(), room, ready: Mutex::default(), making: Mutex::default(), wanted };
        let stock = Arc::new(stock);
        let made_for = Arc::downgrade(&stock);
        std::thread::Builder::new().name("raft-stock".into()).spawn(move || {
            while wants.recv().is_ok() {
                let Some(stock) = made_for.upgrade() else { return };
                stock.make();
            }
        })?;
        Ok(stock)
    }

    /// How many are ready.
    pub fn len(&self) -> usize {
        self.ready.lock().expect("never poisoned").len()
    }

    /// One will be needed soon.
    pub fn want(&self) {
        // One that is asked for already will do.
        let _ = self.wanted.try_send(());
    }

    /// One that becomes a segment now. If none is ready it waits for the disk.
    pub fn take(&self) -> io::Result<PathBuf> {
        loop {
            if let Some(path) = self.ready.lock().expect("never poisoned").pop() {
                return Ok(path);
            }
            self.made()?;
        }
    }

    /// A segment that is not needed any more.
    pub fn give(&self, path: &Path, sequence: u64) -> io::Result<()> {
        let mut ready = self.ready.lock().expect("never poisoned");
        if ready.len() >= KEPT_MAX {
            return std::fs::remove_file(path);
        }
        let spare = self.dir.join(format!("{sequence:012}.spare"));
        std::fs::rename(path, &spare)?;
        ready.push(spare);
        drop(ready);
        self.room.log_is_short(false);
        Ok(())
    }

    /// Makes one, if none is ready and there is room. Waits for the disk.
    pub fn make(&self) {
        if let Err(error) = self.made() {
            tracing::debug!(%error, dir = %self.dir.display(), "cannot make a segment of the Raft log ahead");
        }
        self.room.log_is_short(self.len() == 0);
    }

    fn made(&self) -> io::Result<()> {
        let alone = self.making.lock().expect("never poisoned");
        if self.len() > 0 {
            return Ok(());
        }
        // A log that was closed in this process may be making one still: each has a name of its own.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let path = self.dir.join(format!("new-{}.spare", NUMBER.fetch_add(1, Ordering::Relaxed)));
        if let Err(error) = self.room.has(SEGMENT_BYTES).and_then(|()| zero(&path)) {
            // What there is of it takes room from others.
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        self.ready.lock().expect("never poisoned").push(path);
        drop(alone);
        Ok(())
    }
}

fn zero(path: &Path) -> io::Result<()> {
    let zeros = vec![0; 64 * 1024];
    let mut out = Pieces::over(direct::open(path)?);
    for _ in 0..SEGMENT_BYTES / zeros.len() as u64 {
        out.write_all(&zeros)?;
    }
    out.end().map(drop)
}
