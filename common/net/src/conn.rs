//! The calling side: one connection, many requests at a time.

use crate::stream::{self, ReadHalf, WriteHalf};
use crate::{Frame, Patience, Progress, ReadFrame, read_frame};
use bytes::{Buf, Bytes};
use common::wire::frame::Kind;
use common::wire::{self, Caller, Hello, HelloOk, Message};
use common::{ClusterId, Code, Refusal};
use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWriteExt, BufReader, BufWriter, ReadBuf};
use tokio::net::TcpSocket;
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
type Queued = (Bytes, Payload);
/// Requests without an answer: who waits for it, and what has moved when it comes, even if nobody waits any more.
type Pending = Mutex<Option<HashMap<u64, (oneshot::Sender<Frame>, Option<Progress>)>>>;

/// The writing half of a connection, and what of a frame is yet to be written before any other.
struct Out {
    write: BufWriter<WriteHalf>,
    rest: Option<Queued>,
}

impl Out {
    /// Writes as much of a frame as the socket takes at once. Whether that was anything.
    fn begin(&mut self, (mut head, mut payload): Queued) -> Result<(), Queued> {
        let parts: Vec<IoSlice> =
            std::iter::once(&head).chain(&payload).map(|part| IoSlice::new(part)).collect();
        let Ok(mut written) = self.write.get_ref().try_write_vectored(&parts) else {
            return Err((head, payload));
        };
        for part in std::iter::once(&mut head).chain(&mut payload) {
            let n = written.min(part.len());
            part.advance(n);
            written -= n;
        }
        payload.retain(|part| !part.is_empty());
        self.rest = (!head.is_empty() || !payload.is_empty()).then_some((head, payload));
        Ok(())
    }

    async fn put(&mut self, (head, payload): Queued) -> io::Result<()> {
        self.write.write_all(&head).await?;
        for part in payload {
            self.write.write_all(&part).await?;
        }
        Ok(())
    }
}

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
    out: tokio::sync::Mutex<Out>,
    /// Frames in the queue, or out of it and not yet on the socket: nothing goes past them.
    queued: AtomicUsize,
}

/// The reading half of a connection; says when bytes come.
struct Hearing {
    stream: ReadHalf,
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

/// Connects to the first address of this name that answers; over a unix socket if that is on this machine.
async fn connect(addr: &str) -> io::Result<std::net::TcpStream> {
    let mut last = io::Error::other("the name has no address");
    for addr in tokio::net::lookup_host(addr).await? {
        if let Some(stream) = crate::here::connect(addr) {
            return Ok(stream);
        }
        let socket: std::net::TcpStream = crate::socket(addr)?.into();
        socket.set_nonblocking(true)?;
        match TcpSocket::from_std_stream(socket).connect(addr).await {
            Ok(stream) => return stream.into_std(),
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
        let (stream, mut write) = stream::split(stream).map_err(fail)?;
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
            out: tokio::sync::Mutex::new(Out {
                write: BufWriter::with_capacity(BUFFER_BYTES, write),
                rest: None,
            }),
            queued: AtomicUsize::new(0),
        });
        let (queue, rest) = mpsc::channel(QUEUE_FRAMES);
        let reader = tokio::spawn(read_loop(read, shared.clone()));
        tokio::spawn(write_loop(rest, shared.clone(), reader));
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

    /// Whether this is the same connection.
    pub fn is(&self, other: &Conn) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
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
        self.put(slot, frame);
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
        self.put(slot, frame);
        Ok(Some(answer))
    }

