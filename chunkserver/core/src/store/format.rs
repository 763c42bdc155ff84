//! What lies on disk: groups and records of the log, pages of checksums, checkpoints.
//! `chunkserver/FORMAT.md` describes each byte and each crash.

use bincode::{Decode, Encode};
use common::checksum::crc32c;
use common::limits::BLOCK_BYTES;
use common::wire::ChunkConfig;
use common::wire::chunk_chunk::{Answers, LogPoint, WriteOp};
use common::{ChunkHandle, Epoch, Serial};

/// Versions of the log's groups, and of what says where a checkpoint begins, newest first. That of the directory is in `meta.toml`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[repr(u16)]
pub enum FormatVersion {
    /// The first version.
    V1 = 1,
}

/// First bytes of a group of the log: "CRNL".
const GROUP_MAGIC: u32 = u32::from_le_bytes(*b"CRNL");
/// Bytes of a group's header.
pub const GROUP_HEADER_BYTES: usize = 64;

/// Header of a group: what became durable with one flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupHeader {
    /// Which start of the store wrote it.
    pub incarnation: u64,
    /// Position of the group in the endless log, in bytes. All groups before it are durable:
    /// only one is ever under way.
    pub position: u64,
    /// Which store: no directory's log is mistaken for another's.
    pub store_tag: u64,
    /// Bytes of the records.
    pub body_len: u32,
    /// CRC-32C of the records.
    pub body_crc: u32,
    /// Where the group before this one ended: less than `position` if the rest of a segment was
    /// too short and was skipped.
    pub previous_end: u64,
    /// Whether records name extents, which are verified if this is the last group.
    pub has_extents: bool,
}

impl GroupHeader {
    /// Bytes on disk of the whole group: whole blocks.
    pub fn disk_bytes(&self) -> u64 {
        (GROUP_HEADER_BYTES as u64 + self.body_len as u64).next_multiple_of(BLOCK_BYTES as u64)
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; GROUP_HEADER_BYTES] {
        let mut out = [0; GROUP_HEADER_BYTES];
        out[0..4].copy_from_slice(&GROUP_MAGIC.to_le_bytes());
        out[4..6].copy_from_slice(&(FormatVersion::V1 as u16).to_le_bytes());
        out[6..8].copy_from_slice(&(self.has_extents as u16).to_le_bytes());
        out[8..16].copy_from_slice(&self.incarnation.to_le_bytes());
        out[16..24].copy_from_slice(&self.position.to_le_bytes());
        out[24..32].copy_from_slice(&self.store_tag.to_le_bytes());
        out[32..36].copy_from_slice(&self.body_len.to_le_bytes());
        out[36..40].copy_from_slice(&self.body_crc.to_le_bytes());
        out[40..48].copy_from_slice(&self.previous_end.to_le_bytes());
        let crc = crc32c(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The header in these bytes, if there is one.
    pub fn decode(bytes: &[u8]) -> Option<GroupHeader> {
        let bytes = bytes.get(..GROUP_HEADER_BYTES)?;
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let flags = u16::from_le_bytes([bytes[6], bytes[7]]);
        let version = u16::from_le_bytes([bytes[4], bytes[5]]);
        let good = u32_at(0) == GROUP_MAGIC
            && u32_at(60) == crc32c(&bytes[..60])
            && version == FormatVersion::V1 as u16
            && flags < 2
            && u32_at(32) as usize <= common::limits::LOG_GROUP_BYTES_MAX
            && bytes[48..60].iter().all(|b| *b == 0);
        good.then(|| GroupHeader {
            incarnation: u64_at(8),
            position: u64_at(16),
            store_tag: u64_at(24),
            body_len: u32_at(32),
            body_crc: u32_at(36),
            previous_end: u64_at(40),
            has_extents: flags == 1,
        })
    }
}

/// One record of the log. Variants are only ever appended.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Record {
    /// The chunk exists here under this configuration; tails of older epochs are frozen.
    Config(ChunkConfig),
    /// A write, applied.
    Write {
        /// The chunk.
        handle: ChunkHandle,
        /// What.
        op: WriteOp,
        /// Where its bytes are.
        place: Place,
    },
    /// Everything up to here is committed.
    Committed {
        /// The chunk.
        handle: ChunkHandle,
        /// The commit point.
        serial: Serial,
    },
    /// The tail after this serial is discarded.
    Cut {
        /// The chunk.
        handle: ChunkHandle,
        /// Last serial to keep.
        keep: Serial,
    },
    /// The store is no member from this epoch on; `Epoch::DELETED` deletes the chunk.
    Removed {
        /// The chunk.
        handle: ChunkHandle,
        /// The floor.
        epoch: Epoch,
    },
    /// A whole copy of a chunk, in place of whatever was here.
    Install {
        /// The chunk, as in a checkpoint.
        dump: Vec<CheckpointEntry>,
        /// Where the bytes are that were copied for it, with their checksums.
        runs: Vec<Run>,
    },
    /// A copy below this epoch is of no use any more, and gone.
    Discarded {
        /// The chunk.
        handle: ChunkHandle,
        /// The floor.
        epoch: Epoch,
    },
    /// Another chunk of the same bytes as this one has, all of them committed.
    Fork {
        /// The chunk.
        handle: ChunkHandle,
        /// Its last record.
        point: LogPoint,
        /// The other one's configuration.
        config: ChunkConfig,
    },
}

impl Record {
    /// The chunks that it is about.
    pub fn handles(&self) -> impl Iterator<Item = ChunkHandle> {
        let fork = match self {
            Record::Fork { config, .. } => Some(config.handle),
            _ => None,
        };
        self.handle().into_iter().chain(fork)
    }

