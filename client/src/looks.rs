//! Who looks at a file mostly opens it next. What its masters and the primary of its last chunk are asked then is asked
//! beside each other: nobody need be told first who that is.

use crate::{Client, Known, Result};
use common::wire::ChunkConfig;
use common::wire::client_master::ChunkInfo;
use common::{FileId, Serial};
use std::collections::HashMap;
use std::sync::Mutex;

/// Files of which that is remembered; then all are forgotten. Whoever lists a directory with attributes has looked at
/// as many at once.
const LOOKS_MAX: usize = 4096;

/// The open last chunks of files that were looked at lately, as they were held then.
#[derive(Default)]
pub(crate) struct Looks(Mutex<HashMap<FileId, ChunkConfig>>);

/// What the primary of a chunk has said, under that configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Said {
    pub length: u64,
    pub serial: Serial,
}

impl Looks {
    /// This is a file's last chunk.
    pub fn remember(&self, file: FileId, chunk: Option<&ChunkInfo>) {
        let Some(chunk) = chunk.filter(|chunk| chunk.config.sealed.is_none()) else { return };
        let mut looks = self.0.lock().expect("never poisoned");
        if looks.len() >= LOOKS_MAX {
            looks.clear();
        }
        looks.insert(file, chunk.config.clone());
    }

    fn take(&self, file: FileId) -> Option<ChunkConfig> {
        self.0.lock().expect("never poisoned").remove(&file)
    }
}

impl Client {
    /// As `look`, at a path that led to a file before. The primary of its last chunk is asked for the length meanwhile. What it
    /// says counts if the masters say that it still is, and of the last chunk: both were asked after this began, so
    /// nothing is missed that was acknowledged before.
    pub async fn look_again(&self, path: &[u8], file: FileId) -> Result<Known> {
        let Some(then) = self.inner.looks.take(file) else { return self.look(path).await };
        let mut said = None;
        let mut asked = std::pin::pin!(self.stat_replica(&then, then.primary));
        let mut look = std::pin::pin!(self.look(path));
        let mut known = loop {
            tokio::select! {
                biased;
                known = &mut look => break known?,
                answer = &mut asked, if said.is_none() => said = Some(answer),
            }
        };
        let holds = |now: &ChunkInfo| {
            let (now, then) = (&now.config, &then);
            now.sealed.is_none()
                && (now.handle, now.epoch, now.primary) == (then.handle, then.epoch, then.primary)
        };
        if known.chunk.as_ref().is_some_and(holds) {
            let answer = match said {
                Some(answer) => answer,
                None => asked.await,
            };
            // If not, it is asked again, and again.
            known.said = answer.map(|(length, view)| Said { length, serial: view.committed }).ok();
        }
        Ok(known)
    }
}
