//! Signals of the process as a stream.
//!
//! A signal goes to any thread that does not block it, and kills. So call [`block`] first thing in `main`,
//! before other threads start; [`wait`] then works on whichever reactor.

use crate::fs::File;
use crate::sys;
use hugepages::Buf;
pub use libc::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use std::io;

/// Bytes of the kernel's `signalfd_siginfo`, which begins with the signal's number.
const RECORD: usize = 128;

/// Blocks the signals on this thread and on those it starts from now on.
///
/// # Errors
/// Where a number is no signal.
pub fn block(signals: &[i32]) -> io::Result<()> {
    sys::block_signals(signals)
}

/// The given signals from now on; blocks them on this thread first.
///
/// # Errors
/// Where a number is no signal, or no descriptor is left.
pub fn wait(signals: &[i32]) -> io::Result<Signals> {
    sys::block_signals(signals)?;
    let file = File::from_fd(sys::signal_fd(signals)?)?;
    Ok(Signals { file })
}

/// Stream of [`wait`].
#[derive(Debug)]
pub struct Signals {
    file: File,
}

impl Signals {
    /// The next signal's number.
    ///
    /// # Errors
    /// Only where the ring fails.
    pub async fn next(&mut self) -> io::Result<i32> {
        loop {
            let (count, record) = self.file.read(Buf::heap(RECORD)).await;
            if count? == RECORD
                && let Some(number) = record.first_chunk::<4>()
            {
                return Ok(i32::from_ne_bytes(*number));
            }
        }
    }
}
