//! What the cores share of one device, and flushing it.
//!
//! One device flush makes every completed write durable, whichever core issued it: each log keeps two marks
//! here, what completed and what is known to be flushed. A failed flush is final: what it should have made
//! durable may be gone from the device's cache, so the store takes no more changes.

use crate::device::BlockDevice;
use crate::error::{Error, Shared as SharedError};
use crate::layout::Layout;
use crate::pool::Pool;
use crate::signal::{Bell, Spawner, Waiters};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Marks of one log.
#[derive(Debug, Default)]
pub(crate) struct Mark {
    /// Last record such that it and all before it are on the device.
    pub(crate) completed: AtomicU64,
    /// Last record known to be flushed.
    pub(crate) flushed: AtomicU64,
}

/// Copies whose mending is told one by one; the rest is counted.
const MENDED_KEPT: usize = 1000;

/// A copy of metadata that opening wrote anew from the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mended {
    /// What it is a copy of.
    pub what: String,
    /// Where it lies, a block of the device.
    pub block: u64,
    /// It may be the trace of an unclean stop between the writes of the two copies, and no damage.
    pub unfinished: bool,
}

/// Counters of damage found and repaired, for `status`.
#[derive(Debug, Default)]
pub(crate) struct Damage {
    pub(crate) repaired: AtomicU64,
    pub(crate) bad_blocks: AtomicU64,
    mended: Mutex<Vec<Mended>>,
}

impl Damage {
    /// Counts a copy that was written anew and remembers which it was.
    pub(crate) fn mended(&self, mended: Mended) {
        self.repaired.fetch_add(1, Ordering::Relaxed);
        let mut all = self.mended.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < MENDED_KEPT {
            all.push(mended);
        }
    }

    pub(crate) fn all_mended(&self) -> Vec<Mended> {
        self.mended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
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
    /// A flush failed, on whichever core: final.
    pub(crate) failed: AtomicBool,
    pub(crate) flights: Flights,
    pub(crate) damage: Damage,
    /// Bytes in use; more than the layout's after growing.
    pub(crate) capacity: AtomicU64,
}

impl Shared {
    /// The error of everything that would change or vouch for the store after a failed flush.
    pub(crate) fn sound(&self) -> Result<(), Error> {
        if self.failed.load(Ordering::Acquire) {
            return Err(Error::ReadOnly { reason: "a flush of the device failed".into() });
        }
        Ok(())
    }
}

/// Flushes under way on all cores. The kernel tells one caller of an error and lets the next flush succeed: nobody
/// believes in a flush before all that overlapped it have said how they ended.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    begun: AtomicU64,
    flying: Mutex<BTreeSet<u64>>,
    landed: Bell,
}

/// One flush under way.
struct Flight<'s> {
    shared: &'s Shared,
    number: u64,
}

impl Flights {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.flying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(shared: &Shared) -> Flight<'_> {
        let flights = &shared.flights;
        let mut flying = flights.lock();
        let number = flights.begun.fetch_add(1, Ordering::AcqRel);
        flying.insert(number);
        Flight { shared, number }
    }
}

impl Flight<'_> {
    fn remove(&self) -> bool {
        let removed = self.shared.flights.lock().remove(&self.number);
        self.shared.flights.landed.ring();
        removed
    }

    /// Ends it and waits for those that overlapped it; true if none of them failed.
    async fn land(self, good: bool) -> bool {
        let (shared, flights) = (self.shared, &self.shared.flights);
        if !good {
            shared.failed.store(true, Ordering::Release);
        }
        self.remove();
        let end = flights.begun.load(Ordering::Acquire);
        let failed = || shared.failed.load(Ordering::Acquire);
        flights.landed.until(|| failed() || flights.lock().first().is_none_or(|&n| n >= end)).await;
        !failed()
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if self.shared.flights.lock().contains(&self.number) {
            // Nobody will ever know how it ended.
            self.shared.failed.store(true, Ordering::Release);
            self.remove();
        }
    }
}

/// What follows the flushes of a core.
pub(crate) trait Member {
    /// A flush is about to begin.
    fn flushing(self: Rc<Self>) {}
    /// A flush has ended well.
    fn flushed(self: Rc<Self>) {}
    /// It wants another flush although nothing was written.
    fn unmarked(&self) -> bool {
        false
    }
}

struct Inner<D> {
    device: D,
    shared: Arc<Shared>,
    spawner: Spawner,
    started: Cell<u64>,
    finished: Cell<u64>,
    running: Cell<bool>,
    waiters: Waiters,
    error: RefCell<Option<SharedError>>,
    members: RefCell<Vec<Weak<dyn Member>>>,
}

/// Flushes a device on one core; concurrent callers share one flush.
pub(crate) struct Flusher<D>(Rc<Inner<D>>);

impl<D> Clone for Flusher<D> {
    fn clone(&self) -> Self {
        Flusher(Rc::clone(&self.0))
    }
}

impl<D: BlockDevice> Flusher<D> {
    pub(crate) fn new(device: D, shared: Arc<Shared>, spawner: Spawner) -> Flusher<D> {
        Flusher(Rc::new(Inner {
            device,
            shared,
            spawner,
            started: Cell::new(0),
            finished: Cell::new(0),
            running: Cell::new(false),
            waiters: Waiters::default(),
            error: RefCell::new(None),
            members: RefCell::default(),
        }))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    /// Adds what is to hear of flushes, until it is dropped.
    pub(crate) fn join(&self, member: Weak<dyn Member>) {
        let mut members = self.0.members.borrow_mut();
        members.retain(|m| m.strong_count() > 0);
        members.push(member);
    }

    fn members(&self) -> Vec<Rc<dyn Member>> {
        self.0.members.borrow().iter().filter_map(Weak::upgrade).collect()
    }

    /// Whether a log has completed records that no flush covered, or marks to record.
    pub(crate) fn needed(&self) -> bool {
        self.unflushed() || self.members().iter().any(|m| m.unmarked())
    }

    fn unflushed(&self) -> bool {
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
            self.0.shared.sound()?;
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
        let shared = Arc::clone(&self.0.shared);
        let number = self.0.started.get();
        self.members().into_iter().for_each(Member::flushing);
        let seen: Vec<u64> = shared.marks.iter().map(|m| m.completed.load(Ordering::Acquire)).collect();
        shared.unflushed.store(0, Ordering::Release);
        let flight = Flights::begin(&shared);
        let result = self.0.device.flush().await;
        let good = flight.land(result.is_ok()).await;
        if good {
            for (mark, seen) in shared.marks.iter().zip(seen) {
                mark.flushed.fetch_max(seen, Ordering::AcqRel);
            }
        }
        if let Err(e) = result {
            *self.0.error.borrow_mut() = Some(e.into());
        }
        self.0.running.set(false);
        self.0.finished.set(number);
        self.0.waiters.wake_all();
        if good {
            self.members().into_iter().for_each(Member::flushed);
        }
    }
}
