//! The two directions of a connection. Each is waited for by itself, and room to write only when there was none: a unix
//! socket says that there is room whenever the other side has read something, which would wake whoever only waits
//! for answers (docs/perf/0011).

use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use std::io::{self, IoSlice, Read};
use std::net::{Shutdown, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// What comes in.
pub(crate) struct ReadHalf(AsyncFd<Arc<TcpStream>>);

/// What goes out. Dropped, it says that nothing more comes.
pub(crate) struct WriteHalf {
    stream: Arc<TcpStream>,
    /// While a write waits for room; of a descriptor of its own, since one can be waited for once.
    room: Option<AsyncFd<Arc<TcpStream>>>,
}

#[expect(deprecated, reason = "what takes its place is unsafe, for what does not keep its descriptor")]
fn waited_for(stream: Arc<TcpStream>, what: Interest) -> io::Result<AsyncFd<Arc<TcpStream>>> {
    AsyncFd::with_interest(stream, what)
}

/// The halves of a connection.
pub(crate) fn split(stream: TcpStream) -> io::Result<(ReadHalf, WriteHalf)> {
    stream.set_nonblocking(true)?;
    let stream = Arc::new(stream);
    let read = waited_for(stream.clone(), Interest::READABLE)?;
    Ok((ReadHalf(read), WriteHalf { stream, room: None }))
}

impl AsyncRead for ReadHalf {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context, buf: &mut ReadBuf) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            let room = buf.initialize_unfilled();
            let wanted = room.len();
            match ready.try_io(|stream| stream.get_ref().as_ref().read(room)) {
                Ok(Ok(n)) => {
                    // That was all there is, and what comes now is told.
                    if n > 0 && n < wanted {
                        ready.clear_ready();
                    }
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_nothing_there) => {}
            }
        }
    }
}

/// Writes to a connection. That the other side is gone is an error and no signal: that ends commands, and mounts, which
/// have it so for their output's sake.
fn put(stream: &TcpStream, parts: &[IoSlice]) -> io::Result<usize> {
    Ok(sendmsg(stream, parts, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?)
}

impl WriteHalf {
    /// Writes what there is room for, without waiting.
    pub(crate) fn try_write_vectored(&self, parts: &[IoSlice]) -> io::Result<usize> {
        put(&self.stream, parts)
    }
}

impl AsyncWrite for WriteHalf {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context, part: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(part)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
        parts: &[IoSlice],
    ) -> Poll<io::Result<usize>> {
        loop {
            let Some(room) = &self.room else {
                match self.try_write_vectored(parts) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        let stream = Arc::new(self.stream.try_clone()?);
                        self.room = Some(waited_for(stream, Interest::WRITABLE)?);
                    }
                    done => return Poll::Ready(done),
                }
                continue;
            };
            if let Ok(done) = ready!(room.poll_write_ready(cx))?.try_io(|s| put(s.get_ref(), parts)) {
                self.room = None;
                return Poll::Ready(done);
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.shutdown(Shutdown::Write))
    }
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        // Best effort: the connection may be gone already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}
