//! Reading committed bytes: from segments or from memory, every slice verified.

use super::index::{Extent, Home};
use bytes::Bytes;
use common::Code;
use common::checksum::crc32c;
use common::limits::BLOCK_BYTES;
use common::wire::Piece;

const BLOCK: u32 = BLOCK_BYTES as u32;

/// Bytes with their checksums, as they go to whoever asked.
pub type ReadResult = Result<(Vec<Piece>, Vec<Bytes>), Code>;

/// What was read as one piece. Its checksums are the stored ones where it lies together.
pub fn one_piece((mut pieces, mut data): (Vec<Piece>, Vec<Bytes>)) -> (Piece, Bytes) {
    match (pieces.pop(), data.pop()) {
        (Some(piece), Some(data)) if pieces.is_empty() => (piece, data),
        (_, last) => {
            data.extend(last);
            let whole: Bytes = data.concat().into();
            (Piece::of(&whole), whole)
        }
    }
}

/// One part of a range.
#[derive(Clone, Debug)]
pub enum Part {
    /// A gap: zeros.
    Zeros(u32),
    /// An extent; the data arrives if it is on disk.
    Extent(Extent, Option<Bytes>),
}

/// A read that waits for the disk.
#[derive(Clone, Debug)]
pub struct ReadJob {
    /// The parts, by offset.
    pub parts: Vec<Part>,
    /// Disk operations that are not done.
    pub pending: usize,
    /// What went wrong.
    pub failed: Option<Code>,
}

/// The parts of a range that these extents make, gaps among them.
pub fn parts_of(extents: Vec<Extent>, from: u32, to: u32) -> Vec<Part> {
    let mut parts = vec![];
    let mut at = from;
    for e in extents {
        if e.offset > at {
            parts.push(Part::Zeros(e.offset - at));
        }
        at = e.offset + e.len;
        parts.push(Part::Extent(e, None));
    }
    if at < to {
        parts.push(Part::Zeros(to - at));
    }
    parts
}

/// Bytes of a run, from its first block on, that must be read for an extent.
pub fn blocks_of(extent: &Extent) -> u32 {
    (extent.skip + extent.len).div_ceil(BLOCK)
}

impl ReadJob {
    /// All parts are here: verifies them. `crc` gives the checksum of a block.
    pub fn finish(self, mut crc: impl FnMut(u32, u32) -> u32) -> ReadResult {
        if let Some(code) = self.failed {
            return Err(code);
        }
        let mut read = Gathered::default();
        for part in self.parts {
            let (piece, bytes) = match part {
                Part::Zeros(len) => {
                    let zeros = Bytes::from(vec![0; len as usize]);
                    (Piece::of(&zeros), zeros)
                }
                Part::Extent(extent, on_disk) => {
                    let (run, crcs) = run_of(&extent, on_disk, &mut crc);
                    cut(&extent, run, &crcs)?
                }
            };
            read.add(piece, bytes);
        }
        read.flush();
        Ok((read.pieces, read.data))
    }
}

/// Verified pieces, in order. Neighbours that are smaller than a block become one piece with
/// checksums of its own: records can be a byte each, and an answer must fit its frame.
#[derive(Default)]
struct Gathered {
    pieces: Vec<Piece>,
    data: Vec<Bytes>,
    small: Vec<(Piece, Bytes)>,
}

impl Gathered {
    fn add(&mut self, piece: Piece, bytes: Bytes) {
        if bytes.len() < BLOCK_BYTES {
            return self.small.push((piece, bytes));
        }
        self.flush();
        self.pieces.push(piece);
        self.data.push(bytes);
    }

    fn flush(&mut self) {
        let small = std::mem::take(&mut self.small);
        if small.len() < 2 {
            let (pieces, data): (Vec<_>, Vec<_>) = small.into_iter().unzip();
            self.pieces.extend(pieces);
            self.data.extend(data);
            return;
        }
        let bytes: Vec<u8> = small.iter().flat_map(|(_, bytes)| bytes).copied().collect();
        self.pieces.push(Piece::of(&bytes));
        self.data.push(bytes.into());
    }
}

/// The needed bytes of an extent's run, and the checksums of their slices.
fn run_of(
    extent: &Extent,
    on_disk: Option<Bytes>,
    crc: &mut impl FnMut(u32, u32) -> u32,
) -> (Bytes, Vec<u32>) {
    match &extent.home {
        Home::Memory(inline) => (inline.data.clone(), inline.crcs.clone()),
        Home::Disk { segment, block } => {
            let data = on_disk.expect("every part was read");
            let blocks = blocks_of(extent);
            let whole = data.slice(..data.len().min(extent.run as usize).min((blocks * BLOCK) as usize));
            (whole, (0..blocks).map(|i| crc(*segment, block + i)).collect())
        }
    }
}

/// Verifies the slices that an extent touches and cuts its bytes out of the run.
fn cut(extent: &Extent, run: Bytes, crcs: &[u32]) -> Result<(Piece, Bytes), Code> {
    let (from, to) = (extent.skip as usize, (extent.skip + extent.len) as usize);
    let (first, last) = (from / BLOCK_BYTES, to.div_ceil(BLOCK_BYTES));
    if run.len() < to || crcs.len() < last {
        return Err(Code::Corrupt);
    }
    for slice in first..last {
        let bytes = &run[slice * BLOCK_BYTES..((slice + 1) * BLOCK_BYTES).min(run.len())];
        if crc32c(bytes) != crcs[slice] {
            return Err(Code::Corrupt);
        }
    }
    let bytes = run.slice(from..to);
    let aligned = from.is_multiple_of(BLOCK_BYTES) && (to.is_multiple_of(BLOCK_BYTES) || to == run.len());
    let piece = match aligned {
        // The stored checksums travel on as they are.
        true => Piece { len: extent.len, crcs: crcs[first..last].to_vec() },
        false => Piece::of(&bytes),
    };
    Ok((piece, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A read of many records of a byte each fits its frame, and is what was written.
    #[test]
    fn small_neighbours_travel_as_one() {
        let mut read = Gathered::default();
        let mut wanted = vec![];
        for n in 0..300_000u32 {
            let len = if n % 100_000 == 99_999 { BLOCK_BYTES } else { 1 };
            let bytes = Bytes::from(vec![n as u8; len]);
            wanted.extend_from_slice(&bytes);
            read.add(Piece::of(&bytes), bytes);
        }
        read.flush();
        assert_eq!(read.pieces.len(), 6);
        assert_eq!(read.data.concat(), wanted);
        let mut at = 0;
        for piece in &read.pieces {
            let end = at + piece.len as usize;
            piece.verify(&wanted[at..end]).expect("its checksums are its own");
            at = end;
        }
    }
}
