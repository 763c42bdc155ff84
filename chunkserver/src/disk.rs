//! Performs disk operations: on the ring, or on a pool of threads where io_uring is forbidden.
//! Data is written with `O_DIRECT` and read through the page cache: what is hot is in memory.

use crate::buf::AlignedBuf;
use crate::config::EngineChoice;
use crate::files::are_none_left;
use crate::ring;
use bytes::Bytes;
use chunkserver_core::io::{DiskKind, DiskOp, FileRef};
use common::limits::{BLOCK_BYTES, DISK_RESERVE_BYTES};
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, retry_on_intr};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Without a descriptor for it a file is opened again after this.
const NO_FILES_PAUSE: Duration = Duration::from_millis(200);
/// And without room a checkpoint is written again after this.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(1);

/// What moves bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// io_uring, by tokio-uring.
    Uring,
    /// A thread pool with pread and pwrite, sockets on tokio.
    Threads,
}

impl Engine {
    /// The engine that was asked for, if the kernel allows it.
    pub fn choose(choice: EngineChoice) -> anyhow::Result<Engine> {
        let ring = io_uring::IoUring::new(8);
        match (choice, ring) {
            (EngineChoice::Threads, _) => Ok(Engine::Threads),
            (_, Ok(_)) => Ok(Engine::Uring),
            (EngineChoice::Uring, Err(e)) => {
                anyhow::bail!("io_uring is not to be had ({e}); set engine = \"threads\"")
            }
            (EngineChoice::Auto, Err(e)) => {
                tracing::warn!(error = %e, "io_uring is FORBIDDEN here: falling back to a thread pool, which is slower");
                eprintln!(
                    "cairn chunkserver: io_uring is forbidden here ({e}); using threads, which is slower"
                );
                Ok(Engine::Threads)
            }
        }
    }
}

/// An open file of the store, twice: for direct writes, and for reads through the page cache.
struct Open {
    direct: Rc<Shared>,
    cached: Rc<Shared>,
}

/// A file that an operation on another thread can hold too.
struct Shared(Arc<File>);

impl AsRawFd for Shared {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// The disk of one store.
pub struct Disk {
    engine: Engine,
    dir: PathBuf,
    files: RefCell<BTreeMap<FileRef, Rc<Open>>>,
}

/// Where a file of the store lies.
pub fn path_of(dir: &Path, file: FileRef) -> PathBuf {
    match file {
        FileRef::Log(n) => dir.join(format!("log/{n:04}")),
        FileRef::Extents(n) => dir.join(format!("extents/{n:06}")),
        FileRef::Checkpoint(n) => dir.join(format!("checkpoint/{n}")),
    }
}

/// Makes a file of zeros that has so many bytes, durably, its name included. The log's are written: a durable write
/// to it shall touch nothing but these bytes. Extents take their room, and are written once.
pub fn allocate(dir: &Path, file: FileRef, len: u64) -> io::Result<()> {
    let path = path_of(dir, file);
    let (capacity, free) = space(dir)?;
    if free < len + DISK_RESERVE_BYTES.min(capacity / 8) {
        return Err(io::Error::from_raw_os_error(libc::ENOSPC));
    }
    let open = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)?;
    let made = match file {
        FileRef::Extents(_) => {
            match retry_on_intr(|| rustix::fs::fallocate(&open, FallocateFlags::empty(), 0, len)) {
                Err(Errno::OPNOTSUPP) => write_zeros(&open, len),
                taken => taken.map_err(io::Error::from),
            }
        }
        FileRef::Log(_) | FileRef::Checkpoint(_) => write_zeros(&open, len),
    };
    if let Err(e) = made {
        // It takes room, and is of no use. It may be open: the file stays.
        let _ = open.set_len(0);
        return Err(e);
    }
    open.sync_all()?;
    File::open(path.parent().expect("in a directory"))?.sync_all()
}

fn write_zeros(file: &File, len: u64) -> io::Result<()> {
    const STRIDE: usize = 1024 * 1024;
    let mut zeros = AlignedBuf::new(STRIDE);
    zeros.fill(0);
    (0..len)
        .step_by(STRIDE)
        .try_for_each(|at| file.write_all_at(&zeros[..STRIDE.min((len - at) as usize)], at))
}

