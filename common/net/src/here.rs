//! Connections within one network namespace: over a unix socket with an abstract name, which costs less than loopback
//! TCP (docs/decisions/0028). What is said on them is the same; who cannot have one takes TCP.

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::io;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net;

/// Bytes on their way on one connection, in one direction; the system may allow less. A few pieces of a write: with
/// less its sender is woken for each half of one.
const SEND_BUFFER_BYTES: usize = 1024 * 1024;

/// Under which name the server of an address listens. Abstract names are a network namespace's own, as addresses are.
fn name(addr: SocketAddr) -> String {
    format!("cairn/{addr}")
}

/// Where callers of the same network namespace are waited for.
pub struct Listener(tokio::net::UnixListener);

impl Listener {
    /// Listens for callers of this address, which is bound. Without one they take TCP.
    pub fn new(addr: SocketAddr) -> Option<Listener> {
        let listen = || {
            let listener = net::UnixListener::bind_addr(&net::SocketAddr::from_abstract_name(name(addr))?)?;
            listener.set_nonblocking(true)?;
            tokio::net::UnixListener::from_std(listener)
        };
        listen()
            .inspect_err(|error| tracing::warn!(%error, %addr, "callers on this machine will use TCP"))
            .ok()
            .map(Listener)
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<TcpStream> {
        connected(self.0.accept().await?.0.into_std()?.into())
    }
}

/// The next connection, if there is a listener.
pub async fn accept(listener: &Option<Listener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// The next connection, from anywhere.
pub(crate) async fn accept_any(
    far: &tokio::net::TcpListener,
    near: &Option<Listener>,
) -> io::Result<TcpStream> {
    tokio::select! {
        far = far.accept() => far?.0.into_std(),
        near = accept(near) => near,
    }
}

/// Connects to the server of an address if it is in this network namespace; it does not wait.
pub fn connect(addr: SocketAddr) -> Option<TcpStream> {
    dial(addr).ok().or_else(|| {
        // It may listen on all addresses, of which this is one if it can be bound.
        UdpSocket::bind((addr.ip(), 0)).ok()?;
        let any = match addr {
            SocketAddr::V4(_) => SocketAddr::from(([0; 4], addr.port())),
            SocketAddr::V6(_) => SocketAddr::from(([0u16; 8], addr.port())),
        };
        dial(any).ok()
    })
}

fn dial(addr: SocketAddr) -> io::Result<TcpStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new_abstract_name(name(addr).as_bytes())?)?;
    // Anybody can listen under a name; behind a port that a server has bound there is only that server.
    check_user(&socket)?;
    connected(socket)
}

/// Refuses a unix socket whose other side runs neither as root nor as the user of this process.
pub fn check_user(socket: impl AsFd) -> io::Result<()> {
    let user = sockopt::socket_peercred(socket)?.uid;
    if user.is_root() || user == rustix::process::geteuid() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "the other side runs as another user"))
}

/// A connection, as the type that stands for those over TCP: what is done with one - it is read, written, waited for and
/// shut down - is the same for both.
fn connected(socket: OwnedFd) -> io::Result<TcpStream> {
    sockopt::set_socket_send_buffer_size(socket.as_fd(), SEND_BUFFER_BYTES)?;
    Ok(TcpStream::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    fn is_unix(stream: &TcpStream) -> bool {
        sockopt::socket_domain(stream).expect("it is a socket") == AddressFamily::UNIX
    }

    #[tokio::test]
    async fn a_server_here_is_reached_by_its_address_or_any() {
        for ip in ["127.0.0.1", "0.0.0.0"] {
            let port = TcpListener::bind((ip, 0)).expect("a port");
            let addr = port.local_addr().expect("an address");
            let dialled = SocketAddr::from(([127, 0, 0, 1], addr.port()));
            assert!(connect(dialled).is_none(), "nobody listens yet");
            let listener = Listener::new(addr).expect("the name is free");
            assert!(Listener::new(addr).is_none(), "it is taken");
            let mut ours = connect(dialled).expect("it listens");
            let mut theirs = listener.accept().await.expect("a connection");
            assert!(is_unix(&ours) && is_unix(&theirs));
            ours.write_all(b"hello").expect("there is room");
            let mut heard = [0; 5];
            theirs.read_exact(&mut heard).expect("it is there");
            assert_eq!(&heard, b"hello");
            drop(listener);
            assert!(connect(dialled).is_none(), "it is gone");
        }
    }

    /// An address of another machine is never looked for under the name of all addresses of this one.
    #[tokio::test]
    async fn an_address_elsewhere_is_not_here() {
        let any = TcpListener::bind("0.0.0.0:0").expect("a port").local_addr().expect("an address");
        let _listener = Listener::new(any).expect("the name is free");
        assert!(connect(SocketAddr::from(([192, 0, 2, 1], any.port()))).is_none());
    }

    /// Anybody may listen under the name of an address; only root's and our own word is taken for it.
    #[test]
    fn another_user_that_listens_is_not_the_server() {
        use std::os::unix::process::CommandExt;
        use std::process::{Command, Stdio};
        if !rustix::process::geteuid().is_root() {
            return println!("skipped: needs root");
        }
        const NOBODY: u32 = 65534;
        const SCRIPT: &str = "use Socket; socket(S, AF_UNIX, SOCK_STREAM, 0) or die; \
            bind(S, pack('Sa*', AF_UNIX, qq(\\0$ARGV[0]))) or die; listen(S, 5) or die; syswrite(STDOUT, 'x'); <STDIN>;";
        let port = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = port.local_addr().expect("an address");
        for (user, trusted) in [(0, true), (NOBODY, false)] {
            let mut squatter = Command::new("perl");
            squatter.args(["-e", SCRIPT, &name(addr)]).uid(user).current_dir("/");
            let mut squatter =
                squatter.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("perl is there");
            let told = squatter.stdout.as_mut().expect("a pipe").read_exact(&mut [0]);
            assert!(told.is_ok(), "it does not listen");
            assert_eq!(connect(addr).is_some(), trusted, "user {user}");
            drop(squatter.stdin.take());
            squatter.wait().expect("it ends");
        }
    }
}
