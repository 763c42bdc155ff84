//! The only code that knows openraft: types, configuration, start.

pub mod compaction;
mod direct;
pub mod hung;
pub mod image;
pub mod log;
mod mirror;
pub mod network;
pub mod room;
mod segment;
pub mod spare;
pub mod state_machine;
mod stock;
mod succession;

use common::limits::{ELECTION_MS_MAX, ELECTION_MS_MIN, RAFT_HEARTBEAT_MS};
use master_core::{Entry, Reply};
use openraft::{Config, SnapshotPolicy};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::sync::Arc;

/// An entry of the log, shared between the log, replication and the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged(pub Arc<Entry>);

impl fmt::Display for Logged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0.command)
    }
}

impl Serialize for Logged {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(&common::wire::to_vec(&*self.0))
    }
}

impl<'de> Deserialize<'de> for Logged {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Logged, D::Error> {
        let bytes = serde_bytes::ByteBuf::deserialize(d)?;
        let entry = common::wire::from_slice(&bytes).map_err(serde::de::Error::custom)?;
        Ok(Logged(Arc::new(entry)))
    }
}

/// The answer to an entry; none for entries that are Raft's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied(pub Option<Reply>);

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl Serialize for Applied {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(&common::wire::to_vec(&self.0))
    }
}

impl<'de> Deserialize<'de> for Applied {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Applied, D::Error> {
        let bytes = serde_bytes::ByteBuf::deserialize(d)?;
        common::wire::from_slice(&bytes).map(Applied).map_err(serde::de::Error::custom)
    }
}

openraft::declare_raft_types!(
    /// openraft's types. One leader a term: a term is a fencing token.
    pub TypeConfig:
        D = Logged,
        R = Applied,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        Node = openraft::BasicNode,
);

/// The Raft node of a master.
pub type Raft = openraft::Raft<TypeConfig, state_machine::StateMachine>;
/// A position of the log.
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
/// A vote.
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
/// An entry as Raft has it.
pub type RaftEntry = openraft::alias::EntryOf<TypeConfig>;
/// Who votes, as of some entry.
pub type Membership = openraft::alias::StoredMembershipOf<TypeConfig>;
/// A snapshot's description.
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
/// A snapshot.
pub type Snapshot = openraft::alias::SnapshotOf<TypeConfig, Arc<image::Image>>;

/// A new voter is taken when it lacks no more entries than these.
const BEHIND_ENTRIES: u64 = 100_000;

/// openraft's configuration; `time_scale` stretches all its timeouts together.
pub fn config(time_scale: u64) -> Arc<Config> {
    let config = Config {
        cluster_name: "cairn".into(),
        election_timeout_min: ELECTION_MS_MIN * time_scale,
        election_timeout_max: ELECTION_MS_MAX * time_scale,
        heartbeat_interval: RAFT_HEARTBEAT_MS * time_scale,
        install_snapshot_timeout: 60_000,
        // `compaction.rs` says when.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        replication_lag_threshold: BEHIND_ENTRIES,
        enable_pre_vote: Some(true),
        // A restarted leader must be elected: sessions are counted from when it begins to lead.
        enable_leader_restore: Some(false),
        ..Config::default()
    };
    Arc::new(config.validate().expect("the constants are consistent"))
}

/// Any of openraft's serde types as bytes.
pub(crate) fn to_bytes<T: Serialize>(value: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, bincode::config::standard()).expect("memory is enough")
}

/// And back; bounded, trailing bytes are refused.
pub(crate) fn from_bytes<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    decode(bytes).filter(|(_, used)| *used == bytes.len()).map(|(value, _)| value)
}

/// The first field of something longer: of an entry, its log id.
pub(crate) fn prefix_from_bytes<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    decode(bytes).map(|(value, _)| value)
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<(T, usize)> {
    const LIMIT: usize = 64 * 1024 * 1024;
    let config = bincode::config::standard().with_limit::<LIMIT>();
    bincode::serde::decode_from_slice(bytes, config).ok()
}
