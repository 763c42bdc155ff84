//! `cairn`: one binary for servers, clients and administrators.

mod admin;
mod args;
mod audit;
mod background;
mod copy;
mod explain;
mod fs;
mod log;
mod mount;
mod mount_helper;
mod output;
mod servers;
mod simulate;
mod snapshot;
mod transfer;
mod up;

use anyhow::Context;
use args::measure::{Bench, What};
use args::{Cairn, Command};
use clap::{CommandFactory, Parser};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Err(error) = raise_open_files() {
        eprintln!("cairn: no more than the usual number of files can be open: {error}");
    }
    if let Err(error) = mount_helper::run_if_called() {
        eprintln!("mount.cairn: {error:#}");
        // As mount(8) wants it: a system error.
        return ExitCode::from(2);
    }
    let args = Cairn::parse();
    match begin(&args.command).and_then(|_log| run(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(format_args!("cairn: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// As many files may be open as the system lets them: servers have one for each connection and each segment of their disks, and
/// the usual limit of 1,024 is for programs that ask for no more.
fn raise_open_files() -> std::io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return Ok(());
    }
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?)
}

/// Servers have a log of their own kind.
fn begin(command: &Command) -> anyhow::Result<Option<log::Log>> {
    if matches!(command, Command::Up(_) | Command::Master(_) | Command::Chunkserver(_)) {
        return Ok(None);
    }
    chunkserver::parent::end_on_broken_pipe();
    let level = if matches!(command, Command::Mount(_)) { "warn" } else { "off" };
    log::Log::start(level).context("start the log").map(Some)
}

fn run(args: Cairn) -> anyhow::Result<()> {
    match args.command {
        Command::Up(up) => up::up(up),
        Command::Down { dir } => up::down(&up::local_dir(dir, args.cluster)),
        Command::Master(server) => servers::master(server),
        Command::Chunkserver(server) => servers::chunkserver(server),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cairn::command(), "cairn", &mut std::io::stdout());
            Ok(())
        }
        Command::Drill(options) => drill(options, args.json),
        Command::Sim(options) => simulate::run(options, args.json),
        Command::Node => sim::jsonl::run(std::io::BufReader::new(std::io::stdin()), std::io::stdout()),
        Command::Mount(options) => mount::run(options, &args.cluster),
        Command::Fs(command) => with_client(&args.cluster, |client| fs::run(client, command, args.json)),
        Command::Snapshot { command } => {
            with_client(&args.cluster, |client| snapshot::run(client, command, args.json))
        }
        Command::Admin { command } => {
            with_client(&args.cluster, |client| admin::run(client, command, args.json))
        }
        Command::Bench(bench) => measure(&args.cluster, bench, args.json),
    }
}

fn measure(cluster: &Option<String>, args: Bench, json: bool) -> anyhow::Result<()> {
    let (job, plan) = match args.what {
        What::Memory { files } => return bench::memory(files, json),
        What::Gfs { servers, clients, seconds, link, trunk, dir } => {
            ops::net::enter()?;
            let links = ops::net::Links { host_mbit: link, trunk_mbit: trunk };
            let experiment = bench::gfs::Experiment { servers, clients, links, seconds };
            let dir = dir.unwrap_or_else(std::env::temp_dir);
            return runtime()?.block_on(experiment.run(&dir, &std::env::current_exe()?, json));
        }
        What::GfsPart { part, round, client, of, seconds } => {
            let part = bench::gfs::Part::named(&part).with_context(|| format!("{part}: no part of it"))?;
            let run = bench::gfs::Run { round, client, of, seconds };
            return runtime()?.block_on(bench::gfs::part(up::find(cluster)?, part, run));
        }
        what => what.job().expect("all others are loads"),
    };
    let scratch = up::cluster_dir(cluster).unwrap_or_else(std::env::temp_dir);
    let show = bench::Show { json, report: args.report, scratch };
    runtime()?.block_on(bench::run(up::find(cluster)?, job, plan, show))
}

fn drill(args: args::Drill, json: bool) -> anyhow::Result<()> {
    use ops::drill::{DRILLS, Drill};
    let chosen: Vec<&'static Drill> = match args.name.as_str() {
        "list" => {
            DRILLS.iter().for_each(|d| println!("{:<16} {}", d.name, d.what));
            return Ok(());
        }
        "all" => DRILLS.iter().filter(|drill| drill.in_all()).collect(),
        one => vec![Drill::named(one)?],
    };
    if chosen.iter().any(|drill| drill.needs_network()) {
        ops::net::enter()?;
    }
    let dir = args.dir.unwrap_or_else(std::env::temp_dir);
    let binary = std::env::current_exe()?;
    // Servers live as long as the thread that starts them: the main one, which polls the drill.
    let runtime = runtime()?;
    let mut outcomes = vec![];
    for drill in chosen {
        let outcome =
            runtime.block_on(ops::drill::run(drill, args.repeats, &dir, args.file_system, &binary))?;
        match json {
            true => println!("{}", outcome.json()),
            false => print!("{}", outcome.text()),
        }
        outcomes.push(outcome);
    }
    match args.table {
        Some(path) => ops::drill::write_table(&path, &outcomes),
        None => Ok(()),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

fn with_client<F>(cluster: &Option<String>, work: impl FnOnce(client::Client) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let config = up::find(cluster)?;
    runtime()?.block_on(async {
        let client = client::Client::connect(config).await?;
        let done = work(client.clone()).await;
        client.close().await;
        done
    })
}
