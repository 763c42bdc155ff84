//! Recovery: checkpoint, then the log's tail. A decision table with letters (FORMAT.md):
//!
//! | case | at the expected position lies | action |
//! |---|---|---|
//! | A | a group of this position, records good | replay it |
//! | B | no group of this position, and none follows | the log ends here |
//! | C | a group with bad records, and none follows | torn, never acknowledged: the log ends here |
//! | D | no good group, but a later one follows | rot: the store is refused |
//! | E | a good last group, and extents that it names and leaves in use do not verify | never acknowledged: the log ends before it |
//! | F | no good group, but one of a later lap here or next | the log was recycled past this checkpoint: refused |
//! | G | no good checkpoint | refused |
//! | H | the newest checkpoint is bad, one before it good | replay from the newest good one; F decides |

use super::alloc::{Alloc, Blocks};
use super::checkpoint::Loaded;
use super::crc::CrcTable;
use super::format::{GROUP_HEADER_BYTES, GroupHeader, Record, Run, decode_records};
use super::log::{Log, locate};
use super::{Recovered, Store, StoreConfig, Ticket};
use crate::io::FileRef;
use crate::state::ChunkState;
use bytes::Bytes;
use common::checksum::crc32c;
use common::limits::{BLOCK_BYTES, LOG_GROUP_BYTES_MAX};
use common::{ChunkHandle, Epoch};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Why a store cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// The disk does not answer.
    #[error("read {file:?} at {offset}: {why}")]
    Read {
        /// Which file.
        file: FileRef,
        /// Where.
        offset: u64,
        /// What the system said.
        why: String,
    },
    /// Case G.
    #[error(
        "neither checkpoint is good (case G): the store's index is lost; move the directory away and start with an empty one"
    )]
    NoCheckpoint,
    /// Case D or F.
    #[error(
        "the log is damaged at position {position} (case {case}): what follows cannot be trusted; move the directory away and start with an empty one"
    )]
    LogRot {
        /// Where.
        position: u64,
        /// Which case.
        case: char,
    },
    /// The directory is another's, or of another version.
    #[error("the files belong to another store")]
    OtherStore,
    /// Records contradict the state: a bug or undetected rot.
    #[error("the log contradicts itself at position {position}: {what}")]
    Contradiction {
        /// Where.
        position: u64,
        /// What.
        what: String,
    },
}

/// Reads `len` bytes of a file at an offset; past its end come zeros.
pub type ReadFn<'a> = dyn FnMut(FileRef, u64, u32) -> Result<Bytes, String> + 'a;

/// Opens a store. What `read` gives must be durable: after a process was killed, writes that were
/// complete are in the disk's cache still, and what is recovered is told to others as durable. `has_room` says
/// whether a segment of extents has its room.
pub fn recover(
    config: StoreConfig,
    read: &mut ReadFn,
    has_room: &dyn Fn(u32) -> bool,
) -> Result<Recovered, RecoverError> {
    let mut reader = Reader { read, config: &config };
    let mut found: Vec<Loaded> = vec![];
    for slot in 0..2 {
        found.extend(reader.checkpoint(slot)?);
    }
    found.sort_by_key(|l| l.sequence);
    let Some(mut loaded) = found.pop() else {
        return Err(RecoverError::NoCheckpoint);
    };
    let replayed = replay(&mut reader, &mut loaded)?;
    let mut alloc = Alloc::new(config.extent_segment_bytes);
    // Segments that were added after the checkpoint are told by the records that use them.
    let used = loaded.chunks.values().flat_map(|c| c.blocks()).map(|b| b.segment + 1).max();
    for segment in 0..loaded.segments.max(used.unwrap_or(0)) {
        alloc.add_segment(segment);
    }
    for blocks in loaded.chunks.values().flat_map(|c| c.blocks()) {
        claim(&mut alloc, blocks);
    }
    // The older checkpoint may refer to what was in them.
    for segment in (0..alloc.segments()).filter(|segment| !has_room(*segment)) {
        if alloc.is_empty(segment) {
            alloc.hollow_out(segment);
        }
    }
    let of_older = found.pop().into_iter().flat_map(|older| older.chunks.into_values());
    let of_older = of_older.flat_map(|c| c.blocks()).flat_map(|blocks| alloc.take_rest(blocks)).collect();
    let mut crcs = CrcTable::default();
    for run in &replayed.runs {
        crcs.set(run.segment, run.block, &run.crcs);
    }
    let (bytes, slots) = (config.log_segment_bytes, config.log_segments);
    let log: Log<Ticket> =
        Log::new(bytes, slots, config.tag, config.incarnation, loaded.position, replayed.head);
    Ok(Recovered {
        store: Store::new(config, log, alloc, crcs),
        chunks: loaded.chunks.into_iter().map(|(h, c)| (h, Arc::new(c))).collect(),
        floors: loaded.floors,
        horizon: loaded.horizon,
        checkpoint: loaded.sequence,
        of_older,
        replayed: replayed.records,
    })
}

