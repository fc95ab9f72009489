//! A small executor without a ring: for tests, the simulator and offline tools on the memory device.
//!
//! Deterministic: tasks run in the order in which they were woken. It never blocks the thread.

use crate::signal::{Spawner, Task};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

type Ready = Arc<Mutex<VecDeque<usize>>>;

struct Waking {
    ready: Ready,
    task: usize,
}

impl Wake for Waking {
    fn wake(self: Arc<Self>) {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.task);
    }
}

/// The number of the future given to [`LocalExecutor::run`].
const MAIN: usize = usize::MAX;

#[derive(Default)]
struct Inner {
    tasks: RefCell<Vec<Option<Task>>>,
    free: RefCell<Vec<usize>>,
    ready: Ready,
}

/// Runs tasks of one thread.
#[derive(Clone, Default)]
pub struct LocalExecutor(Rc<Inner>);

impl LocalExecutor {
    /// An executor without tasks.
    #[must_use]
    pub fn new() -> LocalExecutor {
        LocalExecutor::default()
    }

    /// What a store spawns its tasks with.
    #[must_use]
    pub fn spawner(&self) -> Spawner {
        let weak = Rc::downgrade(&self.0);
        Rc::new(move |task| {
            let Some(inner) = weak.upgrade() else { return };
            let mut tasks = inner.tasks.borrow_mut();
            let id = inner.free.borrow_mut().pop().unwrap_or(tasks.len());
            if id == tasks.len() {
                tasks.push(None);
            }
            tasks[id] = Some(task);
            inner.ready.lock().unwrap_or_else(PoisonError::into_inner).push_back(id);
        })
    }

    /// Runs a future and, with it, all tasks; `None` if it can't go on because nothing is left to run.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        let waker = |task| Waker::from(Arc::new(Waking { ready: Arc::clone(&self.0.ready), task }));
        let main = waker(MAIN);
        main.wake_by_ref();
        loop {
            let next = self.0.ready.lock().unwrap_or_else(PoisonError::into_inner).pop_front()?;
            if next == MAIN {
                if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&main)) {
                    return Some(value);
                }
                continue;
            }
            let task = self.0.tasks.borrow_mut().get_mut(next).and_then(Option::take);
            let Some(mut task) = task else { continue };
            if task.as_mut().poll(&mut Context::from_waker(&waker(next))).is_pending() {
                self.0.tasks.borrow_mut()[next] = Some(task);
            } else {
                self.0.free.borrow_mut().push(next);
            }
        }
    }

    /// Drops every task, as a killed process would.
    pub fn clear(&self) {
        let tasks = self.0.tasks.take();
        drop(tasks);
        self.0.free.borrow_mut().clear();
        self.0.ready.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
