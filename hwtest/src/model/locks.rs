//! Locks in the model: flock by open file, record locks by process and cell.

use super::ops::{LOCK_CELLS, Locking};
use std::collections::HashMap;

/// Cells of one process on one file.
type Cells = [Option<Locking>; LOCK_CELLS as usize];

/// Every lock.
#[derive(Clone, Debug, Default)]
pub(super) struct Locks {
    /// By node: who holds it, by worker and slot.
    whole: HashMap<u64, HashMap<(usize, usize), Locking>>,
    /// By node and worker.
    records: HashMap<u64, HashMap<usize, Cells>>,
}

fn clash(a: Locking, b: Locking) -> bool {
    a == Locking::Write || b == Locking::Write
}

impl Locks {
    /// flock(2). A refused conversion loses the lock that was held, so the generator does not ask for one.
    pub(super) fn flock(&mut self, node: u64, holder: (usize, usize), how: Locking) -> bool {
        let held = self.whole.entry(node).or_default();
        if how == Locking::Unlock {
            held.remove(&holder);
            return true;
        }
        let free = !held.iter().any(|(h, k)| *h != holder && clash(*k, how));
        if free {
            held.insert(holder, how);
        }
        free
    }

    /// Whether a flock would be a conversion that is refused.
    pub(super) fn would_lose(&self, node: u64, holder: (usize, usize), how: Locking) -> bool {
        self.whole.get(&node).is_some_and(|held| {
            held.contains_key(&holder) && held.iter().any(|(h, k)| *h != holder && clash(*k, how))
        })
    }

    /// fcntl(2) `F_SETLK` on cells `from..to`.
    pub(super) fn record(
        &mut self,
        node: u64,
        worker: usize,
        how: Locking,
        cells: std::ops::Range<usize>,
    ) -> bool {
        let file = self.records.entry(node).or_default();
        let taken = how != Locking::Unlock
            && file
                .iter()
                .filter(|(w, _)| **w != worker)
                .any(|(_, held)| held[cells.clone()].iter().flatten().any(|k| clash(*k, how)));
        if !taken {
            let value = (how != Locking::Unlock).then_some(how);
            file.entry(worker).or_default()[cells].fill(value);
        }
        !taken
    }

    /// A process that closes any descriptor of a file loses its record locks on it (fcntl(2)).
    pub(super) fn closed(&mut self, worker: usize, node: u64) {
        if let Some(file) = self.records.get_mut(&node) {
            file.remove(&worker);
        }
    }

    /// An open file is gone, and its flock.
    pub(super) fn closed_slot(&mut self, node: u64, holder: (usize, usize)) {
        if let Some(held) = self.whole.get_mut(&node) {
            held.remove(&holder);
        }
        self.closed(holder.0, node);
    }

    /// The file is gone.
    pub(super) fn freed(&mut self, node: u64) {
        self.whole.remove(&node);
        self.records.remove(&node);
    }
}
