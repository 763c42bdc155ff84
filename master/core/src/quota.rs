//! How much a directory holds, with all that is below it, and how much it may hold. What it holds is
//! counted as it changes (`Tree::totals`), so that both cost nothing to ask for.

use crate::inode::Body;
use crate::snapshots::Place;
use crate::tree::Tree;
use crate::{Answer, Metadata};
use bincode::{Decode, Encode};
use common::wire::client_master::{MasterReply, Quota, Usage};
use common::{Code, FileId, Refusal};

/// Files, directories and symlinks, and the bytes of the files. Holes count as bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Totals {
    pub entries: u64,
    /// Sparse files can have more together than 64 bits count.
    pub bytes: u128,
}

impl Totals {
    pub const NOTHING: Totals = Totals { entries: 0, bytes: 0 };
    /// A file that will have bytes.
    pub const FILE: Totals = Totals { entries: 1, bytes: 1 };
    /// A chunk that will have bytes.
    pub const CHUNK: Totals = Totals { entries: 0, bytes: 1 };

    pub fn of_entries(entries: u64) -> Totals {
        Totals { entries, bytes: 0 }
    }

    pub fn of_bytes(bytes: u64) -> Totals {
        Totals { entries: 0, bytes: bytes.into() }
    }
}

impl Tree {
    /// What a directory holds, with all that is below it.
    pub fn totals_of(&self, directory: FileId) -> Totals {
        self.totals.get(&directory).copied().unwrap_or_default()
    }

    /// What an inode adds to the directory that names it: itself, and all that is below it.
    pub fn weight(&self, id: FileId) -> Totals {
        match &self.inodes[&id].body {
            Body::File(file) => Totals { entries: 1, bytes: file.length().into() },
            Body::Directory { .. } => {
                let below = self.totals_of(id);
                Totals { entries: below.entries + 1, ..below }
            }
            Body::Symlink { .. } | Body::Special { .. } => Totals::of_entries(1),
        }
    }

    /// Something in a directory weighs less by this, and more by that: so do all directories above.
    pub fn weigh(&mut self, directory: FileId, minus: Totals, plus: Totals) {
        if minus == plus {
            return;
        }
        let all: Vec<FileId> = std::iter::once(directory).chain(self.above(directory)).collect();
        for id in all {
            let before = self.totals_of(id);
            let now = Totals {
                entries: (before.entries + plus.entries)
                    .checked_sub(minus.entries)
                    .expect("entries are counted"),
                bytes: (before.bytes + plus.bytes).checked_sub(minus.bytes).expect("bytes are counted"),
            };
            match now == Totals::NOTHING {
                true => self.totals.remove(&id),
                false => self.totals.insert(id, now),
            };
        }
    }
}

impl Metadata {
    /// Whether something in a directory may weigh less by this, and more by that. Directories that are
    /// skipped have it already. What only shrinks is always allowed.
    pub(crate) fn within_quotas(
        &self,
        directory: FileId,
        minus: Totals,
        plus: Totals,
        skip: impl Fn(FileId) -> bool,
    ) -> Answer<()> {
        if self.quotas.is_empty() {
            return Ok(());
        }
        for id in std::iter::once(directory).chain(self.tree.above(directory)).filter(|id| !skip(*id)) {
            let Some(quota) = self.quotas.get(&id) else { continue };
            let now = self.tree.totals_of(id);
            let over = |max: Option<u64>, now: u128, minus: u128, plus: u128| {
                max.filter(|max| plus > minus && now + plus - minus > u128::from(*max))
            };
            let entries = over(quota.entries, now.entries.into(), minus.entries.into(), plus.entries.into());
            let bytes = over(quota.bytes, now.bytes, minus.bytes, plus.bytes);
            let about = match (entries, bytes) {
                (Some(max), _) => format!("it holds {} of {max} entries", now.entries),
                (_, Some(max)) => format!("it holds {} of {max} bytes", now.bytes),
                _ => continue,
            };
            return Err(Refusal::new(Code::QuotaExceeded, about));
        }
        Ok(())
    }

    /// Sets what a directory may hold; nothing: there is no limit.
    pub(crate) fn set_quota(&mut self, path: &[u8], quota: &Quota) -> Answer<MasterReply> {
        let id = self.tree.resolve(path)?;
        if !self.tree.is_directory(id) {
            return crate::tree::refuse(Code::NotADirectory, path);
        }
        match *quota == Quota::default() {
            true => self.quotas.remove(&id),
            false => self.quotas.insert(id, *quota),
        };
        self.usage_of(path).map(MasterReply::Usage)
    }

    /// How much is at the end of a path, with all that is below it, and how much may be.
    pub fn usage_of(&self, path: &[u8]) -> Answer<Usage> {
        let id = match self.find(path)? {
            Place::Inode(id) => id,
            Place::Snapshots(_) => return crate::tree::refuse(Code::ReadOnly, path),
        };
        let (tree, inner) = self.view(id).expect("just found");
        let Totals { entries, bytes } = match tree.is_directory(inner) {
            true => tree.totals_of(inner),
            false => tree.weight(inner),
        };
        let quota = self.quotas.get(&id).copied().unwrap_or_default();
        Ok(Usage { entries, bytes: bytes.try_into().unwrap_or(u64::MAX), quota })
    }
}
