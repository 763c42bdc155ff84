//! Raft between masters, over the framed connections: calls are pipelined, each has a deadline.

use super::image::{Image, Images, Incoming};
use super::spare::{HOLD, HOLD_ENTRIES_MAX, Spares};
use super::{Raft, Snapshot, SnapshotMeta, TypeConfig, Vote, from_bytes, to_bytes};
use bincode::{Decode, Encode};
use common::ClusterId;
use common::wire::frame::Kind;
use common::wire::{Caller, Message};
use common_net::{Conn, Frame, NetError, Reply};
use futures::stream::{BoxStream, StreamExt};
use futures::{FutureExt, Stream};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, VoteRequest,
    VoteResponse,
};
use openraft::raft::{TransferLeaderRequest, TransferLeaderResponse};
use openraft::{BasicNode, OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// A call of Raft; its data is the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Call {
    /// AppendEntries.
    Append,
    /// RequestVote.
    Vote,
    /// The question before it.
    PreVote,
    /// Leadership is handed over.
    Transfer,
    /// A snapshot begins: its description.
    SnapshotBegin,
    /// A part of it.
    SnapshotPart,
    /// That was all: install it.
    SnapshotEnd,
}

impl Message for Call {
    const KIND: Kind = Kind::Raft;
}

/// The answer; its data is the payload. Empty if there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Answer;

impl Message for Answer {
    const KIND: Kind = Kind::RaftReply;
}

/// Appends that are under way to one follower.
const PIPELINE: usize = 64;
/// No answer to an append for so long breaks the pipeline.
const APPEND_LIMIT: Duration = Duration::from_millis(1500);
/// The end of what is committed waits for so long for entries with which it can go to a follower: alone it costs each
/// master as much as an entry does.
const COMMIT_HOLD: Duration = Duration::from_millis(5);
/// A part of a snapshot is taken within this.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(30);
/// A whole one is installed within this: a hundred million files are.
const INSTALL_LIMIT: Duration = Duration::from_secs(600);

/// When this master sent what others have last acknowledged as their leader's: they grant no vote for a while after
/// that. openraft's own count takes an answer as one to all that was sent before it came, which is too late by the
/// time of a round.
#[derive(Default)]
pub struct Acknowledged {
    /// For each master: in which term, and when.
    sent: Mutex<BTreeMap<u64, (u64, Instant)>>,
}

impl Acknowledged {
    fn note(&self, by: u64, term: u64, sent: Instant) {
        let mut all = self.sent.lock().expect("never poisoned");
        let last = all.entry(by).or_insert((term, sent));
        *last = (*last).max((term, sent));
    }

    /// Whether a majority of each of these groups, `own` among them, has acknowledged something of this term that
    /// is not older than `age`.
    pub fn by_quorum(&self, own: u64, term: u64, age: Duration, groups: &[BTreeSet<u64>]) -> bool {
        let all = self.sent.lock().expect("never poisoned");
        let fresh = |id: &u64| {
            *id == own || all.get(id).is_some_and(|(of, sent)| *of == term && sent.elapsed() < age)
        };
        groups.iter().all(|group| group.iter().filter(|id| fresh(id)).count() > group.len() / 2)
    }
}

/// A connection that could not be made is tried again after this.
const REDIAL: Duration = Duration::from_millis(50);

/// Makes connections to other masters.
pub struct Network {
    /// Who calls.
    pub id: u64,
    /// The cluster.
    pub cluster: ClusterId,
    /// What was acknowledged.
    pub acknowledged: Arc<Acknowledged>,
    /// Who gets entries a little later.
    pub spares: Arc<Spares>,
}

/// A connection to another master, made when it is needed.
pub struct Client {
    id: u64,
    target: u64,
    cluster: ClusterId,
    addr: String,
    conn: Option<Conn>,
    /// When a connection could last not be made.
    failed: Option<tokio::time::Instant>,
    acknowledged: Arc<Acknowledged>,
    spares: Arc<Spares>,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Client {
        Client {
            id: self.id,
            target,
            cluster: self.cluster,
            addr: node.addr.clone(),
            conn: None,
            failed: None,
            acknowledged: self.acknowledged.clone(),
            spares: self.spares.clone(),
        }
    }
}

