//! The namespace log: opaque records on the device's largest ring, with an anchor of its own.
//!
//! Reusable for any log whose reader keeps its own checkpoint: append, replay once at open, trim. The empty
//! record is the log's own and never given to a reader.

use crate::device::BlockDevice;
use crate::error::Error;
use crate::flush::{Flusher, Mended, Shared};
use crate::group::Owner;
use crate::layout::{BLOCK, BLOCK_BYTES, Layout};
use crate::log::{Config, Data, LogWriter, Past, Urgency, zeroed};
use crate::ring::{Anchor, Ring};
use crate::root::{self, Root};
use crate::scan::{self, Scan};
use crate::signal::{Promise, Spawner, join};
use hugepages::{Arena, Buf};
use std::cell::Cell;
use std::rc::Rc;

/// Most blocks of a group of the namespace log.
const MAX_GROUP: u64 = 64;
/// Longest record of the namespace log, bytes.
pub const MAX_LOG_RECORD: usize = MAX_GROUP as usize * BLOCK - crate::group::HEADER - crate::group::FRAME;

/// Figures of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Last record on the device, in both copies, with all before it.
    pub completed: u64,
    /// Last record known to survive a power cut.
    pub flushed: u64,
    /// Blocks of the ring in use.
    pub used_blocks: u64,
    /// Blocks of the ring.
    pub ring_blocks: u64,
    /// Groups written since it was opened.
    pub groups: u64,
    /// Bytes written since it was opened, one copy counted.
    pub bytes: u64,
}

struct Inner<D> {
    device: D,
    layout: Layout,
    owner: Owner,
    arena: Option<Arena>,
    flusher: Flusher<D>,
    spawner: Spawner,
    writer: LogWriter<D>,
    generation: Cell<u64>,
    slot: Cell<usize>,
    trimming: Cell<bool>,
    /// First record after what the root says was trimmed.
    anchor: Cell<u64>,
    /// Of the last group that was trimmed.
    incarnation: Cell<u64>,
    waiters: crate::signal::Waiters,
}

/// A log of opaque records in two copies; handles of one log are cheap to clone.
pub struct Log<D>(Rc<Inner<D>>);

impl<D> Clone for Log<D> {
    fn clone(&self) -> Self {
        Log(Rc::clone(&self.0))
    }
}

/// Reads both copies of both root slots of an owner.
pub(crate) async fn read_roots<D: BlockDevice>(
    device: &D,
    layout: &Layout,
    owner: Owner,
) -> Result<root::Chosen, Error> {
    let mut slots = [[None, None], [None, None]];
    for (slot, copies) in slots.iter_mut().enumerate() {
        for (at, copy) in layout.root_slot(owner.owner, slot).into_iter().zip(copies) {
            let (result, buf) = device.read(at * BLOCK_BYTES, Buf::heap(root::ROOT_BYTES)).await;
            *copy = result.ok().and_then(|()| Root::decode(owner, &buf));
        }
    }
    root::choose(slots).ok_or_else(|| {
        let [a, b] = layout.root_slot(owner.owner, 0);
        Error::damaged(
            format!("the root of owner {} at blocks {a} and {b}", owner.owner),
            "no copy is intact",
        )
    })
}

/// Writes both copies of a root into a slot.
pub(crate) async fn write_root<D: BlockDevice>(
    device: &D,
    layout: &Layout,
    owner: Owner,
    slot: usize,
    root: &Root,
    arena: Option<&Arena>,
) -> Result<(), Error> {
    let len = if root.pages.is_empty() { BLOCK } else { root::ROOT_BYTES };
    let mut buf = zeroed(arena, len);
    root.encode(owner, &mut buf);
    let bytes = buf.freeze();
    let [a, b] = layout.root_slot(owner.owner, slot).map(|at| at * BLOCK_BYTES);
    let (a, b) = join(device.write(a, bytes.clone()), device.write(b, bytes)).await;
    a.and(b).map_err(Error::io("writing a checkpoint root"))
}

