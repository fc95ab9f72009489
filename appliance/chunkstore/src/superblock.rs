//! The superblock: what the device is and where its regions lie, kept in two copies.
//!
//! Encodes, decodes, and chooses between the copies. It does no I/O.

use crate::crc::crc32c;
use crate::layout::{BLOCK, BLOCK_BYTES, Layout, Region};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes after the checksum and the version.
pub(crate) const MAGIC: [u8; 8] = *b"ClaudeFS";
/// Version of the format that this build writes. See the version history in `docs/chunkstore.md`.
pub const FORMAT_VERSION: u32 = 1;
const REGIONS: usize = 7;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawRegion {
    start: U64,
    blocks: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone)]
#[repr(C)]
struct Raw {
    crc: U32,
    version: U32,
    magic: [u8; 8],
    uuid: [u8; 16],
    capacity: U64,
    generation: U64,
    incarnation: U64,
    zone_blocks: U32,
    chunk_size: U32,
    shards: U16,
    clean: u8,
    zero: [u8; 5],
    regions: [RawRegion; REGIONS],
    tail: [u8; BLOCK - 184],
}

const _: () = assert!(size_of::<Raw>() == BLOCK);
const _: () = assert!(std::mem::offset_of!(Raw, regions) == 72);

/// Why a block is no superblock of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Another magic: the block was never ours.
    #[error("no ClaudeFS magic")]
    Foreign,
    /// Ours, with a wrong checksum.
    #[error("wrong checksum")]
    Checksum,
    /// Ours, written by a later release.
    #[error("format version {0}, this release reads up to {FORMAT_VERSION}")]
    Newer(u32),
    /// The checksum is right and a value is not.
    #[error("{0}")]
    Value(&'static str),
}

/// A decoded superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Version of the format found.
    pub version: u32,
    /// Identity of the device.
    pub uuid: [u8; 16],
    /// Counts changes of the superblock; the higher copy is the current one.
    pub generation: u64,
    /// Counts openings for writing.
    pub incarnation: u64,
    /// Set by a clean stop, cleared when opened.
    pub clean: bool,
    /// Geometry.
    pub layout: Layout,
}

impl Superblock {
    /// The block's bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let l = &self.layout;
        let mut raw = Raw::new_zeroed();
        raw.version = FORMAT_VERSION.into();
        raw.magic = MAGIC;
        raw.uuid = self.uuid;
        raw.capacity = l.capacity.into();
        raw.generation = self.generation.into();
        raw.incarnation = self.incarnation.into();
        raw.zone_blocks = l.zone_blocks.into();
        raw.chunk_size = l.chunk_size.into();
        raw.shards = l.shards.into();
        raw.clean = u8::from(self.clean);
        let regions =
            [l.roots[0], l.shard_logs[0], l.ns_log[0], l.roots[1], l.shard_logs[1], l.ns_log[1], l.zones];
        raw.regions = regions.map(|r| RawRegion { start: r.start.into(), blocks: r.blocks.into() });
        raw.crc = crc32c(&raw.as_bytes()[4..]).into();
        raw.as_bytes().to_vec()
    }

    /// Reads a block; any bytes are safe.
    pub fn decode(block: &[u8]) -> Result<Superblock, Invalid> {
        let Ok((raw, _)) = Raw::ref_from_prefix(block) else { return Err(Invalid::Value("too short")) };
        if raw.magic != MAGIC {
            return Err(Invalid::Foreign);
        }
        if raw.crc.get() != crc32c(&raw.as_bytes()[4..]) {
            return Err(Invalid::Checksum);
        }
        match raw.version.get() {
            FORMAT_VERSION => {}
            0 => return Err(Invalid::Value("format version 0")),
            // An older version is converted here, field by field, once there is one.
            newer => return Err(Invalid::Newer(newer)),
        }
        if raw.zero != [0; 5] || raw.tail.iter().any(|&b| b != 0) || raw.clean > 1 {
            return Err(Invalid::Value("reserved bytes are set"));
        }
        if !raw.capacity.get().is_multiple_of(BLOCK_BYTES) {
            return Err(Invalid::Value("capacity is not whole blocks"));
        }
        let r = raw.regions.map(|r| Region { start: r.start.get(), blocks: r.blocks.get() });
        let layout = Layout {
            capacity: raw.capacity.get(),
            shards: raw.shards.get(),
            zone_blocks: raw.zone_blocks.get(),
            chunk_size: raw.chunk_size.get(),
            roots: [r[0], r[3]],
            shard_logs: [r[1], r[4]],
            ns_log: [r[2], r[5]],
            zones: r[6],
        };
        layout.validate().map_err(Invalid::Value)?;
        Ok(Superblock {
            version: raw.version.get(),
            uuid: raw.uuid,
            generation: raw.generation.get(),
            incarnation: raw.incarnation.get(),
            clean: raw.clean == 1,
            layout,
        })
    }

    /// First half of the uuid: stands in every structure, so that none of a former store is taken for ours.
    pub(crate) fn tag(&self) -> u64 {
        let mut half = [0; 8];
        half.copy_from_slice(&self.uuid[..8]);
        u64::from_le_bytes(half)
    }
}

