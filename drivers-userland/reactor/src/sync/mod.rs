//! Primitives between tasks of one thread: no lock, no atomic, no ring. They work under any executor that
//! polls on one thread, the simulator's included.
//!
//! All are fair: waiters are served in the order in which they began to wait. Dropping a waiting future
//! takes it out of the line and passes on what it was granted.

mod event;
pub mod mpsc;
mod mutex;
mod notify;
pub mod oneshot;
mod semaphore;
mod waiters;

pub use event::Event;
pub use mutex::{Mutex, MutexGuard};
pub use notify::Notify;
pub use semaphore::{Closed, Permit, Semaphore};
