//! System calls that no safe crate offers: discard, signal masks, signalfd.
#![expect(unsafe_code, reason = "calls libc directly")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// `_IO(0x12, 119)` of linux/fs.h.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// Tells a block device that a range is unused. Blocks.
pub(crate) fn discard(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: BLKDISCARD reads two 64-bit numbers from the address.
    match unsafe { libc::ioctl(fd.as_raw_fd(), BLKDISCARD, range.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_of(signals: &[i32]) -> io::Result<libc::sigset_t> {
    // SAFETY: a signal set is plain data; zeros are the empty set on Linux.
    let mut set = unsafe { std::mem::zeroed::<libc::sigset_t>() };
    for &signal in signals {
        // SAFETY: `set` is ours; a number that is no signal is refused.
        if unsafe { libc::sigaddset(&raw mut set, signal) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(set)
}

/// Blocks the signals on this thread and on those it starts from now on.
pub(crate) fn block_signals(signals: &[i32]) -> io::Result<()> {
    let set = set_of(signals)?;
    // SAFETY: reads the set, writes nothing.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// A descriptor from which blocked signals are read.
pub(crate) fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    let set = set_of(signals)?;
    // SAFETY: reads the set and makes a descriptor.
    match unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) } {
        -1 => Err(io::Error::last_os_error()),
        fd => Ok(crate::ring::own_fd(fd)),
    }
}
