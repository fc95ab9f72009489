//! The map of a large chunk: for each of its 256 blocks the place on the device and the CRC.
//!
//! Encodes and decodes; caching and paging are `leaves`' part.

use crate::crc::crc32c;
use crate::index::Key;
use crate::layout::{ADDRESSES, BLOCK};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Blocks that a leaf maps.
pub(crate) const LEAF_BLOCKS: usize = 256;
/// Set in an address: the block is allocated and reads as zeros.
pub(crate) const UNWRITTEN: u64 = 1 << 63;
const MAGIC: u32 = u32::from_le_bytes(*b"CfLf");

/// One mapped block: address (0 is a hole, [`UNWRITTEN`] may be set) and CRC of its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Slot {
    pub(crate) at: u64,
    pub(crate) crc: u32,
}

impl Slot {
    pub(crate) fn is_hole(self) -> bool {
        self.at == 0
    }

    pub(crate) fn is_unwritten(self) -> bool {
        self.at & UNWRITTEN != 0
    }

    /// Address without the flag.
    pub(crate) fn block(self) -> u64 {
        self.at & !UNWRITTEN
    }

    /// Whether it holds data that must be read.
    pub(crate) fn is_data(self) -> bool {
        self.at != 0 && !self.is_unwritten()
    }
}

/// A resident map.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Leaf {
    at: [u64; LEAF_BLOCKS],
    crc: [u32; LEAF_BLOCKS],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    crc: U32,
    magic: U32,
    tag: U64,
    object: U64,
    index: U32,
    zero: U32,
    seq: U64,
    zero2: [u8; 24],
    at: [U64; LEAF_BLOCKS],
    crcs: [U32; LEAF_BLOCKS],
    tail: [u8; BLOCK - 64 - LEAF_BLOCKS * 12],
}

const _: () = assert!(size_of::<Raw>() == BLOCK && std::mem::offset_of!(Raw, at) == 64);

impl Leaf {
    pub(crate) fn empty() -> Box<Leaf> {
        Box::new(Leaf { at: [0; LEAF_BLOCKS], crc: [0; LEAF_BLOCKS] })
    }

    pub(crate) fn get(&self, block: u32) -> Slot {
        Slot { at: self.at[block as usize], crc: self.crc[block as usize] }
    }

    pub(crate) fn set(&mut self, block: u32, slot: Slot) {
        self.at[block as usize] = slot.at;
        self.crc[block as usize] = slot.crc;
    }

    /// Mapped blocks, in order.
    pub(crate) fn mapped(&self) -> impl Iterator<Item = (u32, Slot)> + '_ {
        (0..LEAF_BLOCKS as u32).map(|b| (b, self.get(b))).filter(|(_, s)| !s.is_hole())
    }

    /// Writes it as a block; `seq` is the last record that it reflects.
    pub(crate) fn encode(&self, key: Key, tag: u64, seq: u64, out: &mut [u8]) {
        let mut raw = Raw::new_zeroed();
        raw.magic = MAGIC.into();
        raw.tag = tag.into();
        raw.object = key.object.into();
        raw.index = key.index.into();
        raw.seq = seq.into();
        raw.at = self.at.map(U64::new);
        raw.crcs = self.crc.map(U32::new);
        raw.crc = crc32c(&raw.as_bytes()[4..]).into();
        out.copy_from_slice(raw.as_bytes());
    }

    /// Reads a block back; any bytes are safe.
    pub(crate) fn decode(block: &[u8], key: Key, tag: u64) -> Result<Box<Leaf>, &'static str> {
        let raw = Raw::ref_from_bytes(block).map_err(|_| "wrong size")?;
        if raw.magic.get() != MAGIC || raw.crc.get() != crc32c(&raw.as_bytes()[4..]) {
            return Err("wrong checksum");
        }
        if raw.tag.get() != tag {
            return Err("of another store");
        }
        if (raw.object.get(), raw.index.get()) != (key.object, key.index) {
            return Err("of another chunk");
        }
        if raw.zero.get() != 0 || raw.zero2 != [0; 24] || raw.tail.iter().any(|&b| b != 0) {
            return Err("reserved bytes are set");
        }
        if raw.at.iter().any(|at| at.get() & !UNWRITTEN >= ADDRESSES) {
            return Err("it maps what no block is");
        }
        Ok(Box::new(Leaf { at: raw.at.map(U64::get), crc: raw.crcs.map(U32::get) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn round_trip_flips_and_misdirection() {
        let key = Key { object: 9, index: 3 };
        let mut leaf = Leaf::empty();
        leaf.set(5, Slot { at: 77, crc: 8 });
        leaf.set(255, Slot { at: 78 | UNWRITTEN, crc: 0 });
        let mut block = vec![0; BLOCK];
        leaf.encode(key, 42, 7, &mut block);
        assert!(*Leaf::decode(&block, key, 42).expect("intact") == *leaf);
        assert!(Leaf::decode(&block, key, 43).is_err());
        assert!(Leaf::decode(&block, Key { object: 9, index: 4 }, 42).is_err());
        for at in 0..BLOCK {
            let mut bad = block.clone();
            bad[at] ^= 1;
            assert!(Leaf::decode(&bad, key, 42).is_err(), "flip at {at}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
            let _ = Leaf::decode(&bytes, Key { object: 0, index: 0 }, 0);
        }
    }
}
