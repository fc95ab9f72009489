//! Records of a shard's log: results, never requests.
//!
//! Encodes and decodes. A record carries the blocks that it maps, their CRCs, the blocks that it frees, the
//! length, the time, and the request that it answers, so that replay needs nothing else.

use crate::index::Key;
use crate::layout::ADDRESSES;
use crate::leaf::{LEAF_BLOCKS, UNWRITTEN};
use crate::pool::Class;
use crate::requests::{OUTCOME, RequestId};
use crate::zones::{Run, Runs};
use smallvec::SmallVec;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What becomes of the chunk's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    /// At least this: writes that overlap in time may be applied in any order.
    Raise(u32),
    /// Exactly this.
    Set(u32),
}

/// Consecutive blocks of a chunk and where they are now; address 0 is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapRun {
    pub(crate) block: u16,
    pub(crate) count: u16,
    pub(crate) at: u64,
}

impl MapRun {
    pub(crate) fn is_data(self) -> bool {
        self.at != 0 && self.at & UNWRITTEN == 0
    }
}

/// A change of one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Update {
    pub(crate) key: Key,
    pub(crate) delete: bool,
    pub(crate) length: Length,
    pub(crate) time: u64,
    pub(crate) runs: SmallVec<[MapRun; 2]>,
    /// For each block of the runs that hold data, in order.
    pub(crate) crcs: SmallVec<[u32; 4]>,
    pub(crate) frees: Runs,
    pub(crate) request: Option<(RequestId, Outcome)>,
}

/// The stored answer of a request.
pub(crate) type Outcome = SmallVec<[u8; OUTCOME]>;

/// What a log of a shard says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Update(Box<Update>),
    ZoneTake { zone: u32, class: Class },
    ZoneReturn { zone: u32 },
    Forget { client: u64 },
}

const UPDATE: u8 = 1;
const ZONE_TAKE: u8 = 2;
const ZONE_RETURN: u8 = 3;
const FORGET: u8 = 4;

const SET_LENGTH: u8 = 1;
const REQUEST: u8 = 2;
const DELETE: u8 = 4;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawUpdate {
    kind: u8,
    flags: u8,
    runs: U16,
    frees: U16,
    outcome: u8,
    zero: u8,
    object: U64,
    index: U32,
    length: U32,
    time: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRequest {
    client: U64,
    sequence: U64,
    channel: U16,
    zero: [u8; 6],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRun {
    at: U64,
    block: U16,
    count: U16,
    zero: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawFree {
    at: U64,
    count: U32,
    zero: U32,
}

/// Every other record: kind, class or zeros, a number.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawOther {
    kind: u8,
    class: u8,
    zero: [u8; 6],
    value: U64,
}

const _: () = assert!(size_of::<RawUpdate>() == 32 && size_of::<RawRequest>() == 24);
const _: () = assert!(size_of::<RawRun>() == 16 && size_of::<RawFree>() == 16 && size_of::<RawOther>() == 16);

/// Longest record: every block in a run of its own, every old block freed alone.
pub(crate) const MAX_RECORD: usize = size_of::<RawUpdate>()
    + size_of::<RawRequest>()
    + OUTCOME
    + LEAF_BLOCKS * (size_of::<RawRun>() + 4 + size_of::<RawFree>());

pub(crate) fn class_code(class: Class) -> u8 {
    match class {
        Class::User => 0,
        Class::System => 1,
    }
}

pub(crate) fn class_of(code: u8) -> Option<Class> {
    match code {
        0 => Some(Class::User),
        1 => Some(Class::System),
        _ => None,
    }
}

impl Record {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let other = |kind, class, value: u64| RawOther { kind, class, zero: [0; 6], value: value.into() };
        let raw = match self {
            Record::Update(update) => return update.encode(),
            Record::ZoneTake { zone, class } => other(ZONE_TAKE, class_code(*class), u64::from(*zone)),
            Record::ZoneReturn { zone } => other(ZONE_RETURN, 0, u64::from(*zone)),
            Record::Forget { client } => other(FORGET, 0, *client),
        };
        raw.as_bytes().to_vec()
    }

    /// Reads a record; any bytes are safe.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Record, &'static str> {
        if bytes.first() == Some(&UPDATE) {
            return Update::decode(bytes).map(|u| Record::Update(Box::new(u)));
        }
        let raw = RawOther::ref_from_bytes(bytes).map_err(|_| "wrong length")?;
        if raw.zero != [0; 6] || (raw.class != 0 && raw.kind != ZONE_TAKE) {
            return Err("reserved bytes are set");
        }
        let value = raw.value.get();
        let zone = u32::try_from(value).map_err(|_| "zone out of range");
        match raw.kind {
            ZONE_TAKE => {
                Ok(Record::ZoneTake { zone: zone?, class: class_of(raw.class).ok_or("unknown class")? })
            }
            ZONE_RETURN => Ok(Record::ZoneReturn { zone: zone? }),
            FORGET => Ok(Record::Forget { client: value }),
            _ => Err("unknown kind"),
        }
    }
}

