//! One value from one task to another.

use super::semaphore::Closed;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

struct Inner<T> {
    value: RefCell<Option<T>>,
    over: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// A place for one value.
pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let inner = Inner { value: RefCell::new(None), over: Cell::new(false), waker: RefCell::new(None) };
    let inner = Rc::new(inner);
    (Sender { inner: Rc::clone(&inner) }, Receiver { inner })
}

/// Fills the place.
pub struct Sender<T> {
    inner: Rc<Inner<T>>,
}

impl<T> Sender<T> {
    /// Sends the value.
    ///
    /// # Errors
    /// Gives it back where the receiver is gone.
    pub fn send(self, value: T) -> Result<(), T> {
        if self.is_closed() {
            return Err(value);
        }
        self.inner.value.replace(Some(value));
        Ok(())
    }

    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        self.inner.over.get()
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.inner.over.set(true);
        if let Some(waker) = self.inner.waker.take() {
            waker.wake();
        }
    }
}

/// Awaiting it gives the value, or [`Closed`] where the sender was dropped without one.
#[must_use = "does nothing unless awaited"]
pub struct Receiver<T> {
    inner: Rc<Inner<T>>,
}

impl<T> Receiver<T> {
    /// The value, where it is there.
    pub fn try_recv(&mut self) -> Option<T> {
        self.inner.value.take()
    }
}

impl<T> Future for Receiver<T> {
    type Output = Result<T, Closed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(value) = self.inner.value.take() {
            return Poll::Ready(Ok(value));
        }
        if self.inner.over.get() {
            return Poll::Ready(Err(Closed));
        }
        self.inner.waker.replace(Some(cx.waker().clone()));
        Poll::Pending
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.inner.over.set(true);
    }
}
