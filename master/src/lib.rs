//! x
pub mod raft;
