//! Claims on ranges of files, for whoever locks them on behalf of programs.

use crate::{Client, Error, Result};
use common::limits::LIST_PAGE_MAX;
use common::wire::client_master::{LockItem, MasterReply, MasterRequest, Mutation};
use common::{ClientId, LockRange, LockRanges, Lockable};
use std::time::Instant;

impl Client {
    /// Begins to hold claims, under a new name. They last as long as `recalls` is asked for.
    pub async fn begin_locks(&self, name: String) -> Result<ClientId> {
        let holder = ClientId(rand::random());
        self.mutate(Mutation::BeginLocks { holder, name }).await.map(|_| holder)
    }

    /// Claims a range: gives all that is claimed now, and whether that is the whole file only because nobody else has
    /// asked. Refused with `Locked` or `Recalled`: then `in_the_way` waits. With `patient`, behind others that wait.
    pub async fn claim(
        &self,
        holder: ClientId,
        of: Lockable,
        range: LockRange,
        patient: bool,
    ) -> Result<(LockRanges, bool)> {
        match self.mutate(Mutation::Claim { holder, of, range, patient }).await? {
            MasterReply::Claimed { ranges, wide } => Ok((ranges, wide)),
            _ => Err(Error::unexpected("claim")),
        }
    }

    /// Gives back what is not kept; `recalled`: since somebody else has asked.
    pub async fn unclaim(
        &self,
        holder: ClientId,
        of: Lockable,
        keep: LockRanges,
        recalled: bool,
    ) -> Result<()> {
        self.mutate(Mutation::Unclaim { holder, of, keep, recalled }).await.map(drop)
    }

    /// Gives everything back for good.
    pub async fn end_locks(&self, holder: ClientId) -> Result<()> {
        self.mutate(Mutation::EndLocks { holder }).await.map(drop)
    }

    /// What a holder shall give back; and its claims last on. Refused with `ClientEnded` if they are lost.
    pub async fn recalls(&self, holder: ClientId, deadline: Instant) -> Result<Vec<Lockable>> {
        match self.inner.masters.ask(&MasterRequest::Recalls { holder }, deadline).await? {
            MasterReply::Recalls(of) => Ok(of),
            _ => Err(Error::unexpected("recalls")),
        }
    }

    /// Waits until a range can probably be claimed (nothing), or it is known what is in the way; with `patient`, until
    /// it can. Refused with `Recalled` if neither comes within a moment: then it is to be asked again.
    pub async fn in_the_way(
        &self,
        holder: ClientId,
        of: Lockable,
        range: LockRange,
        patient: bool,
    ) -> Result<Option<LockRange>> {
        match self.ask(MasterRequest::InTheWay { holder, of, range, patient }).await? {
            MasterReply::InTheWay(other) => Ok(other),
            _ => Err(Error::unexpected("locks")),
        }
    }

    /// Who has claims in what.
    pub async fn locks(&self) -> Result<Vec<LockItem>> {
        let mut all: Vec<LockItem> = vec![];
        loop {
            let after = all.last().map(|item| (item.of, item.holder));
            match self.ask(MasterRequest::Locks { after, limit: LIST_PAGE_MAX }).await? {
                MasterReply::Locks { items, more } => {
                    all.extend(items);
                    if !more {
                        return Ok(all);
                    }
                }
                _ => return Err(Error::unexpected("locks")),
            }
        }
    }
}
