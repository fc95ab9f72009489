//! Checkpoints: fuzzy, incremental, in small steps.
//!
//! Each step freezes one page in memory, writes it, and lets other work run. A page is exact as of one record, so
//! pages of different moments make a consistent whole together with the log from the checkpoint's start.

use super::{Core, Shard, add, offset};
use crate::device::BlockDevice;
use crate::error::Error;
use crate::index::{Key, Map};
use crate::layout::BLOCK;
use crate::nslog::write_root;
use crate::page::{self, Kind, Payloads};
use crate::pool::{Class, Refused, Taker};
use crate::root::{PAGES, Root};
use crate::signal::{join_all, yield_now};
use crate::zones::Run;
use hugepages::Bytes;

/// A page frozen in memory, with the leaves that changed in it.
struct Frozen {
    pairs: Vec<[u64; 2]>,
    bytes: Bytes,
}

/// Pages written at once, and the blocks at which no further one joins them.
const BATCH: usize = 16;
const BATCH_BLOCKS: usize = 512;
/// Pages measured before other work gets its turn.
const MEASURED: usize = 32;

impl<D: BlockDevice> Shard<D> {
    /// Writes everything that changed since the last checkpoint and frees the log up to here. A call that comes while
    /// one is running waits for it and for the next.
    pub async fn checkpoint(&self) -> Result<(), Error> {
        let inner = &self.0;
        let target = inner.checkpoints_done.get() + 1 + u64::from(inner.checkpointing.get());
        loop {
            self.writable()?;
            if inner.checkpoints_done.get() >= target {
                return if inner.refused.get() { Err(Error::NotOpen) } else { Ok(()) };
            }
            if !inner.checkpointing.replace(true) {
                let this = self.clone();
                // A task of its own: a caller that gives up must not leave it half done.
                (inner.spawner)(Box::pin(async move { this.run_checkpoint().await }));
            }
            let now = inner.checkpoints_done.get();
            inner.waiters.until(|| inner.checkpoints_done.get() != now || self.writable().is_err()).await;
        }
    }

    pub(super) async fn run_checkpoint(&self) {
        let mut freeing = std::mem::take(&mut self.0.core.borrow_mut().unreferred);
        let result = self.write_checkpoint(&mut freeing).await;
        self.0.refused.set(matches!(result, Err(Error::NotOpen)));
        if let Err(e) = &result {
            // The durable root may refer to all of it.
            self.0.core.borrow_mut().unreferred.append(&mut freeing);
            if !self.0.refused.get() {
                self.fail(e);
            }
        }
        self.0.checkpointing.set(false);
        self.0.checkpoints_done.set(self.0.checkpoints_done.get() + 1);
        self.0.waiters.wake_all();
        self.maintain();
    }

    async fn write_checkpoint(&self, freeing: &mut Vec<u64>) -> Result<(), Error> {
        let inner = &self.0;
        let start = inner.log.applied();
        self.write_pages(freeing).await?;
        // Zones that pages were written into must be ours in the log before a root refers to them.
        inner.waiters.until(|| inner.takes.get() == 0 || self.writable().is_err()).await;
        self.writable()?;
        inner.flusher.flush().await?;
        let (generation, slot) = inner.root.get();
        let root = Root {
            generation: generation + 1,
            incarnation: inner.shared.incarnation,
            anchor: start,
            flushed: inner.log.flushed(),
            pages: {
                let core = inner.core.borrow();
                let first = |(c, seq): (&Vec<[u64; 2]>, &u64)| c.first().copied().unwrap_or([0, *seq]);
                core.pages.chain.iter().zip(&core.pages.seq).map(first).collect()
            },
        };
        // Also refused once the shard was stopped: its log may be another's by now.
        self.writable()?;
        let arena = inner.options.arena.as_ref();
        write_root(&inner.device, &inner.layout, inner.owner, 1 - slot, &root, arena).await?;
        inner.flusher.flush().await?;
        inner.root.set((root.generation, 1 - slot));
        inner.log.set_root(&root);
        inner.log.trim(start.next - 1);
        inner.waiters.until(|| inner.repairs.get() == 0).await;
        inner.released.set(inner.released.get() + 1);
        let runs: Vec<Run> = freeing.drain(..).map(|start| Run { start, count: 1 }).collect();
        self.release(&runs);
        add(&inner.counters.checkpoints, 1);
        self.reclaim();
        self.give_back_all();
        Ok(())
    }

