//! One thread, one io_uring, one executor: files, sockets, timers, and mail between cores.
//!
//! ```no_run
//! use reactor::{Config, File, OpenOptions, run};
//! let read = run(Config::default(), async {
//!     let options = OpenOptions { read: true, direct: true, ..OpenOptions::new() };
//!     let file = File::open("/dev/vda", &options).await?;
//!     let (count, buf) = file.read_at(hugepages::Buf::heap(4096), 0).await;
//!     count.map(|count| buf[..count].to_vec())
//! });
//! ```
//!
//! # The loop
//! Ready tasks are polled; what they asked for goes to the kernel in one `io_uring_enter`; completions are
//! noted and wake tasks, which run in the next turn. Nothing acts inside a completion. A thread with nothing to do waits
//! as [`Wait`] says. Wakers work from any thread: tasks of a reactor that sleeps are handed over by
//! a message between rings, or by its eventfd from threads that are no reactors.
//!
//! # Buffers
//! A call takes its [`hugepages::Buf`] (or [`hugepages::Bytes`]) by value and gives it back with the result.
//! Dropping the future of an operation in flight asks the kernel to cancel it; buffer and file stay alive
//! until its last completion, which for a zero-copy send is the notification. Buffers of arenas named in
//! [`Config::arenas`] are registered: positioned reads and writes use READ_FIXED and WRITE_FIXED by themselves.
//!
//! # Limits
//! | what | limit | when it is reached |
//! |---|---|---|
//! | operations in flight | 4 × `entries` | further ones wait, in no given order |
//! | fast file slots | 4096 a reactor | further files work, by plain descriptor |
//! | receive buffers | [`RECV_BUFFERS`] × [`RECV_BUFFER`] a reactor | receivers wait for one to come back |
//! | unread pieces or connections of one stream | 64, and what the kernel adds before it stops | it is armed again when they are read |
//! | timers, tasks | memory | they follow what lives: dropping a future frees its timer |
//!
//! # API
//! - [`run()`], [`spawn`] ([`JoinHandle::abort`], awaiting gives `Result<T, Aborted>`), [`yield_now`], [`stats`], [`probe()`]
//!   ([`Features::for_daemon`] asks for 6.12).
//! - [`now`], [`wall_clock`], [`sleep`], [`sleep_until`], [`timeout`].
//! - [`File`]: `open(path, &OpenOptions).await`, `from_fd`, `read_at`, `write_at`, `write_parts_at`, `read`, `write`, `write_parts`, `readable`,
//!   `fdatasync`, `fsync`, `fallocate`, `discard`, `capacity`, `set_len`, `is_block_device`, `lock_exclusive`.
//! - [`TcpListener`]: `bind`, `bind_with(address, share_port)`, `local_addr`, `accept`. [`TcpStream`]: `connect`, `into_split`, `recv_multishot`,
//!   `read`, `read_exact(buf, range)`, `send_all(parts)`, `shutdown(how)`, `set_nodelay`, `set_zc_threshold`, `peer_addr`, `local_addr`.
//!   Parts: anything that becomes [`Parts`]: `Vec<Bytes>`, `smallvec![..]`, `[Bytes; 4]`.
//! - [`sync`]: `Notify`, `Event`, `Semaphore`, `Mutex`, `oneshot`, `mpsc`; no ring needed.
//! - [`random()`].
//! - [`mail::channel`]: `try_send`, `send().await`, `send_blocking` (not on a reactor), `recv().await`.
//! - [`signal::block`] first in `main`, then [`signal::wait`] and `next().await`.
//!
//! - `sim` (feature of that name): a machine whose clock, order and network follow from a seed.
//!
//! Futures are `!Send`. Calls that need a ring panic outside of [`run()`].

mod core;
mod counters;
mod exec;
mod fs;
pub mod mail;
mod net;
mod op;
mod pool;
mod probe;
mod random;
mod request;
mod ring;
mod run;
pub mod signal;
#[cfg(feature = "sim")]
pub mod sim;
pub mod sync;
mod sys;
mod timer;

pub use exec::{Aborted, JoinHandle, spawn, yield_now};
pub use fs::{File, OpenOptions};
pub use net::{ReadHalf, RecvStream, TcpListener, TcpStream, WriteHalf, ZC_THRESHOLD};
pub use pool::{Provided, RECV_BUFFER, RECV_BUFFERS};
pub use probe::{Features, Missing, probe};
pub use random::random;
pub use request::Parts;
pub use run::{Config, Error, Stats, Wait, run, stats};
pub use rustix::fs::FallocateFlags;
pub use timer::{Elapsed, Sleep, now, sleep, sleep_until, timeout, wall_clock};
