//! Reads and writes of one file whose data a kernel caches, in step with recalls.
//!
//! A page that is being read or written is locked in the kernel, and an invalidation waits for the lock. So requests
//! can't simply be held back while data is invalidated. Instead the [`Gate`] records what was served since an
//! invalidation began, and that is invalidated again, in ever smaller rounds; only in the last one, which touches a few
//! pages that were just served, new requests wait. The driver is `recall.rs`; this module must not do I/O.
//!
//! A page that a write has wholly filled is *not* locked while the write is on its way, so an invalidation can take it out,
//! and a read can fill it again with what the server had before the write. So a read waits for the writes of its range that
//! came before it. No circle comes of that: what a write waits for are other clients' leases, and of all clients at most one
//! writes a file through its page cache.

use crate::ranges::Ranges;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::rc::Rc;
use std::task::{Poll, Waker};
use wire::types::Ino;

/// What a request does to the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Fills locked pages that hold nothing yet.
    Read,
    /// Changes locked pages, perhaps in part.
    Write,
    /// Writes back a page for the invalidation itself: never waits.
    Writeback,
}

/// Who has to wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Closed {
    /// Nobody.
    #[default]
    Nobody,
    /// Reads.
    Reads,
    /// Reads and writes.
    All,
}

/// Ranges to invalidate after the fact: they were cached without a lease.
#[derive(Debug, Default)]
pub(crate) struct Late {
    queue: RefCell<Vec<(Ino, Range<u64>)>>,
    waker: RefCell<Option<Waker>>,
}

