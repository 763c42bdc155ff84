//! How many files this process may have open, and how many of them may be connections.

use rustix::process::{Resource, getrlimit};

/// One of so many parts of the files that may be open is for connections: what is beside them needs some, too. A log whose
/// next file cannot be opened has failed.
const CONNS_PART: u64 = 4;

/// How many files this process may have open.
pub fn open_max() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How many connections there may be of as many as are wanted, if so many files may be open and there are so many ports.
pub fn conns_max(wanted: usize, files: u64, ports: u64) -> usize {
    wanted.min((files / CONNS_PART / ports).max(1) as usize)
}
