//! Files: streaming reads and writes, record appends, positional writes.

use crate::local::{Here, Uncached};
use crate::reports::nanos;
use crate::{Attr, Client, Error, Result};
use bytes::{Bytes, BytesMut};
use client_core::{Layout, Span, Window};
use common::limits::{PIECE_BYTES_MAX, WRITE_BYTES_MAX};
use common::wire::ChunkConfig;
use common::wire::client_master::{ChunkInfo, MasterReply, Mutation, Report};
use common::{ChunkHandle, Code, FileId, Refusal};
use futures::stream::{self, Stream, StreamExt, TryStreamExt};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::task::JoinSet;

/// Pieces of a streaming read that are under way at a time.
const READ_AHEAD: usize = 8;
/// Writes of a stream that are under way at a time, at most.
pub(crate) const WRITES_UNDER_WAY: usize = 12;

/// A file that is read.
#[derive(Clone)]
pub struct FileReader {
    client: Client,
    attr: Attr,
    layout: Arc<Layout>,
}

impl FileReader {
    pub(crate) fn new(client: Client, mut attr: Attr, layout: Layout) -> FileReader {
        attr.length = layout.len();
        FileReader { client, attr, layout: Arc::new(layout) }
    }

    /// Attributes when it was opened; the length is exact.
    pub fn attr(&self) -> &Attr {
        &self.attr
    }

    /// Bytes when it was opened.
    pub fn len(&self) -> u64 {
        self.layout.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads a range; shorter at the end of the file.
    pub async fn read_at(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        let mut out = vec![];
        let mut parts = Box::pin(self.stream(offset, len));
        while let Some(part) = parts.next().await {
            out.extend_from_slice(&part?);
        }
        Ok(out)
    }

    /// A range as a stream, read ahead; parts come in order.
    pub fn stream(&self, offset: u64, len: u64) -> impl Stream<Item = Result<Bytes>> + Send + use<> {
        let spans = self.layout.spans(offset, len, PIECE_BYTES_MAX as u64);
        let (client, layout) = (self.client.clone(), self.layout.clone());
        let reads = spans.into_iter().map(move |span| {
            let (client, layout) = (client.clone(), layout.clone());
            async move { read_span(&client, &layout, span).await }
        });
        stream::iter(reads).buffered(READ_AHEAD).flat_map(|parts| {
            let parts: Vec<Result<Bytes>> = match parts {
                Ok(parts) => parts.into_iter().map(Ok).collect(),
                Err(e) => vec![Err(e)],
            };
            stream::iter(parts)
        })
    }
}

/// The bytes of a span: what the chunk does not have within its length is zeros.
async fn read_span(client: &Client, layout: &Layout, span: Span) -> Result<Vec<Bytes>> {
    let config = &layout.chunks()[span.chunk].config;
    let mut parts = match config.handle {
        ChunkHandle::HOLE => vec![],
        _ => client.read_chunk(config, layout.snapshot(), span.offset, span.len as u32).await?,
    };
    let got: u64 = parts.iter().map(|p| p.len() as u64).sum();
    if got < span.len {
        parts.push(vec![0; (span.len - got) as usize].into());
    }
    Ok(parts)
}

/// A range off the disks of stores on this machine, on the calling thread; all of it, or nothing.
pub(crate) fn read_here(
    client: &Client,
    layout: &Layout,
    offset: u64,
    out: &mut [u8],
    uncached: Uncached,
) -> Here {
    if layout.snapshot() != 0 || !client.inner.config.reads_here {
        return Here::Not;
    }
    let (len, mut rest) = (out.len(), out);
    for span in layout.spans(offset, len as u64, u64::MAX) {
        let (part, later) = rest.split_at_mut(span.len as usize);
        rest = later;
        match layout.chunks()[span.chunk].config.handle {
            ChunkHandle::HOLE => part.fill(0),
            handle => match client.inner.local.read(handle, span.offset, part, uncached) {
                Here::Read(_) => {}
                missed => return missed,
            },
        }
    }
    Here::Read(len)
}

/// Whether it is known where a range lies on disks of stores on this machine; they are asked for it.
pub(crate) async fn are_placed(client: &Client, layout: &Layout, offset: u64, len: u64) -> bool {
    if layout.snapshot() != 0 || !client.inner.config.reads_here {
        return false;
    }
    for span in layout.spans(offset, len, u64::MAX) {
        let config = &layout.chunks()[span.chunk].config;
        if config.handle == ChunkHandle::HOLE {
            continue;
        }
        let order = client.order(config, span.offset, 0);
        if !client.is_placed(config, &order, span.offset, span.len as u32).await {
            return false;
        }
    }
    true
}

/// A range in parts; shorter at the end of the file.
pub(crate) async fn read_spans(
    client: &Client,
    layout: &Layout,
    offset: u64,
    len: u64,
) -> Result<Vec<Bytes>> {
    let spans = layout.spans(offset, len, PIECE_BYTES_MAX as u64);
    let reads = spans.into_iter().map(|span| read_span(client, layout, span));
    let parts: Vec<Vec<Bytes>> = stream::iter(reads).buffered(READ_AHEAD).try_collect().await?;
    Ok(parts.into_iter().flatten().collect())
}

/// A new file that is written from its beginning. It has no name until `finish`.
pub struct FileWriter {
    client: Client,
    path: Vec<u8>,
    file: FileId,
    chunk_bytes: u64,
    chunk: Option<ChunkInfo>,
    /// Bytes before the present chunk, and given to it.
    before: u64,
    in_chunk: u64,
    buffer: BytesMut,
    under_way: JoinSet<(Duration, Result<ChunkConfig>)>,
    window: Window,
}

impl FileWriter {
    pub(crate) async fn begin(client: Client, path: &[u8]) -> Result<FileWriter> {
        let near = client.inner.config.rack.clone();
        let mutation = Mutation::CreateUnnamed { like: path.into(), chunk: false, near };
        let MasterReply::Opened { attr, .. } = client.mutate(mutation).await? else {
            return Err(Error::unexpected("create"));
        };
        Ok(FileWriter {
            client,
            path: path.into(),
            file: attr.file,
            chunk_bytes: attr.chunk_bytes,
            chunk: None,
            before: 0,
            in_chunk: 0,
            buffer: BytesMut::new(),
            under_way: JoinSet::new(),
            window: Window::new(WRITES_UNDER_WAY),
        })
    }

