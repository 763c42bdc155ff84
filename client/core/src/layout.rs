//! Where the bytes of a file are: its chunks, one after another.

use common::Serial;
use common::wire::client_master::ChunkInfo;

/// The chunks of a file, as last told by the masters; the last length may be newer.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    chunks: Vec<ChunkInfo>,
    /// The snapshot in which the file is seen; 0: none.
    snapshot: u64,
    /// The last serial of the open last chunk when it was asked; 0 without one.
    serial: Serial,
}

/// A range of a file that lies in one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Which chunk, by index in the file.
    pub chunk: usize,
    /// First byte in the chunk.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl Layout {
    /// These chunks.
    pub fn new(chunks: Vec<ChunkInfo>, snapshot: u64) -> Layout {
        Layout { chunks, snapshot, serial: Serial(0) }
    }

    /// The snapshot in which the file is seen; 0: none.
    pub fn snapshot(&self) -> u64 {
        self.snapshot
    }

    /// The last serial of the open last chunk when its primary was asked; 0 without one.
    pub fn serial(&self) -> Serial {
        self.serial
    }

    /// The open last chunk's primary says so.
    pub fn set_serial(&mut self, serial: Serial) {
        self.serial = serial;
    }

    /// The chunks.
    pub fn chunks(&self) -> &[ChunkInfo] {
        &self.chunks
    }

    /// A chunk was added.
    pub fn push(&mut self, mut chunk: ChunkInfo) {
        chunk.start = self.len();
        self.chunks.push(chunk);
    }

    /// The last chunk is known to be so long.
    pub fn set_last_length(&mut self, length: u64) {
        if let Some(last) = self.chunks.last_mut() {
            last.length = length;
        }
    }

    /// Replaces what is known of a chunk's members.
    pub fn set_config(&mut self, config: common::wire::ChunkConfig) {
        if let Some(chunk) = self.chunks.iter_mut().find(|c| c.config.handle == config.handle) {
            chunk.config = config;
        }
    }

    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.chunks.last().map_or(0, |c| c.start + c.length)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The parts of a range, chunk by chunk, each of at most `max` bytes; what lies beyond the end
    /// is left out. Parts end at multiples of `max` within their chunk.
    pub fn spans(&self, offset: u64, len: u64, max: u64) -> Vec<Span> {
        let end = offset.saturating_add(len).min(self.len());
        let mut at = offset;
        let mut spans = vec![];
        let first = self.chunks.partition_point(|c| c.start + c.length <= offset);
        for (index, chunk) in self.chunks.iter().enumerate().skip(first) {
            let chunk_end = (chunk.start + chunk.length).min(end);
            while at < chunk_end {
                let within = at - chunk.start;
                let len = (max - within % max).min(chunk_end - at);
                spans.push(Span { chunk: index, offset: within, len });
                at += len;
            }
        }
        spans
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::wire::ChunkConfig;
    use common::{ChunkHandle, Epoch, StoreId};

    fn chunk(length: u64) -> ChunkInfo {
        let config = ChunkConfig {
            handle: ChunkHandle(1),
            epoch: Epoch(1),
            primary: StoreId(1),
            members: vec![StoreId(1)],
            sealed: None,
            wait_ms: 0,
        };
        ChunkInfo { index: 0, length, config, start: 0 }
    }

    #[test]
    fn spans_cover_the_range_once_and_stop_at_the_end() {
        let mut layout = Layout::default();
        for length in [100, 0, 50, 7] {
            layout.push(chunk(length));
        }
        assert_eq!(layout.len(), 157);
        for offset in 0..160 {
            for len in 0..160 {
                let spans = layout.spans(offset, len, 16);
                let mut at = offset;
                for s in &spans {
                    assert_eq!(layout.chunks()[s.chunk].start + s.offset, at);
                    assert!(s.len > 0 && s.len <= 16);
                    assert!(s.offset + s.len <= layout.chunks()[s.chunk].length);
                    at += s.len;
                }
                assert_eq!(at, (offset + len).min(157).max(offset));
            }
        }
    }
}
