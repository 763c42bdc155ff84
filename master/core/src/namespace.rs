//! Names: directories, files, symlinks, and every change of them.

use crate::inode::{Body, Inode, NOWHERE, Part};
use crate::name::Name;
use crate::quota::Totals;
use crate::snapshots::Place;
use crate::trash::Why;
use crate::tree::{refuse, route};
use crate::{Answer, Chunk, Entry, Metadata, ROOT};
use common::limits::{
    CHUNK_BYTES_MAX, LAYOUT_PAGE_MAX, LINKS_MAX, LIST_PAGE_MAX, NAME_BYTES_MAX, PAGE_BYTES_MAX,
    PATH_BYTES_MAX, XATTR_BYTES_MAX,
};
use common::wire::ChunkConfig;
use common::wire::client_master::{
    Attr, ChunkInfo, Entry as Listed, FileKind, Looked, MasterReply, Mutation, NameChange, Only, Owner,
    Policy, Report, SetTime,
};
use common::wire::path::Route;
use common::{ChunkHandle, Code, Epoch, FileId, Refusal, StoreId};

/// Bytes of an entry of a listing beside its name and the target of a symlink, at most, with its last chunk.
const ENTRY_BYTES: usize = 256;

/// The permission bits of a mode.
fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

impl Metadata {
    pub(crate) fn mutate(&mut self, entry: &Entry, mutation: &Mutation) -> MasterReply {
        let answer = self.try_mutate(entry, mutation);
        answer.unwrap_or_else(|r| MasterReply::Refused { code: r.code, about: r.about, leader: None })
    }

    fn try_mutate(&mut self, entry: &Entry, mutation: &Mutation) -> Answer<MasterReply> {
        let now = entry.wall_ns;
        self.refuse_in_snapshot(mutation)?;
        match mutation {
            Mutation::Mkdir { path, parents, mode, owner } => {
                let inode = Inode::directory(permissions(*mode), now);
                self.mkdir(path, *parents, inode, *owner, now)
            }
            Mutation::Create { path, mode, owner, exclusive, parents, chunk, near } => self.create(
                path,
                (permissions(*mode), *owner),
                *exclusive,
                *parents,
                chunk.then_some((near.as_str(), entry.salt)),
                now,
            ),
            Mutation::CreateUnnamed { like, chunk, near } => {
                self.create_unnamed(like, chunk.then_some((near.as_str(), entry.salt)), now)
            }
            Mutation::Publish { file, path, length, mode, owner, mtime_ns, parents } => {
                self.publish(*file, path, *length, (permissions(*mode), *owner), *mtime_ns, *parents, now)
            }
            Mutation::AddChunk { file, index, declare, near } => {
                self.add_chunk(*file, *index, *declare, near, entry.salt)
            }
            Mutation::AddHole { file, index, length } => self.add_hole(*file, *index, *length),
            Mutation::BeginClone { of, snapshot, file, at } => self.begin_clone(*of, *snapshot, *file, *at),
            Mutation::EndClone { to, length } => self.end_clone(*to, *length),
            Mutation::ReportLength { handle, length } => self.report_length(*handle, *length, now),
            Mutation::SetAttr { path, mode, atime, mtime, uid, gid } => {
                let id = self.tree.resolve(path)?;
                self.tree.change(id, |inode| {
                    inode.mode = mode.map_or(inode.mode, permissions);
                    inode.uid = uid.unwrap_or(inode.uid);
                    inode.gid = gid.unwrap_or(inode.gid);
                    inode.ctime_ns = now;
                });
                self.set_times(id, *atime, *mtime, now);
                Ok(self.looked_at(self.attr(id)))
            }
            Mutation::Rename { from, to, replace } => self.rename(None, from, to, *replace, now),
            Mutation::Unlink { path, recursive, only } => self.unlink(None, path, *recursive, *only, now),
            Mutation::Undelete { path, to } => {
                let id = self.undelete(path, to, now)?;
                Ok(MasterReply::Attr(self.attr(id)))
            }
            Mutation::Truncate { file, length } => self.truncate(*file, *length, now),
            Mutation::Empty { file, only, chunk, near } => {
                self.empty(*file, *only, chunk.then_some((near.as_str(), entry.salt)), now)
            }
            Mutation::Symlink { path, target, parents, owner } => {
                self.symlink(path, target, *parents, *owner, now)
            }
            Mutation::Link { from, to } => self.link(from, to, now),
            Mutation::Exchange { a, b } => self.exchange(None, a, b, now),
            Mutation::ByUser { user, change } => match change {
                NameChange::Rename { from, to, replace } => self.rename(Some(*user), from, to, *replace, now),
                NameChange::Unlink { path, only } => self.unlink(Some(*user), path, false, *only, now),
                NameChange::Exchange { a, b } => self.exchange(Some(*user), a, b, now),
            },
            Mutation::MakeSpecial { path, kind, device, mode, owner } => {
                let special = matches!(kind, FileKind::Fifo | FileKind::Socket)
                    || matches!(kind, FileKind::CharacterDevice | FileKind::BlockDevice);
                if !special {
                    return Err(Refusal::new(Code::BadArgument, "it is no special file"));
                }
                let inode = Inode::special(permissions(*mode), now, *kind, *device);
                self.make(path, inode, *owner, now)
            }
            Mutation::SetXattr { path, name, value, there } => {
                self.set_xattr(path, name, value.as_deref(), *there, now)
            }
            Mutation::Written { files } => {
                for report in files {
                    self.written(report, now);
                }
                Ok(MasterReply::Done)
            }
            Mutation::FillHole { file, offset, near } => self.fill_hole(*file, *offset, near, entry.salt),
            Mutation::Hold { files } => {
                self.hold(files);
                Ok(MasterReply::Done)
            }
            Mutation::SetPolicy { path, policy } => self.set_policy(path, policy),
            Mutation::SetQuota { path, quota } => self.set_quota(path, quota),
            Mutation::EmptyTrash { before_ns } => {
                self.emptied_ns = self.emptied_ns.max(self.clock_ns.min(*before_ns));
                Ok(MasterReply::Done)
            }
            Mutation::Snapshot { path, name } => self.take_snapshot(path, name, now),
            Mutation::DeleteSnapshot { path, name } => self.delete_snapshot(path, name),
            Mutation::Maintain { server, ms } => self.maintain(*server, *ms),
            Mutation::Drain { server, on } => self.drain(*server, *on),
            Mutation::GiveUp { store } => self.give_up(*store),
            Mutation::BeginLocks { holder, name } => self.begin_locks(*holder, name),
            Mutation::Claim { holder, of, range, patient: _ } => self.claim(*holder, *of, *range),
            Mutation::Unclaim { holder, of, keep, recalled } => self.unclaim(*holder, *of, keep, *recalled),
            Mutation::EndLocks { holder } => {
                self.end_locks(*holder);
                Ok(MasterReply::Done)
            }
            Mutation::EndClient => unreachable!("handled by the session"),
        }
    }

