//! Names that a directory does not have. The kernel looks for each name before it makes it: where many are
//! made, all names of the directory are asked for once a second instead of one by one.

use client::{Client, Result};
use common::FileId;
use common::limits::{LIST_PAGE_MAX, NAME_BYTES_MAX};
use common::wire::client_master::SNAPSHOT_DIR;
use common::wire::path::at;
use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// So many names that are not found within `VALID` are worth a listing.
const MISSES: u32 = 32;
/// A listing says for so long what is not there: as long as the kernel may believe a name.
const VALID: Duration = Duration::from_secs(1);
/// Directories with more names are not listed.
const NAMES_MAX: usize = 10_000;
/// Directories of which something is known at a time; with more, all is forgotten.
const DIRECTORIES_MAX: usize = 64;

#[derive(Default)]
pub struct Absent(Mutex<HashMap<FileId, Directory>>);

struct Directory {
    /// Names that are not found, since then.
    misses: u32,
    since: Instant,
    /// All names that it had at a moment after this, and those that were made here later.
    names: Option<(Instant, HashSet<Vec<u8>>)>,
    /// While it is listed: when that began, and what was made here since.
    listing: Option<(Instant, Vec<Vec<u8>>)>,
}

impl Directory {
    fn new(now: Instant) -> Directory {
        Directory { misses: 0, since: now, names: None, listing: None }
    }
}

/// What is to be done about a name that was not found.
#[derive(Debug, PartialEq, Eq)]
pub enum Missed {
    /// Nothing.
    Nothing,
    /// The directory is to be listed.
    List,
}

impl Absent {
    fn with<T>(&self, f: impl FnOnce(&mut HashMap<FileId, Directory>) -> T) -> T {
        f(&mut self.0.lock().expect("never poisoned"))
    }

    /// Whether a directory is known not to have this name.
    pub fn is_absent(&self, directory: FileId, name: &[u8], now: Instant) -> bool {
        name != SNAPSHOT_DIR
            && name.len() <= NAME_BYTES_MAX
            && self.with(|all| {
                let names = all.get(&directory).and_then(|known| known.names.as_ref());
                names.is_some_and(|(at, names)| now.duration_since(*at) < VALID && !names.contains(name))
            })
    }

    /// A name was asked for and not found.
    pub fn missed(&self, directory: FileId, now: Instant) -> Missed {
        self.with(|all| {
            if all.len() >= DIRECTORIES_MAX && !all.contains_key(&directory) {
                all.clear();
            }
            let known = all.entry(directory).or_insert_with(|| Directory::new(now));
            if now.duration_since(known.since) >= VALID {
                (known.misses, known.since) = (0, now);
            }
            known.misses += 1;
            // One that was listed before, or was made here, is small, and names are still being made in it.
            let enough = if known.names.is_some() { 1 } else { MISSES };
            if known.misses < enough || known.listing.is_some() {
                return Missed::Nothing;
            }
            known.listing = Some((now, vec![]));
            Missed::List
        })
    }

    /// Names may be there that were made elsewhere.
    pub fn forget(&self) {
        self.with(HashMap::clear);
    }

    /// A directory has a name that was made here, or did a moment ago. Must be said before whoever made it is
    /// answered.
    pub fn made(&self, directory: FileId, name: &[u8]) {
        self.with(|all| {
            let Some(known) = all.get_mut(&directory) else { return };
            if let Some((_, made)) = &mut known.listing {
                made.push(name.to_vec());
            }
            if let Some((_, names)) = &mut known.names {
                names.insert(name.to_vec());
                if names.len() > NAMES_MAX {
                    known.names = None;
                }
            }
        });
    }

    /// A directory was made here, after this moment: it is empty.
    pub fn made_directory(&self, directory: FileId, began: Instant) {
        self.with(|all| {
            if all.len() >= DIRECTORIES_MAX {
                all.clear();
            }
            let names = Some((began, HashSet::new()));
            all.insert(directory, Directory { names, ..Directory::new(began) });
        });
    }

