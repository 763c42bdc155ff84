//! The log: records in groups, one group under way at a time, each made durable by one flush.

use super::format::{GROUP_HEADER_BYTES, GroupHeader, Record, encode_records};
use crate::io::FileRef;
use bytes::Bytes;
use common::checksum::crc32c;
use common::limits::LOG_GROUP_BYTES_MAX;
use common::{Span, Time};
use std::collections::VecDeque;

/// Records that wait for the disk, in bytes; above it the node takes no new writes.
const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A record that nobody waits for goes with others, or alone after so long.
const LATER_MS: u64 = 20;

#[derive(Clone, Debug)]
struct Queued<T> {
    record: Vec<u8>,
    has_extents: bool,
    ticket: T,
    /// Nobody waits for it before that.
    later: Option<Time>,
}

/// The log of a store. `T` is what is handed back when a record is durable.
#[derive(Clone, Debug)]
pub struct Log<T> {
    segment_bytes: u64,
    segments: u64,
    tag: u64,
    incarnation: u64,
    /// Where the next group goes.
    head: u64,
    /// Replay would start here: everything before it may be overwritten.
    tail: u64,
    queue: VecDeque<Queued<T>>,
    queue_bytes: usize,
    /// Records that were ever queued.
    queued: u64,
    /// How many of them somebody waits for.
    urgent: usize,
    /// Tickets of the group under way, and where it ends.
    flight: Option<(Vec<T>, u64)>,
}

/// A group to be written.
#[derive(Debug)]
pub struct GroupWrite {
    /// The slot of the ring.
    pub file: FileRef,
    /// First byte in the slot.
    pub offset: u64,
    /// Header, records, zeros to the end of the block.
    pub data: Bytes,
    /// Whether data of extents must be made durable by the same flush.
    pub has_extents: bool,
}

impl<T> Log<T> {
    /// A log that goes on at `head` and would be replayed from `tail`.
    pub fn new(
        segment_bytes: u64,
        segments: u64,
        tag: u64,
        incarnation: u64,
        tail: u64,
        head: u64,
    ) -> Log<T> {
        assert!(tail <= head);
        let (queue, queue_bytes, queued, urgent, flight) = (VecDeque::new(), 0, 0, 0, None);
        Log {
            segment_bytes,
            segments,
            tag,
            incarnation,
            head,
            tail,
            queue,
            queue_bytes,
            queued,
            urgent,
            flight,
        }
    }

    /// Queues a record; the ticket comes back when it is durable.
    pub fn push(&mut self, record: &Record, ticket: T) {
        self.urgent += 1;
        self.enqueue(record, ticket, None);
    }

    /// Queues a record that nobody waits for: it goes with the next that somebody does, or a little later.
    pub fn push_later(&mut self, record: &Record, ticket: T, now: Time) {
        self.enqueue(record, ticket, Some(now + Span::from_ms(LATER_MS)));
    }

    fn enqueue(&mut self, record: &Record, ticket: T, later: Option<Time>) {
        let has_extents = !record.runs().is_empty();
        let record = common::wire::to_vec(record);
        assert!(record.len() + 4 + GROUP_HEADER_BYTES <= LOG_GROUP_BYTES_MAX, "record too long");
        self.queue_bytes += record.len();
        self.queued += 1;
        self.queue.push_back(Queued { record, has_extents, ticket, later });
    }

    /// Position of the next group: all that is durable lies before it.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// How many records were ever queued, and how many of them are in groups, which lie before the head.
    pub fn records(&self) -> (u64, u64) {
        (self.queued, self.queued - self.queue.len() as u64)
    }

    /// Position of the last checkpoint.
    pub fn tail(&self) -> u64 {
        self.tail
    }

    /// Bytes between the checkpoint and the head.
    pub fn used(&self) -> u64 {
        self.head - self.tail
    }

    /// Whether a primary should admit no more writes: too much waits already, or checkpoints do not keep up. The other half
    /// of the ring is for what other primaries have admitted; while it lasts, nobody waits for this store until a
    /// checkpoint is done, and takes it for dead.
    pub fn admits_no_more(&self) -> bool {
        self.queue_bytes > QUEUE_BYTES_MAX || self.used() > self.capacity() / 2
    }

    /// Bytes of the ring.
    pub fn capacity(&self) -> u64 {
        self.segment_bytes * self.segments
    }

    /// Everything before `position` is in a durable checkpoint.
    pub fn truncate(&mut self, position: u64) {
        assert!(self.tail <= position && position <= self.head);
        self.tail = position;
    }

    /// Tickets of the group under way.
    pub fn under_way(&self) -> &[T] {
        self.flight.as_ref().map_or(&[], |(tickets, _)| tickets)
    }

    /// Whether a group is under way or waits.
    pub fn is_idle(&self) -> bool {
        self.flight.is_none() && self.queue.is_empty()
    }

    /// When the next group is due, if nobody waits for it before and none is under way. In the past if the ring is full:
    /// what makes room asks for a group again.
    fn due(&self) -> Option<Time> {
        let idle = self.flight.is_none() && self.urgent == 0;
        self.queue.front().filter(|_| idle)?.later
    }

    /// When somebody should ask for a group that is not due yet.
    pub fn next_due(&self, now: Time) -> Option<Time> {
        self.due().filter(|due| *due > now)
    }