type Rpc<T> = Result<T, RPCError<TypeConfig>>;

fn unreachable(error: &NetError) -> RPCError<TypeConfig> {
    // Never `NetworkError`: that is retried hot.
    RPCError::Unreachable(Unreachable::new(error))
}

fn undecodable() -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string("the answer cannot be decoded"))
}

impl Client {
    async fn conn(&mut self, limit: Duration) -> Result<Conn, NetError> {
        match &self.conn {
            Some(conn) if !conn.is_closed() => Ok(conn.clone()),
            _ => {
                // A host whose master is dead refuses at once, and openraft's own pause lies in the stream of
                // entries, which is not begun before there is a connection.
                if let Some(failed) = self.failed {
                    tokio::time::sleep_until(failed + REDIAL).await;
                }
                match Conn::dial(&self.addr, Caller::Master(self.id), self.cluster, limit).await {
                    Ok(conn) => {
                        self.conn = Some(conn.clone());
                        Ok(conn)
                    }
                    Err(error) => {
                        self.failed = Some(tokio::time::Instant::now());
                        Err(error)
                    }
                }
            }
        }
    }

    async fn call<Q: Serialize, R: DeserializeOwned>(
        &mut self,
        call: Call,
        request: &Q,
        limit: Duration,
    ) -> Rpc<R> {
        let conn = self.conn(limit).await.map_err(|e| unreachable(&e))?;
        let payload = vec![to_bytes(request).into()];
        let answer = conn.call::<_, Answer>(&call, 0, payload, limit).await;
        let (_, frame) = answer.map_err(|e| {
            self.conn = None;
            unreachable(&e)
        })?;
        from_bytes(&frame.payload).ok_or_else(undecodable)
    }

    async fn send_snapshot(&mut self, vote: Vote, snapshot: Snapshot) -> Rpc<SnapshotResponse<TypeConfig>> {
        let to = self.target;
        let unreadable = move |error| {
            tracing::warn!(%error, to, "cannot read the image that another master needs");
            RPCError::Unreachable(Unreachable::new(&error))
        };
        let mut parts = snapshot.snapshot.parts().map_err(unreadable)?.skip(1);
        let _: () = self.call(Call::SnapshotBegin, &(vote, snapshot.meta), SNAPSHOT_LIMIT).await?;
        loop {
            let read = tokio::task::spawn_blocking(move || {
                let batch = batch(&mut parts);
                batch.map(|batch| (batch, parts))
            });
            let (batch, rest) = read.await.map_err(io::Error::other).flatten().map_err(unreadable)?;
            if batch.is_empty() {
                break;
            }
            parts = rest;
            let _: () = self.call(Call::SnapshotPart, &batch, SNAPSHOT_LIMIT).await?;
        }
        self.call(Call::SnapshotEnd, &(), INSTALL_LIMIT).await
    }
}

