//! Pages of a checkpoint: chains of blocks with index entries, zones or requests.
//!
//! Encodes and decodes. A page is exact as of one record, `seq`; replay skips older records for it.

use crate::crc::crc32c;
use crate::group::Owner;
use crate::index::{BUCKETS, Entry, INLINE, InlineMap, Key, Map, bucket_of};
use crate::layout::{ADDRESSES, BLOCK};
use crate::leaf::{LEAF_BLOCKS, Slot, UNWRITTEN};
use crate::pool::Class;
use crate::record::{class_code, class_of};
use crate::requests::{OUTCOME, RequestId};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: u32 = u32::from_le_bytes(*b"CfPg");
const HEADER: usize = 64;
/// Bytes of items in a block of a chain.
pub(crate) const PAYLOAD: usize = BLOCK - HEADER;
/// Pages that a shard's zones are spread over, by zone number.
pub(crate) const ZONE_PAGES: usize = 64;
/// Most blocks of a chain: the entries of a bucket at 16 TiB of small chunks stay below it.
pub(crate) const MAX_CHAIN: usize = 4096;

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Index(usize),
    Zones(usize),
    Requests(usize),
}

impl Kind {
    /// From the page's number in the root.
    pub(crate) fn of(page: usize) -> Kind {
        match page {
            p if p < BUCKETS => Kind::Index(p),
            p if p < BUCKETS + ZONE_PAGES => Kind::Zones(p - BUCKETS),
            p => Kind::Requests(p - BUCKETS - ZONE_PAGES),
        }
    }

