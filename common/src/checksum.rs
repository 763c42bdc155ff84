//! CRC-32C (Castagnoli), for blocks, frames and records alike.

use crate::limits::BLOCK_BYTES;

/// CRC-32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// CRC-32C of each 4 KiB slice of `bytes`; the last slice may be shorter.
pub fn slice_crcs(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(BLOCK_BYTES).map(crc32c).collect()
}

/// Where the first slice lies that does not match its checksum, if any.
/// A wrong number of checksums counts as a mismatch at the first missing or surplus slice.
pub fn first_mismatch(bytes: &[u8], crcs: &[u32]) -> Option<usize> {
    let slices = bytes.len().div_ceil(BLOCK_BYTES);
    if slices != crcs.len() {
        return Some(slices.min(crcs.len()));
    }
    bytes.chunks(BLOCK_BYTES).zip(crcs).position(|(slice, crc)| crc32c(slice) != *crc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_polynomial_is_castagnoli() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_flipped_bit_is_found_where_it_is() {
        let mut bytes = vec![7u8; 3 * BLOCK_BYTES + 5];
        let crcs = slice_crcs(&bytes);
        assert_eq!(crcs.len(), 4);
        assert_eq!(first_mismatch(&bytes, &crcs), None);
        bytes[3 * BLOCK_BYTES + 4] ^= 1;
        assert_eq!(first_mismatch(&bytes, &crcs), Some(3));
        assert_eq!(first_mismatch(&bytes, &crcs[..2]), Some(2));
    }
}
