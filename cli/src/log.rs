//! What a process says of itself, to standard error. A thread of its own writes it: that may be a file on a disk that
//! hangs, and who serves others must not wait for it.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Most lines that wait to be written. If more do, the newest are lost, and it is said how many.
const LINES_MAX: usize = 4096;
/// Who ends waits so long until all is written.
const END_LIMIT: Duration = Duration::from_secs(1);

/// Lines that wait to be written.
#[derive(Clone)]
struct Lines {
    queue: SyncSender<Vec<u8>>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    waiting: AtomicUsize,
    lost: AtomicU64,
}

impl Lines {
    fn start(to: impl Write + Send + 'static) -> io::Result<Lines> {
        let (queue, lines) = sync_channel(LINES_MAX);
        let counts = Arc::new(Counts::default());
        let counted = counts.clone();
        std::thread::Builder::new().name("log".into()).spawn(move || write(&lines, &counted, to))?;
        Ok(Lines { queue, counts })
    }

    /// Waits until all is written, if that does not take too long.
    fn end(&self) {
        let began = Instant::now();
        while self.counts.waiting.load(Ordering::Acquire) > 0 && began.elapsed() < END_LIMIT {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A log that cannot be written, on a full disk, ends nobody: to complain of it would be to write again.
fn write(lines: &Receiver<Vec<u8>>, counts: &Counts, mut to: impl Write) {
    for line in lines {
        let _ = to.write_all(&line);
        let lost = counts.lost.swap(0, Ordering::AcqRel);
        if lost > 0 {
            let line = format!("{lost} lines are lost: they could not be written as fast as they came\n");
            let _ = to.write_all(line.as_bytes());
        }
        counts.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.counts.waiting.fetch_add(1, Ordering::AcqRel);
        if self.queue.try_send(line.to_vec()).is_err() {
            self.counts.waiting.fetch_sub(1, Ordering::AcqRel);
            self.counts.lost.fetch_add(1, Ordering::AcqRel);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Lines;

    fn make_writer(&self) -> Lines {
        self.clone()
    }
}

/// Ends the log, when it goes.
#[must_use = "the last lines are written when it goes"]
pub struct Log(Lines);

impl Log {
    /// Starts the log to standard error: as `CAIRN_LOG` says, else from this level on.
    pub fn start(otherwise: &str) -> io::Result<Log> {
        let filter = EnvFilter::try_from_env("CAIRN_LOG").unwrap_or_else(|_| EnvFilter::new(otherwise));
        let lines = Lines::start(io::stderr())?;
        let log =
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines.clone()).with_ansi(false);
        log.log_internal_errors(false).init();
        Ok(Log(lines))
    }

    /// One in which something asserts must end: with one of its tasks gone it would only look alive.
    pub fn ends_with_a_panic(&self) {
        let (report, lines) = (std::panic::take_hook(), self.0.clone());
        std::panic::set_hook(Box::new(move |info| {
            lines.end();
            report(info);
            std::process::abort();
        }));
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Writes a line when it is told to.
    struct Slow(mpsc::Receiver<()>, mpsc::Sender<String>);

    impl Write for Slow {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(io::Error::other)?;
            self.1.send(String::from_utf8_lossy(line).into_owned()).map_err(io::Error::other)?;
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_says_something_does_not_wait_until_it_is_written() {
        let ((go, waits), (wrote, written)) = (mpsc::channel(), mpsc::channel());
        let mut lines = Lines::start(Slow(waits, wrote)).expect("a thread");
        let (said, all_said) = mpsc::channel();
        std::thread::spawn(move || {
            (0..2 * LINES_MAX).for_each(|n| writeln!(lines, "line {n}").expect("nothing waits"));
            said.send(lines).expect("the test waits");
        });
        let lines = all_said.recv_timeout(Duration::from_secs(30)).expect("nothing waits");
        drop(go);
        lines.end();
        assert_eq!(
            lines.counts.waiting.load(Ordering::Acquire),
            0,
            "nothing can be written, and nothing waits"
        );
        assert!(written.try_recv().is_err());
    }

    #[test]
    fn what_is_lost_is_counted() {
        let ((go, waits), (wrote, written)) = (mpsc::channel(), mpsc::channel());
        let mut lines = Lines::start(Slow(waits, wrote)).expect("a thread");
        let say = |lines: &mut Lines, what: &str| lines.write_all(what.as_bytes()).expect("nothing waits");
        (0..LINES_MAX + 10).for_each(|_| say(&mut lines, "line\n"));
        // The first may have been taken out of the queue, or not yet.
        let lost = lines.counts.lost.load(Ordering::Acquire);
        assert!((9..=10).contains(&lost), "{lost} lost");
        (0..LINES_MAX + 20).for_each(|_| go.send(()).expect("it waits"));
        lines.end();
        let written: Vec<String> = written.try_iter().collect();
        assert_eq!(written[0], "line\n");
        assert!(written[1].starts_with(&lost.to_string()), "{}", written[1]);
        assert_eq!(
            written.iter().filter(|line| *line == "line\n").count() as u64,
            LINES_MAX as u64 + 10 - lost
        );
    }
}
