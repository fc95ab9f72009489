//! What a shard tells of itself: counters, and where the blocks of its zones are.

use super::{Core, Shard};
use crate::device::BlockDevice;
use crate::pool::Class;
use std::cell::Cell;

/// Counters of a shard since it was opened.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) reads: Cell<u64>,
    pub(super) read_bytes: Cell<u64>,
    pub(super) writes: Cell<u64>,
    pub(super) write_bytes: Cell<u64>,
    pub(super) copied_bytes: Cell<u64>,
    pub(super) leaf_hits: Cell<u64>,
    pub(super) leaf_loads: Cell<u64>,
    pub(super) checkpoints: Cell<u64>,
    pub(super) checkpoint_blocks: Cell<u64>,
    pub(super) trimmed_blocks: Cell<u64>,
}

pub(super) fn add(counter: &Cell<u64>, n: u64) {
    counter.set(counter.get() + n);
}

/// Where the blocks of a shard's zones are; the parts make up the whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceStats {
    /// All blocks of its zones, and of zones that it has returned and a flush must still confirm.
    pub owned: u64,
    /// Used by chunks of files.
    pub data: u64,
    /// Used by chunks of [`crate::SYSTEM_OBJECTS`].
    pub system: u64,
    /// Checkpoints of the index, those that the next one replaces included, and what writes under way hold.
    pub metadata: u64,
    /// Freed; they wait for a flush, for reads under way, or to be trimmed.
    pub waiting: u64,
    /// Free for user data, and for the system.
    pub free: [u64; 2],
}

impl SpaceStats {
    pub(super) fn of(core: &Core, zone_blocks: u32) -> SpaceStats {
        let zone = u64::from(zone_blocks);
        let (zones, returned) = (core.zones.len() as u64, core.returned.len() as u64);
        let system = core.index.system_blocks();
        let free = [core.zones.free_blocks(Class::User), core.zones.free_blocks(Class::System)];
        // Zones on their way back to the pool have nothing in them.
        let waiting = core.waiting + returned * zone + core.zones.closed_blocks();
        let owned = (zones + returned) * zone;
        let metadata = owned.saturating_sub(core.zones.used_blocks() + waiting + free[0] + free[1]);
        let data = core.zones.used_blocks().saturating_sub(system);
        SpaceStats { owned, data, system, metadata, waiting, free }
    }

    /// Sums up.
    pub fn add(&mut self, other: &SpaceStats) {
        self.owned += other.owned;
        self.data += other.data;
        self.system += other.system;
        self.metadata += other.metadata;
        self.waiting += other.waiting;
        self.free[0] += other.free[0];
        self.free[1] += other.free[1];
    }
}

/// Figures of a shard for `status`.
#[derive(Clone, Debug, Default)]
pub struct ShardStats {
    /// Its number.
    pub shard: u16,
    /// Chunks it has.
    pub chunks: u64,
    /// Blocks that chunks use.
    pub used_blocks: u64,
    /// Where the blocks of its zones are.
    pub space: SpaceStats,
    /// Free blocks in its own zones, for user data and for the system.
    pub free_blocks: [u64; 2],
    /// Zones it owns.
    pub zones: u64,
    /// Leaves resident, and dirty.
    pub leaves: [u64; 2],
    /// Leaf lookups that found it resident, and loads from the device.
    pub leaf_hits: u64,
    /// Leaves loaded from the device.
    pub leaf_loads: u64,
    /// Entries of the exactly-once table.
    pub requests: u64,
    /// Reads, and their bytes.
    pub reads: [u64; 2],
    /// Changes, and the bytes of data written by them.
    pub writes: [u64; 2],
    /// Bytes of data that were copied because the caller's were not aligned.
    pub copied_bytes: u64,
    /// Log: groups and bytes written, one copy.
    pub log: [u64; 2],
    /// Log: blocks used and in all.
    pub log_space: [u64; 2],
    /// Checkpoints, and blocks written by them, both copies counted.
    pub checkpoints: [u64; 2],
    /// Blocks trimmed.
    pub trimmed_blocks: u64,
    /// Why it takes no changes, if so.
    pub read_only: Option<String>,
}

impl<D: BlockDevice> Shard<D> {
    /// Figures for `status`.
    #[must_use]
    pub fn stats(&self) -> ShardStats {
        let inner = &self.0;
        let core = inner.core.borrow();
        let c = &inner.counters;
        let (groups, bytes) = inner.log.written();
        let (used, all) = inner.log.space();
        ShardStats {
            shard: inner.number,
            chunks: core.index.chunks(),
            used_blocks: core.zones.used_blocks(),
            space: SpaceStats::of(&core, inner.layout.zone_blocks),
            free_blocks: [core.zones.free_blocks(Class::User), core.zones.free_blocks(Class::System)],
            zones: core.zones.len() as u64,
            leaves: [core.index.leaves.resident() as u64, core.index.leaves.dirty_count() as u64],
            leaf_hits: c.leaf_hits.get(),
            leaf_loads: c.leaf_loads.get(),
            requests: core.requests.len() as u64,
            reads: [c.reads.get(), c.read_bytes.get()],
            writes: [c.writes.get(), c.write_bytes.get()],
            copied_bytes: c.copied_bytes.get(),
            log: [groups, bytes],
            log_space: [used, all],
            checkpoints: [c.checkpoints.get(), c.checkpoint_blocks.get()],
            trimmed_blocks: c.trimmed_blocks.get(),
            read_only: inner.read_only.borrow().clone(),
        }
    }
}