    /// Bytes given so far.
    pub fn len(&self) -> u64 {
        self.before + self.in_chunk + self.buffer.len() as u64
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds bytes. Returns when they are under way, not when they are durable.
    pub async fn write(&mut self, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            if self.buffer.is_empty() {
                self.buffer.reserve(WRITE_BYTES_MAX.min(data.len().max(64 * 1024)));
            }
            let n = data.len().min(WRITE_BYTES_MAX - self.buffer.len());
            self.buffer.extend_from_slice(&data[..n]);
            data = &data[n..];
            if self.buffer.len() == WRITE_BYTES_MAX {
                self.send().await?;
            }
        }
        Ok(())
    }

    /// Adds a buffer of exactly the size of a write without copying it.
    pub async fn write_block(&mut self, block: Bytes) -> Result<()> {
        if block.len() != WRITE_BYTES_MAX || !self.buffer.is_empty() {
            return self.write(&block).await;
        }
        self.send_bytes(block).await
    }

    async fn send(&mut self) -> Result<()> {
        let data = self.buffer.split().freeze();
        self.send_bytes(data).await
    }

    async fn send_bytes(&mut self, data: Bytes) -> Result<()> {
        let takes_more = |chunk: &ChunkInfo| chunk.config.sealed.is_none();
        if self.in_chunk == self.chunk_bytes || !self.chunk.as_ref().is_some_and(takes_more) {
            self.next_chunk().await?;
        }
        while self.window.is_full(self.under_way.len()) {
            self.one_done().await?;
        }
        let mut config = self.chunk.as_ref().expect("just made").config.clone();
        let (client, offset) = (self.client.clone(), self.in_chunk);
        self.in_chunk += data.len() as u64;
        self.under_way.spawn(async move {
            let began = Instant::now();
            let written = client.write_chunk(&mut config, Some(offset), data).await;
            (began.elapsed(), written.map(|_| config))
        });
        Ok(())
    }

    async fn one_done(&mut self) -> Result<()> {
        match self.under_way.join_next().await {
            Some(Ok((took, done))) => {
                self.window.done(took.as_millis() as u64);
                let config = done?;
                let chunk = self.chunk.as_mut().expect("it was written to");
                if chunk.config.handle == config.handle && chunk.config.epoch < config.epoch {
                    chunk.config = config;
                }
                Ok(())
            }
            Some(Err(join)) => std::panic::resume_unwind(join.into_panic()),
            None => Ok(()),
        }
    }

    async fn next_chunk(&mut self) -> Result<()> {
        let index = self.chunk.as_ref().map_or(0, |c| c.index + 1);
        let declare = (index > 0).then_some(self.in_chunk);
        let near = self.client.inner.config.rack.clone();
        let mutation = Mutation::AddChunk { file: self.file, index, declare, near };
        let MasterReply::Chunk(chunk) = self.client.mutate(mutation).await? else {
            return Err(Error::unexpected("add a chunk"));
        };
        self.chunk = Some(chunk);
        self.before += self.in_chunk;
        self.in_chunk = 0;
        Ok(())
    }

