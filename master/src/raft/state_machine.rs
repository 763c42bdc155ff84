//! The adapter: openraft's apply is `Metadata::apply`, one to one. Images are made of clones of the
//! state, O(1), in the background.

use super::image::{Image, Images};
use super::room::{self, Room};
use super::{Applied, LogId, Membership, Snapshot, SnapshotMeta, TypeConfig};
use common::wire::client_master::Mutation;
use futures::{Stream, StreamExt};
use master_core::{Command, Entry, Metadata};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use std::io;
use std::sync::{Arc, RwLock};

/// The state that queries read.
pub type Shared = Arc<RwLock<Metadata>>;

/// What found the disk full is tried again after this.
const ROOM_AGAIN: std::time::Duration = std::time::Duration::from_secs(5);
/// How nice who makes images, or lets go of old ones, is to who answers: some seconds more or less do not matter to it.
const NICE: i32 = 5;

#[derive(Clone, Default)]
struct Position {
    applied: Option<LogId>,
    membership: Membership,
}

impl Position {
    fn of(meta: &SnapshotMeta) -> Position {
        Position { applied: meta.last_log_id, membership: meta.last_membership.clone() }
    }
}

/// openraft's state machine.
pub struct StateMachine {
    state: Shared,
    position: Position,
    images: Arc<Images>,
    room: Arc<Room>,
}

impl StateMachine {
    /// As the last image is, if there is one.
    ///
    /// # Errors
    /// The disk's, or what is wrong with the image.
    pub fn open(room: Arc<Room>) -> anyhow::Result<StateMachine> {
        let (images, held) = Images::open(room.clone())?;
        let (position, state) = match held {
            Some((meta, state)) => (Position::of(&meta), state),
            None => (Position::default(), Metadata::new()),
        };
        Ok(StateMachine { state: Arc::new(RwLock::new(state)), position, images, room })
    }

    /// Where images are, for those that come.
    pub fn images(&self) -> Arc<Images> {
        self.images.clone()
    }

    /// The state, for queries.
    pub fn shared(&self) -> Shared {
        self.state.clone()
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = Arc<Image>;
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
                    let before = lets_go_of_much(&logged.0).then(|| state.clone());
                    let applied = Applied(Some(state.apply(&logged.0)));
                    drop(state);
                    if let Some(before) = before {
                        let_go(before);
                    }
                    applied
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
            images: self.images.clone(),
            room: self.room.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, image: Arc<Image>) -> Result<(), io::Error> {
        let (images, header, state) = (self.images.clone(), meta.clone(), self.state.clone());
        // Millions of files take seconds to be made and to be let go: who follows does not stand still meanwhile.
        let installed = tokio::task::spawn_blocking(move || {
            let mut installed = images.install(&header, &image)?;
            std::mem::swap(&mut *state.write().expect("never poisoned"), &mut installed);
            Ok(())
        });
        installed.await.map_err(io::Error::other).flatten()?;
        self.position = Position::of(meta);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.images.current())
    }
}

/// Makes an image of a clone of the state.
pub struct Builder {
    state: Metadata,
    position: Position,
    images: Arc<Images>,
    room: Arc<Room>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Arc<Image>;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let Position { applied, membership } = self.position.clone();
        let meta = SnapshotMeta { last_log_id: applied, last_membership: membership };
        let mut state = Box::new(std::mem::take(&mut self.state));
        loop {
            let (images, header) = (self.images.clone(), meta.clone());
            // The clone ends there, too: nodes that only it still has may be many.
            let made = apart(move || match images.make(&header, &state) {
                Err(error) if room::is_full(&error) => Err(state),
                made => Ok(made),
            });
            match made.await? {
                Ok(made) => return made,
                // Nothing depends on it but the log's length: the leader refuses what makes that grow.
                Err(again) => {
                    self.room.image_is_short();
                    tokio::time::sleep(ROOM_AGAIN).await;
                    state = again;
                }
            }
        }
    }
}

/// Whether applying it may let go of as much as the whole state is. All other commands do so in bounded steps.
fn lets_go_of_much(entry: &Entry) -> bool {
    matches!(entry.command, Command::Mutate { mutation: Mutation::DeleteSnapshot { .. }, .. })
}

/// Lets go of what only this one still has. Millions of names take a second: nobody waits for it.
fn let_go(state: Metadata) {
    let state = Box::new(state);
    // If there is no thread to be had it is done here.
    let _ = std::thread::Builder::new().name("let-go".into()).spawn(move || {
        be_nice();
        drop(state);
    });
}

/// Other threads come first.
fn be_nice() {
    // Linux takes this as the thread's own. Where it is not allowed it is as nice as others.
    let _ = rustix::process::setpriority_process(None, NICE);
}

/// On a thread of its own, which nobody waits for who wants to stop.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("image".into()).spawn(move || {
        be_nice();
        let _ = tell.send(work());
    })?;
    told.await.map_err(io::Error::other)
}
