//! When an image of the state is made, and how much of the log before it stays.
//!
//! Both cost what they are long: an image of millions of files is hundreds of megabytes, and a follower that lacks entries that
//! nobody has any more gets all of it. So an image is made when the log after the last one is as long as that is, and as
//! much of the log stays: who was away for a while finds the entries that it lacks, and a segment is given up for each
//! that is begun.

use super::Raft;
use super::log::LogStore;
use super::room::Room;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::Fatal;
use std::sync::Arc;
use std::time::Duration;

/// Between two images the log becomes this long at least, in bytes.
const LOG_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// The masters of a group do not make their images at the same time: each waits a little longer than the one before, by one of so many parts.
const STAGGER: u64 = 8;
/// How many of them do.
const MASTERS: u64 = 4;
/// How often the log is looked at.
const TICK: Duration = Duration::from_millis(500);

/// Makes images of a master's state and purges its log, for as long as Raft runs.
pub async fn run(raft: Raft, log: LogStore, room: Arc<Room>) {
    while round(&raft, &log, &room).await.is_ok() {
        tokio::time::sleep(TICK).await;
    }
}

async fn round(raft: &Raft, log: &LogStore, room: &Room) -> Result<(), Fatal<super::TypeConfig>> {
    let (id, image, purged) = {
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: &Option<super::LogId>| id.map_or(0, |id| id.index);
        (metrics.id, index(&metrics.snapshot), index(&metrics.purged))
    };
    let most = LOG_BYTES_MIN.max(room.last_image());
    let (is_due, stays) = match room.short_for() {
        // Each segment that can be given up is room for the next.
        Some(_) => (log.before(1).is_some_and(|last| last > image), 1),
        None => (log.bytes_after(image) >= most + most / STAGGER * (id % MASTERS), most),
    };
    if is_due {
        raft.trigger().snapshot().await?;
    }
    let upto = log.before(stays).map_or(0, |last| last.min(image));
    if upto > purged {
        raft.trigger().purge_log(upto).await?;
    }
    Ok(())
}
