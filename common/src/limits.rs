//! Every size, limit and timeout of Cairn, with its unit, in one place. Relations between them
//! are proved when this file is compiled.

/// Bytes of a block: the unit of checksums and of disk allocation.
pub const BLOCK_BYTES: usize = 4096;
/// Most payload bytes of one data frame, and so of one piece.
pub const PIECE_BYTES_MAX: usize = 256 * 1024;
/// Most pieces of one write request.
pub const PIECES_MAX: usize = 16;
/// Most bytes of one write request.
pub const WRITE_BYTES_MAX: usize = PIECE_BYTES_MAX * 4;
/// Most bytes whose place is told to a client on the same machine in one answer.
pub const LOCATED_BYTES_MAX: u32 = 4 * 1024 * 1024;
/// A write of at most so many bytes travels inside the commit message.
pub const INLINE_BYTES_MAX: usize = 64 * 1024;
/// Most bytes of one record append.
pub const APPEND_BYTES_MAX: usize = WRITE_BYTES_MAX;
/// Most bytes of a chunk.
pub const CHUNK_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Most bytes of a name in a directory.
pub const NAME_BYTES_MAX: usize = 255;
/// Most bytes of a path.
pub const PATH_BYTES_MAX: usize = 4096;
/// Names that a file can have.
pub const LINKS_MAX: u32 = 65_000;
/// Bytes of the value of an extended attribute.
pub const XATTR_VALUE_BYTES_MAX: usize = 32 * 1024;
/// Bytes of all extended attributes of an inode together, names and values.
pub const XATTR_BYTES_MAX: usize = 64 * 1024;
/// Replicas of a chunk, unless the directory's policy says otherwise.
pub const REPLICATION_DEFAULT: u8 = 3;
/// Most replicas of a chunk.
pub const REPLICATION_MAX: u8 = 5;
/// A chunk is never reduced to fewer live members than this (or its replication, if lower).
pub const MIN_REPLICAS: usize = 2;
/// Most entries in one page of a listing.
pub const LIST_PAGE_MAX: u32 = 4096;
/// About most bytes of such a page: no entry is begun beyond them.
pub const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most chunks in one page of a file's layout.
pub const LAYOUT_PAGE_MAX: u32 = 1024;
/// Most bytes of a refusal's or an admin answer's text.
pub const TEXT_BYTES_MAX: usize = 1024;

/// Most mutations a client has in flight at the master.
pub const CLIENT_WINDOW: u64 = 256;
/// Most answers the master remembers for a client.
pub const CLIENT_ANSWERS_MAX: u64 = 512;
/// Most chunk writes a client has in flight on one chunk.
pub const CHUNK_CLIENT_WINDOW: u64 = 64;
/// Most answers a chunk remembers for one client.
pub const CHUNK_ANSWERS_MAX: usize = 256;
/// Most writes of a chunk between admission and commit.
pub const CHUNK_WINDOW: usize = 128;
/// A chunk's commit point goes into the store's log after so many writes at the latest: so many
/// may not be known to be committed after a restart, and the window.
pub const COMMIT_LOGGED_EVERY: u64 = 1024;
/// Most records that a replica can have beyond what it knows to be committed.
pub const TAIL_MAX: usize = COMMIT_LOGGED_EVERY as usize + 4 * CHUNK_WINDOW;
/// Most requests that wait at a chunk for its configuration or takeover.
pub const CHUNK_WAITING_MAX: usize = 256;
/// Most clients whose answers a chunk remembers; the longest idle goes first.
pub const CHUNK_CLIENTS_MAX: usize = 64;

/// Most bytes that a shard keeps for pieces whose commit has not come yet.
pub const HELD_BYTES_MAX: usize = 256 * 1024 * 1024;
/// How long a piece is kept for its commit.
pub const HELD_MS: u64 = 60_000;
/// A client that has so many bytes of answers to take is asked nothing more until it has taken some.
pub const CONN_ANSWERS_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Most payload bytes queued to one connection; more closes it.
pub const CONN_QUEUE_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Most connections of one data port.
pub const CONNS_MAX: usize = 4096;
/// Connections of clients on the same machine to a store's socket; more are closed at once, and read over the wire.
pub const LOCAL_CONNS_MAX: usize = 1024;

