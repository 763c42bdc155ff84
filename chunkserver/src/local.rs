//! Clients on this machine: they get the board and the segments of a store, for reading, over a unix socket whose
//! name only this network namespace sees (`common::wire::local`). Who runs as another user than this process, or
//! root, gets nothing.
//!
//! The listener is tokio's, not the ring's: when the process ends, its connections are closed before its parent
//! hears of it, so before anybody can prove its death.

use crate::disk::{open_cached, path_of};
use chunkserver_core::io::FileRef;
use common::wire::local::{ASK_BYTES, BOARD_BYTES, Post, Wanted, slot_at, socket_name};
use common::{ClusterId, StoreId};
use rustix::fs::MemfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net as unix;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Who connects says within this what is wanted.
const ASK_LIMIT: Duration = Duration::from_secs(5);

/// What a store says to clients on this machine. A file in memory: they read it like any other.
pub struct Board(File);

impl Board {
    /// An empty one, which says that nothing holds.
    pub fn new() -> io::Result<Board> {
        let file = File::from(rustix::fs::memfd_create("cairn-board", MemfdFlags::CLOEXEC)?);
        file.set_len(BOARD_BYTES)?;
        Ok(Board(file))
    }

    /// Posts something. Clients see it from the moment on at which this returns.
    pub fn post(&self, post: Post) {
        let done = match post {
            Post::Head(head) => self.0.write_all_at(&head.encode(), 0),
            Post::Slot { slot, stamp } => self.0.write_all_at(&stamp.to_le_bytes(), slot_at(slot)),
        };
        // A store that cannot take back what it told must not go on.
        done.expect("a file in memory of fixed size can be written to");
    }
}

/// Serves clients on this machine until it is dropped.
pub async fn serve(cluster: ClusterId, store: StoreId, dir: PathBuf, board: Arc<Board>, conns_max: usize) {
    let listener = match listen(cluster, store) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, %store, "clients on this machine read through the network");
            return std::future::pending().await;
        }
    };
    let room = Arc::new(Semaphore::new(conns_max));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(place) = room.clone().try_acquire_owned() else { continue };
        let (dir, board) = (dir.clone(), board.clone());
        tokio::spawn(async move {
            if let Err(error) = answer(stream, &dir, &board).await {
                tracing::debug!(%error, %store, "a client on this machine was not served");
            }
            drop(place);
        });
    }
}

fn listen(cluster: ClusterId, store: StoreId) -> io::Result<UnixListener> {
    let name = unix::SocketAddr::from_abstract_name(socket_name(cluster, store))?;
    let listener = unix::UnixListener::bind_addr(&name)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// One connection, to its end.
async fn answer(mut stream: UnixStream, dir: &Path, board: &Board) -> io::Result<()> {
    common_net::here::check_user(&stream)?;
    let mut asked = [0; ASK_BYTES];
    tokio::time::timeout(ASK_LIMIT, stream.read_exact(&mut asked)).await.map_err(io::Error::from)??;
    let wanted = Wanted::decode(&asked).map_err(|code| io::Error::other(code.text()))?;
    let answer = wanted.answer(common_net::time_namespace());
    match wanted {
        Wanted::Board => send(&stream, &answer, &board.0)?,
        Wanted::Segment(n) => send(&stream, &answer, &open_cached(&path_of(dir, FileRef::Extents(n)))?)?,
    }
    // It stands until the client goes; that nothing more comes is all that is expected.
    let more = stream.read(&mut [0]).await?;
    if more == 0 { Ok(()) } else { Err(io::Error::other("it asked twice")) }
}

/// Sends a descriptor. A new connection has room for that.
fn send(stream: &UnixStream, said: &[u8], file: &File) -> io::Result<()> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut descriptors = SendAncillaryBuffer::new(&mut room);
    let files = [file.as_fd()];
    assert!(descriptors.push(SendAncillaryMessage::ScmRights(&files)), "there is room for one");
    let sent = sendmsg(stream, &[IoSlice::new(said)], &mut descriptors, SendFlags::NOSIGNAL)?;
    if sent == said.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}
