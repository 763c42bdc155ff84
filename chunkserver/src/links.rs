//! Connections to other stores: one for control, one for bulk, so that an Apply never waits
//! behind 256 KiB frames. Messages go one way; answers come on the other's own connections.

use crate::net::{Queue, Reader};
use crate::shard::Shard;
use crate::sock::Sock;
use bytes::Bytes;
use chunkserver_core::io::Input;
use common::StoreId;
use common::wire::chunk_chunk::Peer;
use common::wire::frame::Kind;
use common::wire::{self, Caller, Hello};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// Which of the two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    Control,
    Bulk,
}

/// A connection is made, and greeted, within this time.
const DIAL: Duration = Duration::from_millis(300);
/// After a failed dial, the next one waits.
const REDIAL: Duration = Duration::from_millis(50);

/// The connection that a message takes.
pub fn class_of(msg: &Peer) -> Class {
    match msg {
        Peer::Forward { .. } | Peer::Fetched { .. } => Class::Bulk,
        _ => Class::Control,
    }
}

/// Queues a message to another store; the connection is made when it is first needed.
pub fn send(shard: &Rc<Shard>, to: StoreId, msg: &Peer, data: Vec<Bytes>) {
    let class = class_of(msg);
    let len = data.iter().map(|d| d.len()).sum();
    let frame = wire::frame(shard.cluster, 0, 0, msg, len);
    let queue = shard.links.borrow().get(&(to, class)).cloned();
    let queue = match queue.filter(|q| !q.is_closed()) {
        Some(queue) => queue,
        None => {
            let queue = Rc::new(Queue::default());
            shard.links.borrow_mut().insert((to, class), queue.clone());
            tokio::task::spawn_local(run(shard.clone(), to, class, queue.clone()));
            queue
        }
    };
    queue.push(frame, data);
}

/// Keeps a connection: breaks are mended once at once, then reported.
async fn run(shard: Rc<Shard>, to: StoreId, class: Class, queue: Rc<Queue>) {
    match dial(&shard, to).await {
        Some(sock) => carry(&shard, sock, &queue).await,
        None => {
            queue.close();
            // Not hot: whoever sends next dials again.
            tokio::time::sleep(REDIAL).await;
            forget(&shard, to, class, &queue);
            return shard.feed(Input::PeerLost { peer: to });
        }
    }
    queue.close();
    forget(&shard, to, class, &queue);
    match dial(&shard, to).await {
        Some(sock) => {
            let queue = Rc::new(Queue::default());
            shard.links.borrow_mut().insert((to, class), queue.clone());
            tokio::task::spawn_local({
                let shard = shard.clone();
                async move {
                    carry(&shard, sock, &queue).await;
                    queue.close();
                    forget(&shard, to, class, &queue);
                    // It broke again: whether it can be mended is found out by the next message.
                    shard.feed(Input::PeerReset { peer: to });
                }
            });
            shard.feed(Input::PeerReset { peer: to });
        }
        None => shard.feed(Input::PeerLost { peer: to }),
    }
}

fn forget(shard: &Shard, to: StoreId, class: Class, queue: &Rc<Queue>) {
    let mut links = shard.links.borrow_mut();
    if links.get(&(to, class)).is_some_and(|q| Rc::ptr_eq(q, queue)) {
        links.remove(&(to, class));
    }
}

async fn dial(shard: &Rc<Shard>, to: StoreId) -> Option<Sock> {
    let addr = shard.table.borrow().get(&to).copied()?;
    let sock = Sock::connect(addr, DIAL, shard.engine).await.ok()?;
    let hello = wire::frame(shard.cluster, 0, 0, &Hello::new(Caller::Store(shard.id.get())), 0);
    sock.send_all(vec![hello.into()]).await.ok()?;
    // A hung process accepts, by its kernel, and never greets. The read must not be dropped.
    let greeted = Rc::new(Cell::new(false));
    tokio::task::spawn_local({
        let (greeted, sock) = (greeted.clone(), sock.clone());
        async move {
            tokio::time::sleep(DIAL).await;
            if !greeted.get() {
                sock.close();
            }
        }
    });
    let mut reader = Reader::new(sock.clone());
    let first = reader.frame().await.ok()??;
    greeted.set(true);
    (first.header.kind == Kind::HelloOk).then_some(sock)
}

/// Writes what is queued until the connection ends. Nothing is ever sent back on it, so a read
/// ends when the other side does.
async fn carry(_shard: &Rc<Shard>, sock: Sock, queue: &Rc<Queue>) {
    let reader = tokio::task::spawn_local({
        let (sock, queue) = (sock.clone(), queue.clone());
        async move {
            let mut reader = Reader::new(sock.clone());
            while let Ok(Some(_)) = reader.frame().await {}
            queue.close();
        }
    });
    queue.write_to(&sock).await;
    let _ = reader.await;
}
