//! Clients: the name space, layouts, configurations.

use super::Rpc;
use crate::leader::NotHere;
use common::limits::{CLAIM_RANGES_MAX, LIST_PAGE_MAX, NAME_BYTES_MAX, SESSION_MS, XATTR_VALUE_BYTES_MAX};
use common::wire::ChunkConfig;
use common::wire::chunk_master::StoreReply;
use common::wire::client_master::{
    HOLD_FILES_MAX, MasterReply, MasterRequest, Mutation, NameChange, REPORT_FILES_MAX, SnapshotInfo,
};
use common::{ChunkHandle, Code, Epoch, Refusal, RequestId};
use master_core::{Command, Metadata, Reply};
use std::time::{Duration, Instant};

/// Whether all stores know of a snapshot is looked at this often.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// A primary that was heard of within this is not taken for dead on a client's word.
pub(super) const ALIVE: Duration = Duration::from_millis(600);
/// After a change of leader (or a start of everything), members that have not registered yet are
/// not removed for so long: they are probably on their way.
pub(super) const GRACE: Duration = Duration::from_secs(3);

pub(super) fn not_here(not_here: NotHere) -> MasterReply {
    MasterReply::Refused { code: not_here.code, about: String::new(), leader: not_here.leader }
}

/// Bytes of a full log that are not for clients.
const LOG_KEPT_BYTES: u64 = 2 * 1024 * 1024;
/// Whatever was proposed is carried out by then, or never.
const SETTLED: Duration = Duration::from_secs(4);

/// What a change of a chunk's members came to, for a client.
fn for_client(reply: StoreReply) -> MasterReply {
    match reply {
        StoreReply::Config(config) => MasterReply::Config(config),
        StoreReply::Refused { refusal, leader } => {
            MasterReply::Refused { code: refusal.code, about: refusal.about, leader }
        }
        other => unreachable!("it is answered with a configuration, not {other:?}"),
    }
}

pub(super) fn refusal(refusal: Refusal) -> MasterReply {
    MasterReply::Refused { code: refusal.code, about: refusal.about, leader: None }
}

/// Whether a change makes more of the state; else it is a way to have less, to let go, or to go on with files that are there.
fn grows(mutation: &Mutation) -> bool {
    !matches!(
        mutation,
        Mutation::Unlink { .. }
            | Mutation::ByUser { change: NameChange::Unlink { .. }, .. }
            | Mutation::Truncate { .. }
            | Mutation::Empty { .. }
            | Mutation::ReportLength { .. }
            | Mutation::Written { .. }
            | Mutation::EmptyTrash { .. }
            | Mutation::DeleteSnapshot { .. }
            | Mutation::EndClient
            | Mutation::Unclaim { .. }
            | Mutation::EndLocks { .. }
            | Mutation::GiveUp { .. }
    )
}

impl Rpc {
    /// With a full disk only what makes the state smaller is done, as long as the log can take that; the rest is refused,
    /// unless it was done before. What else is in the log is for the cluster itself: sessions, chunks' members.
    async fn without_room(&self, request: RequestId, mutation: &Mutation) -> Option<MasterReply> {
        // Who does not lead says who does.
        self.leader.term()?;
        let short_for = self.room.short_for()?;
        if !grows(mutation) && self.room.log_left() >= LOG_KEPT_BYTES {
            return None;
        }
        // What was proposed before, by this client too, may still be carried out; then it must not hear that it was not.
        if short_for.min(self.leader.led_for()) < SETTLED {
            return Some(MasterReply::refused(
                Code::Unavailable,
                "the disk is full; another master may lead",
            ));
        }
        if let Err(elsewhere) = self.leader.round().await {
            return Some(not_here(elsewhere));
        }
        let is_answered = self.leader.state.read().expect("never poisoned").is_answered(request);
        (!is_answered).then(|| MasterReply::refused(Code::MasterFull, format!("master {}", self.id)))
    }