    /// Writes every dirty page, a few at once.
    async fn write_pages(&self, freeing: &mut Vec<u64>) -> Result<(), Error> {
        let mut number = 0;
        while number < PAGES {
            let mut batch: Vec<Frozen> = Vec::new();
            let mut result = Ok(());
            let mut blocks = 0;
            while number < PAGES && batch.len() < BATCH && blocks < BATCH_BLOCKS && result.is_ok() {
                if self.0.core.borrow().pages.dirty[number] {
                    match self.freeze_page(number, freeing).await {
                        Ok(frozen) => {
                            blocks += frozen.pairs.len();
                            batch.push(frozen);
                        }
                        Err(e) => result = Err(e),
                    }
                }
                number += 1;
            }
            let writes = batch.iter().flat_map(|f| [self.write_copy(f, 0), self.write_copy(f, 1)]);
            let written = join_all(writes, 2 * BATCH).await;
            add(&self.0.counters.checkpoint_blocks, 2 * blocks as u64);
            // Memory refers to these pages now: what was not written must stay in it.
            written.into_iter().collect::<Result<(), _>>()?;
            {
                let mut core = self.0.core.borrow_mut();
                core.writing.clear();
                self.evict(&mut core, None);
            }
            result?;
            yield_now().await;
        }
        Ok(())
    }

    async fn freeze_page(&self, number: usize, freeing: &mut Vec<u64>) -> Result<Frozen, Error> {
        loop {
            let needed = match self.0.core.borrow_mut().freeze(number, self.0.owner, freeing) {
                Ok(frozen) => return Ok(frozen),
                Err(needed) => needed,
            };
            self.provide(number, needed).await?;
        }
    }

    /// Takes zones for all pages from `number` on, at once: each record of its own would take a block of a ring that may be
    /// full. Fails if the next page does not get the `needed` blocks.
    async fn provide(&self, number: usize, needed: usize) -> Result<(), Error> {
        let mut want = 0;
        for page in number..PAGES {
            want += self.0.core.borrow().measure(page);
            if page % MEASURED == 0 {
                yield_now().await;
            }
        }
        let want = want.max(needed) as u64;
        let free = || self.0.core.borrow().zones.free_blocks(Class::System);
        let refused = loop {
            if free() >= want {
                return Ok(());
            }
            if let Err(refused) = self.take_zone(Taker::Checkpoint) {
                break refused;
            }
        };
        if free() >= needed as u64 {
            return Ok(());
        }
        if refused == Refused::Closed {
            return Err(Error::NotOpen);
        }
        // Nothing is left even in the reserve; blocks that wait for a flush are the last hope.
        let before = free();
        self.flush().await?;
        if free() <= before && self.0.shared.pool.free() == 0 {
            let reason = format!("no space for {needed} blocks of a checkpoint");
            return Err(Error::ReadOnly { reason });
        }
        Ok(())
    }

    /// Writes one copy, neighbours at once.
    async fn write_copy(&self, frozen: &Frozen, copy: usize) -> Result<(), Error> {
        let mut from = 0;
        while from < frozen.pairs.len() {
            let start = frozen.pairs[from][copy];
            let run = frozen.pairs[from..].iter().zip(start..).take_while(|(p, at)| p[copy] == *at).count();
            let bytes = frozen.bytes.slice(from * BLOCK..(from + run) * BLOCK);
            self.0.device.write(offset(start), bytes).await.map_err(Error::io("writing a checkpoint"))?;
            from += run;
        }
        Ok(())
    }
}

