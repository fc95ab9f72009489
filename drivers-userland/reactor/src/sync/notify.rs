//! Wakes tasks that wait for something to change.

use super::waiters::Waiters;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// A bell. `notify_one` with nobody waiting is remembered, once.
#[derive(Default)]
pub struct Notify {
    kept: Cell<bool>,
    waiters: RefCell<Waiters>,
}

impl Notify {
    /// Silent.
    pub fn new() -> Notify {
        Notify::default()
    }

    /// Wakes the task that waits longest, or the next that comes.
    pub fn notify_one(&self) {
        let waker = self.waiters.borrow_mut().call_first();
        match waker {
            Some(waker) => waker.wake(),
            None => self.kept.set(true),
        }
    }

    /// Wakes all that wait now; remembers nothing.
    pub fn notify_all(&self) {
        loop {
            let waker = self.waiters.borrow_mut().call_first();
            match waker {
                Some(waker) => waker.wake(),
                None => return,
            }
        }
    }

    /// Waits for a notification. It waits from its first poll on, not from this call.
    pub fn notified(&self) -> Notified<'_> {
        Notified { notify: self, ticket: None }
    }
}

/// Future of [`Notify::notified`].
#[must_use = "does nothing unless awaited"]
pub struct Notified<'a> {
    notify: &'a Notify,
    ticket: Option<u64>,
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut waiters = self.notify.waiters.borrow_mut();
        let ready = match self.ticket {
            Some(ticket) => waiters.check(ticket, cx.waker()),
            None => self.notify.kept.replace(false),
        };
        if ready {
            drop(waiters);
            self.ticket = None;
            return Poll::Ready(());
        }
        let joined = if self.ticket.is_none() { Some(waiters.join(1, cx.waker())) } else { self.ticket };
        drop(waiters);
        self.ticket = joined;
        Poll::Pending
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let called = self.notify.waiters.borrow_mut().leave(ticket);
        if called.is_some() {
            self.notify.notify_one();
        }
    }
}
