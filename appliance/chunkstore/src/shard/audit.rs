//! For tests: accounts for every block of a shard.

use super::{Shard, SpaceStats};
use crate::device::BlockDevice;
use crate::index::{BUCKETS, Key, Map, SYSTEM_OBJECTS};
use crate::zones::Run;
use std::collections::BTreeMap;

impl<D: BlockDevice> Shard<D> {
    /// Checks that every block of every zone is accounted for exactly once.
    pub(crate) async fn audit(&self) {
        // Checkpoints and trims hold blocks that nothing refers to for a while.
        let quiet = || !self.0.checkpointing.get() && self.0.trimming.get() == 0 && self.0.log.idle();
        while !quiet() {
            crate::signal::yield_now().await;
        }
        let keys: Vec<Key> = {
            let core = self.0.core.borrow();
            (0..BUCKETS).flat_map(|b| core.index.bucket(b).keys().copied().collect::<Vec<_>>()).collect()
        };
        let mut owner: BTreeMap<u64, Key> = BTreeMap::new();
        for key in keys {
            self.load_leaf(key).await.expect("the map loads");
            let mut core = self.0.core.borrow_mut();
            let mapped = core.index.mapped(key);
            assert_eq!(
                mapped.len(),
                usize::from(core.index.get(key).expect("listed").mapped),
                "count of {key}"
            );
            for (_, slot) in mapped {
                assert_eq!(owner.insert(slot.block(), key), None, "block {} is used twice", slot.block());
            }
        }
        let mut core = self.0.core.borrow_mut();
        assert_eq!(core.zones.used_blocks(), owner.len() as u64, "blocks leaked, or used and not counted");
        let mut limbo: Vec<u64> = core.pages.chain.iter().flatten().flatten().copied().collect();
        limbo.extend(&core.unreferred);
        for bucket in 0..BUCKETS {
            for entry in core.index.bucket(bucket).values() {
                if let Map::Leaf { disk, .. } = entry.map
                    && disk != [0, 0]
                {
                    limbo.extend(disk);
                }
            }
        }
        limbo.extend(core.freed.iter().flat_map(|f| f.run.start..f.run.start + u64::from(f.run.count)));
        assert_eq!(core.zones.limbo(), limbo.len() as u64, "blocks are busy for no reason");
        let (space, freed) = (SpaceStats::of(&core, self.0.layout.zone_blocks), core.freed.iter());
        let freed: u64 = freed.map(|f| u64::from(f.run.count)).sum();
        assert_eq!(
            space.metadata,
            limbo.len() as u64 - freed,
            "metadata is not what is told of it: {space:?}"
        );
        let system = owner.values().filter(|k| k.object >= SYSTEM_OBJECTS).count() as u64;
        assert_eq!((space.system, space.data), (system, owner.len() as u64 - system), "{space:?}");
        for block in owner.keys().chain(&limbo) {
            assert!(
                !core.zones.set_busy(Run { start: *block, count: 1 }),
                "block {block} is in use and free"
            );
        }
    }
}

impl<D: BlockDevice> Shard<D> {
    /// Both places of every page block and leaf.
    pub(crate) fn metadata_places(&self) -> Vec<[u64; 2]> {
        let core = self.0.core.borrow();
        let mut places: Vec<[u64; 2]> = core.pages.chain.iter().flatten().copied().collect();
        for bucket in 0..BUCKETS {
            places.extend(core.index.bucket(bucket).values().filter_map(|e| match e.map {
                Map::Leaf { disk, .. } if disk != [0, 0] => Some(disk),
                _ => None,
            }));
        }
        places
    }

    /// Runs that are freed and not yet given out again, and bytes of records under way.
    pub(crate) fn backlog(&self) -> (usize, usize) {
        (self.0.core.borrow().freed.len(), self.0.gate.inside())
    }

    /// Device blocks of a chunk's data, in order.
    pub(crate) async fn data_places(&self, key: Key) -> Vec<u64> {
        self.load_leaf(key).await.expect("the map loads");
        self.0.core.borrow_mut().index.mapped(key).into_iter().map(|(_, slot)| slot.block()).collect()
    }
}

impl<D: BlockDevice> Shard<D> {
    /// Where a chunk's leaf is, and whether it is resident.
    pub(crate) fn leaf_place(&self, key: Key) -> Option<([u64; 2], bool)> {
        match self.0.core.borrow().index.get(key)?.map {
            Map::Leaf { disk, slot } => Some((disk, slot != crate::index::ABSENT)),
            Map::Inline(_) => None,
        }
    }
}
