//! The lock table: POSIX byte-range locks (fcntl(2)) and flock(2) locks, two spaces that never conflict with each other.
//!
//! Owns who holds which bytes, who waits, and the wait-for graph that finds deadlocks. Must not know sessions, time or
//! I/O: the caller says who asks and is told which waiters a change lets through.
//!
//! Rules, as Linux has them (fs/locks.c):
//! - An owner is a (client, owner) pair. Its own locks never conflict with each other; a new one replaces what it
//!   covers, and neighbours of one kind merge.
//! - A new request is tested against held locks only. Waiters are let through in the order of arrival as soon as no held
//!   lock is in their way.
//! - A POSIX request that would wait for a chain of waiting owners that ends at itself is refused with EDEADLK.
//! - Converting a flock drops the old lock first, so that a conversion which fails or waits has lost it (flock(2)).

mod range;
#[cfg(test)]
mod tests;

use crate::locks::range::Held;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::VecDeque;
use wire::{ClientId, Errno, Ino, LockKind, LockOwner, LockRange, LockSpace, LockType};

/// Bounds of the table. A lock costs about 64 bytes, so the default is 64 MiB for all clients together.
#[derive(Clone, Copy, Debug)]
pub struct LockLimits {
    /// Lock records of one client; beyond it ENOLCK.
    pub per_client: usize,
    /// Lock records and waiters of all clients; beyond it ENOLCK.
    pub total: usize,
    /// Requests of one client that wait; beyond it ENOLCK.
    pub waiters_per_client: usize,
}

impl Default for LockLimits {
    fn default() -> Self {
        Self { per_client: 1 << 16, total: 1 << 20, waiters_per_client: 4096 }
    }
}

/// Who holds or asks: an owner within a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// The session.
    pub client: ClientId,
    /// The owner within it.
    pub owner: LockOwner,
}

/// Name of a request that waits; chosen by the caller, unique among waiters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaiterId(pub u64);

/// A request to take, convert or give back.
#[derive(Clone, Copy, Debug)]
pub struct LockRequest {
    /// The inode.
    pub ino: Ino,
    /// The space.
    pub space: LockSpace,
    /// Who asks.
    pub owner: Owner,
    /// What for.
    pub what: LockType,
    /// Which bytes; ignored for flock, which always means the whole file.
    pub range: LockRange,
    /// Process to report to F_GETLK.
    pub pid: u32,
}

/// What stands in the way of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Kind of the lock held.
    pub kind: LockKind,
    /// Its bytes.
    pub range: LockRange,
    /// Process of its owner, as that client numbers it.
    pub pid: u32,
    /// Its owner.
    pub owner: Owner,
}

/// A lock as a client re-presents it, or as the status report lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRecord {
    /// The inode.
    pub ino: Ino,
    /// The space.
    pub space: LockSpace,
    /// Kind held.
    pub kind: LockKind,
    /// Bytes held.
    pub range: LockRange,
    /// Who holds.
    pub owner: Owner,
    /// Process of the owner.
    pub pid: u32,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Granted,
    /// It waits under the id given.
    Waiting,
    /// Refused: EAGAIN (held by another), EDEADLK, ENOLCK (a bound of the table) or EINVAL (an empty range).
    Refused(Errno),
}

#[derive(Debug)]
struct Waiter {
    id: WaiterId,
    owner: Owner,
    kind: LockKind,
    range: LockRange,
    pid: u32,
}

#[derive(Debug, Default)]
struct FileLocks {
    held: Vec<Held>,
    waiters: VecDeque<Waiter>,
}

type FileKey = (Ino, LockSpace);

/// All locks of a file system.
#[derive(Debug, Default)]
pub struct LockTable {
    limits: LockLimits,
    files: FxHashMap<FileKey, FileLocks>,
    waiting: FxHashMap<WaiterId, FileKey>,
    clients: FxHashMap<ClientId, ClientUse>,
    held: usize,
}

