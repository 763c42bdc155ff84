//! Directories that are read: from each place on that the kernel was told, it can go on. Names may be as old as the
//! listing, as POSIX allows. Attributes may not: the kernel believes them as those of a lookup, and so they are asked
//! for when it asks.

use client::{Client, Found, Result};
use common::FileId;
use common::limits::LIST_PAGE_MAX;
use common::wire::path::at;
use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// A name before a place is remembered for each so many entries.
const MARK_EVERY: u64 = 1024;
/// So many entries are expected to fit into the first answer with attributes.
const FITS: u32 = 128;

/// A directory that is read.
pub struct Listing {
    pub directory: FileId,
    state: Mutex<State>,
}

struct State {
    /// What was asked for last.
    page: Arc<Page>,
    /// Names before some of the places that were reached: places are numbered through.
    marks: BTreeMap<u64, Vec<u8>>,
    /// So many entries with attributes fitted into the last answer, or might have.
    fits: u32,
}

/// What is asked for of entries.
#[derive(Clone, Copy)]
enum What {
    Names,
    /// Also what a look at each tells.
    All,
}

/// Entries that follow each other.
#[derive(Default)]
struct Page {
    /// The place of the first.
    first: u64,
    entries: Vec<Found>,
    /// Whether there are more after them.
    more: bool,
}

impl Page {
    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }
}

/// Entries from a place on.
pub struct Rest {
    page: Arc<Page>,
    skip: usize,
}

impl Rest {
    /// Each with the place after it.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Found)> {
        let all = self.page.entries.iter().enumerate().skip(self.skip);
        all.map(|(n, found)| (self.page.first + n as u64 + 1, found))
    }
}

impl Listing {
    /// Of a directory, from its beginning.
    pub fn of(directory: FileId) -> Listing {
        let (page, marks) = (Arc::new(Page { more: true, ..Page::default() }), BTreeMap::from([(0, vec![])]));
        Listing { directory, state: Mutex::new(State { page, marks, fits: FITS }) }
    }

    /// Names from a place on: some, or none at the end.
    pub async fn names(&self, client: &Client, place: u64) -> Result<Rest> {
        let mut state = self.state.lock().await;
        let page = &state.page;
        let is_known = place > 0 && (page.first..page.end()).contains(&place);
        if !is_known && !state.ends_at(place) {
            self.ask(client, &mut state, place, LIST_PAGE_MAX, What::Names).await?;
        }
        Ok(state.rest(place))
    }

    /// Entries from a place on, as they are now.
    pub async fn now(&self, client: &Client, place: u64) -> Result<Rest> {
        let mut state = self.state.lock().await;
        if !state.ends_at(place) {
            let limit = state.fits;
            self.ask(client, &mut state, place, limit, What::All).await?;
        }
        Ok(state.rest(place))
    }

    /// So many of the entries that `now` gave fitted into the answer.
    pub async fn fitted(&self, given: usize, all: bool) {
        let more = if all { given * 2 } else { given + 1 };
        self.state.lock().await.fits = (more as u32).clamp(FITS, LIST_PAGE_MAX);
    }

    /// Asks for so many entries from a place on.
    async fn ask(
        &self,
        client: &Client,
        state: &mut State,
        place: u64,
        limit: u32,
        what: What,
    ) -> Result<()> {
        let path = at(self.directory);
        let (mut from, mut after) = state.before(place);
        loop {
            // Whoever goes back to a place passes by what is before it, as it is now.
            let skipped = (place - from).min(LIST_PAGE_MAX.into()) as u32;
            let limit = (limit + skipped).min(LIST_PAGE_MAX);
            let (mut entries, more) = match what {
                What::All => client.look_in(&path, &after, limit).await?,
                What::Names => {
                    let (entries, more) = client.list_page(&path, &after, limit).await?;
                    (entries.into_iter().map(Found::from).collect(), more)
                }
            };
            let got = entries.len() as u64;
            if from + got > place || !more {
                entries.drain(..(place - from).min(got) as usize);
                state.page = Arc::new(Page { first: place, entries, more });
                return Ok(());
            }
            from += got;
            after = entries.pop().expect("there are more").name;
            state.mark(from, &after);
        }
    }
}

impl State {
    /// Whether nothing is at a place, which is where the last entries ended.
    fn ends_at(&self, place: u64) -> bool {
        place > 0 && place == self.page.end() && !self.page.more
    }

    fn rest(&self, place: u64) -> Rest {
        Rest { page: self.page.clone(), skip: (place - self.page.first) as usize }
    }

    /// The name before a place, or one before that which is known, and the place after it.
    fn before(&mut self, place: u64) -> (u64, Vec<u8>) {
        if place == 0 {
            self.marks = BTreeMap::from([(0, vec![])]);
        }
        let page = self.page.clone();
        if place > page.first && place <= page.end() {
            let name = &page.entries[(place - page.first) as usize - 1].name;
            self.mark(place, name);
            return (place, name.clone());
        }
        let (from, name) = self.marks.range(..=place).next_back().expect("there is one before all");
        (*from, name.clone())
    }

    fn mark(&mut self, place: u64, before: &[u8]) {
        let (last, _) = self.marks.last_key_value().expect("there is one before all");
        if place >= last + MARK_EVERY {
            self.marks.insert(place, before.to_vec());
        }
    }
}

/// Whether those who list directories look at what is in them. Then the lengths of files are asked for at once, not for each
/// that is looked at. Later entries are asked for with attributes only by whom the kernel has seen to use them.
#[derive(Default)]
pub struct Habit(std::sync::Mutex<Lately>);

#[derive(Default)]
struct Lately {
    /// So many more directories are listed for whoever looks.
    looks: u32,
    /// The last one that was listed for somebody who does not, and when.
    other: Option<(FileId, Instant)>,
}

/// Directories that are listed with lengths after one at whose files somebody looked.
const LOOKS: u32 = 16;
/// Who looks does so within this time.
const SOON: Duration = Duration::from_secs(1);

impl Habit {
    fn lately(&self) -> MutexGuard<'_, Lately> {
        self.0.lock().expect("never poisoned")
    }

    /// A directory is listed from its beginning: whether somebody will look at its files.
    pub fn looks(&self, directory: FileId, now: Instant) -> bool {
        let mut lately = self.lately();
        if lately.looks == 0 {
            lately.other = Some((directory, now));
            return false;
        }
        lately.looks -= 1;
        true
    }

    /// Somebody looks at a file of a directory.
    pub fn looked(&self, directory: FileId, now: Instant) {
        let mut lately = self.lately();
        if lately.other.is_some_and(|(other, at)| other == directory && now.duration_since(at) < SOON) {
            *lately = Lately { looks: LOOKS, other: None };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_looks_is_told_at_once_for_some_directories() {
        let (habit, now) = (Habit::default(), Instant::now());
        assert!(!habit.looks(FileId(1), now));
        habit.looked(FileId(2), now);
        assert!(!habit.looks(FileId(1), now), "that was another directory");
        habit.looked(FileId(1), now + SOON);
        assert!(!habit.looks(FileId(1), now), "that was long after");
        habit.looked(FileId(1), now);
        assert!((0..LOOKS).all(|n| habit.looks(FileId(n.into()), now)));
        assert!(!habit.looks(FileId(1), now));
    }
}
