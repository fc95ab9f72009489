//! CRC-32C (Castagnoli, RFC 3720 appendix B.4), the one checksum of the wire and of the disk.

use crc_fast::{CrcAlgorithm, Digest};

/// CRC-32C of `bytes`; of `b"123456789"` it is `0xE3069283`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    // The algorithm is 32 bits wide: the upper half of the result is zero.
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// CRC-32C of the concatenation of `parts`.
#[must_use]
pub fn crc32c_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_value_and_parts() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c_parts([&b"1234"[..], b"", b"56789"]), 0xE306_9283);
    }
}
