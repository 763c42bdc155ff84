//! What programs have open: files, which all handles of an inode share, and directories.

use crate::listing::Listing;
use client::{Client, OpenFile, Seen};
use common::FileId;
use std::collections::HashMap;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};

/// How far what new files became can tip the balance.
const HABIT_MAX: i32 = 4;

/// Everything that is open.
#[derive(Default)]
pub struct Handles {
    files: Mutex<HashMap<FileId, Open>>,
    directories: Mutex<HashMap<u64, Arc<Listing>>>,
    /// How many more of the last new files got bytes than did not.
    habit: AtomicI32,
}

struct Open {
    file: Arc<OpenFile>,
    handles: usize,
    /// It was made by who opened it first.
    is_new: bool,
}

impl Handles {
    /// One more handle of a file, perhaps of one that was just made. Whoever opened it before knows other things
    /// of it than what was just seen: gives the file, if there is one.
    pub fn open(&self, client: &Client, seen: &Seen, is_new: bool) -> Option<Arc<OpenFile>> {
        let mut files = self.files.lock().expect("never poisoned");
        let fresh = || Open { file: Arc::new(OpenFile::new(client, seen)), handles: 0, is_new };
        let open = files.entry(seen.attr.file).or_insert_with(fresh);
        open.handles += 1;
        (open.handles > 1).then(|| open.file.clone())
    }

    /// Whether a new file will soon have bytes, as the last ones did.
    pub fn expects_bytes(&self) -> bool {
        self.habit.load(Ordering::Relaxed) > 0
    }

    /// A file that is open.
    pub fn get(&self, file: FileId) -> Option<Arc<OpenFile>> {
        self.files.lock().expect("never poisoned").get(&file).map(|open| open.file.clone())
    }

    /// One handle less.
    pub fn close(&self, file: FileId) {
        let mut files = self.files.lock().expect("never poisoned");
        let Some(open) = files.get_mut(&file) else { return };
        open.handles -= 1;
        if open.handles > 0 {
            return;
        }
        if open.is_new {
            let step = if open.file.has_bytes() { 1 } else { -1 };
            let habit = self.habit.load(Ordering::Relaxed) + step;
            self.habit.store(habit.clamp(-HABIT_MAX, HABIT_MAX), Ordering::Relaxed);
        }
        files.remove(&file);
    }

    /// The files that are open.
    pub fn files(&self) -> Vec<FileId> {
        self.files.lock().expect("never poisoned").keys().copied().collect()
    }

    /// A directory is read under this number.
    pub fn open_directory(&self, handle: u64, directory: FileId) {
        let listing = Arc::new(Listing::of(directory));
        self.directories.lock().expect("never poisoned").insert(handle, listing);
    }

    /// The directory that is read under this number.
    pub fn directory(&self, handle: u64) -> Option<Arc<Listing>> {
        self.directories.lock().expect("never poisoned").get(&handle).cloned()
    }

    /// A directory is not read any more.
    pub fn close_directory(&self, handle: u64) {
        self.directories.lock().expect("never poisoned").remove(&handle);
    }
}