impl Late {
    pub(crate) fn push(&self, ino: Ino, range: Range<u64>) {
        self.queue.borrow_mut().push((ino, range));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
    /// Waits for some and takes them.
    pub(crate) fn next(self: &Rc<Self>) -> impl Future<Output = Vec<(Ino, Range<u64>)>> + use<> {
        let this = Rc::clone(self);
        poll_fn(move |cx| {
            let some = this.queue.take();
            if some.is_empty() {
                *this.waker.borrow_mut() = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(some)
        })
    }
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    range: Range<u64>,
    access: Access,
    waker: Waker,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    running: Vec<(u64, Range<u64>, Access)>,
    waiting: Vec<Waiting>,
    /// Served since tracking began; `None` while no recall is under way.
    dirty: Option<Ranges>,
    closed: Closed,
    drained: Vec<Waker>,
}

impl State {
    /// Is a write of this range under way that came before the request `id`, or before one that comes now?
    fn is_written(&self, range: &Range<u64>, id: Option<u64>) -> bool {
        let meets =
            |r: &Range<u64>, a: Access| a == Access::Write && r.start < range.end && range.start < r.end;
        self.running.iter().any(|(_, r, a)| meets(r, *a))
            || self.waiting.iter().any(|w| id.is_none_or(|id| w.id < id) && meets(&w.range, w.access))
    }
}

/// The gate of one inode.
#[derive(Debug)]
pub(crate) struct Gate {
    ino: Ino,
    state: RefCell<State>,
    late: Rc<Late>,
}

impl Gate {
    pub(crate) fn new(ino: Ino, late: Rc<Late>) -> Self {
        Self { ino, state: RefCell::default(), late }
    }

    /// Lets a request in, once it may run.
    pub(crate) fn enter(
        self: &Rc<Self>,
        range: Range<u64>,
        access: Access,
    ) -> impl Future<Output = Pass> + use<> {
        let mut entering = Entering { gate: Rc::clone(self), range, access, id: None };
        poll_fn(move |cx| entering.poll(cx.waker()))
    }
    /// Nothing runs and nothing waits.
    pub(crate) fn is_idle(&self) -> bool {
        let s = self.state.borrow();
        s.running.is_empty() && s.waiting.is_empty()
    }
    /// From now on what is served is remembered, beginning with what runs.
    pub(crate) fn track(&self) {
        let mut s = self.state.borrow_mut();
        let running: Ranges = s.running.iter().map(|(_, r, _)| r.clone()).collect();
        s.dirty = Some(running);
    }
    /// Makes newcomers wait.
    pub(crate) fn close(&self, closed: Closed) {
        self.state.borrow_mut().closed = closed;
    }
    /// Lets those that wait run.
    pub(crate) fn open(&self) {
        let mut s = self.state.borrow_mut();
        s.closed = Closed::Nobody;
        s.waiting.iter().for_each(|w| w.waker.wake_by_ref());
    }
    /// The recall is over: nothing is remembered any more, those that wait run.
    pub(crate) fn reset(&self) {
        self.state.borrow_mut().dirty = None;
        self.open();
    }
    /// What was served and is not locked by a waiting request. Pages of a waiting read hold nothing; those of a waiting
    /// write are invalidated after it.
    pub(crate) fn take_dirty(&self) -> Ranges {
        let mut s = self.state.borrow_mut();
        let Some(dirty) = s.dirty.as_mut() else { return Ranges::default() };
        let mut taken = std::mem::take(dirty);
        for w in &s.waiting {
            taken.remove(&w.range);
        }
        taken
    }
    /// Waits until no request runs.
    pub(crate) fn drained(self: &Rc<Self>) -> impl Future<Output = ()> + use<> {
        let this = Rc::clone(self);
        poll_fn(move |cx| {
            let mut s = this.state.borrow_mut();
            if s.running.is_empty() {
                return Poll::Ready(());
            }
            if !s.drained.iter().any(|w| w.will_wake(cx.waker())) {
                s.drained.push(cx.waker().clone());
            }
            Poll::Pending
        })
    }
}

struct Entering {
    gate: Rc<Gate>,
    range: Range<u64>,
    access: Access,
    id: Option<u64>,
}

impl Entering {
    fn poll(&mut self, waker: &Waker) -> Poll<Pass> {
        let mut s = self.gate.state.borrow_mut();
        let waits = match self.access {
            Access::Read => s.closed >= Closed::Reads || s.is_written(&self.range, self.id),
            Access::Write => s.closed == Closed::All,
            Access::Writeback => false,
        };
        if waits {
            match self.id {
                Some(id) => {
                    if let Some(w) = s.waiting.iter_mut().find(|w| w.id == id) {
                        w.waker.clone_from(waker);
                    }
                }
                None => {
                    s.next += 1;
                    let id = s.next;
                    s.waiting.push(Waiting {
                        id,
                        range: self.range.clone(),
                        access: self.access,
                        waker: waker.clone(),
                    });
                    self.id = Some(id);
                }
            }
            return Poll::Pending;
        }
        let waited = self.id.take();
        if let Some(id) = waited {
            s.waiting.retain(|w| w.id != id);
        }
        s.next += 1;
        let id = s.next;
        s.running.push((id, self.range.clone(), self.access));
        if let Some(dirty) = s.dirty.as_mut() {
            dirty.insert(self.range.clone());
        }
        let late = Cell::new(waited.is_some() && self.access == Access::Write);
        Poll::Ready(Pass { gate: Rc::clone(&self.gate), id, range: self.range.clone(), late })
    }
}

impl Drop for Entering {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let mut s = self.gate.state.borrow_mut();
            s.waiting.retain(|w| w.id != id);
            // A read may have waited behind it.
            s.waiting.iter().for_each(|w| w.waker.wake_by_ref());
        }
    }
}

/// A request that runs, until its reply has been written.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Rc<Gate>,
    id: u64,
    range: Range<u64>,
    late: Cell<bool>,
}

impl Pass {
    /// No lease covers what the kernel is about to cache: invalidate it after the reply.
    pub(crate) fn uncovered(&self) {
        self.late.set(true);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut s = self.gate.state.borrow_mut();
        let ended = s.running.iter().position(|(id, ..)| *id == self.id).map(|at| s.running.swap_remove(at));
        if matches!(ended, Some((_, _, Access::Write))) {
            s.waiting.iter().for_each(|w| w.waker.wake_by_ref());
        }
        if s.running.is_empty() {
            s.drained.drain(..).for_each(Waker::wake);
        }
        drop(s);
        if self.late.get() {
            self.gate.late.push(self.gate.ino, self.range.clone());
        }
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
