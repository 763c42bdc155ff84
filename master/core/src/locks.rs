//! Who may lock which range of a file: claims. A holder - a mount, say - has claims, and says to its own programs which of
//! them locks what, within what it has claimed. Who claims something of a file of which nobody else has claimed anything
//! gets all of it, so that its further locks need no master; when somebody else asks it gives back what it does not need.
//! (docs/decisions/0024)

use crate::{Answer, Metadata};
use bincode::{Decode, Encode};
use common::limits::{CLAIM_RANGES_MAX, HOLDER_CLAIMS_MAX, HOLDERS_MAX};
use common::wire::client_master::{LockItem, MasterReply};
use common::{ClientId, Code, LockRange, LockRanges, Lockable, Refusal};
use std::ops::Bound;

/// After somebody has had to give something of a file back, nobody gets all of it for so long by the log's time: those
/// who take turns would only ask it back from each other.
const CONTENDED_NS: u64 = 10_000_000_000;
/// Of so many files that is remembered.
const CONTENDED_MAX: usize = 4096;
/// Most claims in one page: each one's path is looked for.
const LOCKS_PAGE_MAX: u32 = 256;

/// Somebody who may claim.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Holder {
    /// What it is, for people.
    pub name: String,
    /// Of how many it has claimed something.
    pub(crate) claims: u32,
}

/// What one holder has claimed of a file.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Claim {
    /// What; never nothing.
    pub(crate) ranges: LockRanges,
    /// All of it, since nobody else had claimed anything.
    pub(crate) wide: bool,
}

/// What keeps a holder from claiming a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InTheWay {
    /// Who has claimed it.
    pub holder: ClientId,
    /// What.
    pub range: LockRange,
    /// It may not be needed.
    pub wide: bool,
}

fn no_holder(holder: ClientId) -> Refusal {
    Refusal::new(Code::ClientEnded, format!("holder {holder} of locks"))
}

impl Metadata {
    /// The first claim of another holder that is in the way of one.
    pub fn in_the_way(&self, of: Lockable, holder: ClientId, range: &LockRange) -> Option<InTheWay> {
        let others = self.claims_of(of).filter(|(other, _)| *other != holder);
        let mut conflicts = others.filter_map(|(holder, claim)| {
            let range = claim.ranges.conflict(range)?;
            Some(InTheWay { holder, range, wide: claim.wide })
        });
        conflicts.next()
    }

    /// Whether somebody may claim.
    pub fn is_holder(&self, holder: ClientId) -> bool {
        self.holders.contains_key(&holder)
    }

