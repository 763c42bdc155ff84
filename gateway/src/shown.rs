//! Lengths of files that the kernel has been told and may still believe. It reads no further than that, so whoever opens
//! a file that has become longer elsewhere would not see its end, though its bytes are asked for anew. And it takes an
//! answer with fewer bytes than it asked for as the end of the file, whatever it was told before.

use common::FileId;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// For so long the kernel may believe what it was told, names and lengths: for a second (`Cache::ttl`), which it counts from when it takes
/// the answer, and that can be later.
pub const BELIEVED: Duration = Duration::from_secs(2);
/// With more files than this, those are forgotten that it does not believe any more ...
const FILES: usize = 4096;
/// ... and with more than this, all: then it may believe anything for a while.
const FILES_MAX: usize = 65536;

#[derive(Default)]
pub struct Shown(Mutex<State>);

#[derive(Default)]
struct State {
    /// What was told, and when; nothing, if a read has ended before that: it may believe one or the other.
    lengths: HashMap<FileId, (Option<u64>, Instant)>,
    /// All was forgotten.
    forgot: Option<Instant>,
    /// Of files that are open here the most that it may take for their length, whatever else is forgotten.
    open: HashMap<FileId, u64>,
}

impl Shown {
    /// The kernel is told the length of a file.
    pub fn told(&self, file: FileId, length: u64, now: Instant) {
        let mut state = self.0.lock().expect("never poisoned");
        if state.lengths.len() >= FILES && state.lengths.len().is_multiple_of(FILES) {
            state.lengths.retain(|_, (_, at)| now.duration_since(*at) < BELIEVED);
        }
        if state.lengths.len() >= FILES_MAX {
            state.lengths.clear();
            state.forgot = Some(now);
        }
        state.lengths.insert(file, (Some(length), now));
        if let Some(open) = state.open.get_mut(&file) {
            *open = length.max(*open);
        }
    }

    /// Whether it may have been told something of a file since then, within the time for which it believes that.
    pub fn told_since(&self, file: FileId, since: Instant) -> bool {
        let state = self.0.lock().expect("never poisoned");
        let told = state.lengths.get(&file).map(|(_, at)| *at);
        told.max(state.forgot).is_some_and(|at| at >= since)
    }

    /// A file is opened here, of which it was told that length.
    pub fn opened(&self, file: FileId, length: u64) {
        self.0.lock().expect("never poisoned").open.entry(file).or_insert(length);
    }

    /// It is told that a file was written to, up to here.
    pub fn written(&self, file: FileId, to: u64) {
        if let Some(open) = self.0.lock().expect("never poisoned").open.get_mut(&file) {
            *open = to.max(*open);
        }
    }

    /// It is told that a file was cut to this length.
    pub fn cut(&self, file: FileId, length: u64) {
        if let Some(open) = self.0.lock().expect("never poisoned").open.get_mut(&file) {
            *open = length;
        }
    }

    /// A file is not open here any more, unless it was opened again.
    pub fn closed(&self, file: FileId, is_open: impl Fn() -> bool) {
        let mut state = self.0.lock().expect("never poisoned");
        if !is_open() {
            state.open.remove(&file);
        }
    }

    /// The most that it may take for the length of a file that is open here.
    pub fn open_length(&self, file: FileId) -> Option<u64> {
        self.0.lock().expect("never poisoned").open.get(&file).copied()
    }

    /// Whether it was told that a file is longer than this.
    pub fn is_longer(&self, file: FileId, length: u64) -> bool {
        let state = self.0.lock().expect("never poisoned");
        state.lengths.get(&file).is_some_and(|(told, _)| told.is_some_and(|told| told > length))
    }

    /// A read ends before what it was told.
    pub fn ends_before(&self, file: FileId, now: Instant) {
        self.0.lock().expect("never poisoned").lengths.insert(file, (None, now));
    }

    /// Whether it may believe another one.
    pub fn differs(&self, file: FileId, length: u64, now: Instant) -> bool {
        let state = self.0.lock().expect("never poisoned");
        let believes = |at: Instant| now.duration_since(at) < BELIEVED;
        match state.lengths.get(&file) {
            Some((told, at)) => *told != Some(length) && believes(*at),
            None => state.forgot.is_some_and(believes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_believed_differs_until_it_is_not_believed_any_more() {
        let (shown, now) = (Shown::default(), Instant::now());
        assert!(!shown.differs(FileId(1), 5, now), "it was told nothing");
        shown.told(FileId(1), 5, now);
        assert!(!shown.differs(FileId(1), 5, now));
        assert!(shown.differs(FileId(1), 6, now));
        assert!(!shown.differs(FileId(1), 6, now + BELIEVED));
    }

    #[test]
    fn what_ended_before_what_was_told_differs_from_every_length() {
        let (shown, now) = (Shown::default(), Instant::now());
        assert!(!shown.is_longer(FileId(1), 0), "it was told nothing");
        shown.told(FileId(1), 5, now);
        assert!(shown.is_longer(FileId(1), 4) && !shown.is_longer(FileId(1), 5));
        shown.ends_before(FileId(1), now);
        assert!(!shown.is_longer(FileId(1), 4), "it is known to have ended");
        assert!(shown.differs(FileId(1), 4, now) && shown.differs(FileId(1), 5, now));
        shown.told(FileId(1), 5, now);
        assert!(!shown.differs(FileId(1), 5, now));
    }

    #[test]
    fn the_length_of_an_open_file_is_not_forgotten() {
        let (shown, now, file) = (Shown::default(), Instant::now(), FileId(7));
        shown.written(file, 9);
        assert_eq!(shown.open_length(file), None, "it is not open");
        shown.opened(file, 5);
        shown.written(file, 9);
        shown.written(file, 7);
        for n in 0..=FILES_MAX as u64 {
            shown.told(FileId(1000 + n), 5, now);
        }
        assert_eq!(shown.open_length(file), Some(9));
        shown.told(file, 4, now);
        assert_eq!(shown.open_length(file), Some(9), "that may be from before it was written to");
        shown.cut(file, 3);
        shown.closed(file, || true);
        assert_eq!(shown.open_length(file), Some(3), "it was cut, and is opened again");
        shown.closed(file, || false);
        assert_eq!(shown.open_length(file), None);
    }

    #[test]
    fn what_was_told_or_forgotten_since_is_known() {
        let (shown, now) = (Shown::default(), Instant::now());
        let (before, after) = (now - BELIEVED / 2, now + BELIEVED / 2);
        assert!(!shown.told_since(FileId(1), before));
        shown.told(FileId(1), 5, now);
        assert!(shown.told_since(FileId(1), before) && shown.told_since(FileId(1), now));
        assert!(!shown.told_since(FileId(1), after) && !shown.told_since(FileId(2), before));
        for n in 0..=FILES_MAX as u64 {
            shown.told(FileId(1000 + n), 5, now);
        }
        assert!(shown.told_since(FileId(2), before) && !shown.told_since(FileId(2), after));
    }

    #[test]
    fn what_was_forgotten_may_be_believed() {
        let (shown, now) = (Shown::default(), Instant::now());
        for n in 0..=FILES_MAX as u64 {
            shown.told(FileId(n), 5, now);
        }
        assert!(shown.0.lock().unwrap().lengths.len() <= FILES_MAX);
        assert!(shown.differs(FileId(7), 5, now));
        assert!(!shown.differs(FileId(7), 5, now + BELIEVED));
    }
}
