//! The locks that this client holds, to reclaim them after a restart of the server.
//!
//! Mirrors what the server granted, with the merging and splitting of fcntl(2). Must not decide conflicts: the server
//! does.

use rustc_hash::{FxHashMap, FxHashSet};
use wire::message::HeldLock;
use wire::types::{Ino, LockKind, LockOwner, LockRange, LockSpace, LockType};

/// One owner on one inode.
type Key = (Ino, LockSpace, LockOwner);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    range: LockRange,
    kind: LockKind,
    pid: u32,
}

/// All locks of this client, and the owners that lost theirs.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    held: FxHashMap<Key, Vec<Held>>,
    lost: FxHashSet<Key>,
}

impl Locks {
    /// The server did what was asked.
    pub(crate) fn apply(
        &mut self,
        ino: Ino,
        space: LockSpace,
        owner: LockOwner,
        what: LockType,
        range: LockRange,
        pid: u32,
    ) {
        let list = self.held.entry((ino, space, owner)).or_default();
        let mut left = Vec::with_capacity(list.len() + 2);
        for h in list.drain(..) {
            if !h.range.overlaps(&range) {
                left.push(h);
                continue;
            }
            if h.range.start < range.start {
                left.push(Held { range: LockRange { start: h.range.start, end: range.start - 1 }, ..h });
            }
            if h.range.end > range.end {
                left.push(Held { range: LockRange { start: range.end + 1, end: h.range.end }, ..h });
            }
        }
        if let LockType::Lock(kind) = what {
            left.push(Held { range, kind, pid });
        }
        left.sort_unstable_by_key(|h| h.range.start);
        left.dedup_by(|b, a| {
            let joins =
                a.kind == b.kind && a.pid == b.pid && a.range.end.checked_add(1) == Some(b.range.start);
            if joins {
                a.range.end = b.range.end;
            }
            joins
        });
        if left.is_empty() {
            self.held.remove(&(ino, space, owner));
        } else {
            *list = left;
        }
    }
    /// All of an owner's locks are given back.
    pub(crate) fn release(&mut self, ino: Ino, space: LockSpace, owner: LockOwner) {
        self.held.remove(&(ino, space, owner));
        self.lost.remove(&(ino, space, owner));
    }
    /// Does the owner hold a flock of another kind?
    pub(crate) fn converts(&self, ino: Ino, owner: LockOwner, kind: LockKind) -> bool {
        let held = self.held.get(&(ino, LockSpace::Flock, owner));
        held.is_some_and(|list| list.iter().any(|h| h.kind != kind))
    }
    /// Does another owner of this client hold a flock that is in the way?
    pub(crate) fn blocks_flock(&self, ino: Ino, owner: LockOwner, what: LockType) -> bool {
        let of = |key: &Key| key.0 == ino && key.1 == LockSpace::Flock && key.2 != owner;
        let write = what == LockType::Lock(LockKind::Write);
        self.held.iter().any(|(key, list)| of(key) && list.iter().any(|h| write || h.kind == LockKind::Write))
    }
    /// Does the owner hold any, or has it lost some?
    pub(crate) fn concerns(&self, ino: Ino, space: LockSpace, owner: LockOwner) -> bool {
        self.held.contains_key(&(ino, space, owner)) || self.is_lost(ino, space, owner)
    }
    /// The session was fenced: nothing is held any more, and the owners are to be told so.
    pub(crate) fn lose_all(&mut self) {
        self.lost.extend(self.held.drain().map(|(k, _)| k));
    }
    /// Has the owner lost its locks of this inode?
    pub(crate) fn is_lost(&self, ino: Ino, space: LockSpace, owner: LockOwner) -> bool {
        self.lost.contains(&(ino, space, owner))
    }
    /// Has anyone lost locks of this inode?
    pub(crate) fn is_lost_on(&self, ino: Ino) -> bool {
        self.lost.iter().any(|k| k.0 == ino)
    }
    /// Owners with locks or losses.
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }
    /// Everything held, in the form of ReclaimLocks.
    pub(crate) fn list(&self) -> Vec<HeldLock> {
        let all = self.held.iter().flat_map(|(&(ino, space, owner), list)| {
            list.iter().map(move |h| HeldLock { ino, space, kind: h.kind, range: h.range, owner, pid: h.pid })
        });
        all.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: (Ino, LockSpace, LockOwner) = (Ino(3), LockSpace::Posix, LockOwner(1));

    proptest! {
        #[test]
        fn bytes_are_held_as_last_asked(steps in prop::collection::vec((0u8..3, 0u64..30, 0u64..10), 0..30)) {
            let (mut locks, mut model) = (Locks::default(), [None; 40]);
            for (what, start, more) in steps {
                let what = LockType::from_u8(what).expect("0 to 2");
                let range = LockRange { start, end: start + more };
                locks.apply(KEY.0, KEY.1, KEY.2, what, range, 7);
                model[start as usize..=(start + more) as usize].fill(match what {
                    LockType::Lock(k) => Some(k),
                    LockType::Unlock => None,
                });
                let mut seen = [None; 40];
                let list = locks.list();
                for l in &list {
                    for byte in &mut seen[l.range.start as usize..=l.range.end as usize] {
                        prop_assert!(byte.is_none());
                        *byte = Some(l.kind);
                    }
                }
                prop_assert_eq!(seen, model);
                let runs = model.windows(2).filter(|w| w[0] != w[1] && w[1].is_some()).count();
                prop_assert_eq!(list.len(), runs + usize::from(model[0].is_some()));
                prop_assert_eq!(locks.concerns(KEY.0, KEY.1, KEY.2), !list.is_empty());
            }
        }
    }

    #[test]
    fn an_end_of_file_range_does_not_overflow() {
        let mut locks = Locks::default();
        locks.apply(KEY.0, KEY.1, KEY.2, LockType::Lock(LockKind::Write), LockRange::ALL, 7);
        locks.apply(KEY.0, KEY.1, KEY.2, LockType::Unlock, LockRange { start: 5, end: 9 }, 7);
        let ranges: Vec<_> = locks.list().iter().map(|l| (l.range.start, l.range.end)).collect();
        assert_eq!(ranges, [(0, 4), (10, u64::MAX)]);
        locks.lose_all();
        assert!(locks.is_lost(KEY.0, KEY.1, KEY.2) && locks.list().is_empty());
        locks.release(KEY.0, KEY.1, KEY.2);
        assert!(!locks.is_lost_on(KEY.0));
    }
}
