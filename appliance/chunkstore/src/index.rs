//! The resident chunk index of a shard, and applying records to it.
//!
//! Pure. Chunks of at most four blocks are mapped inline; others have a leaf, resident or on the device.
//! Buckets are the unit of a checkpoint. Loading and evicting leaves is driven from outside.

use crate::leaf::{Leaf, Slot};
use crate::leaves::Leaves;
use crate::record::{Length, Update};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

/// Buckets of a shard's index, each a page of the checkpoint.
pub(crate) const BUCKETS: usize = 1024;
/// Blocks that fit into an entry.
pub(crate) const INLINE: usize = 4;
/// Objects from this number on are the system's own: what their chunks use is counted apart.
pub const SYSTEM_OBJECTS: u64 = u64::MAX - 15;
/// The leaf is not resident.
pub(crate) const ABSENT: u32 = u32::MAX;

/// Names a chunk: an object and the chunk's number in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The object, never reused.
    pub object: u64,
    /// The chunk's number.
    pub index: u32,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}.{}", self.object, self.index)
    }
}

/// splitmix64's finaliser: part of the format, it assigns keys to buckets.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The bucket of a chunk.
pub(crate) fn bucket_of(key: Key) -> usize {
    (mix(mix(key.object) ^ u64::from(key.index)) >> 54) as usize
}

const _: () = assert!(BUCKETS == 1 << (64 - 54));

/// Up to four blocks, ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct InlineMap {
    at: [u64; INLINE],
    crc: [u32; INLINE],
    block: [u8; INLINE],
    count: u8,
}

impl InlineMap {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, Slot)> + '_ {
        (0..usize::from(self.count))
            .map(|i| (u32::from(self.block[i]), Slot { at: self.at[i], crc: self.crc[i] }))
    }

    pub(crate) fn get(&self, block: u32) -> Slot {
        self.iter().find(|(b, _)| *b == block).map(|(_, s)| s).unwrap_or_default()
    }

    /// Holds the slots if there are few enough.
    pub(crate) fn from_slots(slots: &[(u32, Slot)]) -> Option<InlineMap> {
        let mut map = InlineMap::default();
        if slots.len() > INLINE {
            return None;
        }
        for (i, (block, slot)) in slots.iter().enumerate() {
            (map.at[i], map.crc[i], map.block[i]) = (slot.at, slot.crc, *block as u8);
        }
        map.count = slots.len() as u8;
        Some(map)
    }
}

/// Where a chunk's map is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Map {
    Inline(InlineMap),
    /// Both copies on the device (0: never written) and the place in the cache, or [`ABSENT`].
    Leaf {
        disk: [u64; 2],
        slot: u32,
    },
}

/// What is resident of each chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) time: u64,
    pub(crate) length: u32,
    /// Blocks allocated.
    pub(crate) mapped: u16,
    pub(crate) map: Map,
}

/// Resident bytes of a chunk at the worst load of the hash table (7/16 after it has doubled, one control byte),
/// with its leaf paged out.
pub const ENTRY_BYTES: usize = (size_of::<Key>() + size_of::<Entry>() + 1) * 16 / 7;

// The budget of 512 MiB per TiB of 1 MiB chunks is 512 bytes for each; two bitmaps of 256 blocks take 64.
const _: () = assert!(ENTRY_BYTES + 64 <= 384, "an entry must leave room for the leaf cache");

/// The index of a shard.
#[derive(Debug)]
pub(crate) struct Index {
    buckets: Vec<FxHashMap<Key, Entry>>,
    pub(crate) leaves: Leaves,
    chunks: u64,
    /// Blocks of chunks of [`SYSTEM_OBJECTS`].
    system: u64,
}

impl Index {
    pub(crate) fn new() -> Index {
        Index {
            buckets: (0..BUCKETS).map(|_| FxHashMap::default()).collect(),
            leaves: Leaves::default(),
            chunks: 0,
            system: 0,
        }
    }

    pub(crate) fn chunks(&self) -> u64 {
        self.chunks
    }

    pub(crate) fn get(&self, key: Key) -> Option<&Entry> {
        self.buckets[bucket_of(key)].get(&key)
    }

    pub(crate) fn bucket(&self, bucket: usize) -> &FxHashMap<Key, Entry> {
        &self.buckets[bucket]
    }

    /// Puts an entry as a checkpoint has it; false if the key stands there already.
    pub(crate) fn load(&mut self, key: Key, entry: Entry) -> bool {
        self.chunks += 1;
        self.system += if key.object < SYSTEM_OBJECTS { 0 } else { u64::from(entry.mapped) };
        self.buckets[bucket_of(key)].insert(key, entry).is_none()
    }

    /// Where the leaf must be read from before the chunk's map can be used.
    pub(crate) fn absent_leaf(&self, key: Key) -> Option<[u64; 2]> {
        match self.get(key)?.map {
            Map::Leaf { disk, slot: ABSENT } => Some(disk),
            _ => None,
        }
    }

