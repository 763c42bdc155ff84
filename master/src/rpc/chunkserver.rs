//! Chunkservers: sessions, and what primaries ask.

use super::Rpc;
use super::client::{ALIVE, GRACE};
use crate::leader::NotHere;
use common::limits::{MIN_REPLICAS, ORDERS_MAX, SESSION_MS};
use common::wire::chunk_master::{Beat, Renewal, StoreReply, StoreRequest};
use common::{ChunkHandle, Code, Epoch, Refusal, SessionId, StoreId};
use master_core::{Command, Complaint, Decision, Metadata, Reply, Standing, StoreState};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

/// What stores report of their disks, until the steward puts it into the log: capacity, used.
#[derive(Default)]
pub struct Usage(Mutex<BTreeMap<StoreId, (u64, u64)>>);

impl Usage {
    /// What was reported since the last call.
    pub fn take(&self) -> Vec<(StoreId, u64, u64)> {
        let taken = std::mem::take(&mut *self.0.lock().expect("never poisoned"));
        taken.into_iter().map(|(store, (capacity, used))| (store, capacity, used)).collect()
    }
}

fn not_here(not_here: NotHere) -> StoreReply {
    StoreReply::Refused { refusal: not_here.code.into(), leader: not_here.leader }
}

fn refused(refusal: Refusal) -> StoreReply {
    StoreReply::Refused { refusal, leader: None }
}

impl Rpc {
    /// Answers a chunkserver. The request was received then.
    pub(super) async fn store(&self, request: StoreRequest, received: Instant) -> StoreReply {
        match request {
            StoreRequest::Register(register) => {
                if register.rack.is_empty() || register.rack.len() > 255 {
                    return refused(Refusal::new(Code::BadArgument, "rack: 1-255 bytes"));
                }
                let reply = self.propose(Command::Register(register), None).await;
                if let StoreReply::Registered { store, session, .. } = reply {
                    self.leader.renewed(store, session, received);
                }
                reply
            }
            StoreRequest::Heartbeat(beat) => self.heartbeat(beat, received).await,
            StoreRequest::HeartbeatSince { beat, heard } => {
                let store = beat.store;
                match self.heartbeat(beat, received).await {
                    StoreReply::Renewed(renewal) => {
                        let (heard, cut) = self.leader.cuts_since(store, heard);
                        StoreReply::RenewedSince { renewal, heard, cut }
                    }
                    other => other,
                }
            }
            StoreRequest::Exited { uuid, incarnation } => self.exited(uuid, incarnation).await,
            StoreRequest::OutOfService { store, session } => {
                self.propose(Command::StoreDown { store, session }, None).await
            }
            StoreRequest::Silent { store, handle, epoch, accused } => {
                self.complaint(store, handle, epoch, accused, Complaint::Silent).await
            }
            StoreRequest::Slow { store, handle, epoch, accused } => {
                self.complaint(store, handle, epoch, vec![accused], Complaint::Slow).await
            }
            StoreRequest::Corrupt { store, handle, epoch } => {
                self.condemn((store, handle), epoch, true).await
            }
            StoreRequest::Confirm { .. }
            | StoreRequest::Takeover { .. }
            | StoreRequest::Join { .. }
            | StoreRequest::Fork { .. }
            | StoreRequest::Forked { .. }
            | StoreRequest::Seal { .. } => self.decided(request).await,
        }
    }

    /// A question that the masters' state decides.
    async fn decided(&self, request: StoreRequest) -> StoreReply {
        match self.read(|state| state.decide(&request)).await {
            Ok(Decision::Answer(reply)) => self.with_wait(reply),
            Ok(Decision::Propose(command)) => self.propose(command, None).await,
            Ok(Decision::Count) => unreachable!("{request:?} is answered by what the leader counts"),
            Err(reply) => reply,
        }
    }

    async fn propose(&self, command: Command, term: Option<u64>) -> StoreReply {
        match self.leader.propose(command, term).await {
            Ok(Reply::Store(reply)) => self.with_wait(reply),
            Ok(Reply::Master(_)) => unreachable!("a store's command has a store's answer"),
            Err(e) => not_here(e),
        }
    }

    /// Fills in how long members that were removed may still serve, by this leader's count.
    fn with_wait(&self, reply: StoreReply) -> StoreReply {
        match reply {
            StoreReply::Config(mut config) => {
                config.wait_ms = self.wait_ms(config.handle);
                StoreReply::Config(config)
            }
            other => other,
        }
    }

    pub(super) fn wait_ms(&self, handle: ChunkHandle) -> u64 {
        let removed = self.leader.state.read().expect("never poisoned").removed_from(handle);
        removed.iter().map(|(store, session)| self.leader.remaining_ms(*store, *session)).max().unwrap_or(0)
    }

    async fn read<T>(&self, read: impl FnOnce(&Metadata) -> Result<T, Refusal>) -> Result<T, StoreReply> {
        self.leader.round().await.map_err(not_here)?;
        read(&self.leader.state.read().expect("never poisoned")).map_err(refused)
    }