#[derive(Debug, Default)]
struct ClientUse {
    held: usize,
    waiting: usize,
    files: FxHashSet<FileKey>,
}

impl LockTable {
    /// An empty table.
    #[must_use]
    pub fn new(limits: LockLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Lock records held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Requests that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Does this owner's client hold any lock on the inode?
    #[must_use]
    pub fn any_of(&self, client: ClientId, ino: Ino) -> bool {
        self.clients.get(&client).is_some_and(|c| {
            c.files.contains(&(ino, LockSpace::Posix)) || c.files.contains(&(ino, LockSpace::Flock))
        })
    }

    /// The first lock that stands in the way of `kind` on `range` (F_GETLK), if any.
    #[must_use]
    pub fn get(
        &self,
        ino: Ino,
        space: LockSpace,
        owner: Owner,
        kind: LockKind,
        range: LockRange,
    ) -> Option<Conflict> {
        let file = self.files.get(&(ino, space))?;
        let range = whole(space, range);
        file.held.iter().find(|h| h.conflicts(owner, kind, &range)).map(Held::report)
    }

    /// Takes, converts or gives back. `wait` is the id to wait under where another's lock is in the way. Waiters that
    /// this change lets through are appended to `woken`; they hold their locks already.
    pub fn set(&mut self, req: &LockRequest, wait: Option<WaiterId>, woken: &mut Vec<WaiterId>) -> Outcome {
        if req.range.end < req.range.start {
            return Outcome::Refused(Errno::EINVAL);
        }
        let range = whole(req.space, req.range);
        let key = (req.ino, req.space);
        let LockType::Lock(kind) = req.what else {
            self.replace(key, req.owner, None, range, req.pid);
            self.wake(key, woken);
            self.tidy(key);
            return Outcome::Granted;
        };
        if req.space == LockSpace::Flock && self.converts(key, req.owner, kind) {
            self.replace(key, req.owner, None, range, req.pid);
            self.wake(key, woken);
        }
        let outcome = self.take(key, req, kind, range, wait);
        if outcome == Outcome::Granted {
            // A downgrade may let readers through.
            self.wake(key, woken);
        }
        self.tidy(key);
        outcome
    }

    fn take(
        &mut self,
        key: FileKey,
        req: &LockRequest,
        kind: LockKind,
        range: LockRange,
        wait: Option<WaiterId>,
    ) -> Outcome {
        let blocked =
            self.files.get(&key).is_some_and(|f| f.held.iter().any(|h| h.conflicts(req.owner, kind, &range)));
        if !blocked {
            if !self.has_room(req.owner.client) {
                return Outcome::Refused(Errno::ENOLCK);
            }
            self.replace(key, req.owner, Some(kind), range, req.pid);
            return Outcome::Granted;
        }
        let Some(id) = wait else { return Outcome::Refused(Errno::EAGAIN) };
        if req.space == LockSpace::Posix && self.would_deadlock(key, req.owner, kind, &range) {
            return Outcome::Refused(Errno::EDEADLK);
        }
        let client = self.clients.entry(req.owner.client).or_default();
        if client.waiting >= self.limits.waiters_per_client
            || self.waiting.len() + self.held >= self.limits.total
            || self.waiting.contains_key(&id)
        {
            return Outcome::Refused(Errno::ENOLCK);
        }
        client.waiting += 1;
        client.files.insert(key);
        self.waiting.insert(id, key);
        let file = self.files.entry(key).or_default();
        file.waiters.push_back(Waiter { id, owner: req.owner, kind, range, pid: req.pid });
        Outcome::Waiting
    }

    /// A client presents a lock that it held before a restart. Granted unless another client presented a conflicting one.
    pub fn reclaim(&mut self, record: &LockRecord) -> Outcome {
        let req = LockRequest {
            ino: record.ino,
            space: record.space,
            owner: record.owner,
            what: LockType::Lock(record.kind),
            range: record.range,
            pid: record.pid,
        };
        self.set(&req, None, &mut Vec::new())
    }

    /// The request stops waiting. False where it did not wait (any more).
    pub fn cancel(&mut self, id: WaiterId) -> bool {
        let Some(key) = self.waiting.remove(&id) else { return false };
        if let Some(file) = self.files.get_mut(&key)
            && let Some(at) = file.waiters.iter().position(|w| w.id == id)
            && let Some(w) = file.waiters.remove(at)
        {
            self.leave_queue(w.owner.client);
            self.forget_if_unused(w.owner.client, key);
        }
        self.tidy(key);
        true
    }

    /// Drops all that an owner holds or waits for on an inode, in one space. Ids of its own dropped waiters are returned.
    pub fn release_owner(
        &mut self,
        ino: Ino,
        space: LockSpace,
        owner: Owner,
        woken: &mut Vec<WaiterId>,
    ) -> Vec<WaiterId> {
        self.release_where((ino, space), |o| o == owner, woken)
    }

    /// Drops all that a client holds or waits for. Ids of its own dropped waiters are returned.
    pub fn release_client(&mut self, client: ClientId, woken: &mut Vec<WaiterId>) -> Vec<WaiterId> {
        let Some(usage) = self.clients.remove(&client) else { return Vec::new() };
        let mut keys: Vec<FileKey> = usage.files.iter().copied().collect();
        keys.sort_unstable_by_key(|(ino, space)| (*ino, *space as u8));
        self.clients.insert(client, usage);
        let mut dropped = Vec::new();
        for key in keys {
            dropped.extend(self.release_where(key, |o| o.client == client, woken));
        }
        self.clients.remove(&client);
        dropped
    }

    /// Drops everything on an inode that is gone. Ids of the dropped waiters are returned.
    pub fn release_ino(&mut self, ino: Ino) -> Vec<WaiterId> {
        let mut dropped = Vec::new();
        for space in [LockSpace::Posix, LockSpace::Flock] {
            dropped.extend(self.release_where((ino, space), |_| true, &mut Vec::new()));
        }
        dropped
    }

    /// Every lock held, for reports.
    pub fn iter(&self) -> impl Iterator<Item = LockRecord> + '_ {
        self.files.iter().flat_map(|((ino, space), file)| file.held.iter().map(|h| h.record(*ino, *space)))
    }

