//! A shard: the chunks of one part of a device, owned by one core.
//!
//! The shell around the pure parts: it waits for the device, keeps order, and applies a change to the index only
//! when its record is complete. Reading is in `read`, changing in `write`, checkpoints in `checkpoint`, opening
//! in `open`, checking in `scrub`.

mod account;
#[cfg(test)]
mod audit;
mod checkpoint;
mod open;
mod read;
mod scrub;
mod space;
mod stats;
mod write;

pub use account::Accounts;
pub use read::{ChunkStat, Extent, ReadOutcome};
pub use scrub::{SCRUB_STEPS, ScrubOptions, ScrubReport};
use stats::{Counters, add};
pub use stats::{ShardStats, SpaceStats};
pub use write::{Stamp, WriteOutcome, Written};

use crate::device::BlockDevice;
use crate::error::Error;
use crate::flush::{Flusher, Member, Shared};
use crate::gate::Gate;
use crate::group::Owner;
use crate::index::{BUCKETS, Index, Key, bucket_of};
use crate::layout::{BLOCK_BYTES, Layout};
use crate::locks::Locks;
use crate::log::{Data, LogWriter, Urgency};
use crate::page::{Kind, ZONE_PAGES};
use crate::pool::Class;
use crate::record::{Record, Update};
use crate::requests::{REQUEST_PAGES, Requests, page_of};
use crate::root::PAGES;
use crate::signal::{Promise, Spawner, Waiters};
use crate::zones::{Run, Zones};
use hugepages::{Arena, Buf, Bytes};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes written since the last flush at which one is started: bounds what opening must verify after a crash.
const FLUSH_AT: u64 = 128 << 20;
/// Bytes written since the last flush at which writers wait for it.
const FLUSH_LIMIT: u64 = 2 * FLUSH_AT;
/// Bytes of records under way at which changes wait, as [`record_weight`] counts them. Small under test, so that it is met.
const RECORDS_LIMIT: usize = if cfg!(test) { 16 << 10 } else { 1 << 20 };
/// Least weight of a change: at most 1,024 are under way.
const RECORD_LEAST: usize = 1 << 10;
/// Most bytes that one block adds to a record: its CRC, a run of the map and a run that is freed.
const RECORD_BLOCK: usize = 4 + 12 + 12;
/// Runs that wait for a flush, or for reads under way, at which changes wait for it: 4 MiB of memory.
const FREED_LIMIT: usize = if cfg!(test) { 256 } else { 1 << 17 };

/// How a shard uses memory.
#[derive(Clone, Debug)]
pub struct ShardOptions {
    /// Bytes of leaves kept resident, by this shard alone; dirty ones up to half of it between checkpoints.
    pub leaf_cache: usize,
    /// Where buffers come from; without it, and when it is empty, from the heap.
    pub arena: Option<Arena>,
}

impl Default for ShardOptions {
    fn default() -> Self {
        // 16 shards keep 128 MiB: the maps of 42,000 chunks, 41 GiB of data.
        ShardOptions { leaf_cache: 8 << 20, arena: None }
    }
}

/// Resident bytes of a leaf.
const LEAF_BYTES: usize = size_of::<crate::leaf::Leaf>() + 64;

/// What checkpoints know of each page.
#[derive(Debug)]
struct Pages {
    dirty: Vec<bool>,
    dirty_count: usize,
    /// Last record that the page on the device reflects.
    seq: Vec<u64>,
    /// Both places of each block of the chain.
    chain: Vec<Vec<[u64; 2]>>,
}

impl Pages {
    fn new() -> Pages {
        Pages {
            dirty: vec![false; PAGES],
            dirty_count: 0,
            seq: vec![0; PAGES],
            chain: (0..PAGES).map(|_| Vec::new()).collect(),
        }
    }

    fn touch(&mut self, kind: Kind) {
        let page = kind.page();
        self.dirty_count += usize::from(!std::mem::replace(&mut self.dirty[page], true));
    }
}

/// A run that a completed record freed.
#[derive(Clone, Copy, Debug)]
struct Freed {
    /// The record; reused only after it was flushed.
    seq: u64,
    /// Reads that began before must have ended.
    reads: u64,
    run: Run,
}