    /// Answers a client.
    pub(super) async fn client(&self, request: MasterRequest) -> MasterReply {
        match request {
            MasterRequest::Mutate { request, lowest, mutation } => {
                if let Some(about) = invalid(&mutation) {
                    return MasterReply::refused(Code::BadArgument, about);
                }
                if let Some(refused) = self.before_lock(&mutation).await {
                    return refused;
                }
                if let Some(refused) = self.without_room(request, &mutation).await {
                    return refused;
                }
                let lock = self.lock_in(&mutation);
                match self.leader.propose(Command::Mutate { request, lowest, mutation }, None).await {
                    Ok(Reply::Master(MasterReply::Snapshots(taken))) => self.taken(taken).await,
                    Ok(Reply::Master(reply)) => {
                        self.after_lock(lock, &reply);
                        reply
                    }
                    Ok(Reply::Store(_)) => unreachable!("a mutation has a client's answer"),
                    Err(e) => not_here(e),
                }
            }
            MasterRequest::Stat { path } => self.query(|s| s.stat(&path).map(MasterReply::Attr)).await,
            MasterRequest::Look { path } => self.query(|s| s.look(&path)).await,
            MasterRequest::Xattrs { path } => self.query(|s| s.xattrs(&path).map(MasterReply::Xattrs)).await,
            MasterRequest::Nameless { files } if files.len() > HOLD_FILES_MAX => {
                MasterReply::refused(Code::BadArgument, "at most 1000 files")
            }
            MasterRequest::Nameless { files } => {
                self.query(|s| Ok(MasterReply::Nameless(s.nameless(&files)))).await
            }
            MasterRequest::List { path, after, limit } => self.query(|s| s.list(&path, &after, limit)).await,
            MasterRequest::LookIn { path, after, limit } => {
                self.query(|s| s.look_in(&path, &after, limit)).await
            }
            MasterRequest::Layout { file, from, limit } => self.query(|s| s.layout(file, from, limit)).await,
            MasterRequest::Config { handle, snapshot } => {
                let seen = |s: &Metadata| if snapshot > 0 { s.as_of(snapshot, handle) } else { handle };
                self.query(|s| not_lost(s, seen(s)).map(MasterReply::Config)).await
            }
            MasterRequest::Policy { path } => {
                self.query(|s| s.policy_at(&path).map(MasterReply::Policy)).await
            }
            MasterRequest::Stores => {
                self.query(|s| {
                    Ok(MasterReply::Stores { version: s.table_version(), stores: s.store_table() })
                })
                .await
            }
            MasterRequest::Trash { after, limit } => {
                let limit = limit.clamp(1, LIST_PAGE_MAX) as usize;
                self.query(|s| Ok(MasterReply::Trash(s.list_trash(after, limit)))).await
            }
            MasterRequest::PrimarySilent { handle, epoch } => self.primary_silent(handle, epoch).await,
            MasterRequest::Repairs => {
                let (items, count) = self.leader.repairs.lock().expect("never poisoned").clone();
                self.query(|_| Ok(MasterReply::Repairs { items, count })).await
            }
            MasterRequest::Drains => self.drains().await,
            MasterRequest::Maintenance => self.maintenance().await,
            MasterRequest::Explain { handle } => self.explain(handle).await,
            MasterRequest::Usage { path } => self.query(|s| s.usage_of(&path).map(MasterReply::Usage)).await,
            MasterRequest::Condemn { handle, epoch, store } => {
                for_client(self.condemn((store, handle), epoch, false).await)
            }
            MasterRequest::Loss { store } => self.loss(store).await,
            MasterRequest::Snapshots { after, limit } => {
                let limit = limit.clamp(1, LIST_PAGE_MAX) as usize;
                self.query(|s| Ok(MasterReply::Snapshots(s.list_snapshots(after, limit)))).await
            }
            MasterRequest::Recalls { holder } => self.recalls(holder).await,
            MasterRequest::InTheWay { range, .. } if range.first > range.last => {
                MasterReply::refused(Code::BadArgument, "a range ends before it begins")
            }
            MasterRequest::InTheWay { holder, of, range, patient } => {
                self.in_the_way(holder, of, range, patient).await
            }
            MasterRequest::Locks { after, limit } => self.query(|s| Ok(s.list_locks(after, limit))).await,
            MasterRequest::Status => MasterReply::Status(self.status().await),
            MasterRequest::AddMaster { id, addr } => self.add_master(id, addr).await,
            MasterRequest::RemoveMaster { id } => self.remove_master(id).await,
            MasterRequest::TransferLeader { id } => self.transfer_leader(id).await,
        }
    }