/// Repairs the copy of the chosen root that is damaged or was never written.
pub(crate) async fn repair_root<D: BlockDevice>(
    device: &D,
    shared: &Shared,
    owner: Owner,
    chosen: &root::Chosen,
) -> Result<(), Error> {
    let Some(copy) = chosen.rewrite else { return Ok(()) };
    let mut buf = Buf::heap(root::ROOT_BYTES);
    chosen.root.encode(owner, &mut buf);
    let block = shared.layout.root_slot(owner.owner, chosen.slot)[copy];
    device
        .write(block * BLOCK_BYTES, buf.freeze())
        .await
        .map_err(Error::io("repairing a checkpoint root"))?;
    let what = format!("the checkpoint root of owner {}", owner.owner);
    shared.damage.mended(Mended { what, block, unfinished: !shared.clean });
    Ok(())
}

impl<D: BlockDevice> Log<D> {
    /// Opens the namespace log; `replay` gets every record after the last trim, in order, with its sequence.
    pub(crate) async fn open(
        device: D,
        flusher: Flusher<D>,
        spawner: Spawner,
        arena: Option<Arena>,
        mut replay: impl FnMut(u64, &[u8]) -> Result<(), Error>,
    ) -> Result<Log<D>, Error> {
        let shared = std::sync::Arc::clone(flusher.shared());
        let layout = shared.layout.clone();
        let owner = Owner { tag: shared.tag, owner: layout.shards };
        let chosen = read_roots(&device, &layout, owner).await?;
        repair_root(&device, &shared, owner, &chosen).await?;
        let root = &chosen.root;
        let mut scan = Scan::new(&device, owner, layout.ns_log, MAX_GROUP, shared.clean);
        let found = scan
            .walk(root.anchor, root.incarnation, root.generation, |group| {
                for (seq, record) in (group.header.first..).zip(group.records()) {
                    if !record.is_empty() {
                        replay(seq, record)?;
                    }
                }
                Ok(())
            })
            .await?;
        scan.reaches(root, &found)?;
        let flushed = found.iter().map(|f| f.header.flushed).fold(root.flushed, u64::max);
        scan.mended(flushed).for_each(|m| shared.damage.mended(m));
        let mut ring = Ring::new(layout.ns_log[0].blocks, root.anchor);
        found.iter().for_each(|f| ring.push(f.start, f.blocks, &f.header, f.crc));
        let config = Config {
            owner,
            rings: layout.ns_log,
            max_group: MAX_GROUP,
            mark: usize::from(layout.shards),
            incarnation: shared.incarnation,
        };
        let (generation, incarnation, anchor) = (root.generation, root.incarnation, root.anchor.next);
        let past = Past { ring, root, real: scan::last_real(root, &found) };
        let (handle, tasks) = (flusher.clone(), Rc::clone(&spawner));
        let writer = LogWriter::new(device.clone(), handle, tasks, arena.clone(), config, past);
        writer.open(!found.last().is_some_and(|f| f.empty)).await?;
        Ok(Log(Rc::new(Inner {
            device,
            layout,
            owner,
            arena,
            flusher,
            spawner,
            writer,
            generation: Cell::new(generation),
            slot: Cell::new(chosen.slot),
            trimming: Cell::new(false),
            anchor: Cell::new(anchor),
            incarnation: Cell::new(incarnation),
            waiters: crate::signal::Waiters::default(),
        })))
    }

    /// Appends a record of 1 to [`MAX_LOG_RECORD`] bytes; ends when it, and every record before it, is on the
    /// device in both copies. Waits while the ring is full: somebody must [`Log::trim`]. A record survives a
    /// power cut after a flush that began later.
    pub async fn append(&self, record: Vec<u8>) -> Result<u64, Error> {
        let promise = self.submit(record)?;
        promise.get().await
    }

    /// Queues a record at once, in order of the calls; its sequence comes later, through `done`.
    pub fn append_with(&self, record: Vec<u8>, done: impl FnOnce(Result<u64, Error>) + 'static) {
        if record.is_empty() {
            return done(Err(Error::Invalid("a log record is empty")));
        }
        self.0.writer.submit(record, Data::new(), Urgency::Normal, Box::new(done));
    }

