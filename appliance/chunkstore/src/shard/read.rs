//! Reading: data with every block's CRC verified, maps of chunks, and loading of leaves.

use super::{Shard, add, offset};
use crate::crc::crc32c;
use crate::device::BlockDevice;
use crate::error::Error;
use crate::index::{Entry, Key};
use crate::layout::BLOCK;
use crate::leaf::{Leaf, Slot};
use crate::signal::join_all;
use hugepages::{Buf, Bytes};
use smallvec::SmallVec;
use std::sync::atomic::Ordering;

/// What a read found.
#[derive(Clone, Debug)]
pub struct ReadOutcome {
    /// The chunk is in the store.
    pub exists: bool,
    /// Its length in bytes.
    pub length: u32,
    /// The range asked for, in order; holes and what lies beyond the length are zeros. Pieces are windows of the
    /// buffers that were read, never copies.
    pub pieces: SmallVec<[Bytes; 2]>,
}

impl ReadOutcome {
    /// The range in one piece: the only piece as it is, several copied together.
    #[must_use]
    pub fn into_bytes(mut self) -> Bytes {
        match self.pieces.len() {
            1 => self.pieces.swap_remove(0),
            _ => {
                let mut buf = Buf::heap(self.pieces.iter().map(Bytes::len).sum());
                let mut at = 0;
                for piece in &self.pieces {
                    buf[at..at + piece.len()].copy_from_slice(piece);
                    at += piece.len();
                }
                buf.freeze()
            }
        }
    }
}

/// Facts of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkStat {
    /// Length in bytes.
    pub length: u32,
    /// Time of the last change, as its stamp gave it.
    pub time: u64,
    /// Blocks allocated, unwritten ones included.
    pub blocks: u16,
}

impl ChunkStat {
    pub(super) fn of(entry: &Entry) -> ChunkStat {
        ChunkStat { length: entry.length, time: entry.time, blocks: entry.mapped }
    }
}

/// A range of a chunk that has blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u32,
    /// Bytes, whole blocks.
    pub len: u32,
    /// Allocated without data: it reads as zeros.
    pub unwritten: bool,
}

/// Blocks of a range that follow each other on the device, or have no data.
struct Piece {
    first: u32,
    count: u32,
    at: Option<u64>,
    crcs: SmallVec<[u32; 4]>,
}

impl<D: BlockDevice> Shard<D> {
    /// Reads `len` bytes at `offset` within a chunk.
    pub async fn read(&self, key: Key, offset: u32, len: u32) -> Result<ReadOutcome, Error> {
        let end = self.range(offset, len)?;
        let _reading = self.0.reads.begin();
        add(&self.0.counters.reads, 1);
        add(&self.0.counters.read_bytes, u64::from(len));
        self.load_leaf(key).await?;
        let (exists, length) = self.0.core.borrow().index.get(key).map_or((false, 0), |e| (true, e.length));
        let mut pieces = SmallVec::new();
        if len == 0 {
            return Ok(ReadOutcome { exists, length, pieces });
        }
        let block = BLOCK as u32;
        let plan = self.plan(key, offset / block, end.div_ceil(block));
        let cut = |p: &Piece| {
            let start = offset.max(p.first * block) - p.first * block;
            let stop = end.min((p.first + p.count) * block) - p.first * block;
            start as usize..stop as usize
        };
        if let [piece] = &plan[..] {
            pieces.push(self.read_piece(key, piece).await?.slice(cut(piece)));
        } else {
            let read = join_all(plan.iter().map(|piece| self.read_piece(key, piece)), 16).await;
            for (piece, bytes) in plan.iter().zip(read) {
                pieces.push(bytes?.slice(cut(piece)));
            }
        }
        Ok(ReadOutcome { exists, length, pieces })
    }

    /// Facts of a chunk, or `None`.
    #[must_use]
    pub fn stat(&self, key: Key) -> Option<ChunkStat> {
        self.0.core.borrow().index.get(key).map(ChunkStat::of)
    }

    /// The ranges of a chunk that have blocks, in order, merged.
    pub async fn extents(&self, key: Key) -> Result<Vec<Extent>, Error> {
        self.load_leaf(key).await?;
        let mut extents: Vec<Extent> = Vec::new();
        let block = BLOCK as u32;
        for (index, slot) in self.0.core.borrow_mut().index.mapped(key) {
            let (offset, unwritten) = (index * block, slot.is_unwritten());
            match extents.last_mut() {
                Some(last) if last.offset + last.len == offset && last.unwritten == unwritten => {
                    last.len += block;
                }
                _ => extents.push(Extent { offset, len: block, unwritten }),
            }
        }
        Ok(extents)
    }

    /// Checks a range; gives its end.
    pub(super) fn range(&self, offset: u32, len: u32) -> Result<u32, Error> {
        let end = offset.checked_add(len).filter(|&end| end <= self.0.layout.chunk_size);
        end.ok_or(Error::Invalid("the range ends beyond the chunk"))
    }

