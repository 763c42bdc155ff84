//! What the file system of a disk is told.

use rustix::fs::{IFlags, fstatfs, ioctl_getflags, ioctl_setflags};
use std::fs::File;
use std::io;
use std::path::Path;

/// What btrfs calls itself (`statfs`, `f_type`).
const BTRFS: u64 = 0x9123_683e;

/// Files that are made in this directory from now on are overwritten in place.
///
/// Ext4 and XFS do so anyway. Btrfs would write each block to a new place instead: into room that was allocated for
/// it the next write could find none, and each small write would be one of its trees, too (docs/decisions/0033).
///
/// # Errors
/// Of the system: this directory's files are written all the same.
pub fn overwrite_in_place(dir: &Path) -> io::Result<()> {
    let dir = File::open(dir)?;
    if fstatfs(&dir)?.f_type as u64 != BTRFS {
        return Ok(());
    }
    let flags = ioctl_getflags(&dir)?;
    Ok(ioctl_setflags(&dir, flags | IFlags::NOCOW)?)
}