    fn handle(&self) -> Option<ChunkHandle> {
        match self {
            Record::Fork { handle, .. } => Some(*handle),
            Record::Config(config) => Some(config.handle),
            Record::Write { handle, .. }
            | Record::Committed { handle, .. }
            | Record::Cut { handle, .. }
            | Record::Removed { handle, .. }
            | Record::Discarded { handle, .. } => Some(*handle),
            Record::Install { dump, .. } => dump.iter().find_map(|entry| match entry {
                CheckpointEntry::Chunk(chunk) => Some(chunk.config.handle),
                _ => None,
            }),
        }
    }

    /// The runs of extents that it names.
    pub fn runs(&self) -> &[Run] {
        match self {
            Record::Write { place: Place::Runs(runs), .. } | Record::Install { runs, .. } => runs,
            _ => &[],
        }
    }
}

/// Where the bytes of a write are.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Place {
    /// In the record.
    Inline {
        /// The bytes.
        data: Vec<u8>,
        /// A CRC-32C a slice.
        crcs: Vec<u32>,
    },
    /// In extents, one run after another.
    Runs(Vec<Run>),
}

/// Bytes that lie together in a segment, from the start of a block.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Run {
    /// The segment.
    pub segment: u32,
    /// First block in it.
    pub block: u32,
    /// Bytes.
    pub len: u32,
    /// A CRC-32C a slice.
    pub crcs: Vec<u32>,
}

impl Run {
    /// Blocks that it takes.
    pub fn blocks(&self) -> u32 {
        self.len.div_ceil(BLOCK_BYTES as u32)
    }
}

/// The body of a group of these records, behind what is there.
pub fn encode_records(records: &[Vec<u8>], out: &mut Vec<u8>) {
    for record in records {
        out.extend_from_slice(&(record.len() as u32).to_le_bytes());
        out.extend_from_slice(record);
    }
}

/// The records in the body of a group, or `None` if it is not one.
pub fn decode_records(mut body: &[u8]) -> Option<Vec<Record>> {
    let mut records = vec![];
    while !body.is_empty() {
        let (len, rest) = body.split_first_chunk::<4>()?;
        let len = u32::from_le_bytes(*len) as usize;
        let record = rest.get(..len)?;
        records.push(common::wire::from_slice(record).ok()?);
        body = &rest[len..];
    }
    Some(records)
}

/// Checksums in one page.
pub const PAGE_CRCS: usize = (BLOCK_BYTES - 16) / 4;
/// Bytes of a page with its twin: the older of the two is overwritten.
pub const PAGE_PAIR_BYTES: u64 = 2 * BLOCK_BYTES as u64;

/// One page of a segment's checksum table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Rises with each write of the page.
    pub version: u64,
    /// Which page of the segment.
    pub number: u32,
    /// One checksum a block.
    pub crcs: Vec<u32>,
}

impl Page {
    /// A page on which nothing was written.
    pub fn empty(number: u32) -> Page {
        Page { version: 0, number, crcs: vec![0; PAGE_CRCS] }
    }

    /// The page's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK_BYTES);
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        for crc in &self.crcs {
            out.extend_from_slice(&crc.to_le_bytes());
        }
        let crc = crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        assert_eq!(out.len(), BLOCK_BYTES);
        out
    }

    /// The newer good page of a pair. Two blocks of zeros are an empty page; no good page is rot.
    pub fn decode_pair(pair: &[u8], number: u32) -> Option<Page> {
        if pair.iter().all(|b| *b == 0) {
            return Some(Page::empty(number));
        }
        let good = pair.chunks_exact(BLOCK_BYTES).filter_map(Page::decode);
        good.filter(|p| p.number == number).max_by_key(|p| p.version)
    }

    fn decode(bytes: &[u8]) -> Option<Page> {
        let (content, crc) = bytes.split_at(BLOCK_BYTES - 4);
        if crc32c(content) != u32::from_le_bytes(crc.try_into().expect("4 bytes")) {
            return None;
        }
        let word = |c: &[u8]| u32::from_le_bytes(c.try_into().expect("4 bytes"));
        Some(Page {
            version: u64::from_le_bytes(content[..8].try_into().expect("8 bytes")),
            number: word(&content[8..12]),
            crcs: content[12..].chunks_exact(4).map(word).collect(),
        })
    }
}

