//! Connections that come in: sockets to frames to the shard, answers back.

use crate::buf::AlignedBuf;
use crate::shard::Shard;
use crate::sock::Sock;
use bytes::Bytes;
use chunkserver_core::io::Input;
use common::limits::{CONN_ANSWERS_BYTES_MAX, CONN_QUEUE_BYTES_MAX};
use common::wire::chunk_chunk::Peer;
use common::wire::client_chunk::{ClientChunk, ClientChunkReply};
use common::wire::frame::{HEADER_BYTES, Header, Kind};
use common::wire::{self, Caller, Hello, HelloOk};
use common::{Code, Epoch, Refusal};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Bytes that are received at once where small messages are expected.
const SMALL_READ: usize = 28 * 1024;
/// And where a large payload probably follows the header: what comes with it must be copied.
const LARGE_READ: usize = 4096;
/// Bytes that a connection may hold before they are consumed: at first, and once more has come than fits. Connections
/// can be thousands, and most of them are quiet.
const BUFFER: (usize, usize) = (2 * LARGE_READ, SMALL_READ + LARGE_READ);
/// A frame with more payload than this is a large one.
const LARGE_PAYLOAD: usize = 16 * 1024;
const _: () = assert!(LARGE_PAYLOAD <= SMALL_READ);
/// A read that takes longer does not count any more: nobody waits for it.
const READ_MAX: Duration = Duration::from_secs(10);
/// A caller greets within this time, in milliseconds.
const HELLO_MS: u64 = 5000;

/// A frame as it was received: header and body verified, the payload as it came.
pub struct Frame {
    pub header: Header,
    pub body: Vec<u8>,
    pub payload: Bytes,
}

/// Reads frames from a socket.
pub struct Reader {
    sock: Sock,
    /// Received and not consumed: `buf[from..to]`.
    buf: AlignedBuf,
    from: usize,
    to: usize,
    read: usize,
    /// The last bytes that came were as many as there was room for.
    filled: bool,
}

impl Reader {
    pub fn new(sock: Sock) -> Reader {
        Reader { sock, buf: AlignedBuf::new(BUFFER.0), from: 0, to: 0, read: LARGE_READ, filled: false }
    }

    /// The next frame; `Ok(None)` when the connection ended between two.
    pub async fn frame(&mut self) -> Result<Option<Frame>, Code> {
        if !self.fill(HEADER_BYTES).await {
            return Ok(None);
        }
        let head: &[u8; HEADER_BYTES] =
            self.buf[self.from..self.from + HEADER_BYTES].try_into().expect("64 bytes");
        let header = Header::decode(head)?;
        self.from += HEADER_BYTES;
        let Some(body) = self.take(header.body_len as usize).await else {
            return Ok(None);
        };
        header.check_body(&body)?;
        let len = header.payload_len as usize;
        let Some(payload) = self.payload(len).await else {
            return Ok(None);
        };
        self.read = if len > LARGE_PAYLOAD { LARGE_READ } else { SMALL_READ };
        Ok(Some(Frame { header, body, payload }))
    }

    /// At least `n` bytes in the buffer; `n` is small.
    async fn fill(&mut self, n: usize) -> bool {
        while self.to - self.from < n {
            let more = if self.filled || n > BUFFER.0 { BUFFER.1 } else { BUFFER.0 };
            if more > self.buf.len() {
                let old = std::mem::replace(&mut self.buf, AlignedBuf::new(more));
                self.buf[..self.to - self.from].copy_from_slice(&old[self.from..self.to]);
            } else {
                self.buf.copy_within(self.from..self.to, 0);
            }
            (self.from, self.to) = (0, self.to - self.from);
            let end = (self.to + self.read.max(n)).min(self.buf.len());
            let buf = std::mem::replace(&mut self.buf, AlignedBuf::none());
            let (got, buf) = self.sock.recv(buf, (self.to, end), false).await;
            self.buf = buf;
            match got {
                Ok(n) if n > 0 => {
                    self.to += n;
                    self.filled |= self.to == self.buf.len();
                }
                _ => return false,
            }
        }
        true
    }

    async fn take(&mut self, n: usize) -> Option<Vec<u8>> {
        if n > SMALL_READ {
            return Some(self.payload(n).await?.to_vec());
        }
        self.few(n).await
    }

    /// So few bytes that the buffer has room for them.
    async fn few(&mut self, n: usize) -> Option<Vec<u8>> {
        if !self.fill(n).await {
            return None;
        }
        let bytes = self.buf[self.from..self.from + n].to_vec();
        self.from += n;
        Some(bytes)
    }