    fn release_where(
        &mut self,
        key: FileKey,
        matches: impl Fn(Owner) -> bool,
        woken: &mut Vec<WaiterId>,
    ) -> Vec<WaiterId> {
        let Some(mut file) = self.files.remove(&key) else { return Vec::new() };
        let mut dropped = Vec::new();
        let mut touched = FxHashSet::default();
        let mut waiters = VecDeque::with_capacity(file.waiters.len());
        for w in file.waiters.drain(..) {
            if matches(w.owner) {
                self.waiting.remove(&w.id);
                self.leave_queue(w.owner.client);
                touched.insert(w.owner.client);
                dropped.push(w.id);
            } else {
                waiters.push_back(w);
            }
        }
        file.waiters = waiters;
        file.held.retain(|h| {
            let gone = matches(h.owner);
            if gone {
                self.held -= 1;
                if let Some(c) = self.clients.get_mut(&h.owner.client) {
                    c.held -= 1;
                }
                touched.insert(h.owner.client);
            }
            !gone
        });
        self.files.insert(key, file);
        self.wake(key, woken);
        self.tidy(key);
        for client in touched {
            self.forget_if_unused(client, key);
        }
        dropped
    }

    fn has_room(&self, client: ClientId) -> bool {
        // One request may split a record in two and add one: two more at most.
        let mine = self.clients.get(&client).map_or(0, |c| c.held);
        mine + 2 <= self.limits.per_client && self.held + self.waiting.len() + 2 <= self.limits.total
    }

    fn converts(&self, key: FileKey, owner: Owner, kind: LockKind) -> bool {
        self.files.get(&key).is_some_and(|f| f.held.iter().any(|h| h.owner == owner && h.kind != kind))
    }

