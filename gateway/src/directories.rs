//! Attributes of directories. The kernel forgets those of a directory in which it has changed a name, and needs them
//! for the next look into it: where names are made one after another, that would be a question to the masters each.
//! What is changed here is known here, with the time that the masters have given it; what others change can be as old
//! as the kernel may believe attributes.

use crate::TTL;
use client::Attr;
use common::FileId;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// For so long attributes hold, as the kernel may believe them (`Cache::ttl`).
const VALID: Duration = TTL;
/// Directories of which something is known at a time; with more, all is forgotten.
const DIRECTORIES_MAX: usize = 1024;

#[derive(Default)]
pub struct Directories(Mutex<State>);

#[derive(Default)]
struct State {
    known: HashMap<FileId, Known>,
    /// Rises with each question and each change.
    moment: u64,
    /// When all was forgotten last, changes among it.
    cleared: u64,
}

#[derive(Default)]
struct Known {
    attr: Option<(Attr, Instant)>,
    /// When it was changed last.
    changed: u64,
}

/// When the masters were asked about a directory.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    moment: u64,
    at: Instant,
}

impl Directories {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.0.lock().expect("never poisoned");
        state.moment += 1;
        f(&mut state)
    }

    /// The attributes of a directory, and for how long they hold.
    pub fn attr(&self, directory: FileId, now: Instant) -> Option<(Attr, Duration)> {
        let state = self.0.lock().expect("never poisoned");
        let (attr, at) = state.known.get(&directory)?.attr.as_ref()?;
        let left = VALID.checked_sub(now.duration_since(*at)).filter(|left| !left.is_zero())?;
        Some((attr.clone(), left))
    }

    /// The masters are asked now.
    pub fn asked(&self, directory: FileId, now: Instant) -> Asked {
        self.with(|state| {
            if state.known.len() >= DIRECTORIES_MAX {
                state.known.clear();
                state.cleared = state.moment;
            }
            state.known.entry(directory).or_default();
            Asked { moment: state.moment, at: now }
        })
    }

    /// This is what they say. It counts unless the directory was changed here since they were asked.
    pub fn told(&self, directory: FileId, asked: Asked, attr: &Attr) {
        self.with(|state| {
            let since = state.cleared;
            let unchanged = |known: &&mut Known| known.changed.max(since) < asked.moment;
            if let Some(known) = state.known.get_mut(&directory).filter(unchanged) {
                known.attr = Some((attr.clone(), asked.at));
            }
        });
    }

    /// A name of it that is no directory's came or went at this time. Must be said before whoever did that is answered.
    pub fn changed(&self, directory: FileId, at_ns: i64) {
        self.with(|state| {
            let moment = state.moment;
            let Some(known) = state.known.get_mut(&directory) else { return };
            known.changed = moment;
            if let Some((attr, _)) = &mut known.attr {
                attr.mtime_ns = attr.mtime_ns.max(at_ns);
                attr.ctime_ns = attr.ctime_ns.max(at_ns);
            }
        });
    }

    /// It was changed, or may have been, in a way that is not known here.
    pub fn forget(&self, directory: FileId) {
        self.with(|state| {
            let moment = state.moment;
            if let Some(known) = state.known.get_mut(&directory) {
                (known.attr, known.changed) = (None, moment);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::ATTR;
    use client::FileKind;

    const DIR: FileId = FileId(3);

    fn attr(mode: u32, time: i64) -> Attr {
        let kind = FileKind::Directory;
        Attr { file: DIR, kind, mode, mtime_ns: time, ctime_ns: time, links: 2, ..ATTR }
    }

    #[test]
    fn what_is_changed_here_is_seen_at_once_and_the_rest_within_its_time() {
        let (all, now) = (Directories::default(), Instant::now());
        assert!(all.attr(DIR, now).is_none());
        all.told(DIR, all.asked(DIR, now), &attr(0o755, 100));
        all.changed(DIR, 200);
        all.changed(DIR, 150);
        let (seen, left) = all.attr(DIR, now + VALID / 4).unwrap();
        assert_eq!((seen.mtime_ns, seen.ctime_ns, seen.mode), (200, 200, 0o755));
        assert_eq!(left, VALID - VALID / 4);
        assert!(all.attr(DIR, now + VALID).is_none(), "it is too old");
        all.forget(DIR);
        assert!(all.attr(DIR, now).is_none());
    }

    #[test]
    fn an_answer_to_a_question_from_before_a_change_does_not_count() {
        let (all, now) = (Directories::default(), Instant::now());
        let asked = all.asked(DIR, now);
        all.changed(DIR, 200);
        all.told(DIR, asked, &attr(0o755, 100));
        assert!(all.attr(DIR, now).is_none(), "the change would be lost");
        let asked = all.asked(DIR, now);
        all.forget(DIR);
        all.told(DIR, asked, &attr(0o755, 100));
        assert!(all.attr(DIR, now).is_none());
        all.told(DIR, all.asked(DIR, now), &attr(0o700, 300));
        assert_eq!(all.attr(DIR, now).unwrap().0.mode, 0o700);
    }

    #[test]
    fn there_is_a_bound() {
        let (all, now) = (Directories::default(), Instant::now());
        let asked = all.asked(DIR, now);
        for n in 0..2 * DIRECTORIES_MAX as u64 {
            all.asked(FileId(1000 + n), now);
        }
        assert!(all.0.lock().unwrap().known.len() <= DIRECTORIES_MAX);
        all.asked(DIR, now);
        all.told(DIR, asked, &attr(0o755, 100));
        assert!(all.attr(DIR, now).is_none(), "changes since may have been forgotten");
    }
}
