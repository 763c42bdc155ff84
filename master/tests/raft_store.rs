//! openraft's own suite on our log and state machine; the log across restarts and damage.

use common::wire::client_master::Mutation;
use common::{ClientId, RequestId};
use master::raft::log::LogStore;
use master::raft::room::Room;
use master::raft::state_machine::StateMachine;
use master::raft::{LogId, Logged, RaftEntry, TypeConfig};
use master_core::{Command, Entry};
use openraft::storage::{IOFlushed, RaftLogStorage, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{RaftLogReader, RaftSnapshotBuilder, StorageError, Vote};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use tempfile::TempDir;

/// The log of a master that lives here.
fn open_log(home: &Path) -> anyhow::Result<LogStore> {
    LogStore::open(&home.join("log"), 1, room_in(&home.join("images")))
}

fn room_in(dir: &Path) -> Arc<Room> {
    Room::open(dir).expect("there is room")
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = TempDir::new().expect("a temporary directory");
        let log = open_log(dir.path()).expect("an empty log opens");
        let state = StateMachine::open(room_in(&dir.path().join("images"))).expect("no image is fine");
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

fn log_id(index: u64) -> LogId {
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
        let mut log = open_log(dir.path()).unwrap();
        log.save_vote(&vote).await.unwrap();
        for i in 0..400 {
            append(&mut log, i * 100..(i + 1) * 100).await;
        }
        log.truncate_after(Some(log_id(39_949))).await.unwrap();
        log.purge(log_id(20_000)).await.unwrap();
        append(&mut log, 39_950..39_960).await;
    }
    let mut log = open_log(dir.path()).unwrap();
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
        let mut log = open_log(dir.path()).unwrap();
        for i in 0..10 {
            append(&mut log, i..i + 1).await;
        }
    }
    let path = std::fs::read_dir(dir.path().join("log"))
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
    let mut log = open_log(dir.path()).unwrap();
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(log_id(8)));
    // The same in the middle is no torn tail: what follows was acknowledged.
    file.write_all_at(&[bytes[5 * 4096 + 36] ^ 1], 5 * 4096 + 36).unwrap();
    let error = open_log(dir.path()).err().expect("refused").to_string();
    assert!(error.contains("damaged"), "{error}");
    // A log of the first version is not taken for an empty one.
    file.write_all_at(b"CRNR", 0).unwrap();
    let error = open_log(dir.path()).err().expect("refused").to_string();
    assert!(error.contains("earlier version"), "{error}");
}

fn id_of(term: u64, index: u64) -> LogId {
    use openraft::vote::RaftLeaderId;
    openraft::LogId::new(openraft::impls::leader_id_std::LeaderId::new(term, 1).to_committed(), index)
}

/// A long one, so that a few hundred are a segment.
fn entry_of(term: u64, index: u64) -> RaftEntry {
    static LONG: LazyLock<Arc<Entry>> = LazyLock::new(|| {
        let value = Some(vec![7; 32 * 1024]);
        let mutation =
            Mutation::SetXattr { path: b"/f".to_vec(), name: b"user.a".to_vec(), value, there: None };
        let request = RequestId { client: ClientId(1), seq: 1 };
        let command = Command::Mutate { request, lowest: 1, mutation };
        Arc::new(Entry { stamp_ns: 1, wall_ns: 1, salt: 1, command })
    });
    RaftEntry { log_id: id_of(term, index), payload: openraft::EntryPayload::Normal(Logged(LONG.clone())) }
}

/// About as many of them are in a segment.
const IN_SEGMENT: u64 = 500;

async fn write(log: &mut LogStore, entries: Vec<RaftEntry>) {
    use openraft::type_config::TypeConfigExt;
    let (tell, told) = TypeConfig::oneshot();
    log.append(entries, IOFlushed::signal(tell)).await.unwrap();
    told.await.unwrap().unwrap();
}

/// What the log should say: the entries since the last purge.
#[derive(Default)]
struct Expected {
    entries: BTreeMap<u64, RaftEntry>,
    committed: u64,
    purged: u64,
    /// The most that were in memory.
    in_memory_max: usize,
    /// Checks that began before what was in memory.
    on_disk: u32,
}

impl Expected {
    fn end(&self) -> u64 {
        self.entries.last_key_value().map_or(self.purged, |(index, _)| *index)
    }