    /// Has a frame written. A task leaves that to the connection's, which writes what many have together; a thread
    /// that is no task's would have to wake one for it, and writes by itself if nothing is before it.
    fn put(&self, slot: mpsc::Permit<Queued>, mut frame: Queued) {
        if tokio::task::try_id().is_none()
            && let Ok(mut out) = self.shared.out.try_lock()
            && self.shared.queued.load(Ordering::Acquire) == 0
            && out.rest.is_none()
        {
            match out.begin(frame) {
                Ok(()) if out.rest.is_none() => return,
                // The connection's task writes the rest first, then this, which is nothing.
                Ok(()) => frame = Queued::default(),
                Err(unsent) => frame = unsent,
            }
        }
        self.shared.queued.fetch_add(1, Ordering::AcqRel);
        slot.send(frame);
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
        let head = wire::stamp(frame, self.shared.snapshot.load(Ordering::Acquire));
        Ok((rx, (head.into(), payload)))
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

    /// What an answer says, or that there was none within a limit.
    pub(crate) fn decode<R: Message>(
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
    mut queue: mpsc::Receiver<Queued>,
    shared: Arc<Shared>,
    reader: tokio::task::JoinHandle<()>,
) {
    while let Some(first) = queue.recv().await {
        let mut out = shared.out.lock().await;
        let done = write_queued(&mut out, first, &mut queue, &shared.queued).await;
        if done.is_err() || shared.pending.lock().expect("never poisoned").is_none() {
            break;
        }
    }
    reader.abort();
    shared.pending.lock().expect("never poisoned").take();
    // The other side hears of it though others still know of this connection; if it is gone, it need not.
    let _ = shared.out.lock().await.write.get_mut().shutdown().await;
}

/// Writes all that is queued.
async fn write_queued(
    out: &mut Out,
    first: Queued,
    queue: &mut mpsc::Receiver<Queued>,
    queued: &AtomicUsize,
) -> io::Result<()> {
    if let Some(rest) = out.rest.take() {
        out.put(rest).await?;
    }
    let mut next = Some(first);
    let mut written = 0;
    while let Some(frame) = next {
        out.put(frame).await?;
        written += 1;
        next = queue.try_recv().ok();
    }
    out.write.flush().await?;
    queued.fetch_sub(written, Ordering::AcqRel);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::here;
    use common::ChunkHandle;
    use common::limits::PIECE_BYTES_MAX;
    use common::wire::client_chunk::ClientChunk;
    use std::ops::Range;
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    const LIMIT: Duration = Duration::from_secs(30);
    /// Threads and tasks that send, and how many frames each.
    const SENDERS: u64 = 3;
    const FRAMES: u64 = 1000;
    /// Of these, those that one thread sends at first.
    const ALONE: u64 = 400;

    /// What a sender sends as its n-th frame: of few bytes mostly, sometimes of more than a socket takes at once.
    fn content(sender: u64, n: u64) -> Vec<u8> {
        let len = if n % 4 == 1 { PIECE_BYTES_MAX } else { 24 + n as usize % 100 };
        let mut bytes = [sender.to_le_bytes(), n.to_le_bytes()].concat();
        bytes.resize(len, (sender * 31 + n) as u8);
        bytes
    }

    /// Where connections come in, over a unix socket or TCP.
    type Listeners = (TcpListener, Option<here::Listener>);

    async fn listen(near: bool) -> (String, Listeners) {
        let far = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = far.local_addr().expect("an address");
        (addr.to_string(), (far, near.then(|| here::Listener::new(addr).expect("the name is free"))))
    }

    /// The other side of a connection, which has answered the greeting.
    async fn greet((far, near): Listeners) -> BufReader<TcpStream> {
        let stream = here::accept_any(&far, &near).await.expect("a connection");
        stream.set_nonblocking(true).expect("it is a socket");
        let mut stream = BufReader::new(TcpStream::from_std(stream).expect("it does not block"));
        let ReadFrame::Frame(_) = read_frame(&mut stream).await else { panic!("no greeting") };
        let hello = HelloOk { cluster: ClusterId(7), version: 0 };
        let greeting = wire::frame(ClusterId(7), 0, 0, &hello, 0);
        stream.get_mut().write_all(&greeting).await.expect("it is written");
        stream
    }

    /// Threads write by themselves, tasks leave it to the connection's task: frames stay whole, and those of one
    /// sender in order, also where the socket takes only a part.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn frames_stay_whole_and_in_order_whoever_writes_them() {
        for near in [false, true] {
            frames_stay_whole_and_in_order(near).await;
        }
    }

    async fn frames_stay_whole_and_in_order(near: bool) {
        let (addr, listeners) = listen(near).await;
        let (read, may_read) = oneshot::channel();
        let other_side = tokio::spawn(async move {
            let mut stream = greet(listeners).await;
            may_read.await.expect("it is told");
            let mut next = [0; 2 * SENDERS as usize];
            for _ in 0..2 * SENDERS * FRAMES {
                let ReadFrame::Frame(frame) = read_frame(&mut stream).await else { panic!("no frame") };
                let sender = u64::from_le_bytes(frame.payload[..8].try_into().expect("8 bytes"));
                let n = next[sender as usize];
                next[sender as usize] += 1;
                assert!(frame.payload[..] == content(sender, n)[..], "frame {n} of sender {sender}");
            }
            assert_eq!(stream.read(&mut [0]).await.expect("it is closed in order"), 0);
        });
        let conn = Conn::dial(&addr, Caller::Client, ClusterId(7), LIMIT).await.expect("it answers");
        async fn send(conn: Conn, sender: u64, which: Range<u64>) {
            for n in which {
                let payload = content(sender, n);
                let (a, b) = payload.split_at(10);
                let payload = vec![Bytes::copy_from_slice(a), Bytes::copy_from_slice(b)];
                let question = ClientChunk::Read { handle: ChunkHandle(n), offset: 0, len: 0, stale: false };
                conn.send(&question, 0, payload).await.expect("it is sent");
            }
        }
        // At first one thread alone, until the socket is full.
        let runtime = tokio::runtime::Handle::current();
        let (alone, first) = (conn.clone(), runtime.clone());
        std::thread::spawn(move || first.block_on(send(alone, 0, 0..ALONE)))
            .join()
            .expect("it does not panic");
        assert_ne!(conn.shared.queued.load(Ordering::Acquire), 0, "the socket has taken everything");
        read.send(()).expect("it waits");
        let mut threads = vec![];
        for sender in 0..SENDERS {
            let which = if sender == 0 { ALONE..FRAMES } else { 0..FRAMES };
            let (conn, task, runtime) = (conn.clone(), conn.clone(), runtime.clone());
            let thread = which.clone();
            threads.push(std::thread::spawn(move || runtime.block_on(send(conn, sender, thread))));
            tokio::spawn(send(task, SENDERS + sender, 0..FRAMES));
        }
        drop(conn);
        tokio::time::timeout(LIMIT, other_side).await.expect("in time").expect("it does not panic");
        threads.into_iter().for_each(|thread| thread.join().expect("it does not panic"));
    }

    /// What was queued and is not written yet is not overtaken, even if nobody holds the socket just then.
    #[tokio::test]
    async fn nothing_goes_past_what_is_queued() {
        let (addr, listeners) = listen(true).await;
        let (dialled, mut stream) =
            tokio::join!(Conn::dial(&addr, Caller::Client, ClusterId(7), LIMIT), greet(listeners));
        let conn = dialled.expect("it answers");
        let ask = |n| ClientChunk::Stat { handle: ChunkHandle(n) };
        assert!(tokio::task::try_id().is_none(), "this is no task");
        let held = conn.shared.out.try_lock().expect("nothing is written");
        let first = conn.try_send(&ask(1), 0, vec![]).expect("it is open");
        // The connection's task has not run since: all of this is one step.
        drop(held);
        let second = conn.try_send(&ask(2), 0, vec![]).expect("it is open");
        assert!(first.is_some() && second.is_some(), "there is room");
        for n in 1..=2 {
            let frame = tokio::time::timeout(LIMIT, read_frame(&mut stream)).await.expect("in time");
            let ReadFrame::Frame(frame) = frame else { panic!("no frame") };
            assert_eq!(wire::decode::<ClientChunk>(&frame.body).expect("it is one"), ask(n));
        }
    }
}