    /// The directory that holds (or shall hold) the last name of a path, and that name.
    pub(crate) fn parent_of(&mut self, path: &[u8], make: bool, now: i64) -> Answer<(FileId, Vec<u8>)> {
        let Route { from, names } = route(path)?;
        let Some((last, dirs)) = names.split_last() else {
            return refuse(Code::BadName, path);
        };
        let mut at = self.tree.walk(from, &[], path)?;
        if !self.tree.is_directory(at) {
            return refuse(Code::NotADirectory, path);
        }
        if !self.tree.is_live(at) {
            return refuse(Code::NotFound, path);
        }
        let mut missing = dirs.len();
        for (i, name) in dirs.iter().enumerate() {
            match self.tree.dentries.get(&(at, Name::new(name))) {
                Some(child) if self.tree.is_directory(*child) => at = *child,
                Some(_) => return refuse(Code::NotADirectory, path),
                None if make => {
                    missing = i;
                    break;
                }
                None => return refuse(Code::NotFound, path),
            }
        }
        if missing < dirs.len() {
            let made = Totals::of_entries((dirs.len() - missing) as u64);
            self.within_quotas(at, Totals::NOTHING, made, |_| false)?;
        }
        for name in &dirs[missing..] {
            let id = self.new_inode(Inode::directory(0o755, now));
            self.tree.link(at, name.to_vec(), id, now);
            at = id;
        }
        Ok((at, last.to_vec()))
    }

    fn new_inode(&mut self, inode: Inode) -> FileId {
        let id = FileId(self.next_file);
        self.next_file += 1;
        self.tree.inodes.insert(id, inode);
        id
    }

    /// Makes an inode of this form at a path at which there is nothing.
    fn make(&mut self, path: &[u8], inode: Inode, owner: Owner, now: i64) -> Answer<MasterReply> {
        let (parent, name) = self.parent_of(path, false, now)?;
        if self.tree.child(parent, &name).is_some() {
            return refuse(Code::Exists, path);
        }
        self.within_quotas(parent, Totals::NOTHING, Totals::of_entries(1), |_| false)?;
        let id = self.new_inode(inode.owned(owner, &self.tree.inodes[&parent]));
        self.tree.link(parent, name, id, now);
        Ok(MasterReply::Attr(self.attr(id)))
    }

    fn mkdir(
        &mut self,
        path: &[u8],
        parents: bool,
        inode: Inode,
        owner: Owner,
        now: i64,
    ) -> Answer<MasterReply> {
        if route(path)?.names.is_empty() {
            let id = self.tree.resolve(path)?;
            let there = parents && self.tree.is_directory(id);
            return if there { Ok(MasterReply::Attr(self.attr(id))) } else { refuse(Code::Exists, path) };
        }
        if parents {
            let (parent, name) = self.parent_of(path, true, now)?;
            if let Some(id) = self.tree.child(parent, &name).filter(|id| self.tree.is_directory(*id)) {
                return Ok(MasterReply::Attr(self.attr(id)));
            }
        }
        self.make(path, inode, owner, now)
    }

