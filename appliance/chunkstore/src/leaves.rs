//! The cache of resident leaves: bounded, second chance, dirty ones stay until a checkpoint wrote them.
//!
//! It does no I/O and does not know the entries that refer to it.

use crate::index::{ABSENT, Key};
use crate::leaf::Leaf;

#[derive(Debug)]
struct Resident {
    key: Key,
    leaf: Box<Leaf>,
    dirty: bool,
    used: bool,
}

impl std::fmt::Debug for Leaf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.mapped()).finish()
    }
}

/// Resident leaves by slot.
#[derive(Debug, Default)]
pub(crate) struct Leaves {
    slots: Vec<Option<Resident>>,
    free: Vec<u32>,
    hand: usize,
    resident: usize,
    dirty: usize,
}

impl Leaves {
    pub(crate) fn resident(&self) -> usize {
        self.resident
    }

    pub(crate) fn dirty_count(&self) -> usize {
        self.dirty
    }

    pub(crate) fn insert(&mut self, key: Key, leaf: Box<Leaf>, dirty: bool) -> u32 {
        let resident = Some(Resident { key, leaf, dirty, used: true });
        self.resident += 1;
        self.dirty += usize::from(dirty);
        if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = resident;
            return slot;
        }
        self.slots.push(resident);
        self.slots.len() as u32 - 1
    }

    fn at(&mut self, slot: u32) -> Option<&mut Resident> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    pub(crate) fn touch(&mut self, slot: u32) -> Option<&Leaf> {
        let resident = self.at(slot)?;
        resident.used = true;
        Some(&resident.leaf)
    }

    /// A leaf without counting it as used.
    pub(crate) fn peek(&self, slot: u32) -> Option<&Leaf> {
        Some(&self.slots.get(slot as usize)?.as_ref()?.leaf)
    }

    pub(crate) fn is_dirty(&self, slot: u32) -> bool {
        slot != ABSENT && matches!(self.slots.get(slot as usize), Some(Some(r)) if r.dirty)
    }

    /// The leaf, to be changed.
    pub(crate) fn dirty(&mut self, slot: u32) -> Option<&mut Leaf> {
        let resident = self.slots.get_mut(slot as usize)?.as_mut()?;
        self.dirty += usize::from(!resident.dirty);
        resident.dirty = true;
        resident.used = true;
        Some(&mut resident.leaf)
    }

    pub(crate) fn set_clean(&mut self, slot: u32) {
        let was = self.at(slot).is_some_and(|r| std::mem::replace(&mut r.dirty, false));
        self.dirty -= usize::from(was);
    }

    pub(crate) fn remove(&mut self, slot: u32) {
        if let Some(resident) = self.slots.get_mut(slot as usize).and_then(Option::take) {
            self.free.push(slot);
            self.resident -= 1;
            self.dirty -= usize::from(resident.dirty);
        }
    }

    /// Drops one clean leaf and names its chunk; `None` where all are dirty or held.
    pub(crate) fn evict_one(&mut self, held: impl Fn(Key) -> bool) -> Option<Key> {
        if self.dirty == self.resident {
            return None;
        }
        // Twice around: the first round may only take away second chances.
        for _ in 0..2 * self.slots.len() {
            self.hand = (self.hand + 1) % self.slots.len();
            let Some(resident) = &mut self.slots[self.hand] else { continue };
            if resident.dirty || std::mem::replace(&mut resident.used, false) || held(resident.key) {
                continue;
            }
            let key = resident.key;
            self.remove(self.hand as u32);
            return Some(key);
        }
        None
    }
}
