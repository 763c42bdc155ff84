//! The Raft log: segments of zeros written once and recycled, one writer thread, one
//! `O_DIRECT|O_DSYNC` write a group. Vote, entries, truncation, purge and commit go through one
//! queue, in order. (Measured against a growing file with fdatasync: docs/decisions/0002.)
//!
//! In memory are the last entries (`mirror.rs`); others are read from their segments.
//!
//! A follower has nothing else to do while it writes entries, and somebody waits for just that: it writes them on the
//! thread that has them, if nothing is queued, and spares the way to the writer's thread and back. A leader sends them
//! to its followers meanwhile.

use super::direct::{Aligned, BLOCK};
use super::hung::Hung;
use super::mirror::{Mirror, Place, SEGMENTS_IN_MEMORY, take};
use super::room::Room;
use super::segment::{
    COMMITTED, ENTRY, HEADER_BYTES, MAGIC, MAGIC_V1, PURGE, SEGMENT_BYTES, TRUNCATE, VOTE, What,
    open_segment, push_record, replay,
};
use super::stock::Stock;
use super::{LogId, RaftEntry, TypeConfig, Vote, segment, to_bytes};
use common::checksum::crc32c;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::vote::RaftLeaderId;
use openraft::{OptionalSend, RaftLogReader};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

/// Most bytes of a group, unless one record alone is longer.
const GROUP_BYTES: usize = 1024 * 1024;
/// Most bytes that one read of entries gives.
const READ_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Requests that wait for the writer.
const QUEUE: usize = 4096;

enum Done {
    Flushed(IOFlushed<TypeConfig>),
    Told(tokio::sync::oneshot::Sender<io::Result<()>>),
}

struct Request {
    /// Records: tag, bytes.
    records: Vec<(u8, Vec<u8>)>,
    /// Entries among them.
    entries: Option<RangeInclusive<u64>>,
    /// Entries from here on are none any more.
    truncated: Option<u64>,
    /// Entries up to here may be forgotten.
    purge: u64,
    done: Done,
}

/// The log. Clones read the same one.
#[derive(Clone)]
pub struct LogStore {
    /// Of which master.
    id: u64,
    dir: PathBuf,
    /// The last segment that was read.
    read: Option<Read>,
    mirror: Arc<Mutex<Mirror>>,
    queue: mpsc::SyncSender<Request>,
    /// Requests that were queued and are not done.
    queued: Arc<AtomicUsize>,
    writer: Arc<Mutex<Writer>>,
    hung: Arc<Hung>,
    stock: Arc<Stock>,
}

struct Segment {
    sequence: u64,
    file: File,
}

/// A segment that was read because its entries are not in memory.
type Read = (u64, Arc<BTreeMap<u64, (RaftEntry, usize)>>);

struct Writer {
    dir: PathBuf,
    mirror: Arc<Mutex<Mirror>>,
    /// The last one, which is written to.
    segment: Option<Segment>,
    offset: u64,
    group: u64,
    purged: u64,
    /// The last index of the log.
    end: u64,
    /// What the log says is committed.
    committed: Option<LogId>,
    stock: Arc<Stock>,
    failed: Option<String>,
    hung: Arc<Hung>,
    room: Arc<Room>,
    buffer: Aligned,
}

