//! A device whose writes stay in memory: what is checked is not changed by checking it.
//!
//! Reads see what was written here, and below it the real device, which is never written.

use super::BlockDevice;
use crate::layout::{BLOCK, BLOCK_BYTES};
use hugepages::{Buf, Bytes};
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::io;
use std::rc::Rc;

struct Written {
    blocks: FxHashMap<u64, Box<[u8]>>,
    /// Blocks that memory may hold.
    limit: usize,
    refused: bool,
}

/// See the module; clones share what was written.
#[derive(Clone)]
pub struct Overlay<D> {
    below: D,
    written: Rc<RefCell<Written>>,
}

impl<D> Overlay<D> {
    /// Over `below`; writes beyond `limit` bytes of memory are refused as on a full device.
    #[must_use]
    pub fn new(below: D, limit: usize) -> Overlay<D> {
        let written = Written { blocks: FxHashMap::default(), limit: limit / BLOCK, refused: false };
        Overlay { below, written: Rc::new(RefCell::new(written)) }
    }

    /// A write was refused for want of memory: what depends on it has failed for no fault of the device.
    #[must_use]
    pub fn refused(&self) -> bool {
        self.written.borrow().refused
    }
}

impl<D: BlockDevice> BlockDevice for Overlay<D> {
    fn capacity(&self) -> u64 {
        self.below.capacity()
    }

    async fn read(&self, offset: u64, buf: Buf) -> (io::Result<()>, Buf) {
        let first = offset / BLOCK_BYTES;
        let blocks = first..first + (buf.len() / BLOCK) as u64;
        let all = {
            let written = self.written.borrow();
            blocks.clone().all(|b| written.blocks.contains_key(&b))
        };
        // A block that can't be read and was written anew is good.
        let (result, mut buf) = if all { (Ok(()), buf) } else { self.below.read(offset, buf).await };
        if result.is_ok() {
            let written = self.written.borrow();
            for (block, out) in blocks.zip(buf.chunks_exact_mut(BLOCK)) {
                if let Some(data) = written.blocks.get(&block) {
                    out.copy_from_slice(data);
                }
            }
        }
        (result, buf)
    }

    async fn write(&self, offset: u64, data: Bytes) -> io::Result<()> {
        let mut written = self.written.borrow_mut();
        for (block, data) in (offset / BLOCK_BYTES..).zip(data.chunks_exact(BLOCK)) {
            if written.blocks.len() >= written.limit && !written.blocks.contains_key(&block) {
                written.refused = true;
                return Err(io::Error::new(io::ErrorKind::StorageFull, "checking needs more memory"));
            }
            written.blocks.insert(block, data.into());
        }
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn trim(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{MemDevice, MemOptions};
    use crate::local::LocalExecutor;

    fn block(fill: u8) -> Bytes {
        let mut buf = Buf::heap(BLOCK);
        buf.fill(fill);
        buf.freeze()
    }

    #[test]
    fn the_device_below_is_never_written() {
        let below = MemDevice::new(1 << 20, MemOptions::default());
        let over = Overlay::new(below.clone(), 2 * BLOCK);
        LocalExecutor::new().run(async move {
            below.write(BLOCK_BYTES, block(1)).await.expect("written");
            over.write(2 * BLOCK_BYTES, block(2)).await.expect("kept");
            let (result, buf) = over.read(0, Buf::heap(3 * BLOCK)).await;
            result.expect("read");
            assert_eq!([buf[0], buf[BLOCK], buf[2 * BLOCK]], [0, 1, 2]);
            let (result, buf) = below.read(2 * BLOCK_BYTES, Buf::heap(BLOCK)).await;
            result.expect("read");
            assert_eq!(buf[0], 0);
            over.write(0, block(3)).await.expect("kept");
            over.write(0, block(4)).await.expect("in its place");
            assert!(!over.refused());
            let full = over.write(3 * BLOCK_BYTES, block(5)).await.expect_err("no more memory");
            assert_eq!(full.kind(), io::ErrorKind::StorageFull);
            assert!(over.refused());
        });
    }
}