    /// Goes on with the bytes of another file's chunk, or with its hole, without copying them; or not, if that is not
    /// possible.
    pub(crate) async fn clone_chunk(&mut self, of: &ChunkInfo, snapshot: u64) -> Result<bool> {
        self.drain().await?;
        let index = match &mut self.chunk {
            None => 0,
            Some(chunk) => {
                if chunk.config.sealed.is_none() {
                    chunk.config.sealed = Some(self.client.seal(chunk.config.handle).await?);
                }
                chunk.index + 1
            }
        };
        let at = self.len();
        let cloned = if of.config.handle == ChunkHandle::HOLE {
            let hole = Mutation::AddHole { file: self.file, index, length: of.length };
            match self.client.mutate(hole).await? {
                MasterReply::Chunk(hole) => Some(hole),
                _ => return Err(Error::unexpected("add a hole")),
            }
        } else {
            self.client.clone_chunk(of, snapshot, self.file, at).await?
        };
        let Some(chunk) = cloned else { return Ok(false) };
        (self.before, self.in_chunk) = (at, chunk.length);
        self.chunk = Some(chunk);
        Ok(true)
    }

    async fn drain(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            self.send().await?;
        }
        while !self.under_way.is_empty() {
            self.one_done().await?;
        }
        Ok(())
    }

    /// Waits until everything is durable and gives the file its name, in place of what was there.
    pub async fn finish(mut self, mode: u32, mtime_ns: i64, parents: bool) -> Result<Attr> {
        self.drain().await?;
        let length = self.before + self.in_chunk;
        let path = self.path.clone();
        let owner = self.client.inner.config.owner;
        let mutation = Mutation::Publish { file: self.file, path, length, mode, owner, mtime_ns, parents };
        match self.client.mutate(mutation).await? {
            MasterReply::Attr(attr) => Ok(attr),
            _ => Err(Error::unexpected("publish")),
        }
    }
}

/// Makes a file with this content: name and chunk in one entry of the log, then the bytes.
pub(crate) async fn create_with(client: &Client, path: &[u8], data: &[u8]) -> Result<()> {
    let near = client.inner.config.rack.clone();
    let mutation = Mutation::Create {
        path: path.into(),
        mode: 0o644,
        owner: client.inner.config.owner,
        exclusive: true,
        parents: false,
        chunk: !data.is_empty(),
        near,
    };
    let MasterReply::Opened { chunk, .. } = client.mutate(mutation).await? else {
        return Err(Error::unexpected("create"));
    };
    let Some(chunk) = chunk.filter(|_| !data.is_empty()) else {
        return Ok(());
    };
    let mut config = chunk.config;
    let mut at = 0;
    for part in data.chunks(WRITE_BYTES_MAX) {
        client.write_chunk(&mut config, Some(at), Bytes::copy_from_slice(part)).await?;
        at += part.len() as u64;
    }
    Ok(())
}

/// A file to which records are appended: each exactly once, whole, in one piece.
pub struct Appender {
    client: Client,
    file: FileId,
    last: Option<ChunkInfo>,
}

impl Appender {
    pub(crate) async fn open(client: Client, path: &[u8]) -> Result<Appender> {
        let near = client.inner.config.rack.clone();
        let mutation = Mutation::Create {
            path: path.into(),
            mode: 0o644,
            owner: client.inner.config.owner,
            exclusive: false,
            parents: false,
            chunk: true,
            near,
        };
        match client.mutate(mutation).await? {
            MasterReply::Opened { attr, chunk } => Ok(Appender { client, file: attr.file, last: chunk }),
            _ => Err(Error::unexpected("open for append")),
        }
    }

    /// For a file of which this is the last chunk.
    pub(crate) fn at_end(client: Client, file: FileId, last: Option<ChunkInfo>) -> Appender {
        Appender { client, file, last }
    }

    /// Appends a record; durable on return. Gives its offset in the file.
    pub async fn append(&mut self, record: &[u8]) -> Result<u64> {
        if record.is_empty() || record.len() > common::limits::APPEND_BYTES_MAX {
            return Err(Refusal::new(Code::BadArgument, "a record has 1 byte to 1 MiB").into());
        }
        let data = Bytes::copy_from_slice(record);
        loop {
            let mut chunk = match self.last.take() {
                Some(chunk) if chunk.config.sealed.is_none() && chunk.config.handle != ChunkHandle::HOLE => {
                    chunk
                }
                last => {
                    // Another writer may have made it, as a hole too, or have filled it already.
                    self.last = Some(self.next_chunk(last).await?);
                    continue;
                }
            };
            let done = self.client.write_chunk(&mut chunk.config, None, data.clone()).await;
            match done {
                Ok(written) => {
                    let offset = chunk.start + written.offset;
                    self.last = Some(chunk);
                    return Ok(offset);
                }
                // Refused for good in this chunk, so it is not in it: it goes into the next.
                Err(Error::Refused(r)) if matches!(r.code, Code::ChunkFull | Code::Sealed) => {
                    let length = self.client.seal(chunk.config.handle).await?;
                    chunk.config.sealed = Some(length);
                    chunk.length = length;
                    self.last = Some(chunk);
                }
                Err(e) => {
                    self.last = Some(chunk);
                    return Err(e);
                }
            }
        }
    }

