//! The replication and the store under kills and power failures, seed by seed. `SEEDS=n` and
//! `SEED=s` run more, or one.

use sim::world::{Options, World};

fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    match (number("SEED"), number("SEEDS")) {
        (Some(seed), n) => seed..seed + n.unwrap_or(1),
        (None, n) => 0..n.unwrap_or(default),
    }
}

fn check(default: u64, options: Options) {
    let mut repairs = 0;
    for seed in seeds(default) {
        let run = std::panic::catch_unwind(|| {
            let mut world = World::new(seed, options.clone());
            world.run();
            world.check_promises();
            world.kill_all();
            world.check_promises();
            world.repairs_begun
        });
        repairs += run.unwrap_or_else(|panic| {
            eprintln!("SEED={seed} reproduces this, with {options:?}");
            std::panic::resume_unwind(panic)
        });
    }
    println!("{repairs} attempts to make a replica");
    assert!(options.kills == 0 || options.replicas == 1 || repairs > 0, "nothing was ever repaired");
}

fn options() -> Options {
    Options { stores: 4, replicas: 3, writers: 3, writes: 20, kills: 0, power: false, append: true }
}

#[test]
fn appends_without_faults() {
    check(20, options());
}

#[test]
fn overwrites_without_faults() {
    check(20, Options { append: false, ..options() });
}

#[test]
fn appends_under_kills() {
    check(60, Options { kills: 4, ..options() });
}

#[test]
fn appends_under_power_failures() {
    check(60, Options { kills: 4, power: true, ..options() });
}

#[test]
fn overwrites_under_power_failures() {
    check(60, Options { kills: 4, power: true, append: false, ..options() });
}

#[test]
fn a_single_replica_under_power_failures() {
    check(60, Options { stores: 1, replicas: 1, kills: 6, power: true, append: false, ..options() });
}

#[test]
fn replicas_are_made_while_stores_die() {
    check(60, Options { stores: 5, writes: 60, kills: 12, ..options() });
}

#[test]
fn replicas_are_made_while_stores_lose_power() {
    check(60, Options { stores: 5, writes: 60, kills: 12, power: true, append: false, ..options() });
}

#[test]
fn a_seed_decides_all() {
    let run = || {
        let mut world = World::new(42, Options { kills: 4, power: true, ..options() });
        world.run();
        world.trace
    };
    assert_eq!(run(), run());
}
