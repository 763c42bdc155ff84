//! The replica core within small bounds: every state. One chunk with three members; appends, a
//! crash at any moment of any member, and the reconfigurations and the repair that follow from it.
//! The larger bounds take minutes, and a release build: `cargo test --release -p sim --test model --
//! --ignored --nocapture`.

use sim::model::{Bounds, check};

const ONE_WRITER: Bounds = Bounds {
    writers: 1,
    writes: 1,
    crashes: 0,
    answers_lost: 0,
    disk: false,
    repair: false,
    states_max: 20_000_000,
};

fn all_states(name: &str, bounds: Bounds) {
    let began = std::time::Instant::now();
    match check(&bounds) {
        Ok(f) => println!(
            "{name}: {} states, {} steps between them, {} ends, at most {} steps deep; {:.1} s",
            f.states,
            f.steps,
            f.ends,
            f.depth,
            began.elapsed().as_secs_f64()
        ),
        Err(wrong) => panic!("{name}: {}\n{}", wrong.what, wrong.path.join("\n")),
    }
}

#[test]
fn two_writers() {
    all_states("two writers", Bounds { writers: 2, ..ONE_WRITER });
}

#[test]
fn one_writer_on_slow_disks() {
    all_states("one writer, slow disks", Bounds { disk: true, ..ONE_WRITER });
}

#[test]
fn a_crash() {
    all_states("one writer, a crash", Bounds { crashes: 1, ..ONE_WRITER });
}

#[test]
fn a_crash_and_a_lost_answer() {
    all_states("one writer, a crash, a lost answer", Bounds { crashes: 1, answers_lost: 1, ..ONE_WRITER });
}

#[test]
fn a_crash_between_two_appends() {
    all_states("two appends of one writer, a crash", Bounds { crashes: 1, writes: 2, ..ONE_WRITER });
}

#[test]
#[ignore = "takes half a minute"]
fn a_crash_and_slow_disks() {
    all_states("one writer, a crash, slow disks", Bounds { crashes: 1, disk: true, ..ONE_WRITER });
}

#[test]
#[ignore = "takes three minutes"]
fn a_crash_and_a_repair() {
    all_states("one writer, a crash, a repair", Bounds { crashes: 1, repair: true, ..ONE_WRITER });
}

#[test]
#[ignore = "takes three minutes"]
fn two_writers_and_a_crash() {
    all_states("two writers, a crash", Bounds { writers: 2, crashes: 1, ..ONE_WRITER });
}

/// The check can fail: mistakes that show within bounds as small as these.
#[cfg(feature = "mutants")]
#[test]
fn known_mistakes_are_found() {
    use common::Mutant::*;
    use common::mutant::switch;
    let crash = Bounds { crashes: 1, answers_lost: 1, ..ONE_WRITER };
    let disk = Bounds { crashes: 1, disk: true, ..ONE_WRITER };
    let known = [
        (CommitAtFastest, crash),
        (NoAnswers, crash),
        (NoDedupInTail, crash),
        (ReadWithoutAsking, crash),
        (SelfAckEarly, disk),
    ];
    for (mutant, bounds) in known {
        switch::set(Some(mutant));
        let wrong = check(&bounds).err();
        switch::set(None);
        let wrong = wrong.unwrap_or_else(|| panic!("{mutant:?} is not found"));
        println!("{mutant:?} is found after {} steps: {}", wrong.path.len(), wrong.what);
    }
}