    async fn check(&mut self, log: &mut LogStore, rng: &mut StdRng) {
        let last = self.entries.last_key_value().map(|(_, entry)| entry.log_id);
        let state = log.get_log_state().await.unwrap();
        assert_eq!(state.last_log_id, last.or(state.last_purged_log_id), "the last entry");
        let from = rng.random_range(self.purged.saturating_sub(3)..=self.end() + 1);
        let to = rng.random_range(from..=(from + 2 * IN_SEGMENT).min(self.end() + 2));
        let want: Vec<RaftEntry> = self.entries.range(from..to).map(|(_, entry)| entry.clone()).collect();
        let got = log.try_get_log_entries(from..to).await.unwrap();
        let differs = got.iter().zip(&want).position(|(got, want)| got != want);
        assert!(got == want, "entries {from}..{to}: {} of {}, differ at {differs:?}", got.len(), want.len());
        let some = log.limited_get_log_entries(from, to).await.unwrap();
        assert!(some.is_empty() == want.is_empty() && want.starts_with(&some), "some of {from}..{to}");
        self.in_memory_max = self.in_memory_max.max(log.in_memory());
        self.on_disk += u32::from(from > self.purged && from + (log.in_memory() as u64) < self.end());
    }
}

#[tokio::test]
async fn whatever_happens_to_a_long_log_it_says_what_was_written_and_keeps_little_of_it_in_memory() {
    let seed = std::env::var("SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = TempDir::new().unwrap();
    let mut log = open_log(dir.path()).unwrap();
    let (mut expected, mut term) = (Expected::default(), 1);
    // For a while little of it counts, so that what is none any more is many segments.
    let mut lags = false;
    for _ in 0..8_000u32 {
        match rng.random_range(0..8_000) {
            0..20 => {
                // Another leader: what was not committed may be none.
                term += 1;
                let last = rng.random_range(expected.committed..=expected.end());
                if last > expected.purged {
                    expected.entries.split_off(&(last + 1));
                    let id = expected.entries[&last].log_id;
                    log.truncate_after(Some(id)).await.unwrap();
                    expected.check(&mut log, &mut rng).await;
                }
            }
            20..24 if expected.committed > expected.purged => {
                let upto = rng.random_range(expected.purged + 1..=expected.committed);
                log.purge(expected.entries[&upto].log_id).await.unwrap();
                expected.entries = expected.entries.split_off(&(upto + 1));
                expected.purged = upto;
            }
            24..34 => {
                drop(log);
                log = open_log(dir.path()).expect("it opens again");
                expected.check(&mut log, &mut rng).await;
            }
            34..94 => expected.check(&mut log, &mut rng).await,
            94..110 => lags = !lags,
            _ => {
                let first = expected.end() + 1;
                let entries: Vec<_> =
                    (first..first + rng.random_range(1..4)).map(|i| entry_of(term, i)).collect();
                expected.entries.extend(entries.iter().map(|entry| (entry.log_id.index, entry.clone())));
                write(&mut log, entries).await;
            }
        }
        if !lags && let Some(last) = expected.entries.last_entry() {
            expected.committed = *last.key();
            log.save_committed(Some(last.get().log_id)).await.unwrap();
        }
    }
    let Expected { in_memory_max, on_disk, .. } = expected;
    println!("{} entries, {in_memory_max} in memory at most, {on_disk} checks of others", expected.end());
}

#[tokio::test]
async fn of_a_log_that_counts_the_last_segments_are_in_memory() {
    let dir = TempDir::new().unwrap();
    let mut log = open_log(dir.path()).unwrap();
    for index in 1..=8 * IN_SEGMENT {
        write(&mut log, vec![entry_of(1, index)]).await;
        log.save_committed(Some(id_of(1, index))).await.unwrap();
    }
    assert!(log.in_memory() as u64 <= 4 * IN_SEGMENT, "{}", log.in_memory());
    drop(log);
    let mut log = open_log(dir.path()).unwrap();
    assert!(log.in_memory() as u64 <= 4 * IN_SEGMENT, "{} after a start", log.in_memory());
    let all = log.try_get_log_entries(1..=8 * IN_SEGMENT).await.unwrap();
    assert!(all.iter().map(|entry| entry.log_id.index).eq(1..=8 * IN_SEGMENT));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_old_entries_while_they_are_purged_gets_them_or_those_after_them() {
    let dir = TempDir::new().unwrap();
    let mut log = open_log(dir.path()).unwrap();
    let progress = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
    let mut reader = log.get_log_reader().await;
    let seen = progress.clone();
    let reads = tokio::spawn(async move {
        let mut rng = StdRng::seed_from_u64(7);
        let mut reads = 0;
        loop {
            let (purged, end) = (seen.0.load(Ordering::Acquire), seen.1.load(Ordering::Acquire));
            if end == u64::MAX {
                return reads;
            }
            if end < 100 {
                tokio::task::yield_now().await;
                continue;
            }
            // Half of them are such that the next purge may leave nothing.
            let near = rng.random();
            let from = rng.random_range(purged..if near { purged + 10 } else { end - 50 });
            let got = reader.try_get_log_entries(from..from + 50).await.unwrap();
            let first = got.first().map_or(from + 50, |entry| entry.log_id.index);
            let want: Vec<RaftEntry> = (first..from + 50).map(|i| entry_of(1, i)).collect();
            assert!(got == want, "{} of {} from {first} on, asked from {from} on", got.len(), want.len());
            assert!(first == from || first <= seen.0.load(Ordering::Acquire) + 1, "{from}: {first}");
            reads += 1;
        }
    });
    for index in 1..=20 * IN_SEGMENT {
        write(&mut log, vec![entry_of(1, index)]).await;
        log.save_committed(Some(id_of(1, index))).await.unwrap();
        if index > 5 * IN_SEGMENT && index % 50 == 0 {
            let upto = index - 4 * IN_SEGMENT;
            // Told before, so that who finds them gone knows that they may be.
            progress.0.store(upto, Ordering::Release);
            log.purge(id_of(1, upto)).await.unwrap();
        }
        progress.1.store(index, Ordering::Release);
    }
    progress.1.store(u64::MAX, Ordering::Release);
    let reads = reads.await.unwrap();
    println!("{reads} reads");
    assert!(reads > 20);
}

/// The state machine after some directories were made.
async fn with_entries(machine: &mut StateMachine, range: std::ops::Range<u64>) {
    let entries = range.map(|index| Ok((entry(index), None)));
    machine.apply(futures::stream::iter(entries)).await.unwrap();
}

#[tokio::test]
async fn an_image_that_was_begun_before_a_later_one_came_does_not_take_its_place() {
    let homes = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let mut machines = homes.each_ref().map(|home| StateMachine::open(room_in(home.path())).unwrap());
    with_entries(&mut machines[0], 0..100).await;
    with_entries(&mut machines[1], 0..10).await;
    let later = machines[0].get_snapshot_builder().await.build_snapshot().await.unwrap();
    let mut earlier = machines[1].get_snapshot_builder().await;
    machines[1].install_snapshot(&later.meta, later.snapshot).await.unwrap();
    let made = earlier.build_snapshot().await.unwrap();
    assert_eq!(made.meta.last_log_id, Some(log_id(99)));
    drop(machines);
    let mut again = StateMachine::open(room_in(homes[1].path())).unwrap();
    assert_eq!(again.applied_state().await.unwrap().0, Some(log_id(99)));
}

#[tokio::test]
async fn an_image_that_was_not_taken_leaves_nothing_behind() {
    let home = TempDir::new().unwrap();
    let mut machine = StateMachine::open(room_in(home.path())).unwrap();
    with_entries(&mut machine, 0..10).await;
    let made = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(home.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let at_rest = names();
    let mut incoming = machine.images().receive(&made.meta).unwrap();
    for part in made.snapshot.parts().unwrap().skip(1) {
        incoming.push(&part.unwrap()).unwrap();
    }
    assert_ne!(names(), at_rest);
    let come = incoming.end().unwrap();
    assert_eq!(come.parts().unwrap().count(), made.snapshot.parts().unwrap().count());
    drop(come);
    assert_eq!(names(), at_rest);
    // Whose master ended meanwhile.
    std::fs::write(home.path().join("incoming-3"), b"half").unwrap();
    drop(machine);
    StateMachine::open(room_in(home.path())).unwrap();
    assert_eq!(names(), at_rest);
}

#[tokio::test]
async fn whichever_bit_of_an_image_flips_it_is_refused() {
    let home = TempDir::new().unwrap();
    {
        let mut machine = StateMachine::open(room_in(home.path())).unwrap();
        with_entries(&mut machine, 0..10).await;
        machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    }
    let path = home.path().join("snapshot");
    let good = std::fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&path, &bytes).unwrap();
        assert!(StateMachine::open(room_in(home.path())).is_err(), "byte {at} of {}", good.len());
    }
    for len in 0..good.len() {
        std::fs::write(&path, &good[..len]).unwrap();
        assert!(StateMachine::open(room_in(home.path())).is_err(), "{len} of {} bytes", good.len());
    }
}

#[test]
fn a_damaged_snapshot_is_refused_with_a_sentence() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("snapshot"), b"CRNSNAP2\xff\xff\xff\xff1234").unwrap();
    let error = StateMachine::open(room_in(dir.path())).err().expect("refused").to_string();
    assert!(error.contains("too long"), "{error}");
    std::fs::write(dir.path().join("snapshot"), b"nonsense").unwrap();
    assert!(StateMachine::open(room_in(dir.path())).is_err());
}
