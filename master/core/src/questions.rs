//! What primaries ask, as far as the masters' state alone says what comes of it.

use crate::{Answer, Command, Metadata, StoreState};
use common::wire::ChunkConfig;
use common::wire::chunk_master::{StoreReply, StoreRequest};
use common::{ChunkHandle, Code, Epoch, Refusal, StoreId};

/// What comes of a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// This is the answer.
    Answer(StoreReply),
    /// An entry of the log decides.
    Propose(Command),
    /// It depends on what the leader counts by its own clock.
    Count,
}

impl Metadata {
    /// What comes of a store's question.
    pub fn decide(&self, request: &StoreRequest) -> Answer<Decision> {
        match *request {
            StoreRequest::Confirm { store, session, handle } => {
                let is_up = self.store(store).is_some_and(|s| s.state == StoreState::Up(session));
                match is_up {
                    true => self.config(handle).map(answer),
                    false => Err(Refusal::new(Code::NotInSession, store)),
                }
            }
            // A primary that was restarted, or has lost track, starts over in a new epoch.
            StoreRequest::Takeover { store, handle, epoch } => {
                let command = Command::Reconfigure { handle, epoch, remove: vec![], primary: Some(store) };
                self.of_its_primary(store, handle, epoch, || Decision::Propose(command))
            }
            // Mostly no snapshot needs the chunk, and nothing goes into the log.
            StoreRequest::Fork { store, handle, epoch } => {
                self.of_its_primary(store, handle, epoch, || match self.is_fork_due(handle) {
                    true => Decision::Propose(Command::Fork { handle, epoch }),
                    false => {
                        let snapshot = self.last_snapshot();
                        Decision::Answer(StoreReply::Fork { to: None, snapshot })
                    }
                })
            }
            StoreRequest::Forked { handle, epoch, to, length, .. } => {
                Ok(Decision::Propose(Command::Forked { handle, epoch, to, length }))
            }
            StoreRequest::Seal { store, handle, epoch, length, .. } => {
                match self.config(handle)?.primary == store {
                    true => Ok(Decision::Propose(Command::Seal { handle, epoch, length })),
                    false => Err(Refusal::new(Code::NotPrimary, handle)),
                }
            }
            // By the entry alone: a refusal of it must be final.
            StoreRequest::Join { handle, epoch, learner, attempt, .. } => {
                Ok(Decision::Propose(Command::Join { handle, epoch, learner, attempt }))
            }
            _ => Ok(Decision::Count),
        }
    }

    /// Who does not lead the chunk under that epoch hears how it is.
    fn of_its_primary(
        &self,
        store: StoreId,
        handle: ChunkHandle,
        epoch: Epoch,
        then: impl FnOnce() -> Decision,
    ) -> Answer<Decision> {
        let config = self.config(handle)?;
        match (config.primary, config.epoch) == (store, epoch) {
            true => Ok(then()),
            false => Ok(answer(config)),
        }
    }
}

fn answer(config: ChunkConfig) -> Decision {
    Decision::Answer(StoreReply::Config(config))
}
