//! The tree of names: a value, so that a copy of it - made in no time, as its maps share their
//! structure - is the tree at a moment for good.

use crate::inode::{Body, FileBody, Inode, NOWHERE};
use crate::name::Name;
use crate::packed::Packed;
use crate::quota::Totals;
use crate::{Answer, ROOT};
use common::limits::{CHUNK_BYTES_MAX, PATH_BYTES_MAX, REPLICATION_DEFAULT};
use common::wire::client_master::{Policy, split_path};
use common::{Code, FileId, Refusal};
use imbl::OrdMap;

/// Directories, and what they name.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub inodes: Packed<FileId, Inode>,
    pub dentries: OrdMap<(FileId, Name), FileId>,
    pub policies: OrdMap<FileId, Policy>,
    /// What directories hold, with all that is below them; those that are not empty.
    pub totals: OrdMap<FileId, Totals>,
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

pub(crate) fn refuse<T>(code: Code, path: &[u8]) -> Answer<T> {
    Err(Refusal::new(code, String::from_utf8_lossy(path)))
}

impl Tree {
    /// An empty root.
    pub fn new() -> Tree {
        let mut inodes = Packed::new();
        inodes.insert(ROOT, Inode::directory(0o755, 0));
        Tree { inodes, dentries: OrdMap::new(), policies: OrdMap::new(), totals: OrdMap::new() }
    }

    /// What a directory calls by this name.
    pub fn child(&self, parent: FileId, name: &[u8]) -> Option<FileId> {
        self.dentries.get(&(parent, Name::new(name))).copied()
    }

    /// The inode at the end of a path.
    pub fn resolve(&self, path: &[u8]) -> Answer<FileId> {
        self.walk(ROOT, &split_path(path).or_else(|code| refuse(code, path))?, path)
    }

    /// The inode that these names lead to from a directory; `path` is for the refusal.
    pub fn walk(&self, from: FileId, names: &[&[u8]], path: &[u8]) -> Answer<FileId> {
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

    pub fn is_directory(&self, id: FileId) -> bool {
        matches!(self.inodes[&id].body, Body::Directory { .. })
    }

    pub fn file(&self, id: FileId) -> Option<&FileBody> {
        match &self.inodes.get(&id)?.body {
            Body::File(file) => Some(file),
            _ => None,
        }
    }

    pub fn link(&mut self, parent: FileId, name: Vec<u8>, child: FileId) {
        let before = self.dentries.insert((parent, Name::new(&name)), child);
        assert!(before.is_none(), "the name was taken");
        self.count_entry(parent, 1);
        self.set_parent(child, parent);
        self.weigh(parent, Totals::NOTHING, self.weight(child));
    }

    /// A file has changed, perhaps in length.
    pub fn put_file(&mut self, id: FileId, inode: Inode) {
        let (before, parent) = (self.weight(id), inode.parent);
        self.inodes.insert(id, inode);
        if parent != NOWHERE {
            self.weigh(parent, before, self.weight(id));
        }
    }

    fn set_parent(&mut self, id: FileId, parent: FileId) {
        let mut inode = self.inodes[&id].clone();
        inode.parent = parent;
        self.inodes.insert(id, inode);
    }

    pub fn unlink_entry(&mut self, parent: FileId, name: &[u8]) -> FileId {
        let child = self.dentries.remove(&(parent, Name::new(name)));
        let child = child.expect("the caller looked the name up");
        self.count_entry(parent, -1);
        self.set_parent(child, NOWHERE);
        self.weigh(parent, self.weight(child), Totals::NOTHING);
        child
    }

    fn count_entry(&mut self, parent: FileId, by: i64) {
        let mut inode = self.inodes[&parent].clone();
        let Body::Directory { entries } = &mut inode.body else { panic!("{parent} is no directory") };
        *entries = entries.checked_add_signed(by).expect("entries are counted");
        self.inodes.insert(parent, inode);
    }

    pub fn touch(&mut self, id: FileId, now: i64) {
        let mut inode = self.inodes[&id].clone();
        inode.mtime_ns = now;
        self.inodes.insert(id, inode);
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
}