fn take<T: FromBytes + KnownLayout + Immutable + Unaligned>(bytes: &mut &[u8]) -> Result<T, &'static str> {
    let (value, rest) = T::read_from_prefix(bytes).map_err(|_| "too short")?;
    *bytes = rest;
    Ok(value)
}

impl Update {
    fn encode(&self) -> Vec<u8> {
        let (set, length) = match self.length {
            Length::Raise(n) => (0, n),
            Length::Set(n) => (SET_LENGTH, n),
        };
        let request = if self.request.is_some() { REQUEST } else { 0 };
        let mut out = Vec::with_capacity(96 + self.crcs.len() * 4 + self.runs.len() * 16);
        let head = RawUpdate {
            kind: UPDATE,
            flags: set | request | if self.delete { DELETE } else { 0 },
            runs: (self.runs.len() as u16).into(),
            frees: (self.frees.len() as u16).into(),
            outcome: self.request.as_ref().map_or(0, |(_, o)| o.len() as u8),
            zero: 0,
            object: self.key.object.into(),
            index: self.key.index.into(),
            length: length.into(),
            time: self.time.into(),
        };
        out.extend_from_slice(head.as_bytes());
        if let Some((id, outcome)) = &self.request {
            let raw = RawRequest {
                client: id.client.into(),
                sequence: id.sequence.into(),
                channel: id.channel.into(),
                zero: [0; 6],
            };
            out.extend_from_slice(raw.as_bytes());
            out.extend_from_slice(outcome);
        }
        for run in &self.runs {
            let raw = RawRun {
                at: run.at.into(),
                block: run.block.into(),
                count: run.count.into(),
                zero: 0.into(),
            };
            out.extend_from_slice(raw.as_bytes());
        }
        for crc in &self.crcs {
            out.extend_from_slice(&crc.to_le_bytes());
        }
        for run in &self.frees {
            let raw = RawFree { at: run.start.into(), count: run.count.into(), zero: 0.into() };
            out.extend_from_slice(raw.as_bytes());
        }
        out
    }

