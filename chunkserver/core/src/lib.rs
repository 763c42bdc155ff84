//! The chunk node: chain, primary, secondary, takeover, store - pure.
//!
//! `Node::step` is the only door: an input and the time go in, outputs come out, and what must
//! come after durability is said only after the disk said so. `deadline` names the next wake.

mod checkpoint;
mod chunks;
mod cuts;
mod floors;
mod fork;
mod gather;
mod held;
pub mod io;
mod learner;
mod local;
mod node;
mod pace;
mod primary;
mod reads;
mod scrub;
mod secondary;
mod slow;
pub mod state;
pub mod store;
mod takeover;
mod teacher;
mod timers;

pub use node::{ChunkView, Node, Stats};
