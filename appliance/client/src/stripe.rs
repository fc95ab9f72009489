//! Cutting reads and writes at chunk boundaries.
//!
//! Pure arithmetic. Must not know messages.

use smallvec::SmallVec;
use wire::types::{CHUNK_SIZE, ChunkKey, ObjectId};

/// Largest file: chunk indexes have 32 bits and the kernel counts offsets in signed 64 (4 PiB).
pub(crate) const MAX_FILE: u64 = CHUNK_SIZE << 32;

/// Part of a request that lies in one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The chunk.
    pub(crate) key: ChunkKey,
    /// First byte in the chunk.
    pub(crate) offset: u32,
    /// Bytes.
    pub(crate) len: u32,
    /// Where it begins in the request.
    pub(crate) at: usize,
}

/// The pieces of `offset..offset + len`, clipped to the largest file.
pub(crate) fn pieces(object: ObjectId, offset: u64, len: u32) -> SmallVec<[Piece; 2]> {
    let end = offset.saturating_add(u64::from(len)).min(MAX_FILE);
    let mut pieces = SmallVec::new();
    let mut from = offset;
    while from < end {
        let to = end.min((from / CHUNK_SIZE + 1) * CHUNK_SIZE);
        pieces.push(Piece {
            key: ChunkKey { object, index: (from / CHUNK_SIZE) as u32 },
            offset: (from % CHUNK_SIZE) as u32,
            len: (to - from) as u32,
            at: (from - offset) as usize,
        });
        from = to;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_cover_the_range_in_order(offset in 0u64..MAX_FILE, len in 0u32..5 << 20) {
            let mut at = offset;
            for p in pieces(ObjectId(9), offset, len) {
                prop_assert!(p.len > 0 && u64::from(p.offset) + u64::from(p.len) <= CHUNK_SIZE);
                prop_assert_eq!(u64::from(p.key.index) * CHUNK_SIZE + u64::from(p.offset), at);
                prop_assert_eq!(p.at as u64, at - offset);
                at += u64::from(p.len);
            }
            prop_assert_eq!(at, (offset + u64::from(len)).min(MAX_FILE));
        }
    }
}
