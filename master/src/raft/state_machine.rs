//! The adapter: openraft's apply is `Metadata::apply`, one to one. Snapshots are clones of the
//! state, O(1), encoded and written in the background.

use super::room::{self, Room};
use super::{Applied, LogId, Membership, Snapshot, SnapshotMeta, TypeConfig, from_bytes, to_bytes};
use common::checksum::crc32c;
use futures::{Stream, StreamExt};
use master_core::Metadata;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

/// A snapshot's content: the state in parts, each decoded under a limit.
pub type Parts = Arc<Vec<Vec<u8>>>;

/// The state that queries read.
pub type Shared = Arc<RwLock<Metadata>>;

/// First bytes of a snapshot's file; its last digit is the version.
const MAGIC: &[u8; 8] = b"CRNSNAP2";
/// What found the disk full is tried again after this.
const ROOM_AGAIN: std::time::Duration = std::time::Duration::from_secs(5);
/// Most bytes of one part.
const PART_BYTES_MAX: u32 = 64 * 1024 * 1024;

#[derive(Clone, Default)]
struct Position {
    applied: Option<LogId>,
    membership: Membership,
}

/// openraft's state machine.
pub struct StateMachine {
    state: Shared,
    position: Position,
    dir: PathBuf,
    room: Arc<Room>,
    current: Arc<Mutex<Option<Snapshot>>>,
}

impl StateMachine {
    /// Loads the last snapshot of a directory, if there is one.
    pub fn open(dir: &Path, room: Arc<Room>) -> anyhow::Result<StateMachine> {
        std::fs::create_dir_all(dir)?;
        let path = dir.join("snapshot");
        let mut state = Metadata::new();
        let mut position = Position::default();
        let mut current = None;
        if path.exists() {
            let (meta, parts) =
                read_file(&path).map_err(|e| anyhow::anyhow!("snapshot {}: {e}", path.display()))?;
            state = decode(&parts)?;
            position = Position { applied: meta.last_log_id, membership: meta.last_membership.clone() };
            current = Some(Snapshot { meta, snapshot: parts });
        }
        Ok(StateMachine {
            state: Arc::new(RwLock::new(state)),
            position,
            dir: dir.into(),
            room,
            current: Arc::new(Mutex::new(current)),
        })
    }

    /// The state, for queries.
    pub fn shared(&self) -> Shared {
        self.state.clone()
    }
}

fn decode(parts: &Parts) -> io::Result<Metadata> {
    Metadata::decode(parts.iter().map(|p| p.as_slice()))
        .map_err(|code| io::Error::other(format!("decode the snapshot: {code}")))
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = Parts;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), io::Error> {
        Ok((self.position.applied, self.position.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            self.position.applied = Some(entry.log_id);
            let applied = match entry.payload {
                EntryPayload::Blank => Applied(None),
                EntryPayload::Normal(logged) => {
                    let mut state = self.state.write().expect("never poisoned");
                    Applied(Some(state.apply(&logged.0)))
                }
                EntryPayload::Membership(membership) => {
                    self.position.membership = Membership::new(Some(entry.log_id), membership);
                    Applied(None)
                }
            };
            if let Some(responder) = responder {
                responder.send(applied);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            state: self.state.read().expect("never poisoned").clone(),
            position: self.position.clone(),
            dir: self.dir.clone(),
            room: self.room.clone(),
            current: self.current.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Parts) -> Result<(), io::Error> {
        let state = decode(&snapshot)?;
        write_file(&self.dir, &self.room, meta, &snapshot)?;
        *self.state.write().expect("never poisoned") = state;
        self.position = Position { applied: meta.last_log_id, membership: meta.last_membership.clone() };
        *self.current.lock().expect("never poisoned") = Some(Snapshot { meta: meta.clone(), snapshot });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.current.lock().expect("never poisoned").clone())
    }
}

/// Makes a snapshot of a clone of the state.
pub struct Builder {
    state: Metadata,
    position: Position,
    dir: PathBuf,
    room: Arc<Room>,
    current: Arc<Mutex<Option<Snapshot>>>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Parts;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let meta = SnapshotMeta {
            last_log_id: self.position.applied,
            last_membership: self.position.membership.clone(),
        };
        let state = self.state.clone();
        let parts = blocking(move || {
            let mut parts = vec![];
            state.encode(|part| parts.push(part));
            Ok(Arc::new(parts))
        })
        .await?;
        loop {
            let (dir, room, header) = (self.dir.clone(), self.room.clone(), meta.clone());
            let encoded = parts.clone();
            match blocking(move || write_file(&dir, &room, &header, &encoded)).await {
                // Nothing depends on it but the log's length: the leader refuses what makes that grow. Who waits on no
                // thread keeps nobody from stopping.
                Err(error) if room::is_full(&error) => {
                    self.room.snapshot_is_short();
                    tokio::time::sleep(ROOM_AGAIN).await;
                }
                done => break done?,
            }
        }
        let snapshot = Snapshot { meta, snapshot: parts };
        *self.current.lock().expect("never poisoned") = Some(snapshot.clone());
        Ok(snapshot)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// The file: magic, then parts (length, CRC-32C, bytes) - the first the description - then an
/// empty part. Whole or not at all: written aside, synced, renamed.
fn write_file(dir: &Path, room: &Room, meta: &SnapshotMeta, parts: &Parts) -> io::Result<()> {
    let alone = room.writing();
    let mut file = io::BufWriter::with_capacity(1024 * 1024, room::open_aside(dir)?);
    file.write_all(MAGIC)?;
    let meta = to_bytes(meta);
    for part in std::iter::once(&meta).chain(parts.iter()).chain(std::iter::once(&vec![])) {
        file.write_all(&(part.len() as u32).to_le_bytes())?;
        file.write_all(&crc32c(part).to_le_bytes())?;
        file.write_all(part)?;
    }
    let mut file = file.into_inner().map_err(|e| e.into_error())?;
    let len = file.stream_position()?;
    // It has the room that was taken for it.
    file.set_len(len)?;
    file.sync_all()?;
    std::fs::rename(room::aside(dir), dir.join("snapshot"))?;
    File::open(dir)?.sync_all()?;
    room.take_for_next(len);
    drop(alone);
    Ok(())
}

fn read_file(path: &Path) -> io::Result<(SnapshotMeta, Parts)> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut file = io::BufReader::new(File::open(path)?);
    let mut magic = [0; 8];
    file.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(bad("it is no snapshot, or of another version of Cairn"));
    }
    let mut parts = vec![];
    loop {
        let mut head = [0; 8];
        file.read_exact(&mut head)?;
        let len = u32::from_le_bytes(head[..4].try_into().expect("4 bytes"));
        let crc = u32::from_le_bytes(head[4..].try_into().expect("4 bytes"));
        if len > PART_BYTES_MAX {
            return Err(bad("a part is too long"));
        }
        let mut part = vec![0; len as usize];
        file.read_exact(&mut part)?;
        if crc32c(&part) != crc {
            return Err(bad("a part does not match its checksum; remove this master and add an empty one"));
        }
        if part.is_empty() {
            break;
        }
        parts.push(part);
    }
    if parts.is_empty() {
        return Err(bad("it is empty"));
    }
    let meta = from_bytes(&parts.remove(0)).ok_or_else(|| bad("its description cannot be decoded"))?;
    Ok((meta, Arc::new(parts)))
}
