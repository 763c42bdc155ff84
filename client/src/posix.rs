//! What a mount asks for beyond what everybody does: owners, links, special files, extended attributes.

use crate::{Attr, Client, Error, Known, Result, Seen};
use common::limits::XATTR_VALUE_BYTES_MAX;
use common::wire::client_master::{
    FileKind, HOLD_FILES_MAX, MasterReply, MasterRequest, Mutation, NameChange, Only, Owner, SetTime,
};
use common::{Code, FileId, Refusal};

/// What changes of an inode's attributes.
#[derive(Clone, Copy, Debug)]
pub struct Changes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Time of the last access.
    pub atime: SetTime,
    /// Time of the last modification.
    pub mtime: SetTime,
}

impl Default for Changes {
    fn default() -> Changes {
        Changes { mode: None, uid: None, gid: None, atime: SetTime::Keep, mtime: SetTime::Keep }
    }
}

/// A change of names by a user, unless whoever wants it is privileged: then what lies in the way need not be his.
fn by(user: Option<u32>, change: NameChange) -> Mutation {
    match (user, change) {
        (Some(user), change) => Mutation::ByUser { user, change },
        (None, NameChange::Rename { from, to, replace }) => Mutation::Rename { from, to, replace },
        (None, NameChange::Unlink { path, only }) => Mutation::Unlink { path, recursive: false, only },
        (None, NameChange::Exchange { a, b }) => Mutation::Exchange { a, b },
    }
}

impl Client {
    pub(crate) async fn mutate_for_attr(&self, mutation: Mutation) -> Result<Attr> {
        match self.mutate(mutation).await? {
            MasterReply::Attr(attr) => Ok(attr),
            _ => Err(Error::unexpected("change of the name space")),
        }
    }

    pub(crate) async fn mutate_file(&self, mutation: Mutation) -> Result<Known> {
        match self.mutate(mutation).await? {
            MasterReply::Opened { attr, chunk } => Ok(Known { attr, chunk, said: None }),
            _ => Err(Error::unexpected("change of a file")),
        }
    }

    /// Makes a directory that is somebody's.
    pub async fn make_directory(&self, path: Vec<u8>, mode: u32, owner: Owner) -> Result<Attr> {
        self.mutate_for_attr(Mutation::Mkdir { path, parents: false, mode, owner }).await
    }

    /// Makes a file that is somebody's; with its first `chunk`, if it shall soon have bytes.
    pub async fn make_file(&self, path: Vec<u8>, mode: u32, owner: Owner, chunk: bool) -> Result<Seen> {
        Ok(self.create_file(path, mode, owner, true, chunk).await?.into_new())
    }

    /// Makes a file; without `exclusive`, or gives the one that is there.
    pub(crate) async fn create_file(
        &self,
        path: Vec<u8>,
        mode: u32,
        owner: Owner,
        exclusive: bool,
        chunk: bool,
    ) -> Result<Known> {
        let near = self.inner.config.rack.clone();
        self.mutate_file(Mutation::Create { path, mode, owner, exclusive, parents: false, chunk, near }).await
    }

    /// Makes a named pipe, socket or device.
    pub async fn make_special(
        &self,
        path: Vec<u8>,
        kind: FileKind,
        device: u32,
        mode: u32,
        owner: Owner,
    ) -> Result<Attr> {
        self.mutate_for_attr(Mutation::MakeSpecial { path, kind, device, mode, owner }).await
    }

    /// Makes a symlink that is somebody's.
    pub async fn make_symlink(&self, path: Vec<u8>, target: &[u8], owner: Owner) -> Result<Attr> {
        let target = target.to_vec();
        self.mutate_for_attr(Mutation::Symlink { path, target, parents: false, owner }).await
    }

    /// Gives what is no directory one more name.
    pub async fn link(&self, from: Vec<u8>, to: Vec<u8>) -> Result<Known> {
        self.mutate_file(Mutation::Link { from, to }).await
    }

    /// Lets two paths change places, atomically. By a `user`, unless whoever wants it is privileged; so below.
    pub async fn exchange(&self, a: Vec<u8>, b: Vec<u8>, user: Option<u32>) -> Result<()> {
        self.mutate(by(user, NameChange::Exchange { a, b })).await.map(drop)
    }

    /// Takes a name away: of a directory, which must be empty, or of what is none. Gives the directory's attributes.
    pub async fn remove(&self, path: Vec<u8>, only: Only, user: Option<u32>) -> Result<Attr> {
        self.mutate_for_attr(by(user, NameChange::Unlink { path, only })).await
    }

    /// Renames, atomically; gives the attributes of what it is that has the name now.
    pub async fn move_name(
        &self,
        from: Vec<u8>,
        to: Vec<u8>,
        replace: bool,
        user: Option<u32>,
    ) -> Result<Attr> {
        self.mutate_for_attr(by(user, NameChange::Rename { from, to, replace })).await
    }

    /// Changes attributes; gives them all.
    pub async fn change(&self, path: Vec<u8>, changes: Changes) -> Result<Known> {
        let Changes { mode, uid, gid, atime, mtime } = changes;
        self.mutate_file(Mutation::SetAttr { path, mode, atime, mtime, uid, gid }).await
    }

    /// Extended attributes: names and values.
    pub async fn xattrs(&self, path: Vec<u8>) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        match self.ask(MasterRequest::Xattrs { path }).await? {
            MasterReply::Xattrs(list) => Ok(list),
            _ => Err(Error::unexpected("extended attributes")),
        }
    }

    /// Sets an extended attribute, or takes it away; refused unless it is `there`, or is not.
    pub async fn set_xattr(
        &self,
        path: Vec<u8>,
        name: &[u8],
        value: Option<&[u8]>,
        there: Option<bool>,
    ) -> Result<()> {
        if value.is_some_and(|value| value.len() > XATTR_VALUE_BYTES_MAX) {
            return Err(Refusal::new(Code::AttributesTooBig, String::from_utf8_lossy(name)).into());
        }
        let (name, value) = (name.to_vec(), value.map(<[u8]>::to_vec));
        self.mutate(Mutation::SetXattr { path, name, value, there }).await.map(drop)
    }

    /// Files that are open here are kept for another while, if they have no name any more.
    pub async fn hold(&self, files: &[FileId]) -> Result<()> {
        for files in files.chunks(HOLD_FILES_MAX) {
            match self.ask(MasterRequest::Nameless { files: files.to_vec() }).await? {
                MasterReply::Nameless(files) if files.is_empty() => {}
                MasterReply::Nameless(files) => drop(self.mutate(Mutation::Hold { files }).await?),
                _ => return Err(Error::unexpected("files without a name")),
            }
        }
        Ok(())
    }
}
