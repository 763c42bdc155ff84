//! How many files may be open is limited, and divided here, so that connections never take what a disk's files need: a write
//! that cannot open its file could not be told from a broken disk.

use common::limits::{CONNS_MAX, LOCAL_CONNS_MAX};
use common_net::files;

/// A segment is open twice: for direct writes, and for reads through the page cache.
const PER_SEGMENT: u64 = 2;

/// Whether an error says that no more may be open.
pub fn are_none_left(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// How many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Files {
    /// Connections of each data port.
    pub conns: usize,
    /// Connections of clients on this machine to each store's socket.
    pub local_conns: usize,
    /// Segments of extents of each store.
    pub segments: u32,
}

impl Files {
    /// As the system lets this process, with so many stores.
    pub fn allowed(stores: usize) -> Files {
        Files::divide(files::open_max(), stores.max(1) as u64)
    }

    /// Half for segments, a quarter for connections, an eighth for those on this machine; the rest is for links to others, logs
    /// and checkpoints.
    fn divide(limit: u64, stores: u64) -> Files {
        Files {
            conns: files::conns_max(CONNS_MAX, limit, stores),
            local_conns: files::conns_max(LOCAL_CONNS_MAX, limit, 2 * stores),
            segments: (limit / 2 / PER_SEGMENT / stores).clamp(1, u32::MAX.into()) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_together_is_no_more_than_may_be() {
        for (limit, stores) in [(1024, 1), (1024, 6), (20_000, 2), (1 << 20, 36), (u64::MAX, 1)] {
            let files = Files::divide(limit, stores);
            let each =
                files.conns as u64 + files.local_conns as u64 + PER_SEGMENT * u64::from(files.segments);
            assert!(each * stores <= limit / 8 * 7 + 7, "{files:?} of {limit} for {stores}");
        }
        assert_eq!(
            Files::divide(1 << 20, 1),
            Files { conns: CONNS_MAX, local_conns: LOCAL_CONNS_MAX, segments: 1 << 18 }
        );
    }
}
