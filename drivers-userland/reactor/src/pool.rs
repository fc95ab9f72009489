//! Buffers that the kernel picks by itself for multishot receives.
//!
//! One ring of equal buffers per reactor. The kernel takes from its head, [`Provided`] gives back at its
//! tail. A reader that keeps many of them starves the others: copy out what is kept for long.
#![expect(unsafe_code, reason = "shares the ring of buffers with the kernel")]

use hugepages::Buf;
use io_uring::types::BufRingEntry;
use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering::Release};
use std::task::Waker;

/// Buffers of one reactor. A power of two, as the kernel asks; with [`RECV_BUFFER`] it makes 4 MiB.
pub const RECV_BUFFERS: u16 = 256;
/// Bytes of one: a quarter of TCP's largest segment batch (64 KiB), so small messages do not waste much.
pub const RECV_BUFFER: usize = 16 << 10;

const _: () = assert!(RECV_BUFFERS.is_power_of_two());

/// The memory that the kernel and we share.
pub(crate) struct BufferRing {
    _entries: Buf,
    _data: Buf,
    /// Where the two lie: the kernel writes there too, so no reference covers more than one piece.
    base: *mut BufRingEntry,
    pieces: *mut u8,
    tail: Cell<u16>,
    /// Buffers that are with us, not with the kernel.
    out: Cell<u16>,
    /// Receivers that wait until one is with the kernel again.
    starved: RefCell<Vec<Waker>>,
}

impl BufferRing {
    pub(crate) fn new() -> Rc<BufferRing> {
        let mut entries = Buf::heap(usize::from(RECV_BUFFERS) * size_of::<BufRingEntry>());
        let mut data = Buf::heap(usize::from(RECV_BUFFERS) * RECV_BUFFER);
        let ring = BufferRing {
            base: entries.as_mut_ptr().cast(),
            pieces: data.as_mut_ptr(),
            _entries: entries,
            _data: data,
            tail: Cell::new(0),
            out: Cell::new(RECV_BUFFERS),
            starved: RefCell::new(Vec::new()),
        };
        for id in 0..RECV_BUFFERS {
            ring.give(id);
        }
        Rc::new(ring)
    }

    /// Address and number of the ring's entries.
    pub(crate) fn memory(&self) -> (u64, u16) {
        (self.base as u64, RECV_BUFFERS)
    }

    /// Offers buffer `id` to the kernel.
    fn give(&self, id: u16) {
        let tail = self.tail.get();
        let at = usize::from(tail & (RECV_BUFFERS - 1));
        // SAFETY: `at` is within the ring, the memory is page-aligned and initialised, and the kernel reads an
        // entry only once the tail has passed it. Its `resv` field, the tail in entry 0, is not touched.
        let entry = unsafe { &mut *self.base.wrapping_add(at) };
        entry.set_addr(self.piece(id) as u64);
        entry.set_len(RECV_BUFFER as u32);
        entry.set_bid(id);
        // SAFETY: `base` is the first entry of the ring.
        let shared = unsafe { BufRingEntry::tail(self.base) };
        self.tail.set(tail.wrapping_add(1));
        // SAFETY: the tail is aligned and lives as long as the ring; only this thread writes it.
        unsafe { AtomicU16::from_ptr(shared.cast_mut()) }.store(self.tail.get(), Release);
        self.out.set(self.out.get() - 1);
    }

    /// Notes that the kernel handed buffer `id` to us.
    pub(crate) fn taken(&self) {
        self.out.set(self.out.get() + 1);
    }

    /// Gives a buffer back and lets starved receivers try again.
    pub(crate) fn recycle(&self, id: u16) {
        self.give(id);
        for waker in self.starved.take() {
            waker.wake();
        }
    }

    /// Whether the kernel has buffers to pick from; where not, `waker` hears when it has.
    pub(crate) fn ready_or_wait(&self, waker: &Waker) -> bool {
        if self.out.get() < RECV_BUFFERS {
            return true;
        }
        self.starved.borrow_mut().push(waker.clone());
        false
    }

    fn piece(&self, id: u16) -> *mut u8 {
        self.pieces.wrapping_add(usize::from(id) * RECV_BUFFER)
    }

    /// Contents of a buffer that is with us.
    fn bytes(&self, id: u16, len: usize) -> &[u8] {
        // SAFETY: the piece lies within `_data`, is initialised, and the kernel does not write to it before
        // `Provided`, whose borrow this is, gives it back.
        unsafe { std::slice::from_raw_parts(self.piece(id), len.min(RECV_BUFFER)) }
    }
}

/// Received bytes in a buffer of the reactor's ring, which gets it back when this is dropped.
pub struct Provided {
    ring: Rc<BufferRing>,
    id: u16,
    len: usize,
}

impl Provided {
    pub(crate) fn new(ring: Rc<BufferRing>, id: u16, len: usize) -> Provided {
        Provided { ring, id, len }
    }
}

impl Deref for Provided {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.ring.bytes(self.id, self.len)
    }
}

impl Drop for Provided {
    fn drop(&mut self) {
        self.ring.recycle(self.id);
    }
}

impl std::fmt::Debug for Provided {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Provided").field("id", &self.id).field("len", &self.len).finish()
    }
}
