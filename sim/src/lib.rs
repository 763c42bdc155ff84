//! The cores without their shells.

pub mod jsonl;
