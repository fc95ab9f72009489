//! The FUSE client: our own channel to the kernel, and a thin adapter over [`client::FileService`].
//!
//! ```text
//! app -> kernel -> /dev/fuse -> channel -> session -> ops -> FileService
//!                          <- notify <- (recalled leases) <-
//! ```
//!
//! - [`abi`]: the protocol as data. [`init`]: what is agreed upon at the start, and why.
//! - [`channel`]: the device. [`session`]: its requests as tasks. [`ops`]: what each means. [`convert`]: types to and fro.
//! - [`notify`]: invalidation, and why it can't deadlock. [`inflight`]: INTERRUPT.
//! - [`mount`]: options and system calls around it. [`running`]: a mount from start to end. [`program`]: the command.
//!
//! Must not hold file system logic: what this crate decides is how the kernel caches, and nothing else. `docs/SEMANTICS.md` states what an
//! application can rely on.

pub mod abi;
pub mod channel;
pub mod convert;
mod departed;
pub mod inflight;
pub mod init;
pub mod mount;
mod nodes;
pub mod notify;
mod ops;
pub mod program;
mod reply;
mod running;
pub mod session;

pub use mount::{MountError, Options, OptionsError, Source, Unmount, UnmountError, unmount};
pub use running::{Error, Mount, MountConfig};
pub use session::MountStats;
