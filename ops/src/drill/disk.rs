//! A file system in a file, on a loop device, that can be taken away.

use crate::cluster::Cluster;
use crate::net::tool;
use anyhow::Context;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What killed processes had open is closed within this.
const RELEASED_WITHIN: Duration = Duration::from_secs(15);

/// Unmounted when dropped.
pub(super) struct LoopDisk {
    image: PathBuf,
    mount: PathBuf,
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

impl LoopDisk {
    /// Makes one in a directory that is to be. Its file is sparse.
    pub fn new(home: &Path, bytes: u64) -> anyhow::Result<LoopDisk> {
        let disk = LoopDisk { image: home.join("disk.img"), mount: home.join("disk") };
        std::fs::create_dir_all(&disk.mount).with_context(|| format!("make {}", disk.mount.display()))?;
        std::fs::File::create(&disk.image)?.set_len(bytes)?;
        tool("mkfs.ext4", &["-q", "-F", "-m", "0", &disk.image.to_string_lossy()])?;
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

    /// From now on every request is answered with an error, and what was not synced never gets to
    /// the disk (EXT4_IOC_SHUTDOWN, without a flush of the journal).
    pub fn pull(&self) -> anyhow::Result<()> {
        tool("xfs_io", &["-x", "-c", "shutdown", &self.mount.to_string_lossy()])
    }

    /// From now on nothing that writes comes to an end (FIFREEZE), until it is thawed.
    pub fn freeze(&self) -> anyhow::Result<Frozen<'_>> {
        tool("xfs_io", &["-x", "-c", "freeze", &self.mount.to_string_lossy()])?;
        Ok(Frozen(self))
    }

    /// Mounts it anew: the journal is replayed, as after a loss of power. Nobody may use it.
    pub fn plug(&self) -> anyhow::Result<()> {
        self.unmount()?;
        self.mount()
    }

    fn mount(&self) -> anyhow::Result<()> {
        tool("mount", &["-o", "loop", &self.image.to_string_lossy(), &self.mount.to_string_lossy()])
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
