//! A store on a simulated disk, random changes, a model of what they mean, and an audit of the space.

use crate::device::{MemDevice, MemOptions};
use crate::index::Key;
use crate::local::LocalExecutor;
use crate::nslog::Log;
use crate::shard::{Shard, ShardOptions, Stamp};
use crate::store::{Device, FormatOptions, format};
use hugepages::{Buf, Bytes};

pub(super) const CHUNK: u32 = 256 << 10;

/// splitmix64.
#[derive(Clone)]
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        crate::index::mix(self.0)
    }

    pub(super) fn below(&mut self, n: u32) -> u32 {
        (self.next() % u64::from(n)) as u32
    }
}

pub(super) struct Store {
    pub(super) device: Device<MemDevice>,
    pub(super) shards: Vec<Shard<MemDevice>>,
    pub(super) log: Log<MemDevice>,
    pub(super) records: Vec<(u64, Vec<u8>)>,
}

pub(super) fn run<T>(executor: &LocalExecutor, f: impl Future<Output = T>) -> T {
    executor.run(f).expect("nothing is left to run, but the future has not ended")
}

pub(super) async fn formatted(options: MemOptions, shards: u16) -> MemDevice {
    let disk = MemDevice::new(crate::MIN_DEVICE, MemOptions::default());
    let how = FormatOptions { shards, chunk_size: CHUNK, ..FormatOptions::default() };
    format(&disk, &how, |_, _| {}).await.expect("a fresh disk can be formatted");
    disk.set_options(options);
    disk
}

pub(super) async fn open(executor: &LocalExecutor, disk: &MemDevice) -> Store {
    let device = Device::open(disk.clone(), executor.spawner()).await.expect("the device opens");
    let mut shards = Vec::new();
    for number in 0..device.shards() {
        // A small cache, so that leaves come and go.
        let options = ShardOptions { leaf_cache: 64 << 10, arena: None };
        shards.push(device.open_shard(number, options).await.expect("the shard opens"));
    }
    let mut records = Vec::new();
    let log = device.open_log(None, |seq, record| {
        records.push((seq, record.to_vec()));
        Ok(())
    });
    let log = log.await.expect("the log opens");
    Store { device, shards, log, records }
}

impl Store {
    /// Leaves `zones` of the pool for user data, so that freed blocks are soon used again.
    pub(super) fn tighten(&self, zones: u32) {
        let pool = &self.device.shared().pool;
        while pool.user_free() > zones {
            pool.take(crate::pool::Taker::User).expect("user zones are free");
        }
    }

    pub(super) fn shard(&self, key: Key) -> &Shard<MemDevice> {
        &self.shards[key.object as usize % self.shards.len()]
    }

    pub(super) async fn stop(self) {
        for shard in &self.shards {
            shard.stop().await.expect("the shard stops");
        }
        self.log.stop().await.expect("the log stops");
        self.device.stop().await.expect("the device stops");
    }
}

/// A change of one chunk.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Write { offset: u32, data: Vec<u8> },
    Truncate(u32),
    Punch(u32, u32),
    Zero(u32, u32, bool),
    Preallocate(u32, u32),
    Delete,
}

pub(super) fn random_op(rng: &mut Rng) -> Op {
    let offset = match rng.below(4) {
        0 => rng.below(CHUNK / 4096) * 4096,
        1 => rng.below(20_000),
        _ => rng.below(CHUNK),
    };
    let most = match rng.below(12) {
        0 => 200_000,
        1..4 => 40_000,
        _ => 6_000,
    };
    let mut len = 1 + rng.below(most).min(CHUNK - offset - 1);
    if rng.below(3) == 0 {
        len = len.next_multiple_of(4096).min(CHUNK - offset);
    }
    match rng.below(20) {
        0..12 => {
            let seed = rng.next();
            Op::Write {
                offset,
                data: (0..u64::from(len))
                    .map(|i| ((seed ^ i).wrapping_mul(0x9e37_79b9) >> 13) as u8)
                    .collect(),
            }
        }
        12..14 => Op::Truncate(offset),
        14..16 => Op::Punch(offset, len),
        16 => Op::Zero(offset, len, rng.below(2) == 0),
        17 => Op::Preallocate(offset, len),
        _ => Op::Delete,
    }
}

/// A chunk as it should read; `None` where there is none.
pub(super) type Content = Option<Vec<u8>>;

pub(super) fn apply(content: &mut Content, op: &Op) {
    let range = |offset: u32, len: u32| offset as usize..(offset + len) as usize;
    match op {
        Op::Write { offset, data } => {
            let content = content.get_or_insert_default();
            let end = *offset as usize + data.len();
            content.resize(content.len().max(end), 0);
            content[range(*offset, data.len() as u32)].copy_from_slice(data);
        }
        Op::Truncate(len) => {
            if let Some(content) = content {
                content.resize(*len as usize, 0);
            }
        }
        Op::Punch(offset, len) | Op::Zero(offset, len, _) => {
            if let Some(content) = content {
                let end = content.len();
                content[range(*offset, *len).start.min(end)..range(*offset, *len).end.min(end)].fill(0);
            } else if matches!(op, Op::Zero(_, _, true)) {
                *content = Some(Vec::new());
            }
        }
        Op::Preallocate(..) => drop(content.get_or_insert_default()),
        Op::Delete => *content = None,
    }
}

pub(super) async fn carry_out(
    shard: &Shard<MemDevice>,
    key: Key,
    op: &Op,
    stamp: &Stamp,
) -> Result<(), crate::Error> {
    match op {
        Op::Write { offset, data } => {
            // Aligned memory half of the time, so that both paths run.
            let bytes =
                if data.len() % 2 == 0 { Buf::copy_of(data).freeze() } else { Bytes::from(data.clone()) };
            shard.write(key, *offset, bytes, stamp).await.map(drop)
        }
        Op::Truncate(len) => shard.truncate(key, *len, stamp).await.map(drop),
        Op::Punch(offset, len) => shard.punch(key, *offset, *len, stamp).await.map(drop),
        Op::Zero(offset, len, keep) => shard.zero(key, *offset, *len, *keep, stamp).await.map(drop),
        Op::Preallocate(offset, len) => shard.preallocate(key, *offset, *len, stamp).await.map(drop),
        Op::Delete => shard.delete(key, stamp).await.map(drop),
    }
}

/// Reads a whole chunk back as the model has it.
pub(super) async fn content(shard: &Shard<MemDevice>, key: Key) -> Content {
    let read = shard.read(key, 0, CHUNK).await.expect("the chunk reads");
    let (exists, length) = (read.exists, read.length as usize);
    let bytes = read.into_bytes();
    assert!(bytes[length..].iter().all(|&b| b == 0), "bytes beyond the length of {key}");
    exists.then(|| bytes[..length].to_vec())
}

pub(super) async fn audit(shard: &Shard<MemDevice>) {
    shard.audit().await;
}

pub(super) fn options(seed: u64) -> MemOptions {
    MemOptions { seed, max_delay: 4, ..MemOptions::default() }
}

pub(super) fn keys(n: u64) -> Vec<Key> {
    (0..n).map(|i| Key { object: i / 2, index: (i % 2) as u32 }).collect()
}
