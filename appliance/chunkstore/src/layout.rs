//! Geometry: where the fixed regions lie and how large they are for a capacity.
//!
//! Pure arithmetic. It reads and writes nothing; `docs/chunkstore.md` draws what it computes.

/// Bytes of a block, the unit of every address on the device.
pub const BLOCK: usize = 4096;
/// [`BLOCK`] as an offset.
pub const BLOCK_BYTES: u64 = BLOCK as u64;
/// Smallest device: the fixed regions at their smallest sizes and one zone of each class for each of 16 shards
/// take about 60 MiB; below four times that, a store would be mostly its own bookkeeping.
pub const MIN_DEVICE: u64 = 256 << 20;
/// Block of the second superblock: 8 MiB, found without the first.
pub const SUPER_B: u64 = 2048;
/// Most shards of a device: the flush marks and the root area are sized by it.
pub const MAX_SHARDS: u16 = 256;
/// Blocks of a root slot: header and page table take 5, the rest is room for more pages.
pub(crate) const ROOT_BLOCKS: u64 = 8;
/// Largest chunk: a leaf maps 256 blocks.
pub const MAX_CHUNK: u32 = 1 << 20;

/// No block's address reaches this: byte offsets fit into 63 bits.
pub(crate) const ADDRESSES: u64 = 1 << 51;

const MIB: u64 = 1 << 20;

const _: () = assert!(MAX_CHUNK as usize == crate::leaf::LEAF_BLOCKS * BLOCK);
const _: () = assert!(crate::root::ROOT_BYTES <= ROOT_BLOCKS as usize * BLOCK);

/// A run of blocks with a fixed purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Region {
    /// First block.
    pub start: u64,
    /// Number of blocks.
    pub blocks: u64,
}

impl Region {
    /// First block after it.
    #[must_use]
    pub fn end(self) -> u64 {
        self.start + self.blocks
    }

    fn overlaps(self, other: Region) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

/// Where everything lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of the device in use, a multiple of the block.
    pub capacity: u64,
    /// Shards, fixed at format.
    pub shards: u16,
    /// Blocks of a zone, a power of two.
    pub zone_blocks: u32,
    /// Bytes of a chunk, a power of two.
    pub chunk_size: u32,
    /// Both copies of the root slots: `(shards + 1) * 2` slots each, the last pair for the namespace log.
    pub roots: [Region; 2],
    /// Both copies of the shard log rings.
    pub shard_logs: [Region; 2],
    /// Both copies of the namespace log ring.
    pub ns_log: [Region; 2],
    /// Everything after the fixed regions.
    pub zones: Region,
}

impl Layout {
    /// Lays out a device of `capacity` bytes.
    #[must_use]
    pub fn new(capacity: u64, shards: u16, chunk_size: u32) -> Layout {
        let blocks = capacity / BLOCK_BYTES;
        let zone_blocks = match capacity {
            c if c < 4 << 30 => MIB,
            c if c < 256 << 30 => 4 * MIB,
            c if c < 2 << 40 => 16 * MIB,
            _ => 64 * MIB,
        } / BLOCK_BYTES;
        // A ring holds the records between two checkpoints: larger means fewer checkpoints, longer replay.
        let ring = (capacity / 128 / 16).clamp(MIB / 2, 16 * MIB) & !0xffff;
        let ns_ring = (capacity / 256).clamp(4 * MIB, 256 * MIB) & !0xffff;
        let root_area = (u64::from(shards) + 1) * 2 * ROOT_BLOCKS;
        let mut at = 16;
        let mut place = |blocks: u64| {
            let mut region = Region { start: at, blocks };
            if region.overlaps(Region { start: SUPER_B, blocks: 1 }) {
                region.start = SUPER_B + 1;
            }
            at = region.end();
            region
        };
        let mut copy = || {
            let roots = place(root_area);
            let logs = place(ring / BLOCK_BYTES * u64::from(shards));
            (roots, logs, place(ns_ring / BLOCK_BYTES))
        };
        let (a, b) = (copy(), copy());
        let start = at.max(SUPER_B + 1).next_multiple_of(MIB / BLOCK_BYTES);
        Layout {
            capacity: blocks * BLOCK_BYTES,
            shards,
            zone_blocks: zone_blocks as u32,
            chunk_size,
            roots: [a.0, b.0],
            shard_logs: [a.1, b.1],
            ns_log: [a.2, b.2],
            zones: Region { start, blocks: blocks.saturating_sub(start) },
        }
    }

    /// Number of whole zones.
    #[must_use]
    pub fn zone_count(&self) -> u32 {
        (self.zones.blocks / u64::from(self.zone_blocks)).min(u64::from(u32::MAX)) as u32
    }

