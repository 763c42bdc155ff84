//! `cairn mount`: the cluster as a directory of this machine.

use crate::args::Mount;
use crate::up;
use anyhow::{Context, bail};
use client::Client;
use gateway::{Cache, Options};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A mount in the background stands within this.
const MOUNTED_WITHIN: Duration = Duration::from_secs(30);

/// Mounts, and serves until it is unmounted or interrupted.
pub fn run(args: Mount, cluster: &Option<String>) -> anyhow::Result<()> {
    let point = clean(&args.point)?;
    if args.detach {
        return detach(&args, &point);
    }
    let (mut allow_other, mut read_only, mut mount) = (args.allow_other, args.read_only, vec![]);
    for option in args.options.iter().flat_map(|list| list.split(',')) {
        match option {
            "" | "rw" | "_netdev" | "defaults" | "nofail" | "auto" | "noauto" => {}
            "allow_other" => allow_other = true,
            "ro" => read_only = true,
            other => mount.push(other.to_owned()),
        }
    }
    let options = Options {
        root: args.root.into_encoded_bytes(),
        cache: if args.strict { Cache::Strict } else { Cache::CloseToOpen },
        allow_other,
        read_only,
        threads: args.threads,
        mount,
    };
    let config = up::find(cluster)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
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
            println!("mounted on {}; `umount {}` or Ctrl-C ends it", shown.display(), shown.display());
            tokio::spawn(async move {
                let _ = interrupted.await;
                if let Err(error) = unmounter.unmount() {
                    eprintln!("cairn: cannot unmount {}: {error}", shown.display());
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
        Ok(_) if is_mounted(&absolute)? => bail!("{} is mounted already", absolute.display()),
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

/// Whether one of ours is mounted on a directory.
fn is_mounted(point: &Path) -> anyhow::Result<bool> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let escaped = point.to_string_lossy().replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011");
    Ok(mounts.lines().any(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        words.len() > 2 && words[0] == gateway::SOURCE && words[1] == escaped && words[2].starts_with("fuse")
    }))
}

/// Starts the same in the background, and waits until it stands.
fn detach(args: &Mount, point: &Path) -> anyhow::Result<()> {
    let log_path = args
        .log
        .clone()
        .unwrap_or_else(|| std::env::temp_dir().join(format!("cairn-mount-{}.log", std::process::id())));
    let log = std::fs::File::create(&log_path).with_context(|| format!("make {}", log_path.display()))?;
    let words = std::env::args_os().skip(1).filter(|a| a != "--detach");
    let mut child = Command::new(std::env::current_exe()?)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("start the background process")?;
    let began = Instant::now();
    while !is_mounted(point)? {
        if let Some(status) = child.try_wait()? {
            let log = std::fs::read_to_string(&log_path).unwrap_or_default();
            bail!("the mount ended ({status}):\n{log}");
        }
        if began.elapsed() > MOUNTED_WITHIN {
            child.kill().and_then(|()| child.wait()).context("end the background process")?;
            bail!("the mount does not come to stand; see {}", log_path.display());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("mounted on {}; `umount {}` ends it", point.display(), point.display());
    Ok(())
}
