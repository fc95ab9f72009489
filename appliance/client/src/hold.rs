//! Counting replies on their way to a front end's caches.
//!
//! A [`Counter`] belongs to one inode's lease; a [`Hold`] keeps up to two of them (directory and inode) above zero
//! until the reply that it travels with has been written. Must not know leases.

use crate::gate::Pass;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Poll, Waker};

/// How many holds are out, and who waits for there to be none.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    held: Cell<u32>,
    wakers: RefCell<Vec<Waker>>,
}

impl Counter {
    fn up(&self) {
        self.held.set(self.held.get() + 1);
    }
    fn down(&self) {
        self.held.set(self.held.get() - 1);
        if self.held.get() == 0 {
            self.wakers.take().into_iter().for_each(Waker::wake);
        }
    }
    /// Holds that are out now.
    pub(crate) fn held(&self) -> u32 {
        self.held.get()
    }
    /// Waits until none is out.
    pub(crate) fn drained(self: &Rc<Self>) -> impl Future<Output = ()> + use<> {
        let this = Rc::clone(self);
        poll_fn(move |cx| {
            if this.held.get() == 0 {
                return Poll::Ready(());
            }
            let mut wakers = this.wakers.borrow_mut();
            if !wakers.iter().any(|w| w.will_wake(cx.waker())) {
                wakers.push(cx.waker().clone());
            }
            Poll::Pending
        })
    }
}

/// Travels with a reply that may be cached. Drop it when the reply has been written (or given up), not before and not
/// much later: recalls wait for it.
#[derive(Debug, Default)]
pub struct Hold {
    counters: [Option<Rc<Counter>>; 2],
    /// Inodes of a directory page.
    many: Vec<Rc<Counter>>,
    /// Read or written data, which a kernel caches.
    pass: Option<Rc<Pass>>,
}

impl Hold {
    /// Holds nothing.
    #[must_use]
    pub const fn none() -> Self {
        Self { counters: [None, None], many: Vec::new(), pass: None }
    }
    /// Holds one or two counters.
    pub(crate) fn new(first: Option<Rc<Counter>>, second: Option<Rc<Counter>>) -> Self {
        for counter in [&first, &second].into_iter().flatten() {
            counter.up();
        }
        Self { counters: [first, second], many: Vec::new(), pass: None }
    }
    /// Holds one more.
    pub(crate) fn push(&mut self, counter: Rc<Counter>) {
        counter.up();
        self.many.push(counter);
    }
    /// Holds a passage of data that others hold, too.
    pub(crate) fn shared(pass: Option<Rc<Pass>>) -> Self {
        Self { counters: [None, None], many: Vec::new(), pass }
    }
    /// Holds a passage of data.
    pub(crate) fn data(pass: Option<Pass>) -> Self {
        Self { counters: [None, None], many: Vec::new(), pass: pass.map(Rc::new) }
    }
}

impl Clone for Hold {
    fn clone(&self) -> Self {
        let [a, b] = &self.counters;
        let mut clone = Self::new(a.clone(), b.clone());
        self.many.iter().for_each(|c| clone.push(Rc::clone(c)));
        clone.pass.clone_from(&self.pass);
        clone
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        for counter in self.counters.iter().flatten().chain(&self.many) {
            counter.down();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_count_and_wake() {
        let counter = Rc::<Counter>::default();
        let hold = Hold::new(Some(Rc::clone(&counter)), None);
        let other = hold.clone();
        assert_eq!(counter.held(), 2);
        drop(hold);
        assert_eq!(counter.held(), 1);
        let mut wait = Box::pin(counter.drained());
        let mut cx = std::task::Context::from_waker(Waker::noop());
        assert!(wait.as_mut().poll(&mut cx).is_pending());
        drop(other);
        assert!(wait.as_mut().poll(&mut cx).is_ready());
    }
}
