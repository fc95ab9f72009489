//! Bounded queues between reactors, and from threads that are none.
//!
//! Values travel through a lock-free ring. Rousing a reactor that sleeps costs a message between rings
//! (MSG_RING), or a write to its eventfd from other threads; one that is awake is not disturbed. The lock
//! around a waker is taken only when somebody waits.

use std::future::poll_fn;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize, fence};
use std::sync::mpsc::{self, SyncSender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

pub use std::sync::mpsc::TrySendError;

/// Wakers of those who wait for the other side.
#[derive(Default)]
struct Line {
    waiting: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

impl Line {
    /// Joins; the caller then looks once more before it waits.
    fn join(&self, waker: &Waker) {
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        if !wakers.iter().any(|old| old.will_wake(waker)) {
            wakers.push(waker.clone());
        }
        self.waiting.store(true, Relaxed);
        drop(wakers);
        // Pairs with the fence in `call`: either we see what the other side did, or it sees us wait.
        fence(SeqCst);
    }

    fn call(&self) {
        fence(SeqCst);
        if !self.waiting.load(Relaxed) {
            return;
        }
        let wakers = {
            let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
            self.waiting.store(false, Relaxed);
            std::mem::take(&mut *wakers)
        };
        for waker in wakers {
            waker.wake();
        }
    }
}

#[derive(Default)]
struct Shared {
    receiver: Line,
    senders: Line,
    live_senders: AtomicUsize,
}

/// The receiver is gone; here is the value.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the receiver is gone")]
pub struct SendError<T>(pub T);

/// A queue of at most `capacity` values (at least one).
pub fn channel<T: Send>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let (queue, inbox) = mpsc::sync_channel(capacity.max(1));
    let shared = Arc::new(Shared { live_senders: AtomicUsize::new(1), ..Shared::default() });
    (Sender { queue, shared: Arc::clone(&shared) }, Receiver { inbox, shared })
}

/// Puts values in, from any thread.
pub struct Sender<T> {
    queue: SyncSender<T>,
    shared: Arc<Shared>,
}

impl<T: Send> Sender<T> {
    /// Puts a value in where there is room. Works on any thread, and never blocks.
    ///
    /// # Errors
    /// Gives the value back where the queue is full or the receiver gone.
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        self.queue.try_send(value)?;
        self.shared.receiver.call();
        Ok(())
    }

    /// Puts a value in, waiting for room without blocking the thread.
    ///
    /// # Errors
    /// Gives the value back where the receiver is gone.
    pub async fn send(&self, value: T) -> Result<(), SendError<T>> {
        let mut value = Some(value);
        poll_fn(|cx| {
            for joined in [false, true] {
                let Some(this) = value.take() else { return Poll::Ready(Ok(())) };
                match self.try_send(this) {
                    Ok(()) => return Poll::Ready(Ok(())),
                    Err(TrySendError::Disconnected(this)) => return Poll::Ready(Err(SendError(this))),
                    Err(TrySendError::Full(this)) => value = Some(this),
                }
                if !joined {
                    self.shared.senders.join(cx.waker());
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Puts a value in, blocking the thread until there is room: never call it on a reactor.
    ///
    /// # Errors
    /// Gives the value back where the receiver is gone.
    pub fn send_blocking(&self, value: T) -> Result<(), SendError<T>> {
        self.queue.send(value).map_err(|error| SendError(error.0))?;
        self.shared.receiver.call();
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        self.shared.live_senders.fetch_add(1, Relaxed);
        Sender { queue: self.queue.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.shared.live_senders.fetch_sub(1, AcqRel) == 1 {
            self.shared.receiver.call();
        }
    }
}

/// Takes values out, on one thread at a time.
pub struct Receiver<T> {
    inbox: mpsc::Receiver<T>,
    shared: Arc<Shared>,
}

impl<T: Send> Receiver<T> {
    /// The next value; `None` once the queue is empty and no sender is left.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// As [`Receiver::recv`], for futures written by hand.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        for joined in [false, true] {
            // Looked at first: what a sender put in before it went is found by the look into the queue.
            let last = self.shared.live_senders.load(Acquire) == 0;
            if let Some(value) = self.try_recv() {
                return Poll::Ready(Some(value));
            }
            if last {
                return Poll::Ready(None);
            }
            if !joined {
                self.shared.receiver.join(cx.waker());
            }
        }
        Poll::Pending
    }

    /// The next value, where there is one.
    pub fn try_recv(&mut self) -> Option<T> {
        match self.inbox.try_recv() {
            Ok(value) => {
                self.shared.senders.call();
                Some(value)
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => None,
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        // Senders that wait find out once the queue itself is gone, right after this.
        let (_, gone) = mpsc::sync_channel(1);
        drop(std::mem::replace(&mut self.inbox, gone));
        self.shared.senders.call();
    }
}
