//! What the masters have yet to hear of files that were written to: their lengths and times. The bytes are
//! durable and found without it, so it is told a little later, of many files together.

use crate::{Client, Error};
use common::FileId;
use common::wire::client_master::{Mutation, REPORT_FILES_MAX, Report};
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

/// Reports wait for others so long.
const GATHER: Duration = Duration::from_millis(20);
/// After a failure it is tried again so much later.
const AGAIN: Duration = Duration::from_secs(1);
/// What was told is remembered so long: an answer of the masters that is older may still be on its way.
const REMEMBERED: Duration = Duration::from_secs(2);
/// Files of which something is to be told, at most; then writers wait.
const FILES_MAX: usize = 8 * REPORT_FILES_MAX;

/// Nanoseconds since 1970, as reports tell times; 0 before.
pub(crate) fn nanos(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

/// The reports of a client.
#[derive(Default)]
pub(crate) struct Reports {
    state: Mutex<State>,
    /// Held while reports are on their way.
    telling: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    waiting: HashMap<FileId, Report>,
    /// Times that were told, and when that was.
    told: HashMap<FileId, (i64, Instant)>,
    /// When reports were last made.
    made: HashMap<FileId, Instant>,
    /// Somebody is about to tell what waits.
    is_due: bool,
}

impl State {
    fn take(&mut self) -> Vec<Report> {
        let now = Instant::now();
        self.told.retain(|_, (_, at)| now.duration_since(*at) < REMEMBERED);
        self.made.retain(|_, at| now.duration_since(*at) < REMEMBERED);
        let files: Vec<FileId> = self.waiting.keys().copied().take(REPORT_FILES_MAX).collect();
        let reports: Vec<Report> = files.iter().filter_map(|file| self.waiting.remove(file)).collect();
        // From here on, so that there is no moment at which it is nowhere.
        self.told.extend(reports.iter().filter_map(|r| Some((r.file, (r.mtime_ns?, now)))));
        reports
    }

    fn put_back(&mut self, reports: Vec<Report>) {
        for report in reports {
            self.waiting.entry(report.file).or_insert(report);
        }
    }
}

impl Client {
    fn reports(&self) -> std::sync::MutexGuard<'_, State> {
        self.inner.reports.state.lock().expect("never poisoned")
    }

    /// Tells it a little later.
    pub(crate) async fn report_later(&self, report: Report) {
        let (is_due, is_full) = {
            let mut reports = self.reports();
            reports.made.insert(report.file, Instant::now());
            reports.waiting.insert(report.file, report);
            (std::mem::replace(&mut reports.is_due, true), reports.waiting.len() >= FILES_MAX)
        };
        if !is_due {
            let client = self.clone();
            tokio::spawn(async move { client.tell_when_due().await });
        }
        if is_full {
            // It is tried again behind the writer's back.
            let _ = self.tell_reports().await;
        }
    }

    async fn tell_when_due(&self) {
        let mut pause = GATHER;
        loop {
            tokio::time::sleep(pause).await;
            pause = match self.tell_reports().await {
                Ok(()) => GATHER,
                Err(error) => {
                    tracing::warn!(%error, "cannot tell the masters what was written; it is tried again");
                    AGAIN
                }
            };
            let mut reports = self.reports();
            if reports.waiting.is_empty() {
                reports.is_due = false;
                return;
            }
        }
    }

    /// Tells the masters all that waits.
    ///
    /// # Errors
    /// If they cannot be told: it waits still.
    pub async fn tell_reports(&self) -> Result<(), Error> {
        let _alone = self.inner.reports.telling.lock().await;
        loop {
            let reports = self.reports().take();
            if reports.is_empty() {
                return Ok(());
            }
            match self.mutate(Mutation::Written { files: reports.clone() }).await {
                // They know better, and will say so again.
                Ok(_) | Err(Error::Refused(_)) => {}
                Err(error) => {
                    self.reports().put_back(reports);
                    return Err(error);
                }
            }
        }
    }

    /// When a file was last written to, as far as that was told just now, or is yet to be; nanoseconds since 1970.
    pub fn reported_mtime(&self, file: FileId) -> Option<i64> {
        let reports = self.reports();
        let waits = reports.waiting.get(&file).and_then(|report| report.mtime_ns);
        let told = reports.told.get(&file).filter(|(_, at)| at.elapsed() < REMEMBERED);
        waits.or(told.map(|(mtime_ns, _)| *mtime_ns))
    }

    /// Whether a report was made of a file since then: what the masters said before knows less of it than was known
    /// here, and is not any more.
    pub fn reported_since(&self, file: FileId, since: Instant) -> bool {
        self.reports().made.get(&file).is_some_and(|made| *made >= since)
    }

    /// The time of a file is about to be set: what was written before must not change it afterwards.
    pub async fn forget_mtime(&self, file: FileId) {
        let _alone = self.inner.reports.telling.lock().await;
        let mut reports = self.reports();
        reports.told.remove(&file);
        if let Some(report) = reports.waiting.get_mut(&file) {
            report.mtime_ns = None;
        }
    }
}
