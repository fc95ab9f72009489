//! Power cuts and kills: what was flushed is there, what was acknowledged survives a mere kill, nothing is torn.

use super::world::*;
use crate::device::MemOptions;
use crate::error::Error;
use crate::index::Key;
use crate::local::LocalExecutor;
use crate::shard::Stamp;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Seeds of the ordinary run.
const SEEDS: u64 = 50;

#[derive(Default)]
struct History {
    /// Contents after each change that was started; the first is before any.
    states: Vec<Content>,
    acknowledged: usize,
    flushed: usize,
}

type Histories = Rc<RefCell<BTreeMap<Key, History>>>;

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Kill,
    PowerCut,
}

/// Runs random changes until the disk stops answering; gives what may be found afterwards.
fn load(executor: &LocalExecutor, disk: &crate::MemDevice, seed: u64, tight: bool, histories: &Histories) {
    let ended: Option<std::convert::Infallible> = executor.run(async {
        let store = open(executor, disk).await;
        check(&store, histories, seed).await;
        if tight {
            store.tighten(4);
        }
        for h in histories.borrow_mut().values_mut() {
            // What was found is where it starts again.
            let found = h.states[h.acknowledged].clone();
            *h = History { states: vec![found], acknowledged: 0, flushed: 0 };
        }
        for key in histories.borrow().keys().copied().collect::<Vec<_>>() {
            let (shard, histories) = (store.shard(key).clone(), histories.clone());
            let mut rng = Rng(seed ^ key.object << 8 ^ u64::from(key.index) << 50);
            (executor.spawner())(Box::pin(async move {
                let mut i = 0;
                loop {
                    let op = random_op(&mut rng);
                    {
                        let mut histories = histories.borrow_mut();
                        let h = histories.get_mut(&key).expect("a known key");
                        let mut next = h.states[i].clone();
                        apply(&mut next, &op);
                        h.states.push(next);
                    }
                    let result = carry_out(&shard, key, &op, &Stamp::at(i as u64)).await;
                    let mut histories = histories.borrow_mut();
                    let h = histories.get_mut(&key).expect("a known key");
                    match result {
                        Ok(()) => i += 1,
                        // A full device: nothing happened.
                        Err(Error::NoSpace) => drop(h.states.pop()),
                        Err(e) => panic!("{key}: {op:?}: {e}"),
                    }
                    h.acknowledged = i;
                }
            }));
        }
        let mut rng = Rng(seed ^ 0xf1);
        loop {
            for _ in 0..rng.below(200) {
                crate::signal::yield_now().await;
            }
            let sure: Vec<usize> = histories.borrow().values().map(|h| h.acknowledged).collect();
            if rng.below(4) == 0 {
                let shard = rng.below(store.shards.len() as u32) as usize;
                store.shards[shard].checkpoint().await.expect("checkpoint");
            } else {
                store.device.flush().await.expect("flush");
                for (h, sure) in histories.borrow_mut().values_mut().zip(sure) {
                    h.flushed = sure;
                }
            }
        }
    });
    assert!(ended.is_none(), "the disk was to stop");
    executor.clear();
}

/// Every chunk must be in one of the states from `flushed` on (a kill counts all acknowledged ones as flushed); remembers which.
async fn check(store: &Store, histories: &Histories, seed: u64) {
    let keys: Vec<Key> = histories.borrow().keys().copied().collect();
    for key in keys {
        let got = content(store.shard(key), key).await;
        let mut histories = histories.borrow_mut();
        let h = histories.get_mut(&key).expect("a known key");
        let least = h.flushed;
        let found = (least..h.states.len()).rev().find(|i| h.states[*i] == got);
        let older = (0..least).rev().find(|i| h.states[*i] == got);
        assert!(
            found.is_some(),
            "seed {seed}: chunk {key} is in state {older:?}, must be in {least}..{}; length {:?}",
            h.states.len(),
            got.map(|g| g.len()),
        );
        h.acknowledged = found.expect("checked");
    }
    for shard in &store.shards {
        audit(shard).await;
    }
}

fn campaign(seed: u64, end: End, tight: bool, how: impl Fn(u64) -> MemOptions) {
    let executor = LocalExecutor::new();
    let histories: Histories = Histories::default();
    for key in keys(6) {
        histories.borrow_mut().insert(key, History { states: vec![None], ..History::default() });
    }
    let mut disk = run(&executor, formatted(how(seed), 2));
    for life in 0..3 {
        load(&executor, &disk, seed.wrapping_mul(1000) + life, tight, &histories);
        let cut = seed ^ life << 32;
        disk = match end {
            End::Kill => disk.kill(cut, how(cut)),
            End::PowerCut => disk.power_cut(cut, how(cut)),
        };
        if end == End::Kill {
            for h in histories.borrow_mut().values_mut() {
                h.flushed = h.acknowledged;
            }
        }
    }
    disk.set_options(options(seed));
    run(&executor, async {
        let store = open(&executor, &disk).await;
        check(&store, &histories, seed).await;
        store.stop().await;
        let store = open(&executor, &disk).await;
        for h in histories.borrow_mut().values_mut() {
            h.flushed = h.acknowledged;
        }
        check(&store, &histories, seed).await;
    });
}

#[test]
fn power_cuts_at_random_writes() {
    for seed in 0..SEEDS {
        campaign(seed, End::PowerCut, false, |s| MemOptions {
            halt_after_writes: 200 + Rng(s).next() % 900,
            trim: seed % 4 == 0,
            ..options(s)
        });
    }
}

#[test]
fn power_cuts_at_flush_boundaries() {
    for seed in 0..SEEDS {
        campaign(seed, End::PowerCut, false, |s| MemOptions {
            halt_after_flushes: 8 + Rng(s).next() % 14,
            ..options(s)
        });
    }
}

#[test]
fn power_cuts_with_little_space() {
    for seed in 0..SEEDS {
        campaign(seed, End::PowerCut, true, |s| MemOptions {
            halt_after_writes: 400 + Rng(s).next() % 1500,
            trim: seed % 2 == 0,
            ..options(s)
        });
    }
}

#[test]
fn kills_lose_nothing_acknowledged() {
    for seed in 0..SEEDS {
        campaign(seed, End::Kill, seed % 2 == 0, |s| MemOptions {
            halt_after_writes: 200 + Rng(s).next() % 900,
            ..options(s)
        });
    }
}
