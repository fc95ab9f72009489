//! Giving back what no file names any more: the free list, and truncations.
//!
//! Owns the order in which that is safe. Chunks go only after the record that drops them was flushed; an entry leaves the list
//! only after a flush behind the deletion of its chunks, or a power cut would leave chunks that nobody names. Must not
//! decide what is free: the namespace does.

use crate::meta::{Meta, wall};
use crate::store::StoreError;
use chunkstore::{BlockDevice, Class, Stamp, WriteOutcome};
use namespace::dirty::LazyError;
use reactor::JoinHandle;
use reactor::sync::{Event as Flag, Notify};
use rustc_hash::{FxHashMap, FxHashSet};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use wire::{ChunkKey, ObjectId};

/// Entries worked on at a time.
const ENTRIES: usize = 64;
/// Chunks being deleted at a time, over all entries. Each is a record in a shard's log, and those that come together share a
/// write; many more would only hold up the writes of clients.
pub(crate) const DELETES: usize = 64;
/// Entries whose chunks are deleted that wait for the flush, at most; each is a number in memory.
const TAKEN_MAX: usize = 1 << 16;
/// Entries read from the list at a time, and chunks of an entry.
const AT_ONCE: usize = 256;
/// An entry that can't be worked off is left alone for at most so many passes.
const LONGEST_PAUSE: u64 = 64;
/// Entries that failed which are remembered; others are tried in every pass.
const FAILED_MAX: usize = 4096;
/// Units of `Attr::blocks` in a block of the store.
const UNITS: i64 = 8;

/// What the free list has cost, for reports.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FreeStats {
    /// Entries whose chunks were deleted.
    pub(crate) entries: u64,
    /// Attempts that failed.
    pub(crate) failures: u64,
    /// Times that the list was gone through.
    pub(crate) passes: u64,
}

/// Entries that could not be worked off, each with its failures in a row and the pass in which it is tried again.
#[derive(Default)]
struct Failed(FxHashMap<u64, (u32, u64)>);

impl Failed {
    fn waits(&self, entry: u64, pass: u64) -> bool {
        self.0.get(&entry).is_some_and(|(_, next)| *next > pass)
    }

    fn add(&mut self, entry: u64, pass: u64) {
        if self.0.len() >= FAILED_MAX && !self.0.contains_key(&entry) {
            return;
        }
        let (times, next) = self.0.entry(entry).or_default();
        *times = times.saturating_add(1);
        *next = pass + (1 << (*times).min(32)).min(LONGEST_PAUSE);
    }
}

struct Inner<D: BlockDevice> {
    meta: Meta<D>,
    stop: Rc<Flag>,
    /// Rung after a flush.
    wake: Notify,
    woken: Cell<bool>,
    passing: Cell<bool>,
    rest: Notify,
    /// Entries whose chunks are deleted, which a power cut may bring back.
    deleted: RefCell<Vec<u64>>,
    /// Those of which it can't.
    gone: RefCell<Vec<u64>>,
    /// Both, and those under way: not to be worked on again.
    taken: RefCell<FxHashSet<u64>>,
    failed: RefCell<Failed>,
}

/// Works off the free list; clones are cheap.
pub(crate) struct Freeing<D: BlockDevice>(Rc<Inner<D>>);

impl<D: BlockDevice> Clone for Freeing<D> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<D: BlockDevice> Freeing<D> {
    pub(crate) fn new(meta: Meta<D>, stop: Rc<Flag>) -> Self {
        Self(Rc::new(Inner {
            meta,
            stop,
            wake: Notify::new(),
            woken: Cell::new(false),
            passing: Cell::new(false),
            rest: Notify::new(),
            deleted: RefCell::default(),
            gone: RefCell::default(),
            taken: RefCell::default(),
            failed: RefCell::default(),
        }))
    }

    /// A flush begins. What it returns goes to [`Freeing::flushed`] once it has succeeded.
    pub(crate) fn flushing(&self) -> Vec<u64> {
        std::mem::take(&mut self.0.deleted.borrow_mut())
    }

