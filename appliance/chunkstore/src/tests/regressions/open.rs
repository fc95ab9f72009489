//! Opening after crashes and with damage.

use super::*;
use crate::device::MemOptions;
use crate::error::Error;
use crate::local::LocalExecutor;
use crate::shard::{ShardOptions, Stamp};
use crate::store::Device;

#[test]
fn a_crash_loop_never_fills_the_log() {
    // Each opening added an empty record to the log: a store with a full ring could not be opened any more.
    let ex = LocalExecutor::new();
    let mut disk = run(&ex, formatted(MemOptions::default(), 1));
    // Fill the namespace log's ring as far as appends get (nobody trims in time).
    let full: Option<()> = ex.run(async {
        let store = open(&ex, &disk).await;
        loop {
            store.log.append(vec![3; 200_000]).await.expect("append");
            if store.log.stats().used_blocks + 80 > store.log.stats().ring_blocks {
                loop {
                    store.log.append(vec![3; 100]).await.expect("append");
                }
            }
        }
    });
    assert!(full.is_none(), "appends wait for a trim");
    ex.clear();
    for life in 0..12 {
        disk = disk.kill(life, MemOptions::default());
        let opened = ex.run(async {
            let store = open(&ex, &disk).await;
            store.records.len()
        });
        ex.clear();
        assert!(opened.is_some(), "opening hangs for ever in life {life}");
    }
}

#[test]
fn a_checkpoint_waits_until_all_shards_are_open() {
    // A checkpoint that was due at opening made its shard read-only because other shards were not open yet.
    let ex = LocalExecutor::new();
    let disk = run(&ex, async {
        let disk = formatted(MemOptions::default(), 2).await;
        let device = Device::open(Slow::new(disk.clone(), true), ex.spawner()).await.expect("opens");
        let shard = device.open_shard(0, ShardOptions::default()).await.expect("opens");
        let _other = device.open_shard(1, ShardOptions::default()).await.expect("opens");
        for i in 0..100 * 8u64 {
            let shard = shard.clone();
            (ex.spawner())(Box::pin(async move {
                drop(shard.write(key(i), 0, data(7, 4096), &Stamp::at(1)).await);
            }));
            for _ in 0..if i % 8 == 7 { 20 } else { 0 } {
                crate::signal::yield_now().await;
            }
        }
        device.flush().await.expect("flush");
        disk.kill(3, MemOptions::default())
    });
    ex.clear();
    run(&ex, async {
        let device = Device::open(disk.clone(), ex.spawner()).await.expect("opens");
        let shard = device.open_shard(0, ShardOptions::default()).await.expect("opens");
        // The other shard's log is long, or its core is slower.
        for _ in 0..5000 {
            crate::signal::yield_now().await;
        }
        let _other = device.open_shard(1, ShardOptions::default()).await.expect("opens");
        assert_eq!(shard.stats().read_only, None, "log {:?}", shard.stats().log_space);
    });
}

#[test]
fn a_read_error_cuts_no_flushed_neighbour() {
    // One block that could not be read took flushed writes beside it away.
    let ex = LocalExecutor::new();
    let (disk, bad) = run(&ex, async {
        let disk = formatted(MemOptions::default(), 1).await;
        let store = open(&ex, &disk).await;
        let shard = &store.shards[0];
        shard.write(key(1), 0, data(1, 4096), &Stamp::at(1)).await.expect("write");
        shard.write(key(2), 0, data(2, 4096), &Stamp::at(1)).await.expect("write");
        shard.flush().await.expect("fsync of both was acknowledged");
        let bad = shard.data_places(key(2)).await[0];
        (disk.kill(1, MemOptions::default()), bad)
    });
    ex.clear();
    disk.fail_reads(bad, true);
    run(&ex, async {
        let store = open(&ex, &disk).await;
        let shard = &store.shards[0];
        assert!(
            shard.stat(key(1)).is_some(),
            "chunk 1, flushed and readable, is gone: its neighbour can't be read"
        );
    });
}