    /// Number in the root.
    pub(crate) fn page(self) -> usize {
        match self {
            Kind::Index(p) => p,
            Kind::Zones(p) => BUCKETS + p,
            Kind::Requests(p) => BUCKETS + ZONE_PAGES + p,
        }
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    crc: U32,
    magic: U32,
    tag: U64,
    seq: U64,
    next_a: U64,
    next_b: U64,
    page: U32,
    ordinal: U32,
    used: U16,
    owner: U16,
    zero: [u8; 12],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    object: U64,
    index: U32,
    length: U32,
    time: U64,
    mapped: U16,
    kind: u8,
    count: u8,
    zero: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSlot {
    at: U64,
    crc: U32,
    block: U16,
    zero: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawZone {
    zone: U32,
    class: u8,
    zero: [u8; 3],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRequest {
    client: U64,
    sequence: U64,
    channel: U16,
    length: u8,
    zero: [u8; 5],
    outcome: [u8; OUTCOME],
}

const _: () = assert!(size_of::<Raw>() == HEADER && size_of::<RawEntry>() == 32);
const _: () = assert!(size_of::<RawSlot>() == 16 && size_of::<RawRequest>() == 56);
// The largest zone's bitmap fits into one block.
const _: () = assert!(size_of::<RawZone>() + 16384 / 8 <= PAYLOAD);

const INLINE_MAP: u8 = 0;
const LEAF: u8 = 1;

/// Collects items into blocks' payloads; no item is split.
#[derive(Default)]
pub(crate) struct Payloads(pub(crate) Vec<Vec<u8>>);

impl Payloads {
    fn push(&mut self, item: &[&[u8]]) {
        let length: usize = item.iter().map(|p| p.len()).sum();
        let room = self.0.last().is_some_and(|p| p.len() + length <= PAYLOAD);
        if !room {
            self.0.push(Vec::with_capacity(PAYLOAD));
        }
        if let Some(last) = self.0.last_mut() {
            item.iter().for_each(|part| last.extend_from_slice(part));
        }
    }

    /// Adds an index entry; `leaf` replaces the places of its leaf.
    pub(crate) fn entry(&mut self, key: Key, entry: &Entry, leaf: Option<[u64; 2]>) {
        let (kind, count) = match &entry.map {
            Map::Inline(map) => (INLINE_MAP, map.iter().count() as u8),
            Map::Leaf { .. } => (LEAF, 0),
        };
        let head = RawEntry {
            object: key.object.into(),
            index: key.index.into(),
            length: entry.length.into(),
            time: entry.time.into(),
            mapped: entry.mapped.into(),
            kind,
            count,
            zero: 0.into(),
        };
        match &entry.map {
            Map::Inline(map) => {
                let mut slots = [const { [0u8; 16] }; INLINE];
                for ((block, slot), out) in map.iter().zip(&mut slots) {
                    let raw = RawSlot {
                        at: slot.at.into(),
                        crc: slot.crc.into(),
                        block: (block as u16).into(),
                        zero: 0.into(),
                    };
                    out.copy_from_slice(raw.as_bytes());
                }
                self.push(&[head.as_bytes(), slots[..usize::from(count)].as_flattened()]);
            }
            Map::Leaf { disk, .. } => {
                let disk = leaf.unwrap_or(*disk).map(U64::new);
                self.push(&[head.as_bytes(), disk.as_bytes()]);
            }
        }
    }

    pub(crate) fn zone(&mut self, zone: u32, class: Class, state: &[u64]) {
        let head = RawZone { zone: zone.into(), class: class_code(class), zero: [0; 3] };
        let words: Vec<u8> = state.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.push(&[head.as_bytes(), &words]);
    }

    pub(crate) fn request(&mut self, id: RequestId, outcome: &[u8]) {
        let mut raw = RawRequest::new_zeroed();
        raw.client = id.client.into();
        raw.sequence = id.sequence.into();
        raw.channel = id.channel.into();
        raw.length = outcome.len() as u8;
        raw.outcome[..outcome.len()].copy_from_slice(outcome);
        self.push(&[raw.as_bytes()]);
    }
}

/// Counts the blocks that [`Payloads`] would fill with the same items.
#[derive(Default)]
pub(crate) struct Sizes {
    pub(crate) blocks: usize,
    used: usize,
}

impl Sizes {
    fn push(&mut self, length: usize) {
        if self.blocks == 0 || self.used + length > PAYLOAD {
            self.blocks += 1;
            self.used = 0;
        }
        self.used += length;
    }

    pub(crate) fn entry(&mut self, entry: &Entry) {
        let map = match &entry.map {
            Map::Inline(map) => map.iter().count() * size_of::<RawSlot>(),
            Map::Leaf { .. } => size_of::<[U64; 2]>(),
        };
        self.push(size_of::<RawEntry>() + map);
    }

    pub(crate) fn zone(&mut self, state: &[u64]) {
        self.push(size_of::<RawZone>() + size_of_val(state));
    }

    pub(crate) fn request(&mut self) {
        self.push(size_of::<RawRequest>());
    }
}

/// Writes block `ordinal` of a chain.
pub(crate) fn encode(
    owner: Owner,
    page: usize,
    seq: u64,
    ordinal: usize,
    next: [u64; 2],
    payload: &[u8],
    out: &mut [u8],
) {
    let raw = Raw {
        crc: 0.into(),
        magic: MAGIC.into(),
        tag: owner.tag.into(),
        seq: seq.into(),
        next_a: next[0].into(),
        next_b: next[1].into(),
        page: (page as u32).into(),
        ordinal: (ordinal as u32).into(),
        used: (payload.len() as u16).into(),
        owner: owner.owner.into(),
        zero: [0; 12],
    };
    out.fill(0);
    out[..HEADER].copy_from_slice(raw.as_bytes());
    out[HEADER..HEADER + payload.len()].copy_from_slice(payload);
    let crc = crc32c(&out[4..BLOCK]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
}

/// A block of a chain.
pub(crate) struct Link<'a> {
    pub(crate) seq: u64,
    /// Both places of the next block; 0 at the end.
    pub(crate) next: [u64; 2],
    pub(crate) payload: &'a [u8],
}

/// Reads block `ordinal` of a page's chain; any bytes are safe.
pub(crate) fn decode(
    owner: Owner,
    page: usize,
    ordinal: usize,
    block: &[u8],
) -> Result<Link<'_>, &'static str> {
    let (raw, rest) = Raw::ref_from_prefix(block).map_err(|_| "wrong size")?;
    if block.len() != BLOCK || raw.magic.get() != MAGIC || raw.crc.get() != crc32c(&block[4..]) {
        return Err("wrong checksum");
    }
    if raw.tag.get() != owner.tag || raw.owner.get() != owner.owner {
        return Err("of another store or shard");
    }
    if raw.page.get() as usize != page || raw.ordinal.get() as usize != ordinal {
        return Err("of another page");
    }
    let payload = rest.get(..usize::from(raw.used.get())).ok_or("too long")?;
    let next = [raw.next_a.get(), raw.next_b.get()];
    if next.iter().any(|at| *at >= ADDRESSES) {
        return Err("its successor lies where no block is");
    }
    Ok(Link { seq: raw.seq.get(), next, payload })
}

fn take<'a, T: FromBytes + KnownLayout + Immutable + Unaligned>(
    bytes: &mut &'a [u8],
) -> Result<&'a T, &'static str> {
    let (value, rest) = T::ref_from_prefix(bytes).map_err(|_| "an item is cut short")?;
    *bytes = rest;
    Ok(value)
}

/// Reads index entries.
pub(crate) fn entries(
    page: usize,
    mut bytes: &[u8],
    mut each: impl FnMut(Key, Entry) -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    while !bytes.is_empty() {
        let raw: &RawEntry = take(&mut bytes)?;
        let key = Key { object: raw.object.get(), index: raw.index.get() };
        if bucket_of(key) != page {
            return Err("an entry stands in the wrong bucket");
        }
        let mapped = raw.mapped.get();
        let map = match (raw.kind, usize::from(raw.count)) {
            (INLINE_MAP, count) if count <= INLINE && count == usize::from(mapped) => {
                let mut slots = Vec::with_capacity(count);
                for _ in 0..count {
                    let raw: &RawSlot = take(&mut bytes)?;
                    let block = u32::from(raw.block.get());
                    if block as usize >= LEAF_BLOCKS
                        || raw.at.get() == 0
                        || raw.at.get() & !UNWRITTEN >= ADDRESSES
                    {
                        return Err("an entry maps what it can't");
                    }
                    slots.push((block, Slot { at: raw.at.get(), crc: raw.crc.get() }));
                }
                Map::Inline(InlineMap::from_slots(&slots).ok_or("too many slots")?)
            }
            (LEAF, 0) if usize::from(mapped) <= LEAF_BLOCKS => {
                let disk: &[U64; 2] = take(&mut bytes)?;
                if disk.iter().any(|at| at.get() >= ADDRESSES) {
                    return Err("an entry has its map where no block is");
                }
                Map::Leaf { disk: disk.map(U64::get), slot: crate::index::ABSENT }
            }
            _ => return Err("an entry of unknown kind"),
        };
        each(key, Entry { time: raw.time.get(), length: raw.length.get(), mapped, map })?;
    }
    Ok(())
}

/// Reads zones of `zone_blocks` blocks.
pub(crate) fn zones(
    page: usize,
    zone_blocks: u32,
    mut bytes: &[u8],
    mut each: impl FnMut(u32, Class, Box<[u64]>) -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    while !bytes.is_empty() {
        let raw: &RawZone = take(&mut bytes)?;
        let zone = raw.zone.get();
        if zone as usize % ZONE_PAGES != page {
            return Err("a zone stands in the wrong page");
        }
        let (words, rest) = bytes.split_at_checked(zone_blocks as usize / 8).ok_or("a zone is cut short")?;
        bytes = rest;
        let state = words.chunks_exact(8).map(|w| {
            let mut word = [0; 8];
            word.copy_from_slice(w);
            u64::from_le_bytes(word)
        });
        each(zone, class_of(raw.class).ok_or("unknown class")?, state.collect())?;
    }
    Ok(())
}

/// Reads requests.
pub(crate) fn requests(mut bytes: &[u8], mut each: impl FnMut(RequestId, &[u8])) -> Result<(), &'static str> {
    while !bytes.is_empty() {
        let raw: &RawRequest = take(&mut bytes)?;
        let outcome = raw.outcome.get(..usize::from(raw.length)).ok_or("an outcome is too long")?;
        let id =
            RequestId { client: raw.client.get(), channel: raw.channel.get(), sequence: raw.sequence.get() };
        each(id, outcome);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OWNER: Owner = Owner { tag: 1, owner: 2 };

    #[test]
    fn pages_round_trip() {
        let mut payloads = Payloads::default();
        let keys: Vec<Key> =
            (0..).map(|i| Key { object: i, index: 1 }).filter(|k| bucket_of(*k) == 7).take(100).collect();
        let entry = |i: u64| Entry {
            time: i,
            length: 5,
            mapped: if i.is_multiple_of(2) { 2 } else { 9 },
            map: if i.is_multiple_of(2) {
                let slots = [(3, Slot { at: i + 1, crc: 4 }), (8, Slot { at: i + 2, crc: 5 })];
                Map::Inline(InlineMap::from_slots(&slots).expect("two"))
            } else {
                Map::Leaf { disk: [i, i + 1], slot: crate::index::ABSENT }
            },
        };
        keys.iter().for_each(|k| payloads.entry(*k, &entry(k.object), None));
        assert_eq!(payloads.0.len(), 2);
        let mut seen = 0;
        for (i, payload) in payloads.0.iter().enumerate() {
            let mut block = vec![0; BLOCK];
            encode(OWNER, 7, 99, i, [5, 6], payload, &mut block);
            let link = decode(OWNER, 7, i, &block).expect("intact");
            assert_eq!((link.seq, link.next), (99, [5, 6]));
            entries(7, link.payload, |key, e| {
                assert_eq!((key, e), (keys[seen], entry(key.object)));
                seen += 1;
                Ok(())
            })
            .expect("well formed");
            assert!(decode(OWNER, 8, i, &block).is_err() && decode(OWNER, 7, i + 1, &block).is_err());
            block[4000] ^= 1;
            assert!(decode(OWNER, 7, i, &block).is_err());
        }
        assert_eq!(seen, 100);
    }

    #[test]
    fn zones_and_requests_round_trip() {
        let mut payloads = Payloads::default();
        payloads.zone(64 + 5, Class::System, &[1, 2, 3, 4]);
        let mut seen = Vec::new();
        zones(5, 256, &payloads.0[0], |z, c, s| {
            seen.push((z, c, s));
            Ok(())
        })
        .expect("well formed");
        assert_eq!(seen, [(69, Class::System, vec![1, 2, 3, 4].into_boxed_slice())]);
        let id = RequestId { client: 1, channel: 2, sequence: 3 };
        let mut payloads = Payloads::default();
        payloads.request(id, b"abc");
        requests(&payloads.0[0], |i, o| assert_eq!((i, o), (id, &b"abc"[..]))).expect("well formed");
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), fit: bool) {
            let _ = decode(OWNER, 1, 0, &bytes);
            let _ = entries(1, &bytes, |_, _| Ok(()));
            let _ = zones(1, if fit { 64 } else { 2048 }, &bytes, |_, _, _| Ok(()));
            let _ = requests(&bytes, |_, _| {});
        }
    }
}
