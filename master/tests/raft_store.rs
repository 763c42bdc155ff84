//! openraft's own suite on our log and state machine; the log across restarts and damage.

use master::raft::log::LogStore;
use master::raft::room::Room;
use master::raft::state_machine::StateMachine;
use master::raft::{RaftEntry, TypeConfig};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{RaftLogReader, StorageError, Vote};
use std::sync::Arc;
use tempfile::TempDir;

/// Room for snapshots, in a directory that is gone already: none is taken.
fn room() -> Arc<Room> {
    Room::open(TempDir::new().expect("a temporary directory").path()).expect("there is room")
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = TempDir::new().expect("a temporary directory");
        let log = LogStore::open(&dir.path().join("log"), 1, room()).expect("an empty log opens");
        let state = StateMachine::open(&dir.path().join("snapshot"), room()).expect("no snapshot is fine");
        Ok((dir, log, state))
    }
}

#[test]
fn the_suite_of_openraft_passes() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(Suite::test_all(Builder)).unwrap();
}

fn entry(index: u64) -> RaftEntry {
    use openraft::entry::RaftEntry as _;
    RaftEntry::new_blank(log_id(index))
}

fn log_id(index: u64) -> master::raft::LogId {
    use openraft::vote::RaftLeaderId;
    let leader = openraft::impls::leader_id_std::LeaderId::new(1, 1);
    openraft::LogId::new(leader.to_committed(), index)
}

async fn append(log: &mut LogStore, range: std::ops::Range<u64>) {
    use openraft::type_config::TypeConfigExt;
    let (tell, told) = TypeConfig::oneshot();
    log.append(range.map(entry), IOFlushed::signal(tell)).await.unwrap();
    told.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_was_flushed_is_there_after_a_restart_through_many_segments() {
    let dir = TempDir::new().unwrap();
    let vote = Vote::new(3, 2);
    {
        let mut log = LogStore::open(dir.path(), 1, room()).unwrap();
        log.save_vote(&vote).await.unwrap();
        for i in 0..400 {
            append(&mut log, i * 100..(i + 1) * 100).await;
        }
        log.truncate_after(Some(log_id(39_949))).await.unwrap();
        log.purge(log_id(20_000)).await.unwrap();
        append(&mut log, 39_950..39_960).await;
    }
    let mut log = LogStore::open(dir.path(), 1, room()).unwrap();
    assert_eq!(log.read_vote().await.unwrap(), Some(vote));
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(log_id(20_000)));
    assert_eq!(state.last_log_id, Some(log_id(39_959)));
    let all = log.try_get_log_entries(20_001..40_000).await.unwrap();
    assert_eq!(all.len(), 39_959 - 20_000);
    let some = log.limited_get_log_entries(20_001, 40_000).await.unwrap();
    assert!(!some.is_empty());
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_damage_before_it_is_not_hidden() {
    use std::os::unix::fs::FileExt;
    let dir = TempDir::new().unwrap();
    {
        let mut log = LogStore::open(dir.path(), 1, room()).unwrap();
        for i in 0..10 {
            append(&mut log, i..i + 1).await;
        }
    }
    let path = std::fs::read_dir(dir.path())
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "log"))
        .unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    // Groups are one block each: the state's group first, then ten.
    let mut bytes = vec![0; 64 * 4096];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let last = bytes.chunks(4096).rposition(|block| block[..4] == *b"CRL2").unwrap() * 4096 + 36;
    file.write_all_at(&[bytes[last] ^ 1], last as u64).unwrap();
    let mut log = LogStore::open(dir.path(), 1, room()).unwrap();
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(log_id(8)));
    // The same in the middle is no torn tail: what follows was acknowledged.
    file.write_all_at(&[bytes[5 * 4096 + 36] ^ 1], 5 * 4096 + 36).unwrap();
    let error = LogStore::open(dir.path(), 1, room()).err().expect("refused").to_string();
    assert!(error.contains("damaged"), "{error}");
    // A log of the first version is not taken for an empty one.
    file.write_all_at(b"CRNR", 0).unwrap();
    let error = LogStore::open(dir.path(), 1, room()).err().expect("refused").to_string();
    assert!(error.contains("earlier version"), "{error}");
}

#[test]
fn a_damaged_snapshot_is_refused_with_a_sentence() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("snapshot"), b"CRNSNAP2\xff\xff\xff\xff1234").unwrap();
    let error = StateMachine::open(dir.path(), room()).err().expect("refused").to_string();
    assert!(error.contains("too long"), "{error}");
    std::fs::write(dir.path().join("snapshot"), b"nonsense").unwrap();
    assert!(StateMachine::open(dir.path(), room()).is_err());
}
