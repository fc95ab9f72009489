//! One mapping, one owner: hands out slots as buffers and takes them back from any thread.
//!
//! The free lists belong to the owning thread (the first that allocates) and are touched by no other. A
//! buffer dropped elsewhere is pushed on a lock-free stack which the owner drains at its next allocation.
#![expect(
    unsafe_code,
    reason = "hands out pieces of one mapping and lets a single thread own its free lists"
)]

use crate::ALIGN;
use crate::buf::Buf;
use crate::pages::{self, PageChoice, PageKind};
use crate::slots::{CLASS_SIZES, CLASSES, NONE, SPAN, Slot, Slots, class_of};
use memmap2::MmapMut;
use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Bytes of one registration unit: the largest multiple of a span below 1 GiB, the kernel's limit for one
/// fixed buffer, so that no buffer ever straddles two units.
pub const REGION: usize = (1 << 30) / SPAN * SPAN;
/// Largest arena: what 32-bit granule numbers name, less the one that marks the end of a list.
pub const MAX_ARENA: usize = (u32::MAX as usize - 1) * ALIGN;

/// Size and pages of an arena.
#[derive(Clone, Copy, Debug)]
pub struct ArenaConfig {
    /// Bytes wanted; rounded up to whole pages.
    pub bytes: usize,
    /// Pages wanted.
    pub pages: PageChoice,
}

/// Why an arena could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The size is zero or too large: correct the configuration.
    #[error("an arena of {0} bytes is not possible: choose between 4096 and {MAX_ARENA}")]
    Size(usize),
    /// The kernel gave no memory: choose a smaller arena.
    #[error("no memory for an arena of {bytes} bytes: choose a smaller one or free memory")]
    Memory {
        /// Bytes asked for.
        bytes: usize,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// Arena ids are 16 bits and never reused within a process.
    #[error("this process has made 65535 arenas already: keep arenas instead of making new ones")]
    Ids,
}

/// Place of a buffer in its arena, as a registered buffer's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// [`Arena::id`].
    pub arena: u16,
    /// Bytes from the arena's start.
    pub offset: u64,
}

impl Fixed {
    /// Which of [`Arena::regions`] holds it.
    pub fn region(self) -> usize {
        self.offset as usize / REGION
    }
}

/// Counters of one size class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassStats {
    /// Slot size in bytes.
    pub size: usize,
    /// Slots handed out and not yet back on the free list.
    pub in_use: u64,
}

/// Counters of an arena. Buffers dropped on other threads count as in use until the owner allocates again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArenaStats {
    /// Bytes mapped.
    pub bytes: usize,
    /// Bytes in slots handed out.
    pub in_use: u64,
    /// Per size class.
    pub classes: [ClassStats; CLASSES],
    /// Allocations served.
    pub allocs: u64,
    /// Of those, served by a larger class than asked for.
    pub larger: u64,
    /// Allocations refused.
    pub refused: u64,
    /// Buffers that came back from other threads.
    pub remote_frees: u64,
}

/// Written by the owner alone, read by anyone.
#[derive(Default)]
struct Counters {
    in_use: [AtomicU64; CLASSES],
    allocs: AtomicU64,
    larger: AtomicU64,
    refused: AtomicU64,
    remote_frees: AtomicU64,
}

/// Adds to a counter that only this thread writes: no locked instruction.
fn bump(counter: &AtomicU64, by: i64) {
    counter.store(counter.load(Relaxed).wrapping_add_signed(by), Relaxed);
}

pub(crate) struct Inner {
    id: u16,
    kind: PageKind,
    base: NonNull<u8>,
    bytes: usize,
    /// Keeps the pages mapped; reached only through `base`.
    _map: MmapMut,
    /// Token of the owning thread, 0 before the first allocation.
    owner: AtomicU64,
    /// Touched by the owner alone.
    slots: UnsafeCell<Slots>,
    /// Granule on top of the stack of buffers that other threads dropped.
    remote: AtomicU32,
    /// Next granule down the stack, for each granule on it.
    links: Box<[AtomicU32]>,
    counters: Counters,
}

// SAFETY: `slots` is reached only after `is_owner` said that this thread, and so no other, owns it; `base`
// is only handed out in pieces that have one owner each; the rest is atomic or never changes.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// A number for each thread, never reused.
fn thread_token() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local!(static TOKEN: u64 = NEXT.fetch_add(1, Relaxed));
    // 0 owns nothing: a thread that is being torn down frees as any foreign thread does.
    TOKEN.try_with(|token| *token).unwrap_or(0)
}

impl Inner {
    fn is_owner(&self) -> bool {
        let token = thread_token();
        token != 0 && self.owner.load(Relaxed) == token
    }