    /// Reads the state, linearizably.
    pub(super) async fn query(
        &self,
        read: impl FnOnce(&Metadata) -> Result<MasterReply, Refusal>,
    ) -> MasterReply {
        match self.leader.round().await {
            Ok(()) => read(&self.leader.state.read().expect("never poisoned")).unwrap_or_else(refusal),
            Err(e) => not_here(e),
        }
    }

    /// A snapshot is taken when every store knows of it: what a primary admits from then on comes
    /// after it. Who does not answer loses its session, and learns of it with the next.
    async fn taken(&self, taken: Vec<SnapshotInfo>) -> MasterReply {
        let number = taken.iter().map(|s| s.number).max().unwrap_or(0);
        let began = Instant::now();
        loop {
            if let Err(e) = self.leader.round().await {
                return not_here(e);
            }
            if self.leader.all_know(number) {
                return MasterReply::Snapshots(taken);
            }
            if began.elapsed() > Duration::from_millis(2 * SESSION_MS) {
                // The client asks again, and waits on.
                return MasterReply::refused(Code::Unavailable, "not all stores know of the snapshot yet");
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// A client cannot reach a primary. If it is dead, or has been silent, another one leads.
    async fn primary_silent(&self, handle: ChunkHandle, epoch: Epoch) -> MasterReply {
        let term = self.leader.begin_if_new();
        if let Err(e) = self.leader.round().await {
            return not_here(e);
        }
        let (config, session) = {
            let state = self.leader.state.read().expect("never poisoned");
            let config = match not_lost(&state, handle) {
                Ok(config) => config,
                Err(r) => return refusal(r),
            };
            let session = state.store(config.primary).and_then(|s| s.session());
            (config, session)
        };
        let gone = match session {
            Some(session) => self.leader.silent_for(config.primary, session) > ALIVE,
            None => self.leader.led_for() > GRACE,
        };
        if config.epoch != epoch || !gone {
            return MasterReply::Config(config);
        }
        let command = Command::Reconfigure { handle, epoch, remove: vec![config.primary], primary: None };
        match self.leader.propose(command, term).await {
            Ok(Reply::Store(reply)) => for_client(reply),
            Ok(other) => unreachable!("a reconfiguration answers as to a store, not with {other:?}"),
            Err(e) => not_here(e),
        }
    }
}

/// The configuration of a chunk, for somebody who wants to use it.
fn not_lost(state: &Metadata, handle: ChunkHandle) -> Result<ChunkConfig, Refusal> {
    match state.is_lost(handle) {
        true => Err(Refusal::new(Code::Lost, handle)),
        false => state.config(handle),
    }
}

/// Why a mutation cannot be put into the log, if so: its paths are checked where they are used.
fn invalid(mutation: &Mutation) -> Option<&'static str> {
    let long = |near: &str| near.len() > NAME_BYTES_MAX;
    match mutation {
        Mutation::Create { near, .. }
        | Mutation::CreateUnnamed { near, .. }
        | Mutation::AddChunk { near, .. }
        | Mutation::FillHole { near, .. }
        | Mutation::Empty { near, .. }
            if long(near) =>
        {
            Some("near: at most 255 bytes")
        }
        Mutation::Hold { files } if files.len() > HOLD_FILES_MAX => Some("at most 1000 files"),
        Mutation::Written { files } if files.len() > REPORT_FILES_MAX => Some("at most 1000 files"),
        Mutation::BeginLocks { name, .. } if long(name) => Some("name: at most 255 bytes"),
        Mutation::Claim { range, .. } if range.first > range.last => Some("a range ends before it begins"),
        Mutation::Unclaim { keep, .. } if keep.len() > CLAIM_RANGES_MAX || !keep.is_sound() => {
            Some("keep: at most 1024 ranges, in order, none touching another")
        }
        Mutation::SetXattr { value: Some(value), .. } if value.len() > XATTR_VALUE_BYTES_MAX => {
            Some("value: at most 32 KiB")
        }
        _ => None,
    }
}
