//! Tasks: a slab of boxed futures, wakers that work from any thread, and join handles.

use crate::core::{self, Core};
use crate::request::Request;
use rustix::event::{EventfdFlags, eventfd};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, fence};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};

/// What other threads know of a reactor: how to hand it a task to run and how to rouse it.
pub(crate) struct Remote {
    queue: mpsc::Sender<Arc<Header>>,
    /// The reactor sleeps, or is about to: who hands it something must rouse it.
    pub(crate) asleep: AtomicBool,
    event: OwnedFd,
    /// The ring's number, only ever used in messages to it: once the ring is gone the kernel refuses them
    /// (or another reactor of this process wakes for nothing).
    ring: RawFd,
}

impl Remote {
    pub(crate) fn new(ring: RawFd) -> io::Result<(Arc<Remote>, mpsc::Receiver<Arc<Header>>)> {
        let (queue, inbox) = mpsc::channel();
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok((Arc::new(Remote { queue, asleep: AtomicBool::new(false), event, ring }), inbox))
    }

    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Puts a task on its reactor's ready list, from any thread.
    fn schedule(self: &Arc<Remote>, header: Arc<Header>) {
        let mut header = Some(header);
        core::with_current(|core| {
            if Arc::ptr_eq(&core.remote, self) {
                core.ready.borrow_mut().extend(header.take());
            }
        });
        let Some(header) = header else { return };
        if self.queue.send(header).is_err() {
            return; // The reactor has ended, and its tasks with it.
        }
        // Pairs with the fence in `Core::fall_asleep`: either it sees the task, or we see it asleep.
        fence(SeqCst);
        if self.asleep.load(Relaxed) && self.asleep.swap(false, AcqRel) {
            self.rouse();
        }
    }

    fn rouse(self: &Arc<Remote>) {
        let mut rung = false;
        core::with_current(|core| {
            let bell = Request::bell(self.ring, core::WAKE, Arc::clone(self));
            rung = core.submit_detached(bell).is_ok();
        });
        if !rung {
            self.ring_event();
        }
    }

    /// Rouses the reactor by a system call.
    pub(crate) fn ring_event(&self) {
        // It fails only where the counter is full, and then the reactor is being roused already.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }
}

/// The part of a task that wakers share.
pub(crate) struct Header {
    slot: u32,
    generation: u32,
    scheduled: AtomicBool,
    aborted: AtomicBool,
    home: Arc<Remote>,
}

impl Header {
    fn new(slot: u32, generation: u32, home: &Arc<Remote>) -> Arc<Header> {
        Arc::new(Header {
            slot,
            generation,
            scheduled: AtomicBool::new(false),
            aborted: AtomicBool::new(false),
            home: Arc::clone(home),
        })
    }

    /// Header of the future that `run` was given.
    pub(crate) fn root(home: &Arc<Remote>) -> Arc<Header> {
        Header::new(u32::MAX, 0, home)
    }

    pub(crate) fn is_root(&self) -> bool {
        self.slot == u32::MAX
    }

    /// From here on a wake-up schedules it again.
    pub(crate) fn start(&self) {
        self.scheduled.swap(false, AcqRel);
    }
}

impl Wake for Header {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.scheduled.swap(true, AcqRel) {
            self.home.schedule(Arc::clone(self));
        }
    }
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

#[derive(Default)]
struct Slot {
    generation: u32,
    #[cfg(feature = "sim")]
    process: u32,
    /// Absent while it is being polled, and in a free slot.
    task: Option<Task>,
    waker: Option<Waker>,
}

/// Tasks of one reactor; memory follows the most that ever lived at once.
#[derive(Default)]
pub(crate) struct Tasks {
    slots: Vec<Slot>,
    free: Vec<u32>,
    live: usize,
}

impl Tasks {
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    fn insert(&mut self, task: Task, home: &Arc<Remote>) -> Arc<Header> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        let header = Header::new(index, slot.generation, home);
        slot.task = Some(task);
        slot.waker = Some(Waker::from(Arc::clone(&header)));
        #[cfg(feature = "sim")]
        {
            slot.process = crate::sim::current().map_or(0, |sim| sim.process());
        }
        self.live += 1;
        header
    }

