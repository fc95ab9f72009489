//! Accounting: every block of a shard's zones is free or used exactly once.
//!
//! For a store that nobody uses meanwhile. It goes by the maps: they say which blocks are used, the zones' bitmaps only
//! repeat it, so a bitmap that differs is what is corrected.

use super::Shard;
use crate::device::BlockDevice;
use crate::error::Error;
use crate::index::{BUCKETS, Key, Map};
use crate::zones::Run;
use rustc_hash::{FxHashMap, FxHashSet};

/// Findings of a kind that are listed; the rest is counted.
const LISTED: usize = 1000;

/// What [`Shard::account`] found. Lists end after a thousand.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    /// Blocks that maps refer to.
    pub used: u64,
    /// Blocks marked as used that no map refers to.
    pub leaked: u64,
    /// Blocks that a map refers to and that are marked as free: the next write may take them.
    pub unmarked: Vec<(Key, u64)>,
    /// Blocks that two maps, or a map and the shard's own metadata, refer to.
    pub twice: Vec<(Key, u64)>,
    /// Blocks outside the shard's zones that a map refers to.
    pub outside: Vec<(Key, u64)>,
    /// Chunks whose count of blocks is not that of their map.
    pub miscounted: Vec<Key>,
    /// Chunks whose map can't be read: their blocks can't be told from leaked ones.
    pub unknown: u64,
}

/// Bitmaps of blocks by zone.
#[derive(Default)]
struct Seen(FxHashMap<u32, Box<[u64]>>);

impl Seen {
    /// Marks a block; false if it was marked.
    fn mark(&mut self, zone: u32, bit: u32, blocks: u32) -> bool {
        let words = || vec![0; blocks as usize / 64].into_boxed_slice();
        let word = &mut self.0.entry(zone).or_insert_with(words)[bit as usize / 64];
        let fresh = *word >> (bit % 64) & 1 == 0;
        *word |= 1 << (bit % 64);
        fresh
    }
}

fn list<T>(all: &mut Vec<T>, one: T) {
    if all.len() < LISTED {
        all.push(one);
    }
}

impl<D: BlockDevice> Shard<D> {
    /// Accounts for every block. `repair`: frees what is leaked and marks what is used, in memory; the next checkpoint
    /// (the one of [`Shard::stop`] at the latest) makes it last. Nothing else may use the shard meanwhile.
    pub async fn account(&self, repair: bool) -> Result<Accounts, Error> {
        self.0.waiters.until(|| !self.0.checkpointing.get() && self.0.trimming.get() == 0).await;
        let mut accounts = Accounts::default();
        let mut seen = Seen::default();
        self.see_metadata(&mut seen);
        for bucket in 0..BUCKETS {
            let keys: Vec<Key> = self.0.core.borrow().index.bucket(bucket).keys().copied().collect();
            for key in keys {
                match self.load_leaf(key).await {
                    Ok(()) => self.see_chunk(key, &mut seen, &mut accounts, repair),
                    Err(Error::Damaged { .. } | Error::Io { .. }) => accounts.unknown += 1,
                    Err(e) => return Err(e),
                }
            }
            crate::signal::yield_now().await;
        }
        accounts.leaked = self.leaked(&seen, repair && accounts.unknown == 0);
        Ok(accounts)
    }

    fn see_metadata(&self, seen: &mut Seen) {
        let core = self.0.core.borrow();
        let leaves = (0..BUCKETS).flat_map(|b| core.index.bucket(b).values()).filter_map(|e| match e.map {
            Map::Leaf { disk, .. } if disk != [0, 0] => Some(disk),
            _ => None,
        });
        let blocks: FxHashSet<u64> =
            core.pages.chain.iter().flatten().copied().chain(leaves).flatten().collect();
        for block in blocks {
            if let Some((zone, bit)) = self.locate(block) {
                seen.mark(zone, bit, self.0.layout.zone_blocks);
            }
        }
    }

    fn locate(&self, block: u64) -> Option<(u32, u32)> {
        let zone = self.0.core.borrow().zones.zone_of(block)?;
        Some((zone, (block - self.0.layout.zone_start(zone)) as u32))
    }

