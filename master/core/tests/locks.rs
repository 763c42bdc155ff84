//! Claims: no two holders have claimed what only one can have, whatever they ask. The random test prints its seed.

mod driver;

use common::wire::client_master::{LockItem, MasterReply, Mutation};
use common::*;
use driver::{Driver, code, create, image};
use master_core::{Command, Entry};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const FIRST: ClientId = ClientId(11);
const SECOND: ClientId = ClientId(12);
const THIRD: ClientId = ClientId(13);

fn of(file: u64, flock: bool) -> Lockable {
    Lockable { file: FileId(file), flock }
}

fn range(first: u64, last: u64, exclusive: bool) -> LockRange {
    LockRange { first, last, exclusive }
}

fn begin(holder: ClientId) -> Mutation {
    Mutation::BeginLocks { holder, name: "host 1 /mnt".into() }
}

fn claim(holder: ClientId, of: Lockable, range: LockRange) -> Mutation {
    Mutation::Claim { holder, of, range, patient: false }
}

fn keep(holder: ClientId, of: Lockable, keep: &[LockRange], recalled: bool) -> Mutation {
    Mutation::Unclaim { holder, of, keep: keep.iter().copied().collect(), recalled }
}

fn claimed(reply: MasterReply) -> (LockRanges, bool) {
    match reply {
        MasterReply::Claimed { ranges, wide } => (ranges, wide),
        other => panic!("not claimed: {other:?}"),
    }
}

fn listed(d: &Driver) -> Vec<LockItem> {
    match d.state.list_locks(None, 100) {
        MasterReply::Locks { items, more: false } => items,
        other => panic!("not all locks: {other:?}"),
    }
}

#[test]
fn who_is_alone_gets_all_of_a_file_and_gives_back_what_it_does_not_need() {
    let mut d = Driver::new();
    d.servers(&["a", "b", "c"], |_| 0);
    d.mutate(create("/f", true));
    let f = of(d.state.stat(b"/f").unwrap().file.0, false);
    let ours = range(0, 9, true);
    assert_eq!(code(&d.mutate(claim(FIRST, f, ours))), Some(Code::ClientEnded), "it has not begun");
    assert_eq!(d.mutate(begin(FIRST)), MasterReply::Done);
    assert_eq!(d.mutate(begin(SECOND)), MasterReply::Done);
    assert_eq!(code(&d.mutate(begin(FIRST))), Some(Code::Exists), "a name is used once");

    let all = [LockRange::ALL].into_iter().collect();
    assert_eq!(claimed(d.mutate(claim(FIRST, f, ours))), (all, true));
    assert_eq!(code(&d.mutate(claim(SECOND, f, range(20, 29, true)))), Some(Code::Recalled));
    let other_kind = of(f.file.0, true);
    assert!(
        claimed(d.mutate(claim(SECOND, other_kind, range(0, u64::MAX, true)))).1,
        "flock is another matter"
    );
    assert_eq!(d.mutate(keep(FIRST, f, &[ours], true)), MasterReply::Done);
    let theirs = range(20, 29, true);
    assert_eq!(claimed(d.mutate(claim(SECOND, f, theirs))), ([theirs].into_iter().collect(), false));
    assert_eq!(code(&d.mutate(claim(SECOND, f, ours))), Some(Code::Locked));
    assert_eq!(code(&d.mutate(claim(FIRST, f, range(5, 25, false)))), Some(Code::Locked));
    assert_eq!(
        code(&d.mutate(keep(SECOND, f, &[range(0, 29, true)], false))),
        Some(Code::BadArgument),
        "nobody keeps what it has not claimed"
    );
    let listed = listed(&d);
    assert_eq!(listed.len(), 3);
    assert_eq!((listed[0].path.as_deref(), listed[0].holder), (Some(&b"/f"[..]), FIRST));

    // For a while nobody gets more than is asked for: those who take turns would only ask it back.
    d.mutate(keep(FIRST, f, &[], false));
    d.mutate(keep(SECOND, f, &[], false));
    assert!(!claimed(d.mutate(claim(SECOND, f, theirs))).1);
    d.mutate(keep(SECOND, f, &[], false));
    let later = Command::EndLocks { holder: THIRD };
    d.state.apply(&Entry { stamp_ns: 20_000_000_000, wall_ns: 5, salt: 1, command: later });
    assert!(claimed(d.mutate(claim(SECOND, f, theirs))).1);

    // Who is gone has nothing, and never will.
    d.apply(Command::EndLocks { holder: SECOND });
    assert_eq!(code(&d.mutate(claim(SECOND, f, theirs))), Some(Code::ClientEnded));
    assert_eq!(code(&d.mutate(keep(SECOND, f, &[], false))), Some(Code::ClientEnded));
    assert_eq!(claimed(d.mutate(claim(FIRST, f, range(0, 99, true)))).0.len(), 1);
    d.state.check();
}

#[test]
fn no_two_have_claimed_what_only_one_can_have() {
    for seed in 0..200 {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut d = Driver::new();
        let holders = [FIRST, SECOND, THIRD];
        holders.iter().for_each(|holder| drop(d.mutate(begin(*holder))));
        for _ in 0..200 {
            let holder = holders[rng.random_range(0..3)];
            let of = of(rng.random_range(5..7), rng.random());
            let (a, b) = (rng.random_range(0..12), rng.random_range(0..12));
            let wanted = range(a.min(b), a.max(b), rng.random());
            let before = listed(&d);
            let others = || before.iter().filter(|item| item.of == of && item.holder != holder);
            let mine = || before.iter().find(|item| item.of == of && item.holder == holder);
            match rng.random_range(0..10) {
                0..6 => {
                    let conflict = others().find(|item| item.ranges.conflict(&wanted).is_some());
                    let reply = d.mutate(claim(holder, of, wanted));
                    match conflict {
                        Some(other) => {
                            let why = if other.wide { Code::Recalled } else { Code::Locked };
                            assert_eq!(code(&reply), Some(why));
                        }
                        None => {
                            let (ranges, wide) = claimed(reply);
                            assert!(ranges.covers(&wanted));
                            assert!(mine().is_none_or(|mine| ranges.cover(&mine.ranges)), "it loses nothing");
                            assert!(!wide || others().next().is_none(), "all of it, with others there");
                        }
                    }
                }
                6..9 => {
                    let mut kept = mine().map(|mine| mine.ranges.clone()).unwrap_or_default();
                    kept.let_go(wanted.first, wanted.last);
                    let keep = Mutation::Unclaim { holder, of, keep: kept.clone(), recalled: rng.random() };
                    assert_eq!(d.mutate(keep), MasterReply::Done);
                    let now = listed(&d).into_iter().find(|item| item.of == of && item.holder == holder);
                    assert_eq!(
                        now.map(|item| (item.ranges, item.wide)),
                        (!kept.is_empty()).then_some((kept, false))
                    );
                }
                _ => {
                    d.apply(Command::EndLocks { holder });
                    assert!(listed(&d).iter().all(|item| item.holder != holder));
                    // The driver may use a name again, which nobody else does.
                    assert_eq!(d.mutate(begin(holder)), MasterReply::Done);
                }
            }
            d.state.check();
        }
        assert_eq!(image(&d.reread()), image(&d.state), "the image holds all of it");
    }
}
