//! `cairn up` and `cairn down`, and how a cluster is found.

use crate::args::Up;
use crate::background;
use crate::output::{complain, say};
use anyhow::{Context, bail};
use client::{Config, Owner};
use ops::cluster::{self, ClientFile, Cluster, Spec};
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where a cluster is looked for when none is named.
const DEFAULT_DIR: &str = "./cairn-data";
/// The file that is there while the cluster is up.
const READY: &str = "up.ready";

/// How to connect to the cluster that is meant. What is made belongs to the user of this process.
pub fn find(cluster: &Option<String>) -> anyhow::Result<Config> {
    let own = std::fs::metadata("/proc/self").context("look at /proc/self")?;
    let owner = Owner { uid: own.uid(), gid: own.gid() };
    Ok(Config { owner, ..locate(cluster)? })
}

fn locate(cluster: &Option<String>) -> anyhow::Result<Config> {
    let named = cluster.as_deref().unwrap_or(DEFAULT_DIR);
    let path = Path::new(named);
    if path.is_dir() {
        return ClientFile::read(&path.join("cluster.toml"))?.config();
    }
    if path.is_file() {
        return ClientFile::read(path)?.config();
    }
    let addrs: Vec<String> = named.split(',').map(str::to_owned).collect();
    if cluster.is_some()
        && addrs.iter().all(|a| a.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok()))
    {
        return Ok(Config::new(addrs));
    }
    bail!(
        "no cluster: give --cluster or CAIRN_CLUSTER (addresses of masters, or what `cairn up` made), or run `cairn up`"
    )
}

/// The directory of a local cluster, if it is one.
pub fn cluster_dir(cluster: &Option<String>) -> Option<PathBuf> {
    let path = PathBuf::from(cluster.as_deref().unwrap_or(DEFAULT_DIR));
    path.is_dir().then_some(path)
}

pub fn up(args: Up) -> anyhow::Result<()> {
    if args.racks > args.chunkservers {
        bail!(
            "--racks {}: there are only {} chunkservers to spread over them",
            args.racks,
            args.chunkservers
        );
    }
    if args.detach {
        return detach(&args);
    }
    let mut extra = String::new();
    if let Some(bytes) = args.segment_bytes {
        extra += &format!("segment_bytes = {bytes}\n");
    }
    if let Some(bytes) = args.log_segment_bytes {
        extra += &format!("log_segment_bytes = {bytes}\n");
    }
    let spec = Spec {
        masters: args.masters,
        chunkservers: args.chunkservers,
        racks: args.racks,
        bind: args.bind,
        chunkserver_extra: extra,
        time_scale: args.time_scale,
    };
    // One thread: what it starts lives as long as it does.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(&args.dir, &spec))
}

async fn run(dir: &Path, spec: &Spec) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut cluster = Cluster::open(dir, spec, &std::env::current_exe()?)?;
    let began = Instant::now();
    cluster.start_all()?;
    let client = tokio::select! {
        client = cluster.healthy() => client?,
        _ = term.recv() => return Ok(()),
        _ = int.recv() => return Ok(()),
    };
    say_ready(cluster.dir(), true)?;
    say(format_args!(
        "cluster is up after {:.1} s in {}",
        began.elapsed().as_secs_f64(),
        cluster.dir().display()
    ));
    say(format_args!("  use it: cairn --cluster {} ls /", cluster.dir().display()));
    say(format_args!("  stop it: Ctrl-C, or cairn down --dir {}", cluster.dir().display()));
    let live = std::io::stdout().is_terminal();
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    let mut shown = Instant::now();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = term.recv() => break,
            _ = int.recv() => break,
        }
        while let Some(name) = cluster.exited() {
            say(format_args!("{name} has ended; see {}/{name}/log.txt", cluster.dir().display()));
            report(&cluster, &name);
        }
        if live && shown.elapsed() > Duration::from_secs(1) {
            shown = Instant::now();
            show(&client).await;
        }
    }
    say(format_args!("\nstopping"));
    // Somebody may have tidied up.
    let _ = say_ready(cluster.dir(), false);
    cluster.stop()
}

/// The file that says whether the cluster is up: it is renamed, which takes no room on a full disk.
fn say_ready(dir: &Path, is_ready: bool) -> std::io::Result<()> {
    let (starting, ready) = (dir.join("up.starting"), dir.join(READY));
    let (from, to) = if is_ready { (starting, ready) } else { (ready, starting) };
    match std::fs::rename(from, &to) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !to.exists() => std::fs::write(to, ""),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// The parent of a chunkserver was killed too: its worker died with it, and somebody must say so.
fn report(cluster: &Cluster, name: &str) {
    if !name.starts_with("cs") {
        return;
    }
    let path = cluster.config_of(name);
    let name = name.to_owned();
    std::thread::spawn(move || {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        if let Ok(config) = chunkserver::config::Config::parse(&text)
            && let Err(error) = chunkserver::parent::report_exit(&config)
        {
            complain(format_args!("cannot report the end of {name}: {error:#}"));
        }
    });
}

async fn show(client: &client::Client) {
    let Ok(Ok(s)) = tokio::time::timeout(Duration::from_millis(500), client.status()).await else {
        print!("\r\x1b[Kno leader");
        return;
    };
    let leader = s.leader.map_or("none".into(), |l| format!("m{l}"));
    print!(
        "\r\x1b[Kleader {leader} (term {})  stores {}/{}  files {}  chunks {} ({} degraded)",
        s.term, s.stores.1, s.stores.0, s.files, s.chunks, s.degraded
    );
    use std::io::Write;
    let _ = std::io::stdout().flush();
}

/// Starts the same in the background and waits until it is healthy.
fn detach(args: &Up) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.dir)?;
    if let Ok(Some(_)) = cluster::running(&args.dir) {
        bail!("a cluster is running in {} already", args.dir.display());
    }
    say_ready(&args.dir, false)?;
    let ready = args.dir.join(READY);
    let log_path = args.dir.join("up.log");
    let began = Instant::now();
    background::start(&log_path, cluster::HEALTHY_WITHIN + Duration::from_secs(10), || Ok(ready.exists()))?;
    println!("cluster is up after {:.1} s in {}", began.elapsed().as_secs_f64(), args.dir.display());
    Ok(())
}

/// Where the cluster lives that is to be stopped: this directory, or that of a cluster named as for any other command.
pub fn local_dir(dir: Option<PathBuf>, cluster: Option<String>) -> PathBuf {
    let named = dir.or(cluster.map(PathBuf::from)).unwrap_or(DEFAULT_DIR.into());
    match named.parent() {
        Some(parent) if named.is_file() => Path::new(".").join(parent),
        _ => named,
    }
}

pub fn down(dir: &Path) -> anyhow::Result<()> {
    let Some(pid) = cluster::running(dir)? else {
        println!("no cluster is running in {}", dir.display());
        return Ok(());
    };
    cluster::signal(pid, "TERM")?;
    let began = Instant::now();
    while cluster::running(dir)?.is_some() {
        if began.elapsed() > Duration::from_secs(45) {
            bail!("process {pid} does not stop");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("stopped after {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}
