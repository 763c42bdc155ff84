//! Reads and writes of one chunk: routes, retries under one request id, verifies.

use crate::conns::Class;
use crate::local::{Here, Uncached, Window};
use crate::requests::Open;
use crate::{Client, Error, Result};
use bytes::Bytes;
use client_core::{Next, Ticket, next_after};
use common::limits::{INLINE_BYTES_MAX, LOCATED_BYTES_MAX, PIECE_BYTES_MAX};
use common::wire::client_chunk::{ClientChunk, ClientChunkReply};
use common::wire::client_master::{MasterReply, MasterRequest};
use common::wire::{ChunkConfig, Piece};
use common::{Code, Epoch, Refusal, RequestId, Serial, StoreId};
use common_net::{Conn, NetError, Patience};
use std::time::{Duration, Instant};

/// One try of a write; the primary may be waiting for a reconfiguration.
pub(crate) const WRITE_LIMIT: Duration = Duration::from_millis(700);
/// A piece is held by the whole chain while others pass down the chain at least so often, or it is hung.
const PUSH: Patience = Patience { quiet: Duration::from_millis(700), most: Duration::from_secs(10) };
/// After two tries without an answer each next one of a write waits twice as long as the one before it, so many
/// times: it may be that the links are too busy for all who use them.
const DOUBLED_MAX: u32 = 3;
/// One try of a read, while its bytes come.
const READ: Patience = Patience { quiet: Duration::from_millis(1000), most: Duration::from_secs(10) };
/// One try of asking a replica how it stands.
const STAT_LIMIT: Duration = Duration::from_millis(1000);
/// A read of more bytes than this can take long on a link that is shared; while bytes come from whom it was asked,
/// no other replica is asked too until `SLOW_READ` has passed: that would only make the links busier.
const LARGE_READ_BYTES: u32 = INLINE_BYTES_MAX as u32;
/// See `LARGE_READ_BYTES`.
const SLOW_READ: Duration = Duration::from_millis(1000);
/// So many more requests under way make one replica busier than another.
const BUSIER: usize = 2;
/// Between two tries, at first and at most.
pub(crate) const RETRY: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

/// Where a write lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub offset: u64,
}

/// The state of one replica of a chunk.
#[derive(Clone, Debug)]
pub struct ReplicaView {
    /// Its store.
    pub store: StoreId,
    /// Committed bytes that it knows of.
    pub length: u64,
    /// The epoch.
    pub epoch: Epoch,
    /// Last serial that it knows committed.
    pub committed: Serial,
    /// Last serial that is durable there.
    pub applied: Serial,
}

/// A failed try: what it met, and what to do.
pub(crate) struct Miss {
    pub last: String,
    /// The server said no, and why.
    pub refusal: Option<Refusal>,
    pub next: Next,
    /// The primary could not be reached at all.
    pub silent: bool,
}

impl Miss {
    pub fn net(error: NetError) -> Miss {
        match error {
            NetError::Refused { refusal, .. } => Miss::refused(refusal),
            other => Miss { last: other.to_string(), refusal: None, next: Next::Refresh, silent: true },
        }
    }

    pub fn refused(refusal: Refusal) -> Miss {
        let next = if refusal.code == Code::NoSuchStore { Next::Refresh } else { next_after(refusal.code) };
        Miss { last: refusal.to_string(), refusal: Some(refusal), next, silent: false }
    }
}

impl Client {
    /// Writes to a chunk, at an offset or at its end. Exactly once: whatever happens on the way,
    /// it is tried under one request id until it is answered.
    pub(crate) async fn write_chunk(
        &self,
        config: &mut ChunkConfig,
        offset: Option<u64>,
        data: Bytes,
    ) -> Result<Written> {
        let open = self.inner.writes.begin().await;
        self.write_until_answered(config, offset, data, &open).await
    }

