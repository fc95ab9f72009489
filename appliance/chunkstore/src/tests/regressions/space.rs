//! Full logs, full devices, and space that comes back.

use super::*;
use crate::device::MemOptions;
use crate::error::Error;
use crate::local::LocalExecutor;
use crate::shard::{ShardOptions, Stamp};
use crate::store::Device;

#[test]
fn taking_zones_never_uses_up_the_spare_of_the_log() {
    // Large writes took zones with urgent records until a full ring had no block left for the checkpoint.
    let ex = LocalExecutor::new();
    run(&ex, async {
        let disk = formatted(MemOptions::default(), 1).await;
        let slow = Slow::new(disk, true);
        let device = Device::open(slow.clone(), ex.spawner()).await.expect("opens");
        let shard = device.open_shard(0, ShardOptions::default()).await.expect("opens");
        let done = Rc::new(Cell::new(0u32));
        let write = |k: Key, len: usize| {
            let (shard, done) = (shard.clone(), done.clone());
            (ex.spawner())(Box::pin(async move {
                shard.write(k, 0, data(1, len), &Stamp::at(1)).await.expect("write");
                done.set(done.get() + 1);
            }));
        };
        for i in 0..128 {
            write(key(i), 4096);
            turns(20).await;
        }
        let small = done.get();
        // The checkpoint is slow and the ring is full. A megabyte at a time comes in.
        for i in 0..100 {
            write(key(1000 + i), CHUNK as usize);
            turns(20).await;
        }
        let before = (small, done.get(), shard.stats().log_space);
        slow.release();
        turns(20_000).await;
        assert_eq!(
            done.get(),
            228,
            "hangs for ever; before the checkpoint went on: {before:?}, ring {:?}",
            shard.stats().log_space
        );
    });
    ex.clear();
}

#[test]
fn truncated_tails_leave_the_reserve_alone() {
    // Tails of truncated chunks took the reserve: on a full device no checkpoint could be written.
    let ex = LocalExecutor::new();
    let r = ex.run(async {
        let disk = formatted(MemOptions::default(), 1).await;
        let store = open(&ex, &disk).await;
        let shard = &store.shards[0];
        store.tighten(24);
        // Files written and cut to an odd length, as every unpacker and downloader does.
        for n in 1..=3500 {
            shard.write(key(n), 0, data(1, 4096), &Stamp::at(1)).await.expect("write");
            shard.truncate(key(n), 100, &Stamp::at(1)).await.expect("truncate");
        }
        // Then user data until the device is full.
        let mut full = None;
        for i in 1 << 40.. {
            match shard.write(key(i), 0, data(2, CHUNK as usize), &Stamp::at(1)).await {
                Ok(_) => {}
                Err(e) => {
                    full = Some(e);
                    break;
                }
            }
        }
        for i in 1 << 50.. {
            match shard.write(key(i), 0, data(2, 4096), &Stamp::at(1)).await {
                Ok(_) => {}
                Err(e) => {
                    full = Some(e);
                    break;
                }
            }
        }
        assert!(matches!(full, Some(Error::NoSpace)), "{full:?}");
        // A full device must still take overwrites of metadata: truncates, deletions, checkpoints.
        for i in 1..=500 {
            let t = shard.truncate(key(i), 50, &Stamp::at(2)).await;
            assert!(t.is_ok(), "truncate {i} on a full device: {t:?}");
        }
        for i in 1..=500 {
            let t = shard.delete(key(i), &Stamp::at(2)).await;
            assert!(t.is_ok(), "delete {i} on a full device: {t:?}");
        }
        shard.checkpoint().await.expect("a checkpoint on a full device");
    });
    assert!(r.is_some());
}

#[test]
fn overwrites_wait_for_what_others_will_free() {
    // Overwrites side by side on a nearly full device were refused although each would free as much as it takes.
    let ex = LocalExecutor::new();
    run(&ex, async {
        let disk = formatted(options(5), 1).await;
        let store = open(&ex, &disk).await;
        store.tighten(1);
        let shard = store.shards[0].clone();
        let mut n = 0;
        while shard.write(key(n), 0, data(1, 4096), &Stamp::at(1)).await.is_ok() {
            n += 1;
        }
        for i in 0..8 {
            shard.delete(key(i), &Stamp::at(1)).await.expect("delete");
        }
        shard.flush().await.expect("flush");
        let results = crate::signal::join_all(
            (8..40).map(|i| {
                let shard = shard.clone();
                async move { shard.write(key(i), 0, data(3, 4096), &Stamp::at(2)).await.map(drop) }
            }),
            64,
        )
        .await;
        let failed = results.iter().filter(|r| r.is_err()).count();
        assert_eq!(failed, 0, "of 32 overwrites failed with ENOSPC, 8 blocks were free");
    });
}

#[test]
fn a_flush_of_the_device_gives_deleted_space_back() {
    // Deleted space came back only with the next write to the same shard.
    let ex = LocalExecutor::new();
    run(&ex, async {
        let disk = formatted(MemOptions::default(), 2).await;
        let store = open(&ex, &disk).await;
        for i in 0..24 {
            store.shards[0].write(key(i), 0, data(1, CHUNK as usize), &Stamp::at(1)).await.expect("write");
        }
        for i in 0..24 {
            store.shards[0].delete(key(i), &Stamp::at(1)).await.expect("delete");
        }
        // As the node's flusher does, once a second.
        for _ in 0..10 {
            store.device.flush().await.expect("flush");
            for _ in 0..200 {
                crate::signal::yield_now().await;
            }
        }
        let s = store.shards[0].stats();
        assert!(
            s.zones <= 2,
            "shard 0 holds no chunk, used {} blocks, and keeps {} zones",
            s.used_blocks,
            s.zones
        );
    });
}

#[test]
fn maps_in_memory_are_bounded_when_none_is_loaded() {
    // Maps were dropped from memory only when one was loaded: a load that only writes kept them all.
    let ex = LocalExecutor::new();
    run(&ex, async {
        let disk = formatted(MemOptions::default(), 1).await;
        let device = Device::open(disk.clone(), ex.spawner()).await.expect("opens");
        let options = ShardOptions { leaf_cache: 64 << 10, arena: None };
        let shard = device.open_shard(0, options).await.expect("opens");
        for i in 0..800 {
            shard.write(key(i), 0, data(1, 5 * 4096), &Stamp::at(1)).await.expect("write");
        }
        shard.checkpoint().await.expect("checkpoint");
        let [resident, dirty] = shard.stats().leaves;
        assert!(resident <= 64, "{resident} maps resident ({dirty} dirty), the cache of 64 KiB holds 20");
    });
}
