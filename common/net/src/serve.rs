//! The answering side: accepts, greets, hands requests to a handler, writes its answers.

use crate::stream::{self, ReadHalf, WriteHalf};
use crate::{Frame, Payload, ReadFrame, here, read_frame};
use common::limits::CONNS_MAX;
use common::wire::frame::Kind;
use common::wire::{self, Hello, HelloOk, Message};
use common::{ClusterId, Code, Refusal};
use socket2::SockRef;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, BufReader, BufWriter};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};

/// Requests of one connection that are handled at a time.
const IN_FLIGHT_MAX: usize = 1024;
/// A caller greets within this time.
const HELLO_LIMIT: Duration = Duration::from_secs(5);

/// An answer, encoded: what `Served::reply` makes.
pub struct Reply {
    kind_frame: Box<dyn FnOnce(ClusterId, u64) -> Vec<u8> + Send>,
    payload: Payload,
    snapshot: u64,
}

impl Reply {
    /// This message.
    pub fn new<M: Message + Send + 'static>(message: M, payload: Payload) -> Reply {
        let len = payload.iter().map(|p| p.len()).sum();
        let kind_frame = Box::new(move |cluster, request| wire::frame(cluster, request, 0, &message, len));
        Reply { kind_frame, payload, snapshot: 0 }
    }

    /// It comes after this snapshot.
    pub fn after(self, snapshot: u64) -> Reply {
        Reply { snapshot, ..self }
    }
}

impl From<Code> for Reply {
    fn from(code: Code) -> Reply {
        Reply::new(Refusal::from(code), vec![])
    }
}

/// The answer to a request, some time later.
pub type Served = Pin<Box<dyn Future<Output = Reply> + Send>>;

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    /// What the handler keeps of a connection.
    type State: Send;

    /// A connection begins.
    fn connected(&self) -> Self::State;

    /// A request. What is done before the future is returned is done in the order of the frames.
    fn handle(&self, state: &mut Self::State, frame: Frame) -> Served;
}

/// Serves connections, those from this machine over a unix socket, until the listener fails for good; it never does on
/// its own.
pub async fn serve<H: Handler>(listener: TcpListener, cluster: ClusterId, handler: Arc<H>) {
    if let Err(error) = crate::tune(SockRef::from(&listener)) {
        tracing::warn!(%error, "connections are not set up as they should be");
    }
    let here = listener.local_addr().ok().and_then(here::Listener::new);
    let files = crate::files::open_max();
    let conns = crate::files::conns_max(CONNS_MAX, files, 1);
    if conns < CONNS_MAX {
        tracing::warn!(
            files,
            conns,
            "few files may be open (ulimit -n): who comes when so many connections stand has to wait"
        );
    }
    let room = Arc::new(Semaphore::new(conns));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        match here::accept_any(&listener, &here).await.and_then(stream::split) {
            Ok(stream) => {
                let handler = handler.clone();
                tokio::spawn(async move {
                    connection(stream, cluster, handler).await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of descriptors, or the caller is gone already: go on, but not hot.
                tracing::debug!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection<H: Handler>((read, write): (ReadHalf, WriteHalf), cluster: ClusterId, handler: Arc<H>) {
    let mut read = BufReader::with_capacity(32 * 1024, read);
    let mut write = BufWriter::with_capacity(32 * 1024, write);
    let hello = match tokio::time::timeout(HELLO_LIMIT, read_frame(&mut read)).await {
        Ok(ReadFrame::Frame(frame)) => greet(&frame, cluster),
        Ok(ReadFrame::Bad(code)) => Err(code.into()),
        Ok(ReadFrame::Closed) | Err(_) => return,
    };
    let first = match &hello {
        Ok(version) => wire::frame(cluster, 0, 0, &HelloOk { cluster, version: *version }, 0),
        Err(refusal) => wire::frame(cluster, 0, 0, refusal, 0),
    };
    if write.write_all(&first).await.is_err() || write.flush().await.is_err() {
        return;
    }
    if hello.is_err() {
        return;
    }
    let (answers, queue) = mpsc::channel::<(Vec<u8>, Payload)>(IN_FLIGHT_MAX);
    let writer = tokio::spawn(write_answers(write, queue));
    let mut state = handler.connected();
    let in_flight = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    loop {
        let frame = match read_frame(&mut read).await {
            ReadFrame::Frame(frame) if frame.header.cluster == cluster => frame,
            ReadFrame::Frame(_) => {
                refuse_connection(&answers, cluster, Code::WrongCluster).await;
                break;
            }
            ReadFrame::Bad(code) => {
                refuse_connection(&answers, cluster, code).await;
                break;
            }
            ReadFrame::Closed => break,
        };
        let Ok(permit) = in_flight.clone().acquire_owned().await else {
            break;
        };
        let request = frame.header.request;
        let served = handler.handle(&mut state, frame);
        let answers = answers.clone();
        tokio::spawn(async move {
            let Reply { kind_frame, payload, snapshot } = served.await;
            // A connection that is gone takes no answers.
            let _ = answers.send((wire::stamp(kind_frame(cluster, request), snapshot), payload)).await;
            drop(permit);
        });
    }
    drop(answers);
    let _ = writer.await;
}

fn greet(frame: &Frame, cluster: ClusterId) -> Result<u16, Refusal> {
    if frame.header.kind != Kind::Hello {
        return Err(Code::Unexpected.into());
    }
    let theirs = frame.header.cluster;
    if theirs.0 != 0 && theirs != cluster {
        return Err(Refusal::new(Code::WrongCluster, format!("caller is of {theirs}, this is {cluster}")));
    }
    let hello: Hello = wire::decode(&frame.body)?;
    hello.agree()
}

async fn refuse_connection(answers: &mpsc::Sender<(Vec<u8>, Payload)>, cluster: ClusterId, code: Code) {
    // Best effort: the connection closes either way.
    let _ = answers.send((wire::frame(cluster, 0, 0, &Refusal::from(code), 0), vec![])).await;
}

async fn write_answers(mut write: BufWriter<WriteHalf>, mut queue: mpsc::Receiver<(Vec<u8>, Payload)>) {
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
        if done.is_err() {
            // The reader notices by itself; senders find the queue closed.
            return;
        }
    }
    let _ = write.shutdown().await;
}
