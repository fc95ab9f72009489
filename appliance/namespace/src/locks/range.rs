//! Ranges of one file's locks: split, merge, replace. Must not know files or waiters.

use super::{Conflict, LockRecord, Owner};
use wire::{Ino, LockKind, LockRange, LockSpace};

/// Bytes held by an owner. The records of one owner in one file never overlap and never touch with one kind and process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) owner: Owner,
    pub(super) kind: LockKind,
    pub(super) range: LockRange,
    pub(super) pid: u32,
}

impl Held {
    /// Does this stand in the way of `owner` taking `kind` on `range`?
    pub(super) fn conflicts(&self, owner: Owner, kind: LockKind, range: &LockRange) -> bool {
        self.owner != owner
            && (self.kind == LockKind::Write || kind == LockKind::Write)
            && self.range.overlaps(range)
    }

    pub(super) fn report(&self) -> Conflict {
        Conflict { kind: self.kind, range: self.range, pid: self.pid, owner: self.owner }
    }

    pub(super) fn record(&self, ino: Ino, space: LockSpace) -> LockRecord {
        LockRecord { ino, space, kind: self.kind, range: self.range, owner: self.owner, pid: self.pid }
    }

    fn joins(&self, kind: LockKind, range: &LockRange, pid: u32) -> bool {
        let touches = self.range.overlaps(range)
            || self.range.end.checked_add(1) == Some(range.start)
            || range.end.checked_add(1) == Some(self.range.start);
        self.kind == kind && self.pid == pid && touches
    }
}

/// Replaces what `owner` holds of `range` by `kind`, or by nothing. `held` stays ordered by first byte.
pub(super) fn replace(
    held: &mut Vec<Held>,
    owner: Owner,
    kind: Option<LockKind>,
    range: LockRange,
    pid: u32,
) {
    let mut pieces: Vec<Held> = Vec::new();
    held.retain(|h| {
        if h.owner != owner || !h.range.overlaps(&range) {
            return true;
        }
        if h.range.start < range.start {
            pieces.push(Held { range: LockRange { start: h.range.start, end: range.start - 1 }, ..*h });
        }
        if h.range.end > range.end {
            pieces.push(Held { range: LockRange { start: range.end + 1, end: h.range.end }, ..*h });
        }
        false
    });
    held.extend(pieces);
    if let Some(kind) = kind {
        let mut whole = range;
        held.retain(|h| {
            let joins = h.owner == owner && h.joins(kind, &range, pid);
            if joins {
                whole.start = whole.start.min(h.range.start);
                whole.end = whole.end.max(h.range.end);
            }
            !joins
        });
        held.push(Held { owner, kind, range: whole, pid });
    }
    held.sort_by_key(|h| (h.range.start, h.owner));
}
