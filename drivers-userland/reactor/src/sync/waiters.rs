//! A line of waiting futures, first come first served.

use std::collections::VecDeque;
use std::task::Waker;

/// Each waiter has a ticket and asks for a number of units.
#[derive(Default)]
pub(crate) struct Waiters {
    line: VecDeque<(u64, usize, Waker)>,
    /// Tickets that were called and whose futures have not looked yet, with their units.
    called: Vec<(u64, usize)>,
    next: u64,
}

impl Waiters {
    pub(crate) fn join(&mut self, units: usize, waker: &Waker) -> u64 {
        self.next += 1;
        self.line.push_back((self.next, units, waker.clone()));
        self.next
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.line.is_empty()
    }

    /// Units that the first in line asks for.
    pub(crate) fn first(&self) -> Option<usize> {
        self.line.front().map(|(_, units, _)| *units)
    }

    /// Calls the first in line; the caller wakes it once nothing is borrowed.
    pub(crate) fn call_first(&mut self) -> Option<Waker> {
        let (ticket, units, waker) = self.line.pop_front()?;
        self.called.push((ticket, units));
        Some(waker)
    }

    /// True where the ticket was called, which uses it up; otherwise renews its waker.
    pub(crate) fn check(&mut self, ticket: u64, waker: &Waker) -> bool {
        if let Some(at) = self.called.iter().position(|(called, _)| *called == ticket) {
            self.called.swap_remove(at);
            return true;
        }
        if let Some((_, _, old)) = self.line.iter_mut().find(|(waiting, _, _)| *waiting == ticket) {
            old.clone_from(waker);
        }
        false
    }

    /// Leaves the line; the units where it had been called.
    pub(crate) fn leave(&mut self, ticket: u64) -> Option<usize> {
        if let Some(at) = self.called.iter().position(|(called, _)| *called == ticket) {
            return Some(self.called.swap_remove(at).1);
        }
        self.line.retain(|(waiting, _, _)| *waiting != ticket);
        None
    }

    /// Everybody's waker, without calling anybody.
    pub(crate) fn wakers(&self) -> Vec<Waker> {
        self.line.iter().map(|(_, _, waker)| waker.clone()).collect()
    }
}
