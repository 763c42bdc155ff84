//! The trash: what was deleted stays for a while, then goes in bounded steps.

use crate::inode::{Body, NOWHERE};
use crate::name::Name;
use crate::quota::Totals;
use crate::{Answer, Metadata, page};
use bincode::{Decode, Encode};
use common::limits::{NAMELESS_MS, UNHELD_MS};
use common::wire::chunk_master::Register;
use common::wire::client_master::TrashEntry;
use common::wire::path::Route;
use common::{ChunkHandle, Code, FileId, Refusal};
use imbl::OrdMap;
use std::collections::BTreeMap;
use std::ops::Bound;

/// A deleted file or tree.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Trashed {
    /// The path it had; empty for what nobody can bring back.
    pub(crate) path: Vec<u8>,
    /// Wall clock, nanoseconds since 1970.
    pub(crate) deleted_ns: i64,
}

impl Trashed {
    /// The path that it had, from the root, if what its path is told from has one.
    fn path_before(&self, mut path_of: impl FnMut(FileId) -> Option<Vec<u8>>) -> Vec<u8> {
        let told = Route::of(&self.path).ok().filter(|route| route.from != FileId::ROOT);
        let above = told.as_ref().and_then(|route| path_of(route.from));
        match (above, told) {
            (Some(above), Some(Route { names, .. })) => {
                let above = if above == b"/" { vec![] } else { above };
                std::iter::once(&above[..]).chain(names).collect::<Vec<_>>().join(&b'/')
            }
            _ => self.path.clone(),
        }
    }
}

/// Times of the log's clock: what is older goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Before {
    /// Trash that went in before this.
    pub trash_ns: u64,
    /// Files that have no name yet, and that nobody has written to since.
    pub uploads_ns: u64,
    /// Files that have no name any more, and that nobody has asked for since.
    pub open_ns: u64,
    /// Clients not heard of since.
    pub clients_ns: u64,
}

/// A store fuller than this, in thousandths, wants the room of the trash.
pub const CROWDED_PER_MILLE: u64 = 900;

/// Why a file that nobody finds stays for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub(crate) enum Why {
    /// It has no name yet: somebody writes it.
    Upload,
    /// It has no name any more, and somebody may have it open.
    Open,
    /// As `Open`, and it lies in the trash too.
    Trashed,
}

/// Files that nobody finds, and that must not go yet. Those that nobody writes to or asks to hold go in the end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unnamed {
    /// When it was last asked for, by the log's clock, and why it stays.
    files: OrdMap<FileId, (u64, Why)>,
    by_time: OrdMap<(bool, u64, FileId), ()>,
}

impl Unnamed {
    pub fn contains(&self, file: FileId) -> bool {
        self.files.contains_key(&file)
    }

    /// Whether a file is held, and may be given a name: one that lies in the trash is brought back from there.
    pub fn can_be_named(&self, file: FileId) -> bool {
        self.files.get(&file).is_some_and(|(_, why)| *why != Why::Trashed)
    }

    /// A file that is here stays for another while.
    pub fn keep(&mut self, file: FileId, now: u64) {
        if let Some((_, why)) = self.files.get(&file).copied() {
            self.put(file, now, why);
        }
    }

    pub fn put(&mut self, file: FileId, now: u64, why: Why) {
        self.remove(file);
        self.files.insert(file, (now, why));
        self.by_time.insert((why == Why::Upload, now, file), ());
    }

    /// A file has no name any more, and nobody has asked for it yet: it counts as one that was last asked for some time
    /// ago.
    pub fn put_unheld(&mut self, file: FileId, now: u64) {
        self.put(file, now.saturating_sub((NAMELESS_MS - UNHELD_MS) * 1_000_000), Why::Open);
    }

    /// A file is held no more; gives why it was, if it was.
    pub fn remove(&mut self, file: FileId) -> Option<Why> {
        let (at, why) = self.files.remove(&file)?;
        self.by_time.remove(&(why == Why::Upload, at, file));
        Some(why)
    }

