//! `cairn sim`: seeds over threads, a table, and a small plan of whatever fails.

use crate::args::Sim;
use anyhow::{Context, bail};
use serde_json::json;
use sim::run::{Done, Failure, run as run_plan, shrink};
use sim::world::plan::{Options, Plan, scenarios};
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When so many seeds of a scenario have failed, no more are run.
const FAILURES_MAX: usize = 5;

pub fn run(options: Sim, json: bool) -> anyhow::Result<()> {
    if let Some(path) = &options.replay {
        return replay(path, json);
    }
    let all = scenarios();
    if options.scenario == "list" {
        all.iter().for_each(|(name, options)| println!("{name:<18} {}", describe(options)));
        return Ok(());
    }
    let chosen: Vec<_> =
        all.into_iter().filter(|(name, _)| options.scenario == "all" || options.scenario == *name).collect();
    if chosen.is_empty() {
        bail!("no scenario is called {}; `cairn sim --scenario list` names them", options.scenario);
    }
    let jobs = match options.jobs {
        Some(jobs) => jobs.max(1),
        None => std::thread::available_parallelism()?.get(),
    };
    let mut failed = 0;
    for (name, scenario) in chosen {
        failed += one(name, &scenario, &options, jobs, json)?;
    }
    if failed > 0 {
        bail!("{failed} seeds failed; `cairn sim --replay FILE` runs one again");
    }
    Ok(())
}

fn describe(o: &Options) -> String {
    format!(
        "{} stores, {} chunks x {}, {} writers x {} {}, {} ms; {} kills{}, {} pauses, {} cuts, {} deaf, {} islands, {} elections, {} drains, {} checkpoints",
        o.stores,
        o.chunks,
        o.replicas,
        o.writers,
        o.writes,
        if o.append { "appends" } else { "overwrites" },
        o.span_ms,
        o.kills,
        if o.power { " (power)" } else { "" },
        o.pauses,
        o.cuts,
        o.deafs,
        o.islands,
        o.elections,
        o.drains,
        o.checkpoints
    )
}

#[derive(Default)]
struct Sum {
    seeds: u64,
    done: Done,
    failures: Vec<(u64, Failure)>,
}

/// All seeds of one scenario; gives how many failed.
fn one(name: &str, scenario: &Options, options: &Sim, jobs: usize, json: bool) -> anyhow::Result<usize> {
    let began = Instant::now();
    let next = AtomicU64::new(options.seed);
    let end = options.seed.saturating_add(options.seeds);
    let sum = Mutex::new(Sum::default());
    let bar = match std::io::stderr().is_terminal() && !json {
        true => indicatif::ProgressBar::new(options.seeds),
        false => indicatif::ProgressBar::hidden(),
    };
    bar.enable_steady_tick(Duration::from_millis(200));
    std::thread::scope(|threads| {
        for _ in 0..jobs {
            threads.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let enough = || sum.lock().expect("never poisoned").failures.len() >= FAILURES_MAX;
                    if seed >= end || enough() {
                        return;
                    }
                    let outcome = run_plan(&Plan::new(name, scenario.clone(), seed));
                    bar.inc(1);
                    let mut sum = sum.lock().expect("never poisoned");
                    sum.seeds += 1;
                    match outcome {
                        Ok(done) => sum.done = sum.done + done,
                        Err(failure) => sum.failures.push((seed, failure)),
                    }
                }
            });
        }
    });
    bar.finish_and_clear();
    let Sum { seeds, done, mut failures } = sum.into_inner().expect("never poisoned");
    failures.sort_by_key(|(seed, _)| *seed);
    let wall = began.elapsed().as_secs_f64();
    match json {
        true => println!(
            "{}",
            json!({"scenario": name, "first_seed": options.seed, "seeds": seeds, "failed": failures.len(), "acknowledged": done.acked, "reads": done.reads, "repairs": done.repairs, "lost": done.lost, "clones": done.clones, "virtual_ms": done.ms, "wall_s": wall})
        ),
        false => println!(
            "{name:<18} {seeds:>7} seeds {:>3} failed {:>9} acknowledged {:>9} reads {:>7} repairs {:>5} lost {:>6} clones {:>7.0} s virtual {wall:>6.1} s {:>7.0} seeds/min",
            failures.len(),
            done.acked,
            done.reads,
            done.repairs,
            done.lost,
            done.clones,
            done.ms as f64 / 1e3,
            seeds as f64 / wall * 60.0
        ),
    }
    for (seed, failure) in &failures {
        eprintln!("seed {seed} of {name}: {}", failure.what);
        let plan = Plan::new(name, scenario.clone(), *seed);
        let whole = plan.faults.len();
        eprintln!("  made smaller ({whole} faults before): {}", save(&shrink(&plan), &options.save)?);
    }
    Ok(failures.len())
}

/// Writes a failing plan and its trace.
fn save(plan: &Plan, dir: &Path) -> anyhow::Result<String> {
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let path = dir.join(format!("cairn-sim-{}-{}.json", plan.scenario, plan.seed));
    std::fs::write(&path, serde_json::to_string_pretty(plan)?)
        .with_context(|| format!("write {}", path.display()))?;
    let Err(failure) = run_plan(plan) else { bail!("a plan fails only sometimes: the simulator is broken") };
    let trace = path.with_extension("trace");
    let text = format!("{}\n{}\n", failure.trace.join("\n"), failure.what);
    std::fs::write(&trace, text).with_context(|| format!("write {}", trace.display()))?;
    Ok(format!("{} faults, {} writes each: {}", plan.faults.len(), plan.options.writes, path.display()))
}

fn replay(path: &Path, json: bool) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let plan: Plan = serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?;
    plan.check().map_err(anyhow::Error::msg).with_context(|| format!("read {}", path.display()))?;
    match run_plan(&plan) {
        Ok(done) => {
            match json {
                true => println!("{}", json!({"failed": false, "acknowledged": done.acked})),
                false => println!("all promises were kept; {} writes acknowledged", done.acked),
            }
            Ok(())
        }
        Err(failure) => {
            match json {
                true => println!("{}", json!({"failed": true, "what": failure.what, "trace": failure.trace})),
                false => failure.trace.iter().for_each(|line| println!("{line}")),
            }
            bail!("{}", failure.what)
        }
    }
}