    fn decode(mut bytes: &[u8]) -> Result<Update, &'static str> {
        let head: RawUpdate = take(&mut bytes)?;
        let flags = head.flags;
        if head.zero != 0 || flags & !(SET_LENGTH | REQUEST | DELETE) != 0 {
            return Err("reserved bytes are set");
        }
        let limit = LEAF_BLOCKS as u16;
        if head.runs.get() > limit || head.frees.get() > limit {
            return Err("too many runs");
        }
        let mut request = None;
        if flags & REQUEST != 0 {
            let raw: RawRequest = take(&mut bytes)?;
            let len = usize::from(head.outcome);
            if len > OUTCOME || raw.zero != [0; 6] {
                return Err("bad request");
            }
            let (outcome, rest) = bytes.split_at_checked(len).ok_or("too short")?;
            bytes = rest;
            let id = RequestId {
                client: raw.client.get(),
                channel: raw.channel.get(),
                sequence: raw.sequence.get(),
            };
            request = Some((id, Outcome::from_slice(outcome)));
        } else if head.outcome != 0 {
            return Err("an outcome without a request");
        }
        let mut runs = SmallVec::new();
        let mut data = 0;
        for _ in 0..head.runs.get() {
            let raw: RawRun = take(&mut bytes)?;
            let run = MapRun { block: raw.block.get(), count: raw.count.get(), at: raw.at.get() };
            let end = (run.at & !UNWRITTEN) + u64::from(run.count);
            let blocks = u32::from(run.block) + u32::from(run.count);
            if raw.zero.get() != 0 || run.count == 0 || blocks > LEAF_BLOCKS as u32 || end > ADDRESSES {
                return Err("bad run");
            }
            data += if run.is_data() { usize::from(run.count) } else { 0 };
            runs.push(run);
        }
        if data > LEAF_BLOCKS {
            return Err("too many blocks");
        }
        let crcs = (0..data).map(|_| take::<U32>(&mut bytes).map(U32::get)).collect::<Result<_, _>>()?;
        let mut frees = Runs::new();
        for _ in 0..head.frees.get() {
            let raw: RawFree = take(&mut bytes)?;
            let run = Run { start: raw.at.get(), count: raw.count.get() };
            if raw.zero.get() != 0
                || run.count == 0
                || run.count > LEAF_BLOCKS as u32
                || run.start > ADDRESSES
            {
                return Err("bad run of freed blocks");
            }
            frees.push(run);
        }
        if !bytes.is_empty() {
            return Err("too long");
        }
        let length = head.length.get();
        Ok(Update {
            key: Key { object: head.object.get(), index: head.index.get() },
            delete: flags & DELETE != 0,
            length: if flags & SET_LENGTH != 0 { Length::Set(length) } else { Length::Raise(length) },
            time: head.time.get(),
            runs,
            crcs,
            frees,
            request,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use smallvec::smallvec;

    fn sample() -> Update {
        Update {
            key: Key { object: 5, index: 6 },
            delete: false,
            length: Length::Set(9),
            time: 10,
            runs: smallvec![
                MapRun { block: 0, count: 2, at: 100 },
                MapRun { block: 4, count: 3, at: 0 },
                MapRun { block: 9, count: 1, at: 50 | UNWRITTEN },
            ],
            crcs: smallvec![1, 2],
            frees: smallvec![Run { start: 7, count: 2 }],
            request: Some((RequestId { client: 1, channel: 2, sequence: 3 }, smallvec![4, 5])),
        }
    }

    #[test]
    fn round_trips() {
        let records = [
            Record::Update(Box::new(sample())),
            Record::Update(Box::new(Update { request: None, delete: true, ..sample() })),
            Record::ZoneTake { zone: 3, class: Class::System },
            Record::ZoneReturn { zone: 3 },
            Record::Forget { client: u64::MAX },
        ];
        for record in records {
            let bytes = record.encode();
            assert_eq!(Record::decode(&bytes), Ok(record.clone()));
            assert!(Record::decode(&bytes[..bytes.len() - 1]).is_err());
            assert!(Record::decode(&[&bytes[..], &[0]].concat()).is_err());
        }
    }

    #[test]
    fn addresses_that_no_block_has_are_refused() {
        // A record with a right CRC and an address near the end of all numbers made opening overflow.
        let far = Run { start: u64::MAX - 1, count: 2 };
        let update = Update { frees: smallvec![far], ..sample() };
        assert!(Record::decode(&Record::Update(Box::new(update)).encode()).is_err());
        let run = MapRun { block: 0, count: 1, at: ADDRESSES };
        let update = Update { runs: smallvec![run], crcs: smallvec![1], ..sample() };
        assert!(Record::decode(&Record::Update(Box::new(update)).encode()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0u8..7) {
            if let Some(first) = bytes.first_mut() { *first = kind; }
            if let Ok(record) = Record::decode(&bytes) {
                prop_assert_eq!(record.encode(), bytes);
            }
        }
    }
}