    /// A flush has ended, and with it the danger for these; without success they wait for the next.
    pub(crate) fn flushed(&self, entries: Vec<u64>, success: bool) {
        let list = if success { &self.0.gone } else { &self.0.deleted };
        list.borrow_mut().extend(entries);
        self.0.woken.set(true);
        self.0.wake.notify_all();
    }

    /// Works until the stop, after each flush.
    pub(crate) async fn run(&self) {
        loop {
            while !self.0.woken.replace(false) {
                self.0.wake.notified().await;
            }
            if self.0.stop.is_set() {
                return self.0.rest.notify_all();
            }
            self.0.passing.set(true);
            if let Err(e) = self.pass().await {
                tracing::error!(error = e, "the free list can't be worked off");
            }
            self.0.passing.set(false);
            self.0.rest.notify_all();
        }
    }

    /// Waits until what a flush has let go is worked off.
    pub(crate) async fn idle(&self) {
        loop {
            let rest = self.0.rest.notified();
            if self.0.stop.is_set() || !(self.0.woken.get() || self.0.passing.get()) {
                return;
            }
            rest.await;
        }
    }

    /// Lets [`Freeing::run`] see that it is time to stop.
    pub(crate) fn look_up(&self) {
        self.flushed(Vec::new(), true);
    }

    async fn pass(&self) -> Result<(), String> {
        let meta = &self.0.meta;
        let gone = std::mem::take(&mut *self.0.gone.borrow_mut());
        for entry in gone {
            match meta.finish_entry(entry).await {
                Ok(()) => drop(self.0.taken.borrow_mut().remove(&entry)),
                Err(e) => {
                    tracing::error!(entry, error = %e, "a deleted file can't be taken off the free list");
                    self.0.gone.borrow_mut().push(entry);
                }
            }
        }
        if !meta.free_work.replace(false) {
            return Ok(());
        }
        meta.freeing.set(true);
        let mut stats = meta.free_stats.get();
        stats.passes += 1;
        meta.free_stats.set(stats);
        let listed = self.list(stats.passes).await;
        let left = meta.ns(|ns, _| Ok(ns.free_work(u64::MAX, 0, 1)?)).await;
        meta.free_work.set(left.map_or(true, |left| !left.is_empty()));
        meta.freeing.set(false);
        listed
    }

    /// Deletes the chunks of every entry whose record is flushed.
    async fn list(&self, pass: u64) -> Result<(), String> {
        let meta = &self.0.meta;
        let flushed = meta.flushed_seq();
        let (mut after, mut running): (u64, VecDeque<JoinHandle<()>>) = (0, VecDeque::new());
        while !self.0.stop.is_set() && self.0.taken.borrow().len() < TAKEN_MAX {
            let entries = meta.ns(|ns, _| Ok(ns.free_work(flushed, after, AT_ONCE)?)).await;
            let entries = entries.map_err(|e| e.to_string())?;
            let Some(last) = entries.last() else { break };
            after = *last;
            for entry in entries {
                if self.0.failed.borrow().waits(entry, pass) || !self.0.taken.borrow_mut().insert(entry) {
                    continue;
                }
                while running.len() >= ENTRIES {
                    wait_for(running.pop_front()).await;
                }
                let this = self.clone();
                running.push_back(reactor::spawn(async move { this.entry(entry, pass).await }));
            }
            reactor::yield_now().await;
        }
        while !running.is_empty() {
            wait_for(running.pop_front()).await;
        }
        Ok(())
    }

    async fn entry(&self, entry: u64, pass: u64) {
        let result = self.0.meta.work_entry(entry).await;
        let mut stats = self.0.meta.free_stats.get();
        match result {
            Ok(()) => {
                stats.entries += 1;
                self.0.failed.borrow_mut().0.remove(&entry);
                self.0.deleted.borrow_mut().push(entry);
            }
            Err(e) => {
                // It stays in the list; the others are not held up by it.
                tracing::error!(entry, error = e, "a deleted file's chunks are not free yet");
                stats.failures += 1;
                self.0.failed.borrow_mut().add(entry, pass);
                self.0.taken.borrow_mut().remove(&entry);
            }
        }
        self.0.meta.free_stats.set(stats);
    }
}

