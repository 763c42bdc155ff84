//! The trash: what was deleted stays for a while, then goes in bounded steps.

use crate::inode::Body;
use crate::name::Name;
use crate::quota::Totals;
use crate::{Answer, Metadata, page};
use bincode::{Decode, Encode};
use common::wire::client_master::{TrashEntry, split_path};
use common::{ChunkHandle, Code, FileId, Refusal};
use std::ops::Bound;

/// A deleted file or tree.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Trashed {
    /// The path it had; empty for what nobody can bring back.
    pub(crate) path: Vec<u8>,
    /// Wall clock, nanoseconds since 1970.
    pub(crate) deleted_ns: i64,
}

impl Metadata {
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
        let entry = |((log_ns, file), t): (&(u64, FileId), &Trashed)| TrashEntry {
            file: *file,
            path: t.path.clone(),
            deleted_ns: t.deleted_ns,
            log_ns: *log_ns,
        };
        page(visible.map(entry), limit, |t| t.path.len())
    }

    pub(crate) fn undelete(&mut self, path: &[u8], to: &[u8]) -> Answer<FileId> {
        let names = split_path(path)?;
        let same = |t: &Trashed| split_path(&t.path).is_ok_and(|n| n == names);
        let newest = self.visible_trash((0, FileId(0))).rev().find(|(_, t)| same(t)).map(|(key, _)| *key);
        let key = newest.ok_or_else(|| Refusal::new(Code::NotInTrash, String::from_utf8_lossy(path)))?;
        let (parent, name) = self.parent_of(to, true)?;
        if self.tree.child(parent, &name).is_some() {
            return Err(Refusal::new(Code::Exists, String::from_utf8_lossy(to)));
        }
        self.within_quotas(parent, Totals::NOTHING, self.tree.weight(key.1), |_| false)?;
        self.trash.remove(&key);
        self.tree.link(parent, name, key.1);
        Ok(key.1)
    }

    /// Deletes what is older than the given log times; at most `budget` inodes.
    pub(crate) fn expire(&mut self, trash_ns: u64, unnamed_ns: u64, clients_ns: u64, budget: u32) {
        let trash_ns = trash_ns.max(self.emptied_ns);
        self.end_idle_clients(clients_ns, budget);
        self.sweep_snapshots(budget);
        self.forget_given_up(budget);
        let idle = self.unnamed.iter().filter(|(_, seen)| **seen < unnamed_ns).map(|(file, _)| *file);
        for file in idle.take(budget as usize).collect::<Vec<_>>() {
            self.unnamed.remove(&file);
            self.move_to_grave(file);
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
    pub fn has_expired(&self, trash_ns: u64, unnamed_ns: u64, clients_ns: u64) -> bool {
        let trash_ns = trash_ns.max(self.emptied_ns);
        let trash = self.trash.get_min().is_some_and(|((at, _), _)| *at == 0 || *at < trash_ns);
        trash
            || self.has_leftovers()
            || self.has_untold()
            || self.unnamed.values().any(|seen| *seen < unnamed_ns)
            || self.clients.values().any(|c| c.seen_ns < clients_ns)
    }

    /// Deletes one inode of the trash; a directory's entries go into the grave one by one first.
    fn bury(&mut self, at: u64, file: FileId) {
        let Some(inode) = self.tree.inodes.get(&file).cloned() else {
            self.trash.remove(&(at, file));
            return;
        };
        if let Body::Directory { entries: 1.. } = inode.body {
            let range = (file, Name::new(&[]))..;
            let child = self.tree.dentries.range(range).next().map(|(k, v)| (k.clone(), *v));
            let ((parent, name), child) = child.expect("a directory that counts entries has one");
            assert_eq!(parent, file);
            self.tree.unlink_entry(parent, name.bytes());
            self.move_to_grave(child);
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
        self.quotas.remove(&file);
    }
}
