//! The frame: a fixed 64-byte header, a bincode body, then raw payload.

use crate::checksum::crc32c;
use crate::{ClusterId, Code};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 64;
/// First bytes of every frame: "CRN1".
pub const MAGIC: u32 = u32::from_le_bytes(*b"CRN1");

/// Versions of the protocol, newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Version {
    /// Owners, links, special files, times of access and change, extended attributes, and paths that begin at an
    /// inode: the commands and answers of the masters are encoded otherwise. Nothing speaks both.
    V2 = 2,
    /// The first version.
    V1 = 1,
}

impl Version {
    /// What this build speaks.
    pub const CURRENT: Version = Version::V2;
}

macro_rules! kinds {
    ($($name:ident = $number:literal, $body:literal, $payload:literal, $text:literal;)*) => {
        /// What a frame carries. Each kind is one edge in one direction.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Kind { $(#[doc = $text] $name = $number,)* }

        impl Kind {
            /// All kinds.
            pub const ALL: &'static [Kind] = &[$(Kind::$name,)*];
            /// The kind of this number.
            pub fn from_number(number: u16) -> Option<Kind> {
                match number { $($number => Some(Kind::$name),)* _ => None }
            }
            /// Most bytes of the body.
            pub const fn body_bytes_max(self) -> usize {
                match self { $(Kind::$name => $body,)* }
            }
            /// Most bytes of the payload.
            pub const fn payload_bytes_max(self) -> usize {
                match self { $(Kind::$name => $payload,)* }
            }
        }
    };
}

kinds! {
    Hello = 1, 1024, 0, "First frame of a connection: who calls, and with which versions.";
    HelloOk = 2, 1024, 0, "Answer to `Hello`: the version that both speak.";
    Refused = 3, 2048, 0, "Answer to any request: a refusal code and what it is about.";
    MasterRequest = 10, 65536, 0, "Client or administrator to master.";
    MasterReply = 11, 8388608, 0, "Master to client or administrator.";
    Raft = 20, 4096, 16777216, "Master to master: a Raft call; its data is the payload.";
    RaftReply = 21, 4096, 1048576, "Master to master: the answer to a Raft call.";
    StoreRequest = 30, 65536, 0, "Chunkserver to master.";
    StoreReply = 31, 1048576, 0, "Master to chunkserver.";
    ClientChunk = 40, 16384, 262144, "Client to store.";
    ClientChunkReply = 41, 16384, 262144, "Store to client.";
    Peer = 50, 65536, 262144, "Store to store; one way, answers are messages of their own.";
}

const _: () = assert!(Kind::ClientChunk.payload_bytes_max() == crate::limits::PIECE_BYTES_MAX);
const _: () = assert!(Kind::Peer.payload_bytes_max() == crate::limits::PIECE_BYTES_MAX);

/// A verified header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the body is.
    pub kind: Kind,
    /// The cluster; 0 in a `Hello` of a caller that does not know it yet.
    pub cluster: ClusterId,
    /// Names the request on its connection; the answer repeats it.
    pub request: u64,
    /// The epoch of the chunk that the message is about, or 0.
    pub epoch: u64,
    /// The last snapshot that the sender knows of: what it asks or tells comes after that.
    pub snapshot: u64,
    /// Bytes of the body.
    pub body_len: u32,
    /// Bytes of the payload.
    pub payload_len: u32,
    /// CRC-32C of the body.
    pub body_crc: u32,
}

const VERSION_AT: usize = 4;
const KIND_AT: usize = VERSION_AT + 2;
const FLAGS_AT: usize = KIND_AT + 2;
const BODY_LEN_AT: usize = FLAGS_AT + 4;
const PAYLOAD_LEN_AT: usize = BODY_LEN_AT + 4;
const BODY_CRC_AT: usize = PAYLOAD_LEN_AT + 4;
const CLUSTER_AT: usize = BODY_CRC_AT + 4;
const REQUEST_AT: usize = CLUSTER_AT + 8;
const EPOCH_AT: usize = REQUEST_AT + 8;
const SNAPSHOT_AT: usize = EPOCH_AT + 8;
const RESERVED_AT: usize = SNAPSHOT_AT + 8;
const HEADER_CRC_AT: usize = RESERVED_AT + 4;
const _: () = assert!(HEADER_CRC_AT + 4 == HEADER_BYTES);

impl Header {
    /// The bytes of this header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[VERSION_AT..][..2].copy_from_slice(&(Version::CURRENT as u16).to_le_bytes());
        out[KIND_AT..][..2].copy_from_slice(&(self.kind as u16).to_le_bytes());
        out[BODY_LEN_AT..][..4].copy_from_slice(&self.body_len.to_le_bytes());
        out[PAYLOAD_LEN_AT..][..4].copy_from_slice(&self.payload_len.to_le_bytes());
        out[BODY_CRC_AT..][..4].copy_from_slice(&self.body_crc.to_le_bytes());
        out[CLUSTER_AT..][..8].copy_from_slice(&self.cluster.0.to_le_bytes());
        out[REQUEST_AT..][..8].copy_from_slice(&self.request.to_le_bytes());
        out[EPOCH_AT..][..8].copy_from_slice(&self.epoch.to_le_bytes());
        out[SNAPSHOT_AT..][..8].copy_from_slice(&self.snapshot.to_le_bytes());
        let crc = crc32c(&out[..HEADER_CRC_AT]);
        out[HEADER_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Verifies the bytes of a header. Lengths are checked against the kind's limits here, so
    /// nothing is ever allocated for a length that is not allowed.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, Code> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        if u32_at(0) != MAGIC || u32_at(HEADER_CRC_AT) != crc32c(&bytes[..HEADER_CRC_AT]) {
            return Err(Code::BadFrame);
        }
        if u16_at(VERSION_AT) != Version::CURRENT as u16 {
            return Err(Code::UnknownVersion);
        }
        let kind = Kind::from_number(u16_at(KIND_AT)).ok_or(Code::Unexpected)?;
        let reserved = &bytes[RESERVED_AT..HEADER_CRC_AT];
        if u32_at(FLAGS_AT) != 0 || reserved.iter().any(|b| *b != 0) {
            return Err(Code::BadFrame);
        }
        let header = Header {
            kind,
            cluster: ClusterId(u64_at(CLUSTER_AT)),
            request: u64_at(REQUEST_AT),
            epoch: u64_at(EPOCH_AT),
            snapshot: u64_at(SNAPSHOT_AT),
            body_len: u32_at(BODY_LEN_AT),
            payload_len: u32_at(PAYLOAD_LEN_AT),
            body_crc: u32_at(BODY_CRC_AT),
        };
        let too_long = header.body_len as usize > kind.body_bytes_max()
            || header.payload_len as usize > kind.payload_bytes_max();
        if too_long { Err(Code::TooLong) } else { Ok(header) }
    }

    /// Whether `body` is what the header says.
    pub fn check_body(&self, body: &[u8]) -> Result<(), Code> {
        assert_eq!(body.len(), self.body_len as usize);
        if crc32c(body) == self.body_crc { Ok(()) } else { Err(Code::BadChecksum) }
    }
}
