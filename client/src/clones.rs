//! Chunks of one file that begin as forks of another's: bytes are copied by naming them.

use crate::conns::Class;
use crate::file::{FileWriter, read_spans};
use crate::{Client, Error, FileKind, Result};
use client_core::Layout;
use common::limits::{APPLY_TIMEOUT_MS, WRITE_BYTES_MAX};
use common::wire::ChunkConfig;
use common::wire::client_chunk::{ClientChunk, ClientChunkReply};
use common::wire::client_master::{ChunkInfo, MasterReply, Mutation};
use common::{ChunkHandle, Code, FileId, Refusal};
use std::time::Duration;

/// The bytes of smaller chunks are copied: that takes no longer, and they share no blocks.
pub(crate) const CLONE_BYTES_MIN: u64 = 256 * 1024;
/// A primary that forks waits so long for the chunk to come to rest, and so long for the members.
const FORK_LIMIT: Duration = Duration::from_millis(2 * APPLY_TIMEOUT_MS + 500);
/// A chunk that got another configuration meanwhile is tried again, so many times in all, after so long.
const TRIES: u32 = 4;
const AGAIN: Duration = Duration::from_millis(20);

/// What a copy came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Bytes, holes among them.
    pub bytes: u64,
    /// Those of them that were not copied, but named once more.
    pub by_reference: u64,
}

/// A fork was not made.
enum Miss {
    /// The chunk has another configuration now.
    Elsewhere,
    /// Its bytes must be copied.
    No(String),
}

impl Client {
    /// Lets the next chunk of a file, which ends there and does not grow, be a fork of this chunk, if that is possible:
    /// then it has the bytes that the chunk had at some moment in between. Nothing, if they must be copied.
    pub(crate) async fn clone_chunk(
        &self,
        of: &ChunkInfo,
        snapshot: u64,
        file: FileId,
        at: u64,
    ) -> Result<Option<ChunkInfo>> {
        for _ in 0..TRIES {
            let begin = Mutation::BeginClone { of: of.config.handle, snapshot, file, at };
            let (source, to) = match self.mutate(begin).await {
                Ok(MasterReply::Clone { of, to }) => (of, to),
                Ok(_) => return Err(Error::unexpected("begin a clone")),
                Err(Error::Refused(refusal)) => {
                    tracing::debug!(%refusal, "no clone");
                    return Ok(None);
                }
                Err(e) => return Err(e),
            };
            let fork = to.handle;
            let made = match self.fork(&source, to).await {
                // One that has grown has more bytes than were asked for.
                Ok(length) if length != of.length => Err(Miss::No(format!("it has {length} bytes by now"))),
                made => made,
            };
            match made {
                Ok(length) => {
                    match self.mutate(Mutation::EndClone { to: fork, length: Some(length) }).await {
                        Ok(MasterReply::Chunk(chunk)) => return Ok(Some(chunk)),
                        Ok(_) => return Err(Error::unexpected("end a clone")),
                        Err(Error::Refused(refusal)) if refusal.code == Code::StaleEpoch => {}
                        Err(Error::Refused(_)) => return Ok(None),
                        Err(e) => return Err(e),
                    }
                }
                Err(miss) => {
                    match self.mutate(Mutation::EndClone { to: fork, length: None }).await {
                        // It may have been given up by others.
                        Ok(_) | Err(Error::Refused(_)) => {}
                        Err(e) => return Err(e),
                    }
                    if let Miss::No(why) = miss {
                        tracing::debug!(chunk = %source.handle, why, "no clone");
                        return Ok(None);
                    }
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
        Ok(None)
    }

    /// Has the members of a chunk make a fork of it; gives its length.
    async fn fork(&self, of: &ChunkConfig, to: ChunkConfig) -> std::result::Result<u64, Miss> {
        let net = |e: common_net::NetError| Miss::No(e.to_string());
        let conn = self.conn(of.primary, Class::Control).await.map_err(net)?;
        let msg = ClientChunk::Fork { handle: of.handle, to };
        match conn.call(&msg, of.epoch.0, vec![], FORK_LIMIT).await.map_err(net)?.0 {
            ClientChunkReply::Forked { length } => Ok(length),
            ClientChunkReply::Refused(Refusal {
                code: Code::StaleEpoch | Code::NotPrimary | Code::Reconfiguring,
                ..
            }) => Err(Miss::Elsewhere),
            ClientChunkReply::Refused(refusal) => Err(Miss::No(refusal.to_string())),
            _ => Err(Miss::No("an answer that does not fit".into())),
        }
    }

    /// Copies a file to another path, in place of whatever file is there; its bytes are those of now. Large parts are not
    /// copied, but named once more.
    pub async fn copy(&self, from: &[u8], to: &[u8]) -> Result<Copied> {
        let attr = self.lookup(from).await?;
        if attr.kind != FileKind::File {
            let code = if attr.kind == FileKind::Directory { Code::IsADirectory } else { Code::BadArgument };
            return Err(Refusal::new(code, String::from_utf8_lossy(from)).into());
        }
        let layout = self.layout(attr.file).await?;
        let mut writer = FileWriter::begin(self.clone(), to).await?;
        let mut copied = Copied::default();
        for chunk in layout.chunks() {
            if may_clone(chunk) && writer.clone_chunk(chunk, layout.snapshot()).await? {
                copied.by_reference += chunk.length;
            } else {
                self.copy_bytes(&layout, chunk, &mut writer).await?;
            }
            copied.bytes += chunk.length;
        }
        writer.finish(attr.mode, attr.mtime_ns, false).await?;
        Ok(copied)
    }

    async fn copy_bytes(&self, layout: &Layout, chunk: &ChunkInfo, writer: &mut FileWriter) -> Result<()> {
        for offset in (0..chunk.length).step_by(WRITE_BYTES_MAX) {
            let len = (chunk.length - offset).min(WRITE_BYTES_MAX as u64);
            for part in read_spans(self, layout, chunk.start + offset, len).await? {
                writer.write(&part).await?;
            }
        }
        Ok(())
    }
}

/// Whether a part of a file is better named once more than copied.
pub(crate) fn may_clone(chunk: &ChunkInfo) -> bool {
    chunk.config.handle == ChunkHandle::HOLE || chunk.length >= CLONE_BYTES_MIN
}
