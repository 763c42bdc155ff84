//! What a program is told when something is refused, or fails.

use client::Error;
use common::Code;
use fuser::Errno;

/// The error number that a program expects.
pub fn errno(error: &Error) -> Errno {
    let Error::Refused(refusal) = error else {
        tracing::warn!(%error, "told a program that its I/O failed");
        return Errno::EIO;
    };
    match refusal.code {
        Code::NotFound | Code::NotInTrash => Errno::ENOENT,
        Code::NoSuchFileId => Errno::ESTALE,
        Code::Exists => Errno::EEXIST,
        Code::NotADirectory => Errno::ENOTDIR,
        Code::IsADirectory => Errno::EISDIR,
        Code::NotEmpty => Errno::ENOTEMPTY,
        Code::BadName | Code::BadArgument => Errno::EINVAL,
        Code::QuotaExceeded => Errno::EDQUOT,
        Code::NotYours => Errno::EPERM,
        Code::ReadOnly => Errno::EROFS,
        Code::HasSnapshots => Errno::EBUSY,
        Code::TooManyLinks => Errno::EMLINK,
        Code::NoSuchAttribute => Errno::ENODATA,
        Code::Locked => Errno::EAGAIN,
        Code::TooManyLocks => Errno::ENOLCK,
        Code::AttributesTooBig | Code::DiskFull | Code::MasterFull => Errno::ENOSPC,
        _ => {
            tracing::warn!(%error, "told a program that its I/O failed");
            Errno::EIO
        }
    }
}