#[test]
fn a_flip_in_flushed_data_is_an_error() {
    // A flipped bit in data that was flushed before the store went quiet brought the contents from before back.
    let ex = LocalExecutor::new();
    let (disk, bad) = run(&ex, async {
        let disk = formatted(MemOptions::default(), 1).await;
        let store = open(&ex, &disk).await;
        let shard = &store.shards[0];
        shard.write(key(1), 0, data(1, 4096), &Stamp::at(1)).await.expect("write");
        shard.flush().await.expect("flush");
        shard.write(key(1), 0, data(2, 4096), &Stamp::at(1)).await.expect("write");
        shard.write(key(3), 0, data(2, 4096), &Stamp::at(1)).await.expect("write");
        shard.flush().await.expect("fsync was acknowledged");
        // As a second later: the quiet log writes down what was flushed.
        assert!(store.device.needs_flush());
        store.device.flush().await.expect("flush");
        store.device.flush().await.expect("flush");
        assert!(!store.device.needs_flush(), "a quiet store comes to rest");
        let bad = shard.data_places(key(1)).await[0];
        (disk.kill(1, MemOptions::default()), bad)
    });
    ex.clear();
    disk.flip(bad * 4096 + 5, 1);
    run(&ex, async {
        let store = open(&ex, &disk).await;
        let shard = &store.shards[0];
        let other = shard.stat(key(3));
        match shard.read(key(1), 0, 4096).await {
            Err(Error::BadBlock { .. }) => {}
            Err(e) => panic!("{e}"),
            Ok(r) => {
                panic!("reads as {:?} without an error; a later fsync'd chunk: {other:?}", &r.pieces[0][..1])
            }
        }
    });
}

#[test]
fn a_root_knows_that_a_missing_record_was_flushed() {
    // A log that ended before a record which its root says was flushed was opened as if nothing was missing.
    let mut tried = 0;
    for delay in 0..40 {
        let ex = LocalExecutor::new();
        let (disk, rings, flushed) = run(&ex, async {
            let disk = formatted(MemOptions::default(), 1).await;
            let store = open(&ex, &disk).await;
            let shard = store.shards[0].clone();
            for i in 0..8 {
                shard.write(key(i), 0, data(1, 4096), &Stamp::at(1)).await.expect("write");
            }
            let (s, stamp) = (shard.clone(), Stamp::at(1));
            let beside = async {
                for _ in 0..delay {
                    crate::signal::yield_now().await;
                }
                s.write(key(7), 0, data(2, 4096), &stamp).await.expect("write")
            };
            crate::signal::join(shard.checkpoint(), beside).await.0.expect("checkpoint");
            shard.flush().await.expect("fsync is acknowledged");
            let shared = store.device.shared();
            let owner = crate::group::Owner { tag: shared.tag, owner: 0 };
            let root = crate::nslog::read_roots(&disk, &shared.layout, owner).await.expect("a root").root;
            (
                disk.kill(1, MemOptions::default()),
                shared.layout.shard_log(0),
                (root.flushed, root.anchor.next),
            )
        });
        ex.clear();
        // Both copies of a group that the root tells of go bad, with all after it.
        let mut after = Vec::new();
        for b in 0..rings[0].blocks {
            let block = disk.peek(rings[0].start + b);
            if block[4..8] == *b"CfLg" {
                let mut first = [0; 8];
                first.copy_from_slice(&block[16..24]);
                after.push((u64::from_le_bytes(first), b));
            }
        }
        after.retain(|(first, _)| *first >= flushed.1);
        let Some(&last) = after.iter().min().filter(|(first, _)| *first <= flushed.0) else { continue };
        tried += 1;
        for r in rings {
            after.iter().for_each(|(_, b)| disk.flip((r.start + b) * 4096 + 30, 1));
        }
        run(&ex, async {
            let device = Device::open(disk.clone(), ex.spawner()).await.expect("opens");
            match device.open_shard(0, ShardOptions::default()).await {
                Err(Error::Damaged { .. }) => {}
                Err(e) => panic!("{e}"),
                Ok(shard) => {
                    let got = shard.read(key(7), 0, 4096).await.map(|r| r.into_bytes()[0]);
                    assert!(
                        matches!(got, Ok(2)),
                        "delay {delay}: opened without a word, record {} is gone, the root says flushed {}; reads {got:?}, not 2",
                        last.0,
                        flushed.0
                    );
                }
            }
        });
        ex.clear();
    }
    assert!(tried > 0, "no case");
}

#[test]
fn zones_that_a_crash_left_empty_come_back() {
    // Zones that were empty after a crash stayed with their shard.
    let ex = LocalExecutor::new();
    let disk = run(&ex, async {
        let disk = formatted(MemOptions::default(), 2).await;
        let store = open(&ex, &disk).await;
        let n = 80;
        for i in 0..n {
            store.shards[0].write(key(i), 0, data(1, CHUNK as usize), &Stamp::at(1)).await.expect("write");
        }
        for i in 0..n {
            store.shards[0].delete(key(i), &Stamp::at(1)).await.expect("delete");
        }
        store.device.flush().await.expect("flush");
        disk.kill(1, MemOptions::default())
    });
    ex.clear();
    run(&ex, async {
        let store = open(&ex, &disk).await;
        for _ in 0..3 {
            store.shards[0].flush().await.expect("flush");
            store.shards[0].checkpoint().await.expect("checkpoint");
            for _ in 0..200 {
                crate::signal::yield_now().await;
            }
        }
        let s = store.shards[0].stats();
        let free = store.device.stats().free_bytes >> 20;
        let all = store.device.stats().zone_bytes >> 20;
        assert!(
            s.zones <= 4,
            "shard 0 holds nothing and keeps {} of {all} zones, the pool has {free}",
            s.zones
        );
    });
}