    /// Renews a session: after a round that began after the heartbeat came, if the state then
    /// says "up, this session", and with every removal that the store has not confirmed.
    async fn heartbeat(&self, beat: Beat, received: Instant) -> StoreReply {
        let Beat { store, session, capacity, used, confirmed, table, snapshot: known } = beat;
        if !confirmed.is_empty() {
            let reply = self.propose(Command::Confirmed { store, session, orders: confirmed }, None).await;
            if let StoreReply::Refused { refusal, leader } = reply {
                return match refusal.code {
                    Code::NotInSession => StoreReply::Lapsed,
                    _ => StoreReply::Refused { refusal, leader },
                };
            }
        }
        // Counted before the state is read: a removal that is committed after that read, and so is
        // not in this answer, must wait for what this answer is about to grant.
        self.leader.renewed(store, session, received);
        let renewed = self.read(|state| {
            let up = state.store(store).is_some_and(|s| s.state == StoreState::Up(session));
            if !up {
                return Ok(None);
            }
            let (orders, all) = state.orders_for(store, ORDERS_MAX);
            let stores = (state.table_version() != table).then(|| state.store_table());
            let last = (state.table_version(), state.last_snapshot(), state.next_chunk());
            Ok(Some((orders, all, state.repairs_for(store), last, stores)))
        });
        match renewed.await {
            Err(reply) => reply,
            Ok(None) => StoreReply::Lapsed,
            Ok(Some((orders, all, repairs, (table, snapshot, next_chunk), stores))) => {
                self.leader.knows_snapshot(store, session, known);
                self.usage.0.lock().expect("never poisoned").insert(store, (capacity, used));
                // With orders still to come the deadline does not move; the next heartbeat does it.
                let session_ms = if all { SESSION_MS } else { 0 };
                StoreReply::Renewed(Renewal {
                    session_ms,
                    orders,
                    repairs,
                    table,
                    stores,
                    snapshot,
                    next_chunk,
                })
            }
        }
    }

    /// A parent saw its chunkserver exit.
    async fn exited(&self, uuid: u128, incarnation: u64) -> StoreReply {
        let found = self.read(|state| {
            let found = state.store_by_uuid(uuid).filter(|(_, s)| s.register.incarnation == incarnation);
            Ok(found.and_then(|(id, s)| s.session().map(|session| (id, session))))
        });
        match found.await {
            Ok(Some((store, session))) => self.propose(Command::StoreDown { store, session }, None).await,
            Ok(None) => StoreReply::Done,
            Err(reply) => reply,
        }
    }

    /// A member's copy is not what it should be: it says so itself, or somebody has compared it with the
    /// others. It goes only when enough of those were heard of just now, and - if it is its own word - that
    /// has been so for longer than a dead one could look alive.
    pub(super) async fn condemn(
        &self,
        (store, handle): (StoreId, ChunkHandle),
        epoch: Epoch,
        own_word: bool,
    ) -> StoreReply {
        let term = self.leader.begin_if_new();
        let read = self.read(|state| {
            let config = state.config(handle)?;
            let session = |id: &StoreId| state.store(*id).and_then(|s| s.session()).map(|s| (*id, s));
            let others: Vec<_> = config.members.iter().filter(|m| **m != store).filter_map(session).collect();
            let want = state.chunk(handle).map_or(0, |c| c.want as usize);
            Ok((config, others, want))
        });
        let (config, others, want) = match read.await {
            Ok(read) => read,
            Err(reply) => return reply,
        };
        if config.epoch != epoch {
            return self.with_wait(StoreReply::Config(config));
        }
        let heard = others.iter().filter(|(id, session)| self.leader.silent_for(*id, *session) < ALIVE);
        if heard.count() < MIN_REPLICAS.min(want) {
            return refused(Refusal::new(Code::Frozen, handle));
        }
        if own_word && !self.leader.rot_is_believed(store) {
            return refused(Refusal::new(Code::Busy, handle));
        }
        tracing::warn!(%store, %handle, own_word, "a copy is not what it should be: it is made anew");
        self.propose(Command::Condemn { handle, epoch, store }, term).await
    }

    /// A primary says that members do not answer, or hold it up. The accuser can be the sick one: who
    /// goes is for `Suspicion` to say.
    async fn complaint(
        &self,
        store: StoreId,
        handle: ChunkHandle,
        epoch: Epoch,
        accused: Vec<StoreId>,
        what: Complaint,
    ) -> StoreReply {
        let term = self.leader.begin_if_new();
        let read = self.read(|state| {
            let sessions: Vec<_> = state.all_stores().map(|(id, s)| (id, s.session())).collect();
            Ok((state.config(handle)?, sessions))
        });
        let (config, sessions) = match read.await {
            Ok(read) => read,
            Err(reply) => return reply,
        };
        if config.epoch != epoch || config.primary != store {
            return self.with_wait(StoreReply::Config(config));
        }
        let standing = |(id, session): (StoreId, Option<SessionId>)| match session {
            Some(session) if self.leader.silent_for(id, session) < ALIVE => (id, Standing::Live),
            None if self.leader.led_for() <= GRACE => (id, Standing::Expected),
            _ => (id, Standing::Gone),
        };
        let standing = sessions.into_iter().map(standing).collect();
        let remove = self.leader.judge(store, &accused, what, &config.members, &standing).await;
        tracing::debug!(%handle, %epoch, accuser = %store, ?accused, ?what, ?remove, "a complaint");
        if remove.is_empty() {
            return refused(Refusal::new(Code::Busy, "the accused is in session; try again"));
        }
        // Not into the log for nothing: it complains as long as the member does not do its part.
        let may = self.leader.state.read().expect("never poisoned").may_remove(handle, &remove);
        if let Err(refusal) = may {
            return refused(refusal);
        }
        self.propose(Command::Reconfigure { handle, epoch, remove, primary: None }, term).await
    }
}