async fn wait_for(task: Option<JoinHandle<()>>) {
    if let Some(task) = task {
        // It is never aborted.
        let _ = task.await;
    }
}

impl<D: BlockDevice> Meta<D> {
    /// An entry of the free list is done with.
    pub(crate) async fn finish_entry(&self, entry: u64) -> Result<(), LazyError> {
        loop {
            let more = self.ns(|ns, log| {
                log.extend(ns.freed(entry)?);
                Ok(ns.free_chunks(entry, 0, 1)?.is_some())
            });
            if !more.await? {
                return Ok(());
            }
        }
    }

    /// Carries out a truncation; true if it failed.
    pub(crate) async fn cut(&self, entry: u64, object: ObjectId) -> bool {
        let result = self.cut_chunks(entry).await;
        if let Err(e) = &result {
            tracing::error!(
                object = object.0,
                error = e,
                "a truncation failed; it is done again at the next start"
            );
        }
        result.is_err()
    }

    async fn cut_chunks(&self, entry: u64) -> Result<(), String> {
        // Freed blocks may be reused at once; the record that drops them must not be lost before.
        let seq = self.machine(|m| m.view().last_seq());
        self.durable(seq).await.map_err(|e| e.to_string())?;
        self.log.flush().await.map_err(|e| e.to_string())?;
        self.work_entry(entry).await
    }

    /// Deletes the chunks that an entry of the free list means and shortens the one that is cut. One that can't be does not
    /// keep the others; the first error is told.
    pub(crate) async fn work_entry(&self, entry: u64) -> Result<(), String> {
        let (mut from, mut result) = (0, Ok(()));
        loop {
            let part = self.ns(|ns, _| Ok(ns.free_chunks(entry, from, AT_ONCE)?)).await;
            let Some(part) = part.map_err(|e| e.to_string())? else { return result };
            let object = part.object;
            let mut delta = 0;
            let mut running = Vec::new();
            if let Some((index, len)) = part.cut {
                let time = u64::try_from(wall().nanos()).unwrap_or_default();
                let outcome = self.store.truncate(ChunkKey { object, index }, len, stamp(time)).await;
                count(outcome, &mut delta, &mut result);
            }
            for index in part.chunks {
                let Ok(permit) = self.deletes.acquire().await else { continue };
                let store = self.store.clone();
                running.push(reactor::spawn(async move {
                    let outcome = store.delete(ChunkKey { object, index }, stamp(0)).await;
                    drop(permit);
                    outcome
                }));
            }
            for task in running {
                if let Ok(outcome) = task.await {
                    self.freed.set(self.freed.get() + 1);
                    count(outcome, &mut delta, &mut result);
                }
            }
            let ino = part.ino;
            // A file that is gone has no count to correct.
            let counted = self.ns(|ns, log| {
                log.extend(ns.add_blocks(ino, object, delta * UNITS)?);
                Ok(())
            });
            let _ = counted.await;
            match part.next {
                Some(next) => from = next,
                None => return result,
            }
        }
    }
}

fn stamp(time: u64) -> Stamp {
    Stamp { time, request: None, class: Class::System, min_length: 0 }
}

fn count(outcome: Result<WriteOutcome, StoreError>, delta: &mut i64, result: &mut Result<(), String>) {
    match outcome {
        Ok(outcome) => *delta += i64::from(outcome.blocks_delta),
        Err(e) if result.is_ok() => *result = Err(e.text),
        Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bad entry was once tried at every flush.
    #[test]
    fn an_entry_that_fails_is_left_alone_for_longer_and_longer() {
        let mut failed = Failed::default();
        let mut tried = Vec::new();
        for pass in 1..400 {
            if !failed.waits(7, pass) {
                tried.push(pass);
                failed.add(7, pass);
            }
            assert!(!failed.waits(8, pass), "others are not held up");
        }
        assert_eq!(tried, [1, 3, 7, 15, 31, 63, 127, 191, 255, 319, 383]);
        for entry in 0..2 * FAILED_MAX as u64 {
            failed.add(entry, 1);
        }
        assert_eq!(failed.0.len(), FAILED_MAX);
    }
}