/// Parts that are sent together; none if there are no more.
fn batch(parts: &mut impl Iterator<Item = io::Result<Vec<u8>>>) -> io::Result<Vec<serde_bytes::ByteBuf>> {
    const BYTES: usize = 4 * 1024 * 1024;
    let mut batch: Vec<serde_bytes::ByteBuf> = vec![];
    let mut bytes = 0;
    while bytes < BYTES
        && let Some(part) = parts.next().transpose()?
    {
        bytes += part.len();
        batch.push(part.into());
    }
    Ok(batch)
}

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = Arc<Image>;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        let sent = Instant::now();
        let response = self.call(Call::Append, &rpc, option.soft_ttl().max(APPEND_LIMIT)).await?;
        if accepts(&response) {
            self.acknowledged.note(self.target, rpc.vote.leader_id.term, sent);
        }
        Ok(response)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> futures::future::BoxFuture<'s, Rpc<BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        async move {
            let limit = option.soft_ttl().max(Duration::from_millis(300));
            let (target, spares) = (self.target, self.spares.clone());
            spares.ends(target);
            let conn = self.conn(limit).await.map_err(|e| unreachable(&e))?;
            spares.begins(target);
            let sent = with_entries(input, target, spares.clone()).then(move |request| {
                // Sent here, one after another: the order on the connection is the log's.
                let (conn, spares) = (conn.clone(), spares.clone());
                async move {
                    let (term, now) = (request.vote.leader_id.term, Instant::now());
                    let first = request.prev_log_id;
                    let last = request.entries.last().map(|e| e.log_id).or(first);
                    let payload = vec![to_bytes(&request).into()];
                    spares.sent(target, now);
                    let answer = conn.send(&Call::Append, 0, payload).await;
                    (conn, (first, last), (term, now), answer)
                }
            });
            let (acknowledged, spares) = (self.acknowledged.clone(), self.spares.clone());
            let answers = sent.map(move |(conn, (first, last), (term, sent), answer)| {
                let (acknowledged, spares) = (acknowledged.clone(), spares.clone());
                async move {
                    let frame = match answer {
                        Ok(answer) => conn.answer::<Answer>(answer, APPEND_LIMIT).await,
                        Err(e) => Err(e),
                    };
                    let after = if frame.is_ok() { sent.elapsed() } else { APPEND_LIMIT };
                    spares.answered(target, after, Instant::now());
                    let (_, frame) = frame.map_err(|e| {
                        spares.ends(target);
                        unreachable(&e)
                    })?;
                    let response: AppendEntriesResponse<TypeConfig> =
                        from_bytes(&frame.payload).ok_or_else(undecodable)?;
                    if accepts(&response) {
                        acknowledged.note(target, term, sent);
                    }
                    Ok(response.into_stream_result(first, last))
                }
            });
            Ok(answers.buffered(PIPELINE).boxed())
        }
        .boxed()
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        self.call(Call::Vote, &rpc, option.soft_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        self.call(Call::PreVote, &rpc, option.soft_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_snapshot(vote, snapshot) => sent.map_err(|e| match e {
                RPCError::Unreachable(u) => StreamingError::Unreachable(u),
                other => StreamingError::Unreachable(Unreachable::from_string(other)),
            }),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        self.call(Call::Transfer, &req, option.soft_ttl()).await
    }
}

/// Whether who answers so follows the leader that asked.
fn accepts(response: &AppendEntriesResponse<TypeConfig>) -> bool {
    !matches!(response, AppendEntriesResponse::HigherVote(_))
}

/// The same appends, without those that only tell the end of what is committed and are soon followed by another, which
/// tells it too. The answer to that is taken as one to both. Those to a spare follower are held, and what comes
/// meanwhile goes with the next.
fn with_entries<S>(
    input: S,
    target: u64,
    spares: Arc<Spares>,
) -> impl Stream<Item = AppendEntriesRequest<TypeConfig>>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    futures::stream::unfold((input.peekable(), spares), move |(mut input, spares)| async move {
        loop {
            let request = input.next().await?;
            let next = Pin::new(&mut input).peek();
            if request.entries.is_empty()
                && matches!(tokio::time::timeout(COMMIT_HOLD, next).await, Ok(Some(_)))
            {
                continue;
            }
            let held = 1..HOLD_ENTRIES_MAX;
            if held.contains(&request.entries.len()) && spares.is_spare(target, Instant::now()) {
                tokio::time::sleep(HOLD).await;
            }
            return Some((request, (input, spares)));
        }
    })
}

/// An append, and whoever waits for its answer.
type Append = (AppendEntriesRequest<TypeConfig>, oneshot::Sender<AppendEntriesResponse<TypeConfig>>);

/// A snapshot of which parts have come.
struct Coming {
    vote: Vote,
    meta: SnapshotMeta,
    image: Incoming,
}

