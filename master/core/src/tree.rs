//! The tree of names: a value, so that a copy of it - made in no time, as its maps share their
//! structure - is the tree at a moment for good.

use crate::inode::{Body, Extra, FileBody, Inode, NOWHERE};
use crate::name::Name;
use crate::packed::Packed;
use crate::quota::Totals;
use crate::{Answer, ROOT};
use common::limits::{CHUNK_BYTES_MAX, PATH_BYTES_MAX, REPLICATION_DEFAULT};
use common::wire::client_master::Policy;
use common::wire::path::Route;
use common::{Code, FileId, Refusal};
use imbl::OrdMap;
use std::sync::Arc;

/// Directories, and what they name.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub inodes: Packed<FileId, Inode>,
    pub dentries: OrdMap<(FileId, Name), FileId>,
    pub policies: OrdMap<FileId, Policy>,
    /// What directories hold, with all that is below them; those that are not empty.
    pub totals: OrdMap<FileId, Totals>,
    /// What few inodes have.
    pub extras: OrdMap<FileId, Arc<Extra>>,
}

/// What a file has when no directory above it says otherwise.
fn default_policy() -> Policy {
    Policy {
        replication: Some(REPLICATION_DEFAULT),
        chunk_bytes: Some(CHUNK_BYTES_MAX),
        memory: Some(false),
        label: Some(String::new()),
        trash: Some(true),
    }
}

/// The permission bit by which a directory's names are safe from whom they do not belong to.
const STICKY: u16 = 0o1000;

pub(crate) fn refuse<T>(code: Code, path: &[u8]) -> Answer<T> {
    Err(Refusal::new(code, String::from_utf8_lossy(path)))
}

/// A path taken apart, or why it is none.
pub(crate) fn route(path: &[u8]) -> Answer<Route<'_>> {
    Route::of(path).or_else(|code| refuse(code, path))
}

impl Tree {
    /// An empty root.
    pub fn new() -> Tree {
        let mut inodes = Packed::new();
        inodes.insert(ROOT, Inode::directory(0o755, 0));
        Tree {
            inodes,
            dentries: OrdMap::new(),
            policies: OrdMap::new(),
            totals: OrdMap::new(),
            extras: OrdMap::new(),
        }
    }

    /// What a directory calls by this name.
    pub fn child(&self, parent: FileId, name: &[u8]) -> Option<FileId> {
        self.dentries.get(&(parent, Name::new(name))).copied()
    }

    /// The inode at the end of a path.
    pub fn resolve(&self, path: &[u8]) -> Answer<FileId> {
        let route = route(path)?;
        self.walk(route.from, &route.names, path)
    }

    /// The inode that these names lead to from another; `path` is for the refusal.
    pub fn walk(&self, from: FileId, names: &[&[u8]], path: &[u8]) -> Answer<FileId> {
        if !self.inodes.contains_key(&from) {
            return refuse(Code::NoSuchFileId, path);
        }
        let mut at = from;
        for name in names {
            if !self.is_directory(at) {
                return refuse(Code::NotADirectory, path);
            }
            match self.child(at, name) {
                Some(child) => at = child,
                None => return refuse(Code::NotFound, path),
            }
        }
        Ok(at)
    }

    /// A user who is not privileged takes nothing away that is another's from a directory with the sticky bit, unless that
    /// is his own. Nothing is refused to others (`user` is none). The path is for the refusal.
    pub fn refuse_others(&self, user: Option<u32>, dir: FileId, id: FileId, path: &[u8]) -> Answer<()> {
        let (of_dir, of_it) = (&self.inodes[&dir], &self.inodes[&id]);
        let is_sticky = of_dir.mode & STICKY != 0;
        match user {
            Some(user) if is_sticky && of_dir.uid != user && of_it.uid != user => {
                refuse(Code::NotYours, path)
            }
            _ => Ok(()),
        }
    }

