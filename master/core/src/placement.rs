//! Where a new chunk goes: a pure function of the stores, the policy, the client and a salt.

use crate::{Metadata, Store};
use common::{ServerId, StoreId};
use std::collections::BTreeSet;

/// A store shares chunks with at most about so many others, so that the loss of any three at
/// once rarely hits all replicas of a chunk (copysets; Cidon et al., USENIX ATC 2013).
pub const SCATTER_WIDTH: usize = 16;
/// A store fuller than this takes no new chunks, in thousandths.
pub const FULL_PERMILLE: u64 = 950;
/// Utilisation up to so much above the average counts as average, in thousandths.
const AVERAGE_SLACK_PERMILLE: u64 = 5;

/// What a new chunk asks for.
#[derive(Clone, Debug)]
pub struct Wish<'a> {
    /// Replicas.
    pub replicas: usize,
    /// Bytes it may grow to.
    pub chunk_bytes: u64,
    /// Only racks whose name begins so.
    pub label: &'a str,
    /// Rack of the client, for the choice of the primary.
    pub near: &'a str,
    /// Breaks ties.
    pub salt: u64,
}

/// The order of candidates: the fields, as declared, are the policy. The least is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    /// It seems to be sick.
    doubted: bool,
    /// The scatter of those already chosen would grow beyond its width.
    widens_scatter: bool,
    /// Fuller than the average.
    above_average: bool,
    /// Chunks placed there lately.
    recent: u32,
    /// Thousandths of its disk in use.
    permille: u64,
    /// Chance.
    tie: u64,
}

/// The stores of a new chunk: primary first, then the others in chain order. Fewer than asked
/// only if there are not enough servers; empty if there is none.
pub fn place(state: &Metadata, wish: &Wish) -> Vec<StoreId> {
    let candidates: Vec<(StoreId, &Store)> =
        state.all_stores().filter(|(id, s)| usable(state, *id, s, wish)).collect();
    let total: u64 = candidates.iter().map(|(_, s)| s.permille()).sum();
    let average = total / candidates.len().max(1) as u64;
    let mut chosen: Vec<(StoreId, &Store)> = vec![];
    while chosen.len() < wish.replicas {
        let servers: BTreeSet<ServerId> = chosen.iter().map(|(_, s)| s.server).collect();
        let racks: BTreeSet<&str> = chosen.iter().map(|(_, s)| s.register.rack.as_str()).collect();
        let left = || candidates.iter().filter(|(_, s)| !servers.contains(&s.server));
        let other_rack = left().any(|(_, s)| !racks.contains(s.register.rack.as_str()));
        let allowed = left().filter(|(_, s)| !other_rack || !racks.contains(s.register.rack.as_str()));
        let score = |id: StoreId, store: &Store| Score {
            doubted: store.doubted,
            widens_scatter: chosen.iter().any(|(c, _)| state.widens_scatter(*c, id)),
            above_average: store.permille() > average + AVERAGE_SLACK_PERMILLE,
            recent: store.recent(state.clock_ns),
            permille: store.permille(),
            tie: mix(wish.salt, id),
        };
        match allowed.min_by_key(|(id, s)| score(*id, s)) {
            Some((id, store)) => chosen.push((*id, store)),
            None => break,
        }
    }
    // The primary is the member that is closest to the client; the sort is stable.
    chosen.sort_by_key(|(_, s)| (s.doubted, wish.near.is_empty() || s.register.rack != wish.near));
    chosen.into_iter().map(|(id, _)| id).collect()
}

/// A store for one more replica beside these members: one that holds an old copy if it can be, even
/// if it is busy; else one that is not. On no server of a member; away from the racks of those that
/// stay.
pub fn place_one(
    state: &Metadata,
    wish: &Wish,
    members: &[StoreId],
    staying: &[StoreId],
    stale: &[StoreId],
    busy: &BTreeSet<StoreId>,
) -> Option<StoreId> {
    let of = |id: &StoreId| state.store(*id);
    let servers: BTreeSet<ServerId> = members.iter().filter_map(of).map(|s| s.server).collect();
    let racks: BTreeSet<&str> = staying.iter().filter_map(of).map(|s| s.register.rack.as_str()).collect();
    let taken = |s: &Store| racks.contains(s.register.rack.as_str());
    let free = |id: StoreId, s: &Store| usable(state, id, s, wish) && !servers.contains(&s.server);
    let left = || state.all_stores().filter(|(id, s)| free(*id, s));
    let other_rack = left().any(|(_, s)| !taken(s));
    let allowed = left().filter(|(_, s)| !other_rack || !taken(s));
    let allowed = allowed.filter(|(id, _)| stale.contains(id) || !busy.contains(id));
    let (count, sum) = left().fold((0, 0), |(n, sum), (_, s)| (n + 1, sum + s.permille()));
    let average = sum / u64::max(count, 1);
    let score = |id: StoreId, store: &Store| {
        let widens = staying.iter().any(|m| state.widens_scatter(*m, id));
        let above = store.permille() > average + AVERAGE_SLACK_PERMILLE;
        (
            store.doubted,
            !stale.contains(&id),
            widens,
            above,
            store.recent(state.clock_ns),
            store.permille(),
            mix(wish.salt, id),
        )
    };
    allowed.min_by_key(|(id, s)| score(*id, s)).map(|(id, _)| id)
}

fn usable(state: &Metadata, id: StoreId, store: &Store, wish: &Wish) -> bool {
    let free = store.register.capacity.saturating_sub(store.register.used);
    store.session().is_some()
        && store.permille() < FULL_PERMILLE
        && free / 2 >= wish.chunk_bytes
        && store.register.rack.starts_with(wish.label)
        && !state.is_drained(id)
}

fn mix(salt: u64, id: StoreId) -> u64 {
    let x = (salt ^ (id.0 as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 29)
}

impl Metadata {
    fn widens_scatter(&self, a: StoreId, b: StoreId) -> bool {
        !self.partners.contains_key(&(a, b))
            && (self.scatter(a) >= SCATTER_WIDTH || self.scatter(b) >= SCATTER_WIDTH)
    }

    /// How many other stores this one shares chunks with.
    pub fn scatter(&self, store: StoreId) -> usize {
        self.partners.range((store, StoreId(0))..=(store, StoreId(u32::MAX))).count()
    }
}
