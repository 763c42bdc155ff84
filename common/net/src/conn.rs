//! The calling side: one connection, many requests at a time.

use crate::{Frame, Patience, Progress, ReadFrame, read_frame};
use bytes::Bytes;
use common::wire::frame::Kind;
use common::wire::{self, Caller, Hello, HelloOk, Message};
use common::{ClusterId, Code, Refusal};
use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWriteExt, BufReader, BufWriter, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};

/// Bytes of a connection's read buffer: small messages come many to a system call.
const BUFFER_BYTES: usize = 32 * 1024;
/// Frames that wait to be written on one connection; more wait in their callers.
const QUEUE_FRAMES: usize = 1024;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The connection cannot be made.
    #[error("connect to {addr}: {source}")]
    Dial {
        /// To where.
        addr: String,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke; whether the request was carried out is not known.
    #[error("the connection to {addr} broke")]
    Closed {
        /// To where.
        addr: String,
    },
    /// No answer in time; whether the request was carried out is not known.
    #[error("no answer from {addr} within {ms} ms")]
    Timeout {
        /// To where.
        addr: String,
        /// How long it was waited.
        ms: u64,
    },
    /// The other side refuses.
    #[error("{addr} refuses: {refusal}")]
    Refused {
        /// Who.
        addr: String,
        /// Why.
        refusal: Refusal,
    },
}

/// The payload of a frame, in parts.
pub type Payload = Vec<Bytes>;
/// Header and body of a frame, and its payload.
type Queued = (Vec<u8>, Payload);
/// Requests without an answer: who waits for it, and what has moved when it comes, even if nobody waits any more.
type Pending = Mutex<Option<HashMap<u64, (oneshot::Sender<Frame>, Option<Progress>)>>>;

struct Shared {
    addr: String,
    cluster: ClusterId,
    next: AtomicU64,
    /// `None` once the connection is gone.
    pending: Pending,
    last_refusal: Mutex<Option<Refusal>>,
    /// The last snapshot that was heard of, on any connection of this caller.
    snapshot: Arc<AtomicU64>,
    /// When bytes last came.
    heard: Progress,
}

/// The reading half of a connection; says when bytes come.
struct Hearing {
    stream: OwnedReadHalf,
    heard: Progress,
}

impl AsyncRead for Hearing {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context, buf: &mut ReadBuf) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.heard.made();
        Poll::Ready(Ok(()))
    }
}

/// A connection. Clones share it; it closes with the last of them.
#[derive(Clone)]
pub struct Conn {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Queued>,
}