/// Bytes of a segment of the store's log, by default.
pub const LOG_SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// Segments of the log's ring.
pub const LOG_SEGMENTS: u64 = 4;
/// Most bytes of one log group.
pub const LOG_GROUP_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Empty segments of extents give their room back to the host after so long, in milliseconds.
pub const RELEASE_MS: u64 = 60_000;
/// Bytes of a segment of extents, by default.
pub const EXTENT_SEGMENT_BYTES: u64 = 256 * 1024 * 1024;
/// Free bytes of extents that a store keeps for writes that a primary has admitted (a quarter of a segment,
/// if that is less): its disk may be found full at any time.
pub const PROMISED_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// A store leaves so many bytes of its file system free, or an eighth of a small one: below that, no new
/// extents. What else lies there, a master's log perhaps, must be able to go on.
pub const DISK_RESERVE_BYTES: u64 = 256 * 1024 * 1024;

/// A chunkserver's heartbeat to the master, in milliseconds.
pub const HEARTBEAT_MS: u64 = 250;
/// And while chunks are copied to it: small ones take less than that, and the answer names the next.
pub const HEARTBEAT_COPYING_MS: u64 = 40;
/// Length of a store's session, in milliseconds.
pub const SESSION_MS: u64 = 2100;
/// Allowance for clocks that run at different speeds, in percent of the session.
pub const DRIFT_PERCENT: u64 = 5;
/// Time between two batched ReadIndex rounds for renewals.
pub const RENEWAL_BATCH_MS: u64 = 100;
/// Of chunks that were named longer ago than this, in milliseconds, a store makes none on the word of a client or of
/// another store, but asks the masters first; so it can forget which of them were deleted.
pub const HORIZON_MS: u64 = 600_000;
/// The lease of a chunk's primary, as told to clients.
pub const CHUNK_LEASE_MS: u64 = 60_000;
/// Raft's heartbeat.
pub const RAFT_HEARTBEAT_MS: u64 = 100;
/// A leader from which nothing has come for so long, while something is asked of it, is silent: the other masters
/// are asked, too.
pub const MASTER_SILENT_MS: u64 = 3 * RAFT_HEARTBEAT_MS;
/// Shortest election timeout. A follower begins an election this long after the leader's lease
/// (`ELECTION_MS_MAX`) has run out: so 750-900 ms after it last heard of a leader. If it sees that the leader's process has
/// ended, it does not wait for this.
pub const ELECTION_MS_MIN: u64 = 300;
/// Longest election timeout, and the length of the Raft leader's lease.
pub const ELECTION_MS_MAX: u64 = 450;
/// Allowance for a vote round.
pub const VOTE_MS: u64 = 300;
/// Allowance for the new leader's first commit.
pub const FIRST_COMMIT_MS: u64 = 300;
/// A primary waits so long for a secondary before it reports it.
pub const APPLY_TIMEOUT_MS: u64 = 500;
/// And at most so long while that acknowledges writes of other chunks: it has much to do, and another in its place would
/// have as much.
pub const BUSY_TIMEOUT_MS: u64 = 2000;
/// A store that is down for so long is not waited for any more: its chunks get other members.
pub const DEAD_MS: u64 = 20_000;
/// Longest maintenance of a server: a week, in milliseconds.
pub const MAINTENANCE_MS_MAX: u64 = 7 * 24 * 3600 * 1000;
/// Chunks that are copied to a store at a time.
pub const LEARNERS_MAX: usize = 16;
/// Chunks of which a store is the source of copies at a time.
pub const TAUGHT_MAX: usize = 16;
/// Bytes that a store copies in a second at least, however busy clients keep it.
pub const COPY_FLOOR_BYTES_PER_S: u64 = 16 << 20;
/// An attempt to make a replica that takes longer is given up, and begun elsewhere or anew.
pub const REPAIR_ATTEMPT_MS: u64 = 180_000;
/// A primary stops admitting for so long while a new member gets the rest.
pub const HALT_MS: u64 = 500;
/// Every byte of a store is read and verified within this, by default: 14 days, in seconds.
pub const SCRUB_PERIOD_S: u64 = 14 * 24 * 3600;
/// A disk operation older than this makes its store look hung.
pub const DISK_HUNG_MS: u64 = 1000;
/// A leading master whose disk has completed nothing for so long hands over, in milliseconds.
pub const HANDOVER_MS: u64 = 300;
/// A client gives up a request after this long, unless told otherwise.
pub const CLIENT_DEADLINE_MS: u64 = 30_000;
/// How long deleted files stay in the trash, by default.
pub const TRASH_MS: u64 = 24 * 3600 * 1000;
/// A file that has lost its last name stays for so long after somebody who has it open has asked for it.
pub const NAMELESS_MS: u64 = 600 * 1000;
/// And so long if nobody ever asks: its room is wanted. Who has files open asks four times in that.
pub const UNHELD_MS: u64 = 60 * 1000;
/// A holder of claims that is not heard of for so long has lost them, in milliseconds. It counts `DRIFT_PERCENT` less.
pub const LOCK_LEASE_MS: u64 = 15_000;
/// So long a master waits before it answers that there is nothing to tell yet of locks, in milliseconds.
pub const LOCK_WAIT_MS: u64 = 500;
/// Most holders of claims.
pub const HOLDERS_MAX: usize = 65_536;
/// Files in which one holder can have claims.
pub const HOLDER_CLAIMS_MAX: u32 = 65_536;
/// Ranges that one holder can have claimed in one file.
pub const CLAIM_RANGES_MAX: usize = 1024;
/// Most orders in one answer to a heartbeat.
pub const ORDERS_MAX: usize = 1024;
/// Most clones that are begun and not ended.
pub const CLONES_MAX: usize = 4096;
/// A clone that is not ended within this is given up, in milliseconds of the log's time.
pub const CLONE_MS: u64 = 120_000;
/// Most snapshots of a cluster.
pub const SNAPSHOTS_MAX: usize = 1024;
/// Most chunkserver stores of a cluster (bounds the store table on the wire).
pub const STORES_MAX: usize = 4096;