    fn create(
        &mut self,
        path: &[u8],
        (mode, owner): (u16, Owner),
        exclusive: bool,
        parents: bool,
        chunk: Option<(&str, u64)>,
        now: i64,
    ) -> Answer<MasterReply> {
        let (parent, name) = self.parent_of(path, parents, now)?;
        let id = match self.tree.child(parent, &name) {
            Some(_) if exclusive => return refuse(Code::Exists, path),
            Some(id) if self.tree.is_directory(id) => return refuse(Code::IsADirectory, path),
            Some(id) => id,
            None => {
                let more = if chunk.is_some() { Totals::FILE } else { Totals::of_entries(1) };
                self.within_quotas(parent, Totals::NOTHING, more, |_| false)?;
                let policy = self.intern_policy(self.tree.policy_of(parent));
                let inode = Inode::file(mode, now, policy).owned(owner, &self.tree.inodes[&parent]);
                let id = self.new_inode(inode);
                if let Err(refusal) = self.first_chunk(id, chunk) {
                    self.tree.inodes.remove(&id);
                    return Err(refusal);
                }
                self.tree.link(parent, name, id, now);
                id
            }
        };
        self.first_chunk(id, chunk)?;
        self.opened(id)
    }

    fn create_unnamed(&mut self, like: &[u8], chunk: Option<(&str, u64)>, now: i64) -> Answer<MasterReply> {
        let policy = self.intern_policy(self.tree.policy_at(like)?);
        let id = self.new_inode(Inode::file(0o600, now, policy));
        if let Err(refusal) = self.first_chunk(id, chunk) {
            self.tree.inodes.remove(&id);
            return Err(refusal);
        }
        self.unnamed.put(id, self.clock_ns, Why::Upload);
        self.opened(id)
    }

    /// Gives a file its first chunk if one is wanted and it has none.
    fn first_chunk(&mut self, id: FileId, chunk: Option<(&str, u64)>) -> Answer<()> {
        let Some(chunk) = chunk else {
            return Ok(());
        };
        let inode = &self.tree.inodes[&id];
        let Body::File(file) = &inode.body else {
            return Err(Code::BadArgument.into());
        };
        if !file.parts().is_empty() {
            return Ok(());
        }
        let handle = self.next_chunk_of(id, Totals::NOTHING, chunk)?;
        self.push_part(id, handle, 0);
        Ok(())
    }

    /// Makes a chunk for a file that gives up so much: near that client, by this salt. It is yet to be put into the file.
    fn next_chunk_of(&mut self, id: FileId, minus: Totals, (near, salt): (&str, u64)) -> Answer<ChunkHandle> {
        let policy = self.file_policies[&self.tree.inodes[&id].policy].clone();
        self.may_change(id, minus, Totals::CHUNK)?;
        self.new_chunk(id, &policy, near, salt)
    }

    pub(crate) fn push_part(&mut self, id: FileId, handle: ChunkHandle, length: u64) {
        let mut inode = self.tree.inodes[&id].clone();
        inode.push(handle, length);
        self.tree.put_file(id, inode);
    }

    /// Whether a file that has a name may have so much more. What has none yet is weighed when it gets one.
    pub(crate) fn may_grow(&self, id: FileId, more: Totals) -> Answer<()> {
        self.may_change(id, Totals::NOTHING, more)
    }

    /// The same of a file that has so much less before it has so much more.
    fn may_change(&self, id: FileId, minus: Totals, plus: Totals) -> Answer<()> {
        match self.tree.inodes[&id].parent {
            NOWHERE => Ok(()),
            parent => self.within_quotas(parent, minus, plus, |_| false),
        }
    }

    fn opened(&self, id: FileId) -> Answer<MasterReply> {
        let count = self.tree.file(id).map_or(0, |f| f.parts().len());
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
        (mode, owner): (u16, Owner),
        mtime_ns: i64,
        parents: bool,
        now: i64,
    ) -> Answer<MasterReply> {
        let Some(body) = self.tree.file(file).filter(|_| self.unnamed.can_be_named(file)) else {
            return refuse(Code::NoSuchFileId, path);
        };
        let before: u64 = body.parts().iter().rev().skip(1).map(|p| p.length).sum();
        let last = body.parts().last().copied();
        let fits = match last {
            Some(_) => length >= before && length - before <= CHUNK_BYTES_MAX,
            None => length == 0,
        };
        if !fits {
            return refuse(Code::BadArgument, path);
        }
        let (parent, name) = self.parent_of(path, parents, now)?;
        let old = self.tree.child(parent, &name);
        if old.is_some_and(|old| self.tree.is_directory(old)) {
            return refuse(Code::IsADirectory, path);
        }
        let minus = old.map_or(Totals::NOTHING, |old| self.tree.weight(old));
        let plus = Totals { entries: 1, bytes: length.into() };
        self.within_quotas(parent, minus, plus, |_| false)?;
        if old.is_some() {
            self.replace_entry(parent, &name, now);
        }
        if let Some(part) = last.filter(|p| p.handle != ChunkHandle::HOLE) {
            self.set_length(part.handle, length - before, true);
        }
        let inode = Inode { mode, mtime_ns, ..self.tree.inodes[&file].clone() };
        self.tree.inodes.insert(file, inode.owned(owner, &self.tree.inodes[&parent]));
        self.unnamed.remove(file);
        self.tree.link(parent, name, file, now);
        Ok(MasterReply::Attr(self.attr(file)))
    }

