//! Operations on tokio-uring's ring. The driver owns what an operation uses until the kernel is
//! done with it, even if its future is dropped.

#![expect(unsafe_code, reason = "submission entries hold raw pointers")]

use crate::buf::AlignedBuf;
use bytes::Bytes;
use io_uring::{cqueue, opcode, squeue, types};
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

struct Keep<K>(std::marker::PhantomData<K>);

impl<K> OneshotOutputTransform for Keep<K> {
    type Output = (io::Result<usize>, K);
    type StoredData = K;

    fn transform_oneshot_output(self, data: K, cqe: cqueue::Entry) -> Self::Output {
        let result = match cqe.result() {
            n if n >= 0 => Ok(n as usize),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        };
        (result, data)
    }
}

/// Submits an operation and waits for it.
///
/// # Safety
/// Everything that `sqe` points to (descriptors, buffers) must be owned by `keep` and must not
/// move when `keep` does.
async unsafe fn submit<K: Unpin + 'static>(sqe: squeue::Entry, keep: K) -> (io::Result<usize>, K) {
    UnsubmittedOneshot::new(keep, Keep(std::marker::PhantomData), sqe).submit().await
}

/// Writes at an offset; durable when done if `durable`.
pub async fn write_at<F: AsRawFd + 'static>(
    file: Rc<F>,
    data: Bytes,
    offset: u64,
    durable: bool,
) -> io::Result<usize> {
    let flags = if durable { libc::RWF_DSYNC } else { 0 };
    let sqe = opcode::Write::new(types::Fd(file.as_raw_fd()), data.as_ptr(), data.len() as u32)
        .offset(offset)
        .rw_flags(flags as _)
        .build();
    // SAFETY: `keep` holds the file and the bytes; `Bytes` points to memory that does not move.
    unsafe { submit(sqe, (file, data)) }.await.0
}

/// Reads at an offset into the first `len` bytes of a buffer.
pub async fn read_at<F: AsRawFd + 'static>(
    file: Rc<F>,
    mut buf: AlignedBuf,
    len: usize,
    offset: u64,
) -> (io::Result<usize>, AlignedBuf) {
    assert!(len <= buf.len());
    let sqe =
        opcode::Read::new(types::Fd(file.as_raw_fd()), buf.as_mut_ptr(), len as u32).offset(offset).build();
    // SAFETY: `keep` holds the file and the buffer; its memory is on the heap.
    let (result, (_, buf)) = unsafe { submit(sqe, (file, buf)) }.await;
    (result, buf)
}

/// Makes a file's data durable.
pub async fn sync<F: AsRawFd + 'static>(file: Rc<F>) -> io::Result<()> {
    let sqe = opcode::Fsync::new(types::Fd(file.as_raw_fd())).flags(types::FsyncFlags::DATASYNC).build();
    // SAFETY: `keep` holds the file.
    unsafe { submit(sqe, file) }.await.0.map(|_| ())
}

/// Receives into `buf[from..to]`: something, or all of it if `all`.
pub async fn recv<F: AsRawFd + 'static>(
    sock: Rc<F>,
    mut buf: AlignedBuf,
    (from, to): (usize, usize),
    all: bool,
) -> (io::Result<usize>, AlignedBuf) {
    assert!(from < to && to <= buf.len());
    let flags = if all { libc::MSG_WAITALL } else { 0 };
    let at = buf[from..].as_mut_ptr();
    let sqe = opcode::Recv::new(types::Fd(sock.as_raw_fd()), at, (to - from) as u32).flags(flags).build();
    // SAFETY: `keep` holds the socket and the buffer; its memory is on the heap.
    let (result, (_, buf)) = unsafe { submit(sqe, (sock, buf)) }.await;
    (result, buf)
}

struct Message {
    iov: Vec<libc::iovec>,
    header: Box<libc::msghdr>,
    data: Vec<Bytes>,
}

/// Sends these bytes, or the first of them: how many.
pub async fn send<F: AsRawFd + 'static>(sock: Rc<F>, data: Vec<Bytes>) -> (io::Result<usize>, Vec<Bytes>) {
    let part = |b: &Bytes| libc::iovec { iov_base: b.as_ptr() as *mut _, iov_len: b.len() };
    let mut iov: Vec<libc::iovec> = data.iter().map(part).collect();
    // SAFETY: all-zero is a valid msghdr: no address, no control data.
    let mut header: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
    header.msg_iov = iov.as_mut_ptr();
    header.msg_iovlen = iov.len();
    let fd = types::Fd(sock.as_raw_fd());
    let sqe = opcode::SendMsg::new(fd, &*header).flags(libc::MSG_NOSIGNAL as u32).build();
    let message = Message { iov, header, data };
    // SAFETY: `keep` holds the socket, the header and the vector (both on the heap), and the
    // bytes they point to.
    let (result, (_, message)) = unsafe { submit(sqe, (sock, message)) }.await;
    drop((message.iov, message.header));
    (result, message.data)
}

/// Waits for a connection. The future must not be dropped: a connection could be lost with it.
pub async fn accept<F: AsRawFd + 'static>(listener: Rc<F>) -> io::Result<std::net::TcpStream> {
    use std::os::fd::FromRawFd;
    let fd = types::Fd(listener.as_raw_fd());
    let sqe =
        opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut()).flags(libc::SOCK_CLOEXEC).build();
    // SAFETY: `keep` holds the listener; no address is asked for.
    let fd = unsafe { submit(sqe, listener) }.await.0?;
    // SAFETY: the kernel just gave this descriptor to us.
    Ok(unsafe { std::net::TcpStream::from_raw_fd(fd as i32) })
}