/// What the answering side keeps of a connection: appends in order, a snapshot in parts.
pub struct Inbound {
    appends: Option<mpsc::Sender<Append>>,
    snapshot: Arc<tokio::sync::Mutex<Option<Coming>>>,
    images: Arc<Images>,
}

impl Inbound {
    /// Of a connection that has just been made; a snapshot comes to these images.
    pub fn new(images: Arc<Images>) -> Inbound {
        Inbound { appends: None, snapshot: Arc::default(), images }
    }
}

/// Answers a call. Appends keep the order of their frames.
pub fn handle(raft: &Raft, votes: bool, state: &mut Inbound, frame: Frame) -> common_net::Served {
    use common::Code;
    let Ok(call) = common::wire::decode::<Call>(&frame.body) else {
        return ready(Code::BadBody.into());
    };
    let payload = frame.payload;
    match call {
        Call::Append => {
            let Some(request) = from_bytes::<AppendEntriesRequest<TypeConfig>>(&payload) else {
                return ready(Code::BadBody.into());
            };
            let queue = state.appends.get_or_insert_with(|| append_in_order(raft.clone()));
            let (tell, told) = oneshot::channel();
            if queue.try_send((request, tell)).is_err() {
                return ready(Code::Busy.into());
            }
            Box::pin(async move { told.await.map_or(Code::Unavailable.into(), |r| answer(&r)) })
        }
        // A master that has just started keeps its vote back: it may have granted a lease.
        Call::Vote | Call::PreVote if !votes => ready(Code::Unavailable.into()),
        Call::Vote | Call::PreVote => {
            let Some(request) = from_bytes::<VoteRequest<TypeConfig>>(&payload) else {
                return ready(Code::BadBody.into());
            };
            let raft = raft.clone();
            Box::pin(async move {
                let answered =
                    if call == Call::Vote { raft.vote(request).await } else { raft.pre_vote(request).await };
                answered.map_or(Code::Unavailable.into(), |r| answer(&r))
            })
        }
        Call::Transfer => {
            let Some(request) = from_bytes::<TransferLeaderRequest<TypeConfig>>(&payload) else {
                return ready(Code::BadBody.into());
            };
            let raft = raft.clone();
            Box::pin(async move {
                raft.handle_transfer_leader(request).await.map_or(Code::Unavailable.into(), |r| answer(&r))
            })
        }
        Call::SnapshotBegin => {
            let Some((vote, meta)) = from_bytes::<(Vote, SnapshotMeta)>(&payload) else {
                return ready(Code::BadBody.into());
            };
            let (slot, images) = (state.snapshot.clone(), state.images.clone());
            Box::pin(async move {
                let mut slot = slot.lock().await;
                let header = meta.clone();
                match on_disk(move || images.receive(&header)).await {
                    Ok(image) => *slot = Some(Coming { vote, meta, image }),
                    Err(code) => return code.into(),
                }
                answer(&())
            })
        }
        Call::SnapshotPart => {
            let Some(parts) = from_bytes::<Vec<serde_bytes::ByteBuf>>(&payload) else {
                return ready(Code::BadBody.into());
            };
            let slot = state.snapshot.clone();
            Box::pin(async move {
                let mut slot = slot.lock().await;
                let Some(Coming { vote, meta, mut image }) = slot.take() else {
                    return Code::Unexpected.into();
                };
                let pushed = on_disk(move || {
                    parts.iter().try_for_each(|part| image.push(part))?;
                    Ok(image)
                });
                match pushed.await {
                    Ok(image) => *slot = Some(Coming { vote, meta, image }),
                    Err(code) => return code.into(),
                }
                answer(&())
            })
        }
        Call::SnapshotEnd => {
            let (slot, raft) = (state.snapshot.clone(), raft.clone());
            Box::pin(async move {
                let Some(Coming { vote, meta, image }) = slot.lock().await.take() else {
                    return Code::Unexpected.into();
                };
                let image = match on_disk(move || image.end()).await {
                    Ok(image) => Arc::new(image),
                    Err(code) => return code.into(),
                };
                raft.install_full_snapshot(vote, Snapshot { meta, snapshot: image })
                    .await
                    .map_or(Code::Unavailable.into(), |r| answer(&r))
            })
        }
    }
}