    /// The one that nobody has asked for for longest, if that is longer than is allowed.
    pub fn expired(&self, before: &Before) -> Option<FileId> {
        let oldest = |upload| self.by_time.range((upload, 0, FileId(0))..).next().map(|(key, ())| *key);
        let uploads = oldest(true).filter(|(_, at, _)| *at < before.uploads_ns);
        let open = oldest(false).filter(|(upload, at, _)| !upload && *at < before.open_ns);
        uploads.or(open).map(|(_, _, file)| file)
    }

    pub fn iter(&self) -> impl Iterator<Item = (FileId, &(u64, Why))> {
        self.files.iter().map(|(file, held)| (*file, held))
    }
}

impl Metadata {
    /// Somebody has these files open: those that have no name stay for another while.
    pub(crate) fn hold(&mut self, files: &[FileId]) {
        for file in self.nameless(files) {
            match self.unnamed.contains(file) {
                true => self.unnamed.keep(file, self.clock_ns),
                false => self.unnamed.put(file, self.clock_ns, Why::Trashed),
            }
        }
    }

    /// Those of these files that are there, and have no name.
    pub fn nameless(&self, files: &[FileId]) -> Vec<FileId> {
        let nameless =
            |file: &&FileId| self.tree.file(**file).is_some() && self.tree.inodes[*file].parent == NOWHERE;
        files.iter().filter(nameless).copied().collect()
    }

    pub(crate) fn move_to_trash(&mut self, file: FileId, path: &[u8], deleted_ns: i64) {
        let path = path.to_vec();
        self.trash.insert((self.clock_ns, file), Trashed { path, deleted_ns });
    }

    /// Deletes soon and for good.
    pub(crate) fn move_to_grave(&mut self, file: FileId) {
        self.trash.insert((0, file), Trashed { path: vec![], deleted_ns: 0 });
    }

    /// What can be brought back, oldest first, after this entry. What is in the grave (0), or was there
    /// when the trash was emptied, cannot.
    fn visible_trash(
        &self,
        after: (u64, FileId),
    ) -> impl DoubleEndedIterator<Item = (&(u64, FileId), &Trashed)> {
        let from = after.max((self.emptied_ns.max(1) - 1, FileId(u64::MAX)));
        let visible = self.trash.range((Bound::Excluded(from), Bound::Unbounded));
        visible.filter(|(_, t)| !t.path.is_empty())
    }

    /// A page of the trash, oldest first.
    pub fn list_trash(&self, after: (u64, FileId), limit: usize) -> Vec<TrashEntry> {
        let visible = self.visible_trash(after);
        // What lay in one directory has the same path but for its name.
        let mut above: BTreeMap<FileId, Option<Vec<u8>>> = BTreeMap::new();
        let entry = |((log_ns, file), t): (&(u64, FileId), &Trashed)| TrashEntry {
            file: *file,
            path: t.path_before(|from| above.entry(from).or_insert_with(|| self.tree.path_of(from)).clone()),
            deleted_ns: t.deleted_ns,
            log_ns: *log_ns,
        };
        page(visible.map(entry), limit, |t| t.path.len())
    }

    pub(crate) fn undelete(&mut self, path: &[u8], to: &[u8], now: i64) -> Answer<FileId> {
        let route = Route::of(path)?;
        let path_of = |from| self.tree.path_of(from);
        let same = |t: &Trashed| {
            let known = Route::of(&t.path);
            // Most differ in their names alone: only then their directories' paths are looked for.
            known.is_ok_and(|known| known.names.last() == route.names.last())
                && Route::of(&t.path_before(path_of)).is_ok_and(|known| known == route)
        };
        let newest = self.visible_trash((0, FileId(0))).rev().find(|(_, t)| same(t)).map(|(key, _)| *key);
        let key = newest.ok_or_else(|| Refusal::new(Code::NotInTrash, String::from_utf8_lossy(path)))?;
        let (parent, name) = self.parent_of(to, true, now)?;
        if self.tree.child(parent, &name).is_some() {
            return Err(Refusal::new(Code::Exists, String::from_utf8_lossy(to)));
        }
        self.within_quotas(parent, Totals::NOTHING, self.tree.weight(key.1), |_| false)?;
        self.trash.remove(&key);
        self.unnamed.remove(key.1);
        self.tree.link(parent, name, key.1, now);
        Ok(key.1)
    }

