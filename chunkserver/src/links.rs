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
/// After a failed dial the masters may know another address within this; the next dial waits
/// until they do, or so long.
const NEW_ADDRESS: Duration = Duration::from_millis(100);

/// Queues a message to another store; the connection is made when it is first needed.
pub fn send(shard: &Rc<Shard>, to: StoreId, msg: &Peer, data: Vec<Bytes>) {
    let class = if msg.is_bulk() { Class::Bulk } else { Class::Control };
    let len = data.iter().map(|d| d.len()).sum();
    let frame = shard.frame(0, msg, len);
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

/// Keeps a connection: a break is mended once, and reported. A store that cannot be reached where it is said to be
/// is reported at once; what waits for it goes out if the masters soon know another address.
async fn run(shard: Rc<Shard>, to: StoreId, class: Class, queue: Rc<Queue>) {
    let mut queue = queue;
    let mut mended = false;
    loop {
        let sock = match dial(&shard, to).await {
            Some(sock) => sock,
            None => {
                // Who has registered since the masters last named the stores is unknown, not lost.
                let known = shard.table.borrow().contains_key(&to);
                if known {
                    shard.feed(Input::PeerLost { peer: to });
                }
                let Some(sock) = dial_anew(&shard, to).await else {
                    queue.close();
                    forget(&shard, to, class, &queue);
                    shard.lost.borrow_mut().insert((to, class));
                    // Once more, for what was queued meanwhile.
                    return shard.feed(Input::PeerLost { peer: to });
                };
                mended = known;
                sock
            }
        };
        // What was queued for it before this connection was begun may be lost, too.
        if shard.lost.borrow_mut().remove(&(to, class)) || mended {
            shard.feed(Input::PeerReset { peer: to });
        }
        carry(&sock, &queue).await;
        queue.close();
        forget(&shard, to, class, &queue);
        if mended {
            // It broke again: whether it can be mended is found out by the next message.
            return shard.feed(Input::PeerReset { peer: to });
        }
        mended = true;
        queue = Rc::new(Queue::default());
        shard.links.borrow_mut().insert((to, class), queue.clone());
    }
}

/// A store that was started anew has another address: a connection to it, if the masters say so.
async fn dial_anew(shard: &Rc<Shard>, to: StoreId) -> Option<Sock> {
    let before = shard.table.borrow().get(&to).copied();
    shard.table_is_stale();
    // Not hot: whether it comes or not, whoever sends next dials again after this.
    let _ = tokio::time::timeout(NEW_ADDRESS, async {
        while shard.table.borrow().get(&to).copied() == before {
            shard.table_told.notified().await;
        }
    })
    .await;
    let now = shard.table.borrow().get(&to).copied();
    if now == before { None } else { dial(shard, to).await }
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
async fn carry(sock: &Sock, queue: &Rc<Queue>) {
    let reader = tokio::task::spawn_local({
        let (sock, queue) = (sock.clone(), queue.clone());
        async move {
            let mut reader = Reader::new(sock.clone());
            while let Ok(Some(_)) = reader.frame().await {}
            queue.close();
        }
    });
    queue.write_to(sock).await;
    let _ = reader.await;
}
