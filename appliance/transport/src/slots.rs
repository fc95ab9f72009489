//! The client's slot table: which slot is free, and the sequence number of its next request.
//!
//! A slot goes back only when its request has been answered: a new sequence tells the server to forget the old
//! reply. Must not resend anything itself.

use wire::Slot;
use wire::limits::MAX_SLOTS;

/// Slots of one session.
#[derive(Debug)]
pub struct Slots {
    sequences: Vec<u64>,
    busy: Vec<bool>,
    /// Most recently used last: few slots stay warm, so the server keeps few large replies.
    free: Vec<u16>,
    /// Kept back for requests that others wait for.
    kept: usize,
}

/// Slots kept back at most, and the part of all at most.
const KEPT: (u16, u16) = (8, 8);

impl Slots {
    /// A table of `count` slots, all fresh; cut to [`MAX_SLOTS`].
    #[must_use]
    pub fn new(count: u16) -> Self {
        let count = count.clamp(1, MAX_SLOTS);
        Self {
            sequences: vec![0; usize::from(count)],
            busy: vec![false; usize::from(count)],
            free: (0..count).rev().collect(),
            kept: usize::from((count / KEPT.1).min(KEPT.0)),
        }
    }
    /// Slots in all.
    #[must_use]
    pub fn count(&self) -> usize {
        self.sequences.len()
    }
    /// Slots with a request outstanding.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.sequences.len() - self.free.len()
    }
    /// May a request have a slot? One that others wait for (`urgent`) may have the last ones, too.
    #[must_use]
    pub fn has(&self, urgent: bool) -> bool {
        self.free.len() > if urgent { 0 } else { self.kept }
    }
    /// A free slot and the sequence of its next request; `None` where there is none for it, see [`Slots::has`].
    pub fn take(&mut self, urgent: bool) -> Option<(Slot, u64)> {
        if !self.has(urgent) {
            return None;
        }
        let slot = self.free.pop()?;
        let at = usize::from(slot);
        self.busy[at] = true;
        self.sequences[at] += 1;
        Some((Slot(slot), self.sequences[at]))
    }
    /// The request of `slot` and `sequence` was never sent: the next one has its sequence. Anything else is ignored.
    pub fn give_unused(&mut self, slot: Slot, sequence: u64) {
        let at = usize::from(slot.0);
        if self.busy.get(at) == Some(&true) && self.sequences[at] == sequence {
            self.sequences[at] -= 1;
            self.busy[at] = false;
            self.free.push(slot.0);
        }
    }
    /// The request of `slot` and `sequence` has been answered. Anything else is ignored.
    pub fn give(&mut self, slot: Slot, sequence: u64) {
        let at = usize::from(slot.0);
        if self.busy.get(at) == Some(&true) && self.sequences[at] == sequence {
            self.busy[at] = false;
            self.free.push(slot.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn one_outstanding_per_slot_and_sequences_without_gaps(choices in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut slots = Slots::new(4);
            let (mut out, mut last) = (Vec::new(), [0u64; 4]);
            for choice in choices {
                if choice % 2 == 0 {
                    let taken = slots.take(false);
                    prop_assert_eq!(taken.is_none(), out.len() == 4);
                    if let Some((slot, sequence)) = taken {
                        prop_assert!(out.iter().all(|&(s, _)| s != slot));
                        prop_assert_eq!(sequence, last[usize::from(slot.0)] + 1);
                        last[usize::from(slot.0)] = sequence;
                        out.push((slot, sequence));
                    }
                } else if !out.is_empty() {
                    let (slot, sequence) = out.swap_remove(usize::from(choice) % out.len());
                    if choice % 5 == 0 {
                        slots.give_unused(slot, sequence);
                        last[usize::from(slot.0)] -= 1;
                    }
                    slots.give(slot, sequence + 1);
                    slots.give(slot, sequence);
                    slots.give(slot, sequence);
                }
                prop_assert_eq!(slots.in_use(), out.len());
            }
        }
    }
}
