//! Attempts to make replicas: who may copy, what ends an attempt, and what becomes of old copies.

mod driver;

use common::limits::LEARNERS_MAX;
use common::wire::ChunkConfig;
use common::wire::chunk_master::{Order, StoreReply};
use common::wire::client_master::{MasterReply, Mutation};
use common::*;
use driver::{Driver, create, register};
use master_core::{Command, Reply};

/// Four servers on three racks, one file of three replicas.
fn with_chunk() -> (Driver, ChunkConfig) {
    let mut d = Driver::new();
    d.servers(&["r1", "r2", "r3", "r3"], |_| 0);
    let config = new_chunk(&mut d, "/f");
    (d, config)
}

fn new_chunk(d: &mut Driver, path: &str) -> ChunkConfig {
    let MasterReply::Opened { chunk: Some(chunk), .. } = d.mutate(create(path, true)) else { panic!() };
    chunk.config
}

fn store(d: &mut Driver, command: Command) -> Result<StoreReply, Code> {
    match d.apply(command) {
        Reply::Store(StoreReply::Refused { refusal, .. }) => Err(refusal.code),
        Reply::Store(reply) => Ok(reply),
        Reply::Master(_) => unreachable!(),
    }
}

fn config(reply: Result<StoreReply, Code>) -> ChunkConfig {
    match reply {
        Ok(StoreReply::Config(config)) => config,
        other => panic!("{other:?}"),
    }
}

fn down(d: &mut Driver, id: StoreId) {
    let session = d.state.store(id).unwrap().session().unwrap();
    d.apply(Command::StoreDown { store: id, session });
}

/// The last member goes down and is removed.
fn lose_one(d: &mut Driver, before: &ChunkConfig) -> (StoreId, ChunkConfig) {
    let gone = *before.members.last().unwrap();
    down(d, gone);
    let remove = Command::Reconfigure {
        handle: before.handle,
        epoch: before.epoch,
        remove: vec![gone],
        primary: None,
    };
    (gone, config(store(d, remove)))
}

fn begin(config: &ChunkConfig) -> Command {
    Command::BeginRepair { handle: config.handle, epoch: config.epoch }
}

fn join(config: &ChunkConfig, learner: StoreId, attempt: u64) -> Command {
    Command::Join { handle: config.handle, epoch: config.epoch, learner, attempt }
}

#[test]
fn a_chunk_that_lacks_a_member_gets_one_attempt_at_a_time() {
    let (mut d, whole) = with_chunk();
    assert_eq!(store(&mut d, begin(&whole)), Err(Code::RepairVoid), "it lacks nothing");
    let (gone, two) = lose_one(&mut d, &whole);
    assert_eq!(store(&mut d, begin(&whole)), Err(Code::RepairVoid), "that epoch is over");
    assert_eq!(store(&mut d, begin(&two)), Ok(StoreReply::Done));
    assert_eq!(store(&mut d, begin(&two)), Err(Code::RepairVoid), "one is under way");
    let repair = d.state.repair(two.handle).unwrap();
    assert!(!two.members.contains(&repair.target) && repair.target != gone);
    let orders = d.state.repairs_for(repair.target);
    assert_eq!((orders.len(), &orders[0].config, orders[0].attempt), (1, &two, repair.attempt));
    let three = config(store(&mut d, join(&two, repair.target, repair.attempt)));
    assert_eq!(three.members.len(), 3);
    assert!(three.epoch > two.epoch && three.primary == two.primary);
    assert!(d.state.repair(two.handle).is_none());
    d.state.check();
}

#[test]
fn a_refused_join_ends_its_attempt_for_good() {
    let (mut d, whole) = with_chunk();
    let (_, two) = lose_one(&mut d, &whole);
    store(&mut d, begin(&two)).unwrap();
    let first = d.state.repair(two.handle).unwrap();
    let other = two.members[0];
    assert_eq!(store(&mut d, join(&two, other, first.attempt)), Err(Code::RepairVoid), "not the target");
    // It was this attempt's only chance, although its true target asks now.
    assert_eq!(store(&mut d, join(&two, first.target, first.attempt)), Err(Code::RepairVoid));
    store(&mut d, begin(&two)).unwrap();
    let second = d.state.repair(two.handle).unwrap();
    assert!(second.attempt > first.attempt, "attempts are never given twice");
    down(&mut d, second.target);
    assert_eq!(store(&mut d, join(&two, second.target, second.attempt)), Err(Code::RepairVoid), "it is down");
    assert_eq!(d.state.config(two.handle).unwrap(), two, "refused is refused");
}

