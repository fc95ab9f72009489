//! One reactor's state and its loop: poll ready tasks, hand queued entries over in one call, reap.
//!
//! Nothing acts inside a completion: reaping notes results and wakes tasks, and the tasks run afterwards.

use crate::counters::{Counters, bump};
use crate::exec::{self, Header, Remote, Tasks};
use crate::op::{Key, Slab};
use crate::pool::BufferRing;
use crate::request::{self, Hold, Kind, Message, Request};
use crate::ring::{Cqe, Ring, own_fd};
use crate::run::{Config, Error, Stats, Wait};
use crate::timer::Timers;
use hugepages::{Arena, Fixed};
use io_uring::squeue::Entry;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU64, fence};
use std::sync::{Arc, mpsc};
use std::task::Waker;
use std::time::{Duration, Instant};

/// User data of completions that belong to no operation. Keys stay below 2^62.
pub(crate) const WAKE: u64 = u64::MAX;
const EVENT: u64 = u64::MAX - 1;
const CANCEL: u64 = u64::MAX - 2;

/// Completions copied out at a time.
const REAP: usize = 128;
/// File slots per reactor; what exceeds them works through plain descriptors, a little slower.
const FILE_SLOTS: u32 = 4096;
/// Message headers kept for reuse.
const MESSAGES: usize = 64;
/// A spin that found nothing is skipped this many times at most before the next try.
const SPIN_SKIP_MAX: u32 = 64;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

/// Calls `act` where this thread runs a reactor.
pub(crate) fn with_current(act: impl FnOnce(&Core)) {
    // A thread that is being torn down has none.
    let core = CURRENT.try_with(|current| current.borrow().clone()).ok().flatten();
    if let Some(core) = core {
        act(&core);
    }
}

pub(crate) struct Core {
    id: u64,
    #[cfg(feature = "sim")]
    pub(crate) sim: Option<Rc<crate::sim::Sim>>,
    ring: RefCell<Ring>,
    pub(crate) ops: RefCell<Slab>,
    pub(crate) tasks: RefCell<Tasks>,
    pub(crate) ready: RefCell<VecDeque<Arc<Header>>>,
    pub(crate) timers: RefCell<Timers>,
    pub(crate) remote: Arc<Remote>,
    inbox: mpsc::Receiver<Arc<Header>>,
    /// Entries that found the queue full and the kernel unwilling; bounded by the slab's limit.
    backlog: RefCell<VecDeque<Entry>>,
    /// Entries whose last completion has not come.
    in_kernel: Cell<usize>,
    /// Tasks that wait for room in the slab.
    room: RefCell<Vec<Waker>>,
    room_made: Cell<bool>,
    file_slots: RefCell<Vec<u32>>,
    /// Arena and index of its first registered buffer.
    bases: Vec<(u16, u16)>,
    _arenas: Vec<Arena>,
    pub(crate) pool: Rc<BufferRing>,
    #[expect(clippy::vec_box, reason = "the kernel reads a message where it lies")]
    messages: RefCell<Vec<Box<Message>>>,
    event_armed: Cell<bool>,
    wait: Wait,
    spin_failures: Cell<u32>,
    spin_skips: Cell<u32>,
    counters: Counters,
}

/// Makes the core this thread's current one, and no longer at the end of the scope.
pub(crate) struct Entered;

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.with(RefCell::take);
    }
}