    /// Makes a leaf that was read resident.
    pub(crate) fn install(&mut self, key: Key, leaf: Box<Leaf>) {
        if let Some(Entry { map: Map::Leaf { slot, .. }, .. }) = self.buckets[bucket_of(key)].get_mut(&key)
            && *slot == ABSENT
        {
            *slot = self.leaves.insert(key, leaf, false);
        }
    }

    /// Evicts clean leaves, least used first, down to `limit`; `held` says which chunks are being changed.
    pub(crate) fn evict(&mut self, limit: usize, held: impl Fn(Key) -> bool) {
        while self.leaves.resident() > limit {
            let Some(key) = self.leaves.evict_one(&held) else { return };
            if let Some(Entry { map: Map::Leaf { slot, .. }, .. }) =
                self.buckets[bucket_of(key)].get_mut(&key)
            {
                *slot = ABSENT;
            }
        }
    }

    /// A leaf was written as part of a checkpoint: new place, clean. Gives the old place.
    pub(crate) fn leaf_written(&mut self, key: Key, disk: [u64; 2]) -> Option<[u64; 2]> {
        match self.buckets[bucket_of(key)].get_mut(&key) {
            Some(Entry { map: Map::Leaf { disk: place, slot }, .. }) => {
                self.leaves.set_clean(*slot);
                let old = std::mem::replace(place, disk);
                (old != [0, 0]).then_some(old)
            }
            _ => None,
        }
    }

    /// The map of one block. The leaf must be resident.
    pub(crate) fn slot(&mut self, key: Key, block: u32) -> Slot {
        match self.buckets[bucket_of(key)].get(&key).map(|e| &e.map) {
            None => Slot::default(),
            Some(Map::Inline(map)) => map.get(block),
            Some(Map::Leaf { slot, .. }) => {
                self.leaves.touch(*slot).map(|leaf| leaf.get(block)).unwrap_or_default()
            }
        }
    }

    /// All mapped blocks in order. The leaf must be resident.
    pub(crate) fn mapped(&mut self, key: Key) -> Vec<(u32, Slot)> {
        match self.buckets[bucket_of(key)].get(&key).map(|e| &e.map) {
            None => Vec::new(),
            Some(Map::Inline(map)) => map.iter().collect(),
            Some(Map::Leaf { slot, .. }) => {
                self.leaves.touch(*slot).map(|leaf| leaf.mapped().collect()).unwrap_or_default()
            }
        }
    }

    /// Blocks that chunks of [`SYSTEM_OBJECTS`] use.
    pub(crate) fn system_blocks(&self) -> u64 {
        self.system
    }

    /// Applies an update; the leaf must be resident. Gives the places of a leaf that is no longer referred to.
    pub(crate) fn apply(&mut self, update: &Update) -> Option<[u64; 2]> {
        if update.key.object < SYSTEM_OBJECTS {
            return self.change(update);
        }
        let mapped = |index: &Index| index.get(update.key).map_or(0, |e| u64::from(e.mapped));
        let before = mapped(self);
        let leaf = self.change(update);
        self.system = (self.system + mapped(self)).saturating_sub(before);
        leaf
    }

    fn change(&mut self, update: &Update) -> Option<[u64; 2]> {
        let bucket = &mut self.buckets[bucket_of(update.key)];
        if update.delete {
            let entry = bucket.remove(&update.key)?;
            self.chunks -= 1;
            let Map::Leaf { disk, slot } = entry.map else { return None };
            self.leaves.remove(slot);
            return (disk != [0, 0]).then_some(disk);
        }
        let chunks = &mut self.chunks;
        let entry = bucket.entry(update.key).or_insert_with(|| {
            *chunks += 1;
            Entry { time: 0, length: 0, mapped: 0, map: Map::Inline(InlineMap::default()) }
        });
        entry.time = update.time;
        entry.length = match update.length {
            Length::Raise(length) => entry.length.max(length),
            Length::Set(length) => length,
        };
        if update.runs.is_empty() {
            return None;
        }
        match &mut entry.map {
            Map::Inline(map) => {
                let mut slots: SmallVec<[(u32, Slot); 8]> = map.iter().collect();
                expand(update, |block, new| {
                    let at = slots.binary_search_by_key(&block, |(b, _)| *b);
                    match (at, new.is_hole()) {
                        (Ok(i), true) => drop(slots.remove(i)),
                        (Ok(i), false) => slots[i].1 = new,
                        (Err(_), true) => {}
                        (Err(i), false) => slots.insert(i, (block, new)),
                    }
                });
                entry.mapped = slots.len() as u16;
                entry.map = if let Some(map) = InlineMap::from_slots(&slots) {
                    Map::Inline(map)
                } else {
                    let mut leaf = Leaf::empty();
                    slots.iter().for_each(|(block, slot)| leaf.set(*block, *slot));
                    Map::Leaf { disk: [0, 0], slot: self.leaves.insert(update.key, leaf, true) }
                };
                None
            }
            Map::Leaf { disk, slot } => {
                let mut mapped = entry.mapped;
                let leaf = self.leaves.dirty(*slot)?;
                expand(update, |block, new| {
                    mapped = mapped + u16::from(!new.is_hole()) - u16::from(!leaf.get(block).is_hole());
                    leaf.set(block, new);
                });
                entry.mapped = mapped;
                // Back to an inline map only under truncate, which has the whole chunk to itself.
                if !matches!(update.length, Length::Set(_)) || usize::from(mapped) > INLINE {
                    return None;
                }
                let slots: Vec<_> = leaf.mapped().collect();
                let (disk, slot) = (*disk, *slot);
                entry.map = Map::Inline(InlineMap::from_slots(&slots)?);
                self.leaves.remove(slot);
                (disk != [0, 0]).then_some(disk)
            }
        }
    }
}

