//! What the cores share of one device, and flushing it.
//!
//! One device flush makes every completed write durable, whichever core issued it: each log keeps two marks
//! here, what completed and what is known to be flushed. A failed flush is final: what it should have made
//! durable may be gone from the device's cache, so the store takes no more changes.

use crate::device::BlockDevice;
use crate::error::{Error, Shared as SharedError};
use crate::layout::Layout;
use crate::pool::Pool;
use crate::signal::{Spawner, Waiters};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Marks of one log.
#[derive(Debug, Default)]
pub(crate) struct Mark {
    /// Last record such that it and all before it are on the device.
    pub(crate) completed: AtomicU64,
    /// Last record known to be flushed.
    pub(crate) flushed: AtomicU64,
}

/// Counters of damage found and repaired, for `status`.
#[derive(Debug, Default)]
pub(crate) struct Damage {
    pub(crate) repaired: AtomicU64,
    pub(crate) bad_blocks: AtomicU64,
}

/// What all cores share of one open device.
#[derive(Debug)]
pub struct Shared {
    pub(crate) layout: Layout,
    pub(crate) tag: u64,
    pub(crate) incarnation: u64,
    /// The store had been stopped clean when it was opened: its logs have no torn tails.
    pub(crate) clean: bool,
    pub(crate) pool: Pool,
    /// One per shard, then the namespace log.
    pub(crate) marks: Vec<Mark>,
    /// Bytes of data written since the last flush began.
    pub(crate) unflushed: AtomicU64,
    pub(crate) failed: AtomicBool,
    pub(crate) damage: Damage,
    /// Bytes in use; more than the layout's after growing.
    pub(crate) capacity: AtomicU64,
}

struct Inner<D> {
    device: D,
    shared: std::sync::Arc<Shared>,
    spawner: Spawner,
    started: Cell<u64>,
    finished: Cell<u64>,
    running: Cell<bool>,
    waiters: Waiters,
    error: RefCell<Option<SharedError>>,
}

/// Flushes a device on one core; concurrent callers share one flush.
pub(crate) struct Flusher<D>(Rc<Inner<D>>);

impl<D> Clone for Flusher<D> {
    fn clone(&self) -> Self {
        Flusher(Rc::clone(&self.0))
    }
}

impl<D: BlockDevice> Flusher<D> {
    pub(crate) fn new(device: D, shared: std::sync::Arc<Shared>, spawner: Spawner) -> Flusher<D> {
        Flusher(Rc::new(Inner {
            device,
            shared,
            spawner,
            started: Cell::new(0),
            finished: Cell::new(0),
            running: Cell::new(false),
            waiters: Waiters::default(),
            error: RefCell::new(None),
        }))
    }

    pub(crate) fn shared(&self) -> &std::sync::Arc<Shared> {
        &self.0.shared
    }

    /// Whether a log has completed records that no flush covered.
    pub(crate) fn needed(&self) -> bool {
        self.0
            .shared
            .marks
            .iter()
            .any(|m| m.completed.load(Ordering::Acquire) > m.flushed.load(Ordering::Acquire))
    }

    /// Makes everything durable that completed before the call.
    pub(crate) async fn flush(&self) -> Result<(), Error> {
        // A flush that is under way may have begun before our writes completed: the next one is ours.
        let target = self.0.started.get() + 1;
        loop {
            if let Some(source) = self.0.error.borrow().clone() {
                return Err(Error::Io { what: "flushing the device", source });
            }
            if self.0.finished.get() >= target {
                return Ok(());
            }
            if !self.0.running.replace(true) {
                self.0.started.set(self.0.started.get() + 1);
                // A task of its own: a caller that gives up must not leave the others waiting.
                (self.0.spawner)(Box::pin(self.clone().run()));
            }
            let now = self.0.finished.get();
            self.0.waiters.until(|| self.0.finished.get() != now || self.0.error.borrow().is_some()).await;
        }
    }

    async fn run(self) {
        let shared = &self.0.shared;
        let number = self.0.started.get();
        let seen: Vec<u64> = shared.marks.iter().map(|m| m.completed.load(Ordering::Acquire)).collect();
        shared.unflushed.store(0, Ordering::Release);
        match self.0.device.flush().await {
            Ok(()) => {
                for (mark, seen) in shared.marks.iter().zip(seen) {
                    mark.flushed.fetch_max(seen, Ordering::AcqRel);
                }
            }
            Err(e) => {
                shared.failed.store(true, Ordering::Release);
                *self.0.error.borrow_mut() = Some(e.into());
            }
        }
        self.0.running.set(false);
        self.0.finished.set(number);
        self.0.waiters.wake_all();
    }
}