/// What waits for the disk that an image comes to. What has come of it is gone if it fails: its sender begins anew.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, common::Code> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other).flatten();
    done.map_err(|error| {
        tracing::warn!(%error, "cannot write the image that comes from another master");
        common::Code::Unavailable
    })
}

fn append_in_order(raft: Raft) -> mpsc::Sender<Append> {
    let (queue, mut requests) = mpsc::channel::<Append>(PIPELINE * 4);
    tokio::spawn(async move {
        // The next append is handed to Raft before the last one is answered: polled once in order.
        let mut under_way = futures::stream::FuturesOrdered::new();
        let mut leader = None;
        loop {
            tokio::select! {
                biased;
                next = requests.recv() => match next {
                    Some((request, tell)) => {
                        leader = Some(request.vote);
                        let raft = raft.clone();
                        let mut append = Box::pin(async move { raft.append_entries(request).await });
                        let first = futures::poll!(append.as_mut());
                        under_way.push_back(async move {
                            let done = match first {
                                std::task::Poll::Ready(done) => done,
                                std::task::Poll::Pending => append.await,
                            };
                            if let Ok(response) = done {
                                // The connection may be gone; then nobody wants the answer.
                                let _ = tell.send(response);
                            }
                        });
                    }
                    None => break,
                },
                Some(()) = under_way.next(), if !under_way.is_empty() => {}
            }
        }
        if let Some(leader) = leader {
            super::succession::connection_ended(&raft, leader).await;
        }
    });
    queue
}

fn answer<T: Serialize>(value: &T) -> Reply {
    Reply::new(Answer, vec![to_bytes(value).into()])
}

fn ready(reply: Reply) -> common_net::Served {
    Box::pin(std::future::ready(reply))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_is_a_majority_of_every_group_in_this_term_and_not_long_ago() {
        let group = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        let age = Duration::from_secs(60);
        let acknowledged = Acknowledged::default();
        let holds = |groups: &[BTreeSet<u64>]| acknowledged.by_quorum(1, 7, age, groups);
        assert!(holds(&[group(&[1])]), "it is alone");
        assert!(!holds(&[group(&[1, 2, 3])]));
        acknowledged.note(2, 6, Instant::now());
        assert!(!holds(&[group(&[1, 2, 3])]), "of another term");
        acknowledged.note(2, 7, Instant::now() - 2 * age);
        assert!(!holds(&[group(&[1, 2, 3])]), "long ago");
        acknowledged.note(2, 7, Instant::now());
        acknowledged.note(2, 7, Instant::now() - 2 * age);
        assert!(holds(&[group(&[1, 2, 3])]), "an earlier one is told later");
        assert!(!holds(&[group(&[1, 2, 3, 4])]), "two of four");
        assert!(!holds(&[group(&[1, 2, 3]), group(&[3, 4, 5])]), "of the new group nobody");
        acknowledged.note(4, 7, Instant::now());
        acknowledged.note(5, 7, Instant::now());
        assert!(holds(&[group(&[1, 2, 3]), group(&[3, 4, 5])]), "it leaves");
    }

    #[tokio::test]
    async fn a_dead_master_is_not_called_without_a_pause() {
        let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let node = BasicNode::new(gone.local_addr().expect("an address"));
        drop(gone);
        let acknowledged = Arc::new(Acknowledged::default());
        let mut network = Network { id: 1, cluster: ClusterId(7), acknowledged, spares: Arc::default() };
        let mut client = network.new_client(2, &node).await;
        let began = Instant::now();
        for _ in 0..4 {
            assert!(client.conn(Duration::from_secs(1)).await.is_err(), "nobody listens");
        }
        assert!(began.elapsed() >= 3 * REDIAL, "4 calls in {:?}", began.elapsed());
    }
}