    fn claim(&self) -> bool {
        let token = thread_token();
        token != 0
            && (self.owner.load(Relaxed) == token
                || self.owner.compare_exchange(0, token, Acquire, Relaxed).is_ok())
    }

    /// The free lists; call only on the owning thread.
    fn with_slots<R>(&self, act: impl FnOnce(&mut Slots) -> R) -> R {
        debug_assert!(self.is_owner());
        // SAFETY: only the owning thread comes here, and `act` (all of them are in this file) calls nothing
        // that could come here again.
        act(unsafe { &mut *self.slots.get() })
    }

    pub(crate) fn id(&self) -> u16 {
        self.id
    }

    /// Takes a buffer's slot back, on whatever thread.
    pub(crate) fn release(&self, granule: u32) {
        if self.is_owner() {
            let class = self.with_slots(|slots| slots.free(granule));
            bump(&self.counters.in_use[class], -1);
            return;
        }
        let link = &self.links[granule as usize];
        let mut head = self.remote.load(Relaxed);
        loop {
            link.store(head, Relaxed);
            match self.remote.compare_exchange_weak(head, granule, Release, Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Brings home what other threads dropped. The whole stack is taken at once, so no granule can return
    /// to it under our feet.
    fn drain_remote(&self) {
        if self.remote.load(Relaxed) == NONE {
            return;
        }
        let mut granule = self.remote.swap(NONE, Acquire);
        while granule != NONE {
            let next = self.links[granule as usize].load(Relaxed);
            let class = self.with_slots(|slots| slots.free(granule));
            bump(&self.counters.in_use[class], -1);
            bump(&self.counters.remote_frees, 1);
            granule = next;
        }
    }
}

/// A handle to one arena; clones name the same memory. Buffers keep the memory alive.
#[derive(Clone)]
pub struct Arena {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arena")
            .field("id", &self.inner.id)
            .field("bytes", &self.inner.bytes)
            .field("pages", &self.inner.kind)
            .finish()
    }
}

impl Arena {
    /// Maps an arena. Without huge pages it takes normal ones and the process warns once.
    pub fn new(cfg: ArenaConfig) -> Result<Arena, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if cfg.bytes < ALIGN || cfg.bytes > MAX_ARENA - PageKind::Huge1G.bytes() {
            return Err(Error::Size(cfg.bytes));
        }
        let take = |id: u32| if id < u32::from(u16::MAX) { Some(id + 1) } else { None };
        let id = NEXT.fetch_update(Relaxed, Relaxed, take).map_err(|_| Error::Ids)?;
        let (mut map, kind) =
            pages::map(cfg.bytes, cfg.pages).map_err(|source| Error::Memory { bytes: cfg.bytes, source })?;
        let bytes = map.len();
        let base = NonNull::new(map.as_mut_ptr()).ok_or(Error::Size(bytes))?;
        let inner = Inner {
            id: id as u16,
            kind,
            base,
            bytes,
            _map: map,
            owner: AtomicU64::new(0),
            slots: UnsafeCell::new(Slots::new(bytes)),
            remote: AtomicU32::new(NONE),
            links: (0..bytes / ALIGN).map(|_| AtomicU32::new(NONE)).collect(),
            counters: Counters::default(),
        };
        Ok(Arena { inner: Arc::new(inner) })
    }

    /// A buffer of `len` bytes with old or zero contents, from the smallest class with room.
    ///
    /// `None` where no class that is large enough has room, `len` exceeds [`crate::MAX_ALLOC`], or another
    /// thread owns the arena. The first thread that allocates owns it from then on.
    pub fn alloc(&self, len: usize) -> Option<Buf> {
        let inner = &*self.inner;
        let wanted = class_of(len)?;
        if !inner.claim() {
            return None;
        }
        inner.drain_remote();
        let Some(Slot { granule, class }) = inner.with_slots(|slots| slots.alloc(wanted)) else {
            bump(&inner.counters.refused, 1);
            return None;
        };
        let class = class as usize;
        bump(&inner.counters.allocs, 1);
        bump(&inner.counters.larger, i64::from(class != wanted));
        bump(&inner.counters.in_use[class], 1);
        // SAFETY: the slot lies within the mapping: `Slots` was made with its length.
        let ptr = unsafe { inner.base.add(granule as usize * ALIGN) };
        Some(Buf::of_slot(ptr, len, CLASS_SIZES[class], Arc::clone(&self.inner), granule))
    }

    /// Start and length of the whole mapping, for whoever registers it with a device.
    pub fn region(&self) -> (*const u8, usize) {
        (self.inner.base.as_ptr(), self.inner.bytes)
    }

    /// The mapping in pieces of at most [`REGION`] bytes, in order; no buffer straddles two.
    pub fn regions(&self) -> impl Iterator<Item = (*const u8, usize)> + '_ {
        let (base, bytes) = self.region();
        (0..bytes).step_by(REGION).map(move |at| (base.wrapping_add(at), REGION.min(bytes - at)))
    }

