//! Admission: how much may be under way at once, first come first served.
//!
//! Owns the count and the queue. It does not know what is admitted; whoever enters says how much it weighs.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

struct State {
    all: usize,
    left: Cell<usize>,
    next: Cell<u64>,
    waiting: RefCell<VecDeque<(u64, usize, Option<Waker>)>>,
}

impl State {
    /// Wakes the first that waits, if it fits. It wakes the next when it has entered.
    fn wake(&self) {
        let waiting = self.waiting.borrow();
        if let Some((_, weight, Some(waker))) = waiting.front()
            && *weight <= self.left.get()
        {
            waker.wake_by_ref();
        }
    }
}

/// Lets in as much as fits.
#[derive(Clone)]
pub(crate) struct Gate(Rc<State>);

/// A share of what fits; dropping it lets others in.
pub(crate) struct Pass {
    gate: Gate,
    weight: usize,
}

/// Takes a wait that was given up out of the queue.
struct Waiting<'g> {
    gate: &'g Gate,
    ticket: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.gate.0.waiting.borrow_mut().retain(|(t, ..)| *t != self.ticket);
        self.gate.0.wake();
    }
}

impl Gate {
    /// A gate for `all` in sum.
    pub(crate) fn new(all: usize) -> Gate {
        Gate(Rc::new(State { all, left: Cell::new(all), next: Cell::new(0), waiting: RefCell::default() }))
    }

    fn take(&self, weight: usize) -> Option<Pass> {
        let left = self.0.left.get().checked_sub(weight)?;
        self.0.left.set(left);
        Some(Pass { gate: self.clone(), weight })
    }

    /// Waits until `weight` fits and all that came before have entered. What is heavier than the gate counts as all of it.
    pub(crate) async fn enter(&self, weight: usize) -> Pass {
        let weight = weight.min(self.0.all);
        if self.0.waiting.borrow().is_empty()
            && let Some(pass) = self.take(weight)
        {
            return pass;
        }
        let ticket = self.0.next.get();
        self.0.next.set(ticket + 1);
        self.0.waiting.borrow_mut().push_back((ticket, weight, None));
        let _waiting = Waiting { gate: self, ticket };
        poll_fn(|cx| {
            let first = self.0.waiting.borrow().front().is_some_and(|(t, ..)| *t == ticket);
            if first && let Some(pass) = self.take(weight) {
                return Poll::Ready(pass);
            }
            if let Some((.., waker)) = self.0.waiting.borrow_mut().iter_mut().find(|(t, ..)| *t == ticket) {
                *waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// What has entered, in sum.
    #[cfg(test)]
    pub(crate) fn inside(&self) -> usize {
        self.0.all - self.0.left.get()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.0.left.set(self.gate.0.left.get() + self.weight);
        self.gate.0.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::LocalExecutor;
    use crate::signal::yield_now;

    #[test]
    fn in_order_and_never_more_than_fits() {
        let executor = LocalExecutor::new();
        let gate = Gate::new(10);
        let order = Rc::new(RefCell::new(Vec::new()));
        for (name, weight) in [(0, 6), (1, 5), (2, 1), (3, 20), (4, 3), (5, 3)] {
            let (gate, order) = (gate.clone(), order.clone());
            (executor.spawner())(Box::pin(async move {
                let pass = gate.enter(weight).await;
                assert!(gate.inside() <= 10);
                order.borrow_mut().push(name);
                for _ in 0..3 {
                    yield_now().await;
                }
                drop(pass);
            }));
        }
        executor.run(async {
            while order.borrow().len() < 6 {
                yield_now().await;
            }
        });
        assert_eq!(*order.borrow(), [0, 1, 2, 3, 4, 5], "a light one must not overtake a heavy one");
    }

    #[test]
    fn only_as_many_are_woken_as_fit_and_a_dropped_wait_blocks_nobody() {
        let executor = LocalExecutor::new();
        let (gate, polls, ended) = (Gate::new(1), Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        executor.run(async {
            let pass = gate.enter(1).await;
            for _ in 0..100 {
                let (gate, polls, ended) = (gate.clone(), polls.clone(), ended.clone());
                (executor.spawner())(Box::pin(async move {
                    let mut enter = Box::pin(gate.enter(1));
                    let pass = poll_fn(|cx| {
                        polls.set(polls.get() + 1);
                        enter.as_mut().poll(cx)
                    });
                    drop(pass.await);
                    ended.set(ended.get() + 1);
                }));
            }
            yield_now().await;
            let mut given_up = Box::pin(gate.enter(1));
            poll_fn(|cx| {
                assert!(given_up.as_mut().poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
            drop(given_up);
            drop(pass);
            while ended.get() < 100 {
                yield_now().await;
            }
        });
        assert_eq!(polls.get(), 200, "each was polled when it came and when it fitted");
        assert_eq!(gate.inside(), 0);
    }
}
