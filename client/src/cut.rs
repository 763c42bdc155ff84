//! The ends of chunks. Who has had a file cut tells those who lead the chunks that were cut: others may have it open, and what they write must
//! not go to a chunk that the file does not have any more, or beyond what is left of it.

use crate::chunk::{Miss, RETRY, WRITE_LIMIT};
use crate::conns::Class;
use crate::open::is_elsewhere;
use crate::{Client, Error, Known, Result, Seen};
use client_core::Next;
use common::limits::SESSION_MS;
use common::wire::ChunkConfig;
use common::wire::client_chunk::{ClientChunk, ClientChunkReply};
use common::wire::client_master::{ChunkInfo, Mutation};
use common::{ChunkHandle, Code, FileId};
use futures::{StreamExt, TryStreamExt, stream};
use std::time::{Duration, Instant};

/// So many are told at a time.
const TOLD_AT_ONCE: usize = 32;
/// Who leads a chunk and cannot be told knows it after this: it has renewed its session, and the masters have told it, or is in none.
const GONE: Duration = Duration::from_millis(2 * SESSION_MS);

impl Client {
    /// Cuts a file, or extends it with zeros: what it is then.
    pub async fn truncate(&self, path: &[u8], length: u64) -> Result<Seen> {
        let (deadline, mut pause) = (self.deadline(), RETRY.0);
        loop {
            let known = self.look(path).await?;
            match self.cut(known, length, deadline).await {
                // An appender opened a new chunk in between, or somebody else cut it.
                Err(e) if is_elsewhere(&e) && Instant::now() + pause < deadline => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY.1);
                }
                done => return done,
            }
        }
    }

    async fn cut(&self, known: Known, length: u64, deadline: Instant) -> Result<Seen> {
        if length == 0
            && known.attr.count <= 1
            && let Some(emptied) = self.empty(known.attr.file, known.chunk.as_slice(), false).await?
        {
            return Ok(emptied);
        }
        let sealed = match known.attr.open {
            Some(handle) => Some(self.seal(handle).await?),
            None => None,
        };
        let file = known.attr.file;
        let chunks = self.cut_off(known, sealed, length).await?;
        let attr = self.mutate_for_attr(Mutation::Truncate { file, length }).await?;
        self.tell_cut(&chunks, length, deadline).await?;
        Ok(attr.into())
    }

    /// Takes all bytes of a file that has no other chunks than at most one: nobody need know how many it had. If it shall have bytes `again`,
    /// it gets room for them. Nothing is done if it has other chunks, or a snapshot needs what it has as it is in the end.
    pub(crate) async fn empty(&self, file: FileId, has: &[ChunkInfo], again: bool) -> Result<Option<Seen>> {
        let deadline = self.deadline();
        let only = has.first().map(|chunk| chunk.config.handle);
        let empty = |chunk| {
            self.mutate_file(Mutation::Empty { file, only, chunk, near: self.inner.config.rack.clone() })
        };
        let emptied = match empty(again).await {
            // There is no room for a new chunk; that is for who writes to hear of.
            Err(Error::Refused(r)) if again && matches!(r.code, Code::NoServers | Code::QuotaExceeded) => {
                empty(false).await
            }
            done => done,
        };
        let emptied = match emptied {
            Err(Error::Refused(r)) if r.code == Code::WrongChunkIndex => return Ok(None),
            done => done?,
        };
        let gone = has.iter().filter(|chunk| chunk.config.handle != ChunkHandle::HOLE);
        self.tell_cut(&gone.cloned().collect::<Vec<_>>(), 0, deadline).await?;
        Ok(Some(emptied.into_new()))
    }

    /// Seals a chunk at its present length.
    pub(crate) async fn seal(&self, handle: ChunkHandle) -> Result<u64> {
        let began = Instant::now();
        let deadline = began + self.inner.config.deadline;
        let mut config = self.config(handle).await?;
        let mut pause = RETRY.0;
        loop {
            if let Some(sealed) = config.sealed {
                return Ok(sealed);
            }
            let miss = match self.end_at(&config, ClientChunk::Seal { handle }).await {
                Ok(length) => return Ok(length),
                Err(miss) => miss,
            };
            if Instant::now() + pause >= deadline {
                let (action, ms) = (format!("seal {handle}"), began.elapsed().as_millis() as u64);
                return Err(Error::Unknown { action, ms, last: miss.last });
            }
            self.refresh(&mut config, 0, miss.silent, deadline).await?;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Has the primary of a chunk seal it, or look at its end: what it has then.
    async fn end_at(&self, config: &ChunkConfig, msg: ClientChunk) -> std::result::Result<u64, Miss> {
        let conn = self.conn(config.primary, Class::Control).await.map_err(Miss::net)?;
        match conn.call(&msg, config.epoch.0, vec![], WRITE_LIMIT).await.map_err(Miss::net)?.0 {
            ClientChunkReply::Sealed { length } => Ok(length),
            ClientChunkReply::Refused(refusal) => Err(Miss::refused(refusal)),
            _ => Err(Miss {
                refusal: None,
                last: "an answer that does not fit".into(),
                next: Next::Wait,
                silent: false,
            }),
        }
    }

    /// The chunks that a file has beyond a length. Its last one was sealed, perhaps since it was looked at, and then has so
    /// many bytes.
    pub(crate) async fn cut_off(
        &self,
        known: Known,
        sealed: Option<u64>,
        length: u64,
    ) -> Result<Vec<ChunkInfo>> {
        let Known { attr, chunk, .. } = known;
        if attr.count == 0 || attr.open.is_none() && attr.length <= length {
            return Ok(vec![]);
        }
        let chunks = match chunk.filter(|_| attr.count == 1) {
            Some(chunk) => vec![chunk],
            None => self.layout(attr.file).await?.chunks().to_vec(),
        };
        let last = chunks.last().map(|last| last.index);
        let is_cut = |c: &ChunkInfo| {
            let bytes = sealed.filter(|_| Some(c.index) == last).unwrap_or(c.length);
            c.config.handle != ChunkHandle::HOLE && c.start + bytes > length
        };
        Ok(chunks.into_iter().filter(is_cut).collect())
    }

    /// Those who lead these chunks ask the masters what is left of them, before this returns.
    pub(crate) async fn tell_cut(&self, chunks: &[ChunkInfo], length: u64, deadline: Instant) -> Result<()> {
        let tell =
            |chunk: &ChunkInfo| self.tell_one_cut(chunk.config.clone(), chunk.start < length, deadline);
        let tells: Vec<_> = chunks.iter().map(tell).collect();
        stream::iter(tells).buffer_unordered(TOLD_AT_ONCE).try_collect().await
    }

    async fn tell_one_cut(&self, mut config: ChunkConfig, within: bool, deadline: Instant) -> Result<()> {
        let (began, handle, mut pause) = (Instant::now(), config.handle, RETRY.0);
        loop {
            let miss = match self.end_at(&config, ClientChunk::Cut { handle, within }).await {
                Err(miss) if miss.refusal.as_ref().is_none_or(|r| r.code != Code::NoSuchChunk) => miss,
                _ => return Ok(()),
            };
            if Instant::now() + pause >= deadline {
                let (action, ms) = (format!("tell of a cut of {handle}"), began.elapsed().as_millis() as u64);
                return Err(Error::Unknown { action, ms, last: miss.last });
            }
            if began.elapsed() >= GONE {
                return Ok(());
            }
            match self.refresh(&mut config, 0, miss.silent, deadline).await {
                Err(Error::Refused(r)) if r.code == Code::NoSuchChunk => {}
                refreshed => refreshed?,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }
}
