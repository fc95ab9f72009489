//! What was acknowledged, to whom, and in which order.

use super::*;
use crate::device::MemOptions;
use crate::local::LocalExecutor;
use crate::requests::RequestId;
use crate::shard::{Shard, ShardOptions, Stamp};
use crate::store::Device;
use std::cell::RefCell;

#[test]
fn a_failed_flush_is_final_on_every_core() {
    // A core went on to acknowledge fsyncs after a flush of the device had failed on another core.
    let ex = LocalExecutor::new();
    run(&ex, async {
        let disk = formatted(MemOptions::default(), 2).await;
        let core0 = Device::open(disk.clone(), ex.spawner()).await.expect("opens");
        let core1 = Device::attach(disk.clone(), ex.spawner(), core0.shared());
        let _s0 = core0.open_shard(0, ShardOptions::default()).await.expect("shard");
        let s1 = core1.open_shard(1, ShardOptions::default()).await.expect("shard");
        s1.write(key(1), 0, data(1, 4096), &Stamp::at(1)).await.expect("write");
        disk.fail_flushes(true);
        core0.flush().await.expect_err("the device says that the flush failed");
        // The kernel reports such an error once; the next fsync succeeds whatever was lost.
        disk.fail_flushes(false);
        assert!(s1.flush().await.is_err(), "core 1 acknowledges an fsync after a flush of the device failed");
        assert!(core1.flush().await.is_err(), "core 1 acknowledges a commit");
    });
}

#[test]
fn a_slow_read_of_a_map_never_installs_an_old_one() {
    // A read of a map that took longer than two checkpoints found the map at its old place again and installed what it had read.
    let ex = LocalExecutor::new();
    run(&ex, async {
        let disk = formatted(MemOptions::default(), 1).await;
        let held = Slow::new(disk, false);
        let device = Device::open(held.clone(), ex.spawner()).await.expect("opens");
        let options = ShardOptions { leaf_cache: 1, arena: None };
        let shard: Shard<Slow> = device.open_shard(0, options).await.expect("opens");
        let k = key(1);
        let write = |k: Key, byte: u8| {
            let shard = shard.clone();
            async move { shard.write(k, 0, data(byte, 40_960), &Stamp::at(1)).await.expect("write") }
        };
        write(k, 1).await;
        for i in 100..140 {
            write(key(i), 9).await;
        }
        shard.checkpoint().await.expect("checkpoint");
        device.flush().await.expect("flush");
        shard.stop().await.expect("stops");
        device.stop().await.expect("stops");
        let device = Device::open(held.clone(), ex.spawner()).await.expect("opens");
        let options = ShardOptions { leaf_cache: 1, arena: None };
        let shard: Shard<Slow> = device.open_shard(0, options).await.expect("opens");
        let write = |k: Key, byte: u8| {
            let shard = shard.clone();
            async move { shard.write(k, 0, data(byte, 40_960), &Stamp::at(1)).await.expect("write") }
        };
        let evict = || {
            let shard = shard.clone();
            async move {
                for i in (100..140).chain(100..140) {
                    shard.read(key(i), 0, 4096).await.expect("read");
                }
            }
        };
        evict().await;
        let places = |s: &Shard<Slow>| s.leaf_place(k);
        let (home, resident) = places(&shard).expect("a leaf");
        assert!(!resident, "the map was to be evicted");
        held.block.set(home[0]);
        // A reader asks for the map and the device takes its time.
        let got: Rc<RefCell<Option<Vec<u8>>>> = Rc::default();
        let (s, g) = (shard.clone(), got.clone());
        (ex.spawner())(Box::pin(async move {
            let read = s.read(k, 0, 4096).await.expect("read");
            *g.borrow_mut() = Some(read.into_bytes().to_vec());
        }));
        while !held.caught.get() {
            crate::signal::yield_now().await;
        }
        let mut back = false;
        for round in 2..40u8 {
            write(k, round).await;
            shard.checkpoint().await.expect("checkpoint");
            evict().await;
            if let Some((at, resident)) = places(&shard)
                && at[0] == home[0]
                && !resident
            {
                back = true;
                break;
            }
        }
        assert!(back, "the map did not come to its old place again: nothing to see");
        held.block.set(u64::MAX);
        held.release();
        while got.borrow().is_none() {
            crate::signal::yield_now().await;
        }
        let fresh = shard.read(k, 0, 4096).await.expect("read").into_bytes()[0];
        assert_ne!(
            got.borrow().as_ref().expect("read")[0],
            1,
            "the reader got the first version; a later read: {fresh}"
        );
    });
}

