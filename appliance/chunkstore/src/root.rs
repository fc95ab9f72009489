//! The checkpoint's root: where a shard's log starts and where the pages of its checkpoint are.
//!
//! Encodes, decodes, and chooses among two slots with two copies each. The namespace log uses the same slots
//! with no pages.

use crate::crc::crc32c;
use crate::group::Owner;
use crate::layout::{ADDRESSES, BLOCK};
use crate::ring::Anchor;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: u32 = u32::from_le_bytes(*b"CfRt");
/// Pages of a shard's checkpoint: index, zones, requests.
pub(crate) const PAGES: usize =
    crate::index::BUCKETS + crate::page::ZONE_PAGES + crate::requests::REQUEST_PAGES;
/// Bytes of a root.
pub(crate) const ROOT_BYTES: usize = (size_of::<Raw>() + PAGES * 16).next_multiple_of(BLOCK);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    crc: U32,
    magic: U32,
    tag: U64,
    generation: U64,
    incarnation: U64,
    next: U64,
    at: U64,
    flushed: U64,
    prev: U32,
    pages: U32,
    owner: U16,
    zero: [u8; 6],
    zero2: [u8; 56],
}

const _: () = assert!(size_of::<Raw>() == 128);

/// Both places of a page's first block; for an empty page 0 and the last record that it reflects.
pub(crate) type PagePtr = [u64; 2];

pub(crate) fn is_empty(page: PagePtr) -> bool {
    page[0] == 0
}

/// A decoded root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) generation: u64,
    pub(crate) incarnation: u64,
    /// Where replay starts.
    pub(crate) anchor: Anchor,
    /// Every record up to this one was flushed before the root was written.
    pub(crate) flushed: u64,
    pub(crate) pages: Vec<PagePtr>,
}

impl Root {
    pub(crate) fn encode(&self, owner: Owner, out: &mut [u8]) {
        let length = size_of::<Raw>() + self.pages.len() * 16;
        let raw = Raw {
            crc: 0.into(),
            magic: MAGIC.into(),
            tag: owner.tag.into(),
            generation: self.generation.into(),
            incarnation: self.incarnation.into(),
            next: self.anchor.next.into(),
            at: self.anchor.at.into(),
            flushed: self.flushed.into(),
            prev: self.anchor.prev.into(),
            pages: (self.pages.len() as u32).into(),
            owner: owner.owner.into(),
            zero: [0; 6],
            zero2: [0; 56],
        };
        out.fill(0);
        out[..size_of::<Raw>()].copy_from_slice(raw.as_bytes());
        for (slot, ptr) in out[size_of::<Raw>()..length].chunks_exact_mut(16).zip(&self.pages) {
            slot[..8].copy_from_slice(&ptr[0].to_le_bytes());
            slot[8..].copy_from_slice(&ptr[1].to_le_bytes());
        }
        let crc = crc32c(&out[4..length]);
        out[..4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a slot; any bytes are safe. `None`: no intact root of this owner.
    pub(crate) fn decode(owner: Owner, bytes: &[u8]) -> Option<Root> {
        let (raw, rest) = Raw::ref_from_prefix(bytes).ok()?;
        let pages = raw.pages.get() as usize;
        let right = raw.magic.get() == MAGIC && raw.tag.get() == owner.tag && raw.owner.get() == owner.owner;
        if !right || (pages != PAGES && pages != 0) {
            return None;
        }
        let table = rest.get(..pages * 16)?;
        if raw.crc.get() != crc32c(&bytes[4..size_of::<Raw>() + pages * 16])
            || raw.zero != [0; 6]
            || raw.zero2 != [0; 56]
        {
            return None;
        }
        let (pairs, _) = <[[U64; 2]]>::ref_from_prefix_with_elems(table, pages).ok()?;
        let lost = |p: &[U64; 2]| !is_empty(p.map(U64::get)) && p.iter().any(|at| at.get() >= ADDRESSES);
        if raw.next.get() == 0 || pairs.iter().any(lost) {
            return None;
        }
        Some(Root {
            generation: raw.generation.get(),
            incarnation: raw.incarnation.get(),
            anchor: Anchor { next: raw.next.get(), at: raw.at.get(), prev: raw.prev.get() },
            flushed: raw.flushed.get(),
            pages: pairs.iter().map(|p| p.map(U64::get)).collect(),
        })
    }
}

/// What the slots say together.
pub(crate) struct Chosen {
    pub(crate) root: Root,
    pub(crate) slot: usize,
    /// The copy of that slot which is damaged or older.
    pub(crate) rewrite: Option<usize>,
}

/// Chooses the newest intact root among `[slot][copy]`.
pub(crate) fn choose(slots: [[Option<Root>; 2]; 2]) -> Option<Chosen> {
    let mut best: Option<Chosen> = None;
    for (slot, copies) in slots.into_iter().enumerate() {
        let generations = copies.each_ref().map(|c| c.as_ref().map(|r| r.generation));
        let newest = copies.into_iter().flatten().max_by_key(|r| r.generation);
        let Some(root) = newest else { continue };
        if best.as_ref().is_none_or(|b| b.root.generation < root.generation) {
            let rewrite = generations.iter().position(|g| *g != Some(root.generation));
            best = Some(Chosen { root, slot, rewrite });
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OWNER: Owner = Owner { tag: 1, owner: 2 };

    fn sample(generation: u64) -> Root {
        Root {
            generation,
            incarnation: 4,
            anchor: Anchor { next: 5, at: 6, prev: 7 },
            flushed: 4,
            pages: (0..PAGES as u64).map(|p| [p, p + 9]).collect(),
        }
    }

    #[test]
    fn round_trip_and_flips() {
        let mut out = vec![0; ROOT_BYTES];
        sample(3).encode(OWNER, &mut out);
        assert_eq!(Root::decode(OWNER, &out), Some(sample(3)));
        assert_eq!(Root::decode(Owner { tag: 1, owner: 3 }, &out), None);
        for at in (0..128 + PAGES * 16).step_by(7) {
            out[at] ^= 1;
            assert_eq!(Root::decode(OWNER, &out), None, "flip at {at}");
            out[at] ^= 1;
        }
    }

    #[test]
    fn values_that_no_writer_writes_are_refused() {
        // A root with a right CRC and an impossible place made opening overflow.
        for change in [|r: &mut Root| r.anchor.next = 0, |r: &mut Root| r.pages[3] = [1, u64::MAX]] {
            let mut root = sample(3);
            change(&mut root);
            let mut out = vec![0; ROOT_BYTES];
            root.encode(OWNER, &mut out);
            assert_eq!(Root::decode(OWNER, &out), None);
        }
    }

    #[test]
    fn the_newest_intact_copy_wins() {
        let chosen = choose([[Some(sample(1)), Some(sample(1))], [None, Some(sample(2))]]).expect("two");
        assert_eq!((chosen.root.generation, chosen.slot, chosen.rewrite), (2, 1, Some(0)));
        let chosen = choose([[Some(sample(3)), Some(sample(1))], [None, Some(sample(2))]]).expect("three");
        assert_eq!((chosen.root.generation, chosen.slot, chosen.rewrite), (3, 0, Some(1)));
        assert!(choose([[None, None], [None, None]]).is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Root::decode(OWNER, &bytes);
        }
    }
}