    /// Zones kept back from user data: three for each shard and a twentieth, but no more than half. Three eighths are for
    /// checkpoints and as many for deletions, in each a zone for every shard; the rest is for the namespace volume.
    #[must_use]
    pub fn reserve_zones(&self) -> u32 {
        (3 * u32::from(self.shards) + self.zone_count() / 20).min(self.zone_count() / 2)
    }

    /// First block of a zone.
    #[must_use]
    pub fn zone_start(&self, zone: u32) -> u64 {
        self.zones.start + u64::from(zone) * u64::from(self.zone_blocks)
    }

    /// The zone that holds a block, where it lies in the zones at all.
    #[must_use]
    pub fn zone_of(&self, block: u64) -> Option<u32> {
        let zone = block.checked_sub(self.zones.start)? / u64::from(self.zone_blocks);
        (zone < u64::from(self.zone_count())).then_some(zone as u32)
    }

    /// Both copies of a shard's log ring.
    #[must_use]
    pub fn shard_log(&self, shard: u16) -> [Region; 2] {
        self.shard_logs.map(|all| {
            let blocks = all.blocks / u64::from(self.shards);
            Region { start: all.start + blocks * u64::from(shard), blocks }
        })
    }

    /// Both copies of a root slot; `owner` is a shard or, for the namespace log, the number of shards.
    #[must_use]
    pub fn root_slot(&self, owner: u16, slot: usize) -> [u64; 2] {
        self.roots.map(|all| all.start + (u64::from(owner) * 2 + slot as u64) * ROOT_BLOCKS)
    }

    /// Says what is wrong with a layout read from a device.
    pub(crate) fn validate(&self) -> Result<(), &'static str> {
        if self.shards == 0 || self.shards > MAX_SHARDS {
            return Err("number of shards out of range");
        }
        if !self.zone_blocks.is_power_of_two() || !(64..=16384).contains(&self.zone_blocks) {
            return Err("zone size out of range");
        }
        if !self.chunk_size.is_power_of_two() || !(BLOCK as u32..=MAX_CHUNK).contains(&self.chunk_size) {
            return Err("chunk size out of range");
        }
        let blocks = self.capacity / BLOCK_BYTES;
        let supers = [Region { start: 0, blocks: 1 }, Region { start: SUPER_B, blocks: 1 }];
        let fixed = [self.roots, self.shard_logs, self.ns_log].concat();
        let all = [&supers[..], &fixed, &[self.zones]].concat();
        for (i, region) in all.iter().enumerate() {
            if region.start.checked_add(region.blocks).is_none_or(|end| end > blocks) {
                return Err("a region ends beyond the device");
            }
            if all[..i].iter().any(|other| region.overlaps(*other)) {
                return Err("two regions overlap");
            }
        }
        let root_area = (u64::from(self.shards) + 1) * 2 * ROOT_BLOCKS;
        if self.roots.iter().any(|r| r.blocks != root_area) {
            return Err("the root area has another size than its slots");
        }
        let ring = self.shard_logs[0].blocks / u64::from(self.shards);
        if ring < 64 || self.shard_logs[1].blocks / u64::from(self.shards) != ring {
            return Err("the shard log rings are too small or differ");
        }
        if self.ns_log[0].blocks < 512 || self.ns_log[0].blocks != self.ns_log[1].blocks {
            return Err("the namespace log rings are too small or differ");
        }
        if self.zone_count() <= u32::from(self.shards) + self.zone_count() / 20 {
            return Err("too few zones");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capacity_has_a_valid_layout() {
        for shift in 28..46 {
            for odd in [0, 12345 * 4096] {
                for shards in [1, 2, 16, 64] {
                    let layout = Layout::new((1 << shift) + odd, shards, MAX_CHUNK);
                    assert_eq!(layout.validate(), Ok(()), "{layout:?}");
                    let fixed = layout.zones.start * BLOCK_BYTES;
                    assert!(fixed * 3 < layout.capacity, "fixed regions take {fixed} bytes: {layout:?}");
                }
            }
        }
    }

    #[test]
    fn copies_are_far_apart() {
        let layout = Layout::new(8 << 30, 16, MAX_CHUNK);
        for pair in [layout.roots, layout.shard_logs, layout.ns_log] {
            assert!(pair[0].end() <= pair[1].start);
            assert!((pair[1].start - pair[0].start) * BLOCK_BYTES > 8 * MIB);
        }
        assert_eq!(layout.zone_of(layout.zone_start(3) + 5), Some(3));
        assert_eq!(layout.zone_of(0), None);
    }
}
