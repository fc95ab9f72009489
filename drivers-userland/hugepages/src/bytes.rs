//! Shared, read-only windows into buffers.

use crate::arena::Fixed;
use crate::buf::Buf;
use std::ops::{Bound, Deref, RangeBounds};
use std::sync::Arc;

#[derive(Clone)]
enum Owner {
    Buf(Arc<Buf>),
    Vec(Arc<Vec<u8>>),
    Static(&'static [u8]),
}

impl Owner {
    fn all(&self) -> &[u8] {
        match self {
            Owner::Buf(buf) => buf,
            Owner::Vec(vec) => vec,
            Owner::Static(bytes) => bytes,
        }
    }
}

/// A window into memory that nobody writes to any more. Clones and slices share the memory; the last one
/// dropped, on whatever thread, returns it.
#[derive(Clone)]
pub struct Bytes {
    owner: Owner,
    start: usize,
    len: usize,
}

impl Bytes {
    /// No bytes.
    pub const fn new() -> Bytes {
        Bytes::from_static(&[])
    }

    /// Bytes of the program itself.
    pub const fn from_static(bytes: &'static [u8]) -> Bytes {
        Bytes { owner: Owner::Static(bytes), start: 0, len: bytes.len() }
    }

    /// A copy, in unaligned heap memory as small as the contents: for headers and replies.
    pub fn copy_of(bytes: &[u8]) -> Bytes {
        Bytes::from(bytes.to_vec())
    }

    /// Length of the window.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the window is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A window within this one.
    ///
    /// # Panics
    /// Where the range does not lie within `0..len()`, as slicing does.
    #[must_use]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Bytes {
        let from = match range.start_bound() {
            Bound::Included(&at) => at,
            Bound::Excluded(&at) => at + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(&at) => at + 1,
            Bound::Excluded(&at) => at,
            Bound::Unbounded => self.len,
        };
        assert!(from <= to && to <= self.len, "slice {from}..{to} of {} bytes", self.len);
        Bytes { owner: self.owner.clone(), start: self.start + from, len: to - from }
    }

    /// Place in the arena, offset of the window included; `None` outside any arena.
    pub fn fixed(&self) -> Option<Fixed> {
        let Owner::Buf(buf) = &self.owner else { return None };
        let fixed = buf.fixed()?;
        Some(Fixed { offset: fixed.offset + self.start as u64, ..fixed })
    }

    /// The buffer again, where this is its only window and covers all of it.
    ///
    /// # Errors
    /// Gives itself back where others share the buffer, the window is a part, or it never was a [`Buf`].
    pub fn try_into_buf(self) -> Result<Buf, Bytes> {
        let Bytes { owner, start, len } = self;
        match owner {
            Owner::Buf(buf) if start == 0 && len == buf.len() => {
                Arc::try_unwrap(buf).map_err(|buf| Bytes { owner: Owner::Buf(buf), start, len })
            }
            owner => Err(Bytes { owner, start, len }),
        }
    }
}

impl Default for Bytes {
    fn default() -> Bytes {
        Bytes::new()
    }
}

impl From<Buf> for Bytes {
    fn from(buf: Buf) -> Bytes {
        Bytes { len: buf.len(), start: 0, owner: Owner::Buf(Arc::new(buf)) }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(vec: Vec<u8>) -> Bytes {
        Bytes { len: vec.len(), start: 0, owner: Owner::Vec(Arc::new(vec)) }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.owner.all()[self.start..self.start + self.len]
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Bytes) -> bool {
        **self == **other
    }
}

impl Eq for Bytes {}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bytes").field("len", &self.len).field("fixed", &self.fixed()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arena, ArenaConfig, PageChoice};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn slices_of_slices_are_slices(
            data in prop::collection::vec(any::<u8>(), 0..200),
            cuts in prop::collection::vec((any::<usize>(), any::<usize>()), 0..6),
        ) {
            let mut model = data.clone();
            let mut bytes = Buf::copy_of(&data).freeze();
            for (a, b) in cuts {
                let (a, b) = (a % (model.len() + 1), b % (model.len() + 1));
                let range = a.min(b)..a.max(b);
                bytes = bytes.slice(range.clone());
                model = model[range].to_vec();
                prop_assert_eq!(&*bytes, &*model);
            }
        }
    }

    #[test]
    fn a_buffer_comes_back_only_when_unique_and_whole() {
        let bytes = Buf::copy_of(b"12345").freeze();
        let twin = bytes.clone();
        let bytes = bytes.try_into_buf().expect_err("shared");
        drop(twin);
        let part = bytes.slice(1..);
        drop(bytes);
        let part = part.try_into_buf().expect_err("a part");
        assert_eq!(&*part, b"2345");
        assert_eq!(&*Buf::copy_of(b"x").freeze().try_into_buf().expect("unique and whole"), b"x");
        Bytes::from_static(b"s").try_into_buf().expect_err("never was a buffer");
    }

    #[test]
    fn the_window_knows_its_place() {
        let arena = Arena::new(ArenaConfig { bytes: 4 << 20, pages: PageChoice::Small }).expect("memory");
        let buf = arena.alloc(8192).expect("room");
        let fixed = buf.fixed().expect("of an arena");
        let window = buf.freeze().slice(100..200);
        assert_eq!(window.fixed(), Some(Fixed { offset: fixed.offset + 100, ..fixed }));
        assert_eq!(Bytes::from(vec![1, 2]).fixed(), None);
    }

    #[test]
    #[should_panic(expected = "slice 3..9 of 5 bytes")]
    fn a_slice_beyond_the_end_panics() {
        let _ = Bytes::from_static(b"12345").slice(3..9);
    }
}
