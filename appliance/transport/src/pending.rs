//! Requests in flight on one connection, by slot and sequence, and the bound on their number.
//!
//! The same table serves both sides: the client finds whom a reply is for, the server what a Cancel is about. A peer
//! that exceeds its credits, answers what was not asked or repeats what is in flight breaks the protocol.

use rustc_hash::FxHashMap;
use wire::Slot;

/// Why a request or a reply can't be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PendingError {
    /// More requests than credits.
    #[error("more requests in flight than the connection has credits")]
    Credits,
    /// The same slot and sequence is in flight.
    #[error("a request with the same slot and sequence is in flight")]
    Twice,
    /// The slot has another request in flight.
    #[error("the slot has another request in flight")]
    SlotBusy,
}

/// What is in flight, each with a `T`.
#[derive(Debug)]
pub struct Pending<T> {
    credits: usize,
    table: FxHashMap<(Slot, u64), T>,
    slots: FxHashMap<Slot, u64>,
}

impl<T> Pending<T> {
    /// At most `credits` at a time.
    #[must_use]
    pub fn new(credits: u16) -> Self {
        Self { credits: usize::from(credits), table: FxHashMap::default(), slots: FxHashMap::default() }
    }
    /// How many are in flight.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }
    /// None in flight?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
    /// One begins.
    ///
    /// # Errors
    /// It must not.
    pub fn begin(&mut self, slot: Slot, sequence: u64, value: T) -> Result<(), PendingError> {
        if self.table.len() >= self.credits {
            return Err(PendingError::Credits);
        }
        if self.table.contains_key(&(slot, sequence)) {
            return Err(PendingError::Twice);
        }
        if slot != Slot::IDEMPOTENT {
            if self.slots.contains_key(&slot) {
                return Err(PendingError::SlotBusy);
            }
            self.slots.insert(slot, sequence);
        }
        self.table.insert((slot, sequence), value);
        Ok(())
    }
    /// Looks at one.
    #[must_use]
    pub fn get(&self, slot: Slot, sequence: u64) -> Option<&T> {
        self.table.get(&(slot, sequence))
    }
    /// One ends; `None` where it is not in flight.
    pub fn end(&mut self, slot: Slot, sequence: u64) -> Option<T> {
        let value = self.table.remove(&(slot, sequence))?;
        self.slots.remove(&slot);
        Some(value)
    }
    /// All end.
    pub fn clear(&mut self) -> Vec<T> {
        self.slots.clear();
        self.table.drain().map(|(_, value)| value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_and_repeats() {
        let mut p = Pending::new(2);
        assert_eq!(p.begin(Slot(0), 1, 'a'), Ok(()));
        assert_eq!(p.begin(Slot(0), 1, 'b'), Err(PendingError::Twice));
        assert_eq!(p.begin(Slot(0), 2, 'b'), Err(PendingError::SlotBusy));
        assert_eq!(p.begin(Slot::IDEMPOTENT, 1, 'c'), Ok(()));
        assert_eq!(p.begin(Slot::IDEMPOTENT, 2, 'd'), Err(PendingError::Credits));
        assert_eq!((p.end(Slot(0), 2), p.end(Slot(0), 1), p.end(Slot(0), 1)), (None, Some('a'), None));
        assert_eq!(p.begin(Slot(0), 2, 'e'), Ok(()));
        assert_eq!(p.clear().len(), 2);
        assert!(p.is_empty());
    }
}
