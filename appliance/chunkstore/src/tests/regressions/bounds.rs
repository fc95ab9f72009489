//! Queues that had no end, and work that had no reason.

use super::*;
use crate::device::MemOptions;
use crate::local::LocalExecutor;
use crate::shard::{Shard, ShardOptions, Stamp};
use crate::store::Device;

/// Runs `n` changes as tasks of their own; gives the most runs that waited to be reused, and the most bytes of records under way.
async fn crowd<F: Future<Output = ()> + 'static>(
    ex: &LocalExecutor,
    shard: &Shard<impl BlockDevice>,
    n: u64,
    change: impl Fn(u64) -> F,
) -> (usize, usize) {
    let left = Rc::new(Cell::new(n));
    for i in 0..n {
        let (left, change) = (left.clone(), change(i));
        (ex.spawner())(Box::pin(async move {
            change.await;
            left.set(left.get() - 1);
        }));
    }
    let mut most = (0, 0);
    while left.get() > 0 {
        let (freed, records) = shard.backlog();
        most = (most.0.max(freed), most.1.max(records));
        crate::signal::yield_now().await;
    }
    most
}

#[test]
fn freed_blocks_that_wait_for_a_flush_are_bounded() {
    // Deletions write no data, so nothing made them wait for a flush: each of their runs stood in memory until the next.
    let ex = LocalExecutor::new();
    run(&ex, async {
        let disk = formatted(options(7), 1).await;
        let store = open(&ex, &disk).await;
        let shard = store.shards[0].clone();
        for block in 0..8 {
            for n in 0..200 {
                shard.write(key(n), block * 8192, data(1, 4096), &Stamp::at(1)).await.expect("write");
            }
        }
        let deleting = shard.clone();
        let (freed, _) = crowd(&ex, &shard, 200, move |n| {
            let shard = deleting.clone();
            async move { shard.delete(key(n), &Stamp::at(2)).await.map(drop).expect("delete") }
        })
        .await;
        // What is under way when the limit is met comes on top: 16 changes of 8 runs.
        assert!((200..=256 + 16 * 8).contains(&freed), "{freed} runs waited, of 1600");
        audit(&shard).await;
    });
}

#[test]
fn a_crowd_before_one_chunk_is_let_in_one_by_one() {
    // The limit was looked at before the lock of the chunk was waited for, and by all that were woken at once.
    let ex = LocalExecutor::new();
    run(&ex, async {
        let disk = formatted(MemOptions::default(), 1).await;
        let slow = Slow::new(disk, true);
        let device = Device::open(slow.clone(), ex.spawner()).await.expect("opens");
        let shard = device.open_shard(0, ShardOptions::default()).await.expect("opens");
        let writing = shard.clone();
        let write = move |n: u64| {
            let shard = writing.clone();
            async move {
                let at = (n % 64) as u32 * 4096;
                shard.write(key(0), at, data(n as u8, 4096), &Stamp::at(1)).await.map(drop).expect("write");
            }
        };
        write(0).await;
        // The first checkpoint hangs: the log fills up behind it.
        let bell = slow.clone();
        (ex.spawner())(Box::pin(async move {
            turns(3000).await;
            bell.release();
        }));
        let (_, records) = crowd(&ex, &shard, 1500, write).await;
        assert_eq!(records, 16 << 10, "so many bytes of records were under way");
        shard.audit().await;
    });
}

#[test]
fn a_trim_that_trims_nothing_writes_nothing() {
    // A trim up to a record that was trimmed before wrote a root and flushed the device twice.
    let ex = LocalExecutor::new();
    run(&ex, async {
        let disk = formatted(MemOptions::default(), 1).await;
        let store = open(&ex, &disk).await;
        let first = store.log.append(vec![1; 100]).await.expect("append");
        store.log.flush().await.expect("flush");
        store.log.trim(first).await.expect("trim");
        store.log.append(vec![2; 100]).await.expect("append");
        store.log.flush().await.expect("flush");
        let before = disk.counts();
        for last in [first, first - 1, 0] {
            store.log.trim(last).await.expect("trim");
        }
        assert_eq!(disk.counts(), before, "(writes, flushes)");
        store.log.trim(first + 1).await.expect("trim");
        assert_ne!(disk.counts(), before);
    });
}
