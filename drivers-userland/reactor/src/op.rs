//! Operations in the kernel's hands: a slab that owns everything they refer to until their last completion.
//!
//! Dropping the future of an operation asks for cancellation and leaves the slab entry, with buffers and
//! file, to the kernel's final answer. A zero-copy send answers first and gives its memory back later; the entry stays
//! until then.

use crate::core::Core;
use crate::fs::Handle;
use crate::request::{Hold, Kind, Request};
use crate::ring::Cqe;
use io_uring::squeue::Entry;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// A multishot operation is stopped once this many of its completions wait unread, and armed again by its
/// reader: one connection must not take all buffers of the reactor.
const UNREAD_MAX: usize = 64;

/// Names an operation in a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    index: u32,
    generation: u32,
}

/// Generations wrap below this, which keeps user data clear of the special values of `core`.
const GENERATIONS: u32 = 1 << 30;

impl Key {
    pub(crate) fn user_data(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(crate) fn from_user_data(data: u64) -> Key {
        Key { index: data as u32, generation: (data >> 32) as u32 }
    }
}

struct Slot {
    generation: u32,
    /// A future still waits for it.
    live: bool,
    /// The kernel may still use what it holds.
    flying: bool,
    stopping: bool,
    kind: Kind,
    hold: Hold,
    handle: Option<Rc<Handle>>,
    waker: Option<Waker>,
    result: Option<Cqe>,
    queue: VecDeque<Cqe>,
}

/// What a completion asks the core to do once the slab is no longer borrowed.
#[derive(Default)]
pub(crate) struct After {
    pub(crate) wake: Option<Waker>,
    /// Result that nobody will read: a descriptor or a buffer to give back.
    pub(crate) dispose: Option<(Kind, Cqe)>,
    /// Resources that the kernel has done with.
    pub(crate) release: Option<(Hold, Option<Rc<Handle>>)>,
    /// The operation has too many unread completions.
    pub(crate) stop: Option<Key>,
    /// It was the operation's last completion.
    pub(crate) ended: bool,
}

/// Operations of one reactor, at most as many as its completion queue holds.
pub(crate) struct Slab {
    slots: Vec<Slot>,
    free: Vec<u32>,
    limit: usize,
}

impl Slab {
    pub(crate) fn new(limit: usize) -> Slab {
        Slab { slots: Vec::new(), free: Vec::new(), limit }
    }

    pub(crate) fn has_room(&self) -> bool {
        !self.free.is_empty() || self.slots.len() < self.limit
    }

    /// Takes a request in; gives it back where the slab is full.
    pub(crate) fn insert(&mut self, request: Request, live: bool) -> Result<(Key, Entry), Box<Request>> {
        if !self.has_room() {
            return Err(Box::new(request));
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                live: false,
                flying: false,
                stopping: false,
                kind: Kind::Plain,
                hold: Hold::None,
                handle: None,
                waker: None,
                result: None,
                queue: VecDeque::new(),
            });
            (self.slots.len() - 1) as u32
        });
        let (entry, kind, hold, handle) = request.into_parts();
        let slot = &mut self.slots[index as usize];
        slot.live = live;
        slot.flying = true;
        slot.stopping = false;
        slot.kind = kind;
        slot.hold = hold;
        slot.handle = handle;
        let key = Key { index, generation: slot.generation };
        Ok((key, entry.user_data(key.user_data())))
    }

    fn get(&mut self, key: Key) -> Option<&mut Slot> {
        self.slots.get_mut(key.index as usize).filter(|slot| slot.generation == key.generation)
    }

    /// Frees a slot that neither a future nor the kernel needs any more.
    fn vacate(&mut self, key: Key) -> (Hold, Option<Rc<Handle>>) {
        let slot = &mut self.slots[key.index as usize];
        debug_assert!(!slot.live && !slot.flying);
        slot.generation = (slot.generation + 1) % GENERATIONS;
        slot.waker = None;
        slot.result = None;
        let released = (std::mem::replace(&mut slot.hold, Hold::None), slot.handle.take());
        self.free.push(key.index);
        released
    }

    /// Notes a completion.
    pub(crate) fn complete(&mut self, cqe: Cqe) -> After {
        let key = Key::from_user_data(cqe.user_data);
        let mut after = After { ended: !cqe.more(), ..After::default() };
        let Some(slot) = self.get(key) else {
            debug_assert!(false, "completion of an unknown operation {key:?}");
            after.ended = false;
            return after;
        };
        if after.ended {
            slot.flying = false;
        }
        if !slot.live {
            after.dispose = (!cqe.notification()).then_some((slot.kind, cqe));
            if after.ended {
                after.release = Some(self.vacate(key));
            }
            return after;
        }
        if cqe.notification() {
            return after;
        }
        if slot.kind.is_multi() {
            slot.queue.push_back(cqe);
            if slot.queue.len() >= UNREAD_MAX && slot.flying && !slot.stopping {
                slot.stopping = true;
                after.stop = Some(key);
            }
        } else {
            slot.result = Some(cqe);
        }
        after.wake = slot.waker.take();
        after
    }

    /// The result of a single operation. Where the kernel still owns the memory, the slab keeps it.
    fn poll_single(&mut self, key: Key, waker: &Waker) -> Poll<Done> {
        let Some(slot) = self.get(key) else { return Poll::Pending };
        let Some(cqe) = slot.result.take() else {
            store(&mut slot.waker, waker);
            return Poll::Pending;
        };
        slot.live = false;
        slot.waker = None;
        let hold = if slot.flying { Hold::None } else { self.vacate(key).0 };
        Poll::Ready(Done { result: cqe.result, hold })
    }

    fn poll_multi(&mut self, key: Key, waker: &Waker) -> Poll<Option<Cqe>> {
        let Some(slot) = self.get(key) else { return Poll::Ready(None) };
        if let Some(cqe) = slot.queue.pop_front() {
            return Poll::Ready(Some(cqe));
        }
        if !slot.flying {
            return Poll::Ready(None);
        }
        store(&mut slot.waker, waker);
        Poll::Pending
    }

    /// A future no longer waits; tells whether the kernel must be asked to stop.
    fn abandon(&mut self, key: Key) -> (bool, After, VecDeque<Cqe>, Kind) {
        let mut after = After::default();
        let Some(slot) = self.get(key) else { return (false, after, VecDeque::new(), Kind::Plain) };
        slot.live = false;
        slot.waker = None;
        let kind = slot.kind;
        let flying = slot.flying;
        let mut unread = std::mem::take(&mut slot.queue);
        unread.extend(slot.result.take());
        if !flying {
            after.release = Some(self.vacate(key));
        }
        (flying, after, unread, kind)
    }
}

