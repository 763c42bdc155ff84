//! A cluster of real processes, mounted.

use client::Client;
use ops::cluster::{Cluster, Spec, signal};
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub struct Mounted {
    pub point: PathBuf,
    pub process: Child,
    pub cluster: Cluster,
    pub client: Client,
    pub runtime: tokio::runtime::Runtime,
    _dir: TempDir,
}

pub fn cairn() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_cairn"))
}

/// Whether this machine lets us mount.
pub fn can_mount() -> bool {
    let can = OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok();
    if !can {
        println!("not tested: /dev/fuse cannot be opened");
    }
    can
}

pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn is_mounted(point: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == point.to_str())
}

/// Mounts a cluster at a new directory.
fn mount(cluster: &Cluster, point: &Path, args: &[&str]) -> Child {
    fs::create_dir(point).unwrap();
    let mut command = Command::new(cairn());
    command.arg("--cluster").arg(cluster.dir()).arg("mount").args(args).arg(point);
    let process = command.stdout(Stdio::null()).spawn().unwrap();
    until("it is not mounted", || is_mounted(point));
    process
}

impl Mounted {
    pub fn start(masters: u32, chunkservers: u32, args: &[&str]) -> Mounted {
        let dir = TempDir::new().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let spec = Spec::small(masters, chunkservers);
        let mut cluster = Cluster::open(&dir.path().join("c"), &spec, &cairn()).unwrap();
        cluster.start_all().unwrap();
        let client = runtime.block_on(cluster.healthy()).unwrap();
        let point = dir.path().join("mnt");
        let process = mount(&cluster, &point, args);
        Mounted { point, process, cluster, client, runtime, _dir: dir }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    /// The same cluster, mounted once more.
    pub fn again(&self, name: &str, args: &[&str]) -> Again {
        let point = self.point.with_extension(name);
        Again { process: mount(&self.cluster, &point, args), point }
    }

    pub fn end(&mut self) {
        end(&mut self.process, &self.point);
    }
}

pub struct Again {
    pub point: PathBuf,
    pub process: Child,
}

fn end(process: &mut Child, point: &Path) {
    let _ = signal(process.id(), "TERM");
    let end = Instant::now() + Duration::from_secs(10);
    while is_mounted(point) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = process.kill();
    let _ = process.wait();
    if is_mounted(point) {
        let _ = Command::new("umount").arg("-l").arg(point).status();
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        end(&mut self.process, &self.point);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.end();
    }
}
