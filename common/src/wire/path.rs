//! Paths: from the root, or from any inode.

use crate::limits::{NAME_BYTES_MAX, PATH_BYTES_MAX};
use crate::{Code, FileId};

/// A path: bytes, `/` between names. It begins at the root (`/a/b`; `/` alone is the root), or at an inode
/// (`@f7/b`; `@f7` alone is the inode itself), wherever that has been moved to.
pub type PathBytes = Vec<u8>;

/// Where a path begins, and the names from there on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route<'a> {
    /// The inode at which it begins.
    pub from: FileId,
    /// The names, none of them empty, `.` or `..`.
    pub names: Vec<&'a [u8]>,
}

/// The path of a name in a directory.
pub fn name_in(dir: FileId, name: &[u8]) -> PathBytes {
    [at(dir).as_slice(), b"/", name].concat()
}

/// The path of an inode itself.
pub fn at(file: FileId) -> PathBytes {
    format!("@{file}").into_bytes()
}

impl<'a> Route<'a> {
    /// Takes a path apart. Leading, doubled and trailing slashes are skipped.
    ///
    /// # Errors
    /// `BadName` for a path that begins otherwise, is longer than `PATH_BYTES_MAX`, or has a name that is
    /// longer than `NAME_BYTES_MAX`, `.`, `..`, or holds a NUL: a path is resolved by whoever types it.
    pub fn of(path: &'a [u8]) -> Result<Route<'a>, Code> {
        if path.len() > PATH_BYTES_MAX {
            return Err(Code::BadName);
        }
        let (from, rest) = match path {
            [b'/', ..] => (FileId::ROOT, path),
            [b'@', ..] => {
                let end = path.iter().position(|b| *b == b'/').unwrap_or(path.len());
                (file_id(&path[1..end]).ok_or(Code::BadName)?, &path[end..])
            }
            _ => return Err(Code::BadName),
        };
        let names: Vec<&[u8]> = rest.split(|b| *b == b'/').filter(|n| !n.is_empty()).collect();
        let bad = |n: &&[u8]| n.len() > NAME_BYTES_MAX || *n == b"." || *n == b".." || n.contains(&0);
        if names.iter().any(bad) { Err(Code::BadName) } else { Ok(Route { from, names }) }
    }
}

/// An id as it is written: `f` and a number without leading zeros.
fn file_id(text: &[u8]) -> Option<FileId> {
    let digits = std::str::from_utf8(text.strip_prefix(b"f")?).ok()?;
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && (!digits.starts_with('0') || digits == "0");
    digits.parse().ok().filter(|_| plain).map(FileId)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &[u8]) -> (u64, Vec<&[u8]>) {
        let route = Route::of(path).unwrap();
        (route.from.0, route.names)
    }

    #[test]
    fn paths_are_taken_apart_or_refused() {
        assert_eq!(names(b"/"), (1, vec![]));
        assert_eq!(names(b"//a//\xff\n/"), (1, vec![&b"a"[..], &b"\xff\n"[..]]));
        assert_eq!(names(b"@f7"), (7, vec![]));
        assert_eq!(names(b"@f18446744073709551615/@f7/b/"), (u64::MAX, vec![&b"@f7"[..], b"b"]));
        assert_eq!(Route::of(&name_in(FileId(9), b"x")), Route::of(b"@f9/x"));
        assert_eq!(Route::of(&at(FileId(9))), Route::of(b"@f9"));
        let bad = [
            &b""[..],
            b"a",
            b"/.",
            b"/a/..",
            b"/a\0b",
            b"@",
            b"@f",
            b"@7",
            b"@f-1",
            b"@f+1",
            b"@f01",
            b"@f1x",
            b"@f18446744073709551616",
            b"@f1/..",
            b"@/a",
        ];
        for bad in bad {
            assert_eq!(Route::of(bad), Err(Code::BadName), "{}", String::from_utf8_lossy(bad));
        }
        let long = [b"/".to_vec(), vec![b'x'; 255]].concat();
        assert!(Route::of(&long).is_ok());
        assert!(Route::of(&[long, vec![b'x']].concat()).is_err());
        assert!(Route::of(&b"/ab".repeat(1400)).is_err());
    }
}
