//! Checkpoints: fuzzy, incremental, in small steps.
//!
//! Each step freezes one page in memory, writes it, and lets other work run. A page is exact as of one record, so
//! pages of different moments make a consistent whole together with the log from the checkpoint's start.

use super::{Core, Shard, add, offset};
use crate::device::BlockDevice;
use crate::error::Error;
use crate::index::Map;
use crate::layout::BLOCK;
use crate::nslog::write_root;
use crate::page::{self, Kind, Payloads};
use crate::pool::Class;
use crate::root::{PAGES, Root};
use crate::signal::{join, yield_now};
use crate::zones::Run;
use hugepages::Bytes;

/// A page frozen in memory, with the leaves that changed in it.
struct Frozen {
    pairs: Vec<[u64; 2]>,
    bytes: Bytes,
}

impl<D: BlockDevice> Shard<D> {
    /// Writes everything that changed since the last checkpoint and frees the log up to here. A call that comes while
    /// one is running waits for it and for the next.
    pub async fn checkpoint(&self) -> Result<(), Error> {
        let inner = &self.0;
        let target = inner.checkpoints_done.get() + 1 + u64::from(inner.checkpointing.get());
        loop {
            self.writable()?;
            if inner.checkpoints_done.get() >= target {
                return Ok(());
            }
            if !inner.checkpointing.replace(true) {
                let this = self.clone();
                // A task of its own: a caller that gives up must not leave it half done.
                (inner.spawner)(Box::pin(async move { drop(this.run_checkpoint().await) }));
            }
            let now = inner.checkpoints_done.get();
            inner.waiters.until(|| inner.checkpoints_done.get() != now || self.writable().is_err()).await;
        }
    }

    pub(super) async fn run_checkpoint(&self) -> Result<(), Error> {
        let result = self.write_checkpoint().await;
        if let Err(e) = &result {
            self.fail(e);
        }
        self.0.checkpointing.set(false);
        self.0.checkpoints_done.set(self.0.checkpoints_done.get() + 1);
        self.0.waiters.wake_all();
        self.maintain();
        result
    }

    async fn write_checkpoint(&self) -> Result<(), Error> {
        let inner = &self.0;
        let start = inner.log.applied();
        let mut freeing = std::mem::take(&mut inner.core.borrow_mut().unreferred);
        for number in 0..PAGES {
            if !inner.core.borrow().pages.dirty[number] {
                continue;
            }
            self.write_page(number, &mut freeing).await?;
            yield_now().await;
        }
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
                core.pages.chain.iter().map(|c| c.first().copied().unwrap_or_default()).collect()
            },
        };
        let arena = inner.options.arena.as_ref();
        write_root(&inner.device, &inner.layout, inner.owner, 1 - slot, &root, arena).await?;
        inner.flusher.flush().await?;
        inner.root.set((root.generation, 1 - slot));
        inner.log.set_root(root.generation);
        inner.log.trim(start.next - 1);
        let runs: Vec<Run> = freeing.into_iter().map(|start| Run { start, count: 1 }).collect();
        self.release(&runs);
        add(&inner.counters.checkpoints, 1);
        self.reclaim();
        Ok(())
    }

    async fn write_page(&self, number: usize, freeing: &mut Vec<u64>) -> Result<(), Error> {
        let frozen = loop {
            let needed = match self.0.core.borrow_mut().freeze(number, self.0.owner, freeing) {
                Ok(frozen) => break frozen,
                Err(needed) => needed,
            };
            if self.take_zone(Class::System).is_err() {
                // Nothing is left even in the reserve; blocks that wait for a flush are the last hope.
                let before = self.0.core.borrow().zones.free_blocks(Class::System);
                self.flush().await?;
                if self.0.core.borrow().zones.free_blocks(Class::System) <= before {
                    let reason = format!("no space for {needed} blocks of a checkpoint");
                    return Err(Error::ReadOnly { reason });
                }
            }
        };
        if frozen.pairs.is_empty() {
            return Ok(());
        }
        add(&self.0.counters.checkpoint_blocks, 2 * frozen.pairs.len() as u64);
        let result = join(self.write_copy(&frozen, 0), self.write_copy(&frozen, 1)).await;
        self.0.core.borrow_mut().writing = None;
        result.0.and(result.1)
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
            let dirty = self.index.bucket(bucket).iter().filter_map(|(key, entry)| match entry.map {
                Map::Leaf { slot, .. } if self.index.leaves.is_dirty(slot) => Some((*key, slot)),
                _ => None,
            });
            leaves.extend(dirty);
        }
        // The chain's length does not depend on the addresses in it, so a first pass with the old ones counts.
        let blocks = self.payloads(kind).0.len();
        let wanted = leaves.len() + blocks;
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
        self.writing = Some(number);
        Ok(Frozen { pairs, bytes: buf.freeze() })
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
