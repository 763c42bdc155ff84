//! The Raft log: segments of zeros written once and recycled, one writer thread, one
//! `O_DIRECT|O_DSYNC` write a group. Vote, entries, truncation, purge and commit go through one
//! queue, in order. (Measured against a growing file with fdatasync: docs/decisions/0002.)
//!
//! A follower has nothing else to do while it writes entries, and somebody waits for just that: it writes them on the
//! thread that has them, if nothing is queued, and spares the way to the writer's thread and back. A leader sends them
//! to its followers meanwhile.

use super::hung::Hung;
use super::room::Room;
use super::segment::{
    BLOCK, COMMITTED, ENTRY, HEADER_BYTES, MAGIC, MAGIC_V1, Mirror, PURGE, SEGMENT_BYTES, TRUNCATE, VOTE,
    open_segment, push_record, replay, zero_file,
};
use super::{LogId, RaftEntry, TypeConfig, Vote, to_bytes};
use common::checksum::crc32c;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::vote::RaftLeaderId;
use openraft::{OptionalSend, RaftLogReader};
use std::collections::VecDeque;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::ops::{Bound, RangeBounds};
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
    /// Where the log ends after them, if they change that.
    end: Option<u64>,
    /// Entries up to here may be forgotten.
    purge: u64,
    done: Done,
}

/// The log. Clones read the same one.
#[derive(Clone)]
pub struct LogStore {
    /// Of which master.
    id: u64,
    mirror: Arc<Mutex<Mirror>>,
    queue: mpsc::SyncSender<Request>,
    /// Requests that were queued and are not done.
    queued: Arc<AtomicUsize>,
    writer: Arc<Mutex<Writer>>,
    hung: Arc<Hung>,
}

struct Segment {
    sequence: u64,
    file: File,
    last_index: u64,
}

struct Writer {
    dir: PathBuf,
    mirror: Arc<Mutex<Mirror>>,
    segments: VecDeque<Segment>,
    offset: u64,
    group: u64,
    purged: u64,
    /// The last index of the log.
    end: u64,
    /// What the log says is committed.
    committed: Option<LogId>,
    spare: Vec<PathBuf>,
    /// A spare one was made, or could not be made, since the last segment was begun.
    prepared: bool,
    failed: Option<String>,
    hung: Arc<Hung>,
    room: Arc<Room>,
    /// Twice the memory that is needed, so that an aligned part of it can be used.
    buffer: Vec<u8>,
}

impl LogStore {
    /// Opens the log of a master in a directory, making it if there is none.
    pub fn open(dir: &Path, id: u64, room: Arc<Room>) -> anyhow::Result<LogStore> {
        std::fs::create_dir_all(dir)?;
        if let Err(error) = common_net::disk::overwrite_in_place(dir) {
            tracing::warn!(%error, path = %dir.display(), "changes will be slow");
        }
        let mut mirror = Mirror::default();
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
        let mut segments = VecDeque::new();
        let (mut group, mut offset) = (0, SEGMENT_BYTES);
        let last = found.len().saturating_sub(1);
        for (i, (sequence, path)) in found.into_iter().enumerate() {
            let bytes = std::fs::read(&path)?;
            if bytes.starts_with(&MAGIC_V1.to_le_bytes()) {
                anyhow::bail!(
                    "segment {} of the Raft log is of an earlier version; make the cluster anew with this build",
                    path.display()
                );
            }
            let mut last_index = 0;
            let (next, end) = replay(&bytes, sequence, group, &mut mirror, &mut last_index)?;
            if end == 0 && i < last {
                anyhow::bail!(
                    "segment {} of the Raft log is damaged; remove this master and add an empty one",
                    path.display()
                );
            }
            (group, offset) = (next, end);
            segments.push_back(Segment { sequence, file: open_segment(&path)?, last_index });
        }
        let purged = mirror.purged.map_or(0, |id| id.index);
        let committed = mirror.committed;
        let end = mirror.entries.keys().next_back().copied().unwrap_or(0).max(purged);
        let mirror = Arc::new(Mutex::new(mirror));
        let (queue, requests) = mpsc::sync_channel(QUEUE);
        let hung = Hung::watch(dir)?;
        let writer = Writer {
            dir: dir.into(),
            mirror: mirror.clone(),
            segments,
            offset,
            group,
            purged,
            end,
            committed,
            spare: vec![],
            prepared: false,
            failed: None,
            hung: hung.clone(),
            room,
            buffer: vec![],
        };
        let (writer, queued) = (Arc::new(Mutex::new(writer)), Arc::new(AtomicUsize::new(0)));
        let log = LogStore { id, mirror, queue, queued: queued.clone(), writer: writer.clone(), hung };
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
        if writer.wants_spare() {
            drop(writer);
            return self.send(request);
        }
        let batch = vec![request];
        let result = writer.perform(&batch);
        drop(writer);
        tell(batch, &result);
        Ok(())
    }

    async fn durably(&self, tag: u8, bytes: Vec<u8>, end: Option<u64>, purge: u64) -> io::Result<()> {
        let (tell, told) = tokio::sync::oneshot::channel();
        self.send(Request { records: vec![(tag, bytes)], end, purge, done: Done::Told(tell) })?;
        told.await.map_err(io::Error::other)?
    }