/// What the session is worth to the store that counts it from sending.
pub const SESSION_HELD_MS: u64 = SESSION_MS * (100 - DRIFT_PERCENT) / 100;

const _: () = assert!(WRITE_BYTES_MAX <= PIECE_BYTES_MAX * PIECES_MAX);
const _: () = assert!(INLINE_BYTES_MAX <= PIECE_BYTES_MAX);
const _: () = assert!(PIECE_BYTES_MAX.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(CHUNK_BYTES_MAX.is_multiple_of(WRITE_BYTES_MAX as u64));
const _: () = assert!(WRITE_BYTES_MAX as u64 <= CHUNK_BYTES_MAX);
const _: () = assert!(LOG_GROUP_BYTES_MAX > 4 * INLINE_BYTES_MAX);
const _: () = assert!(LOG_SEGMENT_BYTES > 4 * LOG_GROUP_BYTES_MAX as u64);
// A client's window of requests in flight fits in what is remembered of it.
const _: () = assert!(CLIENT_WINDOW < CLIENT_ANSWERS_MAX);
const _: () = assert!((CHUNK_CLIENT_WINDOW as usize) < CHUNK_ANSWERS_MAX);
// Losing the leading master never silences the data path: what is left of a session when the
// leader dies right before it would renew is longer than an election and its first commit.
const _: () = assert!(
    SESSION_HELD_MS - HEARTBEAT_MS - RENEWAL_BATCH_MS > 2 * ELECTION_MS_MAX + VOTE_MS + FIRST_COMMIT_MS
);
// As many copies as a store makes at a time end within an attempt's time at the lowest rate: repair
// cannot get stuck by being slow.
const _: () = assert!(
    LEARNERS_MAX as u64 * CHUNK_BYTES_MAX * 1000 / COPY_FLOOR_BYTES_PER_S < REPAIR_ATTEMPT_MS / 2
        && TAUGHT_MAX <= LEARNERS_MAX
);
const _: () = assert!(RAFT_HEARTBEAT_MS * 3 <= ELECTION_MS_MIN);
const _: () = assert!(UNHELD_MS <= NAMELESS_MS);
// Nor does it cost anybody a lock: a holder is told, and asks again, several times within its lease.
const _: () = assert!(
    LOCK_LEASE_MS * (100 - DRIFT_PERCENT) / 100
        > 4 * (LOCK_WAIT_MS + 2 * ELECTION_MS_MAX + VOTE_MS + FIRST_COMMIT_MS)
);
