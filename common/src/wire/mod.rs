//! The wire. `common/WIRE.md` describes every byte of it.

pub mod chunk_chunk;
pub mod chunk_master;
pub mod client_chunk;
pub mod client_master;
pub mod frame;
pub mod local;
pub mod path;
mod told;

use crate::limits::{BLOCK_BYTES, PIECE_BYTES_MAX};
use crate::{ChunkHandle, ClusterId, Code, Epoch, Refusal, ServerId, StoreId};
use bincode::{Decode, Encode};
use frame::{HEADER_BYTES, Header, Kind};
use std::net::SocketAddr;

/// Most bytes that decoding one body may claim; above any `Kind::body_bytes_max`.
const DECODE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A message of one edge.
pub trait Message: Encode + Decode<()> {
    /// The frame kind that carries it.
    const KIND: Kind;
}

/// An answer of a master.
pub trait FromMaster: Message {
    /// If this master does not lead, or nobody does: why, and the address of the leader, if it knows one.
    fn not_here(&self) -> Option<(Code, Option<&str>)>;
}

/// The body of `message`. Panics if it is longer than its kind allows: a bug of the sender.
pub fn encode<M: Message>(message: &M) -> Vec<u8> {
    let body = to_vec(message);
    assert!(body.len() <= M::KIND.body_bytes_max(), "{:?} body too long: {}", M::KIND, body.len());
    body
}

/// The message in `body`; every byte of it must belong to the message.
pub fn decode<M: Message>(body: &[u8]) -> Result<M, Code> {
    if body.len() > M::KIND.body_bytes_max() {
        return Err(Code::TooLong);
    }
    from_slice(body)
}

/// Encodes any value in the fixed configuration of wire and disk.
pub fn to_vec<T: Encode>(value: &T) -> Vec<u8> {
    bincode::encode_to_vec(value, bincode::config::standard()).expect("memory is enough")
}

/// Decodes a value that `to_vec` made; bounded, and trailing bytes are refused.
pub fn from_slice<T: Decode<()>>(bytes: &[u8]) -> Result<T, Code> {
    let config = bincode::config::standard().with_limit::<DECODE_BYTES_MAX>();
    match bincode::decode_from_slice::<T, _>(bytes, config) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        _ => Err(Code::BadBody),
    }
}

/// Header and body of a frame; the payload follows beside them.
pub fn frame<M: Message>(
    cluster: ClusterId,
    request: u64,
    epoch: u64,
    message: &M,
    payload_len: usize,
) -> Vec<u8> {
    let body = encode(message);
    assert!(payload_len <= M::KIND.payload_bytes_max(), "payload too long: {payload_len}");
    let header = Header {
        kind: M::KIND,
        cluster,
        request,
        epoch,
        snapshot: 0,
        body_len: body.len() as u32,
        payload_len: payload_len as u32,
        body_crc: crate::checksum::crc32c(&body),
    };
    let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(&body);
    out
}

/// Says in a frame's header which snapshot the sender knows of.
pub fn stamp(mut frame: Vec<u8>, snapshot: u64) -> Vec<u8> {
    if snapshot > 0 {
        let head = frame.first_chunk_mut::<HEADER_BYTES>().expect("a frame has a header");
        let header = Header::decode(head).expect("a frame of ours");
        *head = Header { snapshot, ..header }.encode();
    }
    frame
}

/// Who opens a connection.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Caller {
    /// A client, the CLI or an administrator.
    Client,
    /// A store, to another store.
    Store(StoreId),
    /// A chunkserver, to a master.
    Server,
    /// A master, to another master.
    Master(u64),
}

/// First frame of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// Who calls.
    pub caller: Caller,
    /// Lowest version that the caller speaks.
    pub version_min: u16,
    /// Highest version that the caller speaks.
    pub version_max: u16,
}

/// Answer to `Hello`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HelloOk {
    /// The cluster that answers.
    pub cluster: ClusterId,
    /// The version both speak from here on.
    pub version: u16,
}