#[test]
fn a_new_epoch_or_its_end_voids_an_attempt() {
    let (mut d, whole) = with_chunk();
    let (_, two) = lose_one(&mut d, &whole);
    store(&mut d, begin(&two)).unwrap();
    let repair = d.state.repair(two.handle).unwrap();
    let (handle, attempt) = (two.handle, repair.attempt);
    store(&mut d, Command::EndRepair { handle, attempt: attempt + 1 }).unwrap();
    assert!(d.state.repair(handle).is_some(), "another attempt's end");
    store(&mut d, Command::EndRepair { handle, attempt }).unwrap();
    assert_eq!(store(&mut d, join(&two, repair.target, attempt)), Err(Code::RepairVoid));
    store(&mut d, begin(&two)).unwrap();
    let repair = d.state.repair(handle).unwrap();
    let again = Command::Reconfigure { handle, epoch: two.epoch, remove: vec![], primary: Some(two.primary) };
    let later = config(store(&mut d, again));
    assert!(d.state.repair(handle).is_none());
    // Whoever asks under the old epoch learns the new one, and nobody joins.
    assert_eq!(config(store(&mut d, join(&two, repair.target, repair.attempt))), later);
    assert_eq!(later.members, two.members);
}

#[test]
fn a_store_copies_a_bounded_number_of_chunks_at_a_time() {
    let mut d = Driver::new();
    d.servers(&["r1", "r2", "r3"], |_| 0);
    let chunks: Vec<ChunkConfig> = (0..=LEARNERS_MAX).map(|n| new_chunk(&mut d, &format!("/{n}"))).collect();
    let gone = StoreId(3);
    down(&mut d, gone);
    let lessened: Vec<ChunkConfig> = chunks
        .iter()
        .map(|c| {
            let (handle, epoch) = (c.handle, c.epoch);
            config(store(&mut d, Command::Reconfigure { handle, epoch, remove: vec![gone], primary: None }))
        })
        .collect();
    assert_eq!(store(&mut d, begin(&lessened[0])), Err(Code::NoServers));
    d.apply(Command::Register(register(7, "r3", 0)));
    for config in &lessened[..LEARNERS_MAX] {
        store(&mut d, begin(config)).unwrap();
    }
    let last = lessened.last().unwrap();
    assert_eq!(store(&mut d, begin(last)), Err(Code::Busy), "the only store there is has enough to do");
    let first = d.state.repair(lessened[0].handle).unwrap();
    config(store(&mut d, join(&lessened[0], first.target, first.attempt)));
    store(&mut d, begin(last)).unwrap();
}

#[test]
fn who_holds_an_old_copy_is_asked_first_and_what_is_left_over_goes_when_the_chunk_is_whole() {
    let (mut d, whole) = with_chunk();
    let gone = *whole.members.last().unwrap();
    let (handle, epoch) = (whole.handle, whole.epoch);
    let two =
        config(store(&mut d, Command::Reconfigure { handle, epoch, remove: vec![gone], primary: None }));
    let session = d.state.store(gone).unwrap().session().unwrap();
    assert_eq!(store(&mut d, begin(&two)), Err(Code::Busy), "it has not heard that it is no member");
    let (orders, _) = d.state.orders_for(gone, 10);
    assert_eq!(orders, [Order { handle: two.handle, epoch: two.epoch, discard: false }]);
    d.apply(Command::Confirmed { store: gone, session, orders });
    store(&mut d, begin(&two)).unwrap();
    assert_eq!(d.state.repair(two.handle).unwrap().target, gone);
    // That comes to nothing; another store is made a member. Then the old copy goes.
    down(&mut d, gone);
    let attempt = d.state.repair(two.handle).unwrap().attempt;
    store(&mut d, Command::EndRepair { handle: two.handle, attempt }).unwrap();
    store(&mut d, begin(&two)).unwrap();
    let other = d.state.repair(two.handle).unwrap();
    assert_ne!(other.target, gone);
    let three = config(store(&mut d, join(&two, other.target, other.attempt)));
    assert!(d.state.stale_of(two.handle).is_empty());
    let (orders, _) = d.state.orders_for(gone, 10);
    assert_eq!(orders, [Order { handle: two.handle, epoch: three.epoch, discard: true }]);
}