    pub fn is_directory(&self, id: FileId) -> bool {
        matches!(self.inodes[&id].body, Body::Directory { .. })
    }

    pub fn file(&self, id: FileId) -> Option<&FileBody> {
        match &self.inodes.get(&id)?.body {
            Body::File(file) => Some(file),
            _ => None,
        }
    }

    pub fn has_xattrs(&self, id: FileId) -> bool {
        self.extras.get(&id).is_some_and(|extra| !extra.xattrs.is_empty())
    }

    // --- names ---------------------------------------------------------------------------

    /// A directory names an inode, for the first or one more time.
    pub fn link(&mut self, parent: FileId, name: Vec<u8>, child: FileId, now: i64) {
        let before = self.dentries.insert((parent, Name::new(&name)), child);
        assert!(before.is_none(), "the name was taken");
        self.count_entry(parent, child, 1, now);
        let home = self.inodes[&child].parent;
        if home == NOWHERE {
            self.settle(child, parent);
        } else {
            self.change_extra(child, |extra| {
                if extra.names.is_empty() {
                    extra.count_name(home, 1);
                }
                extra.count_name(parent, 1);
            });
        }
        self.change(child, |inode| inode.ctime_ns = now);
    }

    /// A name is no more. Gives what it named, and whether that has another one.
    pub fn unlink(&mut self, parent: FileId, name: &[u8], now: i64) -> (FileId, bool) {
        let child = self.dentries.remove(&(parent, Name::new(name)));
        let child = child.expect("the caller looked the name up");
        self.count_entry(parent, child, -1, now);
        self.change(child, |inode| inode.ctime_ns = now);
        if self.names(child) == 1 {
            self.settle(child, NOWHERE);
            return (child, false);
        }
        let home = self.inodes[&child].parent;
        let mut heir = home;
        self.change_extra(child, |extra| {
            extra.count_name(parent, -1);
            if extra.names.iter().all(|(at, _)| *at != home) {
                heir = extra.names[0].0;
            }
            if extra.names.iter().map(|(_, count)| *count).sum::<u32>() == 1 {
                extra.names.clear();
            }
        });
        if heir != home {
            self.settle(child, heir);
        }
        (child, true)
    }

    /// How many names an inode has.
    pub fn names(&self, id: FileId) -> u32 {
        let named = u32::from(self.inodes[&id].parent != NOWHERE);
        let several = self.extras.get(&id).map_or(0, |e| e.names.iter().map(|(_, count)| *count).sum());
        several.max(named)
    }

    /// The directories that name an inode.
    pub fn parents(&self, id: FileId) -> Vec<FileId> {
        let home = self.inodes.get(&id).map_or(NOWHERE, |inode| inode.parent);
        match self.extras.get(&id).map(|e| &e.names).filter(|names| !names.is_empty()) {
            Some(names) => names.iter().map(|(parent, _)| *parent).collect(),
            None => Some(home).into_iter().filter(|home| *home != NOWHERE).collect(),
        }
    }

    /// Whether a directory can be reached from the root.
    pub fn is_live(&self, directory: FileId) -> bool {
        directory == ROOT || self.above(directory).last() == Some(ROOT)
    }

    /// An inode counts in another directory from now on; in none, if `NOWHERE`.
    fn settle(&mut self, id: FileId, parent: FileId) {
        let (weight, before) = (self.weight(id), self.inodes[&id].parent);
        if before != NOWHERE {
            self.weigh(before, weight, Totals::NOTHING);
        }
        self.change(id, |inode| inode.parent = parent);
        if parent != NOWHERE {
            self.weigh(parent, Totals::NOTHING, weight);
        }
    }

