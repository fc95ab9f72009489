//! Bugs that were found once: each test opens with what went wrong.

mod bounds;
mod open;
mod order;
mod space;
mod trim;

use super::world::*;
use crate::device::{BlockDevice, MemDevice};
use crate::index::Key;
use hugepages::{Buf, Bytes};
use std::cell::Cell;
use std::rc::Rc;

fn data(byte: u8, len: usize) -> Bytes {
    Buf::copy_of(&vec![byte; len]).freeze()
}

fn key(object: u64) -> Key {
    Key { object, index: 0 }
}

async fn turns(n: u32) {
    for _ in 0..n {
        crate::signal::yield_now().await;
    }
}

/// A device that holds back writes of checkpoint pages, and the results of reads of one block.
#[derive(Clone)]
struct Slow {
    disk: MemDevice,
    hold: Rc<Cell<bool>>,
    bell: Rc<crate::signal::Waiters>,
    block: Rc<Cell<u64>>,
    caught: Rc<Cell<bool>>,
}

impl Slow {
    fn new(disk: MemDevice, hold: bool) -> Slow {
        let (hold, block) = (Rc::new(Cell::new(hold)), Rc::new(Cell::new(u64::MAX)));
        Slow { disk, hold, bell: Rc::default(), block, caught: Rc::default() }
    }

    fn release(&self) {
        self.hold.set(false);
        self.bell.wake_all();
    }
}

impl BlockDevice for Slow {
    fn capacity(&self) -> u64 {
        self.disk.capacity()
    }

    async fn read(&self, offset: u64, buf: Buf) -> (std::io::Result<()>, Buf) {
        let out = self.disk.read(offset, buf).await;
        if offset / 4096 == self.block.get() && !self.caught.replace(true) {
            self.bell.until(|| self.block.get() == u64::MAX).await;
        }
        out
    }

    async fn write(&self, offset: u64, data: Bytes) -> std::io::Result<()> {
        if data[4..8] == *b"CfPg" {
            self.bell.until(|| !self.hold.get()).await;
        }
        self.disk.write(offset, data).await
    }

    async fn flush(&self) -> std::io::Result<()> {
        self.disk.flush().await
    }

    async fn trim(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.disk.trim(offset, len).await
    }
}
