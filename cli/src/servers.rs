//! `cairn master` and `cairn chunkserver`.

use crate::args::Server;
use crate::log::Log;
use anyhow::{Context, bail};
use chunkserver::parent;
use std::process::Command;

/// What servers log, unless told otherwise.
const SERVER_LOG: &str = "info,openraft=error";

fn begin() -> std::io::Result<Log> {
    let log = Log::start(SERVER_LOG)?;
    log.ends_with_a_panic();
    Ok(log)
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
    let _log = begin()?;
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
        let _log = begin()?;
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