    fn see_chunk(&self, key: Key, seen: &mut Seen, accounts: &mut Accounts, repair: bool) {
        let mapped = self.0.core.borrow_mut().index.mapped(key);
        let counted = self.0.core.borrow().index.get(key).map_or(0, |e| usize::from(e.mapped));
        if counted != mapped.len() {
            list(&mut accounts.miscounted, key);
        }
        for (_, slot) in mapped {
            let block = slot.block();
            accounts.used += 1;
            let run = Run { start: block, count: 1 };
            let place = self.locate(block).filter(|_| self.0.core.borrow().zones.owns(run));
            let Some((zone, bit)) = place else {
                list(&mut accounts.outside, (key, block));
                continue;
            };
            if !seen.mark(zone, bit, self.0.layout.zone_blocks) {
                list(&mut accounts.twice, (key, block));
                continue;
            }
            let mut core = self.0.core.borrow_mut();
            if !core.zones.is_used(block) {
                list(&mut accounts.unmarked, (key, block));
                if repair {
                    core.zones.set_state(run, true);
                    core.zones.set_busy(run);
                    core.touch_zone(block);
                }
            }
        }
    }

    /// Counts blocks that are marked and were not seen; `repair` frees them.
    fn leaked(&self, seen: &Seen, repair: bool) -> u64 {
        let mut core = self.0.core.borrow_mut();
        let mut blocks = Vec::new();
        let mut count = 0;
        for (number, zone) in core.zones.iter() {
            let none = seen.0.get(&number);
            for (word, state) in zone.state.iter().enumerate() {
                let mut rest = state & !none.map_or(0, |s| s[word]);
                count += u64::from(rest.count_ones());
                while repair && rest != 0 {
                    let bit = word as u64 * 64 + u64::from(rest.trailing_zeros());
                    blocks.push(self.0.layout.zone_start(number) + bit);
                    rest &= rest - 1;
                }
            }
        }
        for start in blocks {
            let run = Run { start, count: 1 };
            core.zones.set_state(run, false);
            core.zones.release(run);
            core.touch_zone(start);
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{MemDevice, MemOptions};
    use crate::local::LocalExecutor;
    use crate::shard::{ShardOptions, Stamp};
    use crate::store::{Device, FormatOptions, format};
    use hugepages::Buf;

    const KEY: Key = Key { object: 7, index: 0 };

    async fn open(executor: &LocalExecutor, disk: &MemDevice) -> (Device<MemDevice>, Shard<MemDevice>) {
        let device = Device::open(disk.clone(), executor.spawner()).await.expect("opens");
        let shard = device.open_shard(0, ShardOptions::default()).await.expect("opens");
        (device, shard)
    }

    async fn prepared(executor: &LocalExecutor) -> MemDevice {
        let disk = MemDevice::new(crate::MIN_DEVICE, MemOptions::default());
        let options = FormatOptions { shards: 1, ..FormatOptions::default() };
        format(&disk, &options, |_, _| {}).await.expect("formatted");
        let (_, shard) = open(executor, &disk).await;
        for (object, blocks) in [(7, 40), (8, 3)] {
            let data = Buf::heap(blocks * 4096).freeze();
            shard.write(Key { object, index: 0 }, 0, data, &Stamp::at(1)).await.expect("written");
        }
        shard.stop().await.expect("stops");
        disk
    }

    #[test]
    fn bitmaps_that_differ_from_the_maps_are_found_and_corrected() {
        let executor = LocalExecutor::new();
        executor.run(async {
            let disk = prepared(&executor).await;
            let (_device, shard) = open(&executor, &disk).await;
            let clean = shard.account(false).await.expect("accounted");
            assert_eq!((clean.used, clean.leaked, clean.unmarked.len()), (43, 0, 0), "{clean:?}");
            let used = shard.data_places(KEY).await[5];
            {
                let mut core = shard.0.core.borrow_mut();
                core.zones.set_state(Run { start: used, count: 1 }, false);
                let free = core.zones.alloc(crate::pool::Class::User, 9).expect("room");
                core.zones.set_state(free, true);
            }
            let found = shard.account(false).await.expect("accounted");
            assert_eq!((found.leaked, &found.unmarked[..]), (9, &[(KEY, used)][..]), "{found:?}");
            let repaired = shard.account(true).await.expect("accounted");
            assert_eq!((repaired.leaked, repaired.unmarked.len()), (9, 1));
            shard.stop().await.expect("stops");
            let (_device, shard) = open(&executor, &disk).await;
            let clean = shard.account(false).await.expect("accounted");
            assert_eq!((clean.used, clean.leaked, clean.unmarked.len()), (43, 0, 0), "{clean:?}");
            shard.audit().await;
        });
    }
}