impl LogStore {
    /// Opens the log of a master in a directory, making it if there is none.
    pub fn open(dir: &Path, id: u64, room: Arc<Room>) -> anyhow::Result<LogStore> {
        std::fs::create_dir_all(dir)?;
        if let Err(error) = common_net::disk::overwrite_in_place(dir) {
            tracing::warn!(%error, path = %dir.display(), "changes will be slow");
        }
        let mut found = vec![];
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
            match name.strip_suffix(".log").and_then(|n| n.parse::<u64>().ok()) {
                Some(sequence) => found.push((sequence, path)),
                None => std::fs::remove_file(path)?,
            }
        }
        found.sort();
        let Replayed { mirror, group, offset } = match replay_all(&found, SEGMENTS_IN_MEMORY)? {
            few if few.mirror.has_what_is_needed() => few,
            // More than that is not committed.
            _ => replay_all(&found, usize::MAX)?,
        };
        let last = found
            .last()
            .map(|(sequence, path)| open_segment(path).map(|file| Segment { sequence: *sequence, file }));
        let segment = last.transpose()?;
        let purged = mirror.purged.map_or(0, |id| id.index);
        let committed = mirror.committed;
        let end = mirror.state().last_log_id.map_or(0, |id| id.index);
        let mirror = Arc::new(Mutex::new(mirror));
        let (queue, requests) = mpsc::sync_channel(QUEUE);
        let hung = Hung::watch(dir)?;
        let stock = Stock::open(dir, room.clone())?;
        let writer = Writer {
            dir: dir.into(),
            mirror: mirror.clone(),
            segment,
            offset,
            group,
            purged,
            end,
            committed,
            stock: stock.clone(),
            failed: None,
            hung: hung.clone(),
            room,
            buffer: Aligned::default(),
        };
        let (writer, queued) = (Arc::new(Mutex::new(writer)), Arc::new(AtomicUsize::new(0)));
        let log = LogStore {
            id,
            dir: dir.into(),
            read: None,
            mirror,
            queue,
            queued: queued.clone(),
            writer: writer.clone(),
            hung,
            stock,
        };
        std::thread::Builder::new()
            .name("raft-log".into())
            .spawn(move || write_queued(requests, &queued, &writer))?;
        Ok(log)
    }

    fn send(&self, request: Request) -> io::Result<()> {
        self.queued.fetch_add(1, Ordering::AcqRel);
        self.queue.send(request).map_err(|_| io::Error::other("the log's writer has ended"))
    }

    /// Writes entries on this thread, if that keeps the order and nothing is the better for another one.
    fn send_entries(&self, request: Request) -> io::Result<()> {
        let vote = self.mirror.lock().expect("never poisoned").vote;
        let follows = vote.is_some_and(|vote| *vote.leader_id.node_id() != self.id);
        if !follows || self.queued.load(Ordering::Acquire) > 0 {
            return self.send(request);
        }
        let mut writer = self.writer.lock().expect("never poisoned");
        let batch = vec![request];
        let result = writer.perform(&batch);
        drop(writer);
        tell(batch, &result);
        Ok(())
    }

    async fn durably(&self, tag: u8, bytes: Vec<u8>, truncated: Option<u64>, purge: u64) -> io::Result<()> {
        let (tell, told) = tokio::sync::oneshot::channel();
        let records = vec![(tag, bytes)];
        self.send(Request { records, entries: None, truncated, purge, done: Done::Told(tell) })?;
        told.await.map_err(io::Error::other)?
    }

    /// Entries of `[start, end)`: some of them, from the first on, up to so many bytes.
    async fn some_entries(&mut self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<RaftEntry>> {
        loop {
            let (sequence, start, until) = {
                let mirror = self.mirror.lock().expect("never poisoned");
                let start = start.max(mirror.purged.map_or(0, |id| id.index + 1));
                match mirror.place(start) {
                    Place::Memory => {
                        self.read = None;
                        return Ok(mirror.in_memory(start, end, bytes_max));
                    }
                    Place::Segment { sequence, until } => (sequence, start, until),
                }
            };
            let entries = match &self.read {
                Some((read, entries)) if *read == sequence => entries.clone(),
                _ => {
                    let dir = self.dir.clone();
                    let read = tokio::task::spawn_blocking(move || segment::entries(&dir, sequence)).await;
                    let entries = match read.map_err(io::Error::other)? {
                        Ok(entries) => Arc::new(entries),
                        // It was given up meanwhile.
                        Err(_) if !self.holds(start) => continue,
                        Err(error) => return Err(error),
                    };
                    self.read = Some((sequence, entries.clone()));
                    entries
                }
            };
            let taken = take(&entries, start, end.min(until), bytes_max);
            if !taken.is_empty() || start >= end {
                return Ok(taken);
            }
            self.read = None;
            if self.holds(start) {
                return Err(io::Error::other(format!(
                    "entry {start} is not in segment {sequence} of the Raft log"
                )));
            }
        }
    }

    /// How many entries are in memory.
    pub fn in_memory(&self) -> usize {
        self.mirror.lock().expect("never poisoned").count()
    }

    /// Whether an entry is not purged.
    fn holds(&self, index: u64) -> bool {
        self.mirror.lock().expect("never poisoned").purged.is_none_or(|id| id.index < index)
    }

    /// How many bytes of the log hold entries after this index.
    pub fn bytes_after(&self, index: u64) -> u64 {
        self.mirror.lock().expect("never poisoned").bytes_after(index)
    }

    /// The last entry that so many bytes of the log follow at least, by whole segments.
    pub fn before(&self, bytes: u64) -> Option<u64> {
        self.mirror.lock().expect("never poisoned").before(bytes)
    }

    /// Somebody may have made room for a segment. Waits for the disk.
    pub fn make_spare(&self) {
        self.stock.make();
    }

    /// For how long its disk has completed nothing.
    pub fn hung(&self) -> Arc<Hung> {
        self.hung.clone()
    }

    /// Whether this log has ever seen a vote: a master without one is new.
    pub fn is_new(&self) -> bool {
        self.mirror.lock().expect("never poisoned").vote.is_none()
    }
}