/// The state that records change.
#[derive(Debug)]
struct Core {
    index: Index,
    zones: Zones,
    requests: Requests,
    /// Last record applied.
    applied: u64,
    pages: Pages,
    freed: VecDeque<Freed>,
    /// Blocks that are freed and not yet given out again: those of `freed` and those being trimmed.
    waiting: u64,
    /// Zones whose return is applied and waits for a flush.
    returned: VecDeque<(u64, u32, Class)>,
    /// Metadata that memory no longer refers to and the durable checkpoint may.
    unreferred: Vec<u64>,
    /// The pages that are being written: their leaves must not be evicted.
    writing: Vec<usize>,
}

impl Core {
    fn touch_zone(&mut self, block: u64) {
        if let Some(zone) = self.zones.zone_of(block) {
            self.pages.touch(Kind::Zones(zone as usize % ZONE_PAGES));
        }
    }

    fn apply(&mut self, seq: u64, record: &Record, reads: u64) {
        self.applied = seq;
        match record {
            Record::Update(update) => self.apply_update(seq, update, reads),
            Record::ZoneTake { zone, .. } => {
                self.zones.set_applied(*zone);
                self.pages.touch(Kind::Zones(*zone as usize % ZONE_PAGES));
            }
            Record::ZoneReturn { zone } => {
                if let Some(class) = self.zones.remove(*zone) {
                    self.returned.push_back((seq, *zone, class));
                }
                self.pages.touch(Kind::Zones(*zone as usize % ZONE_PAGES));
            }
            Record::Forget { client } => {
                for page in 0..REQUEST_PAGES {
                    if self.requests.forget(*client, page) {
                        self.pages.touch(Kind::Requests(page));
                    }
                }
            }
        }
    }

    fn apply_update(&mut self, seq: u64, update: &Update, reads: u64) {
        if let Some(leaf) = self.index.apply(update) {
            self.unreferred.extend(leaf);
        }
        self.pages.touch(Kind::Index(bucket_of(update.key)));
        for run in update.runs.iter().filter(|r| r.at != 0) {
            let start = run.at & !crate::leaf::UNWRITTEN;
            self.zones.set_state(Run { start, count: u32::from(run.count) }, true);
            self.touch_zone(start);
            self.touch_zone(start + u64::from(run.count) - 1);
        }
        for &run in &update.frees {
            self.zones.set_state(run, false);
            self.touch_zone(run.start);
            self.waiting += u64::from(run.count);
            self.freed.push_back(Freed { seq, reads, run });
        }
        if let Some((id, outcome)) = &update.request {
            self.requests.set(*id, outcome);
            self.pages.touch(Kind::Requests(page_of(id.client, id.channel)));
        }
    }
}

/// Reads under way, so that a freed block is not overwritten beneath one.
#[derive(Debug, Default)]
struct Reads {
    /// Number of the oldest entry of `ended`.
    first: Cell<u64>,
    ended: RefCell<VecDeque<bool>>,
    /// Woken when the oldest read ended.
    ends: Waiters,
}

impl Reads {
    fn begin(self: &Rc<Reads>) -> Reading {
        let mut ended = self.ended.borrow_mut();
        ended.push_back(false);
        Reading { reads: Rc::clone(self), number: self.first.get() + ended.len() as u64 - 1 }
    }

    /// Number that the next read gets.
    fn next(&self) -> u64 {
        self.first.get() + self.ended.borrow().len() as u64
    }
}

struct Reading {
    reads: Rc<Reads>,
    number: u64,
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut ended = self.reads.ended.borrow_mut();
        let first = &self.reads.first;
        if let Some(slot) = ended.get_mut((self.number - first.get()) as usize) {
            *slot = true;
        }
        let before = first.get();
        while ended.front() == Some(&true) {
            ended.pop_front();
            first.set(first.get() + 1);
        }
        if first.get() != before {
            self.reads.ends.wake_all();
        }
    }
}