#[test]
fn an_answer_has_the_length_after_a_truncate() {
    // A write that waited behind a truncate was told the length from before it.
    let ex = LocalExecutor::new();
    run(&ex, async {
        let disk = formatted(options(3), 1).await;
        let store = open(&ex, &disk).await;
        let shard = store.shards[0].clone();
        let k = key(1);
        shard.write(k, 0, data(1, 4096), &Stamp::at(1)).await.expect("write");
        let out = Rc::new(RefCell::new(None));
        let stamp = Stamp::at(1);
        let (s, o) = (shard.clone(), out.clone());
        let a = async { shard.write(k, 100_000, data(1, 4096), &stamp).await.expect("a") };
        let b = async { shard.truncate(k, 0, &stamp).await.expect("b") };
        let c = async move { *o.borrow_mut() = Some(s.write(k, 0, data(1, 10), &Stamp::at(1)).await.expect("c")) };
        crate::signal::join(a, crate::signal::join(b, c)).await;
        let now = shard.stat(k).expect("there").length;
        assert_eq!(out.borrow().expect("done").length, now, "the answer's length against the chunk's");
    });
}

#[test]
fn a_repeat_of_a_request_without_effect_has_none() {
    // A repeated delete, whose first run found nothing, deleted what was written in between.
    let ex = LocalExecutor::new();
    run(&ex, async {
        let disk = formatted(MemOptions::default(), 1).await;
        let store = open(&ex, &disk).await;
        let shard = &store.shards[0];
        let request = |sequence| Some(RequestId { client: 9, channel: 1, sequence });
        let first =
            shard.delete(key(1), &Stamp { request: request(5), ..Stamp::at(1) }).await.expect("first");
        shard.write(key(1), 0, data(4, 4096), &Stamp::at(2)).await.expect("another's write");
        let again =
            shard.delete(key(1), &Stamp { request: request(5), ..Stamp::at(1) }).await.expect("repeat");
        assert_eq!(again, crate::WriteOutcome { repeated: true, ..first }, "the repeat got another answer");
        assert!(shard.stat(key(1)).is_some(), "the repeat deleted what was written in between");
    });
}

#[test]
fn a_dropped_trim_blocks_no_later_one() {
    // A trim of the namespace log whose caller gave up made every later trim wait for ever.
    let ex = LocalExecutor::new();
    let disk = run(&ex, formatted(options(1), 1));
    let ended = ex.run(async {
        let store = open(&ex, &disk).await;
        let seq = store.log.append(vec![1; 100]).await.expect("append");
        {
            let mut trim = Box::pin(store.log.trim(seq));
            std::future::poll_fn(|cx| {
                let _ = trim.as_mut().poll(cx);
                std::task::Poll::Ready(())
            })
            .await;
        }
        store.log.trim(seq).await.expect("trims");
    });
    assert!(ended.is_some(), "the second trim hangs for ever");
}

#[test]
fn a_wait_keeps_one_waker() {
    // Each wake-up of a task that waits for two things added a waker to the thing that did not happen.
    let ex = LocalExecutor::new();
    run(&ex, async {
        let (never, ticks) =
            (Rc::new(crate::signal::Waiters::default()), Rc::new(crate::signal::Waiters::default()));
        for _ in 0..100 {
            let (never, ticks) = (never.clone(), ticks.clone());
            (ex.spawner())(Box::pin(async move {
                crate::signal::join(never.until(|| false), ticks.until(|| false)).await;
            }));
        }
        for _ in 0..1000 {
            crate::signal::yield_now().await;
            ticks.wake_all();
        }
        let n = format!("{never:?}").matches("Waker").count();
        assert!(n <= 200, "100 waiting tasks left {n} wakers");
    });
    ex.clear();
}