    fn plan(&self, key: Key, first: u32, end: u32) -> SmallVec<[Piece; 2]> {
        let mut core = self.0.core.borrow_mut();
        let mut plan: SmallVec<[Piece; 2]> = SmallVec::new();
        for block in first..end {
            let slot = core.index.slot(key, block);
            let at = slot.is_data().then_some(slot.at);
            let joins = plan.last().is_some_and(|p| match (p.at, at) {
                (Some(a), Some(b)) => a + u64::from(p.count) == b,
                (None, None) => true,
                _ => false,
            });
            if !joins {
                plan.push(Piece { first: block, count: 0, at, crcs: SmallVec::new() });
            }
            if let Some(piece) = plan.last_mut() {
                piece.count += 1;
                if at.is_some() {
                    piece.crcs.push(slot.crc);
                }
            }
        }
        plan
    }

    async fn read_piece(&self, key: Key, piece: &Piece) -> Result<Bytes, Error> {
        let len = piece.count as usize * BLOCK;
        let Some(at) = piece.at else { return Ok(self.0.zeros.slice(..len)) };
        let (result, buf) = self.0.device.read(offset(at), self.buffer(len)).await;
        if let Err(e) = result {
            self.0.shared.damage.bad_blocks.fetch_add(1, Ordering::Relaxed);
            tracing::error!(shard = self.0.number, %key, block = at, error = %e, "read error");
            return Err(Error::Read { key, at, source: e.into() });
        }
        for (i, (data, crc)) in buf.chunks_exact(BLOCK).zip(&piece.crcs).enumerate() {
            if crc32c(data) != *crc {
                let (block, at) = (piece.first + i as u32, at + i as u64);
                self.0.shared.damage.bad_blocks.fetch_add(1, Ordering::Relaxed);
                tracing::error!(shard = self.0.number, %key, block = at, "wrong CRC");
                return Err(Error::BadBlock { key, block, at });
            }
        }
        Ok(buf.freeze())
    }

    /// One block's contents, `None` if it reads as zeros. The leaf must be resident.
    pub(super) async fn read_block(&self, key: Key, block: u32) -> Result<Option<Bytes>, Error> {
        let slot: Slot = self.0.core.borrow_mut().index.slot(key, block);
        if !slot.is_data() {
            return Ok(None);
        }
        let crcs = SmallVec::from_slice(&[slot.crc]);
        self.read_piece(key, &Piece { first: block, count: 1, at: Some(slot.at), crcs }).await.map(Some)
    }

    /// Makes a chunk's map resident; what follows without waiting may use it.
    pub(super) async fn load_leaf(&self, key: Key) -> Result<(), Error> {
        loop {
            let absent = self.0.core.borrow().index.absent_leaf(key);
            let Some(disk) = absent else {
                add(&self.0.counters.leaf_hits, 1);
                return Ok(());
            };
            let released = self.0.released.get();
            let result = self.fetch_leaf(key, disk).await;
            let mut core = self.0.core.borrow_mut();
            // Loaded by another, changed, or deleted meanwhile; or its place was given up, used by another, and is its
            // place again: what was read may be stale.
            if core.index.absent_leaf(key) != Some(disk) || self.0.released.get() != released {
                continue;
            }
            core.index.install(key, result?);
            self.evict(&mut core, Some(key));
            add(&self.0.counters.leaf_loads, 1);
            return Ok(());
        }
    }

    /// Reads a leaf from one of its two places; repairs the first if it is damaged.
    async fn fetch_leaf(&self, key: Key, disk: [u64; 2]) -> Result<Box<Leaf>, Error> {
        let released = self.0.released.get();
        let mut why = String::new();
        for (copy, at) in disk.into_iter().enumerate() {
            let (result, buf) = self.0.device.read(offset(at), self.buffer(BLOCK)).await;
            let decoded = match result {
                Ok(()) => Leaf::decode(&buf, key, self.0.owner.tag).map_err(str::to_owned),
                Err(e) => Err(e.to_string()),
            };
            match decoded {
                Ok(leaf) => {
                    let moved = self.0.core.borrow().index.absent_leaf(key) != Some(disk)
                        || self.0.released.get() != released;
                    if copy == 1 && !moved {
                        tracing::warn!(shard = self.0.number, %key, block = disk[0], why, "map damaged");
                        self.repair(disk[0], buf).await;
                    }
                    return Ok(leaf);
                }
                Err(e) => why = e,
            }
        }
        Err(Error::damaged(format!("the map of chunk {key} at blocks {} and {}", disk[0], disk[1]), why))
    }

    /// Rewrites a damaged copy of metadata that is in use now. A failure is no error of the caller's: it has good data.
    pub(super) async fn repair(&self, block: u64, good: Buf) {
        if self.writable().is_err() {
            return;
        }
        let repairing = Repairing::begin(self);
        match self.0.device.write(offset(block), good.freeze()).await {
            Ok(()) => drop(self.0.shared.damage.repaired.fetch_add(1, Ordering::Relaxed)),
            Err(error) => tracing::warn!(shard = self.0.number, block, %error, "repairing metadata failed"),
        }
        drop(repairing);
    }
}

/// Keeps metadata blocks from being reused while one is repaired.
struct Repairing<D: BlockDevice>(Shard<D>);

impl<D: BlockDevice> Repairing<D> {
    fn begin(shard: &Shard<D>) -> Repairing<D> {
        shard.0.repairs.set(shard.0.repairs.get() + 1);
        Repairing(shard.clone())
    }
}

impl<D: BlockDevice> Drop for Repairing<D> {
    fn drop(&mut self) {
        self.0.0.repairs.set(self.0.0.repairs.get() - 1);
        self.0.0.waiters.wake_all();
    }
}
