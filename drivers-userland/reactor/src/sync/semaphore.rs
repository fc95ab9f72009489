//! Counted permits.

use super::waiters::Waiters;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

struct Inner {
    free: Cell<usize>,
    closed: Cell<bool>,
    waiters: RefCell<Waiters>,
}

impl Inner {
    fn give(&self, units: usize) {
        self.free.set(self.free.get() + units);
        self.call();
    }

    /// Serves the line as far as permits go, strictly in order; nobody once it is closed.
    fn call(&self) {
        while !self.closed.get() {
            let waker = {
                let mut waiters = self.waiters.borrow_mut();
                match waiters.first() {
                    Some(units) if units <= self.free.get() => {
                        self.free.set(self.free.get() - units);
                        waiters.call_first()
                    }
                    _ => None,
                }
            };
            match waker {
                Some(waker) => waker.wake(),
                None => return,
            }
        }
    }
}

/// A number of permits that tasks take and give back. Clones name the same one.
#[derive(Clone)]
pub struct Semaphore {
    inner: Rc<Inner>,
}

/// The semaphore or channel was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("closed")]
pub struct Closed;

impl Semaphore {
    /// With `permits` free.
    pub fn new(permits: usize) -> Semaphore {
        let inner = Inner { free: Cell::new(permits), closed: Cell::new(false), waiters: RefCell::default() };
        Semaphore { inner: Rc::new(inner) }
    }

    /// Takes one permit, waiting in line.
    ///
    /// # Errors
    /// Once the semaphore is closed.
    pub fn acquire(&self) -> Acquire {
        self.acquire_many(1)
    }

    /// Takes several at once. More than will ever be free waits for ever, and all behind it.
    ///
    /// # Errors
    /// Once the semaphore is closed.
    pub fn acquire_many(&self, units: usize) -> Acquire {
        Acquire { inner: Rc::clone(&self.inner), units, ticket: None }
    }

    /// Takes one if it is free and nobody waits.
    pub fn try_acquire(&self) -> Option<Permit> {
        self.try_acquire_many(1)
    }

    /// Takes several if they are free and nobody waits.
    pub fn try_acquire_many(&self, units: usize) -> Option<Permit> {
        let inner = &self.inner;
        if inner.closed.get() || inner.free.get() < units || !inner.waiters.borrow().is_empty() {
            return None;
        }
        inner.free.set(inner.free.get() - units);
        Some(Permit { inner: Rc::clone(inner), units })
    }

    /// Adds permits.
    pub fn add(&self, units: usize) {
        self.inner.give(units);
    }

    /// Free permits.
    pub fn available(&self) -> usize {
        self.inner.free.get()
    }

    /// Ends all waiting, now and later, with [`Closed`]. Permits that are held stay valid.
    pub fn close(&self) {
        self.inner.closed.set(true);
        let wakers = self.inner.waiters.borrow().wakers();
        for waker in wakers {
            waker.wake();
        }
    }
}

/// Future of [`Semaphore::acquire`].
#[must_use = "does nothing unless awaited"]
pub struct Acquire {
    inner: Rc<Inner>,
    units: usize,
    ticket: Option<u64>,
}

impl Future for Acquire {
    type Output = Result<Permit, Closed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let inner = Rc::clone(&self.inner);
        let mut waiters = inner.waiters.borrow_mut();
        let taken = match self.ticket {
            Some(ticket) => waiters.check(ticket, cx.waker()),
            None if waiters.is_empty() && inner.free.get() >= self.units && !inner.closed.get() => {
                inner.free.set(inner.free.get() - self.units);
                true
            }
            None => false,
        };
        if taken {
            self.ticket = None;
            return Poll::Ready(Ok(Permit { inner: Rc::clone(&inner), units: self.units }));
        }
        if inner.closed.get() {
            return Poll::Ready(Err(Closed));
        }
        if self.ticket.is_none() {
            self.ticket = Some(waiters.join(self.units, cx.waker()));
        }
        Poll::Pending
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let granted = self.inner.waiters.borrow_mut().leave(ticket);
        match granted {
            Some(units) => self.inner.give(units),
            // It may have been the one that held up the line.
            None => self.inner.call(),
        }
    }
}

/// Permits that go back when this is dropped.
#[must_use = "goes back at once unless kept"]
pub struct Permit {
    inner: Rc<Inner>,
    units: usize,
}

impl Permit {
    /// How many.
    pub fn units(&self) -> usize {
        self.units
    }

    /// Uses the permits up for good.
    pub fn forget(mut self) {
        self.units = 0;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.units > 0 {
            self.inner.give(self.units);
        }
    }
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Permit").field("units", &self.units).finish()
    }
}
