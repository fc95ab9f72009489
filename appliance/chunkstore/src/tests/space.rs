//! Full devices, full logs, growing, and the namespace log.

use super::world::*;
use crate::device::MemDevice;
use crate::error::{DeviceError, Error};
use crate::index::Key;
use crate::local::LocalExecutor;
use crate::pool::Class;
use crate::shard::{Shard, Stamp};
use hugepages::Buf;

fn key(object: u64) -> Key {
    Key { object, index: 0 }
}

/// Writes whole chunks until the device is full; gives how many there are.
async fn fill(shard: &Shard<MemDevice>, from: u64) -> u64 {
    let data = Buf::copy_of(&vec![7; CHUNK as usize]).freeze();
    for object in from.. {
        match shard.write(key(object), 0, data.clone(), &Stamp::at(0)).await {
            Ok(_) => {}
            Err(Error::NoSpace) => return object,
            Err(e) => panic!("{e}"),
        }
    }
    unreachable!("the device is finite")
}

#[test]
fn a_full_device_refuses_writes_only_and_space_comes_back() {
    let executor = LocalExecutor::new();
    run(&executor, async {
        let disk = formatted(options(1), 1).await;
        let store = open(&executor, &disk).await;
        store.tighten(20);
        let shard = &store.shards[0];
        let full = fill(shard, 0).await;
        // One of the zones may have gone to a checkpoint.
        assert!(full >= 19 * 4, "only {full} chunks fit");
        // All else works: truncation within a block, holes, the system's own data, checkpoints, deletion.
        shard.truncate(key(0), 5000, &Stamp::at(1)).await.expect("truncate on a full device");
        shard.punch(key(1), 100, 9000, &Stamp::at(1)).await.expect("punch on a full device");
        let system = Stamp { class: Class::System, ..Stamp::at(1) };
        let data = Buf::copy_of(&vec![8; CHUNK as usize]).freeze();
        shard.write(key(10_000), 0, data, &system).await.expect("the namespace writes on a full device");
        shard.checkpoint().await.expect("a checkpoint on a full device");
        for object in (0..full).step_by(2) {
            shard.delete(key(object), &Stamp::at(2)).await.expect("delete on a full device");
        }
        let again = fill(shard, full).await - full;
        assert!(again + 2 >= full / 2, "of {full} chunks half were deleted, {again} fit again");
        audit(shard).await;
        store.stop().await;
        let store = open(&executor, &disk).await;
        audit(&store.shards[0]).await;
        for object in 0..full + again {
            store.shards[0].delete(key(object), &Stamp::at(3)).await.expect("delete");
        }
        store.device.flush().await.expect("flush");
        store.shards[0].checkpoint().await.expect("checkpoint");
        let stats = store.shards[0].stats();
        assert_eq!((stats.chunks, stats.used_blocks), (1, u64::from(CHUNK / 4096)));
        assert!(stats.zones <= 6, "empty zones were not given back: {stats:?}");
        audit(&store.shards[0]).await;
    });
}

#[test]
fn preallocated_space_is_there_on_a_full_device() {
    let executor = LocalExecutor::new();
    run(&executor, async {
        let disk = formatted(options(2), 1).await;
        let store = open(&executor, &disk).await;
        store.tighten(3);
        let shard = &store.shards[0];
        shard.preallocate(key(1 << 40), 0, CHUNK, &Stamp::at(0)).await.expect("room");
        fill(shard, 0).await;
        let extents = shard.extents(key(1 << 40)).await.expect("reads");
        assert!(extents.len() == 1 && extents[0].unwritten && extents[0].len == CHUNK);
        let data = Buf::copy_of(&vec![9; CHUNK as usize]).freeze();
        shard.write(key(1 << 40), 0, data, &Stamp::at(1)).await.expect("the space was promised");
        assert!(!shard.extents(key(1 << 40)).await.expect("reads")[0].unwritten);
        audit(shard).await;
    });
}

#[test]
fn a_log_that_fills_up_makes_writers_wait_for_checkpoints() {
    let executor = LocalExecutor::new();
    run(&executor, async {
        let disk = formatted(options(3), 1).await;
        let store = open(&executor, &disk).await;
        let shard = &store.shards[0];
        let ring = shard.stats().log_space[1];
        for i in 0..ring * 4 {
            let data = hugepages::Bytes::from(vec![i as u8; 100]);
            shard.write(key(i % 50), (i % 60) as u32 * 4096, data, &Stamp::at(i)).await.expect("works");
        }
        assert!(shard.stats().checkpoints[0] >= 4, "{:?}", shard.stats());
        audit(shard).await;
    });
}