    /// Somebody may have made room for a segment. Waits for the disk.
    pub fn make_spare(&self) {
        self.writer.lock().expect("never poisoned").make_spare();
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
        writer.prepare();
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

    /// Whether a spare segment should be made now.
    fn wants_spare(&self) -> bool {
        !self.prepared && self.offset >= SEGMENT_BYTES / 2 && self.failed.is_none()
    }

    /// Has a spare segment ready when this one is half full: to make one takes time, and a disk that has
    /// become full has no room for it.
    fn prepare(&mut self) {
        if self.wants_spare() {
            self.prepared = true;
            self.make_spare();
        }
    }

    fn make_spare(&mut self) {
        if self.failed.is_some() {
            return;
        }
        if self.spare.is_empty() {
            let path = self.dir.join("new.spare");
            match self.hung.during(|| self.room.has(SEGMENT_BYTES).and_then(|()| zero_file(&path))) {
                Ok(()) => self.spare.push(path),
                // What there is of it takes room from others.
                Err(error) => {
                    let _ = std::fs::remove_file(&path);
                    tracing::debug!(%error, path = %path.display(), "cannot make a spare log segment");
                }
            }
        }
        self.room.log_is_short(self.spare.is_empty());
    }

    fn write(&mut self, batch: &[Request]) -> io::Result<()> {
        let mut body = vec![];
        let mut last_index = 0;
        for request in batch {
            last_index = request.end.unwrap_or(0).max(last_index);
            self.purged = request.purge.max(self.purged);
            self.end = request.end.unwrap_or(self.end).max(self.purged);
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
        let segment = self.segments.back_mut().expect("just written to");
        segment.last_index = last_index.max(segment.last_index);
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
        self.buffer.resize((len + BLOCK).max(self.buffer.len()), 0);
        let from = self.buffer.as_ptr().align_offset(BLOCK);
        let out = &mut self.buffer[from..from + len];
        let segment = self.segments.back().expect("rolled");
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
        self.room.set_log_left(SEGMENT_BYTES * (1 + self.spare.len() as u64) - self.offset);
        self.group += 1;
        Ok(())
    }

    /// Begins a new segment; it repeats the state, so that older ones can go.
    fn roll(&mut self) -> io::Result<()> {
        let sequence = self.segments.back().map_or(1, |s| s.sequence + 1);
        let path = self.dir.join(format!("{sequence:012}.log"));
        match self.spare.pop() {
            Some(spare) => std::fs::rename(spare, &path)?,
            None => {
                let tmp = self.dir.join("new.tmp");
                zero_file(&tmp)?;
                std::fs::rename(&tmp, &path)?;
            }
        }
        File::open(&self.dir)?.sync_all()?;
        self.segments.push_back(Segment { sequence, file: open_segment(&path)?, last_index: 0 });
        (self.offset, self.prepared) = (0, false);
        let mut body = vec![];
        {
            let mirror = self.mirror.lock().expect("never poisoned");
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
        const SPARE_MAX: usize = 2;
        while self.segments.len() > 1 && self.segments[0].last_index <= self.purged {
            let old = self.segments.pop_front().expect("there are two");
            let path = self.dir.join(format!("{:012}.log", old.sequence));
            let spare = self.dir.join(format!("{:012}.spare", old.sequence));
            let done = match self.spare.len() < SPARE_MAX {
                true => std::fs::rename(&path, &spare).map(|()| {
                    self.spare.push(spare);
                    self.room.log_is_short(false);
                }),
                false => std::fs::remove_file(&path),
            };
            if let Err(error) = done {
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
        let mirror = self.mirror.lock().expect("never poisoned");
        let from = range.start_bound().cloned();
        let to = range.end_bound().cloned();
        let empty = matches!((from, to), (Bound::Included(a), Bound::Excluded(b)) if a >= b);
        if empty {
            return Ok(vec![]);
        }
        Ok(mirror.entries.range((from, to)).map(|(_, (entry, _))| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.mirror.lock().expect("never poisoned").vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<RaftEntry>, io::Error> {
        let mirror = self.mirror.lock().expect("never poisoned");
        let mut bytes = 0;
        let mut entries = vec![];
        for (_, (entry, len)) in mirror.entries.range(start..end) {
            bytes += len;
            if bytes > READ_BYTES_MAX && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let mirror = self.mirror.lock().expect("never poisoned");
        let last = mirror.entries.values().next_back().map(|(entry, _)| entry.log_id);
        Ok(LogState { last_purged_log_id: mirror.purged, last_log_id: last.or(mirror.purged) })
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
        let mut end = None;
        {
            let mut mirror = self.mirror.lock().expect("never poisoned");
            for entry in entries {
                let bytes = to_bytes(&entry);
                let index = entry.log_id.index;
                end = Some(index);
                mirror.entries.insert(index, (entry, bytes.len()));
                records.push((ENTRY, bytes));
            }
        }
        self.send_entries(Request { records, end, purge: 0, done: Done::Flushed(callback) })
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let first = last.map_or(0, |id| id.index + 1);
        self.mirror.lock().expect("never poisoned").entries.split_off(&first);
        self.durably(TRUNCATE, to_bytes(&first), Some(first.saturating_sub(1)), 0).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        {
            let mut mirror = self.mirror.lock().expect("never poisoned");
            mirror.entries = mirror.entries.split_off(&(upto.index + 1));
            mirror.purged = Some(upto);
        }
        self.durably(PURGE, to_bytes(&upto), None, upto.index).await
    }
}
