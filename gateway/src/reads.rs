//! How a read is answered: at once from what a file on this machine has in memory, by a thread that may wait for the disk,
//! or with what servers send.
//!
//! Threads that take requests from the kernel are few, since each more of them is woken in turn where one would have
//! gone on (docs/perf/0010): they wait for no disk, and copy nothing that is long.

use crate::shared::Shared;
use client::{Here, LARGE_BYTES, Uncached, begin};
use fuser::{INodeNo, ReplyData};
use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use tokio::runtime::{Builder, Handle, Runtime};

/// Most reads of disks of this machine at a time; what is asked beyond waits for one of them.
const READERS_MAX: usize = 16;
/// A read of more bytes takes longer than to wake another thread for it, even if they are in memory.
const QUICK_BYTES_MAX: u32 = 128 * 1024;

thread_local! {
    /// Where a thread reads to: pages that are new cost more than the bytes in them.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(vec![]) };
}

/// What the kernel wants of a file.
#[derive(Clone, Copy)]
pub struct Wanted {
    pub ino: INodeNo,
    pub offset: u64,
    /// In bytes.
    pub size: u32,
}

/// Answers reads.
pub struct Reads {
    shared: Arc<Shared>,
    runtime: Handle,
    /// Threads that may wait for a disk. They are a runtime's own for what blocks, and nothing else runs there: what else a
    /// mount has that blocks may wait for reads (`Shared::see_again`), and must not be before them.
    readers: Option<Runtime>,
}

impl Reads {
    /// Within a runtime, which carries out what has to wait for servers.
    pub fn new(shared: Arc<Shared>) -> io::Result<Arc<Reads>> {
        let readers =
            Builder::new_current_thread().max_blocking_threads(READERS_MAX).thread_name("reader").build()?;
        Ok(Arc::new(Reads { shared, runtime: Handle::current(), readers: Some(readers) }))
    }

    /// Answers, on this thread if that takes no time.
    pub fn answer(self: &Arc<Reads>, wanted: Wanted, reply: ReplyData) {
        let quick = match wanted.size > QUICK_BYTES_MAX {
            true => Err((reply, Here::Not)),
            false => self.here(wanted, Uncached::Leave, reply),
        };
        match quick {
            Ok(()) => {}
            Err((reply, Here::Waits)) => self.clone().wait(wanted, reply),
            Err((reply, _)) => begin(&self.runtime, self.clone().find(wanted, reply)),
        }
    }

    /// Answers off a disk of this machine, on this thread, or gives back whom to answer, and why.
    fn here(&self, wanted: Wanted, uncached: Uncached, reply: ReplyData) -> Result<(), (ReplyData, Here)> {
        BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(buffer.len().max(wanted.size as usize), 0);
            let out = &mut buffer[..wanted.size as usize];
            match self.shared.read_here(wanted.ino, wanted.offset, out, uncached) {
                Here::Read(len) => {
                    reply.data(&out[..len]);
                    Ok(())
                }
                missed => Err((reply, missed)),
            }
        })
    }

    /// Has a thread answer that may wait for the disk.
    fn wait(self: Arc<Reads>, wanted: Wanted, reply: ReplyData) {
        let reads = self.clone();
        self.readers.as_ref().expect("it is there until it is dropped").spawn_blocking(move || {
            if let Err((reply, _)) = reads.here(wanted, Uncached::Wait, reply) {
                let runtime = reads.runtime.clone();
                begin(&runtime, reads.ask(wanted, reply));
            }
        });
    }

    /// Answers off a disk of this machine, if a server tells where the bytes lie there.
    async fn find(self: Arc<Reads>, wanted: Wanted, reply: ReplyData) {
        // Where small ones lie the client asks by itself, once more than one is read.
        let is_large = wanted.size as usize >= LARGE_BYTES;
        match is_large && self.shared.is_placed(wanted.ino, wanted.offset, wanted.size).await {
            true => self.wait(wanted, reply),
            false => self.ask(wanted, reply).await,
        }
    }

    /// Answers with what servers send.
    async fn ask(self: Arc<Reads>, wanted: Wanted, reply: ReplyData) {
        match self.shared.read(wanted.ino, wanted.offset, wanted.size).await {
            Ok(parts) if parts.len() == 1 => reply.data(&parts[0]),
            Ok(parts) => reply.data(&parts.concat()),
            Err(e) => reply.error(e),
        }
    }
}

impl Drop for Reads {
    fn drop(&mut self) {
        // Nobody waits any more for what is read.
        if let Some(readers) = self.readers.take() {
            readers.shutdown_background();
        }
    }
}
