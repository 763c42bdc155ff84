//! What a name stands for: a file with its chunks, a directory, a symlink.

use bincode::{Decode, Encode};
use common::wire::client_master::{FileKind, Owner};
use common::{ChunkHandle, FileId};

/// No directory.
pub(crate) const NOWHERE: FileId = FileId(0);

// There are many.
const _: () = assert!(size_of::<Inode>() == 64);

/// A file, directory, symlink or special file.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Inode {
    /// Permission bits.
    pub mode: u16,
    /// A file whose last chunk is not sealed: its length is as last reported.
    pub(crate) open: bool,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The policy that a file was created with, interned; 0 for what is no file.
    pub(crate) policy: u32,
    /// Modification time, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// When it, or what is told of it, last changed, nanoseconds since 1970.
    pub(crate) ctime_ns: i64,
    /// The directory that names it, and in which it counts: of several, one. `NOWHERE` if none does.
    pub(crate) parent: FileId,
    /// What it holds.
    pub body: Body,
}

/// What an inode holds.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Body {
    /// Chunks.
    File(FileBody),
    /// Entries; they lie in a map of their own.
    Directory {
        /// How many.
        entries: u64,
        /// How many of them are directories.
        directories: u64,
    },
    /// A target.
    Symlink {
        /// Where it points.
        target: Box<[u8]>,
    },
    /// Nothing: the kernel of whoever opens it knows what to do.
    Special {
        /// What it is.
        kind: FileKind,
        /// Which device, as the kernel numbers them.
        device: u32,
    },
}

/// What few inodes have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Extra {
    /// The time of access that was set, nanoseconds since 1970.
    pub atime_ns: Option<i64>,
    /// The directories that name it and how often, if it has several names.
    pub names: Vec<(FileId, u32)>,
    /// Extended attributes, by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Extra {
    pub fn count_name(&mut self, parent: FileId, by: i32) {
        match self.names.iter().position(|(at, _)| *at == parent) {
            None => self.names.push((parent, by as u32)),
            Some(at) => {
                let count = &mut self.names[at].1;
                *count = count.checked_add_signed(by).expect("names are counted");
                if *count == 0 {
                    self.names.remove(at);
                }
            }
        }
    }

    /// Bytes of all extended attributes.
    pub fn xattr_bytes(&self) -> usize {
        self.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

/// The chunks of a file.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct FileBody {
    parts: Parts,
}

/// Most files have one chunk: it lies here, without memory of its own.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
enum Parts {
    None,
    One(Part),
    Many(Box<Many>),
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Many {
    parts: Vec<Part>,
    /// Bytes in all.
    length: u64,
}

/// One chunk of a file, or a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Part {
    /// The chunk.
    pub handle: ChunkHandle,
    /// Bytes.
    pub length: u64,
}

impl FileBody {
    /// The chunks, in order.
    pub fn parts(&self) -> &[Part] {
        match &self.parts {
            Parts::None => &[],
            Parts::One(part) => std::slice::from_ref(part),
            Parts::Many(many) => &many.parts,
        }
    }

    /// Bytes in all.
    pub fn length(&self) -> u64 {
        match &self.parts {
            Parts::None => 0,
            Parts::One(part) => part.length,
            Parts::Many(many) => many.length,
        }
    }

    fn set_length(&mut self, handle: ChunkHandle, length: u64) {
        match &mut self.parts {
            Parts::One(part) if part.handle == handle => part.length = length,
            Parts::None | Parts::One(_) => {}
            Parts::Many(many) => {
                // Almost always the last one.
                if let Some(part) = many.parts.iter_mut().rev().find(|p| p.handle == handle) {
                    many.length = many.length - part.length + length;
                    part.length = length;
                }
            }
        }
    }

    pub(crate) fn push(&mut self, handle: ChunkHandle, length: u64) {
        let part = Part { handle, length };
        match &mut self.parts {
            Parts::None => self.parts = Parts::One(part),
            Parts::One(first) => {
                let length = first.length + length;
                self.parts = Parts::Many(Box::new(Many { parts: vec![*first, part], length }));
            }
            Parts::Many(many) => {
                many.parts.push(part);
                many.length += length;
            }
        }
    }