/// What all segments say, and which group comes next, and where.
struct Replayed {
    mirror: Mirror,
    group: u64,
    offset: u64,
}

/// Reads all segments. The entries of the last few are in memory then; of others it is known where they are.
fn replay_all(found: &[(u64, PathBuf)], in_memory: usize) -> anyhow::Result<Replayed> {
    let mut all = Replayed { mirror: Mirror::default(), group: 0, offset: SEGMENT_BYTES };
    for (i, (sequence, path)) in found.iter().enumerate() {
        let follow = found.len() - 1 - i;
        let bytes = std::fs::read(path)?;
        if bytes.starts_with(&MAGIC_V1.to_le_bytes()) {
            anyhow::bail!(
                "segment {} of the Raft log is of an earlier version; make the cluster anew with this build",
                path.display()
            );
        }
        all.mirror.begin_segment(*sequence);
        let what = if follow < in_memory { What::Entries } else { What::Places };
        (all.group, all.offset) = replay(&bytes, *sequence, all.group, what, &mut all.mirror)?;
        all.mirror.written(all.offset);
        all.mirror.forget(usize::MAX);
        if all.offset == 0 && follow > 0 {
            anyhow::bail!(
                "segment {} of the Raft log is damaged; remove this master and add an empty one",
                path.display()
            );
        }
    }
    Ok(all)
}

/// The writer's thread: writes what is queued, as much as there is at a time.
fn write_queued(requests: mpsc::Receiver<Request>, queued: &AtomicUsize, writer: &Mutex<Writer>) {
    while let Ok(first) = requests.recv() {
        let mut batch = vec![first];
        let mut bytes = size(&batch[0]);
        while bytes < GROUP_BYTES {
            let Ok(more) = requests.try_recv() else { break };
            bytes += size(&more);
            batch.push(more);
        }
        let done = batch.len();
        let mut writer = writer.lock().expect("never poisoned");
        let result = writer.perform(&batch);
        tell(batch, &result);
        drop(writer);
        // From here on entries may be written elsewhere.
        queued.fetch_sub(done, Ordering::AcqRel);
    }
}

/// Tells whoever waits what became of it.
fn tell(batch: Vec<Request>, result: &Result<(), String>) {
    for request in batch {
        let result = result.clone().map_err(io::Error::other);
        match request.done {
            Done::Flushed(callback) => callback.io_completed(result),
            // Who asked may have given up.
            Done::Told(tell) => drop(tell.send(result)),
        }
    }
}

impl Writer {
    /// Makes requests durable, in order, as one group.
    fn perform(&mut self, batch: &[Request]) -> Result<(), String> {
        if let Some(why) = &self.failed {
            return Err(why.clone());
        }
        let hung = self.hung.clone();
        let result = hung.during(|| self.write(batch)).map_err(|e| format!("write the Raft log: {e}"));
        if let Err(why) = &result {
            // A failed write is never tried again: nobody can say what is durable.
            tracing::error!(%why, "the Raft log has failed");
            self.failed = Some(why.clone());
        }
        result
    }

    fn write(&mut self, batch: &[Request]) -> io::Result<()> {
        let mut body = vec![];
        for request in batch {
            self.purged = request.purge.max(self.purged);
            let truncated = request.truncated.map(|first| first.saturating_sub(1));
            let end = request.entries.as_ref().map(|entries| *entries.end()).or(truncated);
            self.end = end.unwrap_or(self.end).max(self.purged);
            for (tag, record) in &request.records {
                push_record(&mut body, *tag, record);
            }
        }
        // What is committed may be in the queue still: it is told when it is here.
        let committed = self.mirror.lock().expect("never poisoned").committed;
        if self.committed != committed && committed.is_some_and(|id| id.index <= self.end) {
            self.committed = committed;
            push_record(&mut body, COMMITTED, &to_bytes(&committed));
        }
        self.group_write(&body)?;
        {
            let mut mirror = self.mirror.lock().expect("never poisoned");
            for request in batch {
                request.truncated.into_iter().for_each(|first| mirror.holds_none_from(first));
                request.entries.iter().for_each(|entries| mirror.holds(entries.clone()));
            }
            mirror.written(self.offset);
            mirror.forget(batch.iter().map(|request| request.records.len()).sum());
        }
        self.recycle();
        Ok(())
    }

