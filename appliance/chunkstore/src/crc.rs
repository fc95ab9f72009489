//! CRC-32C of blocks and structures (CRC-32/ISCSI, reflected, as in iSCSI and NVMe).
//!
//! Owns the choice of implementation; nothing else in the crate calls the checksum library.

/// CRC-32C of `bytes`.
#[inline]
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// The code path that the processor allows, for `status` and reports.
#[must_use]
pub fn crc_target() -> String {
    crc_fast::get_calculator_target(crc_fast::CrcAlgorithm::Crc32Iscsi)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_vectors() {
        // RFC 3720 appendix B.4
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn hardware_is_used() {
        if cfg!(target_arch = "x86_64") {
            let target = crc_target();
            assert!(!target.contains("software"), "CRC runs on {target}");
        }
    }
}
