//! `cairn master` and `cairn chunkserver`.

use crate::args::Server;
use anyhow::{Context, bail};
use chunkserver::parent;
use std::process::Command;

/// Starts the log of a server. One in which something asserts must end: with one of its tasks gone
/// it would only look alive.
fn begin() {
    log(SERVER_LOG);
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}

/// What servers log, unless told otherwise.
const SERVER_LOG: &str = "info,openraft=error";

/// Starts the log to standard error: as `CAIRN_LOG` says, else from this level on.
pub fn log(otherwise: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("CAIRN_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(otherwise));
    // A log that cannot be written, on a full disk, ends nobody: to complain of it would be to write again, and panic.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    log.log_internal_errors(false).init();
}

fn read(server: &Server) -> anyhow::Result<String> {
    std::fs::read_to_string(&server.config).with_context(|| format!("read {}", server.config.display()))
}

fn bad(server: &Server, why: String) -> anyhow::Error {
    anyhow::anyhow!("{}: {why}", server.config.display())
}

pub fn master(server: Server) -> anyhow::Result<()> {
    if let Some(parent) = server.die_with_parent {
        parent::die_with_parent(parent);
    }
    let config = master::config::Config::parse(&read(&server)?).map_err(|why| bad(&server, why))?;
    if server.print_config {
        print!("{}", toml::to_string(&config)?);
        return Ok(());
    }
    begin();
    master::run(config)
}

pub fn chunkserver(server: Server) -> anyhow::Result<()> {
    if let Some(parent) = server.die_with_parent {
        parent::die_with_parent(parent);
    }
    let config = chunkserver::config::Config::parse(&read(&server)?).map_err(|why| bad(&server, why))?;
    if server.print_config {
        print!("{}", toml::to_string(&config)?);
        return Ok(());
    }
    if server.worker {
        begin();
        return chunkserver::run(config);
    }
    let mut worker = Command::new(std::env::current_exe()?);
    worker.arg("chunkserver").arg("--config").arg(&server.config).arg("--worker");
    worker.arg("--die-with-parent").arg(std::process::id().to_string());
    let status = parent::run(&config, worker)?;
    if !status.success() {
        bail!("the worker has ended: {status}");
    }
    Ok(())
}
