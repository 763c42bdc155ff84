//! Operating Cairn: local clusters of real processes. Knows servers as processes only.

pub mod cluster;
