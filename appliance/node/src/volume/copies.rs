//! Two copies of one byte array: where each byte stands, which copy is read, how a bad one is mended.

use super::COPIES;
use hugepages::{Buf, Bytes};
use std::cell::Cell;
use std::io;
use wire::{CHUNK_SIZE, ChunkKey};

/// Chunks as the volume sees them. Implemented over the node's shards, and in memory by tests.
#[expect(async_fn_in_trait, reason = "everything runs on one thread; no Send bound is wanted")]
pub trait CopyStore: 'static {
    /// Reads `out.len()` bytes; what was never written is zero.
    async fn read(&self, key: ChunkKey, offset: u32, out: Buf) -> Result<Buf, StoreError>;
    /// Writes; done once device and log have it.
    async fn write(&self, key: ChunkKey, offset: u32, data: Bytes) -> Result<(), StoreError>;
    /// Drops the chunk's bytes from `len` on; 0 drops the chunk. No error where there is none.
    async fn truncate(&self, key: ChunkKey, len: u32) -> Result<(), StoreError>;
    /// Makes everything written before durable.
    async fn flush(&self) -> Result<(), StoreError>;
}

/// What went wrong with one copy.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The bytes are not those that were written: take the other copy.
    #[error("checksum mismatch: {0}")]
    Damaged(String),
    /// Anything else; the other copy is tried for reads.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<StoreError> for io::Error {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Damaged(what) => Self::new(io::ErrorKind::InvalidData, what),
            StoreError::Io(e) => e,
        }
    }
}

/// What was found and mended.
#[derive(Debug, Default)]
pub struct Counters {
    /// Reads served by the second copy, whose bytes then replaced the first's.
    pub repaired: Cell<u64>,
    /// Reads with both copies bad.
    pub lost: Cell<u64>,
    /// Pieces in which the copies differed after an unclean stop, or the second was bad.
    pub resynced: Cell<u64>,
    /// Pieces of which the second copy was bad.
    pub second_bad: Cell<u64>,
}

pub(super) fn bump(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

/// Chunk 0 of each object is the head; byte 0 of the volume is byte 0 of chunk 1.
const HEAD: u32 = 0;
/// Head: magic, then the length in bytes, then zeros. One block; the chunk store keeps its checksum.
const HEAD_BYTES: usize = 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"CFSVOL\x01\0");

/// The array on its two copies.
pub(super) struct Copies<S> {
    pub(super) store: S,
    pub(super) counters: std::rc::Rc<Counters>,
}

impl<S: CopyStore> Copies<S> {
    /// The recorded length; 0 where no head was ever written.
    pub(super) async fn len(&self) -> io::Result<u64> {
        let head = self.read_key(HEAD, 0, HEAD_BYTES).await?;
        decode_head(&head)
    }

    /// Records the length; shrinking drops what lies beyond, so that growing again shows zeros.
    pub(super) async fn set_len(&self, old: u64, len: u64) -> io::Result<()> {
        self.write_key(HEAD, 0, encode_head(len)).await?;
        if len >= old {
            return Ok(());
        }
        let first = len / CHUNK_SIZE;
        for chunk in first..=(old - 1) / CHUNK_SIZE {
            let keep = if chunk == first { (len % CHUNK_SIZE) as u32 } else { 0 };
            for object in COPIES {
                self.store.truncate(ChunkKey { object, index: index_of(chunk)? }, keep).await?;
            }
        }
        Ok(())
    }