/// Bytes of the file system in all, and free.
pub fn space(dir: &Path) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok((stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
}

impl Disk {
    /// The disk of a directory. `locked` are files that are open already, with their locks.
    pub fn new(engine: Engine, dir: PathBuf, locked: Vec<(FileRef, File)>) -> io::Result<Disk> {
        let disk = Disk { engine, dir, files: RefCell::new(BTreeMap::new()) };
        for (file, direct) in locked {
            let cached = open_cached(&path_of(&disk.dir, file))?;
            disk.files.borrow_mut().insert(file, open_pair(direct, cached));
        }
        Ok(disk)
    }

    async fn open(&self, file: FileRef) -> io::Result<Rc<Open>> {
        loop {
            match self.try_open(file) {
                // As with many connections. Neither the disk nor what lies on it is at fault; if it lasts, the disk looks
                // hung, and the store is not in session until it is over.
                Err(error) if are_none_left(&error) => {
                    let path = path_of(&self.dir, file);
                    tracing::warn!(%error, path = %path.display(), "waits until a file can be opened; raise LimitNOFILE");
                    tokio::time::sleep(NO_FILES_PAUSE).await;
                }
                done => return done,
            }
        }
    }

    fn try_open(&self, file: FileRef) -> io::Result<Rc<Open>> {
        if let Some(open) = self.files.borrow().get(&file) {
            return Ok(open.clone());
        }
        let path = path_of(&self.dir, file);
        let direct = OpenOptions::new()
            .write(true)
            .create(is_checkpoint(file))
            .truncate(false)
            .custom_flags(libc::O_DIRECT)
            .open(&path)?;
        let cached = open_cached(&path)?;
        let open = open_pair(direct, cached);
        self.files.borrow_mut().insert(file, open.clone());
        Ok(open)
    }

    /// Performs one operation.
    pub async fn perform(&self, file: FileRef, kind: DiskKind) -> Result<Bytes, String> {
        let verb = verb(&kind);
        let about = |e| format!("{verb} {}: {e}", path_of(&self.dir, file).display());
        self.try_perform(file, kind).await.map_err(about)
    }

    async fn try_perform(&self, file: FileRef, kind: DiskKind) -> io::Result<Bytes> {
        match kind {
            DiskKind::Allocate { len } => {
                let dir = self.dir.clone();
                blocking(move || allocate(&dir, file, len)).await?;
                Ok(Bytes::new())
            }
            // Through the file that others may have open, which will be taken again.
            DiskKind::Release => {
                let file = self.open(file).await?.direct.0.clone();
                blocking(move || file.set_len(0)).await?;
                Ok(Bytes::new())
            }
            DiskKind::Sync => {
                let open = self.open(file).await?;
                match self.engine {
                    Engine::Uring => ring::sync(open.direct.clone()).await?,
                    Engine::Threads => {
                        let file = open.direct.0.clone();
                        blocking(move || file.sync_data()).await?
                    }
                }
                Ok(Bytes::new())
            }
            DiskKind::Read { offset, len } => self.read(file, offset, len as usize).await,
            DiskKind::Write { offset, data, durable } => {
                self.write(file, offset, data, durable).await?;
                Ok(Bytes::new())
            }
        }
    }

    async fn read(&self, file: FileRef, offset: u64, len: usize) -> io::Result<Bytes> {
        let open = self.open(file).await?;
        let mut buf = AlignedBuf::new(len);
        let mut got = 0;
        while got < len {
            let n = match self.engine {
                Engine::Uring if got == 0 => {
                    let result;
                    (result, buf) = ring::read_at(open.cached.clone(), buf, len, offset).await;
                    result?
                }
                _ => {
                    // The rest of a short read is rare enough for a thread.
                    let file = open.cached.0.clone();
                    let at = offset + got as u64;
                    let rest = blocking(move || {
                        let mut rest = vec![0; len - got];
                        file.read_at(&mut rest, at).map(|n| (n, rest))
                    });
                    let (n, rest) = rest.await?;
                    buf[got..got + n].copy_from_slice(&rest[..n]);
                    n
                }
            };
            if n == 0 {
                buf[got..len].fill(0);
                break;
            }
            got += n;
        }
        Ok(buf.freeze(len))
    }

    /// Writes; a checkpoint, which grows with the index, waits for room: the other one is good, and what is not in it is in
    /// the log.
    async fn write(&self, file: FileRef, offset: u64, data: Bytes, durable: bool) -> io::Result<()> {
        loop {
            match self.try_write(file, offset, data.clone(), durable).await {
                Err(error) if error.kind() == io::ErrorKind::StorageFull && is_checkpoint(file) => {
                    let path = path_of(&self.dir, file);
                    tracing::warn!(%error, path = %path.display(), "waits until there is room for a checkpoint");
                    tokio::time::sleep(NO_ROOM_PAUSE).await;
                }
                done => return done,
            }
        }
    }

    async fn try_write(&self, file: FileRef, offset: u64, data: Bytes, durable: bool) -> io::Result<()> {
        let open = self.open(file).await?;
        let aligned =
            (data.as_ptr() as usize).is_multiple_of(BLOCK_BYTES) && data.len().is_multiple_of(BLOCK_BYTES);
        let data = match aligned {
            true => data,
            false => {
                let len = data.len().next_multiple_of(BLOCK_BYTES);
                AlignedBuf::padded(&data).freeze(len)
            }
        };
        match self.engine {
            Engine::Uring => {
                let mut rest = data;
                let mut at = offset;
                while !rest.is_empty() {
                    let n = ring::write_at(open.direct.clone(), rest.clone(), at, durable).await?;
                    if n == 0 {
                        return Err(io::ErrorKind::WriteZero.into());
                    }
                    rest = rest.slice(n..);
                    at += n as u64;
                }
                Ok(())
            }
            Engine::Threads => {
                let file = open.direct.0.clone();
                let write = move || {
                    file.write_all_at(&data, offset)?;
                    if durable { file.sync_data() } else { Ok(()) }
                };
                blocking(write).await
            }
        }
    }
}

fn is_checkpoint(file: FileRef) -> bool {
    matches!(file, FileRef::Checkpoint(_))
}

/// Whether an operation takes as long as it takes, and a disk is not called hung for it: room ahead of need, and a checkpoint.
pub fn may_wait(op: &DiskOp) -> bool {
    is_checkpoint(op.file) || matches!(op.kind, DiskKind::Allocate { .. } | DiskKind::Release)
}

/// Opens a file for reading through the page cache, which reads what it is asked for and no more: who reads a
/// stream reads ahead itself, from all replicas in turn, and what the kernel would read ahead of one is what
/// another is asked for.
pub fn open_cached(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).open(path)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random)?;
    Ok(file)
}