impl Core {
    pub(crate) fn new(cfg: &Config) -> Result<Core, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let setup = |what: &'static str| move |source| Error::Setup { what, source };
        let ring = Ring::new(cfg.entries).map_err(setup("io_uring with SINGLE_ISSUER and DEFER_TASKRUN"))?;
        let (remote, inbox) = Remote::new(ring.raw_fd()).map_err(setup("eventfd"))?;
        let slots = ring.register_files(FILE_SLOTS).map_or(0, |()| FILE_SLOTS);
        let bases = register_arenas(&ring, &cfg.arenas);
        let pool = BufferRing::new();
        ring.register_pool(&pool).map_err(setup("ring of receive buffers"))?;
        let limit = ring.completions() as usize;
        Ok(Core {
            #[cfg(feature = "sim")]
            sim: None,
            id: NEXT.fetch_add(1, Relaxed),
            ring: RefCell::new(ring),
            ops: RefCell::new(Slab::new(limit)),
            tasks: RefCell::default(),
            ready: RefCell::default(),
            timers: RefCell::default(),
            remote,
            inbox,
            backlog: RefCell::default(),
            in_kernel: Cell::new(0),
            room: RefCell::default(),
            room_made: Cell::new(false),
            file_slots: RefCell::new((0..slots).rev().collect()),
            bases,
            _arenas: cfg.arenas.clone(),
            pool,
            messages: RefCell::default(),
            event_armed: Cell::new(false),
            wait: cfg.wait,
            spin_failures: Cell::new(0),
            spin_skips: Cell::new(0),
            counters: Counters::default(),
        })
    }

    pub(crate) fn enter_thread(self: &Rc<Core>) -> Result<Entered, Error> {
        CURRENT.with(|current| {
            let mut current = current.borrow_mut();
            if current.is_some() {
                return Err(Error::Nested);
            }
            *current = Some(Rc::clone(self));
            Ok(Entered)
        })
    }

    pub(crate) fn try_current() -> Option<Rc<Core>> {
        CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
    }

    pub(crate) fn current() -> Rc<Core> {
        match Core::try_current() {
            Some(core) => core,
            None => panic!("no reactor runs on this thread: call this within reactor::run"),
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    // Entries -----------------------------------------------------------------------------------------

    /// Takes an operation on; gives it back where the slab is full.
    pub(crate) fn submit(&self, request: Request) -> Result<Key, Box<Request>> {
        self.take_on(request, true)
    }

    /// Takes on an operation that nobody waits for.
    pub(crate) fn submit_detached(&self, request: Request) -> Result<Key, Box<Request>> {
        self.take_on(request, false)
    }

    fn take_on(&self, request: Request, live: bool) -> Result<Key, Box<Request>> {
        let inserted = self.ops.borrow_mut().insert(request, live);
        match inserted {
            Ok((key, entry)) => {
                self.push(entry);
                Ok(key)
            }
            Err(request) => {
                bump(&self.counters.full_slab, 1);
                Err(request)
            }
        }
    }

    fn push(&self, entry: Entry) {
        self.in_kernel.set(self.in_kernel.get() + 1);
        bump(&self.counters.submissions, 1);
        let mut ring = self.ring.borrow_mut();
        let mut backlog = self.backlog.borrow_mut();
        if backlog.is_empty() {
            if ring.push_held(&entry) {
                return;
            }
            bump(&self.counters.full_queue, 1);
            // A failure shows again at the loop's own entry, which reports it.
            if ring.enter(0, None).is_ok() && ring.push_held(&entry) {
                return;
            }
        }
        backlog.push_back(entry);
    }

    pub(crate) fn cancel(&self, key: Key) {
        self.push(request::cancel(key.user_data()).user_data(CANCEL));
    }

    /// Has the task woken once the slab has room.
    pub(crate) fn wait_for_room(&self, waker: &Waker) {
        self.room.borrow_mut().push(waker.clone());
    }

    /// A slot of the slab became free.
    pub(crate) fn room_made(&self) {
        self.room_made.set(true);
    }

    fn wake_waiting_for_room(&self) {
        if self.room_made.replace(false) && !self.room.borrow().is_empty() && self.ops.borrow().has_room() {
            for waker in self.room.take() {
                waker.wake();
            }
        }
    }

    pub(crate) fn message(&self) -> Box<Message> {
        self.messages.borrow_mut().pop().unwrap_or_else(Message::empty)
    }

    fn release(&self, hold: Hold) {
        if let Hold::Message(mut message) = hold {
            message.clear();
            let mut messages = self.messages.borrow_mut();
            if messages.len() < MESSAGES {
                messages.push(message);
            }
        }
    }

    pub(crate) fn reuse(&self, hold: Hold) {
        self.release(hold);
    }

    // Registered files and buffers --------------------------------------------------------------------

    pub(crate) fn add_file(&self, fd: RawFd) -> Option<u32> {
        let slot = self.file_slots.borrow_mut().pop()?;
        if self.ring.borrow().set_file(slot, fd).is_err() {
            self.file_slots.borrow_mut().push(slot);
            return None;
        }
        Some(slot)
    }

    pub(crate) fn remove_file(&self, slot: u32) {
        // A slot that could not be emptied is not used again.
        if self.ring.borrow().set_file(slot, -1).is_ok() {
            self.file_slots.borrow_mut().push(slot);
        }
    }

    pub(crate) fn buffer_index(&self, fixed: Option<Fixed>) -> Option<u16> {
        request::index_of(&self.bases, fixed)
    }

    // Completions -------------------------------------------------------------------------------------

    /// Gives back what a result carries that nobody reads.
    pub(crate) fn dispose(&self, kind: Kind, cqe: Cqe) {
        match kind {
            Kind::Descriptor | Kind::Descriptors if cqe.result >= 0 => drop(own_fd(cqe.result)),
            Kind::Buffers => {
                if let Some(id) = cqe.buffer() {
                    self.pool.recycle(id);
                }
            }
            _ => {}
        }
    }

    fn reap(&self) -> usize {
        let mut total = 0;
        let mut batch = [Cqe::default(); REAP];
        loop {
            let count = {
                let mut ring = self.ring.borrow_mut();
                if ring.overflowed() {
                    bump(&self.counters.overflows, 1);
                }
                ring.reap(&mut batch)
            };
            for &cqe in &batch[..count] {
                self.complete(cqe);
            }
            total += count;
            if count < REAP {
                bump(&self.counters.completions, total as u64);
                return total;
            }
        }
    }

    fn complete(&self, cqe: Cqe) {
        if cqe.buffer().is_some() {
            self.pool.taken();
        }
        match cqe.user_data {
            WAKE => return,
            CANCEL => return self.landed(),
            EVENT => {
                self.event_armed.set(false);
                let mut count = [0_u8; 8];
                // Nothing to read means that it was read before.
                let _ = rustix::io::read(self.remote.event(), &mut count);
                return self.landed();
            }
            _ => {}
        }
        let mut after = self.ops.borrow_mut().complete(cqe);
        if after.ended {
            self.landed();
        }
        if let Some((kind, cqe)) = after.dispose.take() {
            self.dispose(kind, cqe);
        }
        if let Some((hold, handle)) = after.release.take() {
            if let (Hold::Remote(remote), true) = (&hold, cqe.result < 0) {
                remote.ring_event();
            }
            self.release(hold);
            drop(handle);
            self.room_made();
        }
        if let Some(key) = after.stop {
            self.cancel(key);
        }
        if let Some(waker) = after.wake {
            waker.wake();
        }
    }

    fn landed(&self) {
        self.in_kernel.set(self.in_kernel.get() - 1);
    }

    // The loop ----------------------------------------------------------------------------------------

    /// Runs until the root task has been polled to its end: `root` polls it and tells.
    pub(crate) fn run(&self, mut root: impl FnMut() -> bool) -> Result<(), Error> {
        #[cfg(feature = "sim")]
        if let Some(sim) = &self.sim {
            return self.run_simulated(sim, root);
        }
        loop {
            bump(&self.counters.iterations, 1);
            self.take_inbox();
            self.fire_timers();
            if self.poll_ready(&mut root) {
                return Ok(());
            }
            self.wake_waiting_for_room();
            self.submit_and_wait().map_err(Error::Enter)?;
            self.reap();
            self.wake_waiting_for_room();
        }
    }

    pub(crate) fn take_inbox(&self) -> bool {
        let mut any = false;
        while let Ok(header) = self.inbox.try_recv() {
            self.ready.borrow_mut().push_back(header);
            any = true;
        }
        any
    }

    pub(crate) fn fire_timers(&self) {
        if self.timers.borrow().next().is_none() {
            return;
        }
        let now = crate::timer::now();
        loop {
            let due = self.timers.borrow_mut().pop_due(now);
            match due {
                Some(waker) => waker.wake(),
                None => return,
            }
        }
    }

    /// Polls what is ready now; what becomes ready meanwhile has its turn after the ring's.
    fn poll_ready(&self, root: &mut impl FnMut() -> bool) -> bool {
        let count = self.ready.borrow().len();
        bump(&self.counters.polls, count as u64);
        for _ in 0..count {
            let next = self.ready.borrow_mut().pop_front();
            let Some(header) = next else { break };
            header.start();
            if self.poll_one(&header, root) {
                return true;
            }
        }
        false
    }

    /// True where it was the root and has ended.
    pub(crate) fn poll_one(&self, header: &Arc<Header>, root: &mut impl FnMut() -> bool) -> bool {
        #[cfg(feature = "sim")]
        let turn = self.sim.as_ref().map(|sim| (sim, sim.turn(exec::process_of(self, header))));
        let over = header.is_root() && root();
        if !header.is_root() {
            exec::poll_task(self, header);
        }
        #[cfg(feature = "sim")]
        if let Some((sim, before)) = turn {
            sim.turned(before);
        }
        over
    }

    fn flush_backlog(&self) {
        let mut backlog = self.backlog.borrow_mut();
        let mut ring = self.ring.borrow_mut();
        while let Some(entry) = backlog.front() {
            if !ring.push_held(entry) {
                return;
            }
            backlog.pop_front();
        }
    }

    fn enter(&self, want: usize, limit: Option<Duration>) -> std::io::Result<()> {
        bump(&self.counters.enters, 1);
        self.ring.borrow_mut().enter(want, limit)
    }

    fn submit_and_wait(&self) -> std::io::Result<()> {
        self.flush_backlog();
        let busy = !self.ready.borrow().is_empty();
        if busy || !self.backlog.borrow().is_empty() {
            let needed = {
                let mut ring = self.ring.borrow_mut();
                ring.has_queued() || ring.must_enter()
            };
            return if needed { self.enter(0, None) } else { Ok(()) };
        }
        self.arm_event();
        if self.spin()? {
            return Ok(());
        }
        self.fall_asleep()
    }

    fn until_timer(&self) -> Option<Duration> {
        let next = self.timers.borrow().next()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Looks for something to do without sleeping, as the configuration says; true where there is.
    fn spin(&self) -> std::io::Result<bool> {
        let limit = match self.wait {
            Wait::Sleep => return Ok(false),
            Wait::Busy => None,
            Wait::Adaptive { .. } if self.spin_skips.get() > 0 => {
                self.spin_skips.set(self.spin_skips.get() - 1);
                return Ok(false);
            }
            Wait::Adaptive { spin_us } => Some(Duration::from_micros(u64::from(spin_us))),
        };
        let queued = self.ring.borrow_mut().has_queued();
        if queued {
            self.enter(0, None)?;
        }
        bump(&self.counters.spins, 1);
        let start = Instant::now();
        let timer = self.timers.borrow().next();
        loop {
            if self.take_inbox() || self.ring.borrow_mut().has_completions() {
                let must_enter = self.ring.borrow_mut().must_enter();
                if must_enter {
                    self.enter(0, None)?;
                }
                bump(&self.counters.spins_won, 1);
                self.spin_failures.set(0);
                return Ok(true);
            }
            let now = Instant::now();
            if timer.is_some_and(|timer| timer <= now) {
                return Ok(true);
            }
            if limit.is_some_and(|limit| now - start >= limit) {
                // Sleeps are long at present: spin less often, up to one time in SPIN_SKIP_MAX.
                let failures = (self.spin_failures.get() + 1).min(SPIN_SKIP_MAX.ilog2());
                self.spin_failures.set(failures);
                self.spin_skips.set((1 << failures) - 1);
                return Ok(false);
            }
            for _ in 0..32 {
                std::hint::spin_loop();
            }
        }
    }

    fn fall_asleep(&self) -> std::io::Result<()> {
        self.remote.asleep.store(true, SeqCst);
        // Pairs with the fence in `Remote::schedule`.
        fence(SeqCst);
        let entered = if self.take_inbox() {
            self.enter(0, None)
        } else {
            bump(&self.counters.sleeps, 1);
            self.enter(1, self.until_timer())
        };
        self.remote.asleep.store(false, SeqCst);
        entered
    }

    /// Keeps a poll of the eventfd in flight, by which foreign threads rouse us.
    fn arm_event(&self) {
        if !self.event_armed.replace(true) {
            self.push(request::watch(self.remote.event().as_raw_fd()).user_data(EVENT));
        }
    }

    // The end -----------------------------------------------------------------------------------------

    /// Drops every task, cancels everything in flight and waits until the kernel has let go of it all.
    pub(crate) fn drain(&self) -> std::io::Result<()> {
        loop {
            let tasks = self.tasks.borrow_mut().take_all();
            if tasks.is_empty() {
                break;
            }
            // A task's drop may spawn another.
            drop(tasks);
        }
        self.ready.borrow_mut().clear();
        if self.in_kernel.get() > 0 {
            self.push(request::cancel_all().user_data(CANCEL));
        }
        let mut rounds = 0_u32;
        while self.in_kernel.get() > 0 {
            self.flush_backlog();
            self.enter(1, Some(Duration::from_millis(20)))?;
            self.reap();
            self.ready.borrow_mut().clear();
            rounds += 1;
            // An operation that was between two states when it was to be cancelled is asked again.
            if self.in_kernel.get() > 0 && rounds.is_multiple_of(8) {
                self.push(request::cancel_all().user_data(CANCEL));
            }
        }
        Ok(())
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            tasks: self.tasks.borrow().live() as u64,
            in_flight: self.in_kernel.get() as u64,
            fixed_buffers: !self.bases.is_empty(),
            ..self.counters.stats()
        }
    }
}

/// Registers the arenas. Without the right to pin memory the reactor works, a little slower.
fn register_arenas(ring: &Ring, arenas: &[Arena]) -> Vec<(u16, u16)> {
    if arenas.is_empty() {
        return Vec::new();
    }
    if let Err(error) = ring.register_arenas(arenas) {
        tracing::warn!(
            %error,
            "buffers could not be registered with the ring, which costs speed: raise RLIMIT_MEMLOCK (ulimit -l) above the arenas' size"
        );
        return Vec::new();
    }
    let mut next = 0;
    let mut bases = Vec::new();
    for arena in arenas {
        bases.push((arena.id(), next));
        next += arena.regions().count() as u16;
    }
    bases
}
