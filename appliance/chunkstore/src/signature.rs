//! Recognises what else may live on a device, so that `format` destroys nothing by accident.
//!
//! Looks at the first bytes only; it does no I/O.

/// Bytes from the start of the device that [`detect`] looks at.
pub(crate) const PROBE: usize = 128 << 10;

/// `(what, offset, bytes)`, from each format's own specification.
const SIGNATURES: &[(&str, usize, &[u8])] = &[
    ("an ext2/3/4 file system", 1080, &[0x53, 0xef]),
    ("an XFS file system", 0, b"XFSB"),
    ("a Btrfs file system", 65600, b"_BHRfS_M"),
    ("an F2FS file system", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    ("an NTFS file system", 3, b"NTFS    "),
    ("a LUKS volume", 0, b"LUKS\xba\xbe"),
    ("a ZFS pool member", 16384, b"\x0c\xb1\xba\x00\x00\x00\x00\x00"),
    ("a bcachefs member", 4120, &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca]),
    ("a Linux RAID member", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("a GPT partition table", 512, b"EFI PART"),
    ("a GPT partition table (4 KiB sectors)", 4096, b"EFI PART"),
    ("Linux swap space", 4086, b"SWAPSPACE2"),
    ("Linux swap space", 4086, b"SWAP-SPACE"),
    ("an LVM physical volume", 0, b"LABELONE"),
    ("an LVM physical volume", 512, b"LABELONE"),
    ("an LVM physical volume", 1024, b"LABELONE"),
    ("an LVM physical volume", 1536, b"LABELONE"),
    ("a ClaudeFS device", 8, &crate::superblock::MAGIC),
    // Last: boot sectors of several file systems end in it, too.
    ("an MBR partition table or boot sector", 510, &[0x55, 0xaa]),
];

/// Names what the first [`PROBE`] bytes belong to.
pub(crate) fn detect(head: &[u8]) -> Option<&'static str> {
    let found = SIGNATURES
        .iter()
        .find(|(_, at, bytes)| head.get(*at..*at + bytes.len()).is_some_and(|h| h == *bytes));
    found.map(|(what, ..)| *what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signature_is_found_and_nothing_in_zeros() {
        assert_eq!(detect(&vec![0; PROBE]), None);
        assert_eq!(detect(&[]), None);
        for (what, at, bytes) in SIGNATURES {
            let mut head = vec![0; PROBE];
            head[*at..at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(detect(&head), Some(*what));
        }
    }
}
