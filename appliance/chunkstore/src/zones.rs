//! A shard's own zones and the blocks in them.
//!
//! Pure: it decides which block is used next. Two bitmaps per zone: `state` is what applied records say (and
//! what a checkpoint writes), `busy` is what must not be given out: state, metadata, writes in flight, and
//! freed blocks whose record is not flushed. Taking zones from the pool and logging it is the shell's part.

use crate::layout::Layout;
use crate::pool::Class;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};

/// Consecutive blocks on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Run {
    pub(crate) start: u64,
    pub(crate) count: u32,
}

/// Runs of one allocation; nearly always one.
pub(crate) type Runs = SmallVec<[Run; 2]>;

#[derive(Debug)]
pub(crate) struct Zone {
    pub(crate) class: Class,
    pub(crate) state: Box<[u64]>,
    busy: Box<[u64]>,
    free: u32,
    /// The record that takes it is applied: checkpoints show it.
    pub(crate) applied: bool,
    /// The record that returns it is on its way: nothing is allocated here.
    closed: bool,
}

/// Zones tried for a contiguous run before a new zone is taken: bounds the search on a fragmented device.
const TRIES: usize = 16;

/// The zones of one shard.
#[derive(Debug)]
pub(crate) struct Zones {
    layout: Layout,
    zones: BTreeMap<u32, Zone>,
    open: [BTreeSet<u32>; 2],
    free: [u64; 2],
    /// Next-fit: zone and bit where the last search of user space ended.
    cursor: (u32, u32),
    used: u64,
    /// Free blocks of closed zones.
    closed: u64,
}

fn side(class: Class) -> usize {
    match class {
        Class::User => 0,
        Class::System => 1,
    }
}

fn test(bits: &[u64], bit: u32) -> bool {
    bits[bit as usize / 64] >> (bit % 64) & 1 != 0
}

fn assign(bits: &mut [u64], bit: u32, value: bool) -> bool {
    let word = &mut bits[bit as usize / 64];
    let mask = 1 << (bit % 64);
    let before = *word & mask != 0;
    if value {
        *word |= mask;
    } else {
        *word &= !mask;
    }
    before != value
}

/// First clear bit at or after `from`.
fn next_clear(bits: &[u64], from: u32, end: u32) -> u32 {
    let mut bit = from;
    while bit < end {
        let rest = !bits[bit as usize / 64] >> (bit % 64);
        if rest != 0 {
            return (bit + rest.trailing_zeros()).min(end);
        }
        bit = (bit / 64 + 1) * 64;
    }
    end
}

/// First set bit at or after `from`.
fn next_set(bits: &[u64], from: u32, end: u32) -> u32 {
    let mut bit = from;
    while bit < end {
        let rest = bits[bit as usize / 64] >> (bit % 64);
        if rest != 0 {
            return (bit + rest.trailing_zeros()).min(end);
        }
        bit = (bit / 64 + 1) * 64;
    }
    end
}