    /// A large payload goes into a buffer of its own, aligned for the disk. A small one may be in memory for long, until
    /// the next checkpoint, and takes no more there than it has.
    async fn payload(&mut self, len: usize) -> Option<Bytes> {
        if len == 0 {
            return Some(Bytes::new());
        }
        if len <= LARGE_PAYLOAD {
            return self.few(len).await.map(Bytes::from);
        }
        let mut payload = AlignedBuf::new(len);
        let here = (self.to - self.from).min(len);
        payload[..here].copy_from_slice(&self.buf[self.from..self.from + here]);
        self.from += here;
        let mut at = here;
        while at < len {
            let got;
            (got, payload) = self.sock.recv(payload, (at, len), true).await;
            match got {
                Ok(n) if n > 0 => at += n,
                _ => return None,
            }
        }
        Some(payload.freeze(len))
    }
}

/// Frames that wait to be written to a socket.
#[derive(Default)]
pub struct Queue {
    parts: RefCell<Vec<Bytes>>,
    bytes: Cell<usize>,
    /// Reads that are under way: their bytes, and when they began.
    reads: RefCell<BTreeMap<u64, (usize, Instant)>>,
    /// Bytes of them in all.
    reading: Cell<usize>,
    wake: Notify,
    fewer: Notify,
    closed: Cell<bool>,
}

impl Queue {
    /// Queues a frame; too much of it closes the connection: whoever does not read is not served.
    pub fn push(&self, head: Vec<u8>, payload: Vec<Bytes>) {
        if self.closed.get() {
            return;
        }
        let mut parts = self.parts.borrow_mut();
        self.bytes.set(self.bytes.get() + head.len() + payload.iter().map(|p| p.len()).sum::<usize>());
        parts.push(head.into());
        parts.extend(payload);
        drop(parts);
        if self.bytes.get() > CONN_QUEUE_BYTES_MAX {
            self.close();
        }
        self.wake.notify_one();
    }

    /// No more frames.
    pub fn close(&self) {
        self.closed.set(true);
        self.wake.notify_one();
        self.fewer.notify_one();
    }

    /// So many bytes will be read for a request.
    fn reads(&self, request: u64, bytes: usize) {
        let before = self.reads.borrow_mut().insert(request, (bytes, Instant::now()));
        self.reading.set(self.reading.get() + bytes - before.map_or(0, |(bytes, _)| bytes));
    }

    /// A request is answered.
    pub fn answered(&self, request: u64) {
        if let Some((bytes, _)) = self.reads.borrow_mut().remove(&request) {
            self.reading.set(self.reading.get() - bytes);
            self.fewer.notify_one();
        }
    }

    /// Waits until few bytes are read for the other side, or wait for it to take them.
    async fn taken(&self) {
        while self.bytes.get() + self.reading.get() > CONN_ANSWERS_BYTES_MAX && !self.closed.get() {
            if tokio::time::timeout(READ_MAX, self.fewer.notified()).await.is_err() {
                self.reads.borrow_mut().retain(|_, (_, began)| began.elapsed() < READ_MAX);
                self.reading.set(self.reads.borrow().values().map(|(bytes, _)| bytes).sum());
            }
        }
    }

    /// Whether the connection is given up.
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Writes what is queued until the queue closes or the socket breaks.
    pub async fn write_to(&self, sock: &Sock) {
        loop {
            let parts = std::mem::take(&mut *self.parts.borrow_mut());
            if parts.is_empty() {
                if self.closed.get() {
                    break;
                }
                self.wake.notified().await;
                continue;
            }
            let bytes: usize = parts.iter().map(|p| p.len()).sum();
            let done = sock.send_all(gather(parts)).await;
            self.bytes.set(self.bytes.get() - bytes);
            self.fewer.notify_one();
            if done.is_err() {
                break;
            }
        }
        self.close();
        sock.close();
    }
}

/// Small parts that follow one another are joined: fewer for the kernel to walk.
fn gather(parts: Vec<Bytes>) -> Vec<Bytes> {
    const SMALL: usize = 4096;
    let mut out: Vec<Bytes> = vec![];
    let mut joined: Vec<u8> = vec![];
    for part in parts {
        if part.len() <= SMALL {
            joined.extend_from_slice(&part);
        } else {
            if !joined.is_empty() {
                out.push(std::mem::take(&mut joined).into());
            }
            out.push(part);
        }
    }
    if !joined.is_empty() {
        out.push(joined.into());
    }
    out
}

/// Serves one connection to its end.
pub async fn serve(shard: Rc<Shard>, sock: Sock) {
    let conn = shard.next_conn();
    let queue = Rc::new(Queue::default());
    let writer = tokio::task::spawn_local({
        let (queue, sock) = (queue.clone(), sock.clone());
        async move { queue.write_to(&sock).await }
    });
    shard.conns.borrow_mut().insert(conn, queue.clone());
    if let Err(code) = connection(&shard, conn, &queue, sock.clone()).await {
        queue.push(wire::frame(shard.cluster, 0, 0, &Refusal::from(code), 0), vec![]);
    }
    shard.conns.borrow_mut().remove(&conn);
    queue.close();
    // The writer ends by itself: the queue is closed.
    let _ = writer.await;
}