fn open_pair(direct: File, cached: File) -> Rc<Open> {
    let shared = |file| Rc::new(Shared(Arc::new(file)));
    Rc::new(Open { direct: shared(direct), cached: shared(cached) })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn verb(kind: &DiskKind) -> &'static str {
    match kind {
        DiskKind::Read { .. } => "read",
        DiskKind::Write { .. } => "write",
        DiskKind::Sync => "flush",
        DiskKind::Allocate { .. } => "allocate",
        DiskKind::Release => "empty",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Set where few files may be open: that holds for a whole process.
    const FEW_FILES: &str = "CAIRN_TEST_FEW_FILES";

    #[test]
    fn an_operation_waits_until_its_file_can_be_opened() {
        if std::env::var_os(FEW_FILES).is_none() {
            let name = "disk::tests::an_operation_waits_until_its_file_can_be_opened";
            let mut command = Command::new("sh");
            command.args(["-c", "ulimit -n 64; exec \"$0\" --exact \"$1\""]);
            command.arg(std::env::current_exe().unwrap()).arg(name).env(FEW_FILES, "1");
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        let dir = std::env::temp_dir().join(format!("cairn-few-files-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("extents")).unwrap();
        let file = FileRef::Extents(0);
        std::fs::write(path_of(&dir, file), [7; BLOCK_BYTES]).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let read = async {
            let disk = Disk::new(Engine::Threads, dir.clone(), vec![]).unwrap();
            let others: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
            assert!(others.len() > 8);
            let kind = DiskKind::Read { offset: 0, len: BLOCK_BYTES as u32 };
            let mut read = std::pin::pin!(disk.perform(file, kind));
            let waited = tokio::time::timeout(NO_FILES_PAUSE * 3, &mut read).await;
            assert!(waited.is_err(), "{waited:?}");
            drop(others);
            read.await.unwrap()
        };
        let read = runtime.block_on(read);
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(read == [7; BLOCK_BYTES][..]);
    }
}
