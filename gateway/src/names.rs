//! Names by which the kernel may still believe to reach files, and who was told that one leads to a file no more. It believes
//! a name for a second (`Cache::ttl`), which it counts from when it takes the answer; whatever others did to that name, it asks
//! for the file that it knows.

use crate::shown::BELIEVED;
use common::FileId;
use fuser::INodeNo;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Instant;

/// With so many more files those are forgotten that it does not believe any more ...
const FILES: usize = 4096;
/// ... and with more than this, all: their names are believed to the end.
const FILES_MAX: usize = 65536;
/// Programs that were told so and may open a file again; with more, all are forgotten, and told once more.
const SENT_MAX: usize = 1024;

/// A name in a directory.
pub type Place = (INodeNo, Vec<u8>);

#[derive(Default)]
pub struct Names {
    /// Of each file the one that was told last.
    believed: Mutex<HashMap<FileId, (Place, Instant)>>,
    /// Threads that were sent to look again: from which file, or to which they have come since, and when they were sent.
    sent: Mutex<HashMap<u32, (FileId, Instant)>>,
}

impl Names {
    /// The kernel is told that a name leads to a file.
    pub fn told(&self, file: FileId, place: Place, now: Instant) {
        let mut believed = self.believed.lock().expect("never poisoned");
        if believed.len() >= FILES && believed.len().is_multiple_of(FILES) {
            believed.retain(|_, (_, at)| now.duration_since(*at) < BELIEVED);
        }
        if believed.len() >= FILES_MAX {
            believed.clear();
        }
        believed.insert(file, (place, now));
    }

    /// A name that it may believe to lead to a file.
    pub fn believed(&self, file: FileId, now: Instant) -> Option<Place> {
        let believed = self.believed.lock().expect("never poisoned");
        let (place, at) = believed.get(&file)?;
        (now.duration_since(*at) < BELIEVED).then(|| place.clone())
    }

    /// It does not know the file any more.
    pub fn forget(&self, file: FileId) {
        self.believed.lock().expect("never poisoned").remove(&file);
    }

    /// A thread has been led to this by a name, as that is now.
    pub fn looked(&self, thread: u32, file: FileId) {
        if let Some((to, _)) = self.sent.lock().expect("never poisoned").get_mut(&thread) {
            *to = file;
        }
    }

    /// A thread has found what it was looking for, or that there is no such name: it is sent anew if another name is old.
    pub fn arrived(&self, thread: u32) {
        self.sent.lock().expect("never poisoned").remove(&thread);
    }

    /// A thread opens a file to which the name that led there leads no more: whether it is to look again. It need not if it was
    /// sent to look just now, and came to this file by what it saw then, or by a descriptor (`/proc/self/fd`), which led it
    /// here twice: names can change faster than anybody opens them.
    pub fn is_sent(&self, thread: u32, file: FileId, now: Instant) -> bool {
        let mut sent = self.sent.lock().expect("never poisoned");
        if let Some((to, at)) = sent.remove(&thread)
            && to == file
            && now.duration_since(at) < BELIEVED
        {
            return false;
        }
        if sent.len() >= SENT_MAX {
            sent.clear();
        }
        sent.insert(thread, (file, now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> Place {
        (INodeNo(1), name.into())
    }

    #[test]
    fn the_last_name_is_believed_for_its_time() {
        let (names, now, file) = (Names::default(), Instant::now(), FileId(7));
        assert_eq!(names.believed(file, now), None);
        names.told(file, place("a"), now);
        names.told(file, place("b"), now);
        assert_eq!(names.believed(file, now), Some(place("b")));
        assert_eq!(names.believed(file, now + BELIEVED), None);
        names.forget(file);
        assert_eq!(names.believed(file, now), None);
    }

    #[test]
    fn who_comes_again_at_once_is_let_in() {
        let (names, now, file) = (Names::default(), Instant::now(), FileId(7));
        assert!(names.is_sent(1, file, now));
        assert!(names.is_sent(2, file, now), "that is another one");
        assert!(!names.is_sent(1, file, now));
        assert!(names.is_sent(1, file, now), "that is another time");
        assert!(names.is_sent(1, file, now + BELIEVED), "that was long ago");
        assert!(!names.is_sent(1, file, now + BELIEVED));
    }

    #[test]
    fn who_was_sent_is_let_in_to_what_the_name_led_to_then() {
        let (names, now) = (Names::default(), Instant::now());
        names.looked(1, FileId(6));
        assert!(names.is_sent(1, FileId(6), now), "nobody had sent it");
        names.looked(1, FileId(3));
        names.looked(2, FileId(9));
        names.looked(1, FileId(8));
        assert!(!names.is_sent(1, FileId(8), now), "that has been replaced, too");
        assert!(names.is_sent(1, FileId(7), now));
        assert!(names.is_sent(1, FileId(9), now), "there was nothing of that name; this is another open");
        names.looked(1, FileId(5));
        names.arrived(1);
        names.looked(1, FileId(4));
        assert!(names.is_sent(1, FileId(4), now), "that is another open");
    }

    #[test]
    fn there_are_bounds() {
        let (names, now) = (Names::default(), Instant::now());
        for n in 0..=FILES_MAX as u64 {
            names.told(FileId(n), place("a"), now);
            names.is_sent(n as u32, FileId(n), now);
        }
        assert!(names.believed.lock().unwrap().len() <= FILES_MAX);
        assert!(names.sent.lock().unwrap().len() <= SENT_MAX);
        for n in 0..FILES as u64 {
            names.told(FileId(n), place("a"), now + BELIEVED);
        }
        assert!(names.believed.lock().unwrap().len() <= FILES + 1);
    }
}
