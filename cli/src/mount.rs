//! `cairn mount`: the cluster as a directory of this machine.

use crate::args::Mount;
use crate::output::{complain, say};
use crate::{background, up};
use anyhow::{Context, bail};
use client::Client;
use gateway::{Cache, Options};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A mount in the background stands within this.
const MOUNTED_WITHIN: Duration = Duration::from_secs(30);

/// Options that mean something to mount(8), fstab(5) and systemd, and nothing here.
const FOR_OTHERS: [&str; 8] = ["", "defaults", "auto", "noauto", "user", "nouser", "nofail", "_netdev"];

/// Mounts, and serves until it is unmounted or interrupted.
pub fn run(args: Mount, cluster: &Option<String>) -> anyhow::Result<()> {
    if let Some(parent) = args.die_with_parent {
        chunkserver::parent::die_with_parent(parent);
    }
    let point = clean(&args.point)?;
    if args.detach {
        return detach(&args, &point);
    }
    let mut options = Options {
        root: crate::fs::path(&args.root),
        cache: if args.strict { Cache::Strict } else { Cache::CloseToOpen },
        allow_other: args.allow_other,
        local_locks: args.local_locks,
        source: args.source.clone(),
        threads: args.threads.map_or_else(gateway::threads, usize::from),
        read_ahead_kib: args.read_ahead,
        mount: vec![],
    };
    let read_only = args.read_only.then_some("ro");
    for name in args.options.iter().flat_map(|list| list.split(',')).chain(read_only) {
        match name {
            _ if FOR_OTHERS.contains(&name) => {}
            "allow_other" => options.allow_other = true,
            "strict" => options.cache = Cache::Strict,
            "local_locks" => options.local_locks = true,
            name => match gateway::mount_option(name) {
                Some(option) => options.mount.push(option),
                None => bail!("-o {name}: there is no such option; `cairn mount --help` names some"),
            },
        }
    }
    let config = client::Config { reads_here: !args.no_local_reads, ..up::find(cluster)? };
    gateway::runtime()?.block_on(async {
        let client = Client::connect(config).await?;
        let interrupted = tokio::spawn(async {
            let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
            tokio::select! {
                done = tokio::signal::ctrl_c() => done,
                _ = term.recv() => Ok(()),
            }
        });
        let shown = point.clone();
        let mounted = move |mut unmounter: gateway::Unmounter| {
            say(format_args!(
                "mounted on {}; `umount {}` or Ctrl-C ends it",
                shown.display(),
                shown.display()
            ));
            tokio::spawn(async move {
                let _ = interrupted.await;
                if let Err(error) = unmounter.unmount() {
                    complain(format_args!("cairn: cannot unmount {}: {error}", shown.display()));
                }
            });
        };
        let served = gateway::mount(client.clone(), &point, options, mounted).await;
        client.close().await;
        served.with_context(|| format!("mount on {}", point.display()))
    })
}

/// The mount point, absolute. Where a mount's process has died, the dead mount is taken away first.
fn clean(point: &Path) -> anyhow::Result<std::path::PathBuf> {
    let absolute = std::path::absolute(point)?;
    match std::fs::metadata(&absolute) {
        Ok(_) if gateway::is_mounted(&absolute)? => bail!("{} is mounted already", absolute.display()),
        Ok(meta) if meta.is_dir() => Ok(absolute),
        Ok(_) => bail!("{} is no directory", absolute.display()),
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => {
            let status = Command::new("umount").arg("-l").arg(&absolute).status().context("run umount")?;
            match status.success() {
                true => Ok(absolute),
                false => bail!("a dead mount on {} cannot be taken away ({status})", absolute.display()),
            }
        }
        Err(e) => Err(e).with_context(|| format!("look at {}", absolute.display())),
    }
}

/// Starts the same in the background, and waits until it stands.
fn detach(args: &Mount, point: &Path) -> anyhow::Result<()> {
    let log_path = args
        .log
        .clone()
        .unwrap_or_else(|| std::env::temp_dir().join(format!("cairn-mount-{}.log", std::process::id())));
    background::start(&log_path, MOUNTED_WITHIN, || Ok(gateway::is_mounted(point)?))?;
    println!("mounted on {}; `umount {}` ends it", point.display(), point.display());
    Ok(())
}