    /// Lists a directory, as `missed` wanted it at this moment.
    pub async fn list(&self, client: &Client, directory: FileId, began: Instant) {
        let listed = names_of(client, directory).await;
        self.listed(directory, began, listed.ok().flatten());
    }

    /// These are the names of a directory at a moment after this one; nothing if that is not known.
    fn listed(&self, directory: FileId, began: Instant, names: Option<HashSet<Vec<u8>>>) {
        self.with(|all| {
            let Some(known) = all.get_mut(&directory) else { return };
            // Everything was forgotten meanwhile, perhaps, and another listing has begun.
            let Some((_, made)) = known.listing.take_if(|(since, _)| *since == began) else { return };
            known.misses = 0;
            known.names = names.map(|mut names| {
                names.extend(made);
                (began, names)
            });
        });
    }
}

/// All names of a directory, unless there are too many.
async fn names_of(client: &Client, directory: FileId) -> Result<Option<HashSet<Vec<u8>>>> {
    let (mut names, mut after) = (HashSet::new(), vec![]);
    loop {
        let (entries, more) = client.list_page(&at(directory), &after, LIST_PAGE_MAX).await?;
        after = entries.last().map(|entry| entry.name.clone()).unwrap_or_default();
        names.extend(entries.into_iter().map(|entry| entry.name));
        if !more {
            return Ok(Some(names));
        }
        if names.len() > NAMES_MAX {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: FileId = FileId(7);

    fn names(list: &[&str]) -> Option<HashSet<Vec<u8>>> {
        Some(list.iter().map(|name| name.as_bytes().to_vec()).collect())
    }

    #[test]
    fn a_directory_is_listed_when_many_names_are_missed() {
        let (absent, now) = (Absent::default(), Instant::now());
        for _ in 1..MISSES {
            assert_eq!(absent.missed(DIR, now), Missed::Nothing);
        }
        assert_eq!(absent.missed(DIR, now), Missed::List);
        assert_eq!(absent.missed(DIR, now), Missed::Nothing, "it is being listed");
        assert!(!absent.is_absent(DIR, b"x", now), "nothing is known yet");
        absent.listed(DIR, now, names(&["a"]));
        assert!(absent.is_absent(DIR, b"x", now) && !absent.is_absent(DIR, b"a", now));
        assert!(!absent.is_absent(DIR, SNAPSHOT_DIR, now), "it is never listed, and there");
        assert!(!absent.is_absent(DIR, &[b'x'; NAME_BYTES_MAX + 1], now), "no name at all");
        let later = now + VALID;
        assert!(!absent.is_absent(DIR, b"x", later), "somebody else may have made it");
        assert_eq!(absent.missed(DIR, later), Missed::List);
    }

    #[test]
    fn what_is_made_while_a_directory_is_listed_is_there() {
        let (absent, now) = (Absent::default(), Instant::now());
        absent.made_directory(DIR, now);
        assert!(absent.is_absent(DIR, b"a", now));
        absent.made(DIR, b"a");
        assert!(!absent.is_absent(DIR, b"a", now));
        assert_eq!(absent.missed(DIR, now + VALID), Missed::List);
        absent.made(DIR, b"b");
        absent.listed(DIR, now, names(&[]));
        assert!(!absent.is_absent(DIR, b"a", now + VALID), "that was another listing");
        absent.listed(DIR, now + VALID, names(&["a"]));
        let then = now + VALID;
        assert!(!absent.is_absent(DIR, b"a", then) && !absent.is_absent(DIR, b"b", then));
        assert!(absent.is_absent(DIR, b"c", then));
    }

    #[test]
    fn too_many_names_are_not_known() {
        let (absent, now) = (Absent::default(), Instant::now());
        absent.made_directory(DIR, now);
        (0..=NAMES_MAX).for_each(|n| absent.made(DIR, n.to_string().as_bytes()));
        assert!(!absent.is_absent(DIR, b"x", now));
        for n in 0..10 * DIRECTORIES_MAX as u64 {
            absent.made_directory(FileId(n), now);
            absent.missed(FileId(1000 + n), now);
        }
        assert!(absent.with(|all| all.len()) <= DIRECTORIES_MAX);
    }
}
