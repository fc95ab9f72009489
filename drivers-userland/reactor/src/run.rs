//! Configuration of a reactor, its life on a thread, and its counters.

use crate::core::Core;
use crate::exec::Header;
use hugepages::Arena;
use rustix::thread::{CpuSet, sched_setaffinity, set_name};
use std::ffi::CString;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

/// How a reactor waits when it has nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Look for work for a while, then sleep; looks less often while that is in vain.
    Adaptive {
        /// Microseconds of looking.
        spin_us: u32,
    },
    /// Never sleep: for a core that has nothing else to do.
    Busy,
    /// Sleep at once.
    Sleep,
}

/// What a reactor is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the thread, cut to the kernel's 15 bytes.
    pub name: String,
    /// CPU that the thread is pinned to.
    pub cpu: Option<usize>,
    /// Entries of the submission queue, rounded up to a power of two. The completion queue, and so the number of operations
    /// in flight, is four times that; further ones wait.
    pub entries: u32,
    /// What to do when idle.
    pub wait: Wait,
    /// Memory to register as fixed buffers.
    pub arenas: Vec<Arena>,
}

impl Default for Config {
    /// An unpinned reactor of 256 entries which spins for 20 µs: a wake-up costs 30 to 70 µs.
    fn default() -> Config {
        Config {
            name: "reactor".to_owned(),
            cpu: None,
            entries: 256,
            wait: Wait::Adaptive { spin_us: 20 },
            arenas: Vec::new(),
        }
    }
}

/// Why a reactor could not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The thread runs a reactor already: use `spawn`.
    #[error("this thread runs a reactor already: spawn a task on it instead")]
    Nested,
    /// The kernel refused a part of the set-up: see [`crate::probe()`] for what it lacks.
    #[error("cannot set up the {what}: {source}; `probe` tells what this kernel lacks")]
    Setup {
        /// Part that was refused.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The CPU does not exist or is not allowed: correct the configuration.
    #[error("cannot pin the thread to CPU {cpu}: {source}; choose one of the process's CPUs")]
    Pin {
        /// CPU asked for.
        cpu: usize,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Every task of a simulation waits for another.
    #[cfg(feature = "sim")]
    #[error("every task waits and no timer is left: a wake-up was lost, or there is a deadlock")]
    Stalled,
    /// The ring stopped working: stop the process, its operations cannot be accounted for.
    #[error("the ring failed: {0}")]
    Enter(#[source] io::Error),
}

/// Counters of a reactor since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Turns of the loop.
    pub iterations: u64,
    /// Tasks polled.
    pub polls: u64,
    /// Entries given to the ring.
    pub submissions: u64,
    /// Completions taken from it.
    pub completions: u64,
    /// Calls of `io_uring_enter` by the loop.
    pub enters: u64,
    /// Of those, calls that could sleep.
    pub sleeps: u64,
    /// Times it looked for work instead of sleeping.
    pub spins: u64,
    /// Of those, times it found some.
    pub spins_won: u64,
    /// Reaps that found the completion queue overflowed (nothing is lost: the kernel keeps the rest).
    pub overflows: u64,
    /// Entries that found the submission queue full.
    pub full_queue: u64,
    /// Operations that had to wait because too many were in flight.
    pub full_slab: u64,
    /// Tasks alive.
    pub tasks: u64,
    /// Entries whose last completion has not come.
    pub in_flight: u64,
    /// Whether the arenas are registered.
    pub fixed_buffers: bool,
}

/// Counters of this thread's reactor; zeros outside one.
pub fn stats() -> Stats {
    Core::try_current().map(|core| core.stats()).unwrap_or_default()
}

/// Makes this thread a reactor until `future` ends, and returns its result.
///
/// Then every other task is dropped, every operation in flight is cancelled, and the call returns once the
/// kernel has let go of all buffers. A panic in the future or in a task goes on after the same clean-up.
///
/// # Errors
/// Where the ring can't be set up or the thread can't be pinned.
pub fn run<T>(cfg: Config, future: impl Future<Output = T>) -> Result<T, Error> {
    let core = Rc::new(Core::new(&cfg)?);
    prepare_thread(&cfg)?;
    drop(cfg);
    run_on(&core, future)
}

pub(crate) fn run_on<T>(core: &Rc<Core>, future: impl Future<Output = T>) -> Result<T, Error> {
    let entered = core.enter_thread()?;
    let header = Header::root(&core.remote);
    let waker = Waker::from(Arc::clone(&header));
    let mut result = None;
    let looped = {
        let mut future = pin!(Some(future));
        header.wake_by_ref();
        let looped = catch_unwind(AssertUnwindSafe(|| {
            core.run(|| {
                let Some(root) = future.as_mut().as_pin_mut() else { return true };
                if let std::task::Poll::Ready(value) = root.poll(&mut Context::from_waker(&waker)) {
                    result = Some(value);
                }
                result.is_some()
            })
        }));
        // What the future still owns asks for cancellation before the ring is drained.
        let dropped = catch_unwind(AssertUnwindSafe(|| future.set(None)));
        looped.and_then(|looped| dropped.map(|()| looped))
    };
    let drained = catch_unwind(AssertUnwindSafe(|| core.drain()));
    drop(entered);
    let ring_failed = match (&looped, &drained) {
        (Ok(Err(_)), _) | (_, Ok(Err(_)) | Err(_)) => true,
        (_, Ok(Ok(()))) => false,
    };
    if ring_failed {
        // The kernel may still write to buffers of operations that we can't hear of any more.
        std::mem::forget(Rc::clone(core));
    }
    match (looped, drained) {
        (Err(panic), _) | (Ok(_), Err(panic)) => resume_unwind(panic),
        (Ok(Err(error)), _) => Err(error),
        (Ok(Ok(())), Ok(Err(error))) => Err(Error::Enter(error)),
        (Ok(Ok(())), Ok(Ok(()))) => match result {
            Some(value) => Ok(value),
            None => unreachable!("the loop ends with the future's result"),
        },
    }
}

fn prepare_thread(cfg: &Config) -> Result<(), Error> {
    let name: Vec<u8> = cfg.name.bytes().filter(|&byte| byte != 0).take(15).collect();
    if let Ok(name) = CString::new(name) {
        // A thread without its name works as well.
        let _ = set_name(&name);
    }
    if let Some(cpu) = cfg.cpu {
        let pin = |errno: rustix::io::Errno| Error::Pin { cpu, source: errno.into() };
        if cpu >= CpuSet::MAX_CPU {
            return Err(pin(rustix::io::Errno::INVAL));
        }
        let mut set = CpuSet::new();
        set.set(cpu);
        sched_setaffinity(None, &set).map_err(pin)?;
    }
    Ok(())
}