impl Core {
    /// Freezes a page: chooses its new places, encodes it and its changed leaves, and counts it as clean. What it
    /// replaces goes to `freeing`. Fails with the number of blocks that are missing.
    fn freeze(
        &mut self,
        number: usize,
        owner: crate::group::Owner,
        freeing: &mut Vec<u64>,
    ) -> Result<Frozen, usize> {
        let kind = Kind::of(number);
        let mut leaves = Vec::new();
        if let Kind::Index(bucket) = kind {
            leaves.extend(self.dirty_leaves(bucket));
        }
        let wanted = leaves.len() + self.blocks(kind);
        let Some(pairs) = self.zones.alloc_pairs(wanted) else { return Err(2 * wanted) };
        let mut buf = hugepages::Buf::heap(wanted * BLOCK);
        for ((key, slot), (out, pair)) in leaves.iter().zip(buf.chunks_exact_mut(BLOCK).zip(&pairs)) {
            if let Some(leaf) = self.index.leaves.peek(*slot) {
                leaf.encode(*key, owner.tag, self.applied, out);
            }
            if let Some(old) = self.index.leaf_written(*key, *pair) {
                freeing.extend(old);
            }
        }
        let chain = pairs[leaves.len()..].to_vec();
        let payloads = self.payloads(kind).0;
        let out = buf[leaves.len() * BLOCK..].chunks_exact_mut(BLOCK);
        for (ordinal, (payload, out)) in payloads.iter().zip(out).enumerate() {
            let next = chain.get(ordinal + 1).copied().unwrap_or_default();
            page::encode(owner, number, self.applied, ordinal, next, payload, out);
        }
        let old = std::mem::replace(&mut self.pages.chain[number], chain);
        freeing.extend(old.into_iter().flatten());
        self.pages.seq[number] = self.applied;
        if std::mem::replace(&mut self.pages.dirty[number], false) {
            self.pages.dirty_count -= 1;
        }
        self.writing.push(number);
        Ok(Frozen { pairs, bytes: buf.freeze() })
    }

    /// Blocks that a page takes now, both copies, leaves included; none if it is clean.
    fn measure(&self, number: usize) -> usize {
        if !self.pages.dirty[number] {
            return 0;
        }
        let kind = Kind::of(number);
        let leaves = match kind {
            Kind::Index(bucket) => self.dirty_leaves(bucket).count(),
            Kind::Zones(_) | Kind::Requests(_) => 0,
        };
        2 * (leaves + self.blocks(kind))
    }

    fn dirty_leaves(&self, bucket: usize) -> impl Iterator<Item = (Key, u32)> + '_ {
        self.index.bucket(bucket).iter().filter_map(|(key, entry)| match entry.map {
            Map::Leaf { slot, .. } if self.index.leaves.is_dirty(slot) => Some((*key, slot)),
            _ => None,
        })
    }

    /// Blocks of a page's chain.
    fn blocks(&self, kind: Kind) -> usize {
        let mut sizes = page::Sizes::default();
        match kind {
            Kind::Index(bucket) => self.index.bucket(bucket).values().for_each(|e| sizes.entry(e)),
            Kind::Zones(page) => {
                let mine = |z: &u32| *z as usize % page::ZONE_PAGES == page;
                let zones = self.zones.iter().filter(|(n, z)| mine(n) && z.applied);
                zones.for_each(|(_, z)| sizes.zone(&z.state));
            }
            Kind::Requests(page) => self.requests.page(page).for_each(|_| sizes.request()),
        }
        sizes.blocks
    }

    fn payloads(&self, kind: Kind) -> Payloads {
        let mut payloads = Payloads::default();
        match kind {
            Kind::Index(bucket) => {
                for (key, entry) in self.index.bucket(bucket) {
                    payloads.entry(*key, entry, None);
                }
            }
            Kind::Zones(page) => {
                let mine = |z: &u32| *z as usize % page::ZONE_PAGES == page;
                for (zone, z) in self.zones.iter().filter(|(n, z)| mine(n) && z.applied) {
                    payloads.zone(zone, z.class, &z.state);
                }
            }
            Kind::Requests(page) => {
                for (id, outcome) in self.requests.page(page) {
                    payloads.request(id, outcome);
                }
            }
        }
        payloads
    }
}
