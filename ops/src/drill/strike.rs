//! The blows.

use super::load::Load;
use super::{WHOLE_WITHIN, report_exit, store_of};
use crate::cluster::{Cluster, signal};
use crate::net::Net;
use anyhow::{Context, bail};
use client::Client;
use std::time::{Duration, Instant};

/// What is done to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hit {
    Leader,
    LeaderPause,
    TwoMasters,
    Rolling,
    Drain,
    Grow,
    Worker,
    Server,
    Pause,
    Cut,
    CutLeader,
    CutRack,
    CutOneWay,
    CutPrimary,
    Everything,
    Power,
    Pulled,
    Hang,
    LeaderHang,
    SlowDisk,
    Clients,
    Lost,
    FullDisk,
    Storm,
    Many,
    Crowd,
    Mounted,
    Files,
    Snapshots,
    Slow,
    Away,
}

/// A process is paused, or a cable pulled, for so long.
const AWAY: Duration = Duration::from_secs(6);
/// A process that is slow stands still for so long, and runs for so long, in turn.
const SLOW_STOPPED: Duration = Duration::from_millis(180);
const SLOW_RUNS: Duration = Duration::from_millis(20);
/// That it is slow is noticed within this.
pub(super) const SLOW_UNNOTICED: Duration = Duration::from_secs(4);
/// Two of three masters are away for so long.
const NO_QUORUM: Duration = Duration::from_secs(4);

/// Whom a blow can hit.
pub(super) struct Scene<'a> {
    pub cluster: &'a mut Cluster,
    pub client: &'a Client,
    pub load: &'a Load,
}