    fn add_chunk(
        &mut self,
        id: FileId,
        index: u32,
        declare: Option<u64>,
        near: &str,
        salt: u64,
    ) -> Answer<MasterReply> {
        let file = self.tree.file(id).ok_or(Code::NoSuchFileId)?;
        let count = file.parts().len();
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
                    return Err(Refusal::new(Code::WrongChunkIndex, "the last chunk is not sealed"));
                }
            }
        }
        let handle = self.next_chunk_of(id, Totals::NOTHING, (near, salt))?;
        self.push_part(id, handle, 0);
        self.unnamed.keep(id, self.clock_ns);
        Ok(MasterReply::Chunk(self.chunk_info(id, count)?))
    }

    fn add_hole(&mut self, id: FileId, index: u32, length: u64) -> Answer<MasterReply> {
        let file = self.tree.file(id).ok_or(Code::NoSuchFileId)?;
        let count = file.parts().len();
        let last_open =
            file.parts().last().is_some_and(|p| self.chunks.get(&p.handle).is_some_and(|c| !c.sealed));
        if index as usize != count || last_open || length > i64::MAX as u64 - file.length() {
            return Err(Refusal::new(
                Code::WrongChunkIndex,
                format!("the file has {count} chunks, not {index}"),
            ));
        }
        self.may_grow(id, Totals::of_bytes(length))?;
        self.push_part(id, ChunkHandle::HOLE, length);
        Ok(MasterReply::Chunk(self.chunk_info(id, count)?))
    }

    fn written(&mut self, report: &Report, now: i64) {
        if self.tree.file(report.file).is_none() {
            return;
        }
        let mtime_ns = report.mtime_ns.unwrap_or(self.tree.inodes[&report.file].mtime_ns);
        if let Some((handle, length)) = report.open {
            // The chunk may be gone: the file was cut.
            let _ = self.report_length(handle, length, now);
        }
        self.tree.change(report.file, |inode| (inode.mtime_ns, inode.ctime_ns) = (mtime_ns, now));
    }

    fn report_length(&mut self, handle: ChunkHandle, length: u64, now: i64) -> Answer<MasterReply> {
        let chunk = self.chunks.get(&handle).ok_or_else(|| Refusal::new(Code::NoSuchChunk, handle))?;
        if !chunk.sealed && length > chunk.length && length <= CHUNK_BYTES_MAX {
            let file = chunk.file;
            self.set_length(handle, length, false);
            self.tree.touch(file, now);
        }
        Ok(MasterReply::Done)
    }

    fn rename(
        &mut self,
        user: Option<u32>,
        from: &[u8],
        to: &[u8],
        replace: bool,
        now: i64,
    ) -> Answer<MasterReply> {
        let (from_parent, from_name) = self.parent_of(from, false, now)?;
        let Some(id) = self.tree.child(from_parent, &from_name) else {
            return refuse(Code::NotFound, from);
        };
        let (to_parent, to_name) = self.parent_of(to, false, now)?;
        self.refuse_into_itself(id, to_parent, to)?;
        let old = self.tree.child(to_parent, &to_name);
        if old.is_some() && !replace {
            return refuse(Code::Exists, to);
        }
        if old == Some(id) {
            // Two names of one file: POSIX wants both to stay.
            return Ok(MasterReply::Attr(self.attr(id)));
        }
        self.tree.refuse_others(user, from_parent, id, from)?;
        if let Some(old) = old {
            self.tree.refuse_others(user, to_parent, old, to)?;
        }
        let minus = old.map_or(Totals::NOTHING, |old| self.tree.weight(old));
        // A file with another name goes on counting there.
        let plus = if self.tree.names(id) == 1 { self.tree.weight(id) } else { Totals::NOTHING };
        let above: Vec<FileId> = std::iter::once(from_parent).chain(self.tree.above(from_parent)).collect();
        self.within_quotas(to_parent, minus, plus, |dir| above.contains(&dir))?;
        if let Some(old) = old {
            match (&self.tree.inodes[&old].body, self.tree.is_directory(id)) {
                (Body::Directory { entries: 1.., .. }, _) => return refuse(Code::NotEmpty, to),
                (Body::Directory { .. }, false) => return refuse(Code::IsADirectory, to),
                (Body::Directory { .. }, true) => {}
                (_, true) => return refuse(Code::NotADirectory, to),
                (_, false) => {}
            }
            self.refuse_with_snapshots(old, to)?;
            self.replace_entry(to_parent, &to_name, now);
        }
        self.tree.unlink(from_parent, &from_name, now);
        self.tree.link(to_parent, to_name, id, now);
        Ok(MasterReply::Attr(self.attr(id)))
    }

    /// A directory cannot move into itself.
    fn refuse_into_itself(&self, id: FileId, parent: FileId, path: &[u8]) -> Answer<()> {
        let within = id == parent || self.tree.above(parent).any(|at| at == id);
        if within { refuse(Code::BadArgument, path) } else { Ok(()) }
    }

    fn exchange(&mut self, user: Option<u32>, a: &[u8], b: &[u8], now: i64) -> Answer<MasterReply> {
        let places = [self.parent_of(a, false, now)?, self.parent_of(b, false, now)?];
        let mut ids = [ROOT; 2];
        for ((id, (parent, name)), path) in ids.iter_mut().zip(&places).zip([a, b]) {
            *id = self.tree.child(*parent, name).map_or_else(|| refuse(Code::NotFound, path), Ok)?;
        }
        let [one, other] = ids;
        let [(one_parent, one_name), (other_parent, other_name)] = places;
        if one == other {
            return Ok(MasterReply::Done);
        }
        self.tree.refuse_others(user, one_parent, one, a)?;
        self.tree.refuse_others(user, other_parent, other, b)?;
        self.refuse_into_itself(one, other_parent, b)?;
        self.refuse_into_itself(other, one_parent, a)?;
        let weights = ids.map(|id| self.tree.weight(id));
        let both = |at: FileId| std::iter::once(at).chain(self.tree.above(at)).collect::<Vec<_>>();
        let (above_one, above_other) = (both(one_parent), both(other_parent));
        self.within_quotas(other_parent, weights[1], weights[0], |dir| above_one.contains(&dir))?;
        self.within_quotas(one_parent, weights[0], weights[1], |dir| above_other.contains(&dir))?;
        self.tree.unlink(one_parent, &one_name, now);
        self.tree.unlink(other_parent, &other_name, now);
        self.tree.link(one_parent, one_name, other, now);
        self.tree.link(other_parent, other_name, one, now);
        Ok(MasterReply::Done)
    }

    fn link(&mut self, from: &[u8], to: &[u8], now: i64) -> Answer<MasterReply> {
        let id = self.tree.resolve(from)?;
        if self.tree.is_directory(id) {
            return refuse(Code::IsADirectory, from);
        }
        let (parent, name) = self.parent_of(to, false, now)?;
        if self.tree.child(parent, &name).is_some() {
            return refuse(Code::Exists, to);
        }
        match self.tree.names(id) {
            0 if !self.unnamed.can_be_named(id) => return refuse(Code::NotFound, from),
            0 => self.within_quotas(parent, Totals::NOTHING, self.tree.weight(id), |_| false)?,
            LINKS_MAX.. => return refuse(Code::TooManyLinks, from),
            _ => {}
        }
        self.unnamed.remove(id);
        self.tree.link(parent, name, id, now);
        Ok(self.looked_at(self.attr(id)))
    }

    /// What a name stands for makes room. If that was its last name, who has it open may go on for a while, and asks for
    /// more.
    fn replace_entry(&mut self, parent: FileId, name: &[u8], now: i64) {
        let (old, named) = self.tree.unlink(parent, name, now);
        match self.tree.file(old) {
            _ if named => {}
            Some(_) => self.unnamed.put_unheld(old, self.clock_ns),
            None => self.move_to_grave(old),
        }
    }

    fn unlink(
        &mut self,
        user: Option<u32>,
        path: &[u8],
        recursive: bool,
        only: Only,
        now: i64,
    ) -> Answer<MasterReply> {
        if route(path)?.names.is_empty() {
            return refuse(Code::BadArgument, path);
        }
        let (parent, name) = self.parent_of(path, false, now)?;
        let Some(id) = self.tree.child(parent, &name) else {
            return refuse(Code::NotFound, path);
        };
        self.tree.refuse_others(user, parent, id, path)?;
        match (&self.tree.inodes[&id].body, only) {
            (Body::Directory { .. }, Only::NoDirectory) => return refuse(Code::IsADirectory, path),
            (Body::Directory { entries: 1.., .. }, _) if !recursive => return refuse(Code::NotEmpty, path),
            (Body::Directory { .. }, _) => {}
            (_, Only::Directory) => return refuse(Code::NotADirectory, path),
            _ => {}
        }
        self.refuse_with_snapshots(id, path)?;
        if self.tree.policy_of(parent).trash == Some(false) {
            self.replace_entry(parent, &name, now);
        } else if !self.tree.unlink(parent, &name, now).1 {
            self.move_to_trash(id, path, now);
        }
        Ok(MasterReply::Attr(self.attr(parent)))
    }

    fn set_times(&mut self, id: FileId, atime: SetTime, mtime: SetTime, now: i64) {
        let at = |time| match time {
            SetTime::Keep => None,
            SetTime::Now => Some(now),
            SetTime::At(ns) => Some(ns),
        };
        let (atime, mtime) = (at(atime), at(mtime));
        if let Some(mtime) = mtime {
            // The time of access is that of modification only as long as nobody has said otherwise.
            let before = self.tree.inodes[&id].mtime_ns;
            if atime.is_none() && before != mtime {
                self.tree.change_extra(id, |extra| extra.atime_ns = extra.atime_ns.or(Some(before)));
            }
            self.tree.change(id, |inode| inode.mtime_ns = mtime);
        }
        if let Some(atime) = atime {
            let other = Some(atime).filter(|atime| *atime != self.tree.inodes[&id].mtime_ns);
            self.tree.change_extra(id, |extra| extra.atime_ns = other);
        }
    }

    fn set_xattr(
        &mut self,
        path: &[u8],
        name: &[u8],
        value: Option<&[u8]>,
        there: Option<bool>,
        now: i64,
    ) -> Answer<MasterReply> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(&0) {
            return refuse(Code::BadName, name);
        }
        let id = self.tree.resolve(path)?;
        let known = self.tree.extras.get(&id).map(|e| &e.xattrs[..]).unwrap_or_default();
        let at = known.iter().position(|(known, _)| known == name);
        match (at, there) {
            (Some(_), Some(false)) => return refuse(Code::Exists, name),
            (None, Some(true)) => return refuse(Code::NoSuchAttribute, name),
            (None, _) if value.is_none() => return refuse(Code::NoSuchAttribute, name),
            _ => {}
        }
        let bytes = self.tree.extras.get(&id).map_or(0, |e| e.xattr_bytes());
        let freed = at.map_or(0, |at| name.len() + known[at].1.len());
        let taken = value.map_or(0, |value| name.len() + value.len());
        if taken > freed && bytes - freed + taken > XATTR_BYTES_MAX {
            return refuse(Code::AttributesTooBig, name);
        }
        self.tree.change_extra(id, |extra| {
            extra.xattrs.retain(|(known, _)| known != name);
            if let Some(value) = value {
                let at = extra.xattrs.partition_point(|(known, _)| &known[..] < name);
                extra.xattrs.insert(at, (name.to_vec(), value.to_vec()));
            }
        });
        self.tree.change(id, |inode| inode.ctime_ns = now);
        Ok(MasterReply::Done)
    }

    /// The extended attributes of what a path leads to.
    pub fn xattrs(&self, path: &[u8]) -> Answer<Vec<(Vec<u8>, Vec<u8>)>> {
        let id = match self.find(path)? {
            Place::Inode(id) => id,
            Place::Snapshots(_) => return Ok(vec![]),
        };
        let (tree, inner) = self.view(id).expect("just found");
        Ok(tree.extras.get(&inner).map_or(vec![], |e| e.xattrs.clone()))
    }

    fn fill_hole(&mut self, id: FileId, offset: u64, near: &str, salt: u64) -> Answer<MasterReply> {
        let file = self.tree.file(id).ok_or(Code::NoSuchFileId)?;
        let mut start = 0;
        let index = file.parts().iter().position(|part| {
            start += part.length;
            offset < start
        });
        let Some(index) = index else {
            return Err(Refusal::new(Code::BeyondEnd, "the offset lies beyond the end of the file"));
        };
        let hole = file.parts()[index];
        start -= hole.length;
        if hole.handle != ChunkHandle::HOLE {
            return Ok(MasterReply::Chunk(self.chunk_info(id, index)?));
        }
        let policy = self.file_policies[&self.tree.inodes[&id].policy].clone();
        let whole = policy.chunk_bytes.unwrap_or(CHUNK_BYTES_MAX);
        let from = (offset / whole * whole).max(start);
        let to = (offset / whole * whole + whole).min(start + hole.length);
        let handle = self.new_chunk(id, &policy, near, salt)?;
        let mut inode = self.tree.inodes[&id].clone();
        inode.file_mut().fill(index, handle, from - start, to - from);
        self.tree.inodes.insert(id, inode);
        let chunk = Chunk { length: to - from, sealed: true, ..self.chunks[&handle].clone() };
        self.put_chunk(handle, chunk);
        let index = index + usize::from(from > start);
        Ok(MasterReply::Chunk(self.chunk_info(id, index)?))
    }

    fn truncate(&mut self, id: FileId, length: u64, now: i64) -> Answer<MasterReply> {
        let file = self.tree.file(id).ok_or(Code::NoSuchFileId)?;
        if length > i64::MAX as u64 {
            return Err(Refusal::new(Code::BadArgument, "a file has at most 2^63 - 1 bytes"));
        }
        if file.parts().last().is_some_and(|p| self.chunks.get(&p.handle).is_some_and(|c| !c.sealed)) {
            return Err(Refusal::new(Code::WrongChunkIndex, "the last chunk is not sealed"));
        }
        let more = length.saturating_sub(file.length());
        self.may_grow(id, Totals::of_bytes(more))?;
        let file = self.tree.file(id).expect("just seen");
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
        let mut inode = self.tree.inodes[&id].clone();
        let body = inode.file_mut();
        body.keep(keep, cut);
        if let (Some(cut), Some(last)) = (cut, last.filter(|last| last.handle != ChunkHandle::HOLE)) {
            self.is_cut_now(last.handle);
            // A snapshot may go by the chunk's length: it has the file as it was when that chunk was open.
            if !self.is_needed(last.handle) {
                let mut chunk = self.chunks[&last.handle].clone();
                chunk.length = cut;
                self.put_chunk(last.handle, chunk);
            }
        } else if length > start {
            body.push(ChunkHandle::HOLE, length - start);
        }
        (inode.mtime_ns, inode.ctime_ns) = (now, now);
        self.tree.put_file(id, inode);
        for part in dropped.iter().filter(|p| p.handle != ChunkHandle::HOLE) {
            self.is_cut_now(part.handle);
            self.let_go(part.handle);
        }
        Ok(MasterReply::Attr(self.attr(id)))
    }

    /// Takes all bytes of a file with at most one chunk, and gives it another if one is wanted.
    fn empty(
        &mut self,
        id: FileId,
        only: Option<ChunkHandle>,
        chunk: Option<(&str, u64)>,
        now: i64,
    ) -> Answer<MasterReply> {
        let file = self.tree.file(id).ok_or(Code::NoSuchFileId)?;
        let has: Vec<ChunkHandle> = file.parts().iter().map(|part| part.handle).collect();
        if has != Vec::from_iter(only) {
            return Err(Refusal::new(Code::WrongChunkIndex, format!("the file has {} chunks", has.len())));
        }
        let length = file.length();
        let gone = only.filter(|handle| *handle != ChunkHandle::HOLE);
        if gone.is_some_and(|handle| !self.chunks[&handle].sealed && self.is_needed(handle)) {
            return Err(Refusal::new(Code::WrongChunkIndex, "the last chunk is not sealed"));
        }
        let new = match chunk {
            Some(chunk) => Some(self.next_chunk_of(id, Totals::of_bytes(length), chunk)?),
            None => None,
        };
        let mut inode = self.tree.inodes[&id].clone();
        inode.file_mut().keep(0, None);
        inode.open = false;
        if let Some(handle) = new {
            inode.push(handle, 0);
        }
        (inode.mtime_ns, inode.ctime_ns) = (now, now);
        self.tree.put_file(id, inode);
        if let Some(handle) = gone {
            self.is_cut_now(handle);
            self.let_go(handle);
        }
        self.opened(id)
    }

    fn symlink(
        &mut self,
        path: &[u8],
        target: &[u8],
        parents: bool,
        owner: Owner,
        now: i64,
    ) -> Answer<MasterReply> {
        if target.is_empty() || target.len() > PATH_BYTES_MAX || target.contains(&0) {
            return refuse(Code::BadName, path);
        }
        let (parent, name) = self.parent_of(path, parents, now)?;
        let old = self.tree.child(parent, &name);
        if old.is_some_and(|old| !parents || self.tree.is_directory(old)) {
            return refuse(Code::Exists, path);
        }
        let minus = old.map_or(Totals::NOTHING, |old| self.tree.weight(old));
        self.within_quotas(parent, minus, Totals::of_entries(1), |_| false)?;
        if old.is_some() {
            self.replace_entry(parent, &name, now);
        }
        let inode = Inode::symlink(target, now).owned(owner, &self.tree.inodes[&parent]);
        let id = self.new_inode(inode);
        self.tree.link(parent, name, id, now);
        Ok(MasterReply::Attr(self.attr(id)))
    }

    fn set_policy(&mut self, path: &[u8], policy: &Policy) -> Answer<MasterReply> {
        if let Some(why) = policy.invalid() {
            return Err(Refusal::new(Code::BadArgument, why));
        }
        let id = self.tree.resolve(path)?;
        if !self.tree.is_directory(id) {
            return refuse(Code::NotADirectory, path);
        }
        self.tree.policies.insert(id, policy.clone());
        Ok(MasterReply::Policy(self.tree.policy_at(path)?))
    }

    /// The policy that holds for a path, every field given.
    pub fn policy_at(&self, path: &[u8]) -> Answer<Policy> {
        self.tree.policy_at(path)
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

    /// Attributes of an inode that exists, in the live tree or in a snapshot.
    pub fn attr(&self, id: FileId) -> Attr {
        let (tree, inner) = self.view(id).expect("the caller found it");
        let inode = &tree.inodes[&inner];
        let mut attr = Attr {
            file: id,
            kind: FileKind::File,
            mode: inode.mode.into(),
            uid: inode.uid,
            gid: inode.gid,
            mtime_ns: inode.mtime_ns,
            length: 0,
            count: 0,
            open: None,
            target: vec![],
            chunk_bytes: CHUNK_BYTES_MAX,
            atime_ns: tree.extras.get(&inner).and_then(|e| e.atime_ns).unwrap_or(inode.mtime_ns),
            ctime_ns: inode.ctime_ns,
            links: tree.names(inner),
            device: 0,
        };
        match &inode.body {
            Body::File(file) => {
                attr.length = file.length();
                attr.count = file.parts().len() as u64;
                attr.chunk_bytes = self.file_policies[&inode.policy].chunk_bytes.unwrap_or(CHUNK_BYTES_MAX);
                if let Some((handle, chunk)) = self.open_in(id.seen().0, inode) {
                    let known = file.parts().last().map_or(0, |p| p.length);
                    attr.length = attr.length - known + chunk.length;
                    attr.open = Some(handle).filter(|_| !chunk.sealed);
                }
            }
            Body::Directory { entries, directories } => {
                (attr.kind, attr.count) = (FileKind::Directory, *entries);
                attr.links = (*directories).min(u32::MAX as u64 - 2) as u32 + 2;
            }
            Body::Symlink { target } => {
                attr.kind = FileKind::Symlink;
                attr.length = target.len() as u64;
                attr.target = target.to_vec();
            }
            Body::Special { kind, device } => (attr.kind, attr.device) = (*kind, *device),
        }
        attr
    }

    /// Attributes of what a path leads to.
    pub fn stat(&self, path: &[u8]) -> Answer<Attr> {
        Ok(match self.find(path)? {
            Place::Inode(id) => self.attr(id),
            Place::Snapshots(root) => self.snapshots_attr(root),
        })
    }

    /// Attributes of what a path leads to; of a file also its last chunk, if that is open or the only one.
    pub fn look(&self, path: &[u8]) -> Answer<MasterReply> {
        Ok(self.looked_at(self.stat(path)?))
    }

    fn looked_at(&self, attr: Attr) -> MasterReply {
        let chunk = self.last_chunk(&attr);
        MasterReply::Opened { attr, chunk }
    }

    /// Of a file: its last chunk, if that is open or the only one.
    fn last_chunk(&self, attr: &Attr) -> Option<ChunkInfo> {
        let told = attr.file.seen().0 == 0 && (attr.open.is_some() || attr.count == 1);
        let file = self.tree.file(attr.file).filter(|_| told)?;
        self.chunk_info(attr.file, file.parts().len() - 1).ok()
    }

    /// A page of a directory.
    pub fn list(&self, path: &[u8], after: &[u8], limit: u32) -> Answer<MasterReply> {
        let entry = |name: &[u8], attr| Listed { name: name.to_vec(), attr };
        let (entries, more) = self.page(path, after, limit, entry)?;
        Ok(MasterReply::Entries { entries, more })
    }

    /// The same, and of each entry what `look` tells.
    pub fn look_in(&self, path: &[u8], after: &[u8], limit: u32) -> Answer<MasterReply> {
        let entry = |name: &[u8], attr: Attr| {
            let chunk = self.last_chunk(&attr);
            let has_xattrs = self.view(attr.file).is_some_and(|(tree, inner)| tree.has_xattrs(inner));
            Looked { name: name.to_vec(), attr, chunk, has_xattrs }
        };
        let (entries, more) = self.page(path, after, limit, entry)?;
        Ok(MasterReply::Looked { entries, more })
    }

    /// Entries of a directory, and whether there are more.
    fn page<T>(
        &self,
        path: &[u8],
        after: &[u8],
        limit: u32,
        entry: impl Fn(&[u8], Attr) -> T,
    ) -> Answer<(Vec<T>, bool)> {
        let limit = limit.clamp(1, LIST_PAGE_MAX) as usize;
        let id = match self.find(path)? {
            Place::Inode(id) => id,
            Place::Snapshots(root) => {
                let list = self.snapshots_of(root);
                let mut rest = list.iter().filter(|(name, _)| after.is_empty() || &name[..] > after);
                let entries =
                    rest.by_ref().take(limit).map(|(name, id)| entry(name, self.attr(*id))).collect();
                return Ok((entries, rest.next().is_some()));
            }
        };
        let (tree, inner) = self.view(id).expect("just found");
        if !tree.is_directory(inner) {
            return refuse(Code::NotADirectory, path);
        }
        let rest = tree.dentries.range((inner, Name::new(after))..);
        let rest = rest.take_while(|((parent, _), _)| *parent == inner);
        let mut rest = rest.filter(|((_, name), _)| after.is_empty() || name.bytes() != after);
        let mut entries = vec![];
        let mut bytes = 0;
        for ((_, name), child) in rest.by_ref() {
            let attr = self.attr(child.seen_in(id.seen().0));
            bytes += name.bytes().len() + attr.target.len() + ENTRY_BYTES;
            entries.push(entry(name.bytes(), attr));
            if entries.len() == limit || bytes > PAGE_BYTES_MAX {
                break;
            }
        }
        Ok((entries, rest.next().is_some()))
    }

    /// A page of a file's chunks.
    pub fn layout(&self, id: FileId, from: u32, limit: u32) -> Answer<MasterReply> {
        let gone = || Refusal::new(Code::NoSuchFileId, id);
        let (tree, inner) = self.view(id).ok_or_else(gone)?;
        let file = tree.file(inner).ok_or_else(gone)?;
        let number = id.seen().0;
        let open = self.open_in(number, &tree.inodes[&inner]);
        let count = file.parts().len();
        let from = (from as usize).min(count);
        let to = (from + limit.clamp(1, LAYOUT_PAGE_MAX) as usize).min(count);
        let mut start: u64 = file.parts()[..from].iter().map(|p| p.length).sum();
        let mut chunks = vec![];
        for (at, part) in file.parts()[from..to].iter().enumerate() {
            let index = from + at;
            let handle = self.as_of(number, part.handle);
            let mut info = self.info(&Part { handle, ..*part }, index, start)?;
            if number > 0 {
                match open.filter(|_| index + 1 == count) {
                    Some((_, chunk)) => info.length = chunk.length,
                    // Its length was fixed then; it may have been cut since.
                    None => info.config.sealed = Some(part.length),
                }
            }
            chunks.push(info);
            start += part.length;
        }
        Ok(MasterReply::Layout { chunks, count: count as u32 })
    }

    pub(crate) fn chunk_info(&self, id: FileId, index: usize) -> Answer<ChunkInfo> {
        let file = self.tree.file(id).ok_or(Code::NoSuchFileId)?;
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
