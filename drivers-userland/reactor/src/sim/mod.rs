//! A simulated machine under the same tasks: a clock, an order of running and a network that follow from one seed.
//!
//! [`run`] takes the place of [`crate::run`]. Tasks, timers, mail and [`crate::sync`] are the real ones; time jumps to
//! the next timer when nothing can run, which of several ready tasks goes next is drawn, and TCP is a pair of queues with
//! latency, short reads and the faults of [`net`]. Tasks belong to a [`Process`], which can be killed as a whole.
//!
//! Must not be used with real files: they have no simulated counterpart, and their completions would not follow the seed.
//! Only one thread may act at a time; a helper thread must be waited for in place.
//!
//! Needs the feature `sim`.

pub mod net;
mod turns;

use crate::core::Core;
use crate::exec::{self, JoinHandle};
use crate::run::{Config, Error};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

/// What each turn of a task costs, so that a task that only yields can't stop the clock.
const TURN: Duration = Duration::from_micros(1);

/// 2026-01-01 00:00 UTC: the wall clock at the start of every simulation.
const EPOCH: Duration = Duration::from_secs(1_767_225_600);

/// State of the simulated machine; part of the reactor's core.
pub(crate) struct Sim {
    began: Instant,
    now: Cell<Instant>,
    random: Cell<u64>,
    /// Process of the task that runs now; 0 is the simulation's own.
    process: Cell<u32>,
    processes: Cell<u32>,
    turns: Cell<u64>,
    /// Folds what happened into one number, to compare two runs of a seed.
    digest: Cell<u64>,
    pub(crate) net: RefCell<net::Net>,
}

/// One step of splitmix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Sim {
    fn new(seed: u64) -> Sim {
        let began = Instant::now();
        Sim {
            began,
            now: Cell::new(began),
            random: Cell::new(seed),
            process: Cell::new(0),
            processes: Cell::new(0),
            turns: Cell::new(0),
            digest: Cell::new(mix(seed)),
            net: RefCell::default(),
        }
    }

    pub(crate) fn now(&self) -> Instant {
        self.now.get()
    }

    pub(crate) fn random(&self) -> u64 {
        let next = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(next);
        mix(next)
    }

    /// Draws one of `count` things, at least one.
    pub(crate) fn below(&self, count: u64) -> u64 {
        self.random() % count.max(1)
    }

    pub(crate) fn process(&self) -> u32 {
        self.process.get()
    }

    /// A task of `process` is about to run. Gives the process that ran before.
    pub(crate) fn turn(&self, process: u32) -> u32 {
        self.turns.set(self.turns.get() + 1);
        self.now.set(self.now.get() + TURN);
        self.note(u64::from(process));
        self.process.replace(process)
    }

    pub(crate) fn turned(&self, before: u32) {
        self.process.set(before);
    }

    /// Nothing can run before `next`.
    pub(crate) fn jump(&self, next: Instant) {
        self.now.set(self.now.get().max(next));
        self.note((self.now.get() - self.began).as_nanos() as u64);
    }

    fn note(&self, what: u64) {
        self.digest.set(mix(self.digest.get().rotate_left(7) ^ what));
    }
}

/// The simulation that this thread runs.
pub(crate) fn current() -> Option<Rc<Sim>> {
    Core::try_current().and_then(|core| core.sim.clone())
}

fn here() -> Rc<Sim> {
    match current() {
        Some(sim) => sim,
        None => panic!("no simulation runs on this thread: call this within reactor::sim::run"),
    }
}

/// Whether this thread runs a simulation.
pub fn is_running() -> bool {
    current().is_some()
}

/// Runs `future` in a simulated machine; everything that happens follows from `seed`.
///
/// # Errors
/// [`Error::Stalled`] where every task waits and no timer is left.
pub fn run<T>(seed: u64, future: impl Future<Output = T>) -> Result<T, Error> {
    let config = Config { name: "sim".to_owned(), entries: 8, ..Config::default() };
    let core = Core::simulated(&config, Rc::new(Sim::new(seed)))?;
    crate::run::run_on(&core, future)
}

/// A number drawn from the simulation's seed.
pub fn random() -> u64 {
    here().random()
}

/// A number below `count` (0 where that is 0).
pub fn below(count: u64) -> u64 {
    here().below(count)
}

/// Time since the simulation began.
pub fn elapsed() -> Duration {
    let sim = here();
    sim.now() - sim.began
}

/// Turns of tasks so far.
pub fn turns() -> u64 {
    here().turns.get()
}

/// Adds `what` to the digest of this run.
pub fn note(what: u64) {
    here().note(what);
}

/// A number that two runs of one seed share if the same things happened in the same order.
pub fn digest() -> u64 {
    here().digest.get()
}

/// The wall clock as simulated; `None` outside a simulation.
pub(crate) fn wall_clock() -> Option<SystemTime> {
    current().map(|sim| SystemTime::UNIX_EPOCH + EPOCH + (sim.now() - sim.began))
}

/// A process of the simulated machine: what is spawned in it, and by that, belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process(u32);

impl Process {
    /// A new process without tasks.
    #[must_use]
    pub fn new() -> Process {
        let sim = here();
        sim.processes.set(sim.processes.get() + 1);
        Process(sim.processes.get())
    }

    /// Its number, from 1.
    pub fn number(self) -> u32 {
        self.0
    }

    /// Starts a task in this process.
    pub fn spawn<T: 'static>(self, future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
        let sim = here();
        let before = sim.process.replace(self.0);
        let handle = exec::spawn(future);
        sim.process.set(before);
        handle
    }

    /// As `kill -9`: its tasks are gone at once, the machine closes its sockets.
    ///
    /// # Panics
    /// Where the process kills itself.
    pub fn kill(self) {
        self.end(false);
    }

    /// As a power cut of its machine: its tasks are gone, and nobody is told.
    ///
    /// # Panics
    /// Where the process ends itself.
    pub fn vanish(self) {
        self.end(true);
    }

    fn end(self, silent: bool) {
        let sim = here();
        assert_ne!(sim.process(), self.0, "a process is ended by another");
        // Its last words, said by destructors, must not be heard.
        let ends = sim.net.borrow_mut().detach(self.0);
        let core = Core::current();
        loop {
            let tasks = core.tasks.borrow_mut().take_process(self.0);
            if tasks.is_empty() {
                break;
            }
            let before = sim.process.replace(self.0);
            drop(tasks);
            sim.process.set(before);
        }
        if !silent {
            for end in ends {
                end.close();
            }
        }
    }
}

impl Default for Process {
    fn default() -> Process {
        Process::new()
    }
}

#[cfg(test)]
mod tests;