    fn replace(&mut self, key: FileKey, owner: Owner, kind: Option<LockKind>, range: LockRange, pid: u32) {
        if kind.is_none() && !self.files.contains_key(&key) {
            return;
        }
        let file = self.files.entry(key).or_default();
        let before = file.held.len();
        range::replace(&mut file.held, owner, kind, range, pid);
        let after = file.held.len();
        self.held = self.held + after - before;
        let client = self.clients.entry(owner.client).or_default();
        client.held = client.held + after - before;
        client.files.insert(key);
        self.forget_if_unused(owner.client, key);
    }

    fn wake(&mut self, key: FileKey, woken: &mut Vec<WaiterId>) {
        let mut at = 0;
        while let Some(file) = self.files.get_mut(&key) {
            let Some(w) = file.waiters.get(at) else { return };
            if file.held.iter().any(|h| h.conflicts(w.owner, w.kind, &w.range)) {
                at += 1;
                continue;
            }
            let Some(w) = file.waiters.remove(at) else { return };
            self.waiting.remove(&w.id);
            self.leave_queue(w.owner.client);
            self.replace(key, w.owner, Some(w.kind), w.range, w.pid);
            woken.push(w.id);
        }
    }

    /// Would `owner`, waiting for `range`, close a cycle of waiting owners?
    fn would_deadlock(&self, key: FileKey, owner: Owner, kind: LockKind, range: &LockRange) -> bool {
        let mut seen = FxHashSet::default();
        let mut todo: Vec<Owner> = self.blockers(key, owner, kind, range).collect();
        // Waits of each owner, so that the walk is linear in the number of waiters.
        let mut waits: FxHashMap<Owner, Vec<(FileKey, &Waiter)>> = FxHashMap::default();
        for key in self.waiting.values().filter(|k| k.1 == LockSpace::Posix).collect::<FxHashSet<_>>() {
            for w in self.files.get(key).into_iter().flat_map(|f| &f.waiters) {
                waits.entry(w.owner).or_default().push((*key, w));
            }
        }
        while let Some(next) = todo.pop() {
            if next == owner {
                return true;
            }
            if !seen.insert(next) {
                continue;
            }
            for (key, w) in waits.get(&next).into_iter().flatten() {
                todo.extend(self.blockers(*key, w.owner, w.kind, &w.range));
            }
        }
        false
    }

    fn blockers<'a>(
        &'a self,
        key: FileKey,
        owner: Owner,
        kind: LockKind,
        range: &'a LockRange,
    ) -> impl Iterator<Item = Owner> + 'a {
        let held = self.files.get(&key).into_iter().flat_map(|f| &f.held);
        held.filter(move |h| h.conflicts(owner, kind, range)).map(|h| h.owner)
    }

    fn leave_queue(&mut self, client: ClientId) {
        if let Some(c) = self.clients.get_mut(&client) {
            c.waiting = c.waiting.saturating_sub(1);
        }
    }

    fn forget_if_unused(&mut self, client: ClientId, key: FileKey) {
        let used = self.files.get(&key).is_some_and(|f| {
            f.held.iter().any(|h| h.owner.client == client)
                || f.waiters.iter().any(|w| w.owner.client == client)
        });
        if used {
            return;
        }
        if let Some(c) = self.clients.get_mut(&client) {
            c.files.remove(&key);
            if c.held == 0 && c.waiting == 0 && c.files.is_empty() {
                self.clients.remove(&client);
            }
        }
    }

    fn tidy(&mut self, key: FileKey) {
        if self.files.get(&key).is_some_and(|f| f.held.is_empty() && f.waiters.is_empty()) {
            self.files.remove(&key);
        }
    }
}

fn whole(space: LockSpace, range: LockRange) -> LockRange {
    match space {
        LockSpace::Posix => range,
        LockSpace::Flock => LockRange::ALL,
    }
}