    /// Number of this arena, unique in the process.
    pub fn id(&self) -> u16 {
        self.inner.id
    }

    /// Pages that it got.
    pub fn page_kind(&self) -> PageKind {
        self.inner.kind
    }

    /// Counters, from any thread.
    pub fn stats(&self) -> ArenaStats {
        let counters = &self.inner.counters;
        let classes = std::array::from_fn(|class| ClassStats {
            size: CLASS_SIZES[class],
            in_use: counters.in_use[class].load(Relaxed),
        });
        ArenaStats {
            bytes: self.inner.bytes,
            in_use: classes.iter().map(|class| class.in_use * class.size as u64).sum(),
            classes,
            allocs: counters.allocs.load(Relaxed),
            larger: counters.larger.load(Relaxed),
            refused: counters.refused.load(Relaxed),
            remote_frees: counters.remote_frees.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MAX_ALLOC;

    fn small(bytes: usize) -> Arena {
        Arena::new(ArenaConfig { bytes, pages: PageChoice::Small }).expect("memory")
    }

    #[test]
    fn buffers_are_aligned_writable_and_come_back() {
        let arena = small(4 * SPAN);
        let (base, bytes) = arena.region();
        for round in 0..3_u8 {
            let mut held: Vec<Buf> = std::iter::from_fn(|| arena.alloc(5000)).collect();
            assert_eq!(held.len(), 4 * (SPAN / (16 << 10)));
            for buf in &mut held {
                let fixed = buf.fixed().expect("it is of an arena");
                assert_eq!(fixed.arena, arena.id());
                assert_eq!(buf.as_ptr(), base.wrapping_add(fixed.offset as usize));
                assert!(fixed.offset as usize + buf.capacity() <= bytes);
                assert!((buf.as_ptr() as usize).is_multiple_of(ALIGN));
                buf.fill(round);
            }
            assert!(held.iter().all(|buf| buf.iter().all(|&byte| byte == round)));
        }
        let stats = arena.stats();
        assert_eq!((stats.in_use, stats.refused), (0, 3));
    }

    #[test]
    fn only_the_owner_allocates_and_anyone_frees() {
        let arena = small(SPAN);
        let buf = arena.alloc(MAX_ALLOC).expect("room for one");
        assert!(arena.alloc(1).is_none());
        let clone = arena.clone();
        std::thread::spawn(move || {
            assert!(clone.alloc(1).is_none(), "this thread is not the owner");
            drop(buf);
        })
        .join()
        .expect("the thread ends well");
        assert!(arena.alloc(MAX_ALLOC).is_some());
        assert_eq!(arena.stats().remote_frees, 1);
    }

    #[test]
    fn many_threads_free_at_once() {
        let arena = small(2 * SPAN);
        let rounds = if cfg!(miri) { 2 } else { 200 };
        for _ in 0..rounds {
            let mut held: Vec<Buf> = std::iter::from_fn(|| arena.alloc(4096)).collect();
            assert_eq!(held.len(), 2 * SPAN / ALIGN);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    let part = held.split_off(held.len() - held.len() / 5);
                    scope.spawn(move || drop(part));
                }
                drop(held);
            });
        }
        let last = arena.alloc(4096);
        assert!(last.is_some());
        assert_eq!(arena.stats().in_use, 4096);
    }

    #[test]
    fn buffers_outlive_the_handle() {
        let buf = small(SPAN).alloc(100).expect("room");
        assert_eq!(buf.iter().map(|&byte| u64::from(byte)).sum::<u64>(), 0);
    }

    #[test]
    fn bad_sizes_are_refused() {
        for bytes in [0, 4095, usize::MAX] {
            let made = Arena::new(ArenaConfig { bytes, pages: PageChoice::Small });
            assert!(matches!(made, Err(Error::Size(_))));
        }
        assert!(small(4096).alloc(MAX_ALLOC + 1).is_none());
    }

    #[test]
    fn regions_cover_the_mapping() {
        let arena = small(3 * SPAN + ALIGN);
        let total: usize = arena.regions().map(|(_, len)| len).sum();
        assert_eq!(total, arena.region().1);
        assert!(REGION <= 1 << 30 && REGION.is_multiple_of(SPAN));
    }
}