    /// A part of the hole at this index becomes a chunk: so many bytes from there on.
    pub(crate) fn fill(&mut self, index: usize, handle: ChunkHandle, from: u64, length: u64) {
        let mut parts = self.parts().to_vec();
        let hole = parts[index];
        let hole_of = |length| Part { handle: ChunkHandle::HOLE, length };
        let pieces = [hole_of(from), Part { handle, length }, hole_of(hole.length - from - length)];
        parts.splice(index..=index, pieces.into_iter().filter(|p| p.length > 0));
        self.set(parts);
    }

    /// Keeps the first so many chunks, the last of them with this length.
    pub(crate) fn keep(&mut self, count: usize, last: Option<u64>) {
        let mut parts = self.parts()[..count].to_vec();
        if let (Some(part), Some(length)) = (parts.last_mut(), last) {
            part.length = length;
        }
        self.set(parts);
    }

    fn set(&mut self, parts: Vec<Part>) {
        self.parts = match parts[..] {
            [] => Parts::None,
            [one] => Parts::One(one),
            _ => {
                let length = parts.iter().map(|p| p.length).sum();
                Parts::Many(Box::new(Many { parts, length }))
            }
        };
    }

    pub(crate) fn check(&self) {
        assert_eq!(self.length(), self.parts().iter().map(|p| p.length).sum::<u64>());
        assert!(!matches!(&self.parts, Parts::Many(many) if many.parts.len() < 2));
    }
}

impl Inode {
    pub(crate) fn directory(mode: u16, now: i64) -> Inode {
        Inode { mode, ..Inode::of(Body::Directory { entries: 0, directories: 0 }, now) }
    }

    pub(crate) fn file(mode: u16, now: i64, policy: u32) -> Inode {
        Inode { mode, policy, ..Inode::of(Body::File(FileBody { parts: Parts::None }), now) }
    }

    pub(crate) fn symlink(target: &[u8], now: i64) -> Inode {
        Inode { mode: 0o777, ..Inode::of(Body::Symlink { target: target.into() }, now) }
    }

    pub(crate) fn special(mode: u16, now: i64, kind: FileKind, device: u32) -> Inode {
        Inode { mode, ..Inode::of(Body::Special { kind, device }, now) }
    }

    fn of(body: Body, now: i64) -> Inode {
        Inode {
            mode: 0,
            open: false,
            uid: 0,
            gid: 0,
            policy: 0,
            mtime_ns: now,
            ctime_ns: now,
            parent: NOWHERE,
            body,
        }
    }

    /// It belongs to somebody; in a directory that hands its group on, to that.
    pub(crate) fn owned(mut self, owner: Owner, parent: &Inode) -> Inode {
        const SET_GROUP_ID: u16 = 0o2000;
        (self.uid, self.gid) = (owner.uid, owner.gid);
        if parent.mode & SET_GROUP_ID != 0 {
            self.gid = parent.gid;
            if matches!(self.body, Body::Directory { .. }) {
                self.mode |= SET_GROUP_ID;
            }
        }
        self
    }

    /// One chunk or hole more.
    pub(crate) fn push(&mut self, handle: ChunkHandle, length: u64) {
        self.open = handle != ChunkHandle::HOLE;
        self.file_mut().push(handle, length);
    }

    /// A chunk's length is known, for good if it is sealed.
    pub(crate) fn set_length(&mut self, handle: ChunkHandle, length: u64, sealed: bool) {
        let file = self.file_mut();
        file.set_length(handle, length);
        let last = file.parts().last().is_some_and(|p| p.handle == handle);
        self.open &= !(sealed && last);
    }

    pub(crate) fn file_mut(&mut self) -> &mut FileBody {
        match &mut self.body {
            Body::File(file) => file,
            _ => panic!("a chunk belongs to something that is no file"),
        }
    }
}
