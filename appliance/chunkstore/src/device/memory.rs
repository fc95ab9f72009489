//! A simulated disk: sparse, in memory, with a volatile cache, power cuts, flipped bits and I/O errors.
//!
//! Everything it decides follows from its seed. Not for production data.

use super::BlockDevice;
use crate::layout::{BLOCK, BLOCK_BYTES};
use crate::signal::yield_now;
use hugepages::{Buf, Bytes};
use rustc_hash::{FxHashMap, FxHashSet};
use std::cell::RefCell;
use std::future::pending;
use std::io;
use std::rc::Rc;

type Block = Rc<[u8; BLOCK]>;

/// How the disk behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemOptions {
    /// Decides delays, and with them the order of completions.
    pub seed: u64,
    /// Operations take up to this many rounds of the executor.
    pub max_delay: u32,
    /// Reads take this many rounds more.
    pub slow_reads: u32,
    /// After this many flushes nothing completes any more (0: never): the moment of a power cut.
    pub halt_after_flushes: u64,
    /// After this many writes nothing completes any more (0: never).
    pub halt_after_writes: u64,
    /// Ask for freed space to be trimmed; trimmed blocks read as garbage.
    pub trim: bool,
}

struct Pending {
    id: u64,
    block: u64,
    data: Block,
    completed: bool,
}

struct State {
    options: MemOptions,
    random: u64,
    capacity: u64,
    durable: FxHashMap<u64, Block>,
    /// What reads see.
    visible: FxHashMap<u64, Block>,
    pending: Vec<Pending>,
    next: u64,
    writes: u64,
    flushes: u64,
    bad_reads: FxHashSet<u64>,
    failing_writes: bool,
    failing_flushes: bool,
    off: bool,
    zeros: Block,
}

/// A handle of a simulated disk.
#[derive(Clone)]
pub struct MemDevice(Rc<RefCell<State>>);

fn mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    crate::index::mix(*state)
}

const ZEROS: [u8; BLOCK] = [0; BLOCK];

fn to_block(bytes: &[u8], zeros: &Block) -> Block {
    if bytes == ZEROS {
        return Rc::clone(zeros);
    }
    let mut block = [0; BLOCK];
    block.copy_from_slice(bytes);
    Rc::new(block)
}

impl MemDevice {
    /// A disk of zeros.
    #[must_use]
    pub fn new(capacity: u64, options: MemOptions) -> MemDevice {
        MemDevice(Rc::new(RefCell::new(State {
            options,
            random: options.seed,
            capacity,
            durable: FxHashMap::default(),
            visible: FxHashMap::default(),
            pending: Vec::new(),
            next: 0,
            writes: 0,
            flushes: 0,
            bad_reads: FxHashSet::default(),
            failing_writes: false,
            failing_flushes: false,
            off: false,
            zeros: Rc::new(ZEROS),
        })))
    }

    /// Cuts the power: what was not flushed may be lost, whole or by 512-byte sectors. Gives the disk as it comes
    /// up again; this handle is dead.
    #[must_use]
    pub fn power_cut(&self, seed: u64, options: MemOptions) -> MemDevice {
        let mut random = seed;
        self.come_up(options, |p, under| {
            let fate = mix(&mut random) % 8;
            match fate {
                0..3 => None,
                3..6 => Some(p.data.clone()),
                _ => {
                    let mut torn = **under;
                    let sectors = if fate == 6 { mix(&mut random) } else { 0xff };
                    for (i, sector) in torn.chunks_exact_mut(512).enumerate() {
                        if sectors >> i & 1 != 0 {
                            sector.copy_from_slice(&p.data[i * 512..(i + 1) * 512]);
                        }
                    }
                    Some(Rc::new(torn))
                }
            }
        })
    }

    /// Kills the process: what completed stays, what was under way may be there or not.
    #[must_use]
    pub fn kill(&self, seed: u64, options: MemOptions) -> MemDevice {
        let mut random = seed;
        self.come_up(options, |p, _| {
            (p.completed || mix(&mut random).is_multiple_of(2)).then(|| p.data.clone())
        })
    }

    fn come_up(
        &self,
        options: MemOptions,
        mut fate: impl FnMut(&Pending, &Block) -> Option<Block>,
    ) -> MemDevice {
        let mut state = self.0.borrow_mut();
        state.off = true;
        let mut durable = state.durable.clone();
        let zeros = Rc::new([0; BLOCK]);
        for p in &state.pending {
            let under = durable.get(&p.block).unwrap_or(&zeros).clone();
            if let Some(data) = fate(p, &under) {
                durable.insert(p.block, data);
            }
        }
        let up = MemDevice::new(state.capacity, options);
        up.0.borrow_mut().visible.clone_from(&durable);
        up.0.borrow_mut().durable = durable;
        up
    }

    /// Changes how it behaves from now on.
    pub fn set_options(&self, options: MemOptions) {
        self.0.borrow_mut().options = options;
    }

    /// Flips bits of one byte, durably.
    pub fn flip(&self, offset: u64, mask: u8) {
        let mut state = self.0.borrow_mut();
        let (block, at) = (offset / BLOCK_BYTES, (offset % BLOCK_BYTES) as usize);
        for map in [0, 1] {
            let map = if map == 0 { &mut state.durable } else { &mut state.visible };
            let mut data = map.get(&block).map_or([0; BLOCK], |b| **b);
            data[at] ^= mask;
            map.insert(block, Rc::new(data));
        }
    }