struct Inner<D> {
    device: D,
    layout: Layout,
    number: u16,
    owner: Owner,
    flusher: Flusher<D>,
    shared: Arc<Shared>,
    spawner: Spawner,
    options: ShardOptions,
    log: LogWriter<D>,
    locks: Locks,
    /// Bounds the records under way.
    gate: Gate,
    /// One request of a channel at a time: a repeat that overtakes its first waits for it.
    channels: Locks,
    core: RefCell<Core>,
    reads: Rc<Reads>,
    /// One checkpoint at a time; `Some` holds what the running one will do about the next request.
    checkpointing: Cell<bool>,
    checkpoints_done: Cell<u64>,
    root: Cell<(u64, usize)>,
    /// Records that take zones for the system and are not complete.
    takes: Cell<u32>,
    trimming: Cell<u32>,
    /// Runs and zones that records on their way will free.
    freeing: Cell<usize>,
    /// Counts releases of metadata blocks: what was read from one before may be another's now.
    released: Cell<u64>,
    /// Repairs under way: metadata blocks must not be reused beneath one.
    repairs: Cell<u32>,
    /// The last checkpoint was given up before its root: not every shard was open.
    refused: Cell<bool>,
    flushing: Cell<bool>,
    read_only: RefCell<Option<String>>,
    waiters: Waiters,
    zeros: Bytes,
    counters: Counters,
}

/// A handle of an open shard; clones are cheap. All of them live on one thread.
pub struct Shard<D>(Rc<Inner<D>>);

impl<D> Clone for Shard<D> {
    fn clone(&self) -> Self {
        Shard(Rc::clone(&self.0))
    }
}