fn store(place: &mut Option<Waker>, waker: &Waker) {
    match place {
        Some(old) => old.clone_from(waker),
        none => *none = Some(waker.clone()),
    }
}

/// Outcome of an operation, with what it held.
pub(crate) struct Done {
    pub(crate) result: i32,
    pub(crate) hold: Hold,
}

impl Done {
    /// The result as the system calls give it: a count, or an error.
    pub(crate) fn count(&self) -> io::Result<usize> {
        outcome(self.result)
    }
}

/// Decodes a kernel result.
pub(crate) fn outcome(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

enum State {
    /// Not with the kernel yet: the slab had no room, or nobody polled.
    Waiting(Box<Request>),
    Flying(Key),
    Over,
}

/// One operation with one result.
pub(crate) struct Op {
    core: Rc<Core>,
    state: State,
}

impl Op {
    pub(crate) fn new(core: Rc<Core>, request: Request) -> Op {
        let state = match core.submit(request) {
            Ok(key) => State::Flying(key),
            Err(request) => State::Waiting(request),
        };
        Op { core, state }
    }
}

impl Future for Op {
    type Output = Done;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done> {
        self.state = match std::mem::replace(&mut self.state, State::Over) {
            State::Waiting(request) => match self.core.submit(*request) {
                Ok(key) => State::Flying(key),
                Err(request) => {
                    self.core.wait_for_room(cx.waker());
                    self.state = State::Waiting(request);
                    return Poll::Pending;
                }
            },
            state => state,
        };
        let State::Flying(key) = self.state else { return Poll::Pending };
        let polled = self.core.ops.borrow_mut().poll_single(key, cx.waker());
        if polled.is_ready() {
            self.state = State::Over;
            self.core.room_made();
        }
        polled
    }
}

impl Drop for Op {
    fn drop(&mut self) {
        if let State::Flying(key) = self.state {
            abandon(&self.core, key);
        }
    }
}

fn abandon(core: &Rc<Core>, key: Key) {
    let (flying, after, unread, kind) = core.ops.borrow_mut().abandon(key);
    drop(after);
    for cqe in unread {
        core.dispose(kind, cqe);
    }
    if flying {
        core.cancel(key);
    } else {
        core.room_made();
    }
}

/// An operation with many results, in the order in which the kernel gave them.
pub(crate) struct MultiOp {
    core: Rc<Core>,
    key: Key,
}

impl MultiOp {
    /// Arms it, or gives the request back where the slab is full.
    pub(crate) fn arm(core: &Rc<Core>, request: Request) -> Result<MultiOp, Box<Request>> {
        let key = core.submit(request)?;
        Ok(MultiOp { core: Rc::clone(core), key })
    }

    /// The next result; `None` once the kernel has ended it and every result was read.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Cqe>> {
        self.core.ops.borrow_mut().poll_multi(self.key, cx.waker())
    }
}

impl Drop for MultiOp {
    fn drop(&mut self) {
        abandon(&self.core, self.key);
    }
}
