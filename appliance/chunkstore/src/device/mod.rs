//! The one seam of the store: a device of 4 KiB blocks.
//!
//! Implementations: [`FileDevice`] over the reactor, [`MemDevice`] for tests and the simulator, [`Overlay`]
//! over another for looking without changing.

mod file;
mod memory;
mod overlay;

pub use file::{FileDevice, FileHandle, FileOptions};
pub use memory::{MemDevice, MemOptions};
pub use overlay::Overlay;

use hugepages::{Buf, Bytes};
use std::future::Future;
use std::io;

/// A device as one thread sees it; clones are handles of the same device.
///
/// Every write that completed before a `flush` began is durable when that flush completed.
pub trait BlockDevice: Clone + 'static {
    /// Bytes of a block; offsets and lengths are multiples of it.
    fn block_size(&self) -> u32 {
        crate::BLOCK as u32
    }

    /// Bytes of the device now.
    fn capacity(&self) -> u64;

    /// Fills the whole of `buf`.
    fn read(&self, offset: u64, buf: Buf) -> impl Future<Output = (io::Result<()>, Buf)>;

    /// Writes all of `data`, whose address is aligned to a block.
    fn write(&self, offset: u64, data: Bytes) -> impl Future<Output = io::Result<()>>;

    /// Makes completed writes durable.
    fn flush(&self) -> impl Future<Output = io::Result<()>>;

    /// Says that a range is not needed any more; it may read as anything.
    fn trim(&self, offset: u64, len: u64) -> impl Future<Output = io::Result<()>>;

    /// Has what lies below keep space for a range, whose contents stay; false where nothing lies below that could run full.
    fn reserve(&self, offset: u64, len: u64) -> impl Future<Output = io::Result<bool>> {
        let _ = (offset, len);
        std::future::ready(Ok(false))
    }

    /// Bytes that what lies below has given to this device so far; `None` where nothing lies below.
    fn reserved(&self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    /// Whether freed space should be trimmed at all.
    fn wants_trim(&self) -> bool {
        false
    }
}