    fn submit(&self, record: Vec<u8>) -> Result<Promise<Result<u64, Error>>, Error> {
        let promise = Promise::new();
        let give = promise.clone();
        self.append_with(record, move |result| give.give(result));
        Ok(promise)
    }

    /// Forgets records up to `last`, in whole groups: the reader's checkpoint holds them durably. Flushes. A caller that
    /// gives up leaves it to go on.
    pub async fn trim(&self, last: u64) -> Result<(), Error> {
        let promise = Promise::new();
        let (this, give) = (self.clone(), promise.clone());
        (self.0.spawner)(Box::pin(async move { give.give(this.trim_next(last).await) }));
        promise.get().await
    }

    async fn trim_next(&self, last: u64) -> Result<(), Error> {
        let inner = &self.0;
        inner.waiters.until(|| !inner.trimming.get()).await;
        inner.trimming.set(true);
        let result = self.trim_alone(last).await;
        inner.trimming.set(false);
        inner.waiters.wake_all();
        if let Err(e) = &result {
            inner.writer.fail(e);
        }
        result
    }

    async fn trim_alone(&self, last: u64) -> Result<(), Error> {
        let inner = &self.0;
        let last = last.min(inner.writer.applied().next - 1);
        let anchor: Anchor = inner.writer.anchor_after(last);
        if anchor.next == inner.anchor.get() || anchor.next - 1 > last {
            return Ok(());
        }
        // Flushed first: the anchor must not point behind records that a power cut takes away.
        inner.flusher.flush().await?;
        // What stays may have been written by an earlier incarnation than this one.
        let incarnation = inner.writer.incarnation_at(last).unwrap_or_else(|| inner.incarnation.get());
        let root = Root {
            generation: inner.generation.get() + 1,
            incarnation,
            anchor,
            flushed: inner.writer.flushed(),
            pages: Vec::new(),
        };
        let slot = 1 - inner.slot.get();
        write_root(&inner.device, &inner.layout, inner.owner, slot, &root, inner.arena.as_ref()).await?;
        inner.flusher.flush().await?;
        inner.generation.set(root.generation);
        inner.slot.set(slot);
        inner.anchor.set(root.anchor.next);
        inner.incarnation.set(incarnation);
        inner.writer.set_root(&root);
        inner.writer.trim(last);
        Ok(())
    }

    /// Makes every completed record durable; shares the device flush with every other caller on this core.
    pub async fn flush(&self) -> Result<(), Error> {
        self.0.flusher.flush().await
    }

    /// Last record known to survive a power cut.
    #[must_use]
    pub fn flushed_seq(&self) -> u64 {
        self.0.writer.flushed()
    }

    /// The error that ended the log, if one did.
    #[must_use]
    pub fn failed(&self) -> Option<Error> {
        self.0.writer.failed()
    }

    /// Appends wait because the ring is full.
    #[must_use]
    pub fn wants_trim(&self) -> bool {
        let (used, all) = self.0.writer.space();
        self.0.writer.stuck() || used * 2 > all
    }

    /// Waits until nothing is queued or under way, then ends the log.
    pub async fn stop(&self) -> Result<(), Error> {
        let writer = &self.0.writer;
        writer.progress().until(|| writer.idle() || writer.failed().is_some()).await;
        let failed = writer.failed();
        writer.fail(&Error::Stopped);
        failed.map_or(Ok(()), Err)?;
        self.0.flusher.flush().await
    }

    /// Figures for `status`.
    #[must_use]
    pub fn stats(&self) -> LogStats {
        let (used_blocks, ring_blocks) = self.0.writer.space();
        let (groups, bytes) = self.0.writer.written();
        LogStats {
            completed: self.0.writer.applied().next - 1,
            flushed: self.0.writer.flushed(),
            used_blocks,
            ring_blocks,
            groups,
            bytes,
        }
    }
}
