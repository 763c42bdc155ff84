//! How sockets are set up, before they are connected.

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};

/// Congestion controls that are asked for, the best first; if none is to be had, the system's stays. They send what there
/// is to send: BBR, a common default, paces each connection by timers and half fills a fast short link
/// (docs/perf/0002).
const CONGESTION: [&[u8]; 2] = [b"cubic", b"reno"];

/// Sets up a socket that is to be connected, or listened on: what comes in inherits it.
pub fn tune(socket: SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    // The system may know neither, or forbid both.
    let _ = CONGESTION.iter().any(|name| socket.set_tcp_congestion(name).is_ok());
    Ok(())
}

/// A socket for a connection to an address.
pub fn socket(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    tune(SockRef::from(&socket))?;
    Ok(socket)
}

/// Listens on an address.
pub fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(addr)?;
    tune(SockRef::from(&listener))?;
    Ok(listener)
}

/// The number of this process's time namespace: clocks that count from boot agree within one. 0 where the kernel has
/// no such thing.
pub fn time_namespace() -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self/ns/time").map_or(0, |namespace| namespace.ino())
}