async fn connection(shard: &Rc<Shard>, conn: u64, queue: &Queue, sock: Sock) -> Result<(), Code> {
    let mut reader = Reader::new(sock.clone());
    // A caller that says nothing is hung up on; the read itself must not be dropped.
    let greeted = Rc::new(Cell::new(false));
    let watch = tokio::task::spawn_local({
        let (greeted, sock) = (greeted.clone(), sock);
        async move {
            tokio::time::sleep(std::time::Duration::from_millis(HELLO_MS)).await;
            if !greeted.get() {
                sock.close();
            }
        }
    });
    let Some(first) = reader.frame().await? else {
        return Ok(());
    };
    greeted.set(true);
    watch.abort();
    if first.header.kind != Kind::Hello {
        return Err(Code::Unexpected);
    }
    if first.header.cluster.0 != 0 && first.header.cluster != shard.cluster {
        return Err(Code::WrongCluster);
    }
    let hello: Hello = wire::decode(&first.body)?;
    let version = match hello.agree() {
        Ok(version) => version,
        Err(refusal) => {
            queue.push(wire::frame(shard.cluster, 0, 0, &refusal, 0), vec![]);
            return Ok(());
        }
    };
    queue.push(wire::frame(shard.cluster, 0, 0, &HelloOk { cluster: shard.cluster, version }, 0), vec![]);
    frames(shard, conn, queue, &hello.caller, &mut reader).await
}

/// Feeds what comes on a connection to the shard.
async fn frames(
    shard: &Rc<Shard>,
    conn: u64,
    queue: &Queue,
    caller: &Caller,
    reader: &mut Reader,
) -> Result<(), Code> {
    while let Some(frame) = reader.frame().await? {
        if frame.header.cluster != shard.cluster {
            return Err(Code::WrongCluster);
        }
        match (caller, frame.header.kind) {
            (Caller::Store(from), Kind::Peer) => {
                let msg: Peer = wire::decode(&frame.body)?;
                match verify_peer(&msg, &frame.payload) {
                    Ok(()) => {
                        let (from, snapshot) = (*from, frame.header.snapshot);
                        shard.feed(Input::Peer { from, snapshot, msg, data: frame.payload })
                    }
                    Err(code) => {
                        tracing::warn!(%from, %code, "a message that cannot be: dropped");
                        tracing::debug!(?msg, "that message");
                    }
                }
            }
            (_, Kind::ClientChunk) => {
                let msg: ClientChunk = wire::decode(&frame.body)?;
                let Header { request, epoch, snapshot, .. } = frame.header;
                match verify_client(&msg, &frame.payload) {
                    Ok(()) => {
                        if let ClientChunk::Read { len, .. } = msg {
                            queue.reads(request, len as usize);
                        }
                        let epoch = Epoch(epoch);
                        shard.feed(Input::Client { conn, request, epoch, snapshot, msg, data: frame.payload })
                    }
                    Err(code) => {
                        let refused = ClientChunkReply::Refused(code.into());
                        queue.push(wire::frame(shard.cluster, request, 0, &refused, 0), vec![]);
                    }
                }
                queue.taken().await;
            }
            _ => return Err(Code::Unexpected),
        }
        if queue.is_closed() {
            return Ok(());
        }
    }
    Ok(())
}

fn verify_client(msg: &ClientChunk, payload: &Bytes) -> Result<(), Code> {
    match msg {
        ClientChunk::Push { piece, .. } => check(piece, payload),
        ClientChunk::Write { inline: Some(piece), .. } => check(piece, payload),
        _ if payload.is_empty() => Ok(()),
        _ => Err(Code::Unexpected),
    }
}

fn verify_peer(msg: &Peer, payload: &Bytes) -> Result<(), Code> {
    if let Some(code) = msg.invalid() {
        return Err(code);
    }
    match msg {
        Peer::Forward { piece, .. } => check(piece, payload),
        Peer::Apply { inline: Some(piece), .. } => check(piece, payload),
        Peer::Fetched { piece: Some(piece), .. } => check(piece, payload),
        Peer::CopyData { piece: Some((_, piece)), .. } => check(piece, payload),
        _ if payload.is_empty() => Ok(()),
        _ => Err(Code::Unexpected),
    }
}

fn check(piece: &wire::Piece, payload: &Bytes) -> Result<(), Code> {
    match piece.invalid() {
        Some(code) => Err(code),
        None => piece.verify(payload),
    }
}
