//! What the kernel says of mounts, and is told.

use std::io;
use std::path::Path;

/// Most characters of a mount's name: they fit into what the masters take (255 bytes).
const NAME_CHARS: usize = 60;

/// Whether a file system like ours is mounted on a directory.
pub fn is_mounted(point: &Path) -> io::Result<bool> {
    Ok(device(point)?.is_some())
}

/// What this mount is called where people see whose locks there are: machine, process, directory.
pub(crate) fn name(point: &Path) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = format!("{} {} {}", host.trim(), std::process::id(), point.display());
    name.chars().take(NAME_CHARS).collect()
}

/// Has the kernel read so much ahead in a file that is read in sequence. By itself it asks for 128 KiB at a time, and
/// everybody waits for everybody (docs/perf/0002).
pub(crate) fn read_ahead(point: &Path, kib: u32) -> io::Result<()> {
    let device = device(point)?.ok_or_else(|| io::Error::other("it is not in /proc/self/mountinfo"))?;
    std::fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), kib.to_string())
}

/// The device of the FUSE file system that is seen on a directory, if that is what is seen there. The system is not asked for the directory itself: that would ask us.
fn device(point: &Path) -> io::Result<Option<String>> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let point = point.to_string_lossy();
    let escaped =
        point.replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011").replace('\n', "\\012");
    // Each line: id, parent, device, root, mount point, options, ..., "-", type, source, options. The last one is seen.
    let seen = mounts.lines().rev().find(|line| line.split(' ').nth(4) == Some(&escaped));
    let is_fuse = |line: &&str| line.split_once(" - ").is_some_and(|(_, end)| end.starts_with("fuse"));
    Ok(seen.filter(is_fuse).and_then(|line| line.split(' ').nth(2)).map(str::to_owned))
}
