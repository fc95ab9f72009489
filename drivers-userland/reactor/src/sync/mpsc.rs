//! A bounded queue from many tasks to one.

use super::semaphore::{Closed, Permit, Semaphore};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

struct Inner<T> {
    queue: RefCell<VecDeque<(T, Permit)>>,
    room: Semaphore,
    senders: Cell<usize>,
    waker: RefCell<Option<Waker>>,
}

impl<T> Inner<T> {
    fn wake(&self) {
        let waker = self.waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A queue of at most `capacity` values (at least one).
pub fn channel<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let inner = Rc::new(Inner {
        queue: RefCell::new(VecDeque::new()),
        room: Semaphore::new(capacity.max(1)),
        senders: Cell::new(1),
        waker: RefCell::new(None),
    });
    (Sender { inner: Rc::clone(&inner) }, Receiver { inner })
}

/// Why a value was not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrySendError<T> {
    /// The queue is full: wait, or shed.
    #[error("the queue is full")]
    Full(T),
    /// The receiver is gone.
    #[error("the receiver is gone")]
    Closed(T),
}

/// Puts values in; clones name the same queue.
pub struct Sender<T> {
    inner: Rc<Inner<T>>,
}

impl<T> Sender<T> {
    /// Puts a value in, waiting for room.
    ///
    /// # Errors
    /// Where the receiver is gone; the value is dropped.
    pub async fn send(&self, value: T) -> Result<(), Closed> {
        let permit = self.inner.room.acquire().await?;
        // It may have been granted just before the receiver went.
        if self.is_closed() {
            return Err(Closed);
        }
        self.put(value, permit);
        Ok(())
    }

    /// Puts a value in where there is room.
    ///
    /// # Errors
    /// Gives the value back where the queue is full or the receiver gone.
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        if self.is_closed() {
            return Err(TrySendError::Closed(value));
        }
        match self.inner.room.try_acquire() {
            Some(permit) => {
                self.put(value, permit);
                Ok(())
            }
            None => Err(TrySendError::Full(value)),
        }
    }

    fn put(&self, value: T, permit: Permit) {
        self.inner.queue.borrow_mut().push_back((value, permit));
        self.inner.wake();
    }

    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        self.inner.senders.get() == 0
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        if !self.is_closed() {
            self.inner.senders.set(self.inner.senders.get() + 1);
        }
        Sender { inner: Rc::clone(&self.inner) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let left = self.inner.senders.get().saturating_sub(1);
        self.inner.senders.set(left);
        if left == 0 {
            self.inner.wake();
        }
    }
}

/// Takes values out.
pub struct Receiver<T> {
    inner: Rc<Inner<T>>,
}

impl<T> Receiver<T> {
    /// The next value; `None` once the queue is empty and no sender is left.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// As [`Receiver::recv`], for futures written by hand.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(value) = self.try_recv() {
            return Poll::Ready(Some(value));
        }
        if self.inner.senders.get() == 0 {
            return Poll::Ready(None);
        }
        self.inner.waker.replace(Some(cx.waker().clone()));
        Poll::Pending
    }

    /// The next value, where there is one.
    pub fn try_recv(&mut self) -> Option<T> {
        let (value, permit) = self.inner.queue.borrow_mut().pop_front()?;
        drop(permit);
        Some(value)
    }

    /// Values in the queue.
    pub fn len(&self) -> usize {
        self.inner.queue.borrow().len()
    }

    /// Whether the queue is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.inner.senders.set(0);
        self.inner.room.close();
        let queue = self.inner.queue.take();
        drop(queue);
    }
}