/// Takes the blocks of an extent; a block that is taken already is shared by two.
fn claim(alloc: &mut Alloc, blocks: Blocks) {
    if alloc.take_exactly(blocks) {
        return;
    }
    for block in blocks.block..blocks.block + blocks.count {
        if !alloc.take_exactly(Blocks { block, count: 1, ..blocks }) {
            alloc.share(blocks.segment, block);
        }
    }
}

pub(super) struct Reader<'a, 'b> {
    read: &'a mut ReadFn<'b>,
    pub config: &'a StoreConfig,
}

struct Group {
    header: GroupHeader,
    records: Vec<Record>,
}

impl Reader<'_, '_> {
    pub fn bytes(&mut self, file: FileRef, offset: u64, len: u32) -> Result<Bytes, RecoverError> {
        (self.read)(file, offset, len).map_err(|why| RecoverError::Read { file, offset, why })
    }

    /// The header of a group that lies at this position of the endless log, whatever it says.
    fn header(&mut self, position: u64) -> Result<Option<GroupHeader>, RecoverError> {
        let (file, offset) = locate(position, self.config.log_segment_bytes, self.config.log_segments);
        let block = self.bytes(file, offset, BLOCK_BYTES as u32)?;
        Ok(GroupHeader::decode(&block).filter(|h| h.store_tag == self.config.tag))
    }

    fn group(&mut self, header: GroupHeader) -> Result<Option<Group>, RecoverError> {
        let (file, offset) = locate(header.position, self.config.log_segment_bytes, self.config.log_segments);
        if offset + header.disk_bytes() > self.config.log_segment_bytes {
            return Ok(None);
        }
        let bytes = self.bytes(file, offset, header.disk_bytes() as u32)?;
        let body = &bytes[GROUP_HEADER_BYTES..GROUP_HEADER_BYTES + header.body_len as usize];
        let good = crc32c(body) == header.body_crc;
        Ok(good.then(|| decode_records(body)).flatten().map(|records| Group { header, records }))
    }

    /// The case, if a group follows that was written after the one expected at `position`: D if
    /// that one was durable, then, and is gone; F if it was overwritten a lap of the ring later.
    fn what_follows(&mut self, position: u64, incarnation: u64) -> Result<Option<char>, RecoverError> {
        let segment = self.config.log_segment_bytes;
        let next_segment = (position / segment + 1) * segment;
        let end = (position + LOG_GROUP_BYTES_MAX as u64 + BLOCK_BYTES as u64).min(next_segment);
        let (file, offset) = locate(position, segment, self.config.log_segments);
        let window = self.bytes(file, offset, (end - position) as u32)?;
        let tag = self.config.tag;
        let case = |h: GroupHeader, at: u64| {
            let ours = h.store_tag == tag && h.incarnation >= incarnation;
            (ours && h.position >= at).then_some(if h.position == at { 'D' } else { 'F' })
        };
        for at in (position + BLOCK_BYTES as u64..end).step_by(BLOCK_BYTES) {
            let here = GroupHeader::decode(&window[(at - position) as usize..]);
            if let Some(case) = here.and_then(|h| case(h, at)) {
                return Ok(Some(case));
            }
        }
        Ok(self.header(next_segment)?.and_then(|h| case(h, next_segment)))
    }