    /// The next group, if none is under way, one is due, and the ring has room.
    pub fn next_group(&mut self, now: Time) -> Option<GroupWrite> {
        if self.flight.is_some() || self.queue.is_empty() || self.due().is_some_and(|due| now < due) {
            return None;
        }
        let mut body_len = 0;
        let fits = |next: &&Queued<T>| {
            body_len += next.record.len() + 4;
            GROUP_HEADER_BYTES + body_len <= LOG_GROUP_BYTES_MAX
        };
        let count = self.queue.iter().take_while(fits).count();
        let next = || self.queue.iter().take(count);
        let header = GroupHeader {
            incarnation: self.incarnation,
            position: 0,
            store_tag: self.tag,
            body_len: next().map(|q| q.record.len() as u32 + 4).sum(),
            body_crc: 0,
            previous_end: self.head,
            has_extents: next().any(|q| q.has_extents),
        };
        let len = header.disk_bytes();
        let left = self.segment_bytes - self.head % self.segment_bytes;
        let position = if len > left { self.head + left } else { self.head };
        if position + len - self.tail > self.capacity() {
            // The ring is full: the checkpoint that is under way makes room. Everything that happens meanwhile asks
            // for a group again, so nothing is copied before this is known.
            return None;
        }
        self.urgent -= next().filter(|q| q.later.is_none()).count();
        let (records, tickets): (Vec<_>, Vec<_>) =
            self.queue.drain(..count).map(|q| (q.record, q.ticket)).unzip();
        self.queue_bytes -= records.iter().map(Vec::len).sum::<usize>();
        let mut data = Vec::with_capacity(len as usize);
        data.resize(GROUP_HEADER_BYTES, 0);
        encode_records(&records, &mut data);
        let body = &data[GROUP_HEADER_BYTES..];
        assert_eq!(body.len(), header.body_len as usize, "as long as it was counted");
        let header = GroupHeader { position, body_crc: crc32c(body), ..header };
        self.head = position + len;
        self.flight = Some((tickets, self.head));
        data[..GROUP_HEADER_BYTES].copy_from_slice(&header.encode());
        data.resize(len as usize, 0);
        let (file, offset) = locate(position, self.segment_bytes, self.segments);
        Some(GroupWrite { file, offset, data: data.into(), has_extents: header.has_extents })
    }

    /// The group under way is durable: its tickets.
    pub fn durable(&mut self) -> Vec<T> {
        self.flight.take().expect("a group was under way").0
    }
}

/// The slot of the ring and the offset in it of a position.
pub fn locate(position: u64, segment_bytes: u64, segments: u64) -> (FileRef, u64) {
    (FileRef::Log((position / segment_bytes % segments) as u32), position % segment_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::{ChunkHandle, Serial};

    /// A full ring takes no group, keeps what waits in its order, and goes on when there is room.
    #[test]
    fn a_full_ring_keeps_what_waits() {
        let segment = LOG_GROUP_BYTES_MAX as u64;
        let mut log = Log::new(segment, 2, 7, 1, 0, 0);
        let mut told = vec![];
        let mut pushed = 0;
        while log.used() + 4096 <= log.capacity() {
            log.push(&Record::Committed { handle: ChunkHandle(1), serial: Serial(pushed) }, pushed);
            pushed += 1;
            assert!(log.next_group(Time(0)).is_some());
            told.extend(log.durable());
        }
        log.push_later(
            &Record::Committed { handle: ChunkHandle(1), serial: Serial(pushed) },
            pushed,
            Time(0),
        );
        pushed += 1;
        let late = Time(0) + Span::from_ms(LATER_MS);
        assert!(log.next_due(Time(0)) == Some(late) && log.next_group(late).is_none(), "there is no room");
        assert_eq!(log.next_due(late), None, "nobody need ask before there is");
        for n in pushed..pushed + 100 {
            log.push(&Record::Committed { handle: ChunkHandle(1), serial: Serial(n) }, n);
        }
        let waiting = log.queue_bytes;
        for _ in 0..3 {
            assert!(log.next_group(Time(0)).is_none(), "there is no room");
            assert_eq!(log.queue_bytes, waiting);
        }
        log.truncate(segment);
        assert!(log.next_group(Time(0)).is_some());
        told.extend(log.durable());
        assert_eq!((told, log.queue_bytes), ((0..pushed + 100).collect(), 0));
    }

    /// What nobody waits for goes with what somebody does, in its order, or alone when its time has come.
    #[test]
    fn what_nobody_waits_for_goes_with_others() {
        let mut log = Log::new(LOG_GROUP_BYTES_MAX as u64, 2, 7, 1, 0, 0);
        let record = |n| Record::Committed { handle: ChunkHandle(1), serial: Serial(n) };
        let at = |ms| Time(0) + Span::from_ms(ms);
        log.push_later(&record(1), 1, at(0));
        assert!(log.next_group(at(LATER_MS - 1)).is_none());
        assert_eq!(log.due(), Some(at(LATER_MS)));
        log.push_later(&record(2), 2, at(5));
        log.push(&record(3), 3);
        log.push_later(&record(4), 4, at(6));
        assert_eq!(log.due(), None, "at once");
        assert!(log.next_group(at(6)).is_some());
        log.push_later(&record(5), 5, at(7));
        assert_eq!(log.due(), None, "a group is under way");
        assert_eq!(log.durable(), [1, 2, 3, 4]);
        assert_eq!(log.due(), Some(at(7 + LATER_MS)));
        assert!(log.next_group(at(7 + LATER_MS)).is_some());
        assert_eq!(log.durable(), [5]);
        assert!(log.is_idle() && log.due().is_none());
    }
}
