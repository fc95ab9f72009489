//! Gates: data operations of an inode share it, a truncation has it alone.
//!
//! Owns who is inside and who waits, in order of arrival. Must not know leases or what the operations do.

use crate::leases::Ticket;
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;
use wire::Ino;

#[derive(Debug, Default)]
struct Gate {
    sharing: Vec<Ticket>,
    alone: Option<Ticket>,
    waiting: BTreeSet<Ticket>,
}

/// The gates of all inodes with data operations under way.
#[derive(Debug, Default)]
pub(super) struct Gates {
    table: FxHashMap<Ino, Gate>,
}

impl Gates {
    /// Enters the gates of `inos`, alone or sharing, all or none. Waits behind earlier tickets otherwise.
    pub(super) fn enter(&mut self, ticket: Ticket, inos: &[(Ino, bool)]) -> bool {
        for (ino, _) in inos {
            if let Some(g) = self.table.get_mut(ino) {
                g.waiting.remove(&ticket);
            }
        }
        let free = inos.iter().all(|(ino, alone)| {
            self.table.get(ino).is_none_or(|g| {
                let earlier = g.waiting.range(..ticket).next().is_some();
                g.alone.is_none() && !earlier && (!alone || g.sharing.is_empty())
            })
        });
        for (ino, alone) in inos {
            let g = self.table.entry(*ino).or_default();
            match (free, *alone) {
                (false, _) => drop(g.waiting.insert(ticket)),
                (true, true) => g.alone = Some(ticket),
                (true, false) => g.sharing.push(ticket),
            }
        }
        free
    }

    /// Does it wait at the gates of `inos`?
    pub(super) fn waits(&self, ticket: Ticket, inos: &[(Ino, bool)]) -> bool {
        inos.iter().any(|(ino, _)| self.table.get(ino).is_some_and(|g| g.waiting.contains(&ticket)))
    }

    /// Leaves, or stops waiting. Tickets that may try again are appended to `ready`.
    pub(super) fn leave(&mut self, ticket: Ticket, inos: &[(Ino, bool)], ready: &mut Vec<Ticket>) {
        for (ino, _) in inos {
            let Some(g) = self.table.get_mut(ino) else { continue };
            g.sharing.retain(|t| *t != ticket);
            g.waiting.remove(&ticket);
            if g.alone == Some(ticket) {
                g.alone = None;
            }
            for t in &g.waiting {
                if !ready.contains(t) {
                    ready.push(*t);
                }
            }
            if g.alone.is_none() && g.sharing.is_empty() && g.waiting.is_empty() {
                self.table.remove(ino);
            }
        }
    }

    /// Inodes with a gate.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncation_waits_for_data_and_holds_up_later_data() {
        let (mut g, i, mut ready) = (Gates::default(), Ino(5), Vec::new());
        assert!(g.enter(Ticket(1), &[(i, false)]));
        assert!(g.enter(Ticket(2), &[(i, false)]));
        assert!(!g.enter(Ticket(3), &[(i, true)]));
        assert!(!g.enter(Ticket(4), &[(i, false)]), "behind the truncation");
        g.leave(Ticket(1), &[(i, false)], &mut ready);
        assert!(!g.enter(Ticket(3), &[(i, true)]));
        g.leave(Ticket(2), &[(i, false)], &mut ready);
        assert_eq!(ready, [Ticket(3), Ticket(4)]);
        assert!(g.enter(Ticket(3), &[(i, true)]));
        assert!(!g.enter(Ticket(4), &[(i, false)]));
        g.leave(Ticket(3), &[(i, true)], &mut ready);
        assert!(g.enter(Ticket(4), &[(i, false)]));
        g.leave(Ticket(4), &[(i, false)], &mut ready);
        assert_eq!(g.len(), 0);
    }
}
