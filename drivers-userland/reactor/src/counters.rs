//! Counts of what a reactor's loop did.

use crate::run::Stats;
use std::cell::Cell;

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) iterations: Cell<u64>,
    pub(crate) polls: Cell<u64>,
    pub(crate) submissions: Cell<u64>,
    pub(crate) completions: Cell<u64>,
    pub(crate) enters: Cell<u64>,
    pub(crate) sleeps: Cell<u64>,
    pub(crate) spins: Cell<u64>,
    pub(crate) spins_won: Cell<u64>,
    pub(crate) overflows: Cell<u64>,
    pub(crate) full_queue: Cell<u64>,
    pub(crate) full_slab: Cell<u64>,
}

pub(crate) fn bump(counter: &Cell<u64>, by: u64) {
    counter.set(counter.get() + by);
}

impl Counters {
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            iterations: self.iterations.get(),
            polls: self.polls.get(),
            submissions: self.submissions.get(),
            completions: self.completions.get(),
            enters: self.enters.get(),
            sleeps: self.sleeps.get(),
            spins: self.spins.get(),
            spins_won: self.spins_won.get(),
            overflows: self.overflows.get(),
            full_queue: self.full_queue.get(),
            full_slab: self.full_slab.get(),
            ..Stats::default()
        }
    }
}
