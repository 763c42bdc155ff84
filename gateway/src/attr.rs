//! Attributes as the kernel wants them.

use client::{Attr, FileKind};
use fuser::{FileAttr, FileType, INodeNo};
use std::time::{Duration, SystemTime};

/// What programs should read and write at a time.
const BLOCK_SIZE: u32 = 128 * 1024;

/// The kernel's name for a kind.
pub fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharacterDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// Our name for the kind that a mode tells.
pub fn kind_of(mode: u32) -> Option<FileKind> {
    match mode & libc::S_IFMT {
        libc::S_IFREG | 0 => Some(FileKind::File),
        libc::S_IFIFO => Some(FileKind::Fifo),
        libc::S_IFSOCK => Some(FileKind::Socket),
        libc::S_IFCHR => Some(FileKind::CharacterDevice),
        libc::S_IFBLK => Some(FileKind::BlockDevice),
        _ => None,
    }
}

/// Nanoseconds since 1970 as a time.
pub fn time(ns: i64) -> SystemTime {
    let span = Duration::from_nanos(ns.unsigned_abs());
    if ns < 0 { SystemTime::UNIX_EPOCH - span } else { SystemTime::UNIX_EPOCH + span }
}

/// A time as nanoseconds since 1970; the nearest that can be told.
pub fn nanos(time: SystemTime) -> i64 {
    let clamp = |ns: u128| i64::try_from(ns).unwrap_or(i64::MAX);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => clamp(since.as_nanos()),
        Err(before) => -clamp(before.duration().as_nanos()),
    }
}

/// Blocks of 512 bytes that are told of a file: never less than it has. A hole, however long, counts as a chunk; if there were no
/// difference, who copies a sparse file would not look for its holes.
fn blocks(attr: &Attr) -> u64 {
    let most =
        if attr.kind == FileKind::File { attr.count.saturating_mul(attr.chunk_bytes) } else { u64::MAX };
    attr.length.min(most).div_ceil(512)
}

/// All attributes.
pub fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.file.0),
        size: attr.length,
        blocks: blocks(attr),
        atime: time(attr.atime_ns),
        mtime: time(attr.mtime_ns),
        ctime: time(attr.ctime_ns),
        crtime: time(attr.ctime_ns),
        kind: file_type(attr.kind),
        perm: attr.mode as u16,
        nlink: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.device,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// An empty file, for tests.
#[cfg(test)]
pub const ATTR: Attr = Attr {
    file: common::FileId(1),
    kind: FileKind::File,
    mode: 0,
    uid: 0,
    gid: 0,
    mtime_ns: 0,
    length: 0,
    count: 0,
    open: None,
    target: vec![],
    chunk_bytes: 0,
    atime_ns: 0,
    ctime_ns: 0,
    links: 1,
    device: 0,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_take_no_blocks() {
        let attr =
            |length, count| Attr { kind: FileKind::File, length, count, chunk_bytes: 64 << 20, ..ATTR };
        for (length, count, wanted) in
            [(0, 0, 0), (1, 1, 1), (200 << 20, 4, 200 << 11), (1 << 40, 2, 128 << 11)]
        {
            assert_eq!(blocks(&attr(length, count)), wanted, "{length} bytes in {count}");
        }
        assert_eq!(blocks(&Attr { kind: FileKind::Symlink, length: 600, ..ATTR }), 2);
    }

    #[test]
    fn times_come_back_as_they_went() {
        for ns in [0, 1, -1, 1_700_000_000_123_456_789, -1_700_000_000_123_456_789, i64::MAX, -i64::MAX] {
            assert_eq!(nanos(time(ns)), ns);
        }
    }
}