impl Message for Hello {
    const KIND: Kind = Kind::Hello;
}
impl Message for HelloOk {
    const KIND: Kind = Kind::HelloOk;
}
impl Message for Refusal {
    const KIND: Kind = Kind::Refused;
}

impl Hello {
    /// A greeting of this build.
    pub fn new(caller: Caller) -> Hello {
        let version = frame::Version::CURRENT as u16;
        Hello { caller, version_min: version, version_max: version }
    }

    /// The version to speak, or why there is none.
    pub fn agree(&self) -> Result<u16, Refusal> {
        let ours = frame::Version::CURRENT as u16;
        if self.version_min <= ours && ours <= self.version_max {
            return Ok(ours);
        }
        let theirs = format!("caller speaks {}-{}, this server {ours}", self.version_min, self.version_max);
        Err(Refusal::new(Code::UnknownVersion, theirs))
    }
}

/// The shape of a run of payload bytes: its length and a CRC-32C for each 4 KiB slice of it,
/// counted from its first byte; the last slice may be shorter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Piece {
    /// Bytes; at most `PIECE_BYTES_MAX`.
    pub len: u32,
    /// One checksum a slice.
    pub crcs: Vec<u32>,
}

impl Piece {
    /// The piece of these bytes.
    pub fn of(bytes: &[u8]) -> Piece {
        Piece { len: bytes.len() as u32, crcs: crate::checksum::slice_crcs(bytes) }
    }

    /// Why this shape cannot be, if so.
    pub fn invalid(&self) -> Option<Code> {
        let len = self.len as usize;
        let bad = len == 0 || len > PIECE_BYTES_MAX || self.crcs.len() != len.div_ceil(BLOCK_BYTES);
        bad.then_some(Code::BadArgument)
    }

    /// Whether `bytes` are what the shape says.
    pub fn verify(&self, bytes: &[u8]) -> Result<(), Code> {
        let good =
            bytes.len() == self.len as usize && crate::checksum::first_mismatch(bytes, &self.crcs).is_none();
        if good { Ok(()) } else { Err(Code::BadChecksum) }
    }
}

/// Who holds a chunk, as the masters decided it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ChunkConfig {
    /// The chunk.
    pub handle: ChunkHandle,
    /// The number of this configuration.
    pub epoch: Epoch,
    /// The member that orders writes.
    pub primary: StoreId,
    /// All members, the primary among them, in chain order; at most `REPLICATION_MAX`.
    pub members: Vec<StoreId>,
    /// The agreed length, if the chunk is sealed.
    pub sealed: Option<u64>,
    /// The commit point may not move for so many milliseconds, counted from receipt: a removed
    /// member may still serve reads until then.
    pub wait_ms: u64,
}

impl ChunkConfig {
    /// Why this cannot be a configuration, if so.
    pub fn invalid(&self) -> Option<Code> {
        let few = 1..=crate::limits::REPLICATION_MAX as usize;
        let twice = (1..self.members.len()).any(|i| self.members[..i].contains(&self.members[i]));
        let bad = !few.contains(&self.members.len())
            || twice
            || !self.members.contains(&self.primary)
            || self.epoch.number() == 0
            || self.epoch == Epoch::DELETED
            || self.handle == ChunkHandle::HOLE;
        bad.then_some(Code::BadArgument)
    }
}

/// A store, as the masters tell it to everybody.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StoreInfo {
    /// The store.
    pub store: StoreId,
    /// The chunkserver that serves it.
    pub server: ServerId,
    /// The failure domain.
    pub rack: String,
    /// Its data port.
    pub addr: SocketAddr,
    /// Whether it is in service.
    pub up: bool,
    /// Bytes that it may use in all.
    pub capacity: u64,
    /// Bytes in use.
    pub used: u64,
    /// It seems to be sick, though it is in service: placement takes it last.
    pub doubted: bool,
    /// It will never come back.
    pub given_up: bool,
}
