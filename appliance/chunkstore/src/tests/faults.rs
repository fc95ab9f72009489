//! Flipped bits, I/O errors, damaged superblocks: a clear error or a repair, never wrong data, never a panic.

use super::world::*;
use crate::device::{MemDevice, MemOptions};
use crate::error::{DeviceError, Error};
use crate::index::Key;
use crate::layout::{Layout, SUPER_B};
use crate::local::LocalExecutor;
use crate::shard::Stamp;
use crate::store::{Device, FormatOptions, format, inspect};
use hugepages::Buf;

const BIG: Key = Key { object: 1, index: 0 };
const SMALL: Key = Key { object: 2, index: 0 };

/// A store with a chunk that has a leaf and one that has none, stopped clean, or killed with all in the log.
async fn prepared(executor: &LocalExecutor, clean: bool) -> (MemDevice, Layout) {
    let disk = formatted(options(1), 1).await;
    let store = open(executor, &disk).await;
    let shard = &store.shards[0];
    let data = |len| Buf::copy_of(&vec![5; len]).freeze();
    shard.write(BIG, 0, data(100_000), &Stamp::at(1)).await.expect("works");
    shard.write(SMALL, 0, data(100), &Stamp::at(1)).await.expect("works");
    store.log.append(vec![1; 100]).await.expect("works");
    store.device.flush().await.expect("flushes");
    // A later group says that the first ones were flushed.
    shard.write(SMALL, 0, data(90), &Stamp::at(2)).await.expect("works");
    store.log.append(vec![2; 100]).await.expect("works");
    store.device.flush().await.expect("flushes");
    let layout = store.device.shared().layout.clone();
    if clean {
        store.stop().await;
        return (disk, layout);
    }
    (disk.kill(1, options(1)), layout)
}

async fn intact(executor: &LocalExecutor, disk: &MemDevice) -> u64 {
    let store = open(executor, disk).await;
    assert_eq!(content(&store.shards[0], BIG).await, Some(vec![5; 100_000]));
    assert_eq!(content(&store.shards[0], SMALL).await, Some(vec![5; 100]));
    audit(&store.shards[0]).await;
    let repaired = store.device.stats().repaired;
    store.stop().await;
    repaired
}

fn flip_block(disk: &MemDevice, block: u64) {
    disk.flip(block * 4096 + 17, 0x40);
}

#[test]
fn one_bad_copy_of_any_metadata_is_repaired_and_counted() {
    let executor = LocalExecutor::new();
    run(&executor, async {
        for clean in [true, false] {
            for copy in 0..2 {
                let (disk, layout) = prepared(&executor, clean).await;
                flip_block(&disk, [0, SUPER_B][copy]);
                // Both slots of every root, and the log from its start.
                for owner in 0..2 {
                    flip_block(&disk, layout.root_slot(owner, 0)[copy]);
                    flip_block(&disk, layout.root_slot(owner, 1)[copy]);
                }
                for at in 0..4 {
                    flip_block(&disk, layout.shard_log(0)[copy].start + at);
                    flip_block(&disk, layout.ns_log[copy].start + at);
                }
                assert!(
                    intact(&executor, &disk).await >= 3,
                    "clean {clean}, copy {copy}: nothing was counted"
                );
                // After that both copies are good again: the other one may go.
                let other = 1 - copy;
                flip_block(&disk, [0, SUPER_B][other]);
                flip_block(&disk, layout.root_slot(0, 0)[other]);
                flip_block(&disk, layout.root_slot(0, 1)[other]);
                intact(&executor, &disk).await;
            }
        }
    });
}

#[test]
fn pages_and_maps_are_repaired_and_both_bad_is_an_error() {
    let executor = LocalExecutor::new();
    run(&executor, async {
        let (disk, _) = prepared(&executor, true).await;
        let places = {
            let store = open(&executor, &disk).await;
            let places = store.shards[0].metadata_places();
            store.stop().await;
            places
        };
        assert!(places.len() >= 4, "{places:?}");
        for both in [false, true] {
            for pair in &places {
                let disk = disk.kill(0, options(1));
                flip_block(&disk, pair[0]);
                if both {
                    flip_block(&disk, pair[1]);
                }
                if !both {
                    // The first copies of pages are repaired at open, of maps when they are read.
                    assert_eq!(intact(&executor, &disk).await, 1, "block {pair:?}");
                    continue;
                }
                let device = Device::open(disk, executor.spawner()).await.expect("the device opens");
                match device.open_shard(0, crate::ShardOptions::default()).await {
                    Err(Error::Damaged { what, .. }) => {
                        assert!(what.contains(&pair[0].to_string()), "{what}");
                    }
                    Err(e) => panic!("{e}"),
                    Ok(shard) => {
                        let read = shard.read(BIG, 0, 10).await;
                        assert!(matches!(read, Err(Error::Damaged { .. })), "{read:?}");
                        shard.read(SMALL, 0, 10).await.expect("the other chunk is not affected");
                    }
                }
            }
        }
    });
}

#[test]
fn a_flushed_group_bad_in_both_copies_is_damage_not_a_tail() {
    let executor = LocalExecutor::new();
    run(&executor, async {
        let (disk, layout) = prepared(&executor, false).await;
        for ring in layout.shard_log(0) {
            // Block 0 is the opening record, block 1 the first group.
            flip_block(&disk, ring.start + 1);
        }
        let device = Device::open(disk, executor.spawner()).await.expect("the device opens");
        let shard = device.open_shard(0, crate::ShardOptions::default()).await;
        assert!(matches!(&shard, Err(Error::Damaged { .. })), "{:?}", shard.err());
    });
}

