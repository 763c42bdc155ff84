//! Segments of the Raft log: files of zeros that are written over, group by group; what groups hold, as bytes and back.

use super::direct::BLOCK;
use super::mirror::Mirror;
use super::{LogId, RaftEntry, from_bytes, prefix_from_bytes};
use common::checksum::crc32c;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes of a segment.
pub(super) const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// First bytes of a group. The second version: commands may name owners, links and inodes.
pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"CRL2");
/// First bytes of a group of the first version, which this build does not read.
pub(super) const MAGIC_V1: u32 = u32::from_le_bytes(*b"CRNR");
pub(super) const HEADER_BYTES: usize = 32;

/// A record, by its tag.
pub(super) const VOTE: u8 = 1;
pub(super) const ENTRY: u8 = 2;
pub(super) const TRUNCATE: u8 = 3;
pub(super) const PURGE: u8 = 4;
pub(super) const COMMITTED: u8 = 5;

/// Where a segment is.
pub(super) fn path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("{sequence:012}.log"))
}

/// The entries of a segment, with their lengths in bytes. If it is written over meanwhile, those before that.
pub(super) fn entries(dir: &Path, sequence: u64) -> io::Result<BTreeMap<u64, (RaftEntry, usize)>> {
    let mut mirror = Mirror::default();
    replay(&std::fs::read(path(dir, sequence))?, sequence, 0, What::Entries, &mut mirror)
        .map_err(io::Error::other)?;
    Ok(mirror.into_entries())
}

/// What is wanted of a segment's entries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// All of them.
    Entries,
    /// Which they are: most of a long log is only counted when it is opened.
    Places,
}

/// Applies the groups of a segment; gives the next group's number and where it goes.
pub(super) fn replay(
    bytes: &[u8],
    sequence: u64,
    mut group: u64,
    what: What,
    mirror: &mut Mirror,
) -> anyhow::Result<(u64, u64)> {
    let mut at = 0;
    let mut first = true;
    while let Some(header) = bytes.get(at..at + HEADER_BYTES) {
        let u32_at = |i: usize| u32::from_le_bytes(header[i..i + 4].try_into().expect("4 bytes"));
        let u64_at = |i: usize| u64::from_le_bytes(header[i..i + 8].try_into().expect("8 bytes"));
        let good = u32_at(0) == MAGIC && u32_at(28) == crc32c(&header[..28]) && u64_at(4) == sequence;
        let expected = u64_at(12) == group || (first && group == 0);
        let len = u32_at(20) as usize;
        let Some(body) = bytes.get(at + HEADER_BYTES..at + HEADER_BYTES + len) else {
            break;
        };
        if !good || !expected || crc32c(body) != u32_at(24) {
            if follows(&bytes[at..], sequence, group) {
                anyhow::bail!(
                    "group {group} of the Raft log is damaged, and later ones follow: it was durable; remove this master and add an empty one"
                );
            }
            break;
        }
        first = false;
        group = u64_at(12) + 1;
        apply_records(body, what, mirror)
            .ok_or_else(|| anyhow::anyhow!("a record of the Raft log cannot be decoded"))?;
        at += (HEADER_BYTES + len).next_multiple_of(BLOCK);
    }
    Ok((group, at as u64))
}

/// Whether a group that was written after the one expected here lies further on in the segment.
fn follows(bytes: &[u8], sequence: u64, group: u64) -> bool {
    bytes.chunks_exact(BLOCK).skip(1).any(|block| {
        let header = &block[..HEADER_BYTES];
        let u64_at = |i: usize| u64::from_le_bytes(header[i..i + 8].try_into().expect("8 bytes"));
        header[..4] == MAGIC.to_le_bytes()
            && header[28..32] == crc32c(&header[..28]).to_le_bytes()
            && u64_at(4) == sequence
            && u64_at(12) > group
    })
}

fn apply_records(mut body: &[u8], what: What, mirror: &mut Mirror) -> Option<()> {
    while !body.is_empty() {
        let (tag, rest) = body.split_first()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let len = u32::from_le_bytes(*len) as usize;
        let record = rest.get(..len)?;
        body = &rest[len..];
        match *tag {
            VOTE => mirror.vote = Some(from_bytes(record)?),
            COMMITTED => mirror.committed = from_bytes(record)?,
            ENTRY => {
                let LogId { index, .. } = prefix_from_bytes(record)?;
                mirror.holds(index..=index);
                if what == What::Entries {
                    mirror.insert(from_bytes(record)?, len);
                }
            }
            TRUNCATE => {
                let first: u64 = from_bytes(record)?;
                mirror.truncate(first);
                mirror.holds_none_from(first);
            }
            PURGE => mirror.purge(from_bytes(record)?),
            _ => return None,
        }
    }
    Some(())
}

pub(super) fn open_segment(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).custom_flags(libc::O_DIRECT | libc::O_DSYNC).open(path)
}

pub(super) fn push_record(body: &mut Vec<u8>, tag: u8, record: &[u8]) {
    body.push(tag);
    body.extend_from_slice(&(record.len() as u32).to_le_bytes());
    body.extend_from_slice(record);
}
