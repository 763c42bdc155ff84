//! What directories have. The kernel looks for each name that it makes, opens, renames or removes, once what it believes of that
//! name is over: where many are looked for, the directory is listed once a second instead, and what was listed answers. It is
//! believed to the end of that second, so nothing is believed longer than if each had been asked for.

use crate::TTL;
use client::{Attr, Client, FileKind, Result};
use common::FileId;
use common::limits::NAME_BYTES_MAX;
use common::wire::client_master::SNAPSHOT_DIR;
use common::wire::path::at;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// For so long a listing answers: as long as the kernel may believe a name.
const VALID: Duration = TTL;
/// So many names of a directory that are looked for within `VALID` are worth a first listing.
const LOOKS: usize = 8;
/// So many that are not found mean that names are being made: then a listing answers for names, too, that it does not have. Else
/// those are asked for, since who has just been told by another machine of a new file looks for it.
const MISSES: usize = 32;
/// So many in one second keep it so for the next.
const MISSES_MORE: usize = 8;
/// A directory is listed anew when one of so many of its names was looked for within `VALID`, and a listing that gets longer than twice
/// so many for each look is given up, and tried again with twice as many looks: 500 names cost about as much as ten questions.
const NAMES_A_LOOK: usize = 32;
/// Directories with more names are not listed.
const NAMES_MAX: usize = 10_000;
/// Names of a page.
const PAGE: u32 = 1024;
/// Directories of which something is known at a time; with more, all is forgotten.
const DIRECTORIES_MAX: usize = 1024;
/// Names that are known at a time, of all directories; with more, all is forgotten.
const ALL_NAMES_MAX: usize = 32 * 1024;

/// Where each leads, if a listing can say that (`is_plain`).
type Names = HashMap<Vec<u8>, Option<Box<Attr>>>;

#[derive(Default)]
pub struct Contents(Mutex<HashMap<FileId, Directory>>);

struct Directory {
    /// Names that the masters were asked for, and names that were not found, since then.
    looks: usize,
    misses: usize,
    since: Instant,
    /// Names are being made in it.
    grows: bool,
    /// With so many within `VALID` it is listed.
    enough: usize,
    /// All names that it had at a moment after this, and those that were made here later.
    names: Option<(Instant, Names)>,
    /// While it is listed: when that began, and the names that were changed here since.
    listing: Option<(Instant, Vec<Vec<u8>>)>,
}

impl Directory {
    fn new(now: Instant) -> Directory {
        Directory { looks: 0, misses: 0, since: now, grows: false, enough: LOOKS, names: None, listing: None }
    }

    fn turn(&mut self, now: Instant) {
        let passed = now.duration_since(self.since);
        if passed >= VALID {
            self.grows = self.misses >= MISSES_MORE && passed < 2 * VALID;
            (self.looks, self.misses, self.since) = (0, 0, now);
        }
    }

    fn missed(&mut self) {
        self.misses += 1;
        self.grows |= self.misses >= MISSES;
    }

    fn has(&mut self, began: Instant, names: Names) {
        self.enough = (names.len() / NAMES_A_LOOK).max(1);
        self.names = Some((began, names));
    }
}

/// What a listing says of a name.
pub enum Listed {
    /// There was none at a moment after this.
    Absent,
    /// It led to this, at a moment after this.
    Leads(Box<Attr>, Instant),
    /// The masters are to be asked.
    Unknown,
}

/// A directory that is to be listed.
#[derive(Debug, PartialEq, Eq)]
pub struct Wish {
    directory: FileId,
    began: Instant,
    /// Names at most.
    limit: usize,
}

/// Whether a listing can say what a name leads to. Of others it is not the masters alone who know, or not this name alone by
/// which they are changed.
pub fn is_plain(attr: &Attr) -> bool {
    attr.kind == FileKind::File && attr.links == 1 && attr.open.is_none()
}

impl Contents {
    fn with<T>(&self, f: impl FnOnce(&mut HashMap<FileId, Directory>) -> T) -> T {
        f(&mut self.0.lock().expect("never poisoned"))
    }