/// What the two copies say together.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) superblock: Superblock,
    /// The copy (0 or 1) that was damaged, or older after a cut between the two writes.
    pub(crate) rewrite: Option<usize>,
    /// That copy was damaged.
    pub(crate) damaged: bool,
}

/// Chooses the newer of two copies.
pub(crate) fn choose(copies: [Result<Superblock, Invalid>; 2]) -> Result<Chosen, [Invalid; 2]> {
    match copies {
        [Ok(a), Ok(b)] => {
            // Equal generations with different contents can't come from our writes; the first wins.
            let (superblock, rewrite) = match a.generation.cmp(&b.generation) {
                std::cmp::Ordering::Less => (b, Some(0)),
                std::cmp::Ordering::Equal => (a, None),
                std::cmp::Ordering::Greater => (a, Some(1)),
            };
            Ok(Chosen { superblock, rewrite, damaged: false })
        }
        // A later release may have rewritten one copy only: not ours to repair.
        [Err(Invalid::Newer(v)), other] | [other, Err(Invalid::Newer(v))] => {
            Err([Invalid::Newer(v), other.err().unwrap_or(Invalid::Newer(v))])
        }
        [Ok(superblock), Err(_)] => Ok(Chosen { superblock, rewrite: Some(1), damaged: true }),
        [Err(_), Ok(superblock)] => Ok(Chosen { superblock, rewrite: Some(0), damaged: true }),
        [Err(a), Err(b)] => Err([a, b]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::MAX_CHUNK;
    use proptest::prelude::*;

    fn sample(generation: u64) -> Superblock {
        Superblock {
            version: 1,
            uuid: *b"0123456789abcdef",
            generation,
            incarnation: 7,
            clean: true,
            layout: Layout::new(1 << 30, 16, MAX_CHUNK),
        }
    }

    #[test]
    fn round_trip_and_every_flip_is_seen() {
        let bytes = sample(1).encode();
        assert_eq!(Superblock::decode(&bytes), Ok(sample(1)));
        for at in 0..BLOCK {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(Superblock::decode(&bad).is_err(), "flip at {at}");
        }
    }

    #[test]
    fn newer_is_refused_even_beside_an_older_copy() {
        let mut bytes = sample(1).encode();
        bytes[4] = 2;
        let crc = crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Superblock::decode(&bytes), Err(Invalid::Newer(2)));
        let chosen = choose([Ok(sample(1)), Superblock::decode(&bytes)]);
        assert_eq!(chosen.expect_err("refused")[0], Invalid::Newer(2));
    }

    #[test]
    fn the_newer_or_the_intact_copy_wins() {
        let chosen = choose([Ok(sample(3)), Ok(sample(4))]).expect("both are good");
        assert_eq!((chosen.superblock.generation, chosen.rewrite, chosen.damaged), (4, Some(0), false));
        let chosen = choose([Ok(sample(3)), Err(Invalid::Checksum)]).expect("one is good");
        assert_eq!((chosen.superblock.generation, chosen.rewrite, chosen.damaged), (3, Some(1), true));
        choose([Err(Invalid::Checksum), Err(Invalid::Foreign)]).expect_err("both are bad");
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..5000), fix: bool) {
            let mut bytes = bytes;
            if fix && bytes.len() >= BLOCK {
                bytes[8..16].copy_from_slice(&MAGIC);
                let crc = crc32c(&bytes[4..BLOCK]);
                bytes[..4].copy_from_slice(&crc.to_le_bytes());
            }
            let _ = Superblock::decode(&bytes);
        }
    }
}