    /// Whether these blocks of a run hold what it says.
    fn run_verifies(&mut self, run: &Run, used: &BTreeSet<(u32, u32)>) -> Result<bool, RecoverError> {
        let blocks = run.block..run.block + run.blocks();
        if used.range((run.segment, blocks.start)..(run.segment, blocks.end)).next().is_none() {
            return Ok(true);
        }
        let offset = run.block as u64 * BLOCK_BYTES as u64;
        let data = self.bytes(FileRef::Extents(run.segment), offset, run.blocks() * BLOCK_BYTES as u32)?;
        let slices = data[..run.len as usize].chunks(BLOCK_BYTES);
        let mut of_block = blocks.zip(slices).zip(&run.crcs);
        Ok(of_block.all(|((b, slice), crc)| !used.contains(&(run.segment, b)) || crc32c(slice) == *crc))
    }
}

struct Replayed {
    /// Where the next group goes.
    head: u64,
    records: u64,
    /// Runs in the order of their records: their checksums are newer than the pages.
    runs: Vec<Run>,
}

fn replay(reader: &mut Reader, loaded: &mut Loaded) -> Result<Replayed, RecoverError> {
    let segment = reader.config.log_segment_bytes;
    let mut out = Replayed { head: loaded.position, records: 0, runs: vec![] };
    let mut incarnation = 0;
    // The last good group: applied once the next one proves it durable, or it is verified.
    let mut last: Option<Group> = None;
    loop {
        let expected = last.as_ref().map_or(loaded.position, |g| g.header.position + g.header.disk_bytes());
        let header = reader.header(expected)?;
        // Nearly always the middle of another group lies here then; what follows tells as well.
        if header.is_some_and(|h| h.position > expected) {
            return Err(RecoverError::LogRot { position: expected, case: 'F' });
        }
        let mut next = header.filter(|h| h.position == expected && h.incarnation >= incarnation);
        if next.is_none() && !expected.is_multiple_of(segment) {
            // A group that did not fit went to the next segment, and says where it comes from.
            let start = (expected / segment + 1) * segment;
            let skipped = reader.header(start)?;
            next = skipped.filter(|h| {
                h.position == start && h.previous_end == expected && h.incarnation >= incarnation
            });
        }
        let group = match next {
            Some(header) => reader.group(header)?,
            None => None,
        };
        let Some(group) = group else {
            match reader.what_follows(expected, incarnation)? {
                Some(case) => return Err(RecoverError::LogRot { position: expected, case }),
                None => break,
            }
        };
        incarnation = group.header.incarnation;
        if let Some(proved) = last.replace(group) {
            apply(proved, loaded, &mut out)?;
        }
    }
    if let Some(group) = last {
        apply_last(reader, group, loaded, &mut out)?;
    }
    Ok(out)
}

/// Case E: a last group whose data did not land is dropped. Only what is still in use after it
/// can tell: what it lets go of may have been written to since, by a store that came this far
/// before.
fn apply_last(
    reader: &mut Reader,
    group: Group,
    loaded: &mut Loaded,
    out: &mut Replayed,
) -> Result<(), RecoverError> {
    let handles: BTreeSet<ChunkHandle> = group.records.iter().flat_map(Record::handles).collect();
    let before: Vec<_> = handles
        .into_iter()
        .map(|h| (h, loaded.chunks.get(&h).cloned(), loaded.floors.get(&h).copied()))
        .collect();
    let (head, records, runs) = (out.head, out.records, out.runs.len());
    apply(group, loaded, out)?;
    let used: BTreeSet<(u32, u32)> = before
        .iter()
        .filter_map(|(handle, ..)| loaded.chunks.get(handle))
        .flat_map(|chunk| chunk.blocks())
        .flat_map(|b| (b.block..b.block + b.count).map(move |block| (b.segment, block)))
        .collect();
    for run in &out.runs[runs..] {
        if reader.run_verifies(run, &used)? {
            continue;
        }
        for (handle, chunk, floor) in before {
            match chunk {
                Some(chunk) => loaded.chunks.insert(handle, chunk),
                None => loaded.chunks.remove(&handle),
            };
            match floor {
                Some(floor) => loaded.floors.insert(handle, floor),
                None => loaded.floors.remove(&handle),
            };
        }
        (out.head, out.records) = (head, records);
        out.runs.truncate(runs);
        return Ok(());
    }
    Ok(())
}