/// Calls `each` for every block that an update maps.
pub(crate) fn expand(update: &Update, mut each: impl FnMut(u32, Slot)) {
    let mut crcs = update.crcs.iter();
    for run in &update.runs {
        for i in 0..u64::from(run.count) {
            let block = u32::from(run.block) + i as u32;
            let at = if run.at == 0 { 0 } else { run.at + i };
            let crc = if run.is_data() { crcs.next().copied().unwrap_or(0) } else { 0 };
            each(block, Slot { at, crc });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::MapRun;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const KEY: Key = Key { object: 1, index: 2 };

    fn update(length: Length, runs: &[(u16, u16, u64)]) -> Update {
        let runs: SmallVec<[MapRun; 2]> =
            runs.iter().map(|&(block, count, at)| MapRun { block, count, at }).collect();
        let data: u32 = runs.iter().filter(|r| r.is_data()).map(|r| u32::from(r.count)).sum();
        Update {
            key: KEY,
            delete: false,
            length,
            time: 1,
            runs,
            crcs: (0..data).collect(),
            frees: SmallVec::new(),
            request: None,
        }
    }

    #[test]
    fn inline_becomes_a_leaf_and_comes_back_on_truncate() {
        let mut index = Index::new();
        index.apply(&update(Length::Raise(10), &[(0, 4, 100)]));
        assert!(matches!(index.get(KEY).expect("there").map, Map::Inline(_)));
        index.apply(&update(Length::Raise(5), &[(9, 1, 200)]));
        let entry = index.get(KEY).expect("there");
        assert!(matches!(entry.map, Map::Leaf { .. }));
        assert_eq!((entry.length, entry.mapped), (10, 5));
        index.leaf_written(KEY, [7, 8]);
        assert_eq!(index.leaves.dirty_count(), 0);
        assert_eq!(index.apply(&update(Length::Set(4), &[(1, 200, 0)])), Some([7, 8]));
        assert_eq!(index.get(KEY).expect("there").mapped, 1);
        assert_eq!(index.leaves.resident(), 0);
        assert_eq!(index.slot(KEY, 0).at, 100);
    }

    #[test]
    fn eviction_spares_dirty_and_held() {
        let mut index = Index::new();
        index.apply(&update(Length::Raise(10), &[(0, 9, 100)]));
        index.evict(0, |_| false);
        assert_eq!(index.absent_leaf(KEY), None, "dirty");
        index.leaf_written(KEY, [7, 8]);
        index.evict(0, |_| true);
        assert_eq!(index.absent_leaf(KEY), None, "held");
        index.evict(0, |_| false);
        assert_eq!(index.absent_leaf(KEY), Some([7, 8]));
        index.install(KEY, Leaf::empty());
        assert_eq!(index.absent_leaf(KEY), None);
    }

    proptest! {
        #[test]
        fn as_a_map_of_blocks(ops in prop::collection::vec((0u16..256, 1u16..40, prop::bool::ANY, prop::bool::ANY), 1..60)) {
            let mut index = Index::new();
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            let mut next = 1000;
            for (block, count, hole, set) in ops {
                let count = count.min(256 - block);
                let at = if hole { 0 } else { next };
                next += u64::from(count);
                let length = if set { Length::Set(7) } else { Length::Raise(3) };
                index.apply(&update(length, &[(block, count, at)]));
                for i in 0..u64::from(count) {
                    let b = u32::from(block) + i as u32;
                    if hole { model.remove(&b); } else { model.insert(b, at + i); }
                }
                let mapped: BTreeMap<u32, u64> = index.mapped(KEY).into_iter().map(|(b, s)| (b, s.at)).collect();
                prop_assert_eq!(&mapped, &model);
                prop_assert_eq!(usize::from(index.get(KEY).expect("there").mapped), model.len());
            }
        }
    }
}
