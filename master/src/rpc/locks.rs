//! Locks: claims are changes of the state as any other; who waits for one waits here, and holders hear what they shall
//! give back.

use super::Rpc;
use super::client::{not_here, refusal};
use common::limits::LOCK_WAIT_MS;
use common::wire::client_master::{MasterReply, Mutation};
use common::{ClientId, Code, LockRange, Lockable, Refusal};
use master_core::InTheWay;
use std::time::{Duration, Instant};

/// The longest wait for something to tell.
const WAIT: Duration = Duration::from_millis(LOCK_WAIT_MS);

/// What a mutation does to locks.
pub(super) enum LockChange {
    Begins(ClientId),
    Claims(ClientId, Lockable, LockRange),
    GivesBack(Lockable),
    Ends(ClientId, Vec<Lockable>),
}

fn no_holder(holder: ClientId) -> MasterReply {
    refusal(Refusal::new(Code::ClientEnded, format!("holder {holder} of locks")))
}

impl Rpc {
    /// A claim that must be refused takes no place in the log.
    pub(super) async fn before_lock(&self, mutation: &Mutation) -> Option<MasterReply> {
        let Mutation::Claim { holder, of, range, patient } = mutation else { return None };
        let other = match self.look(*of, *holder, range).await {
            Ok(other) => other,
            Err(refused) => return Some(refused),
        };
        let code = match other {
            Some(other) => {
                if other.wide {
                    self.leader.locks.recall(other.holder, *of);
                }
                Code::from(other)
            }
            None if *patient && !self.leader.locks.is_first(*of, *holder, range) => Code::Locked,
            None => return None,
        };
        Some(refusal(code.into()))
    }

    /// What a mutation that is about to be carried out does to locks.
    pub(super) fn lock_in(&self, mutation: &Mutation) -> Option<LockChange> {
        match mutation {
            Mutation::BeginLocks { holder, .. } => Some(LockChange::Begins(*holder)),
            Mutation::Claim { holder, of, range, .. } => Some(LockChange::Claims(*holder, *of, *range)),
            Mutation::Unclaim { of, .. } => Some(LockChange::GivesBack(*of)),
            Mutation::EndLocks { holder } => {
                let state = self.leader.state.read().expect("never poisoned");
                Some(LockChange::Ends(*holder, state.claimed_by(*holder)))
            }
            _ => None,
        }
    }

    /// It was carried out.
    pub(super) fn after_lock(&self, change: Option<LockChange>, reply: &MasterReply) {
        let refused = matches!(reply, MasterReply::Refused { .. });
        let locks = &self.leader.locks;
        match change {
            None => {}
            Some(_) if refused => {}
            Some(LockChange::Begins(holder)) => self.leader.holder_heard(holder, Instant::now()),
            Some(LockChange::Claims(holder, of, range)) => locks.claimed(of, holder, &range),
            Some(LockChange::GivesBack(of)) => locks.changed(of),
            Some(LockChange::Ends(holder, of)) => locks.ended(holder, &of),
        }
    }

    /// What is in the way of a claim now.
    async fn look(
        &self,
        of: Lockable,
        holder: ClientId,
        range: &LockRange,
    ) -> Result<Option<InTheWay>, MasterReply> {
        self.leader.round().await.map_err(not_here)?;
        let state = self.leader.state.read().expect("never poisoned");
        if !state.is_holder(holder) {
            return Err(no_holder(holder));
        }
        Ok(state.in_the_way(of, holder, range))
    }

    /// Waits until a holder can probably claim a range, or it is known that it cannot.
    pub(super) async fn in_the_way(
        &self,
        holder: ClientId,
        of: Lockable,
        range: LockRange,
        patient: bool,
    ) -> MasterReply {
        let end = tokio::time::Instant::now() + WAIT;
        let locks = &self.leader.locks;
        let place = locks.wait(of, holder, range, patient);
        loop {
            let changed = place.changed();
            let change = changed.notified();
            tokio::pin!(change);
            change.as_mut().enable();
            match self.look(of, holder, &range).await {
                Err(refused) => return refused,
                Ok(None) if !patient || place.is_first() => return MasterReply::InTheWay(None),
                Ok(Some(other)) if other.wide => locks.recall(other.holder, of),
                Ok(Some(other)) if !patient => return MasterReply::InTheWay(Some(other.range)),
                Ok(_) => {}
            }
            if tokio::time::timeout_at(end, change).await.is_err() {
                return refusal(Code::Recalled.into());
            }
        }
    }

    /// What a holder shall give back; it has been heard of.
    pub(super) async fn recalls(&self, holder: ClientId) -> MasterReply {
        let heard = Instant::now();
        if let Err(e) = self.leader.round().await {
            return not_here(e);
        }
        if !self.leader.state.read().expect("never poisoned").is_holder(holder) {
            return no_holder(holder);
        }
        self.leader.holder_heard(holder, heard);
        MasterReply::Recalls(self.leader.locks.recalls(holder, WAIT).await)
    }
}