impl Zones {
    pub(crate) fn new(layout: Layout) -> Zones {
        Zones {
            layout,
            zones: BTreeMap::new(),
            open: [BTreeSet::new(), BTreeSet::new()],
            free: [0; 2],
            cursor: (0, 0),
            used: 0,
            closed: 0,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Zone)> {
        self.zones.iter().map(|(n, z)| (*n, z))
    }

    pub(crate) fn len(&self) -> usize {
        self.zones.len()
    }

    /// Blocks that could be given out, in zones already owned.
    pub(crate) fn free_blocks(&self, class: Class) -> u64 {
        self.free[side(class)]
    }

    /// Blocks that applied records refer to.
    pub(crate) fn used_blocks(&self) -> u64 {
        self.used
    }

    /// Blocks of zones whose return is on its way.
    pub(crate) fn closed_blocks(&self) -> u64 {
        self.closed
    }

    /// Adds a zone; `state` is its bitmap from a checkpoint. False if it is there already.
    pub(crate) fn add(
        &mut self,
        number: u32,
        class: Class,
        state: Option<Box<[u64]>>,
        applied: bool,
    ) -> bool {
        if self.zones.contains_key(&number) {
            return false;
        }
        let words = self.layout.zone_blocks as usize / 64;
        let state = state.unwrap_or_else(|| vec![0; words].into_boxed_slice());
        let used: u32 = state.iter().map(|w| w.count_ones()).sum();
        let free = self.layout.zone_blocks - used;
        self.used += u64::from(used);
        self.free[side(class)] += u64::from(free);
        if free > 0 {
            self.open[side(class)].insert(number);
        }
        let zone = Zone { class, busy: state.clone(), state, free, applied, closed: false };
        self.zones.insert(number, zone);
        true
    }

    /// The record that takes a zone was applied.
    pub(crate) fn set_applied(&mut self, number: u32) {
        if let Some(zone) = self.zones.get_mut(&number) {
            zone.applied = true;
        }
    }

    /// Drops a zone whose return was applied; gives its class.
    pub(crate) fn remove(&mut self, number: u32) -> Option<Class> {
        let zone = self.zones.remove(&number)?;
        let counted = if zone.closed { &mut self.closed } else { &mut self.free[side(zone.class)] };
        *counted -= u64::from(zone.free);
        self.open[side(zone.class)].remove(&number);
        self.used -= zone.state.iter().map(|w| u64::from(w.count_ones())).sum::<u64>();
        Some(zone.class)
    }

    /// Zones in which nothing is used.
    pub(crate) fn empty(&self) -> Vec<u32> {
        let blocks = self.layout.zone_blocks;
        self.zones
            .iter()
            .filter(|(_, z)| z.free == blocks && !z.closed && z.applied)
            .map(|(n, _)| *n)
            .collect()
    }

    /// Picks an empty zone to give back, and closes it, if enough is free elsewhere in its class.
    pub(crate) fn close_empty(&mut self, number: u32) -> Option<Class> {
        let blocks = self.layout.zone_blocks;
        let zone = self.zones.get_mut(&number)?;
        let elsewhere = self.free[side(zone.class)].saturating_sub(u64::from(blocks));
        if zone.closed || !zone.applied || zone.free != blocks || elsewhere < u64::from(blocks) / 4 {
            return None;
        }
        zone.closed = true;
        self.closed += u64::from(zone.free);
        self.free[side(zone.class)] -= u64::from(zone.free);
        self.open[side(zone.class)].remove(&number);
        Some(zone.class)
    }

    /// Makes exactly the blocks of `state` busy, after replay.
    pub(crate) fn rebuild(&mut self) {
        self.free = [0; 2];
        for (number, zone) in &mut self.zones {
            zone.busy.clone_from(&zone.state);
            let used: u32 = zone.busy.iter().map(|w| w.count_ones()).sum();
            zone.free = self.layout.zone_blocks - used;
            self.free[side(zone.class)] += u64::from(zone.free);
            if zone.free > 0 {
                self.open[side(zone.class)].insert(*number);
            } else {
                self.open[side(zone.class)].remove(number);
            }
        }
    }

    /// Adds a block to a list of runs, none of which crosses the border of a zone.
    pub(crate) fn push(&self, runs: &mut Runs, block: u64) {
        let border = self.locate(block).is_none_or(|(_, bit)| bit == 0);
        match runs.last_mut() {
            Some(last) if !border && last.start + u64::from(last.count) == block => last.count += 1,
            _ => runs.push(Run { start: block, count: 1 }),
        }
    }

    /// Zone of a block, owned or not.
    pub(crate) fn zone_of(&self, block: u64) -> Option<u32> {
        self.locate(block).map(|(zone, _)| zone)
    }

    fn locate(&self, block: u64) -> Option<(u32, u32)> {
        // No upper bound: the device may have grown since, and only zones that are owned are looked up.
        let offset = block.checked_sub(self.layout.zones.start)?;
        let size = u64::from(self.layout.zone_blocks);
        Some((u32::try_from(offset / size).ok()?, (offset % size) as u32))
    }

    /// A run by zones: zone, first bit, end.
    fn parts(&self, run: Run) -> SmallVec<[(u32, u32, u32); 2]> {
        let mut parts = SmallVec::new();
        let mut at = run.start;
        let end = run.start.saturating_add(u64::from(run.count));
        while at < end {
            let Some((zone, bit)) = self.locate(at) else { break };
            let count = (end - at).min(u64::from(self.layout.zone_blocks - bit)) as u32;
            parts.push((zone, bit, bit + count));
            at += u64::from(count);
        }
        parts
    }

    /// Whether a run lies within owned zones.
    pub(crate) fn owns(&self, run: Run) -> bool {
        let parts = self.parts(run);
        !parts.is_empty() && parts.iter().all(|(zone, ..)| self.zones.contains_key(zone))
    }

    /// Sets what applied records say of a run.
    pub(crate) fn set_state(&mut self, run: Run, used: bool) {
        for (number, from, to) in self.parts(run) {
            let Some(zone) = self.zones.get_mut(&number) else { continue };
            for bit in from..to {
                if assign(&mut zone.state, bit, used) {
                    if used { self.used += 1 } else { self.used -= 1 }
                }
            }
        }
    }

    /// Whether applied records say that a block is used.
    pub(crate) fn is_used(&self, block: u64) -> bool {
        let found = self.locate(block).and_then(|(zone, bit)| Some((self.zones.get(&zone)?, bit)));
        found.is_some_and(|(zone, bit)| test(&zone.state, bit))
    }

    /// Takes a run out of what is given out. False if a block was taken already or the zone is not owned.
    pub(crate) fn set_busy(&mut self, run: Run) -> bool {
        let Some((number, bit)) = self.locate(run.start) else { return false };
        let Some(zone) = self.zones.get_mut(&number) else { return false };
        let mut fresh = true;
        for bit in bit..(bit + run.count).min(self.layout.zone_blocks) {
            if assign(&mut zone.busy, bit, true) {
                zone.free -= 1;
                self.free[side(zone.class)] -= 1;
            } else {
                fresh = false;
            }
        }
        if zone.free == 0 {
            self.open[side(zone.class)].remove(&number);
        }
        fresh
    }

    /// Lets a run be given out again; tells the zone if that emptied it.
    pub(crate) fn release(&mut self, run: Run) -> Option<u32> {
        let (number, bit) = self.locate(run.start)?;
        let zone = self.zones.get_mut(&number)?;
        for bit in bit..(bit + run.count).min(self.layout.zone_blocks) {
            debug_assert!(!test(&zone.state, bit), "a block in use is released");
            if assign(&mut zone.busy, bit, false) {
                zone.free += 1;
                self.free[side(zone.class)] += 1;
            }
        }
        if zone.closed {
            return None;
        }
        self.open[side(zone.class)].insert(number);
        (zone.free == self.layout.zone_blocks).then_some(number)
    }

    /// A contiguous run within one zone, from `from` on, as long as `want`.
    fn find(&self, number: u32, from: u32, want: u32) -> Option<u32> {
        let zone = self.zones.get(&number)?;
        let end = self.layout.zone_blocks;
        let mut at = from;
        while at + want <= end {
            let start = next_clear(&zone.busy, at, end);
            if start + want > end {
                return None;
            }
            let stop = next_set(&zone.busy, start, (start + want).min(end));
            if stop - start >= want {
                return Some(start);
            }
            at = stop;
        }
        None
    }

    /// One contiguous run of `want` blocks, near the last one.
    pub(crate) fn alloc(&mut self, class: Class, want: u32) -> Option<Run> {
        let (zone, bit) = self.cursor;
        let near = match class {
            Class::User => self.find(zone, bit, want).map(|start| (zone, start)),
            Class::System => None,
        };
        let near = near.filter(|(zone, _)| self.open[side(class)].contains(zone));
        let (zone, bit) = near.or_else(|| {
            let open = &self.open[side(class)];
            let first = if class == Class::User { zone } else { 0 };
            let order = open.range(first..).chain(open.range(..first));
            order.take(TRIES).find_map(|&n| {
                let roomy = self.zones.get(&n).is_some_and(|z| z.free >= want);
                roomy.then(|| self.find(n, 0, want)).flatten().map(|start| (n, start))
            })
        })?;
        let run = Run { start: self.layout.zone_start(zone) + u64::from(bit), count: want };
        self.set_busy(run);
        if class == Class::User {
            self.cursor = (zone, bit + want);
        }
        Some(run)
    }

    /// `want` blocks in as many pieces as it takes, or none at all.
    pub(crate) fn alloc_pieces(&mut self, class: Class, want: u32) -> Option<Runs> {
        if self.free[side(class)] < u64::from(want) {
            return None;
        }
        let mut runs = Runs::new();
        let mut left = want;
        while left > 0 {
            let number = *self.open[side(class)].first()?;
            let zone = self.zones.get(&number)?;
            let end = self.layout.zone_blocks;
            let start = next_clear(&zone.busy, 0, end);
            let stop = next_set(&zone.busy, start, end.min(start.saturating_add(left)));
            let run = Run { start: self.layout.zone_start(number) + u64::from(start), count: stop - start };
            self.set_busy(run);
            runs.push(run);
            left -= run.count;
        }
        Some(runs)
    }

    /// `want` pairs of system blocks, the first of each from the lowest free space, the second from the
    /// highest: copies lie as far apart as the shard's zones allow.
    pub(crate) fn alloc_pairs(&mut self, want: usize) -> Option<Vec<[u64; 2]>> {
        if self.free[side(Class::System)] < 2 * want as u64 {
            return None;
        }
        let mut pairs = vec![[0; 2]; want];
        for pair in &mut pairs {
            pair[0] = self.edge(false)?;
        }
        let mut high = (0..want).map(|_| self.edge(true)).collect::<Option<Vec<u64>>>()?;
        // Ascending, as the first copies are, so that neighbours are written at once.
        high.sort_unstable();
        pairs.iter_mut().zip(high).for_each(|(pair, block)| pair[1] = block);
        Some(pairs)
    }

    fn edge(&mut self, high: bool) -> Option<u64> {
        let open = &self.open[side(Class::System)];
        let number = if high { *open.last()? } else { *open.first()? };
        let zone = self.zones.get(&number)?;
        let bit = if high {
            let (word, bits) = zone.busy.iter().enumerate().rev().find(|(_, w)| **w != u64::MAX)?;
            word as u32 * 64 + 63 - (!bits).leading_zeros()
        } else {
            next_clear(&zone.busy, 0, self.layout.zone_blocks)
        };
        let block = self.layout.zone_start(number) + u64::from(bit);
        self.set_busy(Run { start: block, count: 1 });
        Some(block)
    }

    /// Blocks neither used by applied records nor free: metadata, in flight, waiting for a flush.
    #[cfg(test)]
    pub(crate) fn limbo(&self) -> u64 {
        let bits = |b: &[u64]| b.iter().map(|w| u64::from(w.count_ones())).sum::<u64>();
        self.zones.values().map(|z| bits(&z.busy)).sum::<u64>() - self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::MAX_CHUNK;
    use proptest::prelude::*;

    fn zones(n: u32) -> Zones {
        let mut zones = Zones::new(Layout::new(1 << 30, 16, MAX_CHUNK));
        for i in 0..n {
            assert!(zones.add(i * 3, if i % 2 == 0 { Class::User } else { Class::System }, None, true));
        }
        zones
    }

    #[test]
    fn a_big_write_gets_one_run_and_the_next_follows_it() {
        let mut z = zones(4);
        let a = z.alloc(Class::User, 100).expect("room");
        let b = z.alloc(Class::User, 100).expect("room");
        assert_eq!(b.start, a.start + 100);
        assert!(z.alloc(Class::User, 257).is_none(), "larger than a zone");
        assert_eq!(z.alloc_pieces(Class::User, 312).expect("exactly what is left").len(), 2);
        assert!(z.alloc_pieces(Class::User, 1).is_none());
    }

    #[test]
    fn copies_come_from_both_ends() {
        let mut z = zones(4);
        let pairs = z.alloc_pairs(3).expect("room");
        let (low, high) = (z.layout.zone_start(3), z.layout.zone_start(9) + 255);
        assert_eq!(pairs, [[low, high - 2], [low + 1, high - 1], [low + 2, high]]);
    }

    #[test]
    fn an_empty_zone_is_given_back_when_enough_is_free() {
        let mut z = zones(3);
        let run = z.alloc(Class::User, 10).expect("room");
        assert_eq!(z.release(run), Some(0));
        assert_eq!(z.close_empty(0), Some(Class::User));
        assert_eq!(z.close_empty(0), None);
        assert_eq!(z.close_empty(6), None, "the last one stays");
        assert_eq!(z.remove(0), Some(Class::User));
        assert_eq!(z.free_blocks(Class::User), 256);
    }

    proptest! {
        #[test]
        fn no_block_is_given_twice(ops in prop::collection::vec((0u8..4, 1u32..80, any::<prop::sample::Index>()), 1..200)) {
            let mut z = zones(6);
            let mut held: Vec<Run> = Vec::new();
            for (op, want, pick) in ops {
                match op {
                    0 => held.extend(z.alloc(Class::User, want)),
                    1 => held.extend(z.alloc_pieces(Class::User, want).into_iter().flatten()),
                    2 => held.extend(z.alloc_pairs(want as usize / 8).into_iter().flatten().flatten()
                        .map(|start| Run { start, count: 1 })),
                    _ if !held.is_empty() => { let run = held.swap_remove(pick.index(held.len())); z.release(run); }
                    _ => {}
                }
                let mut blocks: Vec<u64> = held.iter().flat_map(|r| r.start..r.start + u64::from(r.count)).collect();
                let n = blocks.len();
                blocks.sort_unstable();
                blocks.dedup();
                prop_assert_eq!(blocks.len(), n);
                let free = z.free_blocks(Class::User) + z.free_blocks(Class::System);
                prop_assert_eq!(free + n as u64, 6 * 256);
            }
        }
    }
}