impl Scene<'_> {
    /// Strikes; gives the servers that must be started again.
    pub async fn strike(&mut self, hit: Hit) -> anyhow::Result<Vec<String>> {
        match hit {
            Hit::Leader => {
                let name = self.leader().await?;
                self.cluster.kill(&name)?;
                return Ok(vec![name]);
            }
            Hit::LeaderPause => {
                let name = self.leader().await?;
                pause(self.cluster.pid(&name).context("the leader does not run")?).await?;
            }
            Hit::TwoMasters => self.two_masters().await?,
            Hit::Rolling => {
                for name in self.cluster.names()? {
                    self.cluster.end(&name)?;
                    self.cluster.start(&name)?;
                    whole(&self.cluster.healthy().await?).await?;
                }
            }
            Hit::Drain => self.drain().await?,
            Hit::Worker => {
                let name = self.victim().await?;
                signal(self.worker(&name)?, "KILL")?;
                return Ok(vec![name]);
            }
            Hit::Server | Hit::Lost => {
                let name = self.victim().await?;
                self.cluster.kill(&name)?;
                // As `cairn up` does when it sees the end of a parent.
                report_exit(&self.cluster.config_of(&name)).await?;
                return Ok(vec![name]);
            }
            Hit::Pause => {
                let name = self.victim().await?;
                pause(self.worker(&name)?).await?;
            }
            Hit::Slow => {
                let name = self.victim().await?;
                let pid = self.worker(&name)?;
                slow(pid, SLOW_UNNOTICED).await?;
                // What is measured is what is felt of it from here on.
                self.load.mark();
                slow(pid, AWAY).await?;
            }
            Hit::Cut => {
                let name = self.victim().await?;
                self.cut(&[name]).await?;
            }
            Hit::CutLeader => {
                let name = self.leader().await?;
                self.cut(&[name]).await?;
            }
            Hit::CutRack => {
                let leader = self.leader().await?;
                let (victim, servers) = (self.victim().await?, self.servers()?);
                let at = servers.iter().position(|n| *n == victim).context("the victim is a chunkserver")?;
                // Racks are given out in turn.
                let rack = |i: usize| i % 3 == at % 3;
                let with = servers.into_iter().enumerate().filter(|(i, _)| rack(*i)).map(|(_, name)| name);
                self.cut(&with.chain([leader]).collect::<Vec<_>>()).await?;
            }
            Hit::CutOneWay => {
                let (primary, others) = self.members().await?;
                let other = others.first().context("it has a secondary")?.clone();
                let (from, to) =
                    if self.load.round().is_multiple_of(2) { (primary, other) } else { (other, primary) };
                self.lose(&from, &[to]).await?;
            }
            Hit::CutPrimary => {
                let (primary, _) = self.members().await?;
                let others: Vec<String> = self.servers()?.into_iter().filter(|n| *n != primary).collect();
                self.lose(&primary, &others).await?;
            }
            Hit::Everything | Hit::Power => {
                for name in self.cluster.names()? {
                    self.cluster.kill(&name)?;
                }
            }
            Hit::Grow
            | Hit::Pulled
            | Hit::Hang
            | Hit::LeaderHang
            | Hit::SlowDisk
            | Hit::FullDisk
            | Hit::Storm
            | Hit::Many
            | Hit::Crowd
            | Hit::Mounted
            | Hit::Files
            | Hit::Snapshots
            | Hit::Away
            | Hit::Clients => {
                unreachable!("{hit:?} has a course of its own")
            }
        }
        Ok(vec![])
    }

    /// The leading master's name.
    pub async fn leader(&self) -> anyhow::Result<String> {
        let leader = self.client.status().await?.leader.context("nobody leads")?;
        Ok(format!("m{leader}"))
    }

    fn worker(&self, name: &str) -> anyhow::Result<u32> {
        self.cluster.worker_pid(name).context("the worker does not run")
    }

    fn net(&self) -> &Net {
        self.cluster.net.as_ref().expect("a drill of cuts has a network")
    }

    fn servers(&self) -> anyhow::Result<Vec<String>> {
        Ok(self.cluster.names()?.into_iter().filter(|n| n.starts_with("cs")).collect())
    }

    async fn two_masters(&mut self) -> anyhow::Result<()> {
        let leader = self.client.status().await?.leader.context("nobody leads")?;
        let names = [format!("m{leader}"), format!("m{}", leader % 3 + 1)];
        for name in &names {
            self.cluster.kill(name)?;
        }
        tokio::time::sleep(NO_QUORUM).await;
        names.iter().try_for_each(|name| self.cluster.start(name))
    }

    async fn drain(&mut self) -> anyhow::Result<()> {
        let name = self.victim().await?;
        let store = store_of(self.cluster, &name)?;
        let stores = self.client.stores().await?;
        let server = stores.iter().find(|s| s.store == store).context("it is not in the table")?.server;
        self.client.drain(server, true).await?;
        let began = Instant::now();
        loop {
            let drains = self.client.drains().await?;
            if !drains.iter().any(|d| d.server == server && d.chunks + d.copies > 0) {
                break;
            }
            if began.elapsed() > WHOLE_WITHIN {
                bail!("{drains:?}: not drained; {:?}", self.client.repairs().await?.0.first());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(self.client.drain(server, false).await?)
    }

    /// Pulls cables for a while.
    async fn cut(&self, names: &[String]) -> anyhow::Result<()> {
        names.iter().try_for_each(|name| self.net().pull(name))?;
        tokio::time::sleep(AWAY).await;
        names.iter().try_for_each(|name| self.net().plug(name))
    }

    /// What one sends to some others is lost for a while.
    async fn lose(&self, from: &str, to: &[String]) -> anyhow::Result<()> {
        to.iter().try_for_each(|to| self.net().lose(from, to))?;
        tokio::time::sleep(AWAY).await;
        to.iter().try_for_each(|to| self.net().find(from, to))
    }

    /// Who holds the file that is being appended to: its primary, and the others.
    async fn members(&self) -> anyhow::Result<(String, Vec<String>)> {
        let attr = self.client.lookup(&self.load.log_path()).await?;
        let layout = self.client.layout(attr.file).await?;
        let config = &layout.chunks().last().context("the log has no chunk yet")?.config;
        let (mut primary, mut others) = (None, vec![]);
        for name in self.servers()? {
            let store = store_of(self.cluster, &name)?;
            if store == config.primary {
                primary = Some(name);
            } else if config.members.contains(&store) {
                others.push(name);
            }
        }
        Ok((primary.with_context(|| format!("nobody serves {}", config.primary))?, others))
    }

    /// One that holds the file that is being appended to: in turn a secondary and its primary.
    pub async fn victim(&self) -> anyhow::Result<String> {
        let (primary, others) = self.members().await?;
        match others.into_iter().next() {
            Some(other) if self.load.round().is_multiple_of(2) => Ok(other),
            _ => Ok(primary),
        }
    }
}

/// Lets a process run now and then only.
async fn slow(pid: u32, time: Duration) -> anyhow::Result<()> {
    let began = Instant::now();
    while began.elapsed() < time {
        signal(pid, "STOP")?;
        tokio::time::sleep(SLOW_STOPPED).await;
        signal(pid, "CONT")?;
        tokio::time::sleep(SLOW_RUNS).await;
    }
    Ok(())
}

/// Stops a process for a while.
async fn pause(pid: u32) -> anyhow::Result<()> {
    signal(pid, "STOP")?;
    tokio::time::sleep(AWAY).await;
    signal(pid, "CONT")
}

/// Waits until every chunk has all its members.
pub(super) async fn whole(client: &Client) -> anyhow::Result<()> {
    let began = Instant::now();
    while client.status().await?.degraded > 0 || client.repairs().await?.1 > 0 {
        if began.elapsed() > WHOLE_WITHIN {
            let (items, count) = client.repairs().await?;
            bail!("{count} chunks still lack members: {:?}", items.first());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
