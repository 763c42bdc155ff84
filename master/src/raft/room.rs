//! Room on a master's disk. A log that cannot go on has failed, and so has who keeps it: the next segment is made when
//! half of the last is left, and what the next image will take is taken when this one is written. Without them a leader
//! refuses what makes the state grow, in time, and goes on with all the rest.

use super::direct;
use rustix::fs::FallocateFlags;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// What is taken for an image at least, in bytes.
const IMAGE_BYTES_MIN: u64 = 16 * 1024 * 1024;
/// The next image may be larger than the last, by one of so many parts.
const GROWTH_PARTS: u64 = 2;

/// What there is room for. Shared by the log, the images and the leader.
#[derive(Debug)]
pub struct Room {
    /// Where images are.
    dir: PathBuf,
    log_is_short: AtomicBool,
    /// Bytes that are left in the log.
    log_left: AtomicU64,
    image_is_short: AtomicBool,
    /// Bytes of the last image, and what is taken for the next.
    last_bytes: AtomicU64,
    next_bytes: AtomicU64,
    /// Since when either is short.
    since: Mutex<Option<Instant>>,
    /// Who writes an image, or takes room for one.
    writing: Mutex<()>,
}

impl Room {
    /// For images in this directory, which is made if it is not there.
    pub fn open(dir: &Path) -> io::Result<Arc<Room>> {
        std::fs::create_dir_all(dir)?;
        let room = Room {
            dir: dir.into(),
            log_is_short: AtomicBool::new(false),
            log_left: AtomicU64::new(u64::MAX),
            image_is_short: AtomicBool::new(false),
            last_bytes: AtomicU64::new(0),
            next_bytes: AtomicU64::new(0),
            since: Mutex::new(None),
            writing: Mutex::new(()),
        };
        room.take_for_next(std::fs::metadata(room.place()).map_or(0, |file| file.len()));
        Ok(Arc::new(room))
    }

    /// Where images are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of the last image.
    pub fn place(&self) -> PathBuf {
        self.dir.join("snapshot")
    }

    /// The path of the file that an image is written into, with the room that was taken for it.
    pub fn aside(&self) -> PathBuf {
        self.dir.join("snapshot.tmp")
    }

    /// Whether the disk has so many bytes left. Who is after the last of them takes it from others who need less.
    ///
    /// # Errors
    /// The disk is full, or does not say.
    pub fn has(&self, bytes: u64) -> io::Result<()> {
        let disk = rustix::fs::statvfs(&self.dir)?;
        match disk.f_bavail.saturating_mul(disk.f_frsize) >= bytes {
            true => Ok(()),
            false => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    fn settle(&self) {
        let is_short =
            self.log_is_short.load(Ordering::Relaxed) || self.image_is_short.load(Ordering::Relaxed);
        let mut since = self.since.lock().expect("never poisoned");
        match (is_short, *since) {
            (true, None) => {
                tracing::warn!(dir = %self.dir.display(), "the disk of this master is full: make room on it");
                *since = Some(Instant::now());
            }
            (false, Some(_)) => {
                tracing::info!(dir = %self.dir.display(), "there is room on the disk of this master again");
                *since = None;
            }
            _ => {}
        }
    }

    /// Whether the log has no next segment, though this one is half full.
    pub fn log_is_short(&self, is_short: bool) {
        self.log_is_short.store(is_short, Ordering::Relaxed);
        self.settle();
    }

    /// Whether that is so.
    pub fn lacks_segment(&self) -> bool {
        self.log_is_short.load(Ordering::Relaxed)
    }

    /// So many bytes are left in the log.
    pub fn set_log_left(&self, bytes: u64) {
        self.log_left.store(bytes, Ordering::Relaxed);
    }

    /// How many bytes are left in the log.
    pub fn log_left(&self) -> u64 {
        self.log_left.load(Ordering::Relaxed)
    }

    /// For how long there has been too little.
    pub fn short_for(&self) -> Option<Duration> {
        self.since.lock().expect("never poisoned").map(|since| since.elapsed())
    }

    /// An image is being written, until this is dropped.
    pub fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().expect("never poisoned")
    }

    /// There was no room for an image.
    pub fn image_is_short(&self) {
        self.image_is_short.store(true, Ordering::Relaxed);
        self.settle();
    }

    /// An image of so many bytes was written: takes room for the next.
    pub fn take_for_next(&self, last: u64) {
        let bytes = IMAGE_BYTES_MIN.max(last + last / GROWTH_PARTS);
        self.last_bytes.store(last, Ordering::Relaxed);
        self.next_bytes.store(bytes, Ordering::Relaxed);
        self.take();
    }

    /// How long the last image is, in bytes; 0 if there is none.
    pub fn last_image(&self) -> u64 {
        self.last_bytes.load(Ordering::Relaxed)
    }

    fn take(&self) {
        let bytes = self.next_bytes.load(Ordering::Relaxed);
        let taken = direct::open(&self.aside()).and_then(|file| {
            self.has(bytes.saturating_sub(file.metadata()?.len()))?;
            Ok(rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes)?)
        });
        // Where the file system has no such thing it is as good as it can be.
        self.image_is_short.store(taken.is_err_and(|error| is_full(&error)), Ordering::Relaxed);
        self.settle();
    }

    /// Somebody may have made room for an image.
    pub fn take_again(&self) {
        if self.image_is_short.load(Ordering::Relaxed)
            && let Ok(_alone) = self.writing.try_lock()
        {
            self.take();
        }
    }
}

/// Whether an error says that the disk is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