#[test]
fn a_condemned_copy_leaves_and_goes_at_once_but_never_the_last_but_one() {
    let (mut d, whole) = with_chunk();
    let (handle, bad) = (whole.handle, whole.members[1]);
    let condemn = |epoch, store| Command::Condemn { handle, epoch, store };
    let two = config(store(&mut d, condemn(whole.epoch, bad)));
    assert!(!two.members.contains(&bad));
    assert_eq!(d.state.stale_of(handle), [], "it is nothing to build on");
    let (orders, _) = d.state.orders_for(bad, 10);
    assert!(orders.contains(&Order { handle, epoch: two.epoch, discard: true }), "{orders:?}");
    assert_eq!(store(&mut d, condemn(two.epoch, two.members[1])), Err(Code::Frozen));
    assert_eq!(config(store(&mut d, condemn(whole.epoch, bad))), two, "said again");
}

#[test]
fn a_drained_server_gets_nothing_and_its_replicas_move() {
    let (mut d, whole) = with_chunk();
    let first = whole.members[0];
    let server = d.state.store(first).unwrap().server;
    let missing = Mutation::Drain { server: ServerId(99), on: true };
    assert_eq!(driver::code(&d.mutate(missing)), Some(Code::NoSuchStore));
    d.mutate(Mutation::Drain { server, on: true });
    assert_eq!(d.state.left_on(server), (1, 0));
    assert!(d.state.is_unwell(whole.handle));
    // Another member first; only then does the old one leave.
    store(&mut d, begin(&whole)).unwrap();
    let repair = d.state.repair(whole.handle).unwrap();
    let four = config(store(&mut d, join(&whole, repair.target, repair.attempt)));
    assert_eq!(four.members.len(), 4);
    assert_eq!(store(&mut d, begin(&four)), Err(Code::RepairVoid), "enough stay");
    let (handle, epoch) = (four.handle, four.epoch);
    let leave = Command::Reconfigure { handle, epoch, remove: vec![first], primary: None };
    let three = config(store(&mut d, leave));
    assert!(!three.members.contains(&first) && three.members.len() == 3);
    assert!(!d.state.is_unwell(handle));
    let (chunks, copies) = d.state.left_on(server);
    assert_eq!((chunks, copies), (0, 1), "its copy has to go");
    let (orders, _) = d.state.orders_for(first, 10);
    assert!(orders.contains(&Order { handle, epoch: three.epoch, discard: true }), "{orders:?}");
    let session = d.state.store(first).unwrap().session().unwrap();
    d.apply(Command::Confirmed { store: first, session, orders });
    assert_eq!(d.state.left_on(server), (0, 0));
    for n in 0..20 {
        assert!(!new_chunk(&mut d, &format!("/{n}")).members.contains(&first));
    }
    d.mutate(Mutation::Drain { server, on: false });
    let used = (20..60).any(|n| new_chunk(&mut d, &format!("/{n}")).members.contains(&first));
    assert!(used, "it is used again");
    d.state.check();
}

#[test]
fn a_full_store_shares_with_an_empty_one() {
    let mut d = Driver::new();
    let tib = 1 << 40;
    d.servers(&["r1", "r2", "r3"], |_| tib / 2);
    let chunks: Vec<ChunkConfig> = (0..10).map(|n| new_chunk(&mut d, &format!("/{n}"))).collect();
    assert_eq!(d.state.wanted_move(ChunkHandle(0), 100).0, None, "all are alike");
    d.apply(Command::Register(register(3, "r3", 0)));
    let empty = d.state.store_by_uuid(4).unwrap().0;
    let (Some(Command::Move { handle, epoch, from }), _) = d.state.wanted_move(ChunkHandle(0), 100) else {
        panic!("nothing is moved")
    };
    let before = chunks.iter().find(|c| c.handle == handle).unwrap();
    assert!(before.members.contains(&from));
    assert_eq!(store(&mut d, Command::Move { handle, epoch, from }), Ok(StoreReply::Done));
    assert_eq!(
        store(&mut d, Command::Move { handle, epoch, from }),
        Err(Code::RepairVoid),
        "it is under way"
    );
    store(&mut d, begin(before)).unwrap();
    let repair = d.state.repair(handle).unwrap();
    assert_eq!(repair.target, empty);
    let four = config(store(&mut d, join(before, empty, repair.attempt)));
    assert_eq!(d.state.leaving(handle, d.state.chunk(handle).unwrap()), [from]);
    let (epoch, remove) = (four.epoch, vec![from]);
    let three = config(store(&mut d, Command::Reconfigure { handle, epoch, remove, primary: None }));
    assert!(three.members.contains(&empty) && !three.members.contains(&from));
    assert!(d.state.moving().next().is_none() && !d.state.is_unwell(handle));
    // A move that comes to nothing leaves things as they are.
    let (Some(Command::Move { handle, epoch, from }), _) = d.state.wanted_move(handle, 100) else { panic!() };
    store(&mut d, Command::Move { handle, epoch, from }).unwrap();
    assert!(d.state.is_unwell(handle));
    store(&mut d, Command::EndMove { handle }).unwrap();
    assert!(!d.state.is_unwell(handle));
    d.state.check();
}