fn apply(group: Group, loaded: &mut Loaded, out: &mut Replayed) -> Result<(), RecoverError> {
    let position = group.header.position;
    out.head = position + group.header.disk_bytes();
    for record in group.records {
        out.records += 1;
        out.runs.extend(record.runs().iter().cloned());
        apply_record(record, loaded).map_err(|what| RecoverError::Contradiction { position, what })?;
    }
    Ok(())
}

/// Applies a record. The checkpoint may hold what a record says already: then it changes nothing.
fn apply_record(record: Record, loaded: &mut Loaded) -> Result<(), String> {
    match record {
        Record::Config(config) => {
            let chunk = loaded.chunks.entry(config.handle).or_insert_with(|| ChunkState::new(config.clone()));
            if config.epoch >= chunk.config.epoch {
                chunk.removed = false;
                chunk.config = config;
            }
        }
        Record::Write { handle, op, place } => {
            let Some(chunk) = loaded.chunks.get_mut(&handle) else {
                // Deleted by a later record that the checkpoint knows.
                return match loaded.floors.get(&handle) {
                    Some(_) => Ok(()),
                    None => Err(format!("a write to {handle}, which does not exist")),
                };
            };
            let after = chunk.last_point().1;
            if op.serial == after.next() {
                chunk.push(op, place);
            } else if op.serial > after {
                return Err(format!("{handle} jumps from {after} to {}", op.serial));
            }
        }
        Record::Committed { handle, serial } => {
            if let Some(chunk) = loaded.chunks.get_mut(&handle) {
                chunk.commit(serial);
            }
        }
        Record::Cut { handle, keep } => {
            if let Some(chunk) = loaded.chunks.get_mut(&handle) {
                chunk.cut(keep.max(chunk.committed()));
            }
        }
        Record::Install { dump, .. } => {
            let Some(state) = ChunkState::from_dump(dump) else {
                return Err("an installed copy is not one".into());
            };
            let handle = state.config.handle;
            let newer = |c: &ChunkState| (c.config.epoch, c.last) >= (state.config.epoch, state.last);
            let gone = loaded.floors.get(&handle).is_some_and(|floor| *floor > state.config.epoch);
            if !gone && !loaded.chunks.get(&handle).is_some_and(newer) {
                loaded.chunks.insert(handle, state);
            }
        }
        Record::Fork { handle, point, config } => {
            let to = config.handle;
            let known = loaded.chunks.contains_key(&to) || loaded.floors.contains_key(&to);
            // A checkpoint that has the chunk as it was later has the fork, too, or knows its end.
            let chunk = loaded.chunks.get(&handle).filter(|c| c.last == point && c.tail.is_empty());
            if let Some(fork) = chunk.filter(|_| !known).map(|c| c.fork(config)) {
                loaded.chunks.insert(to, fork);
            }
        }
        Record::Discarded { handle, epoch } => {
            let floor = loaded.floors.entry(handle).or_insert(epoch);
            *floor = epoch.max(*floor);
            if loaded.chunks.get(&handle).is_some_and(|c| c.config.epoch < epoch) {
                loaded.chunks.remove(&handle);
            }
        }
        Record::Removed { handle, epoch } => {
            let floor = loaded.floors.entry(handle).or_insert(epoch);
            *floor = epoch.max(*floor);
            if epoch == Epoch::DELETED {
                loaded.chunks.remove(&handle);
            } else if let Some(chunk) = loaded.chunks.get_mut(&handle) {
                chunk.removed |= chunk.config.epoch < epoch;
            }
        }
    }
    Ok(())
}
