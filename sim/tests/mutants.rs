//! Known mistakes, one after another, each of which the simulator must find within a bounded
//! number of runs. `cargo test -p sim --features mutants --test mutants -- --nocapture` prints
//! how many it took; `MUTANT=name` tries one, `SCENARIO=name` in one scenario, `RUNS=n` longer, and with `SAVE=file` the plan
//! that finds it is written, made small.
#![cfg(feature = "mutants")]

use common::Mutant;
use common::mutant::switch;
use sim::run::{run, shrink};
use sim::world::plan::{Plan, scenarios};

/// Runs of one mistake at most, over all scenarios in turn, or of the one that is made for it.
const RUNS: u64 = 4000;

/// The scenario in which a mistake is looked for that shows in one run of hundreds, even there.
fn made_for(mutant: Mutant) -> Option<&'static str> {
    match mutant {
        Mutant::OneSegmentSynced | Mutant::GoOnAfterAsked | Mutant::LateAnswer => Some("long"),
        Mutant::CutMoves => Some("checkpoints"),
        Mutant::LedAsNew => Some("cradles"),
        Mutant::ConfirmOnce => Some("net-power"),
        Mutant::HomeAnyway => Some("scattered"),
        Mutant::NoStamp => Some("snapshots-power"),
        Mutant::NoFloor => Some("loss"),
        Mutant::ForkEarly => Some("snapshots"),
        Mutant::CutAskedBefore | Mutant::CutUnheard => Some("truncations"),
        Mutant::MadeAfterCut => Some("emptyings"),
        Mutant::CloneAdmits => Some("clones"),
        Mutant::CloneTwice => Some("clones-power"),
        _ => None,
    }
}

/// A plan that finds a mistake which shows in one run of thousands.
fn plan_for(mutant: Mutant) -> Option<&'static str> {
    match mutant {
        Mutant::LateAnswer => Some(include_str!("plans/late-answer.json")),
        Mutant::TakenOverUnasked => Some(include_str!("plans/gone-taken-over.json")),
        _ => None,
    }
}

/// The scenario and the seed that find a mistake, and after how many runs.
fn find(mutant: Mutant, runs: u64) -> Option<(String, u64, u64, String)> {
    switch::set(Some(mutant));
    let found = match plan_for(mutant).filter(|_| runs == RUNS) {
        Some(plan) => {
            let plan: Plan = serde_json::from_str(plan).unwrap();
            run(&plan).err().map(|failure| (plan.scenario, plan.seed, 1, failure.what))
        }
        None => search(mutant, runs),
    };
    switch::set(None);
    found
}

fn search(mutant: Mutant, runs: u64) -> Option<(String, u64, u64, String)> {
    let mut scenarios = scenarios();
    if let Some(only) = std::env::var("SCENARIO").ok().or(made_for(mutant).map(str::to_owned)) {
        scenarios.retain(|(name, _)| *name == only);
        assert!(!scenarios.is_empty(), "there is no scenario {only}");
    }
    (0..runs).find_map(|n| {
        let (name, options) = &scenarios[(n % scenarios.len() as u64) as usize];
        let seed = n / scenarios.len() as u64;
        let plan = Plan::new(name, options.clone(), seed);
        let failure = run(&plan).err()?;
        if let Ok(file) = std::env::var("SAVE") {
            std::fs::write(file, serde_json::to_string_pretty(&shrink(&plan)).unwrap() + "\n").unwrap();
        }
        Some((name.to_string(), seed, n + 1, failure.what))
    })
}

#[test]
fn every_known_mistake_is_found() {
    let variable = |name| std::env::var(name).ok();
    let runs = variable("RUNS").and_then(|v| v.parse().ok()).unwrap_or(RUNS);
    let only = variable("MUTANT");
    let mutants: Vec<Mutant> = Mutant::ALL
        .iter()
        .copied()
        .filter(|m| only.as_ref().is_none_or(|o| *o == format!("{m:?}")))
        .collect();
    let next = std::sync::Mutex::new(mutants.into_iter());
    let missed = std::sync::Mutex::new(vec![]);
    std::thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                loop {
                    let Some(mutant) = next.lock().unwrap().next() else { return };
                    let began = std::time::Instant::now();
                    match find(mutant, runs) {
                        Some((scenario, seed, runs, what)) => {
                            let what =
                                what.lines().nth(1).unwrap_or(&what).chars().take(90).collect::<String>();
                            println!(
                                "{:<18} {runs:>5} runs, {:>3} s: {scenario} {seed}: {what}",
                                format!("{mutant:?}"),
                                began.elapsed().as_secs()
                            );
                        }
                        None => {
                            println!("{:<18} not found in {runs} runs", format!("{mutant:?}"));
                            missed.lock().unwrap().push(mutant);
                        }
                    }
                }
            });
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