    fn count_entry(&mut self, parent: FileId, child: FileId, by: i64, now: i64) {
        let one_more = if self.is_directory(child) { by } else { 0 };
        self.change(parent, |inode| {
            let Body::Directory { entries, directories } = &mut inode.body else {
                panic!("{parent} is no directory")
            };
            *entries = entries.checked_add_signed(by).expect("entries are counted");
            *directories = directories.checked_add_signed(one_more).expect("directories are counted");
            (inode.mtime_ns, inode.ctime_ns) = (now, now);
        });
    }

    // --- inodes --------------------------------------------------------------------------

    /// Changes an inode in what weighs nothing.
    pub fn change(&mut self, id: FileId, how: impl FnOnce(&mut Inode)) {
        let mut inode = self.inodes[&id].clone();
        how(&mut inode);
        self.inodes.insert(id, inode);
    }

    /// Changes what few inodes have.
    pub fn change_extra(&mut self, id: FileId, how: impl FnOnce(&mut Extra)) {
        let mut extra = self.extras.remove(&id).unwrap_or_default();
        how(Arc::make_mut(&mut extra));
        if *extra != Extra::default() {
            self.extras.insert(id, extra);
        }
    }

    /// A file has changed, perhaps in length.
    pub fn put_file(&mut self, id: FileId, inode: Inode) {
        let (before, parent) = (self.weight(id), inode.parent);
        self.inodes.insert(id, inode);
        if parent != NOWHERE {
            self.weigh(parent, before, self.weight(id));
        }
    }

    /// What a file holds has changed.
    pub fn touch(&mut self, id: FileId, now: i64) {
        self.change(id, |inode| (inode.mtime_ns, inode.ctime_ns) = (now, now));
    }

    /// The directories above an inode, the nearest first, up to the root.
    pub fn above(&self, id: FileId) -> impl Iterator<Item = FileId> {
        let up = |at: &FileId| self.inodes.get(at).map(|inode| inode.parent).filter(|at| *at != NOWHERE);
        std::iter::successors(up(&id), up)
    }

    /// The path of an inode that has a name; what has none has none. Of one that renames have made
    /// longer than any that can be asked for, `...` and the last names. It looks through a whole directory
    /// for each name: for people who ask, not for the data path.
    pub fn path_of(&self, id: FileId) -> Option<Vec<u8>> {
        let mut names: Vec<Vec<u8>> = vec![];
        let mut at = id;
        for parent in self.above(id) {
            if names.iter().map(|n| n.len() + 1).sum::<usize>() > PATH_BYTES_MAX {
                names.push(b"...".to_vec());
                names.reverse();
                return Some(names.join(&b'/'));
            }
            let mut named =
                self.dentries.range((parent, Name::new(&[]))..).take_while(|((p, _), _)| *p == parent);
            names.push(named.find(|(_, child)| **child == at)?.0.1.bytes().to_vec());
            at = parent;
        }
        names.push(vec![]);
        names.reverse();
        (at == ROOT).then(|| if names.len() == 1 { b"/".to_vec() } else { names.join(&b'/') })
    }

    /// The policy that holds for a path, every field given.
    pub fn policy_at(&self, path: &[u8]) -> Answer<Policy> {
        let route = route(path)?;
        let mut at = self.walk(route.from, &[], path)?;
        for name in route.names {
            match self.child(at, name) {
                Some(child) => at = child,
                None => break,
            }
        }
        Ok(self.policy_of(at))
    }

    /// The policy that holds for an inode: the nearest directory says so.
    pub fn policy_of(&self, id: FileId) -> Policy {
        let mut policy = Policy::default();
        let own = std::iter::once(id).chain(self.above(id)).filter_map(|at| self.policies.get(&at));
        for own in own.chain([&default_policy()]) {
            policy.replication = policy.replication.or(own.replication);
            policy.chunk_bytes = policy.chunk_bytes.or(own.chunk_bytes);
            policy.memory = policy.memory.or(own.memory);
            policy.label = policy.label.or_else(|| own.label.clone());
            policy.trash = policy.trash.or(own.trash);
        }
        policy
    }
}