    /// What is known of a name.
    pub fn at(&self, directory: FileId, name: &[u8], now: Instant) -> Listed {
        self.with(|all| {
            let Some(known) = all.get_mut(&directory) else { return Listed::Unknown };
            known.turn(now);
            let names = known.names.as_ref().filter(|(began, _)| now.duration_since(*began) < VALID);
            match names.map(|(began, names)| (began, names.get(name))) {
                Some((began, Some(Some(attr)))) => Listed::Leads(attr.clone(), *began),
                Some((_, None)) if known.grows && name != SNAPSHOT_DIR && name.len() <= NAME_BYTES_MAX => {
                    known.missed();
                    Listed::Absent
                }
                _ => Listed::Unknown,
            }
        })
    }

    /// The masters were asked for a name that a listing could have told, and it was found or not: whether one is to be made now.
    pub fn looked(&self, directory: FileId, is_found: bool, now: Instant) -> Option<Wish> {
        self.with(|all| {
            if all.len() >= DIRECTORIES_MAX && !all.contains_key(&directory) {
                all.clear();
            }
            let known = all.entry(directory).or_insert_with(|| Directory::new(now));
            known.turn(now);
            known.looks += 1;
            if !is_found {
                known.missed();
            }
            if known.looks < known.enough || known.listing.is_some() {
                return None;
            }
            known.listing = Some((now, vec![]));
            let limit = (2 * NAMES_A_LOOK * known.looks.max(LOOKS)).min(NAMES_MAX);
            Some(Wish { directory, began: now, limit })
        })
    }

    /// All is to be asked for: it may have been changed elsewhere.
    pub fn forget(&self) {
        self.with(HashMap::clear);
    }

    /// What a name leads to was changed here, or may have been. Must be said before whoever did that is answered.
    pub fn changed(&self, directory: FileId, name: &[u8], now: Instant) {
        self.with(|all| {
            let Some(known) = all.get_mut(&directory) else { return };
            if let Some((_, changed)) = &mut known.listing {
                changed.push(name.to_vec());
            }
            let Some((began, names)) = &mut known.names else { return };
            names.insert(name.to_vec(), None);
            known.enough = (names.len() / NAMES_A_LOOK).max(1);
            if names.len() > NAMES_MAX || now.duration_since(*began) >= VALID {
                known.names = None;
            }
        });
    }

    /// A directory was made here, after this moment: it is empty.
    pub fn made_directory(&self, directory: FileId, began: Instant) {
        self.with(|all| {
            if all.len() >= DIRECTORIES_MAX {
                all.clear();
            }
            let known = all.entry(directory).or_insert_with(|| Directory::new(began));
            known.grows = true;
            known.has(began, Names::new());
        });
    }

    /// Lists a directory.
    pub async fn list(&self, client: &Client, wish: Wish) {
        let names = names_of(client, &wish).await;
        self.listed(wish, names.ok().flatten());
    }

    /// These are the names of a directory at a moment after a listing was wished for; nothing if that is not known.
    fn listed(&self, wish: Wish, names: Option<Names>) {
        self.with(|all| {
            let sum: usize = all.values().filter_map(|known| Some(known.names.as_ref()?.1.len())).sum();
            if sum + names.as_ref().map_or(0, HashMap::len) > ALL_NAMES_MAX {
                return all.clear();
            }
            let Some(known) = all.get_mut(&wish.directory) else { return };
            // Everything was forgotten meanwhile, perhaps, and another listing has begun.
            let Some((_, changed)) = known.listing.take_if(|(since, _)| *since == wish.began) else { return };
            known.looks = 0;
            match names {
                Some(mut names) => {
                    names.extend(changed.into_iter().map(|name| (name, None)));
                    known.has(wish.began, names);
                }
                None => {
                    known.names = None;
                    known.enough = if wish.limit < NAMES_MAX { wish.limit / NAMES_A_LOOK } else { NAMES_MAX };
                }
            }
        });
    }
}