impl<D: BlockDevice> Shard<D> {
    /// Its number on the device.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.0.number
    }

    /// Bytes of a chunk.
    #[must_use]
    pub fn chunk_size(&self) -> u32 {
        self.0.layout.chunk_size
    }

    /// The last request of a client's channel that changed something here, and its stored answer.
    #[must_use]
    pub fn last_request(&self, client: u64, channel: u16) -> Option<(u64, Vec<u8>)> {
        let core = self.0.core.borrow();
        core.requests.last(client, channel).map(|(sequence, outcome)| (sequence, outcome.to_vec()))
    }

    /// Clients of whose requests something is stored here.
    #[must_use]
    pub fn clients(&self) -> Vec<u64> {
        self.0.core.borrow().requests.clients()
    }

    /// Drops what is stored for a client whose session ended.
    pub async fn forget_client(&self, client: u64) -> Result<(), Error> {
        self.writable()?;
        self.record(Record::Forget { client }, Data::new(), Urgency::Normal).await.map(drop)
    }

    /// Makes every completed change of this device durable, on all its shards.
    pub async fn flush(&self) -> Result<(), Error> {
        let result = self.0.flusher.flush().await;
        if let Err(e) = &result {
            self.fail(e);
        }
        self.reclaim();
        result
    }

    /// Calls `each` for every chunk, bucket by bucket, letting other work run in between. Chunks that change
    /// meanwhile may be given as before or after.
    pub async fn for_each_chunk(&self, mut each: impl FnMut(Key, ChunkStat)) {
        for bucket in 0..BUCKETS {
            {
                let core = self.0.core.borrow();
                for (key, entry) in core.index.bucket(bucket) {
                    each(*key, ChunkStat::of(entry));
                }
            }
            crate::signal::yield_now().await;
        }
    }

    /// Waits for what is under way, writes a checkpoint, and ends the shard. Later calls get
    /// [`Error::Stopped`].
    pub async fn stop(&self) -> Result<(), Error> {
        let log = &self.0.log;
        log.progress().until(|| log.idle() || log.failed().is_some()).await;
        let result = match self.checkpoint().await {
            // Other shards never came up; the log has everything.
            Err(Error::NotOpen) => Ok(()),
            result => result,
        };
        // The returns of zones that a checkpoint freed are on their way.
        log.progress().until(|| log.idle() || log.failed().is_some()).await;
        self.0.waiters.until(|| self.0.trimming.get() == 0 && !self.0.checkpointing.get()).await;
        let flushed = self.flush().await;
        log.progress().until(|| log.idle() || log.failed().is_some()).await;
        log.fail(&Error::Stopped);
        result.and(flushed)
    }

    fn buffer(&self, len: usize) -> Buf {
        self.0.options.arena.as_ref().and_then(|a| a.alloc(len)).unwrap_or_else(|| Buf::heap(len))
    }

    fn writable(&self) -> Result<(), Error> {
        self.0.shared.sound()?;
        match &*self.0.read_only.borrow() {
            Some(reason) => Err(Error::ReadOnly { reason: reason.clone() }),
            None => self.0.log.failed().map_or(Ok(()), Err),
        }
    }

    /// Takes no more changes from here on; reads go on.
    fn fail(&self, error: &Error) {
        if matches!(error, Error::Stopped) {
            return;
        }
        let mut reason = self.0.read_only.borrow_mut();
        if reason.is_none() {
            tracing::error!(shard = self.0.number, %error, "shard is read-only from here on");
            *reason = Some(error.to_string());
        }
        drop(reason);
        self.0.log.fail(error);
        self.0.waiters.wake_all();
    }

    /// Queues a record; `then` runs when it is applied or lost.
    fn submit(
        &self,
        record: Record,
        data: Data,
        urgency: Urgency,
        then: impl FnOnce(Result<u64, Error>) + 'static,
    ) {
        let bytes = record.encode();
        let this = self.clone();
        let done = move |result: Result<u64, Error>| {
            match &result {
                Ok(seq) => {
                    let reads = this.0.reads.next();
                    this.0.core.borrow_mut().apply(*seq, &record, reads);
                    this.maintain();
                }
                Err(e) => this.fail(e),
            }
            then(result);
        };
        self.0.log.submit(bytes, data, urgency, Box::new(done));
    }

    async fn record(&self, record: Record, data: Data, urgency: Urgency) -> Result<u64, Error> {
        let promise = Promise::new();
        let give = promise.clone();
        self.submit(record, data, urgency, move |result| give.give(result));
        promise.get().await
    }

    fn leaf_limit(&self) -> usize {
        (self.0.options.leaf_cache / LEAF_BYTES).max(16)
    }

    fn wants_checkpoint(&self) -> bool {
        let (used, all) = self.0.log.space();
        used * 2 > all || self.0.core.borrow().index.leaves.dirty_count() * 2 > self.leaf_limit()
    }

    /// Starts what is due in the background.
    fn maintain(&self) {
        if self.0.shared.unflushed.load(Ordering::Acquire) > FLUSH_AT && !self.0.flushing.replace(true) {
            let this = self.clone();
            (self.0.spawner)(Box::pin(async move {
                // A failure has made the shard read-only; nobody else waits for this one.
                drop(this.flush().await);
                this.0.flushing.set(false);
                this.0.waiters.wake_all();
            }));
        }
        if !self.0.checkpointing.get() && self.wants_checkpoint() {
            self.start_checkpoint();
        }
    }

    /// Starts a checkpoint in the background, unless it could not take zones yet.
    fn start_checkpoint(&self) {
        let open = self.0.shared.pool.is_open();
        if open && self.writable().is_ok() && !self.0.checkpointing.replace(true) {
            let this = self.clone();
            (self.0.spawner)(Box::pin(async move { this.run_checkpoint().await }));
        }
    }

    /// What had to wait until every shard of the device was open.
    async fn once_open(self) {
        self.0.shared.pool.until_open().await;
        if !self.wants_checkpoint() {
            self.give_back_all();
        }
        self.maintain();
    }

    /// Drops maps from memory down to the limit.
    fn evict(&self, core: &mut Core, spare: Option<Key>) {
        let writing = &core.writing;
        core.index.evict(self.leaf_limit(), |k| {
            spare == Some(k) || self.0.locks.held(k) || writing.contains(&bucket_of(k))
        });
    }

    /// Lets a change begin, or makes it wait: for a flush, for a checkpoint, for what was freed to be given out again.
    async fn admit(&self) -> Result<(), Error> {
        loop {
            self.writable()?;
            self.maintain();
            if self.0.shared.unflushed.load(Ordering::Acquire) > FLUSH_LIMIT {
                self.flush().await?;
                continue;
            }
            if self.0.core.borrow().freed.len() > FREED_LIMIT {
                self.settle().await?;
                continue;
            }
            let crowded = || {
                let dirty = self.0.core.borrow().index.leaves.dirty_count() > self.leaf_limit();
                dirty && self.0.checkpointing.get() && self.0.log.failed().is_none()
            };
            if !crowded() {
                return Ok(());
            }
            self.0.waiters.until(|| !crowded()).await;
        }
    }
}

/// Bytes that the record of a change of so many blocks may take.
fn record_weight(blocks: usize) -> usize {
    (blocks * RECORD_BLOCK).max(RECORD_LEAST)
}

impl<D: BlockDevice> Member for Inner<D> {
    fn flushed(self: Rc<Self>) {
        Shard(self).reclaim();
    }
}

/// Byte offset of a block.
fn offset(block: u64) -> u64 {
    block * BLOCK_BYTES
}
