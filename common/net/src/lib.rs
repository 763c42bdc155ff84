//! Framed connections over tokio: dial, call, serve, and who of the masters leads. For masters, clients and the chunkservers'
//! control ports; never for a shard's data port, of which only
//! the sockets come from here. And what masters and chunkservers tell the file system of their disk.

mod conn;
pub mod disk;
pub mod files;
pub mod here;
mod masters;
mod progress;
mod serve;
mod stream;
mod tune;

pub use conn::{Conn, NetError, Payload};
pub use masters::{Masters, Unanswered, Wait};
pub use progress::{Patience, Progress};
pub use serve::{Handler, Reply, Served, serve};
pub use tune::{listen, socket, time_namespace, tune};

use bytes::Bytes;
use common::Code;
use common::wire::frame::{HEADER_BYTES, Header};
use tokio::io::{AsyncRead, AsyncReadExt};

/// A frame as it was received: header and body verified, the payload as it came.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The header.
    pub header: Header,
    /// The body; its checksum matches the header's.
    pub body: Bytes,
    /// The payload; its checksums are in the body.
    pub payload: Bytes,
}

/// What came of reading a frame.
pub(crate) enum ReadFrame {
    /// A frame.
    Frame(Frame),
    /// The other side closed the connection between two frames, or the connection broke.
    Closed,
    /// What came is no frame; nothing after it can be trusted.
    Bad(Code),
}

pub(crate) async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> ReadFrame {
    let mut head = [0; HEADER_BYTES];
    if stream.read_exact(&mut head).await.is_err() {
        return ReadFrame::Closed;
    }
    let header = match Header::decode(&head) {
        Ok(header) => header,
        Err(code) => return ReadFrame::Bad(code),
    };
    let mut body = vec![0; header.body_len as usize];
    if stream.read_exact(&mut body).await.is_err() {
        return ReadFrame::Closed;
    }
    if let Err(code) = header.check_body(&body) {
        return ReadFrame::Bad(code);
    }
    let mut payload = vec![0; header.payload_len as usize];
    if stream.read_exact(&mut payload).await.is_err() {
        return ReadFrame::Closed;
    }
    ReadFrame::Frame(Frame { header, body: body.into(), payload: payload.into() })
}
