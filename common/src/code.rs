//! Refusals: what a server answers when it will not do what it was asked. One table; the numbers
//! are part of the protocol and are never reused.

use bincode::{Decode, Encode};
use std::fmt;

macro_rules! codes {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        /// The reason of a refusal.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Code { $(#[doc = $text] $name = $number,)* }

        impl Code {
            /// All codes, in the order of the table.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// The code of this number, if there is one.
            pub fn from_number(number: u16) -> Option<Code> {
                match number { $($number => Some(Code::$name),)* _ => None }
            }

            /// The sentence of the table.
            pub fn text(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }

            /// The name of the table.
            pub fn name(self) -> &'static str {
                match self { $(Code::$name => stringify!($name),)* }
            }
        }
    };
}

codes! {
    // The wire.
    BadFrame = 1, "the frame is not well-formed";
    WrongCluster = 2, "the frame belongs to another cluster";
    UnknownVersion = 3, "the version of the protocol is not supported";
    BadBody = 4, "the message cannot be decoded";
    TooLong = 5, "the message is longer than its kind allows";
    BadChecksum = 6, "the data does not match its checksum";
    Unexpected = 7, "the message is not expected here";
    // Name space.
    NotFound = 20, "no such file or directory";
    Exists = 21, "it exists already";
    NotADirectory = 22, "a part of the path is not a directory";
    IsADirectory = 23, "it is a directory";
    NotEmpty = 24, "the directory is not empty";
    BadName = 25, "the name or path is not allowed";
    BadArgument = 26, "an argument is out of range";
    NoSuchFileId = 27, "no file has this id any more";
    WrongChunkIndex = 28, "the file's last chunk is another one, or still grows";
    NotInTrash = 29, "nothing in the trash matches";
    QuotaExceeded = 30, "the quota is used up";
    ReadOnly = 31, "snapshots are never changed; `cairn snapshot delete` gives one up";
    HasSnapshots = 32, "it holds snapshots; `cairn snapshot delete` gives them up";
    TooManySnapshots = 33, "there cannot be more snapshots";
    TooManyLinks = 34, "the file cannot have more names";
    NoSuchAttribute = 35, "it has no extended attribute of this name";
    AttributesTooBig = 36, "its extended attributes would take more room than they may";
    Locked = 37, "another has locked it";
    Recalled = 38, "what another has claimed of it is asked back; try again";
    TooManyLocks = 39, "there cannot be more locks";
    // Raft and sessions of clients.
    NotLeader = 40, "this master does not lead";
    Unavailable = 41, "no quorum of masters answers";
    ClientEnded = 42, "the client's session has ended";
    OutsideWindow = 43, "the request is older than what is remembered of its client";
    NoServers = 44, "not enough chunkservers are up to place a chunk";
    Deadline = 45, "the deadline has passed";
    MasterFull = 46, "the disk of the leading master is full: make room on it";
    // Users.
    NotYours = 50, "it is another user's, in a directory with the sticky bit";
    // Chunks.
    NoSuchChunk = 60, "the chunk is not here";
    StaleEpoch = 61, "the epoch is older than the chunk's";
    UnknownEpoch = 62, "the epoch is newer than the chunk's";
    NotPrimary = 63, "this store is not the chunk's primary";
    NotInSession = 64, "the store has no session with the masters";
    Busy = 65, "a queue or buffer is full; try again";
    PieceMissing = 66, "a piece of the write is not held here";
    ChunkFull = 67, "the record does not fit into the chunk";
    Sealed = 68, "the chunk is sealed";
    BeyondEnd = 69, "the range lies beyond the chunk's sealed length, or the end of the file";
    Corrupt = 70, "the data on disk does not match its checksum";
    DiskFull = 71, "the store has no space left";
    DiskFailed = 72, "the store's disk has failed; the store is out of service";
    Frozen = 73, "too few members of the chunk are alive to go on";
    ChainBroken = 74, "the next server of the chain does not answer";
    Reconfiguring = 75, "the chunk changes its members; try again";
    Gap = 76, "a serial before this one is missing";
    Shutdown = 77, "the server is stopping";
    RepairVoid = 78, "this attempt to make a replica is over";
    Doubted = 79, "the store seems to be sick, and is not used while that is so";
    // Administration.
    NoSuchStore = 90, "no such store or server";
    StoreInUse = 91, "another process serves this store";
    WrongStore = 92, "the data directory belongs to another store or cluster";
    NotForProduction = 93, "refused without an explicit confirmation";
    GivenUp = 94, "the store was given up for good; start its server on an empty directory";
    Lost = 95, "all stores that held the chunk were given up: its bytes are lost";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl Encode for Code {
    fn encode<E: bincode::enc::Encoder>(&self, e: &mut E) -> Result<(), bincode::error::EncodeError> {
        (*self as u16).encode(e)
    }
}

impl<C> Decode<C> for Code {
    fn decode<D: bincode::de::Decoder<Context = C>>(d: &mut D) -> Result<Self, bincode::error::DecodeError> {
        let number = u16::decode(d)?;
        Code::from_number(number).ok_or(bincode::error::DecodeError::Other("unknown refusal code"))
    }
}
bincode::impl_borrow_decode!(Code);

impl Code {
    /// The master that says so does not lead: another may, or will.
    pub fn is_of_no_leader(self) -> bool {
        matches!(self, Code::NotLeader | Code::Unavailable)
    }
}

/// An answer that says no: the code, what it is about, and a hint where to go.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Refusal {
    /// Why.
    pub code: Code,
    /// What it is about: a path, a chunk, a store. At most `TEXT_BYTES_MAX` bytes.
    pub about: String,
}

impl Refusal {
    /// A refusal about `about`.
    pub fn new(code: Code, about: impl fmt::Display) -> Refusal {
        let mut about = about.to_string();
        if about.len() > crate::limits::TEXT_BYTES_MAX {
            let end = (0..=crate::limits::TEXT_BYTES_MAX).rev().find(|i| about.is_char_boundary(*i));
            about.truncate(end.unwrap_or(0));
        }
        Refusal { code, about }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.about.as_str() {
            "" => write!(f, "{} [{}]", self.code, self.code as u16),
            about => write!(f, "{about}: {} [{}]", self.code, self.code as u16),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Code> for Refusal {
    fn from(code: Code) -> Refusal {
        Refusal { code, about: String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_codes_agree() {
        for code in Code::ALL {
            assert_eq!(Code::from_number(*code as u16), Some(*code));
            assert!(!code.text().is_empty());
        }
        assert_eq!(Code::from_number(0), None);
    }
}