    /// Makes reads of a block fail, or work again.
    pub fn fail_reads(&self, block: u64, fail: bool) {
        let mut state = self.0.borrow_mut();
        if fail {
            state.bad_reads.insert(block)
        } else {
            state.bad_reads.remove(&block)
        };
    }

    /// Makes every write fail, or work again.
    pub fn fail_writes(&self, fail: bool) {
        self.0.borrow_mut().failing_writes = fail;
    }

    /// Makes every flush fail, or work again.
    pub fn fail_flushes(&self, fail: bool) {
        self.0.borrow_mut().failing_flushes = fail;
    }

    /// Changes the size.
    pub fn resize(&self, capacity: u64) {
        self.0.borrow_mut().capacity = capacity;
    }

    /// A block as reads see it.
    #[must_use]
    pub fn peek(&self, block: u64) -> Vec<u8> {
        self.0.borrow().visible.get(&block).map_or_else(|| vec![0; BLOCK], |b| b.to_vec())
    }

    /// Writes and flushes that were started.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let state = self.0.borrow();
        (state.writes, state.flushes)
    }

    fn check(&self, offset: u64, len: usize) -> io::Result<()> {
        let state = self.0.borrow();
        let aligned = offset.is_multiple_of(BLOCK_BYTES) && len.is_multiple_of(BLOCK);
        if !aligned || offset + len as u64 > state.capacity {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        Ok(())
    }

    async fn delay(&self) {
        let rounds = {
            let mut state = self.0.borrow_mut();
            let max = u64::from(state.options.max_delay);
            if max == 0 { 0 } else { mix(&mut state.random) % (max + 1) }
        };
        for _ in 0..rounds {
            yield_now().await;
        }
        if self.halted() {
            pending::<()>().await;
        }
    }

    fn halted(&self) -> bool {
        let state = self.0.borrow();
        let o = &state.options;
        state.off
            || (o.halt_after_flushes > 0 && state.flushes >= o.halt_after_flushes)
            || (o.halt_after_writes > 0 && state.writes >= o.halt_after_writes)
    }
}

impl BlockDevice for MemDevice {
    fn capacity(&self) -> u64 {
        self.0.borrow().capacity
    }

    async fn read(&self, offset: u64, mut buf: Buf) -> (io::Result<()>, Buf) {
        if let Err(e) = self.check(offset, buf.len()) {
            return (Err(e), buf);
        }
        let rounds = self.0.borrow().options.slow_reads;
        for _ in 0..rounds {
            yield_now().await;
        }
        self.delay().await;
        let state = self.0.borrow();
        for (i, out) in buf.chunks_exact_mut(BLOCK).enumerate() {
            let block = offset / BLOCK_BYTES + i as u64;
            if state.bad_reads.contains(&block) {
                return (Err(io::Error::other("simulated read error")), buf);
            }
            match state.visible.get(&block) {
                Some(data) => out.copy_from_slice(&**data),
                None => out.fill(0),
            }
        }
        drop(state);
        (Ok(()), buf)
    }

    async fn write(&self, offset: u64, data: Bytes) -> io::Result<()> {
        self.check(offset, data.len())?;
        if !(data.as_ptr() as usize).is_multiple_of(BLOCK) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "unaligned address"));
        }
        if self.halted() {
            pending::<()>().await;
        }
        let ids = {
            let mut state = self.0.borrow_mut();
            state.writes += 1;
            let first = state.next;
            let zeros = Rc::clone(&state.zeros);
            for (i, bytes) in data.chunks_exact(BLOCK).enumerate() {
                let (id, block) = (state.next, offset / BLOCK_BYTES + i as u64);
                state.next += 1;
                state.pending.push(Pending { id, block, data: to_block(bytes, &zeros), completed: false });
            }
            first..state.next
        };
        self.delay().await;
        let mut guard = self.0.borrow_mut();
        let state = &mut *guard;
        if state.failing_writes {
            state.pending.retain(|p| !ids.contains(&p.id));
            return Err(io::Error::other("simulated write error"));
        }
        for p in state.pending.iter_mut().filter(|p| ids.contains(&p.id)) {
            p.completed = true;
            state.visible.insert(p.block, p.data.clone());
        }
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        let until = self.0.borrow().next;
        let mut sure: FxHashSet<u64> = FxHashSet::default();
        sure.extend(self.0.borrow().pending.iter().filter(|p| p.completed && p.id < until).map(|p| p.id));
        self.delay().await;
        let mut guard = self.0.borrow_mut();
        let state = &mut *guard;
        if state.failing_flushes {
            return Err(io::Error::other("simulated flush error"));
        }
        let (done, rest) = std::mem::take(&mut state.pending).into_iter().partition(|p| sure.contains(&p.id));
        state.pending = rest;
        let done: Vec<Pending> = done;
        for p in done {
            state.durable.insert(p.block, p.data);
        }
        state.flushes += 1;
        Ok(())
    }

    async fn trim(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len as usize)?;
        self.delay().await;
        let mut state = self.0.borrow_mut();
        for block in offset / BLOCK_BYTES..(offset + len) / BLOCK_BYTES {
            let garbage = Rc::new([0xdb; BLOCK]);
            state.visible.insert(block, garbage.clone());
            state.durable.insert(block, garbage);
            state.pending.retain(|p| p.block != block);
        }
        Ok(())
    }

    fn wants_trim(&self) -> bool {
        self.0.borrow().options.trim
    }
}
