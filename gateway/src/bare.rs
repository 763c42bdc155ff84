//! Files that have no extended attributes, as far as whoever lists their directory is told. `ls -l` and `cp -a` then ask for
//! two or three of each.

use crate::TTL;
use common::FileId;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// For so long that holds, as the kernel may believe attributes (`Cache::ttl`).
const VALID: Duration = TTL;
/// Files of which something is known at a time; with more, all is forgotten.
const FILES_MAX: usize = 16 * 1024;

#[derive(Default)]
pub struct Bare(Mutex<State>);

#[derive(Default)]
struct State {
    files: HashMap<FileId, Known>,
    /// When all was forgotten last, changes among it.
    forgot: Option<Instant>,
}

#[derive(Clone, Copy)]
enum Known {
    /// The masters were asked then, and it had none.
    Had(Instant),
    /// They were changed here at that time: what the masters were asked before does not count.
    Changed(Instant),
}

impl State {
    fn make_room(&mut self, now: Instant) {
        if self.files.len() >= FILES_MAX {
            self.files.clear();
            self.forgot = Some(now);
        }
    }
}

impl Bare {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.lock().expect("never poisoned"))
    }

    /// The masters, who were asked then, say that a file has none.
    pub fn told(&self, file: FileId, asked: Instant) {
        self.with(|state| {
            let changed = match state.files.get(&file) {
                Some(Known::Changed(at)) => Some(*at),
                _ => None,
            };
            if changed.max(state.forgot).is_none_or(|at| at < asked) {
                state.make_room(asked);
                state.files.insert(file, Known::Had(asked));
            }
        });
    }

    /// Whether a file has none.
    pub fn is(&self, file: FileId, now: Instant) -> bool {
        self.with(|state| match state.files.get(&file) {
            Some(Known::Had(asked)) => now.duration_since(*asked) < VALID,
            _ => false,
        })
    }

    /// Those of a file are changed here, or were. To be said before the masters are asked for it, and after they have answered.
    pub fn changed(&self, file: FileId) {
        self.with(|state| {
            let now = Instant::now();
            state.make_room(now);
            state.files.insert(file, Known::Changed(now));
        });
    }

    /// Others may have changed any.
    pub fn forget(&self) {
        self.with(|state| {
            state.files.clear();
            state.forgot = Some(Instant::now());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileId = FileId(7);

    #[test]
    fn what_was_asked_before_a_change_does_not_count() {
        let (bare, before) = (Bare::default(), Instant::now());
        assert!(!bare.is(FILE, before), "nobody was asked");
        bare.told(FILE, before);
        assert!(bare.is(FILE, before) && !bare.is(FILE, before + VALID));
        for change in [|bare: &Bare| bare.changed(FILE), Bare::forget] {
            change(&bare);
            assert!(!bare.is(FILE, Instant::now()));
            bare.told(FILE, before);
            assert!(!bare.is(FILE, Instant::now()), "it was asked before");
            let later = Instant::now() + Duration::from_millis(1);
            bare.told(FILE, later);
            assert!(bare.is(FILE, later));
        }
    }

    #[test]
    fn there_is_a_bound_and_no_change_is_lost() {
        let (bare, before) = (Bare::default(), Instant::now());
        bare.changed(FILE);
        let later = Instant::now();
        for n in 0..2 * FILES_MAX as u64 {
            bare.told(FileId(1000 + n), later + Duration::from_millis(1 + n));
        }
        assert!(bare.with(|state| state.files.len()) <= FILES_MAX);
        bare.told(FILE, before);
        assert!(!bare.is(FILE, before));
    }
}
