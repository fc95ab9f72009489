//! Random changes against a model in memory, with checkpoints, flushes and reopening in between.

use super::world::*;
use crate::index::Key;
use crate::local::LocalExecutor;
use crate::requests::RequestId;
use crate::shard::{Stamp, WriteOutcome};
use hugepages::{Buf, Bytes};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

fn against_model(seed: u64, rounds: u32, trim: bool) {
    let executor = LocalExecutor::new();
    let mut rng = Rng(seed);
    let mut model: BTreeMap<Key, Content> = keys(10).into_iter().map(|k| (k, None)).collect();
    run(&executor, async {
        let mut how = options(seed);
        how.trim = trim;
        let disk = formatted(how, 2).await;
        let mut store = open(&executor, &disk).await;
        for round in 0..rounds {
            // Several chunks at once, one change of each.
            let left = Rc::new(Cell::new(0));
            for (key, content) in &mut model {
                if rng.below(2) == 0 {
                    continue;
                }
                let op = random_op(&mut rng);
                apply(content, &op);
                let (shard, key, left) = (store.shard(*key).clone(), *key, left.clone());
                left.set(left.get() + 1);
                (executor.spawner())(Box::pin(async move {
                    carry_out(&shard, key, &op, &Stamp::at(u64::from(round)))
                        .await
                        .expect("the change works");
                    left.set(left.get() - 1);
                }));
            }
            while left.get() > 0 {
                crate::signal::yield_now().await;
            }
            match rng.below(20) {
                0 => store.shards[0].checkpoint().await.expect("checkpoint"),
                1 => store.device.flush().await.expect("flush"),
                2 => {
                    store.stop().await;
                    store = open(&executor, &disk).await;
                }
                _ => {}
            }
            if rng.below(6) == 0 {
                for (key, expected) in &model {
                    let got = content(store.shard(*key), *key).await;
                    assert!(got == *expected, "seed {seed}, round {round}: chunk {key} differs");
                }
            }
        }
        for shard in &store.shards {
            audit(shard).await;
        }
        store.stop().await;
        let store = open(&executor, &disk).await;
        for (key, expected) in &model {
            assert!(content(store.shard(*key), *key).await == *expected, "seed {seed}: chunk {key} differs");
        }
        for shard in &store.shards {
            audit(shard).await;
        }
        store.stop().await;
    });
}

#[test]
fn equals_the_model() {
    for seed in 0..8 {
        against_model(seed, 60, seed % 2 == 0);
    }
}

#[test]
fn concurrent_writes_of_one_chunk_keep_their_order() {
    for seed in 0..20 {
        let executor = LocalExecutor::new();
        run(&executor, async {
            let disk = formatted(options(seed), 1).await;
            let store = open(&executor, &disk).await;
            let key = Key { object: 1, index: 0 };
            let mut rng = Rng(seed);
            let mut expected = None;
            let left = Rc::new(Cell::new(0));
            for i in 0..60u64 {
                let (offset, len) = (rng.below(40_000), 1 + rng.below(20_000));
                let op = Op::Write { offset, data: vec![i as u8 + 1; len as usize] };
                apply(&mut expected, &op);
                let (shard, left) = (store.shards[0].clone(), left.clone());
                left.set(left.get() + 1);
                (executor.spawner())(Box::pin(async move {
                    carry_out(&shard, key, &op, &Stamp::at(i)).await.expect("the write works");
                    left.set(left.get() - 1);
                }));
            }
            while left.get() > 0 {
                crate::signal::yield_now().await;
            }
            assert!(content(&store.shards[0], key).await == expected, "seed {seed}");
            audit(&store.shards[0]).await;
        });
    }
}

#[test]
fn a_repeated_request_gets_the_first_answer() {
    let executor = LocalExecutor::new();
    run(&executor, async {
        let disk = formatted(options(1), 1).await;
        let store = open(&executor, &disk).await;
        let shard = &store.shards[0];
        let key = Key { object: 1, index: 0 };
        let stamp =
            |sequence| Stamp { request: Some(RequestId { client: 7, channel: 3, sequence }), ..Stamp::at(1) };
        let first = shard.write(key, 0, Bytes::from(vec![1; 5000]), &stamp(1)).await.expect("works");
        let extent = crate::Written { key, offset: 0, len: 5000 };
        let done =
            WriteOutcome { created: true, blocks_delta: 2, length: 5000, extent, ..WriteOutcome::default() };
        assert_eq!(first, done);
        shard.write(key, 0, Bytes::from(vec![2; 10]), &Stamp::at(2)).await.expect("works");
        let again =
            shard.write(key, 0, Bytes::from(vec![1; 5000]), &stamp(1)).await.expect("the stored answer");
        assert_eq!(again, WriteOutcome { repeated: true, ..first });
        assert_eq!(content(shard, key).await.expect("there")[0], 2, "the repeat had an effect");
        shard.write(key, 0, Bytes::from(vec![3; 10]), &stamp(2)).await.expect("works");
        let stale = shard.write(key, 0, Bytes::from(vec![1; 5000]), &stamp(1)).await;
        assert!(matches!(stale, Err(crate::Error::StaleRequest { last: 2, .. })), "{stale:?}");
        // From the log, and from a checkpoint.
        let store = {
            let disk = disk.kill(1, options(2));
            let store = open(&executor, &disk).await;
            assert_eq!(store.shards[0].last_request(7, 3).map(|l| l.0), Some(2));
            store.stop().await;
            open(&executor, &disk).await
        };
        let (sequence, outcome) = store.shards[0].last_request(7, 3).expect("stored");
        assert_eq!(sequence, 2);
        let extent = crate::Written { key, offset: 0, len: 10 };
        let stored = WriteOutcome { length: 5000, extent, ..WriteOutcome::default() };
        assert_eq!(WriteOutcome::decode(&outcome), Some(stored));
        assert_eq!(store.shards[0].clients(), [7]);
        store.shards[0].forget_client(7).await.expect("works");
        assert_eq!(store.shards[0].last_request(7, 3), None);
        assert!(store.shards[0].clients().is_empty());
    });
}

#[test]
fn a_dropped_write_leaves_nothing_locked() {
    let executor = LocalExecutor::new();
    run(&executor, async {
        let disk = formatted(options(3), 1).await;
        let store = open(&executor, &disk).await;
        let (shard, key) = (&store.shards[0], Key { object: 1, index: 0 });
        for polls in 0..40 {
            let mut write = Box::pin(shard.write(key, 100, Bytes::from(vec![polls; 9000]), &STAMP));
            for _ in 0..polls {
                let done =
                    std::future::poll_fn(|cx| std::task::Poll::Ready(write.as_mut().poll(cx).is_ready()));
                if done.await {
                    break;
                }
                crate::signal::yield_now().await;
            }
        }
        shard.write(key, 0, Buf::copy_of(&[9; 8192]).freeze(), &STAMP).await.expect("works");
        assert_eq!(content(shard, key).await.expect("there")[..8192], [9; 8192]);
        audit(shard).await;
    });
}

const STAMP: Stamp = Stamp { time: 0, request: None, class: crate::Class::User, min_length: 0 };
