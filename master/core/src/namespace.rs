//! Names: directories, files, symlinks, and every change of them.

use crate::name::Name;
use crate::{Answer, Entry, Metadata, ROOT};
use bincode::{Decode, Encode};
use common::limits::{CHUNK_BYTES_MAX, LAYOUT_PAGE_MAX, LIST_PAGE_MAX, PATH_BYTES_MAX, REPLICATION_DEFAULT};
use common::wire::ChunkConfig;
use common::wire::client_master::{Attr, ChunkInfo, FileKind, MasterReply, Mutation, Policy, split_path};
use common::{ChunkHandle, Code, Epoch, FileId, Refusal, StoreId};

/// A file, directory or symlink.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Inode {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, nanoseconds since 1970.
    pub mtime_ns: i64,
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
    },
    /// A target.
    Symlink {
        /// Where it points.
        target: Box<[u8]>,
    },
}

/// The chunks of a file.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct FileBody {
    parts: Parts,
    /// Policy at creation, interned.
    pub(crate) policy: u32,
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

    pub(crate) fn set_length(&mut self, handle: ChunkHandle, length: u64) {
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

    fn push(&mut self, handle: ChunkHandle, length: u64) {
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

    /// Keeps the first so many chunks, the last of them with this length.
    fn keep(&mut self, count: usize, last: Option<u64>) {
        let mut parts = self.parts()[..count].to_vec();
        if let (Some(part), Some(length)) = (parts.last_mut(), last) {
            part.length = length;
        }
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
    pub(crate) fn directory(mode: u32, mtime_ns: i64) -> Inode {
        Inode { mode, uid: 0, gid: 0, mtime_ns, body: Body::Directory { entries: 0 } }
    }

    fn file(mode: u32, mtime_ns: i64, policy: u32) -> Inode {
        let body = Body::File(FileBody { parts: Parts::None, policy });
        Inode { mode, uid: 0, gid: 0, mtime_ns, body }
    }

    pub(crate) fn file_mut(&mut self) -> &mut FileBody {
        match &mut self.body {
            Body::File(file) => file,
            _ => panic!("a chunk belongs to something that is no file"),
        }
    }
}

/// What a file has when no directory above it says otherwise.
fn default_policy() -> Policy {
    Policy {
        replication: Some(REPLICATION_DEFAULT),
        chunk_bytes: Some(CHUNK_BYTES_MAX),
        memory: Some(false),
        label: Some(String::new()),
    }
}

fn refuse<T>(code: Code, path: &[u8]) -> Answer<T> {
    Err(Refusal::new(code, String::from_utf8_lossy(path)))
}

impl Metadata {
    pub(crate) fn mutate(&mut self, entry: &Entry, mutation: &Mutation) -> MasterReply {
        let answer = self.try_mutate(entry, mutation);
        answer.unwrap_or_else(|r| MasterReply::Refused { code: r.code, about: r.about, leader: None })
    }

    fn try_mutate(&mut self, entry: &Entry, mutation: &Mutation) -> Answer<MasterReply> {
        let now = entry.wall_ns;
        match mutation {
            Mutation::Mkdir { path, parents, mode } => self.mkdir(path, *parents, *mode, now),
            Mutation::Create { path, mode, exclusive, parents, chunk, near } => self.create(
                path,
                *mode,
                *exclusive,
                *parents,
                chunk.then_some((near.as_str(), entry.salt)),
                now,
            ),
            Mutation::CreateUnnamed { like, chunk, near } => {
                self.create_unnamed(like, chunk.then_some((near.as_str(), entry.salt)), now)
            }
            Mutation::Publish { file, path, length, mode, mtime_ns, parents } => {
                self.publish(*file, path, *length, *mode, *mtime_ns, *parents, now)
            }
            Mutation::AddChunk { file, index, declare, near } => {
                self.add_chunk(*file, *index, *declare, near, entry.salt)
            }
            Mutation::AddHole { file, index, length } => self.add_hole(*file, *index, *length),
            Mutation::ReportLength { handle, length } => self.report_length(*handle, *length, now),
            Mutation::SetAttr { path, mode, mtime_ns, uid, gid } => {
                let id = self.resolve(path)?;
                let mut inode = self.inodes[&id].clone();
                inode.mode = mode.map_or(inode.mode, |m| m & 0o7777);
                inode.mtime_ns = mtime_ns.unwrap_or(inode.mtime_ns);
                inode.uid = uid.unwrap_or(inode.uid);
                inode.gid = gid.unwrap_or(inode.gid);
                self.inodes.insert(id, inode);
                Ok(MasterReply::Attr(self.attr(id)))
            }
            Mutation::Rename { from, to, replace } => self.rename(from, to, *replace, now),
            Mutation::Unlink { path, recursive } => self.unlink(path, *recursive, now),
            Mutation::Undelete { path, to } => {
                let id = self.undelete(path, to)?;
                Ok(MasterReply::Attr(self.attr(id)))
            }
            Mutation::Truncate { file, length } => self.truncate(*file, *length, now),
            Mutation::Symlink { path, target, parents } => self.symlink(path, target, *parents, now),
            Mutation::SetPolicy { path, policy } => self.set_policy(path, policy),
            Mutation::EmptyTrash { before_ns } => {
                let (visible, _): (Vec<_>, Vec<_>) =
                    self.trash.keys().copied().partition(|(at, _)| *at > 0 && at < before_ns);
                for key in visible {
                    self.trash.remove(&key);
                    self.move_to_grave(key.1);
                }
                Ok(MasterReply::Done)
            }
            Mutation::Drain { server, on } => self.drain(*server, *on),
            Mutation::EndClient => unreachable!("handled by the session"),
        }
    }

    /// The inode at the end of a path.
    pub fn resolve(&self, path: &[u8]) -> Answer<FileId> {
        let mut at = ROOT;
        for name in split_path(path).or_else(|code| refuse(code, path))? {
            if !matches!(self.inodes[&at].body, Body::Directory { .. }) {
                return refuse(Code::NotADirectory, path);
            }
            match self.dentries.get(&(at, Name::new(name))) {
                Some(child) => at = *child,
                None => return refuse(Code::NotFound, path),
            }
        }
        Ok(at)
    }

    /// The directory that holds (or shall hold) the last name of a path, and that name.
    pub(crate) fn parent_of(&mut self, path: &[u8], make: bool) -> Answer<(FileId, Vec<u8>)> {
        let names = split_path(path).or_else(|code| refuse(code, path))?;
        let Some((last, dirs)) = names.split_last() else {
            return refuse(Code::BadName, path);
        };
        let mut at = ROOT;
        let mut missing = dirs.len();
        for (i, name) in dirs.iter().enumerate() {
            match self.dentries.get(&(at, Name::new(name))) {
                Some(child) if self.is_directory(*child) => at = *child,
                Some(_) => return refuse(Code::NotADirectory, path),
                None if make => {
                    missing = i;
                    break;
                }
                None => return refuse(Code::NotFound, path),
            }
        }
        for name in &dirs[missing..] {
            let id = self.new_inode(Inode::directory(0o755, 0));
            self.link(at, name.to_vec(), id);
            at = id;
        }
        Ok((at, last.to_vec()))
    }

    fn is_directory(&self, id: FileId) -> bool {
        matches!(self.inodes[&id].body, Body::Directory { .. })
    }

    fn new_inode(&mut self, inode: Inode) -> FileId {
        let id = FileId(self.next_file);
        self.next_file += 1;
        self.inodes.insert(id, inode);
        id
    }

    pub(crate) fn link(&mut self, parent: FileId, name: Vec<u8>, child: FileId) {
        let before = self.dentries.insert((parent, Name::new(&name)), child);
        assert!(before.is_none(), "the name was taken");
        self.count_entry(parent, 1);
    }

    pub(crate) fn unlink_entry(&mut self, parent: FileId, name: &[u8]) -> FileId {
        let child = self.dentries.remove(&(parent, Name::new(name)));
        self.count_entry(parent, -1);
        child.expect("the caller looked the name up")
    }

    fn count_entry(&mut self, parent: FileId, by: i64) {
        let mut inode = self.inodes[&parent].clone();
        let Body::Directory { entries } = &mut inode.body else { panic!("{parent} is no directory") };
        *entries = entries.checked_add_signed(by).expect("entries are counted");
        self.inodes.insert(parent, inode);
    }

    fn mkdir(&mut self, path: &[u8], parents: bool, mode: u32, now: i64) -> Answer<MasterReply> {
        if split_path(path).is_ok_and(|names| names.is_empty()) {
            return if parents { Ok(MasterReply::Attr(self.attr(ROOT))) } else { refuse(Code::Exists, path) };
        }
        let (parent, name) = self.parent_of(path, parents)?;
        match self.dentries.get(&(parent, Name::new(&name))).copied() {
            Some(id) if parents && self.is_directory(id) => Ok(MasterReply::Attr(self.attr(id))),
            Some(_) => refuse(Code::Exists, path),
            None => {
                let id = self.new_inode(Inode::directory(mode & 0o7777, now));
                self.link(parent, name, id);
                Ok(MasterReply::Attr(self.attr(id)))
            }
        }
    }

    fn create(
        &mut self,
        path: &[u8],
        mode: u32,
        exclusive: bool,
        parents: bool,
        chunk: Option<(&str, u64)>,
        now: i64,
    ) -> Answer<MasterReply> {
        let (parent, name) = self.parent_of(path, parents)?;
        let id = match self.dentries.get(&(parent, Name::new(&name))).copied() {
            Some(_) if exclusive => return refuse(Code::Exists, path),
            Some(id) if self.is_directory(id) => return refuse(Code::IsADirectory, path),
            Some(id) => id,
            None => {
                let policy = self.intern_policy(self.policy_at(path)?);
                let id = self.new_inode(Inode::file(mode & 0o7777, now, policy));
                if let Err(refusal) = self.first_chunk(id, chunk) {
                    self.inodes.remove(&id);
                    return Err(refusal);
                }
                self.link(parent, name, id);
                id
            }
        };
        self.first_chunk(id, chunk)?;
        self.opened(id)
    }

    fn create_unnamed(&mut self, like: &[u8], chunk: Option<(&str, u64)>, now: i64) -> Answer<MasterReply> {
        let policy = self.intern_policy(self.policy_at(like)?);
        let id = self.new_inode(Inode::file(0o600, now, policy));
        if let Err(refusal) = self.first_chunk(id, chunk) {
            self.inodes.remove(&id);
            return Err(refusal);
        }
        self.unnamed.insert(id, self.clock_ns);
        self.opened(id)
    }

    /// Gives a file its first chunk if one is wanted and it has none.
    fn first_chunk(&mut self, id: FileId, chunk: Option<(&str, u64)>) -> Answer<()> {
        let Some((near, salt)) = chunk else {
            return Ok(());
        };
        let Body::File(file) = &self.inodes[&id].body else {
            return Err(Code::BadArgument.into());
        };
        if !file.parts().is_empty() {
            return Ok(());
        }
        let policy = self.file_policies[&file.policy].clone();
        let handle = self.new_chunk(id, &policy, near, salt)?;
        self.push_part(id, handle, 0);
        Ok(())
    }

    fn push_part(&mut self, id: FileId, handle: ChunkHandle, length: u64) {
        let mut inode = self.inodes[&id].clone();
        inode.file_mut().push(handle, length);
        self.inodes.insert(id, inode);
    }

    fn opened(&self, id: FileId) -> Answer<MasterReply> {
        let count = self.file(id).map_or(0, |f| f.parts().len());
        let chunk = match count {
            0 => None,
            n => Some(self.chunk_info(id, n - 1)?),
        };
        Ok(MasterReply::Opened { attr: self.attr(id), chunk })
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one mutation")]
    fn publish(
        &mut self,
        file: FileId,
        path: &[u8],
        length: u64,
        mode: u32,
        mtime_ns: i64,
        parents: bool,
        now: i64,
    ) -> Answer<MasterReply> {
        if !self.unnamed.contains_key(&file) {
            return refuse(Code::NoSuchFileId, path);
        }
        let body = self.file(file).expect("unnamed inodes are files");
        let before: u64 = body.parts().iter().rev().skip(1).map(|p| p.length).sum();
        let last = body.parts().last().copied();
        let fits = match last {
            Some(_) => length >= before && length - before <= CHUNK_BYTES_MAX,
            None => length == 0,
        };
        if !fits {
            return refuse(Code::BadArgument, path);
        }
        let (parent, name) = self.parent_of(path, parents)?;
        if let Some(old) = self.dentries.get(&(parent, Name::new(&name))).copied() {
            if self.is_directory(old) {
                return refuse(Code::IsADirectory, path);
            }
            self.unlink_entry(parent, &name);
            self.move_to_grave(old);
        }
        if let Some(part) = last.filter(|p| p.handle != ChunkHandle::HOLE) {
            self.set_length(part.handle, length - before, true);
        }
        let mut inode = self.inodes[&file].clone();
        inode.mode = mode & 0o7777;
        inode.mtime_ns = mtime_ns;
        self.inodes.insert(file, inode);
        self.unnamed.remove(&file);
        self.link(parent, name, file);
        self.touch(parent, now);
        Ok(MasterReply::Attr(self.attr(file)))
    }

    fn touch(&mut self, id: FileId, now: i64) {
        let mut inode = self.inodes[&id].clone();
        inode.mtime_ns = now;
        self.inodes.insert(id, inode);
    }

    fn add_chunk(
        &mut self,
        id: FileId,
        index: u32,
        declare: Option<u64>,
        near: &str,
        salt: u64,
    ) -> Answer<MasterReply> {
        let file = self.file(id).ok_or(Code::NoSuchFileId)?;
        let (count, policy) = (file.parts().len(), self.file_policies[&file.policy].clone());
        if (index as usize) < count {
            return Ok(MasterReply::Chunk(self.chunk_info(id, index as usize)?));
        }
        if index as usize != count {
            return Err(Refusal::new(
                Code::WrongChunkIndex,
                format!("the file has {count} chunks, not {index}"),
            ));
        }
        if let Some(last) = file.parts().last().copied().filter(|p| p.handle != ChunkHandle::HOLE) {
            let chunk = &self.chunks[&last.handle];
            match declare {
                Some(length) if !chunk.sealed && length <= CHUNK_BYTES_MAX => {
                    self.set_length(last.handle, length, true);
                }
                _ if chunk.sealed => {}
                _ => {
                    return Err(Refusal::new(Code::BadArgument, "the last chunk is not sealed"));
                }
            }
        }
        let handle = self.new_chunk(id, &policy, near, salt)?;
        self.push_part(id, handle, 0);
        if self.unnamed.contains_key(&id) {
            self.unnamed.insert(id, self.clock_ns);
        }
        Ok(MasterReply::Chunk(self.chunk_info(id, count)?))
    }

    fn add_hole(&mut self, id: FileId, index: u32, length: u64) -> Answer<MasterReply> {
        let file = self.file(id).ok_or(Code::NoSuchFileId)?;
        let count = file.parts().len();
        let last_open =
            file.parts().last().is_some_and(|p| self.chunks.get(&p.handle).is_some_and(|c| !c.sealed));
        if index as usize != count || last_open || length > i64::MAX as u64 - file.length() {
            return Err(Refusal::new(
                Code::WrongChunkIndex,
                format!("the file has {count} chunks, not {index}"),
            ));
        }
        self.push_part(id, ChunkHandle::HOLE, length);
        Ok(MasterReply::Chunk(self.chunk_info(id, count)?))
    }

    fn report_length(&mut self, handle: ChunkHandle, length: u64, now: i64) -> Answer<MasterReply> {
        let chunk = self.chunks.get(&handle).ok_or_else(|| Refusal::new(Code::NoSuchChunk, handle))?;
        if !chunk.sealed && length > chunk.length && length <= CHUNK_BYTES_MAX {
            let file = chunk.file;
            self.set_length(handle, length, false);
            self.touch(file, now);
        }
        Ok(MasterReply::Done)
    }

    fn rename(&mut self, from: &[u8], to: &[u8], replace: bool, now: i64) -> Answer<MasterReply> {
        let id = self.resolve(from)?;
        if id == ROOT {
            return refuse(Code::BadArgument, from);
        }
        let (from_parent, from_name) = self.parent_of(from, false)?;
        let (to_parent, to_name) = self.parent_of(to, false)?;
        if (from_parent, &from_name) == (to_parent, &to_name) {
            return Ok(MasterReply::Attr(self.attr(id)));
        }
        // A directory cannot move into itself.
        let names = split_path(to).expect("parent_of split it");
        let mut at = ROOT;
        for name in &names[..names.len() - 1] {
            at = self.dentries[&(at, Name::new(name))];
            if at == id {
                return refuse(Code::BadArgument, to);
            }
        }
        if let Some(old) = self.dentries.get(&(to_parent, Name::new(&to_name))).copied() {
            if !replace {
                return refuse(Code::Exists, to);
            }
            match (&self.inodes[&old].body, self.is_directory(id)) {
                (Body::Directory { entries: 1.. }, _) => return refuse(Code::NotEmpty, to),
                (Body::Directory { .. }, false) => return refuse(Code::IsADirectory, to),
                (Body::Directory { .. }, true) => {}
                (_, true) => return refuse(Code::NotADirectory, to),
                (_, false) => {}
            }
            self.unlink_entry(to_parent, &to_name);
            self.move_to_grave(old);
        }
        self.unlink_entry(from_parent, &from_name);
        self.link(to_parent, to_name, id);
        self.touch(from_parent, now);
        self.touch(to_parent, now);
        Ok(MasterReply::Attr(self.attr(id)))
    }

    fn unlink(&mut self, path: &[u8], recursive: bool, now: i64) -> Answer<MasterReply> {
        let id = self.resolve(path)?;
        if id == ROOT {
            return refuse(Code::BadArgument, path);
        }
        if !recursive && matches!(self.inodes[&id].body, Body::Directory { entries: 1.. }) {
            return refuse(Code::NotEmpty, path);
        }
        let (parent, name) = self.parent_of(path, false)?;
        self.unlink_entry(parent, &name);
        self.touch(parent, now);
        self.move_to_trash(id, path, now);
        Ok(MasterReply::Done)
    }

    fn truncate(&mut self, id: FileId, length: u64, now: i64) -> Answer<MasterReply> {
        let file = self.file(id).ok_or(Code::NoSuchFileId)?;
        if length > i64::MAX as u64 {
            return Err(Refusal::new(Code::BadArgument, "a file has at most 2^63 - 1 bytes"));
        }
        if file.parts().last().is_some_and(|p| self.chunks.get(&p.handle).is_some_and(|c| !c.sealed)) {
            return Err(Refusal::new(Code::BadArgument, "the last chunk is not sealed"));
        }
        let mut start = 0;
        let mut keep = 0;
        let mut cut = None;
        for part in file.parts() {
            if start >= length {
                break;
            }
            keep += 1;
            if start + part.length > length {
                cut = Some(length - start);
            }
            start += part.length;
        }
        let dropped: Vec<Part> = file.parts()[keep..].to_vec();
        let last = keep.checked_sub(1).map(|i| file.parts()[i]);
        let mut inode = self.inodes[&id].clone();
        let body = inode.file_mut();
        body.keep(keep, cut);
        if let (Some(cut), Some(last)) = (cut, last) {
            if last.handle != ChunkHandle::HOLE {
                let mut chunk = self.chunks[&last.handle].clone();
                chunk.length = cut;
                self.put_chunk(last.handle, chunk);
            }
        } else if length > start {
            body.push(ChunkHandle::HOLE, length - start);
        }
        inode.mtime_ns = now;
        self.inodes.insert(id, inode);
        for part in dropped.iter().filter(|p| p.handle != ChunkHandle::HOLE) {
            self.delete_chunk(part.handle);
        }
        Ok(MasterReply::Attr(self.attr(id)))
    }

    fn symlink(&mut self, path: &[u8], target: &[u8], parents: bool, now: i64) -> Answer<MasterReply> {
        if target.is_empty() || target.len() > PATH_BYTES_MAX || target.contains(&0) {
            return refuse(Code::BadName, path);
        }
        let (parent, name) = self.parent_of(path, parents)?;
        if let Some(old) = self.dentries.get(&(parent, Name::new(&name))).copied() {
            if !parents || self.is_directory(old) {
                return refuse(Code::Exists, path);
            }
            self.unlink_entry(parent, &name);
            self.move_to_grave(old);
        }
        let body = Body::Symlink { target: target.into() };
        let id = self.new_inode(Inode { mode: 0o777, uid: 0, gid: 0, mtime_ns: now, body });
        self.link(parent, name, id);
        Ok(MasterReply::Attr(self.attr(id)))
    }

    fn set_policy(&mut self, path: &[u8], policy: &Policy) -> Answer<MasterReply> {
        if let Some(why) = policy.invalid() {
            return Err(Refusal::new(Code::BadArgument, why));
        }
        let id = self.resolve(path)?;
        if !self.is_directory(id) {
            return refuse(Code::NotADirectory, path);
        }
        self.policies.insert(id, policy.clone());
        Ok(MasterReply::Policy(self.policy_at(path)?))
    }

    /// The policy that holds for a path, every field given: the nearest directory that says so.
    pub fn policy_at(&self, path: &[u8]) -> Answer<Policy> {
        let mut policy = default_policy();
        let mut at = Some(ROOT);
        let names = split_path(path).or_else(|code| refuse(code, path))?;
        for name in std::iter::once(None).chain(names.into_iter().map(Some)) {
            if let Some(name) = name {
                at = at.and_then(|at| self.dentries.get(&(at, Name::new(name))).copied());
            }
            if let Some(own) = at.and_then(|at| self.policies.get(&at)) {
                policy.replication = own.replication.or(policy.replication);
                policy.chunk_bytes = own.chunk_bytes.or(policy.chunk_bytes);
                policy.memory = own.memory.or(policy.memory);
                policy.label = own.label.clone().or(policy.label);
            }
        }
        Ok(policy)
    }

    /// A policy by a number; few are different.
    fn intern_policy(&mut self, policy: Policy) -> u32 {
        if let Some(id) = self.file_policy_ids.get(&policy) {
            return *id;
        }
        let id = self.file_policies.len() as u32;
        self.file_policies.insert(id, policy.clone());
        self.file_policy_ids.insert(policy, id);
        id
    }

    pub(crate) fn file(&self, id: FileId) -> Option<&FileBody> {
        match &self.inodes.get(&id)?.body {
            Body::File(file) => Some(file),
            _ => None,
        }
    }

    /// Attributes of an inode that exists.
    pub fn attr(&self, id: FileId) -> Attr {
        let inode = &self.inodes[&id];
        let mut attr = Attr {
            file: id,
            kind: FileKind::File,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            mtime_ns: inode.mtime_ns,
            length: 0,
            count: 0,
            open: None,
            target: vec![],
            chunk_bytes: CHUNK_BYTES_MAX,
        };
        match &inode.body {
            Body::File(file) => {
                attr.length = file.length();
                attr.count = file.parts().len() as u64;
                let last = file.parts().last().map(|p| p.handle);
                attr.open = last.filter(|h| self.chunks.get(h).is_some_and(|c| !c.sealed));
                attr.chunk_bytes = self.file_policies[&file.policy].chunk_bytes.unwrap_or(CHUNK_BYTES_MAX);
            }
            Body::Directory { entries } => (attr.kind, attr.count) = (FileKind::Directory, *entries),
            Body::Symlink { target } => {
                attr.kind = FileKind::Symlink;
                attr.length = target.len() as u64;
                attr.target = target.to_vec();
            }
        }
        attr
    }

    /// A page of a directory.
    pub fn list(&self, path: &[u8], after: &[u8], limit: u32) -> Answer<MasterReply> {
        use common::wire::client_master::Entry;
        const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
        let id = self.resolve(path)?;
        if !self.is_directory(id) {
            return refuse(Code::NotADirectory, path);
        }
        let limit = limit.clamp(1, LIST_PAGE_MAX) as usize;
        let rest = self.dentries.range((id, Name::new(after))..).take_while(|((parent, _), _)| *parent == id);
        let mut rest = rest.filter(|((_, name), _)| after.is_empty() || name.bytes() != after);
        let mut entries = vec![];
        let mut bytes = 0;
        for ((_, name), child) in rest.by_ref() {
            let attr = self.attr(*child);
            bytes += name.bytes().len() + attr.target.len() + 128;
            entries.push(Entry { name: name.bytes().to_vec(), attr });
            if entries.len() == limit || bytes > PAGE_BYTES_MAX {
                break;
            }
        }
        let more = rest.next().is_some();
        Ok(MasterReply::Entries { entries, more })
    }

    /// A page of a file's chunks.
    pub fn layout(&self, id: FileId, from: u32, limit: u32) -> Answer<MasterReply> {
        let file = self.file(id).ok_or_else(|| Refusal::new(Code::NoSuchFileId, id))?;
        let count = file.parts().len();
        let from = (from as usize).min(count);
        let to = (from + limit.clamp(1, LAYOUT_PAGE_MAX) as usize).min(count);
        let mut start: u64 = file.parts()[..from].iter().map(|p| p.length).sum();
        let mut chunks = vec![];
        for (at, part) in file.parts()[from..to].iter().enumerate() {
            chunks.push(self.info(part, from + at, start)?);
            start += part.length;
        }
        Ok(MasterReply::Layout { chunks, count: count as u32 })
    }

    fn chunk_info(&self, id: FileId, index: usize) -> Answer<ChunkInfo> {
        let file = self.file(id).ok_or(Code::NoSuchFileId)?;
        let start = file.length() - file.parts()[index..].iter().map(|p| p.length).sum::<u64>();
        self.info(&file.parts()[index], index, start)
    }

    fn info(&self, part: &Part, index: usize, start: u64) -> Answer<ChunkInfo> {
        let config = match part.handle {
            ChunkHandle::HOLE => ChunkConfig {
                handle: ChunkHandle::HOLE,
                epoch: Epoch(0),
                primary: StoreId(0),
                members: vec![],
                sealed: Some(part.length),
                wait_ms: 0,
            },
            handle => self.config(handle)?,
        };
        Ok(ChunkInfo { index: index as u32, length: part.length, config, start })
    }
}