    async fn write_until_answered(
        &self,
        config: &mut ChunkConfig,
        offset: Option<u64>,
        data: Bytes,
        open: &Open<'_>,
    ) -> Result<Written> {
        let request = open.id();
        let began = Instant::now();
        let deadline = began + self.inner.config.deadline;
        let mut pause = RETRY.0;
        let mut chain = self.chain(config);
        let inline = (data.len() <= INLINE_BYTES_MAX).then(|| Piece::of(&data));
        let mut pushed = inline.is_some();
        let mut committing = false;
        // The bytes were refused for good, after a commit whose answer did not come.
        let mut refused = None;
        let mut silent = 0u32;
        loop {
            let longer = 1 << silent.saturating_sub(1).min(DOUBLED_MAX);
            let tried = async {
                if !pushed {
                    self.push(config, &chain, request, &data, longer).await?;
                    pushed = true;
                }
                committing = true;
                self.commit(config, offset, &data, open, inline.clone(), WRITE_LIMIT * longer).await
            };
            let miss = match tried.await {
                Ok(done) => return done,
                Err(miss) => miss,
            };
            tracing::debug!(
                chunk = %config.handle, epoch = config.epoch.0, primary = %config.primary, %request, pushed,
                ms = began.elapsed().as_millis() as u64, next = ?miss.next, last = miss.last, "a write failed once"
            );
            silent += u32::from(miss.refusal.is_none());
            // A refusal for good before the commit was ever asked: nothing was written.
            if let (Next::GiveUp, false, Some(refusal)) = (miss.next, committing, &miss.refusal) {
                return Err(refusal.clone().into());
            }
            if let (Next::GiveUp, Some(refusal)) = (miss.next, &miss.refusal) {
                // Perhaps it was done: the commit alone, once more, is answered if so.
                pushed = true;
                refused = Some(refusal.clone());
                continue;
            }
            let lost = refused.is_some() && miss.next == Next::PushAgain;
            if lost || Instant::now() + pause >= deadline {
                let last = refused.map_or(miss.last, |r| r.to_string());
                let action = format!("write {} bytes to {}", data.len(), config.handle);
                return Err(Error::Unknown { action, ms: began.elapsed().as_millis() as u64, last });
            }
            match miss.next {
                Next::PushAgain => {
                    // Some server of the chain is away; which one is not known here.
                    chain.iter().filter(|m| **m != config.primary).for_each(|m| self.inner.conns.suspect(*m));
                    // The primary alone: it gives the bytes to the others.
                    pushed = inline.is_some();
                    chain = vec![config.primary];
                }
                Next::Refresh => {
                    let before = (config.epoch, config.primary);
                    self.refresh(config, 0, miss.silent, deadline).await?;
                    if config.primary != before.1 {
                        pushed = inline.is_some() || refused.is_some();
                    }
                    if config.epoch != before.0 {
                        // Who left the epoch is no link of the chain any more.
                        chain = vec![config.primary];
                        continue;
                    }
                }
                Next::Wait | Next::Elsewhere | Next::GiveUp => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// The order in which the bytes travel: the closest replica first, whichever its role. While a
    /// member is suspected, the primary alone gets them, and gives them to the others.
    fn chain(&self, config: &ChunkConfig) -> Vec<StoreId> {
        if config.members.iter().any(|m| self.inner.conns.is_suspect(*m)) {
            return vec![config.primary];
        }
        let mut chain = config.members.clone();
        let rack = &self.inner.config.rack;
        if !rack.is_empty() {
            chain.sort_by_key(|s| self.inner.conns.rack(*s).as_ref() != Some(rack));
        }
        chain
    }

    pub(crate) async fn conn(&self, store: StoreId, class: Class) -> std::result::Result<Conn, NetError> {
        self.inner.conns.get(self.inner.masters.cluster(), store, class).await
    }

    /// Pushes the pieces of a write along the chain; all are under way at once.
    async fn push(
        &self,
        config: &ChunkConfig,
        chain: &[StoreId],
        request: RequestId,
        data: &Bytes,
        longer: u32,
    ) -> std::result::Result<(), Miss> {
        let again = |last: String| Miss { last, refusal: None, next: Next::PushAgain, silent: false };
        let first_is_away = |e: NetError| {
            // The first of the chain is away; the primary may be there. If it is the primary
            // itself, the masters must hear of it.
            if chain[0] == config.primary { Miss::net(e) } else { again(e.to_string()) }
        };
        let conn = self.conn(chain[0], Class::Bulk).await;
        let conn = conn.map_err(first_is_away)?;
        let passed = self.inner.conns.chain(chain);
        let mut answers = vec![];
        for (index, at) in (0..data.len()).step_by(PIECE_BYTES_MAX).enumerate() {
            let part = data.slice(at..(at + PIECE_BYTES_MAX).min(data.len()));
            let msg = ClientChunk::Push {
                request,
                handle: config.handle,
                index: index as u16,
                total: data.len() as u32,
                chain: chain[1..].to_vec(),
                piece: Piece::of(&part),
            };
            let sent = conn.send_noting(&msg, config.epoch.0, vec![part], Some(passed.clone())).await;
            answers.push(sent.map_err(|e| again(e.to_string()))?);
        }
        let patience = Patience { quiet: PUSH.quiet * longer, ..PUSH };
        for answer in answers {
            match conn.answer_patiently(answer, patience, &passed).await {
                Ok((ClientChunkReply::Held, _)) => {}
                Ok((ClientChunkReply::Refused(refusal), _)) => return Err(Miss::refused(refusal)),
                Ok(_) => return Err(again("an answer that does not fit a push".into())),
                // Any server of a longer chain can be the one that holds it up.
                Err(e) if chain.len() > 1 => return Err(again(e.to_string())),
                Err(e) => return Err(first_is_away(e)),
            }
        }
        Ok(())
    }

    async fn commit(
        &self,
        config: &ChunkConfig,
        offset: Option<u64>,
        data: &Bytes,
        open: &Open<'_>,
        inline: Option<Piece>,
        limit: Duration,
    ) -> std::result::Result<Result<Written>, Miss> {
        let Ticket { request, lowest } = open.ticket();
        let payload = if inline.is_some() { vec![data.clone()] } else { vec![] };
        let create = (config.epoch.number() == 1 && config.sealed.is_none()).then(|| config.clone());
        let msg = ClientChunk::Write {
            request,
            lowest,
            handle: config.handle,
            offset,
            len: data.len() as u32,
            inline,
            create,
        };
        let conn = self.conn(config.primary, Class::Control).await.map_err(Miss::net)?;
        match conn.call(&msg, config.epoch.0, payload, limit).await.map_err(Miss::net)?.0 {
            ClientChunkReply::Written { offset, .. } => Ok(Ok(Written { offset })),
            ClientChunkReply::Refused(refusal) => {
                let miss = Miss::refused(refusal.clone());
                if miss.next == Next::GiveUp { Ok(Err(refusal.into())) } else { Err(miss) }
            }
            _ => Ok(Err(Error::unexpected("write"))),
        }
    }

    /// Asks the masters how a chunk stands now, or what has its bytes as of a snapshot, if that is not
    /// 0; with `silent`, its primary could not be reached.
    pub(crate) async fn refresh(
        &self,
        config: &mut ChunkConfig,
        snapshot: u64,
        silent: bool,
        deadline: Instant,
    ) -> Result<()> {
        let handle = config.handle;
        let request = match silent {
            true => MasterRequest::PrimarySilent { handle, epoch: config.epoch },
            false => MasterRequest::Config { handle, snapshot },
        };
        let mut answer = self.inner.masters.ask(&request, deadline).await;
        if silent && snapshot > 0 && answer.is_ok() {
            answer = self.inner.masters.ask(&MasterRequest::Config { handle, snapshot }, deadline).await;
        }
        match answer {
            Ok(MasterReply::Config(now)) => {
                let sealed = config.sealed.or(now.sealed);
                *config = ChunkConfig { sealed, ..now };
            }
            Ok(_) => return Err(Error::unexpected("config")),
            // Too few members live: they may come back before the deadline.
            Err(Error::Refused(r)) if r.code == Code::Frozen => {}
            Err(e) => return Err(e),
        }
        if config.members.iter().any(|m| self.inner.conns.rack(*m).is_none()) || silent {
            self.stores().await?;
        }
        Ok(())
    }

    /// Reads a range of a chunk; shorter where the chunk ends. Every byte is verified here.
    /// What has the chunk's bytes as of a snapshot is read, if that is not 0.
    pub(crate) async fn read_chunk(
        &self,
        config: &ChunkConfig,
        snapshot: u64,
        offset: u64,
        len: u32,
    ) -> Result<Vec<Bytes>> {
        let deadline = Instant::now() + self.inner.config.deadline;
        let mut config = config.clone();
        let mut pause = RETRY.0;
        let mut tries = 0;
        loop {
            let mut order = self.order(&config, offset, tries);
            if self.inner.config.reads_here
                && snapshot == 0
                && let Some(data) = self.read_here(&config, &order, offset, len).await
            {
                return Ok(vec![data]);
            }
            self.spread(&mut order);
            let last = match self.read_hedged(&config, &order, offset, len).await {
                Ok(data) => return Ok(data),
                Err(miss) => miss,
            };
            if Instant::now() + pause >= deadline {
                return Err(Error::Unreadable { what: config.handle.to_string(), last });
            }
            self.refresh(&mut config, snapshot, false, deadline).await?;
            // No replica answered: the servers may have started anew, at other addresses.
            self.stores().await?;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
            tries += 1;
        }
    }

    /// In which order replicas are asked for a range: the first is another one for each range and for each try. Those on
    /// this rack come before all others.
    pub(crate) fn order(&self, config: &ChunkConfig, offset: u64, tries: usize) -> Vec<StoreId> {
        let first = (offset / u64::from(LOCATED_BYTES_MAX)) as usize + config.handle.0 as usize + tries;
        let n = config.members.len();
        let mut order: Vec<StoreId> = (0..n).map(|i| config.members[(first + i) % n]).collect();
        let rack = &self.inner.config.rack;
        if !rack.is_empty() {
            order.sort_by_key(|s| self.inner.conns.rack(*s).as_ref() != Some(rack));
        }
        order
    }

    /// Lets a replica go first that has much less to do for this client than the one whose turn it is. That one
    /// answered the range before, and has it in memory perhaps; but its link may be somebody else's, too.
    fn spread(&self, order: &mut [StoreId]) {
        let waiting = |store: &StoreId| self.inner.conns.waiting(*store, Class::Bulk);
        let Some(least) = order.iter().map(waiting).min() else { return };
        let rack = &self.inner.config.rack;
        let near = |store: &StoreId| self.inner.conns.rack(*store).as_ref() == Some(rack);
        if waiting(&order[0]) > least + BUSIER {
            let at = order.iter().position(|s| waiting(s) == least && near(s) == near(&order[0]));
            order.swap(0, at.unwrap_or(0));
        }
    }

    /// Whether it is known where a range lies on the disk of a store on this machine; if there is one, it is asked for it.
    pub(crate) async fn is_placed(
        &self,
        config: &ChunkConfig,
        order: &[StoreId],
        offset: u64,
        len: u32,
    ) -> bool {
        let (handle, local, len) = (config.handle, &self.inner.local, len as usize);
        if local.knows(handle, offset, len) {
            return true;
        }
        if local.are_away(order) {
            return false;
        }
        let Some(from) = local.wants(handle, offset, len) else { return false };
        // One question at a time; the others wait for its answer.
        let _turn = local.turn(handle, from).lock().await;
        if !local.knows(handle, offset, len) {
            let Some(from) = local.wants(handle, offset, len) else { return false };
            self.locate(config, order, from).await;
        }
        local.knows(handle, offset, len)
    }

    /// Reads a range off the disk of a store on this machine, if there is one and all of the range is there.
    async fn read_here(
        &self,
        config: &ChunkConfig,
        order: &[StoreId],
        offset: u64,
        len: u32,
    ) -> Option<Bytes> {
        if !self.is_placed(config, order, offset, len).await {
            return None;
        }
        let (handle, local) = (config.handle, self.inner.local.clone());
        // A thread may wait for the disk.
        let read = move || {
            let mut out = vec![0; len as usize];
            let read = local.read(handle, offset, &mut out, Uncached::Wait);
            matches!(read, Here::Read(_)).then(|| Bytes::from(out))
        };
        tokio::task::spawn_blocking(read).await.ok()?
    }

    /// Asks the first of these stores that is on this machine where a range lies, from this byte on, and
    /// remembers what it says.
    async fn locate(&self, config: &ChunkConfig, order: &[StoreId], from: u32) {
        let told = async {
            let (handle, cluster, order) = (config.handle, self.inner.masters.cluster(), order.to_vec());
            let local = self.inner.local.clone();
            // It may have to be looked for.
            let store =
                tokio::task::spawn_blocking(move || local.neighbour(cluster, &order)).await.ok()??;
            let conn = self.conn(store.id(), Class::Control).await.ok()?;
            let len = LOCATED_BYTES_MAX - from % LOCATED_BYTES_MAX;
            let msg = ClientChunk::Locate { handle, offset: from.into(), len };
            match conn.call(&msg, config.epoch.0, vec![], STAT_LIMIT).await.ok()?.0 {
                ClientChunkReply::Located { session, stamp, len, places } => {
                    let window = Window { store, handle, session, stamp, from, len, places };
                    window.is_sound().then_some(window)
                }
                _ => None,
            }
        };
        match told.await {
            Some(window) => self.inner.local.add(window),
            None => self.inner.local.not_now(config.handle, from),
        }
    }

    /// Asks replicas in this order; the next one when one refuses, breaks, or is slow.
    async fn read_hedged(
        &self,
        config: &ChunkConfig,
        order: &[StoreId],
        offset: u64,
        len: u32,
    ) -> std::result::Result<Vec<Bytes>, String> {
        use futures::stream::{FuturesUnordered, StreamExt};
        let mut under_way = FuturesUnordered::new();
        let mut rest = order.iter();
        let mut last = String::from("no replica is known");
        let mut asked = None;
        let began = Instant::now();
        let hedge_after = {
            let hedge = self.inner.hedge.lock().expect("never poisoned");
            Duration::from_micros(hedge.after_us())
        };
        loop {
            if under_way.is_empty() {
                asked = rest.next();
                match asked {
                    Some(store) => under_way.push(self.read_one(config, *store, offset, len)),
                    None => return Err(last),
                }
            }
            match tokio::time::timeout(hedge_after, under_way.next()).await {
                Ok(Some(Ok(data))) => {
                    let us = began.elapsed().as_micros() as u64;
                    self.inner.hedge.lock().expect("never poisoned").answered(us);
                    return Ok(data);
                }
                Ok(Some(Err(why))) => last = why,
                Ok(None) => {}
                Err(_) => {
                    let comes = |store: &StoreId| self.inner.conns.is_heard(*store, Class::Bulk, hedge_after);
                    if len > LARGE_READ_BYTES && began.elapsed() < SLOW_READ && asked.is_some_and(comes) {
                        continue;
                    }
                    if let Some(store) = rest.next() {
                        asked = Some(store);
                        under_way.push(self.read_one(config, *store, offset, len));
                    } else if let Some(answer) = under_way.next().await {
                        match answer {
                            Ok(data) => return Ok(data),
                            Err(why) => last = why,
                        }
                    }
                }
            }
        }
    }

    pub(crate) async fn read_one(
        &self,
        config: &ChunkConfig,
        store: StoreId,
        offset: u64,
        len: u32,
    ) -> std::result::Result<Vec<Bytes>, String> {
        let conn = self.conn(store, Class::Bulk).await.map_err(|e| e.to_string())?;
        let msg = ClientChunk::Read { handle: config.handle, offset, len, stale: false };
        let (reply, frame) = conn
            .call_patiently::<_, ClientChunkReply>(&msg, config.epoch.0, READ)
            .await
            .map_err(|e| e.to_string())?;
        match reply {
            ClientChunkReply::Data { pieces } => verified(&pieces, frame.payload, len)
                .ok_or_else(|| format!("{store}: the bytes do not match their checksums")),
            ClientChunkReply::Refused(refusal) => Err(format!("{store}: {refusal}")),
            _ => Err(format!("{store}: an answer that does not fit a read")),
        }
    }

    /// The committed length of an open chunk and its last serial, from its primary; no serial if it is sealed.
    pub(crate) async fn chunk_length(&self, config: &ChunkConfig, snapshot: u64) -> Result<(u64, Serial)> {
        let began = Instant::now();
        let deadline = began + self.inner.config.deadline;
        let mut config = config.clone();
        let mut pause = RETRY.0;
        loop {
            if let Some(sealed) = config.sealed {
                return Ok((sealed, Serial(0)));
            }
            let (last, silent) = match self.stat_replica(&config, config.primary).await {
                Ok((length, view)) => return Ok((length, view.committed)),
                Err(miss) if miss.next == Next::GiveUp => (miss.last, false),
                Err(miss) => (miss.last, miss.silent),
            };
            if Instant::now() + pause >= deadline {
                let action = format!("ask for the length of {}", config.handle);
                return Err(Error::Unknown { action, ms: began.elapsed().as_millis() as u64, last });
            }
            self.refresh(&mut config, snapshot, silent, deadline).await?;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    pub(crate) async fn stat_replica(
        &self,
        config: &ChunkConfig,
        store: StoreId,
    ) -> std::result::Result<(u64, ReplicaView), Miss> {
        let conn = self.conn(store, Class::Control).await.map_err(Miss::net)?;
        let msg = ClientChunk::Stat { handle: config.handle };
        match conn.call(&msg, config.epoch.0, vec![], STAT_LIMIT).await.map_err(Miss::net)?.0 {
            ClientChunkReply::Stat { length, epoch, committed, applied, .. } => {
                Ok((length, ReplicaView { store, length, epoch, committed, applied }))
            }
            ClientChunkReply::Refused(refusal) => Err(Miss::refused(refusal)),
            _ => Err(Miss {
                last: "an answer that does not fit".into(),
                refusal: None,
                next: Next::GiveUp,
                silent: false,
            }),
        }
    }

    pub(crate) async fn replica_view(&self, config: &ChunkConfig, store: StoreId) -> Result<ReplicaView> {
        let view = self.stat_replica(config, store).await;
        view.map(|(_, view)| view).map_err(|miss| Error::Unreadable {
            what: format!("{} on {store}", config.handle),
            last: miss.last,
        })
    }
}

/// The bytes of a read, if they match their checksums and are no more than was asked.
fn verified(pieces: &[Piece], payload: Bytes, len: u32) -> Option<Vec<Bytes>> {
    let mut out = vec![];
    let mut rest = payload;
    let mut total = 0;
    for piece in pieces {
        if piece.invalid().is_some() || piece.len as usize > rest.len() {
            return None;
        }
        let bytes = rest.split_to(piece.len as usize);
        piece.verify(&bytes).ok()?;
        total += piece.len;
        out.push(bytes);
    }
    (rest.is_empty() && total <= len).then_some(out)
}
