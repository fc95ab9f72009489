//! Groups of log records: the unit that is written, acknowledged and replayed.
//!
//! Encodes, decodes and checks one group; `ring` places groups, `log` writes them.

use crate::crc::crc32c;
use crate::layout::BLOCK;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: u32 = u32::from_le_bytes(*b"CfLg");
/// Bytes of the header.
pub(crate) const HEADER: usize = 64;
/// Bytes before each record.
pub(crate) const FRAME: usize = 4;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    crc: U32,
    magic: U32,
    tag: U64,
    first: U64,
    incarnation: U64,
    flushed: U64,
    root: U64,
    count: U32,
    length: U32,
    prev: U32,
    owner: U16,
    zero: U16,
}

const _: () = assert!(size_of::<Raw>() == HEADER);

/// Whose log this is; in every group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Of the device.
    pub(crate) tag: u64,
    /// Shard, or the number of shards for the namespace log.
    pub(crate) owner: u16,
}

/// Header of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Sequence of the first record.
    pub(crate) first: u64,
    /// Number of records, at least one.
    pub(crate) count: u32,
    /// CRC of the group before it.
    pub(crate) prev: u32,
    pub(crate) incarnation: u64,
    /// Last record known to be flushed when this was written.
    pub(crate) flushed: u64,
    /// Generation of the checkpoint that was durable when this was written.
    pub(crate) root: u64,
}

impl Header {
    /// Sequence of the last record.
    pub(crate) fn last(&self) -> u64 {
        self.first + u64::from(self.count) - 1
    }
}

/// Blocks of a group with `payload` bytes of framed records.
pub(crate) fn blocks_for(payload: usize) -> u64 {
    (HEADER + payload).div_ceil(BLOCK) as u64
}

/// Writes a group into whole, zeroed blocks; gives its CRC.
pub(crate) fn encode<'a>(
    owner: Owner,
    header: &Header,
    records: impl Iterator<Item = &'a [u8]>,
    out: &mut [u8],
) -> u32 {
    let mut at = HEADER;
    for record in records {
        out[at..at + FRAME].copy_from_slice(&(record.len() as u32).to_le_bytes());
        out[at + FRAME..at + FRAME + record.len()].copy_from_slice(record);
        at += FRAME + record.len();
    }
    let raw = Raw {
        crc: 0.into(),
        magic: MAGIC.into(),
        tag: owner.tag.into(),
        first: header.first.into(),
        incarnation: header.incarnation.into(),
        flushed: header.flushed.into(),
        root: header.root.into(),
        count: header.count.into(),
        length: ((at - HEADER) as u32).into(),
        prev: header.prev.into(),
        owner: owner.owner.into(),
        zero: 0.into(),
    };
    out[..HEADER].copy_from_slice(raw.as_bytes());
    let crc = crc32c(&out[4..at]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// A group that passed its own checks.
pub(crate) struct Group<'a> {
    pub(crate) header: Header,
    pub(crate) crc: u32,
    pub(crate) blocks: u64,
    payload: &'a [u8],
}

impl<'a> Group<'a> {
    /// The records; the framing was checked.
    pub(crate) fn records(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut rest = self.payload;
        std::iter::from_fn(move || {
            let (length, tail) = rest.split_first_chunk::<FRAME>()?;
            let (record, tail) = tail.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            rest = tail;
            Some(record)
        })
    }
}

/// Reads a group at the start of `bytes`; any bytes are safe. `None`: there is no intact group of this log.
pub(crate) fn decode(owner: Owner, bytes: &[u8]) -> Option<Group<'_>> {
    let (raw, rest) = Raw::ref_from_prefix(bytes).ok()?;
    let length = raw.length.get() as usize;
    if raw.magic.get() != MAGIC || raw.tag.get() != owner.tag || raw.owner.get() != owner.owner {
        return None;
    }
    let payload = rest.get(..length)?;
    if raw.crc.get() != crc32c(&bytes[4..HEADER + length]) || raw.zero.get() != 0 {
        return None;
    }
    let header = Header {
        first: raw.first.get(),
        count: raw.count.get(),
        prev: raw.prev.get(),
        incarnation: raw.incarnation.get(),
        flushed: raw.flushed.get(),
        root: raw.root.get(),
    };
    header.first.checked_add(u64::from(header.count))?;
    let group = Group { header, crc: raw.crc.get(), blocks: blocks_for(length), payload };
    let framed: usize = group.records().map(|r| r.len() + FRAME).sum();
    let whole = header.count > 0 && group.records().count() == header.count as usize && framed == length;
    whole.then_some(group)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OWNER: Owner = Owner { tag: 77, owner: 3 };

    fn header(count: u32) -> Header {
        Header { first: 10, count, prev: 5, incarnation: 2, flushed: 8, root: 1 }
    }

    proptest! {
        #[test]
        fn round_trip_and_flips(
            records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 1..6),
            flip: prop::sample::Index,
        ) {
            let payload: usize = records.iter().map(|r| r.len() + FRAME).sum();
            let mut out = vec![0; blocks_for(payload) as usize * BLOCK];
            let crc = encode(OWNER, &header(records.len() as u32), records.iter().map(Vec::as_slice), &mut out);
            let group = decode(OWNER, &out).expect("intact");
            prop_assert_eq!(group.header, header(records.len() as u32));
            prop_assert_eq!((group.crc, group.blocks), (crc, blocks_for(payload)));
            prop_assert!(group.records().eq(records.iter().map(Vec::as_slice)));
            let other = Owner { tag: 78, owner: 3 };
            prop_assert!(decode(other, &out).is_none());
            out[flip.index(HEADER + payload)] ^= 4;
            prop_assert!(decode(OWNER, &out).is_none());
        }

        #[test]
        fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), fix: bool) {
            let mut bytes = bytes;
            if fix && bytes.len() >= HEADER {
                bytes[4..8].copy_from_slice(&MAGIC.to_le_bytes());
                bytes[8..16].copy_from_slice(&77u64.to_le_bytes());
                let length = (bytes.len() - HEADER) as u32;
                bytes[52..56].copy_from_slice(&length.to_le_bytes());
                bytes[60..64].copy_from_slice(&[3, 0, 0, 0]);
                let crc = crc32c(&bytes[4..]);
                bytes[..4].copy_from_slice(&crc.to_le_bytes());
            }
            let _ = decode(OWNER, &bytes);
        }
    }
}