    /// All who may claim.
    pub fn holders(&self) -> impl Iterator<Item = ClientId> + '_ {
        self.holders.keys().copied()
    }

    /// What a holder has claimed something of.
    pub fn claimed_by(&self, holder: ClientId) -> Vec<Lockable> {
        self.claimed.range(of_holder(holder)).map(|((_, of), ())| *of).collect()
    }

    fn claims_of(&self, of: Lockable) -> impl Iterator<Item = (ClientId, &Claim)> {
        let range = (of, ClientId(0))..=(of, ClientId(u128::MAX));
        self.claims.range(range).map(|((_, holder), claim)| (*holder, claim))
    }

    /// A page of claims.
    pub fn list_locks(&self, after: Option<(Lockable, ClientId)>, limit: u32) -> MasterReply {
        let limit = limit.clamp(1, LOCKS_PAGE_MAX) as usize;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let claims = self.claims.range((from, Bound::Unbounded));
        let item = |((of, holder), claim): (&(Lockable, ClientId), &Claim)| LockItem {
            of: *of,
            path: self.tree.path_of(of.file),
            holder: *holder,
            name: self.holders.get(holder).map_or(String::new(), |h| h.name.clone()),
            ranges: claim.ranges.clone(),
            wide: claim.wide,
        };
        let bytes = |item: &LockItem| {
            let path = item.path.as_ref().map_or(0, Vec::len);
            path + item.name.len() + item.ranges.len() * size_of::<LockRange>()
        };
        let items = crate::page(claims.map(item), limit, bytes);
        let last = items.last().map(|item| (item.of, item.holder));
        let more = last.is_some_and(|last| {
            self.claims.range((Bound::Excluded(last), Bound::Unbounded)).next().is_some()
        });
        MasterReply::Locks { items, more }
    }

    pub(crate) fn begin_locks(&mut self, holder: ClientId, name: &str) -> Answer<MasterReply> {
        if self.holders.contains_key(&holder) {
            return Err(Refusal::new(Code::Exists, format!("holder {holder} of locks")));
        }
        if self.holders.len() >= HOLDERS_MAX {
            return Err(Refusal::new(Code::TooManyLocks, format!("{HOLDERS_MAX} hold some")));
        }
        self.holders.insert(holder, Holder { name: name.to_owned(), claims: 0 });
        Ok(MasterReply::Done)
    }

    pub(crate) fn claim(&mut self, holder: ClientId, of: Lockable, range: LockRange) -> Answer<MasterReply> {
        let Some(Holder { claims, .. }) = self.holders.get(&holder) else { return Err(no_holder(holder)) };
        if let Some(other) = self.in_the_way(of, holder, &range) {
            return Err(Code::from(other).into());
        }
        let alone = self.claims_of(of).all(|(other, _)| other == holder);
        let contended =
            self.contended.get(&of).is_some_and(|since| self.clock_ns < since.saturating_add(CONTENDED_NS));
        let before = self.claims.get(&(of, holder)).cloned();
        if before.is_none() && *claims >= HOLDER_CLAIMS_MAX {
            return Err(Refusal::new(Code::TooManyLocks, format!("in {HOLDER_CLAIMS_MAX} files")));
        }
        let mut claim =
            before.clone().unwrap_or_else(|| Claim { ranges: LockRanges::default(), wide: false });
        if alone && !contended {
            claim = Claim { ranges: [LockRange::ALL].into_iter().collect(), wide: true };
        } else {
            claim.ranges.add(range);
        }
        if claim.ranges.len() > CLAIM_RANGES_MAX {
            return Err(Refusal::new(Code::TooManyLocks, format!("{CLAIM_RANGES_MAX} ranges of a file")));
        }
        let reply = MasterReply::Claimed { ranges: claim.ranges.clone(), wide: claim.wide };
        self.put_claim(of, holder, Some(claim));
        Ok(reply)
    }

    pub(crate) fn unclaim(
        &mut self,
        holder: ClientId,
        of: Lockable,
        keep: &LockRanges,
        recalled: bool,
    ) -> Answer<MasterReply> {
        if !self.holders.contains_key(&holder) {
            return Err(no_holder(holder));
        }
        let none = LockRanges::default();
        let claimed = self.claims.get(&(of, holder)).map_or(&none, |claim| &claim.ranges);
        if !claimed.cover(keep) {
            return Err(Refusal::new(Code::BadArgument, "it keeps what it has not claimed"));
        }
        let kept = (!keep.is_empty()).then(|| Claim { ranges: keep.clone(), wide: false });
        self.put_claim(of, holder, kept);
        if recalled {
            if self.contended.len() >= CONTENDED_MAX {
                // Who takes turns in them will find out again.
                self.contended.clear();
            }
            self.contended.insert(of, self.clock_ns);
        }
        Ok(MasterReply::Done)
    }

    /// A holder is gone, or has been silent for too long.
    pub(crate) fn end_locks(&mut self, holder: ClientId) {
        for of in self.claimed_by(holder) {
            self.put_claim(of, holder, None);
        }
        self.holders.remove(&holder);
    }

    fn put_claim(&mut self, of: Lockable, holder: ClientId, claim: Option<Claim>) {
        let is_there = claim.is_some();
        let before = match claim {
            Some(claim) => self.claims.insert((of, holder), claim),
            None => self.claims.remove(&(of, holder)),
        };
        if before.is_some() == is_there {
            return;
        }
        let of_holder = self.holders.get_mut(&holder).expect("who claims is a holder");
        if is_there {
            of_holder.claims += 1;
            self.claimed.insert((holder, of), ());
        } else {
            of_holder.claims -= 1;
            self.claimed.remove(&(holder, of));
        }
    }

    pub(crate) fn restore_claims(&mut self, list: Vec<((Lockable, ClientId), Claim)>) {
        self.claimed.extend(list.iter().map(|((of, holder), _)| ((*holder, *of), ())));
        self.claims.extend(list);
    }

    pub(crate) fn check_locks(&self) {
        for ((of, holder), claim) in &self.claims {
            assert!(claim.ranges.is_sound() && !claim.ranges.is_empty(), "{of:?}: {:?}", claim.ranges);
            assert!(self.claimed.contains_key(&(*holder, *of)), "{of:?} is claimed by {holder}");
            for (other, claims) in self.claims_of(*of).filter(|(other, _)| other != holder) {
                let conflict = claim.ranges.iter().find_map(|range| claims.ranges.conflict(range));
                assert_eq!(conflict, None, "{of:?} is claimed by {holder} and {other}");
            }
        }
        assert_eq!(self.claims.len(), self.claimed.len(), "claims are found by their holders");
        for (holder, Holder { claims, .. }) in &self.holders {
            assert_eq!(self.claimed_by(*holder).len(), *claims as usize, "{holder} counts its claims");
        }
    }
}

fn of_holder(holder: ClientId) -> std::ops::RangeInclusive<(ClientId, Lockable)> {
    let of = |file, flock| Lockable { file: common::FileId(file), flock };
    (holder, of(0, false))..=(holder, of(u64::MAX, true))
}

impl From<InTheWay> for Code {
    fn from(other: InTheWay) -> Code {
        if other.wide { Code::Recalled } else { Code::Locked }
    }
}
