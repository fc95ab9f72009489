//! The kernel ring itself: set-up, submission queue, completion queue, registered files and buffers.
//!
//! Knows nothing of tasks or operations. Whoever pushes an entry answers for the memory that it names.
#![expect(unsafe_code, reason = "shares memory with the kernel")]

use crate::pool::BufferRing;
use hugepages::Arena;
use io_uring::{IoUring, cqueue, squeue::Entry, types};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// One completion, copied out of the shared queue.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cqe {
    pub(crate) user_data: u64,
    pub(crate) result: i32,
    pub(crate) flags: u32,
}

impl Cqe {
    /// More completions of this operation follow.
    pub(crate) fn more(&self) -> bool {
        cqueue::more(self.flags)
    }

    /// The kernel gave a zero-copy send's memory back.
    pub(crate) fn notification(&self) -> bool {
        cqueue::notif(self.flags)
    }

    /// Number of the provided buffer that it carries.
    pub(crate) fn buffer(&self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

pub(crate) struct Ring {
    io: IoUring,
}

impl Ring {
    /// A ring for this thread alone, whose completions are worked off only when we ask (DEFER_TASKRUN).
    /// The completion queue holds four times `entries`.
    pub(crate) fn new(entries: u32) -> io::Result<Ring> {
        let io = IoUring::builder()
            .dontfork()
            .setup_cqsize(entries.saturating_mul(4))
            .setup_clamp()
            .setup_submit_all()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(entries)?;
        Ok(Ring { io })
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.io.as_raw_fd()
    }

    pub(crate) fn completions(&self) -> u32 {
        self.io.params().cq_entries()
    }

    /// Queues an entry; false where the queue is full.
    ///
    /// Every entry comes from `request`, whose invariant is that the slab holds the memory it names until
    /// its last completion.
    pub(crate) fn push_held(&mut self, entry: &Entry) -> bool {
        // SAFETY: by the invariant of `request`, the memory stays valid and untouched.
        unsafe { self.io.submission().push(entry) }.is_ok()
    }

    /// Hands queued entries to the kernel and waits for `want` completions, no longer than `limit`.
    /// A full completion queue, a signal and the end of the time are no errors: the caller looks again.
    pub(crate) fn enter(&mut self, want: usize, limit: Option<Duration>) -> io::Result<()> {
        let entered = match limit {
            Some(limit) if want > 0 => {
                let spec = types::Timespec::from(limit);
                let args = types::SubmitArgs::new().timespec(&spec);
                self.io.submitter().submit_with_args(want, &args)
            }
            _ => self.io.submitter().submit_and_wait(want),
        };
        match entered.map_err(|error| (error.raw_os_error(), error)) {
            Ok(_) | Err((Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN), _)) => Ok(()),
            Err((_, error)) => Err(error),
        }
    }

    /// Whether entries wait to be handed over.
    pub(crate) fn has_queued(&mut self) -> bool {
        !self.io.submission().is_empty()
    }

    /// Whether completions are there, or the kernel holds some back until we enter.
    pub(crate) fn has_completions(&mut self) -> bool {
        !self.io.completion().is_empty() || self.must_enter()
    }

    /// Whether the kernel holds completions back until we enter.
    pub(crate) fn must_enter(&mut self) -> bool {
        let queue = self.io.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    /// Whether the completion queue overflowed into kernel memory.
    pub(crate) fn overflowed(&mut self) -> bool {
        self.io.submission().cq_overflow()
    }

    /// Copies completions out, as many as fit.
    pub(crate) fn reap(&mut self, into: &mut [Cqe]) -> usize {
        let mut count = 0;
        let mut queue = self.io.completion();
        for (slot, entry) in into.iter_mut().zip(&mut queue) {
            *slot = Cqe { user_data: entry.user_data(), result: entry.result(), flags: entry.flags() };
            count += 1;
        }
        count
    }

    /// A table of `count` empty file slots.
    pub(crate) fn register_files(&self, count: u32) -> io::Result<()> {
        self.io.submitter().register_files_sparse(count)
    }

    /// Fills or, with -1, empties a file slot.
    pub(crate) fn set_file(&self, slot: u32, fd: RawFd) -> io::Result<()> {
        self.io.submitter().register_files_update(slot, &[fd]).map(drop)
    }

    /// Registers every region of the arenas as fixed buffers, in order.
    pub(crate) fn register_arenas(&self, arenas: &[Arena]) -> io::Result<()> {
        let regions: Vec<libc::iovec> = arenas
            .iter()
            .flat_map(Arena::regions)
            .map(|(base, len)| libc::iovec { iov_base: base.cast_mut().cast(), iov_len: len })
            .collect();
        // SAFETY: the pages are mapped, and the kernel pins them: they outlive even the mapping.
        unsafe { self.io.submitter().register_buffers(&regions) }
    }

    /// Offers a ring of buffers to receive into, as group 0.
    pub(crate) fn register_pool(&self, ring: &BufferRing) -> io::Result<()> {
        let (base, entries) = ring.memory();
        // SAFETY: the caller keeps `ring` until this ring is closed.
        unsafe { self.io.submitter().register_buf_ring_with_flags(base, entries, 0, 0) }
    }
}

/// Takes ownership of a descriptor that the kernel made for us.
pub(crate) fn own_fd(fd: RawFd) -> OwnedFd {
    use std::os::fd::FromRawFd;
    debug_assert!(fd >= 0);
    // SAFETY: it comes from the completion of an operation that makes descriptors, seen once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