    fn group_write(&mut self, body: &[u8]) -> io::Result<()> {
        let len = (HEADER_BYTES + body.len()).next_multiple_of(BLOCK);
        if len as u64 > SEGMENT_BYTES - BLOCK as u64 {
            return Err(io::Error::other("a group is longer than a segment"));
        }
        if self.offset + len as u64 > SEGMENT_BYTES {
            self.roll()?;
        }
        let out = self.buffer.first(len);
        let segment = self.segment.as_ref().expect("rolled");
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4..12].copy_from_slice(&segment.sequence.to_le_bytes());
        out[12..20].copy_from_slice(&self.group.to_le_bytes());
        out[20..24].copy_from_slice(&(body.len() as u32).to_le_bytes());
        out[24..28].copy_from_slice(&crc32c(body).to_le_bytes());
        let crc = crc32c(&out[..28]);
        out[28..32].copy_from_slice(&crc.to_le_bytes());
        out[HEADER_BYTES..HEADER_BYTES + body.len()].copy_from_slice(body);
        out[HEADER_BYTES + body.len()..].fill(0);
        segment.file.write_all_at(out, self.offset)?;
        self.offset += len as u64;
        let ready = self.stock.len() as u64;
        if ready == 0 && self.offset >= SEGMENT_BYTES / 2 && !self.room.lacks_segment() {
            self.stock.want();
        }
        self.room.set_log_left(SEGMENT_BYTES * (1 + ready) - self.offset);
        self.group += 1;
        Ok(())
    }

    /// Begins a new segment; it repeats the state, so that older ones can go.
    fn roll(&mut self) -> io::Result<()> {
        let sequence = self.segment.as_ref().map_or(1, |s| s.sequence + 1);
        let path = segment::path(&self.dir, sequence);
        std::fs::rename(self.stock.take()?, &path)?;
        File::open(&self.dir)?.sync_all()?;
        self.segment = Some(Segment { sequence, file: open_segment(&path)? });
        self.offset = 0;
        let mut body = vec![];
        {
            let mut mirror = self.mirror.lock().expect("never poisoned");
            mirror.begin_segment(sequence);
            if let Some(purged) = &mirror.purged {
                push_record(&mut body, PURGE, &to_bytes(purged));
            }
            if let Some(vote) = &mirror.vote {
                push_record(&mut body, VOTE, &to_bytes(vote));
            }
            push_record(&mut body, COMMITTED, &to_bytes(&self.committed));
        }
        self.group_write(&body)
    }

    fn recycle(&mut self) {
        loop {
            let given_up = self.mirror.lock().expect("never poisoned").give_up_segment(self.purged);
            let Some(sequence) = given_up else { return };
            let path = segment::path(&self.dir, sequence);
            if let Err(error) = self.stock.give(&path, sequence) {
                // It costs space only; the next start sorts it out.
                tracing::warn!(%error, path = %path.display(), "cannot recycle a log segment");
            }
        }
    }
}

fn size(request: &Request) -> usize {
    request.records.iter().map(|(_, r)| r.len() + 5).sum()
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<RaftEntry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let mut from = match range.start_bound() {
            Bound::Included(first) => *first,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let mut all = vec![];
        while from < to {
            let mut some = self.some_entries(from, to, usize::MAX).await?;
            if !self.holds(from) {
                // Those before were purged meanwhile; there are no gaps in a log.
                all.clear();
            }
            let Some(last) = some.last() else { break };
            from = last.log_id.index + 1;
            all.append(&mut some);
        }
        Ok(all)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.mirror.lock().expect("never poisoned").vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<RaftEntry>, io::Error> {
        self.some_entries(start, end, READ_BYTES_MAX).await
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        Ok(self.mirror.lock().expect("never poisoned").state())
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.mirror.lock().expect("never poisoned").vote = Some(*vote);
        self.durably(VOTE, to_bytes(vote), None, 0).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        // Advice only: it need not be durable, so it rides with the next group.
        self.mirror.lock().expect("never poisoned").committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.mirror.lock().expect("never poisoned").committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = vec![];
        let mut range: Option<RangeInclusive<u64>> = None;
        {
            let mut mirror = self.mirror.lock().expect("never poisoned");
            for entry in entries {
                let bytes = to_bytes(&entry);
                let index = entry.log_id.index;
                range = Some(*range.as_ref().map_or(&index, |range| range.start())..=index);
                mirror.insert(entry, bytes.len());
                records.push((ENTRY, bytes));
            }
        }
        let done = Done::Flushed(callback);
        self.send_entries(Request { records, entries: range, truncated: None, purge: 0, done })
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let first = last.map_or(0, |id| id.index + 1);
        self.mirror.lock().expect("never poisoned").truncate(first);
        self.durably(TRUNCATE, to_bytes(&first), Some(first), 0).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.mirror.lock().expect("never poisoned").purge(upto);
        self.durably(PURGE, to_bytes(&upto), None, upto.index).await
    }
}
