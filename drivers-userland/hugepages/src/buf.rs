//! A buffer with one owner: a slot of an arena, or aligned memory of the heap.
#![expect(unsafe_code, reason = "views a slot as a slice and allocates aligned memory")]

use crate::ALIGN;
use crate::arena::{Fixed, Inner};
use crate::bytes::Bytes;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

enum Home {
    Slot { arena: Arc<Inner>, granule: u32 },
    Heap,
}

/// A unique, initialised, 4096-aligned buffer; dropping it returns it to its arena from any thread.
pub struct Buf {
    ptr: NonNull<u8>,
    len: usize,
    capacity: usize,
    home: Home,
}

// SAFETY: a `Buf` is the only owner of its memory, which no thread-local state refers to.
unsafe impl Send for Buf {}
// SAFETY: a shared `Buf` only reads.
unsafe impl Sync for Buf {}

impl Buf {
    pub(crate) fn of_slot(
        ptr: NonNull<u8>,
        len: usize,
        capacity: usize,
        arena: Arc<Inner>,
        granule: u32,
    ) -> Buf {
        debug_assert!(len <= capacity);
        Buf { ptr, len, capacity, home: Home::Slot { arena, granule } }
    }

    fn layout(capacity: usize) -> Layout {
        // A length beyond isize::MAX has no layout and, as in `Vec`, no memory.
        Layout::from_size_align(capacity, ALIGN).unwrap_or_else(|_| handle_alloc_error(Layout::new::<u8>()))
    }

    /// Zeroed memory outside any arena, rounded up to whole 4096-byte blocks. Nothing bounds how much of it
    /// exists: the caller does. Aborts where the heap is exhausted, as `Vec` does.
    pub fn heap(len: usize) -> Buf {
        let capacity = len.max(1).checked_next_multiple_of(ALIGN).unwrap_or(usize::MAX);
        let layout = Buf::layout(capacity);
        // SAFETY: the layout's size is at least ALIGN, hence not zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let ptr = NonNull::new(raw).unwrap_or_else(|| handle_alloc_error(layout));
        Buf { ptr, len, capacity, home: Home::Heap }
    }

    /// A heap buffer with a copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Buf {
        let mut buf = Buf::heap(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// Bytes in use.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no byte is in use.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that [`Buf::set_len`] can reach.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Sets the length, cut to the capacity; bytes that come into view hold old contents.
    pub fn set_len(&mut self, len: usize) {
        debug_assert!(len <= self.capacity, "length {len} of a buffer of {}", self.capacity);
        self.len = len.min(self.capacity);
    }

    /// Place in its arena; `None` on the heap.
    pub fn fixed(&self) -> Option<Fixed> {
        match &self.home {
            Home::Slot { arena, granule } => {
                Some(Fixed { arena: arena.id(), offset: u64::from(*granule) * ALIGN as u64 })
            }
            Home::Heap => None,
        }
    }

    /// Makes it shared and read-only.
    pub fn freeze(self) -> Bytes {
        Bytes::from(self)
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        match &self.home {
            Home::Slot { arena, granule } => arena.release(*granule),
            Home::Heap => {
                let layout = Buf::layout(self.capacity);
                // SAFETY: `heap` allocated it with this layout, and nothing else frees it.
                unsafe { dealloc(self.ptr.as_ptr(), layout) }
            }
        }
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` is within the slot, which is initialised (zeroed at first) and ours alone.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `self` is borrowed uniquely.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl std::fmt::Debug for Buf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buf")
            .field("len", &self.len)
            .field("capacity", &self.capacity)
            .field("fixed", &self.fixed())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heap_buffers_are_aligned_zeroed_and_rounded() {
        for len in [0, 1, 4096, 4097, 1 << 20] {
            let mut buf = Buf::heap(len);
            assert_eq!((buf.len(), buf.fixed()), (len, None));
            assert!((buf.as_ptr() as usize).is_multiple_of(ALIGN));
            assert!(buf.capacity() >= len.max(1) && buf.capacity().is_multiple_of(ALIGN));
            buf.set_len(buf.capacity());
            assert!(buf.iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn a_buffer_crosses_threads() {
        let buf = Buf::copy_of(b"abc");
        let back = std::thread::spawn(move || buf).join().expect("the thread ends well");
        assert_eq!(&*back, b"abc");
    }
}