    /// The chunk after this one, which may have been made by another appender.
    async fn next_chunk(&self, last: Option<ChunkInfo>) -> Result<ChunkInfo> {
        let index = last.map_or(0, |c| c.index + 1);
        let near = self.client.inner.config.rack.clone();
        let mutation = Mutation::AddChunk { file: self.file, index, declare: None, near };
        match self.client.mutate(mutation).await? {
            MasterReply::Chunk(chunk) => Ok(chunk),
            _ => Err(Error::unexpected("add a chunk")),
        }
    }

    /// Tells the masters the length, so that listings show it.
    pub async fn close(self) -> Result<()> {
        if let Some(last) = self.last.filter(|c| c.config.sealed.is_none()) {
            let (length, _) = self.client.chunk_length(&last.config, 0).await?;
            self.client.mutate(Mutation::ReportLength { handle: last.config.handle, length }).await?;
        }
        Ok(())
    }
}

/// Writes at an offset of a file that exists.
pub(crate) async fn write_at(client: &Client, path: &[u8], offset: u64, data: &[u8]) -> Result<()> {
    let attr = client.lookup(path).await?;
    let mut at = offset;
    let mut rest = data;
    let mut overwrote = false;
    while !rest.is_empty() {
        let layout = client.layout(attr.file).await?;
        if at < layout.len() {
            overwrote = true;
            at = overwrite(client, attr.file, &layout, at, &mut rest).await?;
        } else {
            at = extend(client, &attr, &layout, at, &mut rest).await?;
        }
    }
    if !overwrote {
        // The masters know of what was added.
        return Ok(());
    }
    // So that nobody takes older bytes for these.
    let report = Report { file: attr.file, open: None, mtime_ns: Some(nanos(SystemTime::now())) };
    client.mutate(Mutation::Written { files: vec![report] }).await.map(drop)
}

/// Writes over what is there, up to the end of the file, or to a hole: then it has a chunk now.
async fn overwrite(client: &Client, file: FileId, layout: &Layout, at: u64, rest: &mut &[u8]) -> Result<u64> {
    let mut at = at;
    for span in layout.spans(at, rest.len() as u64, WRITE_BYTES_MAX as u64) {
        let mut config = layout.chunks()[span.chunk].config.clone();
        if config.handle == ChunkHandle::HOLE {
            let near = client.inner.config.rack.clone();
            client.mutate(Mutation::FillHole { file, offset: at, near }).await?;
            return Ok(at);
        }
        let (now, later) = rest.split_at(span.len as usize);
        client.write_chunk(&mut config, Some(span.offset), Bytes::copy_from_slice(now)).await?;
        *rest = later;
        at += span.len;
    }
    Ok(at)
}

/// Writes beyond the end: into the open last chunk while it has room, else into a new one.
async fn extend(client: &Client, attr: &Attr, layout: &Layout, at: u64, rest: &mut &[u8]) -> Result<u64> {
    let open = layout.chunks().last().filter(|c| c.config.sealed.is_none());
    let room = open.and_then(|c| attr.chunk_bytes.checked_sub(at - c.start)).filter(|room| *room > 0);
    if let (Some(chunk), Some(room)) = (open, room) {
        let n = rest.len().min(room as usize).min(WRITE_BYTES_MAX);
        let (now, later) = rest.split_at(n);
        let mut config = chunk.config.clone();
        client.write_chunk(&mut config, Some(at - chunk.start), Bytes::copy_from_slice(now)).await?;
        let length = at - chunk.start + n as u64;
        client.mutate(Mutation::ReportLength { handle: config.handle, length }).await?;
        *rest = later;
        return Ok(at + n as u64);
    }
    if let Some(chunk) = open {
        client.seal(chunk.config.handle).await?;
        return Ok(at);
    }
    let index = layout.chunks().len() as u32;
    let mutation = match at - layout.len() {
        0 => Mutation::AddChunk { file: attr.file, index, declare: None, near: String::new() },
        gap => Mutation::AddHole { file: attr.file, index, length: gap },
    };
    match client.mutate(mutation).await {
        Ok(_) => Ok(at),
        // Another writer was quicker: look again.
        Err(Error::Refused(r)) if r.code == Code::WrongChunkIndex => Ok(at),
        Err(e) => Err(e),
    }
}
