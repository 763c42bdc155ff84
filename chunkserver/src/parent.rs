//! The parent of a chunkserver: starts the worker, waits for its end, and proves its death to the
//! masters, so that nobody has to wait for a session to run out.

use crate::config::Config;
use crate::control;
use crate::dir::{read_meta, try_lock};
use crate::disk::path_of;
use chunkserver_core::io::FileRef;
use common::ClusterId;
use common::wire::Caller;
use common::wire::chunk_master::StoreRequest;
use common_net::Masters;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

/// The locks of a dead process are free once its last write has landed.
const LOCK_LIMIT: Duration = Duration::from_secs(30);
/// What the worker's allocator may keep. By itself glibc keeps twice the largest piece that was ever given back, here 32 MiB,
/// and asks for more a page at a time.
const ALLOCATOR: [(&str, &str); 3] = [
    ("MALLOC_MMAP_THRESHOLD_", "1048576"),
    ("MALLOC_TRIM_THRESHOLD_", "8388608"),
    ("MALLOC_TOP_PAD_", "1048576"),
];
/// The report is given up after this; the session ends by itself meanwhile.
const REPORT_LIMIT: Duration = Duration::from_secs(10);

/// Ends this process when its parent ends. Call it in the worker, first thing.
pub fn die_with_parent(parent: u32) {
    #[expect(unsafe_code, reason = "prctl has no safe door")]
    // SAFETY: PR_SET_PDEATHSIG takes one integer and touches no memory.
    let done = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    assert_eq!(done, 0, "PR_SET_PDEATHSIG is always there");
    // It may have died before the call.
    if std::os::unix::process::parent_id() != parent {
        std::process::exit(1);
    }
}

/// Lets a broken pipe end this process quietly, as it ends other command-line programs.
pub fn end_on_broken_pipe() {
    #[expect(unsafe_code, reason = "the default action cannot be asked for otherwise")]
    // SAFETY: SIG_DFL is a valid disposition for SIGPIPE, and no handler of ours is replaced.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

/// Runs `worker` and reports its end. Must be called on the main thread: the worker's life hangs
/// on the thread that starts it.
pub fn run(config: &Config, mut worker: Command) -> anyhow::Result<ExitStatus> {
    for (name, bytes) in ALLOCATOR.into_iter().filter(|(name, _)| std::env::var_os(name).is_none()) {
        worker.env(name, bytes);
    }
    let mut child = worker.spawn()?;
    let pid = child.id() as i32;
    // Signals to the parent go on to the worker, which stops by itself.
    let forward = std::thread::Builder::new().name("signals".into()).spawn(move || forward_signals(pid))?;
    let status = child.wait()?;
    drop(forward);
    report_exit(config)?;
    Ok(status)
}

fn forward_signals(pid: i32) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return };
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            return;
        };
        loop {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            #[expect(unsafe_code, reason = "kill has no safe door")]
            // SAFETY: sends a signal to our own child, which is not reaped before the parent ends.
            unsafe {
                libc::kill(pid, libc::SIGTERM);
            }
        }
    });
}

/// Tells the masters that the last incarnation on each directory is dead, once that is certain:
/// its locks are free.
pub fn report_exit(config: &Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for dir in &config.data {
        let Ok(meta) = read_meta(dir) else { continue };
        if meta.store == 0 || !wait_for_lock(dir) {
            continue;
        }
        let cluster = ClusterId(u64::from_str_radix(&meta.cluster, 16).unwrap_or(0));
        let masters = Masters::new(Caller::Server, config.masters.clone(), cluster);
        let uuid = u128::from_str_radix(&meta.uuid, 16)?;
        let request = StoreRequest::Exited { uuid, incarnation: meta.incarnation };
        // Else the session has to lapse.
        let _ = runtime.block_on(control::ask(&masters, &request, REPORT_LIMIT));
    }
    Ok(())
}

fn wait_for_lock(dir: &Path) -> bool {
    let Ok(log) = std::fs::File::open(path_of(dir, FileRef::Log(0))) else {
        return false;
    };
    let began = Instant::now();
    while began.elapsed() < LOCK_LIMIT {
        if try_lock(&log) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}