/// All names of a directory, unless there are too many.
async fn names_of(client: &Client, wish: &Wish) -> Result<Option<Names>> {
    let (mut names, mut after) = (Names::new(), vec![]);
    loop {
        let left = wish.limit - names.len();
        let limit = PAGE.min(left as u32 + 1);
        let (found, more) = client.look_in(&at(wish.directory), &after, limit).await?;
        if found.len() > left {
            return Ok(None);
        }
        after = found.last().map(|found| found.name.clone()).unwrap_or_default();
        let plain = |attr: Attr| is_plain(&attr).then(|| Box::new(attr));
        names.extend(found.into_iter().map(|found| (found.name, plain(found.known.attr))));
        if !more {
            return Ok(Some(names));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::ATTR;

    const DIR: FileId = FileId(7);

    fn attr(file: u64) -> Attr {
        Attr { file: FileId(file), ..ATTR }
    }

    /// Names that lead to files with these numbers.
    fn names(list: &[(&str, u64)]) -> Option<Names> {
        Some(
            list.iter().map(|(name, file)| (name.as_bytes().to_vec(), Some(Box::new(attr(*file))))).collect(),
        )
    }

    /// What a name leads to: a file, nothing (`Ok`), or what is not known.
    fn at(contents: &Contents, name: &str, now: Instant) -> std::result::Result<Option<u64>, ()> {
        match contents.at(DIR, name.as_bytes(), now) {
            Listed::Absent => Ok(None),
            Listed::Leads(attr, _) => Ok(Some(attr.file.0)),
            Listed::Unknown => Err(()),
        }
    }

    /// Looks until it is to be listed, at most so often.
    fn wish(contents: &Contents, now: Instant, most: usize) -> (usize, Option<Wish>) {
        let mut looks = 1..=most;
        looks.find_map(|n| Some((n, Some(contents.looked(DIR, true, now)?)))).unwrap_or((most, None))
    }

    /// Looks for names that are not there.
    fn miss(contents: &Contents, now: Instant, listed: &[(&str, u64)]) {
        for _ in 0..MISSES {
            if let Some(wished) = contents.looked(DIR, false, now) {
                contents.listed(wished, names(listed));
            }
        }
    }

    #[test]
    fn a_directory_is_listed_when_many_names_are_looked_for() {
        let (contents, now) = (Contents::default(), Instant::now());
        let (looks, first) = wish(&contents, now, 100);
        assert_eq!(looks, LOOKS);
        assert_eq!(wish(&contents, now, 100).1, None, "it is being listed");
        assert_eq!(at(&contents, "x", now), Err(()), "nothing is known yet");
        contents.listed(first.unwrap(), names(&[("a", 3)]));
        assert_eq!((at(&contents, "x", now), at(&contents, "a", now)), (Err(()), Ok(Some(3))));
        miss(&contents, now, &[("a", 3)]);
        assert_eq!(at(&contents, "x", now), Ok(None), "names are being made");
        assert!(
            matches!(contents.at(DIR, SNAPSHOT_DIR, now), Listed::Unknown),
            "it is never listed, and there"
        );
        let long = [b'x'; NAME_BYTES_MAX + 1];
        assert!(matches!(contents.at(DIR, &long, now), Listed::Unknown), "no name at all");
        let later = now + VALID;
        assert_eq!(at(&contents, "x", later), Err(()), "somebody else may have made it");
        assert_eq!(at(&contents, "a", later), Err(()), "or changed it");
        assert_eq!(wish(&contents, later, 100).0, 1, "it has few names");
    }

    #[test]
    fn names_that_are_not_there_are_asked_for_unless_many_are_made() {
        let (contents, mut now) = (Contents::default(), Instant::now());
        let list = |now: Instant| {
            let wished = wish(&contents, now, LOOKS).1.unwrap();
            contents.listed(wished, names(&[("a", 1)]));
        };
        contents.made_directory(DIR, now);
        (0..MISSES_MORE).for_each(|_| assert_eq!(at(&contents, "x", now), Ok(None), "it was made here"));
        now += VALID;
        list(now);
        (1..MISSES_MORE).for_each(|_| assert_eq!(at(&contents, "x", now), Ok(None), "it grows still"));
        now += VALID;
        list(now);
        assert_eq!((at(&contents, "x", now), at(&contents, "a", now)), (Err(()), Ok(Some(1))));
        miss(&contents, now, &[("a", 1)]);
        assert_eq!(at(&contents, "x", now), Ok(None), "it grows again");
        now += 2 * VALID;
        list(now);
        assert_eq!(at(&contents, "x", now), Err(()), "that was long ago");
    }

    #[test]
    fn few_looks_in_a_second_are_no_reason_to_list() {
        let (contents, mut now) = (Contents::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(wish(&contents, now, LOOKS - 1).1, None);
            now += VALID;
        }
        let wished = wish(&contents, now, LOOKS).1.unwrap();
        let many: Vec<_> = (0..20 * NAMES_A_LOOK as u64).map(|n| (n.to_string(), n)).collect();
        contents.listed(wished, names(&many.iter().map(|(name, n)| (name.as_str(), *n)).collect::<Vec<_>>()));
        assert_eq!(wish(&contents, now + VALID, 100).0, 20, "more names, more looks");
    }

    #[test]
    fn a_listing_that_is_too_long_is_tried_again_with_more_looks() {
        let (contents, now) = (Contents::default(), Instant::now());
        let (mut looks, mut limits) = (vec![], vec![]);
        while let (n, Some(wished)) = wish(&contents, now, 2 * NAMES_MAX) {
            looks.push(n);
            limits.push(wished.limit);
            contents.listed(wished, None);
            if looks.len() == 10 {
                break;
            }
        }
        assert_eq!(looks[..5], [8, 16, 32, 64, 128]);
        assert_eq!(limits[..5], [512, 1024, 2048, 4096, 8192]);
        assert_eq!((looks[5], limits[5]), (256, NAMES_MAX));
        assert_eq!(looks[6], NAMES_MAX, "it is not asked for any more");
    }

    #[test]
    fn what_is_changed_while_a_directory_is_listed_is_not_known() {
        let (contents, now) = (Contents::default(), Instant::now());
        contents.made_directory(DIR, now);
        (0..MISSES_MORE).for_each(|_| assert_eq!(at(&contents, "a", now), Ok(None)));
        contents.changed(DIR, b"a", now);
        assert_eq!(at(&contents, "a", now), Err(()));
        let later = now + VALID;
        let wished = wish(&contents, later, 1).1.unwrap();
        contents.changed(DIR, b"b", later);
        contents.changed(DIR, b"c", later);
        let old = Wish { began: now, ..wish(&Contents::default(), now, LOOKS).1.unwrap() };
        contents.listed(old, names(&[]));
        assert_eq!(at(&contents, "x", later), Err(()), "that was another listing");
        contents.listed(wished, names(&[("a", 1), ("b", 2)]));
        assert_eq!((at(&contents, "a", later), at(&contents, "x", later)), (Ok(Some(1)), Ok(None)));
        assert_eq!((at(&contents, "b", later), at(&contents, "c", later)), (Err(()), Err(())));
        contents.changed(DIR, b"a", later);
        assert_eq!(at(&contents, "a", later), Err(()));
        let wished = wish(&contents, later, 1).1.unwrap();
        contents.forget();
        contents.listed(wished, names(&[]));
        assert_eq!(at(&contents, "x", later), Err(()), "all was forgotten since it began");
    }

    #[test]
    fn only_what_the_masters_know_and_one_name_leads_to_is_plain() {
        assert!(is_plain(&attr(1)));
        assert!(!is_plain(&Attr { links: 2, ..attr(1) }));
        assert!(!is_plain(&Attr { kind: FileKind::Directory, ..attr(1) }));
        assert!(!is_plain(&Attr { kind: FileKind::Symlink, ..attr(1) }));
    }

    #[test]
    fn there_are_bounds() {
        let (contents, now) = (Contents::default(), Instant::now());
        contents.made_directory(DIR, now);
        (0..=NAMES_MAX).for_each(|n| contents.changed(DIR, n.to_string().as_bytes(), now));
        assert_eq!(at(&contents, "x", now), Err(()));
        for n in 0..10 * DIRECTORIES_MAX as u64 {
            contents.made_directory(FileId(n), now);
            contents.looked(FileId(1000 + n), true, now);
        }
        assert!(contents.with(|all| all.len()) <= DIRECTORIES_MAX);
        let all: Vec<String> = (0..NAMES_MAX).map(|n| n.to_string()).collect();
        for n in 0..2 * (ALL_NAMES_MAX / NAMES_MAX) as u64 {
            let wished = (0..LOOKS).find_map(|_| contents.looked(FileId(n), true, now)).unwrap();
            contents.listed(wished, Some(all.iter().map(|name| (name.as_bytes().to_vec(), None)).collect()));
        }
        let sum: usize =
            contents.with(|all| all.values().filter_map(|d| Some(d.names.as_ref()?.1.len())).sum());
        assert!(sum <= ALL_NAMES_MAX, "{sum} names");
    }
}