    fn take(&mut self, header: &Header) -> Option<(Task, Waker)> {
        let slot = self.slots.get_mut(header.slot as usize)?;
        if slot.generation != header.generation {
            return None;
        }
        slot.task.take().zip(slot.waker.take())
    }

    fn put_back(&mut self, header: &Header, task: Task, waker: Waker) {
        let slot = &mut self.slots[header.slot as usize];
        slot.task = Some(task);
        slot.waker = Some(waker);
    }

    fn vacate(&mut self, header: &Header) {
        let slot = &mut self.slots[header.slot as usize];
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(header.slot);
        self.live -= 1;
    }

    /// Empties the slab.
    pub(crate) fn take_all(&mut self) -> Vec<Task> {
        self.take_where(|_| true)
    }

    /// Takes the tasks of a simulated process.
    #[cfg(feature = "sim")]
    pub(crate) fn take_process(&mut self, process: u32) -> Vec<Task> {
        self.take_where(|slot| slot.process == process)
    }

    fn take_where(&mut self, which: impl Fn(&Slot) -> bool) -> Vec<Task> {
        let mut tasks = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if !which(slot) {
                continue;
            }
            if let Some(task) = slot.task.take() {
                slot.waker = None;
                slot.generation = slot.generation.wrapping_add(1);
                self.free.push(index as u32);
                self.live -= 1;
                tasks.push(task);
            }
        }
        tasks
    }
}

/// The simulated process of a task; 0 for the simulation's own.
#[cfg(feature = "sim")]
pub(crate) fn process_of(core: &Core, header: &Header) -> u32 {
    let tasks = core.tasks.borrow();
    tasks.slots.get(header.slot as usize).map_or(0, |slot| slot.process)
}

/// Polls the task that `header` names, once.
pub(crate) fn poll_task(core: &Core, header: &Arc<Header>) {
    let taken = core.tasks.borrow_mut().take(header);
    let Some((mut task, waker)) = taken else { return };
    let mut over = header.aborted.load(Relaxed);
    if !over {
        over = task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
    }
    if over || header.aborted.load(Relaxed) {
        core.tasks.borrow_mut().vacate(header);
        drop(task);
    } else {
        core.tasks.borrow_mut().put_back(header, task, waker);
    }
}

/// The task was aborted, or its reactor ended, before it had a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the task was aborted")]
pub struct Aborted;

struct Join<T> {
    result: RefCell<Option<Result<T, Aborted>>>,
    over: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl<T> Join<T> {
    fn finish(&self, result: Result<T, Aborted>) {
        if !self.over.replace(true) {
            self.result.replace(Some(result));
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }
}

/// Tells the handle that the task is gone, however it went.
struct Guard<T>(Rc<Join<T>>);

impl<T> Drop for Guard<T> {
    fn drop(&mut self) {
        self.0.finish(Err(Aborted));
    }
}

/// A spawned task. Dropping the handle detaches the task; awaiting it gives the task's result.
pub struct JoinHandle<T> {
    join: Rc<Join<T>>,
    header: Arc<Header>,
}

impl<T> JoinHandle<T> {
    /// Drops the task's future soon; awaiting then gives [`Aborted`] unless it had ended before.
    pub fn abort(&self) {
        self.header.aborted.store(true, Relaxed);
        self.header.wake_by_ref();
    }

    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.join.over.get()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, Aborted>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(result) = self.join.result.take() {
            return Poll::Ready(result);
        }
        self.join.waker.replace(Some(cx.waker().clone()));
        Poll::Pending
    }
}

/// Starts a task on this thread's reactor.
///
/// A task that panics ends the reactor: `run` drains what is in flight and lets the panic go on.
///
/// # Panics
/// Outside a reactor.
pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
    let core = Core::current();
    let join =
        Rc::new(Join { result: RefCell::new(None), over: Cell::new(false), waker: RefCell::new(None) });
    let guard = Guard(Rc::clone(&join));
    let task = Box::pin(async move {
        let value = future.await;
        guard.0.finish(Ok(value));
    });
    let header = core.tasks.borrow_mut().insert(task, &core.remote);
    header.wake_by_ref();
    JoinHandle { join, header }
}

/// Lets the other ready tasks, and the ring, have a turn.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