/// First bytes of each block of a checkpoint: "CRNC".
pub const CHECKPOINT_MAGIC: u32 = u32::from_le_bytes(*b"CRNC");
/// Bytes of a block of a checkpoint.
pub const CHECKPOINT_BLOCK_BYTES: usize = 1024 * 1024;
/// Bytes of the head of a checkpoint's block.
pub const CHECKPOINT_HEAD_BYTES: usize = 32;

/// Head of a checkpoint's block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointHead {
    /// Which checkpoint.
    pub sequence: u64,
    /// Which block of it.
    pub index: u32,
    /// Bytes of entries in the block.
    pub len: u32,
    /// Whether it is the last.
    pub last: bool,
    /// CRC-32C of the entries.
    pub crc: u32,
}

impl CheckpointHead {
    /// The head's bytes.
    pub fn encode(&self) -> [u8; CHECKPOINT_HEAD_BYTES] {
        let mut out = [0; CHECKPOINT_HEAD_BYTES];
        out[0..4].copy_from_slice(&CHECKPOINT_MAGIC.to_le_bytes());
        out[4..12].copy_from_slice(&self.sequence.to_le_bytes());
        out[12..16].copy_from_slice(&self.index.to_le_bytes());
        out[16..20].copy_from_slice(&self.len.to_le_bytes());
        out[20..24].copy_from_slice(&(self.last as u32).to_le_bytes());
        out[24..28].copy_from_slice(&self.crc.to_le_bytes());
        let crc = crc32c(&out[..28]);
        out[28..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The head in these bytes, if there is one.
    pub fn decode(bytes: &[u8]) -> Option<CheckpointHead> {
        let bytes = bytes.get(..CHECKPOINT_HEAD_BYTES)?;
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let good = u32_at(0) == CHECKPOINT_MAGIC
            && u32_at(28) == crc32c(&bytes[..28])
            && u32_at(16) as usize <= CHECKPOINT_BLOCK_BYTES - CHECKPOINT_HEAD_BYTES
            && u32_at(20) < 2;
        good.then(|| CheckpointHead {
            sequence: u64::from_le_bytes(bytes[4..12].try_into().expect("8 bytes")),
            index: u32_at(12),
            len: u32_at(16),
            last: u32_at(20) == 1,
            crc: u32_at(24),
        })
    }
}

/// One entry of a checkpoint. Variants are only ever appended.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum CheckpointEntry {
    /// First: where the log goes on, and how many segments of extents there are.
    Head {
        /// Version of the directory.
        version: FormatVersion,
        /// Replay starts at this position of the log.
        position: u64,
        /// Which store.
        store_tag: u64,
        /// Segments of extents.
        segments: u32,
    },
    /// A chunk; its extents and its tail follow.
    Chunk(ChunkDump),
    /// More extents of the last chunk, by offset.
    Extents(Vec<ExtentDump>),
    /// The next record of the last chunk's tail.
    Tail(WriteOp, Place),
    /// Chunks that this store must not take part in below an epoch.
    Floors(Vec<(ChunkHandle, Epoch)>),
    /// Below this handle the floors of chunks that are not here may have been forgotten.
    Horizon(ChunkHandle),
    /// Second: who wrote it, and whether it says everything.
    Written {
        /// The life of the store. What another one has left in the file does not follow from this one's.
        by: u64,
        /// Only what has changed since this checkpoint, which comes before it in the file; floors are all there.
        since: Option<u64>,
    },
    /// The chunk is not here any more.
    Gone(ChunkHandle),
}

/// A chunk in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ChunkDump {
    /// Its configuration.
    pub config: ChunkConfig,
    /// Whether the store is no member any more.
    pub removed: bool,
    /// Bytes that are committed.
    pub length: u32,
    /// The last committed record.
    pub last: LogPoint,
    /// Remembered answers.
    pub answers: Vec<Answers>,
}

/// An extent in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ExtentDump {
    /// First byte in the chunk.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
    /// Bytes of the run before the first.
    pub skip: u32,
    /// Bytes of the run.
    pub run: u32,
    /// Segment and first block, or the bytes and their checksums.
    pub place: Result<(u32, u32), (Vec<u8>, Vec<u32>)>,
    /// The last write in it.
    pub last: LogPoint,
}
