//! Operating Cairn: local clusters of real processes, and drills on them. Knows servers as
//! processes only.

pub mod cluster;
pub mod drill;
pub mod linear;
pub mod net;
