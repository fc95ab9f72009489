//! Waiting: conditions, results, and two futures at once; within one thread, but for [`Bell`].
//!
//! Needs no executor of its own and no ring, so that the store runs under the simulator.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// A boxed task, to be run to its end by whoever spawns it.
pub type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Runs tasks on this thread: `reactor::spawn`, or the simulator's executor.
pub type Spawner = Rc<dyn Fn(Task)>;

/// Tasks that wait for a condition: one waker for each, taken out when its wait is dropped.
#[derive(Default, Debug)]
pub(crate) struct Waiters(RefCell<Tickets>);

#[derive(Default, Debug)]
struct Tickets {
    next: u64,
    wakers: BTreeMap<u64, Waker>,
}

impl Tickets {
    fn put(&mut self, ticket: &mut Option<u64>, waker: &Waker) {
        let number = *ticket.get_or_insert_with(|| {
            self.next += 1;
            self.next
        });
        match self.wakers.entry(number) {
            Entry::Occupied(mut e) => e.get_mut().clone_from(waker),
            Entry::Vacant(e) => drop(e.insert(waker.clone())),
        }
    }
}

/// Takes a wait's waker out again.
struct Waiting<'w> {
    on: &'w Waiters,
    ticket: Option<u64>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.on.0.borrow_mut().wakers.remove(&ticket);
        }
    }
}

impl Waiters {
    pub(crate) fn wake_all(&self) {
        let woken = std::mem::take(&mut self.0.borrow_mut().wakers);
        woken.into_values().for_each(Waker::wake);
    }

    /// Ends when `done` says so; it is asked now and after each `wake_all`.
    pub(crate) async fn until(&self, mut done: impl FnMut() -> bool) {
        let mut waiting = Waiting { on: self, ticket: None };
        poll_fn(|cx| {
            if done() {
                return Poll::Ready(());
            }
            self.0.borrow_mut().put(&mut waiting.ticket, cx.waker());
            Poll::Pending
        })
        .await;
    }
}

/// As [`Waiters`], for tasks on several cores. Rare events only: it takes a lock.
#[derive(Default, Debug)]
pub(crate) struct Bell(Mutex<Tickets>);

struct Listening<'b> {
    on: &'b Bell,
    ticket: Option<u64>,
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.on.lock().wakers.remove(&ticket);
        }
    }
}

impl Bell {
    fn lock(&self) -> MutexGuard<'_, Tickets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ring(&self) {
        let woken = std::mem::take(&mut self.lock().wakers);
        woken.into_values().for_each(Waker::wake);
    }

    /// Ends when `done` says so; it is asked now and after each `ring`.
    pub(crate) async fn until(&self, done: impl Fn() -> bool) {
        let mut listening = Listening { on: self, ticket: None };
        poll_fn(|cx| {
            if done() {
                return Poll::Ready(());
            }
            self.lock().put(&mut listening.ticket, cx.waker());
            // It may have rung between the question and the entry.
            if done() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// A value that another task will give.
pub(crate) struct Promise<T>(Rc<Slot<T>>);

struct Slot<T> {
    value: Cell<Option<T>>,
    waker: Cell<Option<Waker>>,
}

impl<T> Clone for Promise<T> {
    fn clone(&self) -> Self {
        Promise(Rc::clone(&self.0))
    }
}

impl<T> Promise<T> {
    pub(crate) fn new() -> Promise<T> {
        Promise(Rc::new(Slot { value: Cell::new(None), waker: Cell::new(None) }))
    }

    pub(crate) fn give(&self, value: T) {
        self.0.value.set(Some(value));
        if let Some(waker) = self.0.waker.take() {
            waker.wake();
        }
    }

    pub(crate) async fn get(&self) -> T {
        poll_fn(|cx| match self.0.value.take() {
            Some(value) => Poll::Ready(value),
            None => {
                self.0.waker.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }
}

/// Runs two futures at once.
pub(crate) async fn join<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut got_a, mut got_b) = (None, None);
    poll_fn(|cx| {
        if got_a.is_none()
            && let Poll::Ready(v) = a.as_mut().poll(cx)
        {
            got_a = Some(v);
        }
        if got_b.is_none()
            && let Poll::Ready(v) = b.as_mut().poll(cx)
        {
            got_b = Some(v);
        }
        if got_a.is_some() && got_b.is_some() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    match (got_a, got_b) {
        (Some(a), Some(b)) => (a, b),
        _ => unreachable!("both are there when the poll is ready"),
    }
}

/// Runs a few futures at once, at most `width` at a time; results in the order of the input.
pub(crate) async fn join_all<F: Future>(
    futures: impl IntoIterator<Item = F>,
    width: usize,
) -> Vec<F::Output> {
    let mut source = futures.into_iter();
    let mut running: Vec<(usize, Pin<Box<F>>)> = Vec::new();
    let mut results: Vec<Option<F::Output>> = Vec::new();
    poll_fn(|cx| {
        loop {
            while running.len() < width
                && let Some(f) = source.next()
            {
                running.push((results.len(), Box::pin(f)));
                results.push(None);
            }
            let before = running.len();
            running.retain_mut(|(i, f)| match f.as_mut().poll(cx) {
                Poll::Ready(v) => {
                    results[*i] = Some(v);
                    false
                }
                Poll::Pending => true,
            });
            if running.is_empty() && before == 0 {
                return Poll::Ready(());
            }
            if running.len() == before {
                return Poll::Pending;
            }
        }
    })
    .await;
    results.into_iter().flatten().collect()
}

/// Lets other tasks run once.
pub(crate) async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