#[test]
fn a_device_grows_while_it_is_open() {
    let executor = LocalExecutor::new();
    run(&executor, async {
        let disk = formatted(options(4), 1).await;
        let store = open(&executor, &disk).await;
        let shard = &store.shards[0];
        let full = fill(shard, 0).await;
        disk.resize(crate::MIN_DEVICE + (64 << 20) + 4096);
        assert!(matches!(
            shard.write(key(9999), 0, Buf::heap(8192).freeze(), &Stamp::at(0)).await,
            Err(Error::NoSpace)
        ));
        store.device.grow().await.expect("grows");
        let more = fill(shard, full).await;
        assert!(more > full + 200, "{full} chunks before, {more} after");
        audit(shard).await;
        store.stop().await;
        let store = open(&executor, &disk).await;
        assert_eq!(content(&store.shards[0], key(more - 1)).await.map(|c| c.len()), Some(CHUNK as usize));
        audit(&store.shards[0]).await;
        store.stop().await;
        disk.resize(crate::MIN_DEVICE);
        let shrank = crate::Device::open(disk.clone(), executor.spawner()).await;
        assert!(matches!(shrank, Err(DeviceError::Shrank { .. })));
    });
}

#[test]
fn the_namespace_log_keeps_order_wraps_and_replays() {
    let executor = LocalExecutor::new();
    for seed in 0..10 {
        run(&executor, async {
            let mut disk = formatted(options(seed), 1).await;
            let mut rng = Rng(seed);
            let mut kept: Vec<(u64, Vec<u8>)> = Vec::new();
            for life in 0..3 {
                let store = open(&executor, &disk).await;
                assert_eq!(store.records, kept, "seed {seed}, life {life}");
                for i in 0..80u32 {
                    let record = vec![i as u8; 1 + rng.below(crate::MAX_LOG_RECORD as u32 / 4) as usize];
                    let seq = store.log.append(record.clone()).await.expect("appends");
                    kept.push((seq, record));
                    if store.log.wants_trim() || rng.below(30) == 0 {
                        let upto = kept[rng.below(kept.len() as u32) as usize].0;
                        store.log.trim(upto).await.expect("trims");
                    }
                }
                // Trimming is by groups: what a restart gives is a suffix that holds all after the last trim.
                disk = disk.kill(seed, options(seed));
                let store = open(&executor, &disk).await;
                assert!(kept.ends_with(&store.records), "seed {seed}, life {life}");
                kept = store.records.clone();
                store.stop().await;
            }
        });
    }
}

#[test]
fn a_full_namespace_log_waits_for_a_trim() {
    let executor = LocalExecutor::new();
    run(&executor, async {
        let disk = formatted(options(1), 1).await;
        let store = open(&executor, &disk).await;
        let log = store.log.clone();
        let last = std::rc::Rc::new(std::cell::Cell::new(0));
        let seen = last.clone();
        (executor.spawner())(Box::pin(async move {
            for _ in 0..60 {
                seen.set(log.append(vec![1; 200_000]).await.expect("appends"));
            }
        }));
        while !(store.log.wants_trim() && store.log.stats().used_blocks > 900) {
            crate::signal::yield_now().await;
        }
        let before = last.get();
        while last.get() < 60 {
            store.log.trim(last.get()).await.expect("trims");
            crate::signal::yield_now().await;
        }
        assert!(before < 60, "the ring is smaller than what was appended");
        assert!(matches!(store.log.append(Vec::new()).await, Err(Error::Invalid(_))));
        assert!(matches!(store.log.append(vec![0; crate::MAX_LOG_RECORD + 1]).await, Err(Error::Invalid(_))));
    });
}

#[test]
fn a_slow_read_never_sees_a_reused_block() {
    let executor = LocalExecutor::new();
    for seed in 0..10 {
        run(&executor, async {
            let mut slow = options(seed);
            slow.slow_reads = 400;
            let disk = formatted(slow, 1).await;
            let store = open(&executor, &disk).await;
            store.tighten(1);
            let shard = &store.shards[0];
            let stop = std::rc::Rc::new(std::cell::Cell::new(false));
            shard.write(key(0), 0, Buf::heap(CHUNK as usize).freeze(), &Stamp::at(0)).await.expect("works");
            for _ in 0..4 {
                let (shard, stop) = (shard.clone(), stop.clone());
                (executor.spawner())(Box::pin(async move {
                    while !stop.get() {
                        shard.read(key(0), 0, CHUNK).await.expect("every read is whole");
                    }
                }));
            }
            for i in 0..60 {
                let data = Buf::copy_of(&vec![i; CHUNK as usize]).freeze();
                shard.write(key(0), 0, data, &Stamp::at(0)).await.expect("works");
                store.device.flush().await.expect("flushes");
            }
            stop.set(true);
        });
        executor.clear();
    }
}