    /// `len` bytes from `offset`, which lie within the volume.
    pub(super) async fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let (chunk, at) = split(offset)?;
        if at as usize + len <= CHUNK_SIZE as usize {
            return Ok(self.read_key(chunk, at, len).await?.freeze());
        }
        let mut whole = Buf::heap(len);
        let mut done = 0;
        while done < len {
            let (chunk, at) = split(offset + done as u64)?;
            let piece = (len - done).min(CHUNK_SIZE as usize - at as usize);
            whole[done..done + piece].copy_from_slice(&self.read_key(chunk, at, piece).await?);
            done += piece;
        }
        Ok(whole.freeze())
    }

    /// Writes to both copies.
    pub(super) async fn write(&self, offset: u64, data: Bytes) -> io::Result<()> {
        let mut done = 0;
        while done < data.len() {
            let (chunk, at) = split(offset + done as u64)?;
            let piece = (data.len() - done).min(CHUNK_SIZE as usize - at as usize);
            self.write_key(chunk, at, data.slice(done..done + piece)).await?;
            done += piece;
        }
        Ok(())
    }

    async fn read_key(&self, index: u32, at: u32, len: usize) -> io::Result<Buf> {
        let [first, second] = COPIES.map(|object| ChunkKey { object, index });
        let why = match self.store.read(first, at, Buf::heap(len)).await {
            Ok(data) => return Ok(data),
            Err(why) => why,
        };
        let data = match self.store.read(second, at, Buf::heap(len)).await {
            Ok(data) => data,
            Err(second) => {
                bump(&self.counters.lost);
                tracing::error!(index, at, %why, %second, "both copies of the namespace volume are bad here");
                return Err(second.into());
            }
        };
        tracing::warn!(index, at, len, %why, "a block of the namespace volume was bad; repaired from its copy");
        bump(&self.counters.repaired);
        let bytes = data.freeze();
        self.store.write(first, at, bytes.clone()).await?;
        Ok(bytes.try_into_buf().unwrap_or_else(|shared| Buf::copy_of(&shared)))
    }

    async fn write_key(&self, index: u32, at: u32, data: Bytes) -> io::Result<()> {
        let [first, second] = COPIES.map(|object| ChunkKey { object, index });
        self.store.write(first, at, data.clone()).await?;
        Ok(self.store.write(second, at, data).await?)
    }
}

/// Bytes compared at a time after an unclean stop; divides [`CHUNK_SIZE`].
pub(super) const RESYNC_STEP: u64 = 64 << 10;

impl<S: CopyStore> Copies<S> {
    /// Makes the second copy of [`RESYNC_STEP`] bytes from `offset` equal to the first, and at 0 the head too. Nobody
    /// may write there or change the length meanwhile.
    pub(super) async fn resync(&self, offset: u64) -> io::Result<()> {
        if offset == 0 {
            self.resync_key(HEAD, 0, HEAD_BYTES).await?;
        }
        let (index, at) = split(offset)?;
        self.resync_key(index, at, RESYNC_STEP as usize).await
    }

    async fn resync_key(&self, index: u32, at: u32, len: usize) -> io::Result<()> {
        let [first, second] = COPIES.map(|object| ChunkKey { object, index });
        let a = self.store.read(first, at, Buf::heap(len)).await;
        let b = self.store.read(second, at, Buf::heap(len)).await;
        match (a, b) {
            (Ok(a), Ok(b)) if a[..] == b[..] => Ok(()),
            (Ok(a), b) => {
                bump(&self.counters.resynced);
                if b.is_err() {
                    bump(&self.counters.second_bad);
                }
                Ok(self.store.write(second, at, a.freeze()).await?)
            }
            // The ordinary read repairs the first copy from the second, or says that both are bad.
            (Err(_), _) => self.read_key(index, at, len).await.map(drop),
        }
    }
}

/// Chunk and byte in it of an offset of the volume.
fn split(offset: u64) -> io::Result<(u32, u32)> {
    Ok((index_of(offset / CHUNK_SIZE)?, (offset % CHUNK_SIZE) as u32))
}

/// Data chunks begin behind the head.
fn index_of(chunk: u64) -> io::Result<u32> {
    u32::try_from(chunk + 1)
        .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "beyond 4 PiB of the volume"))
}

fn encode_head(len: u64) -> Bytes {
    let mut head = Buf::heap(HEAD_BYTES);
    head.fill(0);
    head[..8].copy_from_slice(&MAGIC.to_le_bytes());
    head[8..16].copy_from_slice(&len.to_le_bytes());
    head.freeze()
}

/// The chunk store has checked the bytes; this checks that they are a head.
fn decode_head(head: &[u8]) -> io::Result<u64> {
    let word = |at: usize| head.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    match word(0) {
        0 => Ok(0),
        MAGIC => Ok(word(8)),
        other => {
            let why = format!("the namespace volume's head begins with {other:#x}, which is no head");
            Err(io::Error::new(io::ErrorKind::InvalidData, why))
        }
    }
}
