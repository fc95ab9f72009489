//! Giving up: the token through which a front end interrupts a request.
//!
//! Single-threaded, no reactor needed. Must not decide what an interrupt means; the operations do.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// How strongly a request is given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Interrupt {
    /// Not at all.
    #[default]
    None,
    /// The process has a signal to handle: waits for locks end.
    Signal,
    /// The process is about to die: every wait ends.
    Kill,
}

#[derive(Debug, Default)]
struct Inner {
    state: Cell<Interrupt>,
    wakers: RefCell<Vec<Waker>>,
}

/// Shared flag of one request. Clones share it; the default one never fires.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Option<Rc<Inner>>);

impl CancelToken {
    /// One that can fire.
    #[must_use]
    pub fn new() -> Self {
        Self(Some(Rc::default()))
    }
    /// One that never does, at no cost.
    #[must_use]
    pub const fn never() -> Self {
        Self(None)
    }
    /// Fires, or fires more strongly; never takes back. Nothing on a [`CancelToken::never`].
    pub fn fire(&self, how: Interrupt) {
        let Some(inner) = &self.0 else { return };
        if how > inner.state.get() {
            inner.state.set(how);
            let wakers = inner.wakers.take();
            wakers.into_iter().for_each(Waker::wake);
        }
    }
    /// How far it has fired.
    #[must_use]
    pub fn state(&self) -> Interrupt {
        self.0.as_ref().map_or(Interrupt::None, |i| i.state.get())
    }
    /// Waits until it has fired at least as strongly as `level`.
    #[must_use]
    pub fn reached(&self, level: Interrupt) -> Reached {
        Reached { token: self.clone(), level }
    }
}

/// Future of [`CancelToken::reached`].
#[derive(Debug)]
pub struct Reached {
    token: CancelToken,
    level: Interrupt,
}

impl Future for Reached {
    type Output = Interrupt;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Interrupt> {
        let Some(inner) = &self.token.0 else { return Poll::Pending };
        let state = inner.state.get();
        if state >= self.level {
            return Poll::Ready(state);
        }
        let mut wakers = inner.wakers.borrow_mut();
        if !wakers.iter().any(|w| w.will_wake(cx.waker())) {
            wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}
