//! A shard's dealings with space: allocating, taking and returning zones, reusing what was freed, trimming.

use super::{Freed, Shard, add, offset};
use crate::device::BlockDevice;
use crate::error::Error;
use crate::log::{Data, Urgency};
use crate::pool::{Class, Refused, Taker};
use crate::record::Record;
use crate::zones::{Run, Runs};

/// Runs shorter than this (64 KiB) are not trimmed: flash frees whole erase blocks, and a command for each 4 KiB
/// costs more than it brings.
const TRIM_BLOCKS: u32 = 16;

/// Rounds of waiting for space that is on its way before a change is refused: each needs a flush, and in each of them
/// others may be faster.
const PATIENCE: usize = 256;

impl<D: BlockDevice> Shard<D> {
    /// Blocks for a change. Nothing may be awaited between this and submitting the record.
    pub(super) async fn allocate(&self, class: Class, want: u32) -> Result<Runs, Error> {
        if want == 0 {
            return Ok(Runs::new());
        }
        for _ in 0..PATIENCE {
            self.reclaim();
            loop {
                if let Some(run) = self.0.core.borrow_mut().zones.alloc(class, want) {
                    return Ok(Runs::from_slice(&[run]));
                }
                if self.0.log.stuck() {
                    // The last blocks of the ring belong to the checkpoint that it waits for.
                    self.unstuck().await?;
                    continue;
                }
                match self.take_zone(if class == Class::User { Taker::User } else { Taker::System }) {
                    Ok(()) => {}
                    Err(Refused::Closed) => return Err(Error::NotOpen),
                    Err(Refused::Empty) => break,
                }
            }
            if let Some(runs) = self.allocate_pieces(class, want) {
                return Ok(runs);
            }
            let hope = {
                let core = self.0.core.borrow();
                !core.freed.is_empty() || !core.returned.is_empty() || self.0.trimming.get() > 0
            };
            if !hope && self.0.freeing.get() == 0 {
                break;
            }
            self.settle().await?;
        }
        Err(Error::NoSpace)
    }

    async fn unstuck(&self) -> Result<(), Error> {
        let log = &self.0.log;
        log.progress().until(|| !log.stuck() || log.failed().is_some()).await;
        self.writable()
    }

    /// Waits until everything freed by what was submitted by now can be used again: complete, flushed, read to the end,
    /// trimmed.
    pub(super) async fn settle(&self) -> Result<(), Error> {
        let log = &self.0.log;
        let last = log.submitted();
        log.progress().until(|| log.applied().next > last || log.failed().is_some()).await;
        self.writable()?;
        let last = self.0.core.borrow().freed.back().map_or(0, |f| f.reads);
        let reads = &self.0.reads;
        reads.ends.until(|| reads.first.get() >= last).await;
        self.flush().await?;
        self.0.waiters.until(|| self.0.trimming.get() == 0).await;
        Ok(())
    }

    fn allocate_pieces(&self, class: Class, want: u32) -> Option<Runs> {
        let zones = &mut self.0.core.borrow_mut().zones;
        let last_resort = |zones: &mut crate::zones::Zones| match class {
            Class::User => None,
            Class::System => zones.alloc_pieces(Class::User, want),
        };
        zones.alloc_pieces(class, want).or_else(|| last_resort(zones))
    }

    /// Takes a zone of the pool and logs it; it can be used at once, because its record comes first. One for the system
    /// goes before all that is queued: a checkpoint must not wait for what waits for it.
    pub(super) fn take_zone(&self, taker: Taker) -> Result<(), Refused> {
        let (zone, class) = (self.0.shared.pool.take(taker)?, taker.class());
        self.0.core.borrow_mut().zones.add(zone, class, None, false);
        let (urgency, urgent) = match class {
            Class::User => (Urgency::Normal, 0),
            Class::System => (Urgency::Zones, 1),
        };
        self.0.takes.set(self.0.takes.get() + urgent);
        let this = self.clone();
        self.submit(Record::ZoneTake { zone, class }, Data::new(), urgency, move |_| {
            this.0.takes.set(this.0.takes.get() - urgent);
            this.0.waiters.wake_all();
        });
        Ok(())
    }

    /// Lets freed blocks be reused whose records are flushed and which no read under way may still want.
    pub(super) fn reclaim(&self) {
        let flushed = self.0.log.flushed();
        let reads = self.0.reads.first.get();
        let mut free: Vec<Run> = Vec::new();
        {
            let mut core = self.0.core.borrow_mut();
            while let Some(Freed { run, .. }) =
                core.freed.pop_front_if(|f| f.seq <= flushed && f.reads <= reads)
            {
                free.push(run);
            }
            while let Some((_, zone, class)) = core.returned.pop_front_if(|(seq, ..)| *seq <= flushed) {
                self.0.shared.pool.put(zone, class);
            }
        }
        if free.is_empty() {
            return;
        }
        if self.0.device.wants_trim() {
            self.trim(free);
        } else {
            self.reuse(&free);
        }
    }

    /// Gives blocks out again that records had freed.
    fn reuse(&self, runs: &[Run]) {
        self.0.core.borrow_mut().waiting -= runs.iter().map(|r| u64::from(r.count)).sum::<u64>();
        self.release(runs);
    }

    /// Gives blocks out again; zones that this empties go back to the pool.
    pub(super) fn release(&self, runs: &[Run]) {
        let mut empty = Vec::new();
        {
            let mut core = self.0.core.borrow_mut();
            for &run in runs {
                if let Some(zone) = core.zones.release(run) {
                    empty.push(zone);
                }
            }
        }
        self.give_back(empty);
    }

    /// Gives back all zones that are empty: what a crash or a time of little space has left.
    pub(super) fn give_back_all(&self) {
        let empty = self.0.core.borrow().zones.empty();
        self.give_back(empty);
    }

    fn give_back(&self, empty: Vec<u32>) {
        if self.writable().is_err() {
            return;
        }
        for zone in empty {
            let closed = self.0.core.borrow_mut().zones.close_empty(zone);
            if closed.is_some() {
                self.0.freeing.set(self.0.freeing.get() + 1);
                let this = self.clone();
                self.submit(Record::ZoneReturn { zone }, Data::new(), Urgency::Normal, move |_| {
                    this.0.freeing.set(this.0.freeing.get() - 1);
                });
            }
        }
    }

    /// Trims what is worth it, then releases all.
    fn trim(&self, mut runs: Vec<Run>) {
        runs.sort_unstable();
        let mut merged: Vec<Run> = Vec::new();
        for run in &runs {
            match merged.last_mut() {
                Some(last) if last.start + u64::from(last.count) == run.start => last.count += run.count,
                _ => merged.push(*run),
            }
        }
        merged.retain(|r| r.count >= TRIM_BLOCKS);
        if merged.is_empty() {
            return self.reuse(&runs);
        }
        let this = self.clone();
        self.0.trimming.set(self.0.trimming.get() + 1);
        (self.0.spawner)(Box::pin(async move {
            for run in merged {
                // Advice to the device: failing it loses nothing.
                if this.0.device.trim(offset(run.start), offset(u64::from(run.count))).await.is_ok() {
                    add(&this.0.counters.trimmed_blocks, u64::from(run.count));
                }
            }
            this.reuse(&runs);
            this.0.trimming.set(this.0.trimming.get() - 1);
            this.0.waiters.wake_all();
        }));
    }
}
