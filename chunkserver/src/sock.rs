//! Sockets of a shard: on the ring, or on tokio where io_uring is forbidden.

use crate::buf::AlignedBuf;
use crate::disk::Engine;
use crate::ring;
use bytes::Bytes;
use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::Duration;

/// A connection.
#[derive(Clone)]
pub enum Sock {
    /// On the ring.
    Ring(Rc<TcpStream>),
    /// On tokio.
    Tokio(Rc<tokio::net::TcpStream>),
}

/// Most parts of one send.
const PARTS_MAX: usize = 64;

impl Sock {
    /// A connection that is made.
    pub fn new(stream: TcpStream, engine: Engine) -> io::Result<Sock> {
        Ok(match engine {
            Engine::Uring => {
                // The ring waits where a socket that does not block would give up.
                stream.set_nonblocking(false)?;
                Sock::Ring(Rc::new(stream))
            }
            Engine::Threads => {
                stream.set_nonblocking(true)?;
                Sock::Tokio(Rc::new(tokio::net::TcpStream::from_std(stream)?))
            }
        })
    }

    /// Connects within a time; over a unix socket if that is on this machine.
    pub async fn connect(addr: SocketAddr, limit: Duration, engine: Engine) -> io::Result<Sock> {
        if let Some(stream) = common_net::here::connect(addr) {
            return Sock::new(stream, engine);
        }
        let dial = move || {
            let socket = common_net::socket(addr)?;
            socket.connect_timeout(&addr.into(), limit)?;
            io::Result::Ok(socket.into())
        };
        let stream = tokio::task::spawn_blocking(dial).await.map_err(io::Error::other)??;
        Sock::new(stream, engine)
    }

    /// Receives into `buf[from..to]`: something, or all of it if `all`; 0 at the end.
    pub async fn recv(
        &self,
        buf: AlignedBuf,
        range: (usize, usize),
        all: bool,
    ) -> (io::Result<usize>, AlignedBuf) {
        match self {
            Sock::Ring(stream) => ring::recv(stream.clone(), buf, range, all).await,
            Sock::Tokio(stream) => recv_tokio(stream, buf, range, all).await,
        }
    }

    /// Sends all of this.
    pub async fn send_all(&self, mut data: Vec<Bytes>) -> io::Result<()> {
        data.retain(|part| !part.is_empty());
        while !data.is_empty() {
            let rest = data.split_off(data.len().min(PARTS_MAX));
            let sent;
            (sent, data) = match self {
                Sock::Ring(stream) => ring::send(stream.clone(), data).await,
                Sock::Tokio(stream) => send_tokio(stream, data).await,
            };
            let mut sent = sent?;
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            while sent > 0 {
                let n = sent.min(data[0].len());
                data[0] = data[0].slice(n..);
                sent -= n;
                if data[0].is_empty() {
                    data.remove(0);
                }
            }
            data.extend(rest);
        }
        Ok(())
    }

    /// Ends both directions: whoever reads or writes is woken.
    pub fn close(&self) {
        // Best effort: it may be closed already.
        let _ = match self {
            Sock::Ring(stream) => stream.shutdown(std::net::Shutdown::Both),
            Sock::Tokio(stream) => socket2::SockRef::from(&**stream).shutdown(std::net::Shutdown::Both),
        };
    }
}

async fn recv_tokio(
    stream: &tokio::net::TcpStream,
    mut buf: AlignedBuf,
    (from, to): (usize, usize),
    all: bool,
) -> (io::Result<usize>, AlignedBuf) {
    let mut at = from;
    loop {
        if let Err(e) = stream.readable().await {
            return (Err(e), buf);
        }
        match stream.try_read(&mut buf[at..to]) {
            Ok(0) => return (Ok(at - from), buf),
            Ok(n) => at += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) => return (Err(e), buf),
        }
        if !all || at == to {
            return (Ok(at - from), buf);
        }
    }
}

async fn send_tokio(stream: &tokio::net::TcpStream, data: Vec<Bytes>) -> (io::Result<usize>, Vec<Bytes>) {
    loop {
        if let Err(e) = stream.writable().await {
            return (Err(e), data);
        }
        let parts: Vec<IoSlice> = data.iter().map(|b| IoSlice::new(b)).collect();
        match stream.try_write_vectored(&parts) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            result => return (result, data),
        }
    }
}

/// Where connections come in.
pub enum Listener {
    /// On the ring.
    Ring(Rc<std::net::TcpListener>),
    /// On tokio.
    Tokio(tokio::net::TcpListener),
}

impl Listener {
    /// Takes over a bound listener.
    pub fn new(listener: std::net::TcpListener, engine: Engine) -> io::Result<Listener> {
        Ok(match engine {
            Engine::Uring => Listener::Ring(Rc::new(listener)),
            Engine::Threads => {
                listener.set_nonblocking(true)?;
                Listener::Tokio(tokio::net::TcpListener::from_std(listener)?)
            }
        })
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<TcpStream> {
        match self {
            Listener::Ring(listener) => ring::accept(listener.clone()).await,
            Listener::Tokio(listener) => listener.accept().await?.0.into_std(),
        }
    }
}
