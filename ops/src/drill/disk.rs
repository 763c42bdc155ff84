//! A file system in a file, on a loop device, that can be taken away.

use crate::cluster::Cluster;
use crate::net::tool;
use anyhow::Context;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// What killed processes had open is closed within this, and what clients had open of their stores.
const RELEASED_WITHIN: Duration = Duration::from_secs(15);

/// What file system it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// btrfs, which cannot be pulled.
    Btrfs,
}

impl FileSystem {
    fn make(self, image: &str) -> anyhow::Result<()> {
        match self {
            FileSystem::Ext4 => tool("mkfs.ext4", &["-q", "-F", "-m", "0", image]),
            FileSystem::Xfs => tool("mkfs.xfs", &["-q", "-f", image]),
            FileSystem::Btrfs => tool("mkfs.btrfs", &["-q", "-f", image]),
        }
    }

    fn options(self) -> &'static str {
        match self {
            FileSystem::Ext4 | FileSystem::Xfs => "loop",
            // Else who syncs waits for company, 4 ms.
            FileSystem::Btrfs => "loop,ssd",
        }
    }
}

impl FromStr for FileSystem {
    type Err = String;

    fn from_str(name: &str) -> Result<FileSystem, String> {
        match name {
            "ext4" => Ok(FileSystem::Ext4),
            "xfs" => Ok(FileSystem::Xfs),
            "btrfs" => Ok(FileSystem::Btrfs),
            _ => Err("there are: ext4, xfs, btrfs".into()),
        }
    }
}

/// Unmounted when dropped.
pub(super) struct LoopDisk {
    image: PathBuf,
    mount: PathBuf,
    file_system: FileSystem,
}

/// Frozen until this is dropped: a drill that is interrupted must not leave processes that cannot be
/// killed.
pub(super) struct Frozen<'a>(&'a LoopDisk);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Err(error) = tool("xfs_io", &["-x", "-c", "thaw", &self.0.mount.to_string_lossy()]) {
            tracing::error!(%error, mount = %self.0.mount.display(), "the drill's disk stays frozen");
        }
    }
}

/// The block I/O controller of control groups (version 1).
const BLKIO: &str = "/sys/fs/cgroup/blkio";

/// A process whose writes to a disk are slow until this is dropped.
pub(super) struct Throttled {
    pid: u32,
    device: String,
    group: PathBuf,
}

impl Throttled {
    fn limit(&self, writes_per_s: u32) -> anyhow::Result<()> {
        let path = self.group.join("blkio.throttle.write_iops_device");
        let text = format!("{} {writes_per_s}", self.device);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    fn end(&self) -> anyhow::Result<()> {
        self.limit(0)?;
        let all = Path::new(BLKIO).join("cgroup.procs");
        match std::fs::write(&all, self.pid.to_string()) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
            done => done.with_context(|| format!("write {}", all.display()))?,
        }
        std::fs::remove_dir(&self.group).with_context(|| format!("remove {}", self.group.display()))
    }
}

impl Drop for Throttled {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, group = %self.group.display(), "the drill's control group stays");
        }
    }
}

impl LoopDisk {
    /// Makes one in a directory that is to be. Its file is sparse.
    pub fn new(home: &Path, bytes: u64, file_system: FileSystem) -> anyhow::Result<LoopDisk> {
        let disk = LoopDisk { image: home.join("disk.img"), mount: home.join("disk"), file_system };
        std::fs::create_dir_all(&disk.mount).with_context(|| format!("make {}", disk.mount.display()))?;
        std::fs::File::create(&disk.image)?.set_len(bytes)?;
        file_system.make(&disk.image.to_string_lossy())?;
        disk.mount()?;
        Ok(disk)
    }

    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// The data directory of a server lies on it from now on.
    pub fn hold(&self, cluster: &Cluster, name: &str) -> anyhow::Result<()> {
        let (from, to) = (cluster.dir().join(name).join("data"), self.mount.join(name));
        std::fs::create_dir_all(&to)?;
        if from.exists() {
            std::fs::remove_dir(&from)?;
        }
        std::os::unix::fs::symlink(&to, &from).with_context(|| format!("link {}", from.display()))
    }

    /// Whether the data directory of a server lies on it.
    pub fn holds(&self, name: &str) -> bool {
        self.mount.join(name).exists()
    }

    /// From now on every request is answered with an error, and what was not synced never gets to
    /// the disk (EXT4_IOC_SHUTDOWN or what XFS has for it, without a flush of the journal).
    pub fn pull(&self) -> anyhow::Result<()> {
        tool("xfs_io", &["-x", "-c", "shutdown", &self.mount.to_string_lossy()])
    }

    /// From now on nothing that writes comes to an end (FIFREEZE), until it is thawed.
    pub fn freeze(&self) -> anyhow::Result<Frozen<'_>> {
        tool("xfs_io", &["-x", "-c", "freeze", &self.mount.to_string_lossy()])?;
        Ok(Frozen(self))
    }

    /// From now on a process does no more than so many writes a second on it.
    pub fn throttle(&self, pid: u32, writes_per_s: u32) -> anyhow::Result<Throttled> {
        let device = std::fs::metadata(&self.mount)?.dev();
        let device = format!("{}:{}", libc::major(device), libc::minor(device));
        let group = Path::new(BLKIO).join(format!("cairn-drill-{pid}"));
        std::fs::create_dir(&group)
            .with_context(|| format!("make {}; it needs control groups of version 1", group.display()))?;
        let throttled = Throttled { pid, device, group };
        throttled.limit(writes_per_s)?;
        let path = throttled.group.join("cgroup.procs");
        std::fs::write(&path, pid.to_string()).with_context(|| format!("write {}", path.display()))?;
        Ok(throttled)
    }

    /// Mounts it anew: the journal is replayed, as after a loss of power. Nobody may use it.
    pub fn plug(&self) -> anyhow::Result<()> {
        self.unmount()?;
        self.mount()
    }

    fn mount(&self) -> anyhow::Result<()> {
        let options = self.file_system.options();
        tool("mount", &["-o", options, &self.image.to_string_lossy(), &self.mount.to_string_lossy()])
    }

    /// The kernel closes files of a killed process after its end, if requests of them are under way
    /// (io_uring): until then the mount is busy.
    fn unmount(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            match tool("umount", &[&self.mount.to_string_lossy()]) {
                Err(_) if began.elapsed() < RELEASED_WITHIN => std::thread::sleep(Duration::from_millis(20)),
                done => return done,
            }
        }
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            tracing::warn!(%error, "the drill's disk stays mounted");
        }
    }
}