/// Connects to the first address of this name that answers.
async fn connect(addr: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the name has no address");
    for addr in tokio::net::lookup_host(addr).await? {
        let socket: std::net::TcpStream = crate::socket(addr)?.into();
        socket.set_nonblocking(true)?;
        match TcpSocket::from_std_stream(socket).connect(addr).await {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(last)
}

impl Conn {
    /// Connects and greets. With `cluster` 0 any cluster is accepted: `Conn::cluster` tells which.
    pub async fn dial(
        addr: &str,
        caller: Caller,
        cluster: ClusterId,
        limit: Duration,
    ) -> Result<Conn, NetError> {
        Conn::dial_after(addr, caller, cluster, limit, Arc::default()).await
    }

    /// As `dial`; what is asked comes after the last snapshot that any connection with this number has
    /// heard of.
    pub async fn dial_after(
        addr: &str,
        caller: Caller,
        cluster: ClusterId,
        limit: Duration,
        snapshot: Arc<AtomicU64>,
    ) -> Result<Conn, NetError> {
        let late = || NetError::Timeout { addr: addr.into(), ms: limit.as_millis() as u64 };
        let dialled = Conn::dial_unbounded(addr, caller, cluster, snapshot);
        tokio::time::timeout(limit, dialled).await.map_err(|_| late())?
    }

    async fn dial_unbounded(
        addr: &str,
        caller: Caller,
        cluster: ClusterId,
        snapshot: Arc<AtomicU64>,
    ) -> Result<Conn, NetError> {
        let fail = |source| NetError::Dial { addr: addr.into(), source };
        let stream = connect(addr).await.map_err(fail)?;
        let (stream, mut write) = stream.into_split();
        let heard = Progress::default();
        let mut read = BufReader::with_capacity(BUFFER_BYTES, Hearing { stream, heard: heard.clone() });
        let hello = wire::frame(cluster, 0, 0, &Hello::new(caller), 0);
        write.write_all(&hello).await.map_err(fail)?;
        let refused = |refusal| NetError::Refused { addr: addr.into(), refusal };
        let cluster = match read_frame(&mut read).await {
            ReadFrame::Frame(f) if f.header.kind == Kind::HelloOk => {
                let ok: HelloOk = wire::decode(&f.body).map_err(|code| refused(code.into()))?;
                if cluster.0 != 0 && ok.cluster != cluster {
                    return Err(refused(Refusal::new(Code::WrongCluster, ok.cluster)));
                }
                ok.cluster
            }
            ReadFrame::Frame(f) if f.header.kind == Kind::Refused => {
                return Err(refused(wire::decode(&f.body).unwrap_or_else(Refusal::from)));
            }
            ReadFrame::Frame(_) => return Err(refused(Code::Unexpected.into())),
            ReadFrame::Closed => return Err(NetError::Closed { addr: addr.into() }),
            ReadFrame::Bad(code) => return Err(refused(code.into())),
        };
        let shared = Arc::new(Shared {
            addr: addr.into(),
            cluster,
            next: AtomicU64::new(1),
            pending: Mutex::new(Some(HashMap::new())),
            last_refusal: Mutex::new(None),
            snapshot,
            heard,
        });
        let (queue, rest) = mpsc::channel(QUEUE_FRAMES);
        let reader = tokio::spawn(read_loop(read, shared.clone()));
        tokio::spawn(write_loop(write, rest, shared.clone(), reader));
        Ok(Conn { shared, queue })
    }

    /// The cluster on the other side.
    pub fn cluster(&self) -> ClusterId {
        self.shared.cluster
    }

    /// To where.
    pub fn addr(&self) -> &str {
        &self.shared.addr
    }

    /// When bytes last came on it.
    pub fn heard(&self) -> &Progress {
        &self.shared.heard
    }

    /// Requests that wait for their answers.
    pub fn waiting(&self) -> usize {
        self.shared.pending.lock().expect("never poisoned").as_ref().map_or(0, HashMap::len)
    }

    /// Whether the connection is gone.
    pub fn is_closed(&self) -> bool {
        self.shared.pending.lock().expect("never poisoned").is_none()
    }

    /// Asks, and waits for the answer.
    pub async fn call<M: Message, R: Message>(
        &self,
        message: &M,
        epoch: u64,
        payload: Payload,
        limit: Duration,
    ) -> Result<(R, Frame), NetError> {
        let answer = self.send(message, epoch, payload).await?;
        self.answer(answer, limit).await
    }

    /// As `call`, for an answer with many bytes: waits as long as bytes come, and patience allows.
    pub async fn call_patiently<M: Message, R: Message>(
        &self,
        message: &M,
        epoch: u64,
        patience: Patience,
    ) -> Result<(R, Frame), NetError> {
        let answer = self.send(message, epoch, vec![]).await?;
        self.answer_patiently(answer, patience, self.heard()).await
    }

    /// Sends a request; the answer comes by itself. Requests are sent in the order of the calls.
    pub async fn send<M: Message>(
        &self,
        message: &M,
        epoch: u64,
        payload: Payload,
    ) -> Result<oneshot::Receiver<Frame>, NetError> {
        self.send_noting(message, epoch, payload, None).await
    }

    /// As `send`; there is progress when the answer comes, whether somebody still waits for it or not.
    pub async fn send_noting<M: Message>(
        &self,
        message: &M,
        epoch: u64,
        payload: Payload,
        progress: Option<Progress>,
    ) -> Result<oneshot::Receiver<Frame>, NetError> {
        let slot = self.queue.reserve().await.map_err(|_| self.closed())?;
        let (answer, frame) = self.prepare(message, epoch, payload, progress)?;
        slot.send(frame);
        Ok(answer)
    }

    /// As `send`, at once; `None` if the queue is full.
    pub fn try_send<M: Message>(
        &self,
        message: &M,
        epoch: u64,
        payload: Payload,
    ) -> Result<Option<oneshot::Receiver<Frame>>, NetError> {
        let Ok(slot) = self.queue.try_reserve() else {
            return Ok(None);
        };
        let (answer, frame) = self.prepare(message, epoch, payload, None)?;
        slot.send(frame);
        Ok(Some(answer))
    }

    fn prepare<M: Message>(
        &self,
        message: &M,
        epoch: u64,
        payload: Payload,
        progress: Option<Progress>,
    ) -> Result<(oneshot::Receiver<Frame>, Queued), NetError> {
        let request = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        match &mut *self.shared.pending.lock().expect("never poisoned") {
            Some(pending) => pending.insert(request, (tx, progress)),
            None => return Err(self.closed()),
        };
        let len = payload.iter().map(|p| p.len()).sum();
        let frame = wire::frame(self.shared.cluster, request, epoch, message, len);
        Ok((rx, (wire::stamp(frame, self.shared.snapshot.load(Ordering::Acquire)), payload)))
    }

    /// Waits for an answer and decodes it.
    pub async fn answer<R: Message>(
        &self,
        answer: oneshot::Receiver<Frame>,
        limit: Duration,
    ) -> Result<(R, Frame), NetError> {
        let answer = tokio::time::timeout(limit, answer).await.ok();
        self.decode(answer, limit)
    }

    /// As `answer`, as long as there is progress, and patience allows.
    pub async fn answer_patiently<R: Message>(
        &self,
        answer: oneshot::Receiver<Frame>,
        patience: Patience,
        progress: &Progress,
    ) -> Result<(R, Frame), NetError> {
        self.decode(progress.wait(patience, answer).await, patience.quiet)
    }

    fn decode<R: Message>(
        &self,
        answer: Option<Result<Frame, oneshot::error::RecvError>>,
        limit: Duration,
    ) -> Result<(R, Frame), NetError> {
        let addr = || self.shared.addr.clone();
        let frame = match answer {
            Some(Ok(frame)) => frame,
            Some(Err(_)) => return Err(self.closed()),
            None => return Err(NetError::Timeout { addr: addr(), ms: limit.as_millis() as u64 }),
        };
        let refused = |refusal| NetError::Refused { addr: addr(), refusal };
        if frame.header.kind == Kind::Refused {
            return Err(refused(wire::decode(&frame.body).unwrap_or_else(Refusal::from)));
        }
        if frame.header.kind != R::KIND {
            return Err(refused(Code::Unexpected.into()));
        }
        let message = wire::decode(&frame.body).map_err(|code| refused(code.into()))?;
        Ok((message, frame))
    }

    fn closed(&self) -> NetError {
        let addr = self.shared.addr.clone();
        match self.shared.last_refusal.lock().expect("never poisoned").clone() {
            Some(refusal) => NetError::Refused { addr, refusal },
            None => NetError::Closed { addr },
        }
    }
}

async fn read_loop(mut read: BufReader<Hearing>, shared: Arc<Shared>) {
    while let ReadFrame::Frame(frame) = read_frame(&mut read).await {
        shared.snapshot.fetch_max(frame.header.snapshot, Ordering::AcqRel);
        if frame.header.request == 0 && frame.header.kind == Kind::Refused {
            // Not an answer: the reason why the other side closes.
            *shared.last_refusal.lock().expect("never poisoned") = wire::decode(&frame.body).ok();
            continue;
        }
        let waiter = match &mut *shared.pending.lock().expect("never poisoned") {
            Some(pending) => pending.remove(&frame.header.request),
            None => break,
        };
        if let Some((waiter, progress)) = waiter {
            if let Some(progress) = progress {
                progress.made();
            }
            // Who gave up waiting does not want the answer any more.
            let _ = waiter.send(frame);
        }
    }
    // Whoever waits learns that the connection is gone.
    shared.pending.lock().expect("never poisoned").take();
}

async fn write_loop(
    write: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Queued>,
    shared: Arc<Shared>,
    reader: tokio::task::JoinHandle<()>,
) {
    let mut write = BufWriter::with_capacity(BUFFER_BYTES, write);
    while let Some((head, payload)) = queue.recv().await {
        let mut done = write.write_all(&head).await;
        for part in payload {
            if done.is_ok() {
                done = write.write_all(&part).await;
            }
        }
        if done.is_ok() && queue.is_empty() {
            done = write.flush().await;
        }
        if done.is_err() || shared.pending.lock().expect("never poisoned").is_none() {
            break;
        }
    }
    reader.abort();
    shared.pending.lock().expect("never poisoned").take();
}
