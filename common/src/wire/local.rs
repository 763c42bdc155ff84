//! What a client on the same machine is given beside the wire, so that it can read a store's files itself:
//! descriptors over a unix socket, and a board on which the store says what still holds.
//!
//! A store answers `ClientChunk::Locate` with where bytes lie and under which stamp. The client reads them, and then
//! looks at the board: if the chunk's slot still shows that stamp, and the store's session holds, what was read was so
//! at that moment. The store takes the stamp off the board before it does anything else about the chunk.

use crate::{ChunkHandle, ClusterId, Code, SessionId, StoreId, Time};

/// Slots of a board; chunks whose handles agree in the low bits share one.
pub const SLOTS: u64 = 4096;
/// Bytes of the head: session, deadline, and a check of both.
pub const HEAD_BYTES: usize = 24;
/// Where the slots begin.
const SLOTS_AT: u64 = 64;
/// Bytes of a slot.
pub const SLOT_BYTES: usize = 8;
/// Bytes of a board.
pub const BOARD_BYTES: u64 = SLOTS_AT + SLOTS * SLOT_BYTES as u64;
/// Bytes of what is asked over the socket.
pub const ASK_BYTES: usize = 16;
/// Bytes of the answer: what was asked, and the number of the time namespace, in which the deadlines are.
pub const ANSWER_BYTES: usize = ASK_BYTES + 8;
/// Its first bytes.
const MAGIC: [u8; 8] = *b"CRNlocl1";

const _: () = assert!(HEAD_BYTES as u64 <= SLOTS_AT);
const _: () = assert!(SLOTS.is_power_of_two());

/// The slot of a chunk.
pub fn slot_of(handle: ChunkHandle) -> u32 {
    (handle.0 % SLOTS) as u32
}

/// Where a slot lies on the board.
pub fn slot_at(slot: u32) -> u64 {
    SLOTS_AT + (u64::from(slot) % SLOTS) * SLOT_BYTES as u64
}

/// The abstract name of a store's socket: it is seen in one network namespace, thus on one machine.
pub fn socket_name(cluster: ClusterId, store: StoreId) -> String {
    format!("cairn/{:016x}/{}", cluster.0, store.0)
}

/// Until when which session holds, on the machine's boot-time clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The session; 0: none.
    pub session: SessionId,
    /// Its end.
    pub until: Time,
}

impl Head {
    /// Mixes both, so that a head that is read while it is written is no head.
    fn mixed(self) -> u64 {
        let Head { session, until } = self;
        (session.0 ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xff51_afd7_ed55_8ccd)
            ^ until.0.wrapping_mul(0xc4ce_b9fe_1a85_ec53).rotate_left(31)
    }

    /// As it is on the board.
    pub fn encode(self) -> [u8; HEAD_BYTES] {
        let mut out = [0; HEAD_BYTES];
        out[..8].copy_from_slice(&self.session.0.to_le_bytes());
        out[8..16].copy_from_slice(&self.until.0.to_le_bytes());
        out[16..].copy_from_slice(&self.mixed().to_le_bytes());
        out
    }

    /// What the board says; nothing if it is just being written.
    pub fn decode(bytes: &[u8; HEAD_BYTES]) -> Option<Head> {
        let at = |i: usize| u64::from_le_bytes(bytes[i..i + 8].try_into().expect("8 bytes"));
        let head = Head { session: SessionId(at(0)), until: Time(at(8)) };
        (at(16) == head.mixed()).then_some(head)
    }
}

/// What is posted on a board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Post {
    /// The session.
    Head(Head),
    /// What a slot shows: a stamp, or 0 for none.
    Slot {
        /// Which.
        slot: u32,
        /// Never given twice, in no life of the store.
        stamp: u64,
    },
}

/// What is asked for over the socket; a descriptor comes with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The board. The connection stands as long as the store's process lives: its end says that the board is void.
    Board,
    /// A segment of extents, for reading.
    Segment(u32),
}

impl Wanted {
    /// As it is sent.
    pub fn encode(self) -> [u8; ASK_BYTES] {
        let (kind, number) = match self {
            Wanted::Board => (0u32, 0),
            Wanted::Segment(n) => (1, n),
        };
        let mut out = [0; ASK_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&kind.to_le_bytes());
        out[12..].copy_from_slice(&number.to_le_bytes());
        out
    }

    /// The answer of a process in this time namespace (0: the kernel has none).
    pub fn answer(self, time_namespace: u64) -> [u8; ANSWER_BYTES] {
        let mut out = [0; ANSWER_BYTES];
        out[..ASK_BYTES].copy_from_slice(&self.encode());
        out[ASK_BYTES..].copy_from_slice(&time_namespace.to_le_bytes());
        out
    }

    /// What was sent.
    pub fn decode(bytes: &[u8; ASK_BYTES]) -> Result<Wanted, Code> {
        let at = |i: usize| u32::from_le_bytes(bytes[i..i + 4].try_into().expect("4 bytes"));
        match (bytes[..8] == MAGIC, at(8), at(12)) {
            (false, ..) => Err(Code::BadFrame),
            (true, 0, 0) => Ok(Wanted::Board),
            (true, 1, n) => Ok(Wanted::Segment(n)),
            _ => Err(Code::Unexpected),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_is_half_written_is_none() {
        let (old, new) = (
            Head { session: SessionId(7), until: Time(0x00ff_ffff) },
            Head { session: SessionId(7), until: Time(0x0100_0000) },
        );
        let (a, b) = (old.encode(), new.encode());
        assert_eq!((Head::decode(&a), Head::decode(&b)), (Some(old), Some(new)));
        for cut in 1..HEAD_BYTES {
            let torn: Vec<u8> = a[..cut].iter().chain(&b[cut..]).copied().collect();
            let read = Head::decode(torn[..].try_into().expect("24 bytes"));
            assert!(read.is_none_or(|head| head == old || head == new), "cut at {cut}: {read:?}");
        }
        assert_eq!(Head::decode(&[0; HEAD_BYTES]), None, "an empty board says nothing");
    }

    #[test]
    fn what_is_wanted_has_just_these_bytes() {
        assert_eq!(Wanted::Segment(3).encode(), *b"CRNlocl1\x01\0\0\0\x03\0\0\0");
        for wanted in [Wanted::Board, Wanted::Segment(u32::MAX)] {
            assert_eq!(Wanted::decode(&wanted.encode()), Ok(wanted));
        }
        assert_eq!(Wanted::decode(b"CRNlocl1\x02\0\0\0\0\0\0\0"), Err(Code::Unexpected));
        assert_eq!(Wanted::decode(b"CRNlocl2\0\0\0\0\0\0\0\0"), Err(Code::BadFrame));
    }

    #[test]
    fn slots_lie_on_the_board() {
        for handle in [0, 1, SLOTS - 1, SLOTS, u64::MAX] {
            let at = slot_at(slot_of(ChunkHandle(handle)));
            assert!((SLOTS_AT..=BOARD_BYTES - SLOT_BYTES as u64).contains(&at));
        }
    }
}
