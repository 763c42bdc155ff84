//! The cores without their shells: a simulated disk, a world of chunk nodes under one seed, a model
//! check, and the JSON-lines node.

pub mod disk;
pub mod jsonl;
pub mod model;
pub mod run;
pub mod world;