#[test]
fn a_flipped_data_bit_is_an_error_at_every_offset_and_scrub_finds_it() {
    let executor = LocalExecutor::new();
    run(&executor, async {
        let (disk, _) = prepared(&executor, true).await;
        let store = open(&executor, &disk).await;
        let shard = &store.shards[0];
        let at = shard.data_places(BIG).await;
        for (i, block) in at.iter().enumerate() {
            let offset = block * 4096 + (i as u64 * 97) % 4096;
            disk.flip(offset, 1 << (i % 8));
            let read = shard.read(BIG, 0, CHUNK).await;
            let found =
                matches!(read, Err(Error::BadBlock { block: b, at, .. }) if b as usize == i && at == *block);
            assert!(found, "{read:?}");
            // A write of part of the block must not hide it.
            let write = shard.write(BIG, i as u32 * 4096 + 1, Buf::heap(10).freeze(), &Stamp::at(3)).await;
            assert!(matches!(write, Err(Error::BadBlock { .. })), "{write:?}");
            shard.read(SMALL, 0, 10).await.expect("others are not affected");
            let mut report = crate::ScrubReport::default();
            for step in 0..crate::SCRUB_STEPS {
                report.add(
                    shard
                        .scrub_step(step, crate::ScrubOptions { repair: true, data: true })
                        .await
                        .expect("scrubs"),
                );
            }
            assert_eq!((report.bad_chunks.len(), report.bad_chunks[0].0), (1, BIG));
            disk.flip(offset, 1 << (i % 8));
        }
        disk.fail_reads(at[3], true);
        let read = shard.read(BIG, 0, CHUNK).await;
        assert!(matches!(read, Err(Error::Read { .. })), "{read:?}");
        assert!(store.device.stats().bad_blocks > 0);
    });
}

#[test]
fn scrub_repairs_second_copies() {
    let executor = LocalExecutor::new();
    run(&executor, async {
        let (disk, _) = prepared(&executor, true).await;
        let store = open(&executor, &disk).await;
        let shard = &store.shards[0];
        shard.checkpoint().await.expect("checkpoint");
        let places = shard.metadata_places();
        places.iter().for_each(|p| flip_block(&disk, p[1]));
        for repair in [true, false] {
            let mut report = crate::ScrubReport::default();
            for step in 0..crate::SCRUB_STEPS {
                report.add(
                    shard.scrub_step(step, crate::ScrubOptions { repair, data: true }).await.expect("scrubs"),
                );
            }
            assert_eq!(report.metadata_damaged, if repair { places.len() as u64 } else { 0 });
            assert_eq!(report.metadata_blocks, 2 * places.len() as u64);
        }
    });
}

#[test]
fn write_and_flush_errors_end_in_a_read_only_shard() {
    let executor = LocalExecutor::new();
    run(&executor, async {
        for flush in [false, true] {
            let (disk, _) = prepared(&executor, true).await;
            let store = open(&executor, &disk).await;
            let shard = &store.shards[0];
            let stamp = Stamp::at(3);
            let write = || shard.write(SMALL, 0, Buf::copy_of(&[6; 10]).freeze(), &stamp);
            if flush {
                disk.fail_flushes(true);
                assert!(matches!(shard.flush().await, Err(Error::Io { .. })));
                disk.fail_flushes(false);
            } else {
                disk.fail_writes(true);
                assert!(matches!(write().await, Err(Error::Io { .. })));
                disk.fail_writes(false);
            }
            assert!(matches!(write().await, Err(Error::ReadOnly { .. })));
            assert!(matches!(shard.checkpoint().await, Err(Error::ReadOnly { .. })));
            assert!(shard.stats().read_only.is_some());
            assert_eq!(content(shard, SMALL).await, Some(vec![5; 100]));
            assert!(shard.stop().await.is_err());
            assert_eq!(intact(&executor, &disk.kill(1, options(1))).await, 0);
        }
    });
}

#[test]
fn superblock_cases_have_typed_errors() {
    let executor = LocalExecutor::new();
    run(&executor, async {
        let tiny = MemDevice::new(100 << 20, MemOptions::default());
        let how = FormatOptions::default();
        assert!(matches!(format(&tiny, &how, |_, _| {}).await, Err(DeviceError::TooSmall { .. })));
        let fresh = MemDevice::new(crate::MIN_DEVICE, MemOptions::default());
        assert!(matches!(inspect(&fresh).await, Err(DeviceError::NotOurs { found: None })));
        fresh.flip(1080, 0x53);
        fresh.flip(1081, 0xef);
        assert!(
            matches!(inspect(&fresh).await, Err(DeviceError::NotOurs { found: Some(what) }) if what.contains("ext"))
        );
        assert!(matches!(format(&fresh, &how, |_, _| {}).await, Err(DeviceError::Occupied { .. })));
        let force = FormatOptions { force: true, ..how };
        let made = format(&fresh, &force, |_, _| {}).await.expect("forced");
        assert!(
            matches!(format(&fresh, &how, |_, _| {}).await, Err(DeviceError::Occupied { found }) if found.contains("ClaudeFS"))
        );
        assert_eq!(inspect(&fresh).await.expect("ours"), made);
        flip_block(&fresh, 0);
        assert_eq!(inspect(&fresh).await.expect("the second is good"), made);
        flip_block(&fresh, SUPER_B);
        assert!(matches!(inspect(&fresh).await, Err(DeviceError::BothSuperblocks { .. })));
    });
}