    /// Deletes what is older than the given log times; at most `budget` inodes.
    pub(crate) fn expire(&mut self, before: &Before, budget: u32) {
        let trash_ns = before.trash_ns.max(self.emptied_ns);
        self.end_idle_clients(before.clients_ns, budget);
        self.sweep_snapshots(budget);
        self.forget_given_up(budget);
        self.expire_clones(budget);
        for _ in 0..budget {
            let Some(file) = self.unnamed.expired(before) else {
                break;
            };
            if self.unnamed.remove(file) != Some(Why::Trashed) {
                self.move_to_grave(file);
            }
        }
        for _ in 0..budget {
            let Some(((at, file), _)) = self.trash.get_min().cloned() else {
                break;
            };
            if at > 0 && at >= trash_ns {
                break;
            }
            self.bury(at, file);
        }
    }

    /// Whether `expire` would find work, given these log times.
    pub fn has_expired(&self, before: &Before) -> bool {
        let trash_ns = before.trash_ns.max(self.emptied_ns);
        let trash = self.trash.get_min().is_some_and(|((at, _), _)| *at == 0 || *at < trash_ns);
        trash
            || self.has_leftovers()
            || self.has_untold()
            || self.expired_clone().is_some()
            || self.unnamed.expired(before).is_some()
            || self.clients.values().any(|c| c.seen_ns < before.clients_ns)
    }

    /// When stores are crowded: the log's time before which the trash must go to give them room. At most
    /// `budget` entries are older than that.
    pub fn trash_in_the_way(&self, budget: usize) -> Option<u64> {
        let in_service = self.all_stores().filter(|(_, store)| store.session().is_some());
        let registers = in_service.map(|(_, store)| &store.register);
        let excess = |r: &Register| r.used.saturating_sub(r.capacity / 1000 * CROWDED_PER_MILLE);
        let mut wanted: u128 = registers.map(excess).map(u128::from).sum();
        let mut before = None;
        for ((at, file), _) in self.trash.iter().take(budget) {
            if wanted == 0 {
                break;
            }
            before = Some(at + 1);
            wanted = wanted.saturating_sub(self.tree.weight(*file).bytes);
        }
        before
    }

    /// Deletes one inode of the trash; a directory's entries go into the grave one by one first.
    fn bury(&mut self, at: u64, file: FileId) {
        let Some(inode) = self.tree.inodes.get(&file).cloned() else {
            self.trash.remove(&(at, file));
            return;
        };
        if self.unnamed.contains(file) {
            // Somebody has it open: it goes when nobody has.
            let seen = self.clock_ns;
            self.trash.remove(&(at, file));
            self.unnamed.put(file, seen, Why::Open);
            return;
        }
        if let Body::Directory { entries: 1.., .. } = inode.body {
            let range = (file, Name::new(&[]))..;
            let child = self.tree.dentries.range(range).next().map(|(k, v)| (k.clone(), *v));
            let ((parent, name), child) = child.expect("a directory that counts entries has one");
            assert_eq!(parent, file);
            if !self.tree.unlink(parent, name.bytes(), inode.mtime_ns).1 {
                self.move_to_grave(child);
            }
            return;
        }
        if let Body::File(chunks) = &inode.body {
            for part in chunks.parts().iter().filter(|p| p.handle != ChunkHandle::HOLE) {
                self.let_go(part.handle);
            }
        }
        self.trash.remove(&(at, file));
        self.tree.inodes.remove(&file);
        self.tree.policies.remove(&file);
        self.tree.extras.remove(&file);
        self.quotas.remove(&file);
    }
}