#[test]
fn an_empty_page_knows_its_record() {
    // A zone that was freed and returned during a checkpoint left an empty page without a sequence: replay met the frees
    // from before and refused the shard.
    let ex = LocalExecutor::new();
    let disk = run(&ex, async {
        let disk = formatted(MemOptions::default(), 1).await;
        let slow = Slow::new(disk.clone(), true);
        let device = Device::open(slow.clone(), ex.spawner()).await.expect("opens");
        let shard = device.open_shard(0, ShardOptions::default()).await.expect("opens");
        for i in 0..9 {
            shard.write(key(i), 0, data(1, CHUNK as usize), &Stamp::at(1)).await.expect("write");
        }
        // More pages than are written at once.
        for i in 100..130 {
            shard.write(key(i), 0, data(1, 4096), &Stamp::at(1)).await.expect("write");
        }
        device.flush().await.expect("flush");
        // All in the records after the anchor: the frees, the return, and the page frozen after both.
        let work = async {
            turns(200).await;
            for i in 0..8 {
                shard.delete(key(i), &Stamp::at(1)).await.expect("delete");
            }
            device.flush().await.expect("flush");
            turns(40).await;
            assert!(shard.stats().zones <= 3, "zones were returned: {:?}", shard.stats());
            slow.release();
        };
        crate::signal::join(shard.checkpoint(), work).await.0.expect("checkpoint");
        disk.kill(1, MemOptions::default())
    });
    ex.clear();
    run(&ex, async {
        let store = open(&ex, &disk).await;
        assert_eq!(store.shards[0].stats().chunks, 31);
        audit(&store.shards[0]).await;
    });
}

#[test]
fn a_lost_map_leaves_the_other_chunks_readable() {
    // A map bad in both copies that the log changes made its whole shard impossible to open.
    let ex = LocalExecutor::new();
    let (disk, place) = run(&ex, async {
        let disk = formatted(MemOptions::default(), 1).await;
        let store = open(&ex, &disk).await;
        let shard = &store.shards[0];
        shard.write(key(1), 0, data(1, 40_960), &Stamp::at(1)).await.expect("write");
        shard.write(key(2), 0, data(2, 4096), &Stamp::at(1)).await.expect("write");
        shard.checkpoint().await.expect("checkpoint");
        shard.write(key(1), 0, data(3, 4096), &Stamp::at(1)).await.expect("write");
        shard.flush().await.expect("flush");
        let (place, _) = shard.leaf_place(key(1)).expect("a map");
        (disk.kill(1, MemOptions::default()), place)
    });
    ex.clear();
    place.into_iter().for_each(|block| disk.flip(block * 4096 + 100, 1));
    run(&ex, async {
        let store = open(&ex, &disk).await;
        let shard = &store.shards[0];
        let lost = shard.read(key(1), 0, 10).await;
        assert!(matches!(lost, Err(Error::Damaged { .. })), "{lost:?}");
        assert_eq!(shard.read(key(2), 0, 10).await.expect("reads").into_bytes()[0], 2);
        let write = shard.write(key(2), 0, data(1, 10), &Stamp::at(1)).await;
        assert!(matches!(write, Err(Error::ReadOnly { .. })), "{write:?}");
    });
}

#[test]
fn scrub_saves_a_page_that_is_bad_in_both_copies() {
    // Scrub reported such a page although memory had all of it: the next opening refused the shard.
    let ex = LocalExecutor::new();
    run(&ex, async {
        let disk = formatted(MemOptions::default(), 1).await;
        let store = open(&ex, &disk).await;
        let shard = &store.shards[0];
        shard.write(key(2), 0, data(2, 4096), &Stamp::at(1)).await.expect("write");
        shard.checkpoint().await.expect("checkpoint");
        let places = shard.metadata_places();
        places.iter().flatten().for_each(|block| disk.flip(block * 4096 + 100, 1));
        let mut damaged = 0;
        for step in 0..crate::SCRUB_STEPS {
            damaged += shard
                .scrub_step(step, crate::ScrubOptions { repair: true, data: true })
                .await
                .expect("scrubs")
                .metadata_damaged;
        }
        assert_eq!(damaged, 2 * places.len() as u64);
        store.stop().await;
        let store = open(&ex, &disk).await;
        assert_eq!(store.shards[0].read(key(2), 0, 10).await.expect("reads").into_bytes()[0], 2);
    });
}
