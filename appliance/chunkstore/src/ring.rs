//! Where groups lie in a log ring.
//!
//! Pure. A group is never split at the end of the ring: one that does not fit there starts at block 0, and a
//! reader looks at both places.

use crate::group::Header;
use std::collections::VecDeque;

/// Where reading of a log starts: the place after everything that was trimmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Anchor {
    /// Sequence of the next record.
    pub(crate) next: u64,
    /// Block of the ring where the next group starts, unless it does not fit there.
    pub(crate) at: u64,
    /// CRC of the group before.
    pub(crate) prev: u32,
}

#[derive(Clone, Copy, Debug)]
struct Placed {
    last: u64,
    start: u64,
    after: Anchor,
    incarnation: u64,
}

/// The live part of a ring.
#[derive(Debug)]
pub(crate) struct Ring {
    blocks: u64,
    live: VecDeque<Placed>,
    head: Anchor,
    tail: Anchor,
    recorded: u64,
}

impl Ring {
    pub(crate) fn new(blocks: u64, anchor: Anchor) -> Ring {
        Ring { blocks, live: VecDeque::new(), head: anchor, tail: anchor, recorded: 0 }
    }

    /// Where the next group goes.
    pub(crate) fn head(&self) -> Anchor {
        self.head
    }

    /// The last record that a group here says was flushed.
    pub(crate) fn recorded(&self) -> u64 {
        self.recorded
    }

    /// Blocks between tail and head.
    pub(crate) fn used(&self) -> u64 {
        let Some(front) = self.live.front() else { return 0 };
        let used = (self.head.at + self.blocks - front.start) % self.blocks;
        if used == 0 { self.blocks } else { used }
    }

    /// Start of a group of `blocks`, if it can be placed with `spare` blocks left over.
    pub(crate) fn place(&self, blocks: u64, spare: u64) -> Option<u64> {
        let (start, skipped) = if self.head.at + blocks <= self.blocks {
            (self.head.at, 0)
        } else {
            (0, self.blocks - self.head.at)
        };
        (self.used() + skipped + blocks + spare <= self.blocks).then_some(start)
    }

    /// Counts a group that was placed at `start`.
    pub(crate) fn push(&mut self, start: u64, blocks: u64, header: &Header, crc: u32) {
        self.recorded = self.recorded.max(header.flushed);
        self.head = Anchor { next: header.last() + 1, at: start + blocks, prev: crc };
        let (last, incarnation) = (header.last(), header.incarnation);
        self.live.push_back(Placed { last, start, after: self.head, incarnation });
    }

    /// The anchor after the group that ends with record `last`, if all up to it would be trimmed.
    pub(crate) fn anchor_after(&self, last: u64) -> Anchor {
        self.group_at(last).map_or(self.tail, |p| p.after)
    }

    /// The incarnation of that group: those behind it may be of the same. `None` where it was trimmed before.
    pub(crate) fn incarnation_at(&self, last: u64) -> Option<u64> {
        self.group_at(last).map(|p| p.incarnation)
    }

    fn group_at(&self, last: u64) -> Option<&Placed> {
        let n = self.live.partition_point(|p| p.last <= last);
        n.checked_sub(1).and_then(|i| self.live.get(i))
    }

    /// Frees whole groups up to record `last`.
    pub(crate) fn trim(&mut self, last: u64) {
        while let Some(front) = self.live.front()
            && front.last <= last
        {
            self.tail = front.after;
            self.live.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn live_groups_never_overlap(ops in prop::collection::vec((1u64..20, prop::bool::ANY), 1..300)) {
            let mut ring = Ring::new(64, Anchor { next: 1, at: 0, prev: 0 });
            let mut live: VecDeque<(u64, u64, u64)> = VecDeque::new();
            for (blocks, trim) in ops {
                if trim && let Some((last, ..)) = live.pop_front() {
                    ring.trim(last);
                }
                if let Some(start) = ring.place(blocks, 2) {
                    let first = ring.head().next;
                    let header = Header { first, count: 1, prev: 0, incarnation: 1, flushed: 0, root: 0 };
                    prop_assert!(start + blocks <= 64);
                    for (_, s, n) in &live {
                        prop_assert!(start + blocks <= *s || s + n <= start, "{} {} over {} {}", start, blocks, s, n);
                    }
                    ring.push(start, blocks, &header, 0);
                    live.push_back((first, start, blocks));
                } else {
                    prop_assert!(!live.is_empty(), "an empty ring takes any group up to its size less the rest");
                    if live.len() == 1 { break; }
                }
            }
        }
    }
}
