//! This command again, in the background.

use anyhow::{Context, bail};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How often it is looked whether it is ready.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Starts this command without `--detach`, what it says going into a file, and waits until it is ready.
///
/// # Errors
/// It ends before, with what it said, or is not ready within that time: then it is ended.
pub fn start(
    log_path: &Path,
    within: Duration,
    mut ready: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let log = File::create(log_path).with_context(|| format!("make {}", log_path.display()))?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1).filter(|word| word != "--detach"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("start the background process")?;
    let began = Instant::now();
    while !ready()? {
        if let Some(status) = child.try_wait()? {
            let said = std::fs::read_to_string(log_path).unwrap_or_default();
            bail!("the background process has ended ({status}):\n{said}");
        }
        if began.elapsed() > within {
            child.kill().and_then(|()| child.wait()).context("end the background process")?;
            bail!("it is not ready after {} s; see {}", within.as_secs(), log_path.display());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}
