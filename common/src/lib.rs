//! The vocabulary of Cairn: ids, units, limits, refusal codes, checksums and the wire.
//!
//! Pure: nothing here can touch a socket, a file, a clock or a thread.

pub mod checksum;
pub mod code;
pub mod id;
pub mod limits;
pub mod lock;
pub mod mutant;
pub mod time;
pub mod wire;

pub use code::{Code, Refusal};
pub use id::*;
pub use lock::{LockRange, LockRanges, Lockable};
pub use mutant::Mutant;
pub use time::{Span, Time};
