//! Files with set-user-ID and set-group-ID bits, as the kernel was told. It leaves it to the mount to take the bits away
//! when such a file is written, cut or given to somebody else (`FUSE_HANDLE_KILLPRIV_V2`), and so need not ask before
//! each write what else a file would lose.

use common::FileId;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Default)]
pub struct SetIds {
    /// Modes of those that the kernel knows; it knows no more files than fit in its memory.
    modes: Mutex<HashMap<FileId, u32>>,
    /// So many; mostly none, and then nobody waits for the others.
    count: AtomicUsize,
}

/// A mode after the file was written by somebody without `CAP_FSETID`, or given away by anybody; none if it loses
/// nothing. Without the right to execute for the group the second bit once meant mandatory locks, and stays.
fn without(mode: u32) -> Option<u32> {
    let group = if mode & libc::S_IXGRP != 0 { libc::S_ISGID } else { 0 };
    let left = mode & !(libc::S_ISUID | group);
    (left != mode).then_some(left)
}

impl SetIds {
    /// The kernel is told the mode of a file that is no directory.
    pub fn told(&self, file: FileId, mode: u32) {
        if without(mode).is_some() {
            let mut modes = self.modes.lock().expect("never poisoned");
            modes.insert(file, mode);
            self.count.store(modes.len(), Ordering::Release);
        } else {
            self.forget(file);
        }
    }

    /// The kernel does not know the file any more.
    pub fn forget(&self, file: FileId) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut modes = self.modes.lock().expect("never poisoned");
        modes.remove(&file);
        self.count.store(modes.len(), Ordering::Release);
    }

    /// The mode that a file has left, if it has something to lose.
    pub fn left(&self, file: FileId) -> Option<u32> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.modes.lock().expect("never poisoned").get(&file).and_then(|mode| without(*mode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_loses_what_the_kernel_was_told_last() {
        let (ids, file) = (SetIds::default(), FileId(7));
        assert_eq!(ids.left(file), None);
        ids.told(file, 0o6755);
        assert_eq!((ids.left(file), ids.left(FileId(8))), (Some(0o755), None));
        ids.told(file, 0o6745);
        assert_eq!(ids.left(file), Some(0o2745), "who locks by it keeps it");
        ids.told(file, 0o2745);
        assert_eq!(ids.left(file), None);
        ids.told(file, 0o4755);
        ids.forget(file);
        assert_eq!(ids.left(file), None);
    }
}