/// The rules of racks forbid to relieve the fullest store: another one is relieved.
#[test]
fn a_rack_shares_within_itself_though_another_is_fuller() {
    let mut d = Driver::new();
    let tib = 1 << 40;
    d.servers(&["r1", "r2", "r3"], |n| if n == 1 { tib / 10 * 7 } else { tib / 2 });
    for n in 0..10 {
        new_chunk(&mut d, &format!("/{n}"));
    }
    d.apply(Command::Register(register(3, "r1", 0)));
    let (Some(Command::Move { from, .. }), _) = d.state.wanted_move(ChunkHandle(0), 100) else {
        panic!("nothing is moved")
    };
    assert_eq!(d.state.store(from).unwrap().register.rack, "r1");
}

#[test]
fn attempts_and_old_copies_survive_a_snapshot() {
    let (mut d, whole) = with_chunk();
    let (_, two) = lose_one(&mut d, &whole);
    store(&mut d, begin(&two)).unwrap();
    let read = d.reread();
    assert_eq!(read.repair(two.handle), d.state.repair(two.handle));
    assert_eq!(read.stale_of(two.handle), d.state.stale_of(two.handle));
    d.state = read;
    let repair = d.state.repair(two.handle).unwrap();
    assert_eq!(config(store(&mut d, join(&two, repair.target, repair.attempt))).members.len(), 3);
}

/// Two of three members are gone: the chunk waits for them until they are given up, then it goes on with
/// the one that is left; without that it is lost.
#[test]
fn a_chunk_goes_on_without_members_that_are_given_up() {
    let (mut d, whole) = with_chunk();
    let [a, b, c] = whole.members[..] else { panic!("{whole:?}") };
    let handle = whole.handle;
    let give_up = |d: &mut Driver, store| driver::code(&d.mutate(Mutation::GiveUp { store }));
    assert_eq!(give_up(&mut d, b), Some(Code::StoreInUse));
    assert_eq!(give_up(&mut d, StoreId(99)), Some(Code::NoSuchStore));
    let down = |d: &mut Driver, store| {
        let session = d.state.store(store).unwrap().session().unwrap();
        d.apply(Command::StoreDown { store, session });
    };
    let leave = |d: &mut Driver, epoch, remove: Vec<StoreId>| {
        store(d, Command::Reconfigure { handle, epoch, remove, primary: None })
    };
    down(&mut d, b);
    down(&mut d, c);
    assert_eq!(leave(&mut d, whole.epoch, vec![b, c]), Err(Code::Frozen));
    assert_eq!(give_up(&mut d, b), None);
    assert_eq!(leave(&mut d, whole.epoch, vec![b, c]), Err(Code::Frozen), "{c} may come back");
    assert_eq!(leave(&mut d, whole.epoch, vec![b]), Err(Code::Frozen), "only {a} would be live");
    assert_eq!(give_up(&mut d, c), None);
    let one = config(leave(&mut d, whole.epoch, vec![b, c]));
    assert_eq!((&one.members[..], one.primary), (&[a][..], a));
    assert!(d.state.stale_of(handle).is_empty() && !d.state.is_lost(handle));
    let register = d.state.store(b).unwrap().register.clone();
    assert_eq!(store(&mut d, Command::Register(register)), Err(Code::GivenUp));

    down(&mut d, a);
    let said = d.state.loss_of(a).unwrap();
    assert_eq!((said.chunks, said.single, said.lost, said.items[0].handle), (1, 0, 1, handle));
    assert_eq!(give_up(&mut d, a), None);
    assert!(d.state.is_lost(handle));
    assert_eq!(leave(&mut d, one.epoch, vec![a]), Err(Code::Frozen));
    d.state.check();
    let read = d.reread();
    assert_eq!(read.given_up().collect::<Vec<_>>(), d.state.given_up().collect::<Vec<_>>());
}
