//! Identifiers. Newtypes so that an inode number is never taken for an object number.

use zerocopy::little_endian as le;

/// Bytes of file data in one chunk, the unit of placement (DESIGN decision 5).
pub const CHUNK_SIZE: u64 = 1 << 20;

/// Inode number, never reused in the life of a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

/// The root directory; FUSE fixes it to 1.
pub const ROOT_INO: Ino = Ino(1);

/// Identity of one body of file data. A file gets a fresh one at creation and at each truncation to zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub u64);

/// Number of a shard of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

/// A session's identity, chosen at random by the client once per mount, never zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// A slot of a session: at most one non-idempotent request is outstanding on each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u16);

impl Slot {
    /// The slot of requests that may be repeated freely; the server keeps no reply for it.
    pub const IDEMPOTENT: Self = Self(0xFFFF);
}

/// Identity of a request over reconnects and restarts (RFC 8881 section 2.10.6 has the same idea as slot and sequence).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    /// The session.
    pub client: ClientId,
    /// The slot within the session.
    pub slot: Slot,
    /// One more than that of the previous request on this slot.
    pub sequence: u64,
}

/// Name of a chunk: the body of data and the chunk's index in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkKey {
    /// The body of file data.
    pub object: ObjectId,
    /// Byte offset in the file divided by [`CHUNK_SIZE`].
    pub index: u32,
}

/// The shard that owns a chunk. Neighbouring chunks of one object fall on different shards, so that streams spread.
///
/// `shards` is the device's shard count, fixed at format; zero is treated as one.
#[must_use]
pub const fn shard_of(key: ChunkKey, shards: u16) -> ShardId {
    let shards = if shards == 0 { 1 } else { shards as u64 };
    // SplitMix64 finaliser (Steele, Lea, Flood 2014) over the object, then a stride by index.
    let mut x = key.object.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^= x >> 31;
    ShardId((x.wrapping_add(key.index as u64) % shards) as u16)
}

macro_rules! le64 {
    ($t:ident) => {
        impl From<$t> for le::U64 {
            fn from(v: $t) -> Self {
                le::U64::new(v.0)
            }
        }
        impl From<le::U64> for $t {
            fn from(v: le::U64) -> Self {
                Self(v.get())
            }
        }
        impl core::fmt::Display for $t {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}
le64!(Ino);
le64!(ObjectId);
le64!(ClientId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_fall_on_different_shards() {
        let at = |index| shard_of(ChunkKey { object: ObjectId(7), index }, 16);
        for i in 0..64 {
            assert_ne!(at(i), at(i + 1));
        }
    }
}
