//! Leases: which client may cache what of which inode, and who must give back before an operation may run.
//!
//! Owns holders, recalls under way, operations that wait, and the policy of granting. Must not know sessions, names or
//! I/O: times are passed in, orders to recall are returned.
//!
//! A lease is a permission to cache, never a right to operate:
//! - A modifying operation waits until the leases of *other* clients are back. A reading one waits for nobody: every
//!   change goes through the server, so no holder knows more than it does. It has an Exclusive lease of another client
//!   brought down to Shared, for those who come after it.
//! - One that will be cached ([`Need::cache`]) waits for others' Exclusive, for their changes under way, and behind
//!   others' changes that wait, so that readers in a loop can't starve a writer. No other operation waits behind one that
//!   waits: it may hold kernel locks at its client which the awaited invalidation needs.
//! - A holder's own operations never wait behind an operation that caused a recall, for the same reason.
//! - A request of a holder whose lease is being recalled is given its old serial again, never a new one: the recall
//!   covers it, and a reader in a loop can't keep a writer waiting.
//! - An operation that takes time (file data) holds its admission until it is over: nobody is granted a lease on what
//!   another client is changing at that moment, since what it read may be old by the time it caches it. A lease that
//!   goes with a read is granted before the read starts, so that a later change recalls it.
//! - Grants are opportunistic: none while something waits or is being recalled, and none for [`LeaseLimits::cool_down`]
//!   after, nor for as long as several clients go on using it, so that a shared directory settles without leases.
//!   [`Want::Forced`] is the exception (the kernel will cache).

mod grant;
#[cfg(test)]
mod tests;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use wire::{ClientId, Ino, LeaseMode};

/// Milliseconds of a clock that only grows, as the shell counts them.
pub type Millis = u64;

/// A cool-down is prolonged in steps of this many milliseconds, so that its queue stays short.
const EXTEND: Millis = 100;

/// Bounds and times. A lease costs about 150 bytes, so the default is 150 MiB for all clients together.
#[derive(Clone, Copy, Debug)]
pub struct LeaseLimits {
    /// Leases of one client; beyond it nothing is granted and the oldest is recalled.
    pub per_client: usize,
    /// Leases of all clients, likewise.
    pub total: usize,
    /// How long an inode gets no opportunistic grants after contention.
    pub cool_down: Duration,
    /// How long a client may take to give back before it is fenced.
    pub recall: Duration,
}

impl Default for LeaseLimits {
    fn default() -> Self {
        Self {
            per_client: 1 << 18,
            total: 1 << 20,
            cool_down: Duration::from_secs(1),
            recall: Duration::from_secs(10),
        }
    }
}

/// What an operation does to an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Access {
    /// Looks at it.
    Read,
    /// Changes it.
    Modify,
}

/// One inode of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// The inode.
    pub ino: Ino,
    /// What happens to it.
    pub access: Access,
    /// The client caches what it reads, for certain: wait for changes by others that are under way too.
    pub cache: bool,
}

impl Need {
    /// Looks at it.
    #[must_use]
    pub const fn read(ino: Ino) -> Self {
        Self { ino, access: Access::Read, cache: false }
    }
    /// Changes it.
    #[must_use]
    pub const fn modify(ino: Ino) -> Self {
        Self { ino, access: Access::Modify, cache: false }
    }
}

/// What a client would like to be granted with a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Shared if it costs nobody anything.
    Shared,
    /// Exclusive if alone, else Shared, if it costs nobody anything.
    Exclusive,
    /// Shared for certain: the caller has made sure that nothing conflicts.
    Forced,
}

/// Order of arrival of an operation; unique, global.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Tell a client to give back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecallOrder {
    /// The holder.
    pub client: ClientId,
    /// The inode.
    pub ino: Ino,
    /// What it may keep.
    pub keep: LeaseMode,
    /// The highest serial that is taken back.
    pub serial: u64,
}

/// Orders to send; mostly one.
pub type Recalls = SmallVec<[RecallOrder; 2]>;

/// What the caller has to do after a change.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Recalls to send.
    pub recalls: Recalls,
    /// Operations to ask again for, in this order.
    pub ready: Vec<Ticket>,
}

/// May the operation run?
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Now.
    Go,
    /// It is queued; ask again when its ticket is named by a change.
    Wait,
}

#[derive(Clone, Copy, Debug)]
struct Holder {
    client: ClientId,
    mode: LeaseMode,
    serial: u64,
    recall: Option<Recall>,
}

#[derive(Clone, Copy, Debug)]
struct Recall {
    keep: LeaseMode,
    since: Millis,
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    client: ClientId,
    access: Access,
}

impl Entry {
    fn is_unused(&self) -> bool {
        self.waiters.is_empty() && self.holders.is_empty() && self.active.is_empty() && self.cool_until == 0
    }
    fn changing(&self, client: ClientId) -> bool {
        self.active.iter().any(|a| a.client != client && a.access == Access::Modify)
    }
}

#[derive(Clone, Copy, Debug)]
struct Active {
    ticket: Ticket,
    client: ClientId,
    access: Access,
}

#[derive(Debug, Default)]
struct Entry {
    holders: SmallVec<[Holder; 2]>,
    active: SmallVec<[Active; 2]>,
    waiters: BTreeMap<Ticket, Waiter>,
    cool_until: Millis,
    /// Who used it last while it cooled down.
    last: Option<ClientId>,
}

#[derive(Debug, Default)]
struct ClientUse {
    /// Leases in the order of granting, with stale entries where one was given back since.
    order: VecDeque<(Ino, u64)>,
    held: usize,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseStats {
    /// Grants of a new lease or a higher mode.
    pub granted: u64,
    /// Recalls ordered.
    pub recalled: u64,
    /// Operations that had to wait.
    pub waited: u64,
    /// Leases recalled because a bound was reached.
    pub evicted: u64,
    /// Leases dropped with a fenced client.
    pub fenced: u64,
}

/// All leases of a file system.
#[derive(Debug, Default)]
pub struct LeaseTable {
    limits: LeaseLimits,
    inodes: FxHashMap<Ino, Entry>,
    clients: FxHashMap<ClientId, ClientUse>,
    waiting: FxHashMap<Ticket, SmallVec<[Ino; 4]>>,
    active: FxHashMap<Ticket, SmallVec<[Ino; 4]>>,
    /// Inodes with a recall under way, by its start.
    recalls: BTreeMap<(Millis, Ino, ClientId), ()>,
    cooling: VecDeque<(Millis, Ino)>,
    held: usize,
    serial: u64,
    stats: LeaseStats,
}

impl LeaseTable {
    /// An empty table. Serials start above `first_serial`: the shell passes the boot epoch in the upper bits, so that a
    /// serial of an earlier life is never taken for a new one.
    #[must_use]
    pub fn new(limits: LeaseLimits, first_serial: u64) -> Self {
        Self { limits, serial: first_serial, ..Self::default() }
    }

    /// Leases held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Operations that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Recalls under way.
    #[must_use]
    pub fn recalling(&self) -> usize {
        self.recalls.len()
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> LeaseStats {
        self.stats
    }

    /// What a client holds on an inode.
    #[must_use]
    pub fn mode_of(&self, client: ClientId, ino: Ino) -> LeaseMode {
        let holder = self.inodes.get(&ino).and_then(|e| e.holders.iter().find(|h| h.client == client));
        holder.map_or(LeaseMode::None, |h| h.mode)
    }

    /// May `client` do all of `needs` now? If not it is queued under `ticket` and the recalls to send are appended.
    /// Asking again under the same ticket replaces the earlier question. With `hold` an admitted operation counts as
    /// under way until [`Self::leave`]. Tickets that may try again because this one moved on are appended to `ready`.
    pub fn admit(
        &mut self,
        now: Millis,
        client: ClientId,
        ticket: Ticket,
        needs: &[Need],
        hold: bool,
        changes: &mut Changes,
    ) -> Admission {
        let before = self.unqueue(ticket);
        if !needs.iter().any(|n| self.blocked(n, client, ticket)) {
            for need in needs {
                self.settle_down(now, need, client, &mut changes.recalls);
            }
            if hold {
                self.begin(client, ticket, needs);
            }
            for ino in before.into_iter().flatten() {
                self.ready(ino, &mut changes.ready);
                self.tidy(now, ino);
            }
            return Admission::Go;
        }
        self.stats.waited += u64::from(before.is_none());
        let mut inos: SmallVec<[Ino; 4]> = SmallVec::new();
        for need in needs {
            let entry = self.inodes.entry(need.ino).or_default();
            let access = entry.waiters.get(&ticket).map_or(need.access, |w| w.access.max(need.access));
            entry.waiters.insert(ticket, Waiter { client, access });
            inos.push(need.ino);
            self.recall_conflicting(now, need, client, &mut changes.recalls);
        }
        for ino in before.into_iter().flatten().filter(|i| !inos.contains(i)) {
            self.ready(ino, &mut changes.ready);
            self.tidy(now, ino);
        }
        self.waiting.insert(ticket, inos);
        Admission::Wait
    }

    /// The operation of a ticket is over or was cancelled: it no longer holds up others, whose tickets are appended to
    /// `ready`.
    pub fn leave(&mut self, now: Millis, ticket: Ticket, ready: &mut Vec<Ticket>) {
        for ino in self.active.remove(&ticket).into_iter().flatten() {
            if let Some(e) = self.inodes.get_mut(&ino) {
                e.active.retain(|a| a.ticket != ticket);
            }
            self.ready(ino, ready);
            self.tidy(now, ino);
        }
        for ino in self.unqueue(ticket).into_iter().flatten() {
            self.ready(ino, ready);
            self.tidy(now, ino);
        }
    }

    /// A client gave back down to `keep`, up to a serial. Tickets that may try again are appended to `ready`.
    pub fn returned(
        &mut self,
        now: Millis,
        client: ClientId,
        ino: Ino,
        keep: LeaseMode,
        serial: u64,
        ready: &mut Vec<Ticket>,
    ) {
        let Some(entry) = self.inodes.get_mut(&ino) else { return };
        let Some(at) = entry.holders.iter().position(|h| h.client == client) else { return };
        let holder = &mut entry.holders[at];
        if holder.serial > serial {
            return;
        }
        let recall = holder.recall;
        holder.mode = holder.mode.min(keep);
        let satisfied = recall.is_none_or(|r| holder.mode <= r.keep);
        if satisfied && let Some(r) = holder.recall.take() {
            self.recalls.remove(&(r.since, ino, client));
        }
        let mode = holder.mode;
        if mode == LeaseMode::None {
            entry.holders.swap_remove(at);
            self.forget(client);
        }
        if recall.is_some() {
            self.cool(now, ino);
        }
        self.ready(ino, ready);
        self.tidy(now, ino);
    }

    /// A client is fenced or gone: all that it held is free. Tickets that may try again are appended to `ready`.
    pub fn drop_client(&mut self, now: Millis, client: ClientId, ready: &mut Vec<Ticket>) {
        let mine: Vec<Ticket> = self
            .waiting
            .iter()
            .filter(|(t, inos)| inos.iter().any(|i| self.waits_for(**t, *i, client)))
            .map(|(t, _)| *t)
            .collect();
        for ticket in mine {
            self.leave(now, ticket, ready);
        }
        let Some(usage) = self.clients.remove(&client) else { return };
        for (ino, _) in usage.order {
            let Some(entry) = self.inodes.get_mut(&ino) else { continue };
            let Some(at) = entry.holders.iter().position(|h| h.client == client) else { continue };
            if let Some(r) = entry.holders[at].recall {
                self.recalls.remove(&(r.since, ino, client));
            }
            entry.holders.swap_remove(at);
            self.held -= 1;
            self.stats.fenced += 1;
            self.ready(ino, ready);
            self.tidy(now, ino);
        }
    }

    /// The inode is gone: nobody caches it.
    pub fn drop_ino(&mut self, ino: Ino, ready: &mut Vec<Ticket>) {
        self.ready(ino, ready);
        let Some(mut entry) = self.inodes.remove(&ino) else { return };
        for h in entry.holders.drain(..) {
            if let Some(r) = h.recall {
                self.recalls.remove(&(r.since, ino, h.client));
            }
            self.forget(h.client);
        }
        if !entry.waiters.is_empty() || !entry.active.is_empty() {
            self.inodes.insert(ino, entry);
        }
    }

    /// Clients whose recall is older than the limit; the caller fences them.
    #[must_use]
    pub fn overdue(&self, now: Millis) -> Vec<ClientId> {
        let limit = self.limits.recall.as_millis() as Millis;
        let mut late: Vec<ClientId> = Vec::new();
        for (since, _, client) in self.recalls.keys() {
            if since.saturating_add(limit) > now {
                break;
            }
            if !late.contains(client) {
                late.push(*client);
            }
        }
        late
    }

    /// The recalls under way towards one client, to be sent again on a new connection.
    #[must_use]
    pub fn recalls_of(&self, client: ClientId) -> Vec<RecallOrder> {
        let of = self.recalls.keys().filter(|(_, _, c)| *c == client);
        of.filter_map(|(_, ino, _)| {
            let holder = self.inodes.get(ino)?.holders.iter().find(|h| h.client == client)?;
            Some(RecallOrder { client, ino: *ino, keep: holder.recall?.keep, serial: holder.serial })
        })
        .collect()
    }

    /// Gives recalls under way a fresh start, after the server itself was suspended.
    pub fn extend_recalls(&mut self, now: Millis) {
        for (since, ino, client) in std::mem::take(&mut self.recalls).into_keys() {
            let holder =
                self.inodes.get_mut(&ino).and_then(|e| e.holders.iter_mut().find(|h| h.client == client));
            if let Some(r) = holder.and_then(|h| h.recall.as_mut()) {
                r.since = since.max(now);
                self.recalls.insert((r.since, ino, client), ());
            }
        }
    }

    /// Forgets inodes whose cool-down is over.
    pub fn tick(&mut self, now: Millis) {
        while let Some((until, ino)) = self.cooling.front().copied() {
            if until > now {
                break;
            }
            self.cooling.pop_front();
            self.tidy(now, ino);
        }
    }

    fn blocked(&self, need: &Need, client: ClientId, ticket: Ticket) -> bool {
        if need.access == Access::Read && !need.cache {
            return false;
        }
        let Some(entry) = self.inodes.get(&need.ino) else { return false };
        if entry.holders.iter().any(|h| h.client != client && conflicts(h.mode, need.access)) {
            return true;
        }
        if !need.cache {
            return false;
        }
        if entry.changing(client) {
            return true;
        }
        if entry.holders.iter().any(|h| h.client == client) {
            return false;
        }
        entry
            .waiters
            .range(..ticket)
            .any(|(_, w)| w.client != client && (w.access == Access::Modify || need.access == Access::Modify))
    }

    /// An admitted operation uses an inode: others' Exclusive leases come down to Shared, and what several clients use goes
    /// on cooling down.
    fn settle_down(&mut self, now: Millis, need: &Need, client: ClientId, recalls: &mut Recalls) {
        let Some(entry) = self.inodes.get_mut(&need.ino) else { return };
        if entry.cool_until > now {
            let others = entry.last.replace(client).is_some_and(|last| last != client);
            let since = self.limits.cool_down.as_millis() as Millis - (entry.cool_until - now);
            if others && since >= EXTEND {
                self.cool(now, need.ino);
            }
        }
        if need.access == Access::Read {
            self.recall_conflicting(now, need, client, recalls);
        }
    }

    fn begin(&mut self, client: ClientId, ticket: Ticket, needs: &[Need]) {
        let mut inos = SmallVec::new();
        for need in needs {
            let entry = self.inodes.entry(need.ino).or_default();
            entry.active.push(Active { ticket, client, access: need.access });
            inos.push(need.ino);
        }
        self.active.insert(ticket, inos);
    }

    fn recall_conflicting(&mut self, now: Millis, need: &Need, client: ClientId, recalls: &mut Recalls) {
        let Some(entry) = self.inodes.get_mut(&need.ino) else { return };
        let keep = match need.access {
            Access::Read => LeaseMode::Shared,
            Access::Modify => LeaseMode::None,
        };
        for h in &mut entry.holders {
            if h.client == client || !conflicts(h.mode, need.access) {
                continue;
            }
            match &mut h.recall {
                Some(r) if r.keep <= keep => continue,
                Some(r) => r.keep = keep,
                none => {
                    *none = Some(Recall { keep, since: now });
                    self.recalls.insert((now, need.ino, h.client), ());
                }
            }
            self.stats.recalled += 1;
            recalls.push(RecallOrder { client: h.client, ino: need.ino, keep, serial: h.serial });
        }
    }

    /// Removes a ticket from every queue; the inodes that it waited for, `None` where it was in none.
    fn unqueue(&mut self, ticket: Ticket) -> Option<SmallVec<[Ino; 4]>> {
        let inos = self.waiting.remove(&ticket)?;
        for ino in &inos {
            if let Some(e) = self.inodes.get_mut(ino) {
                e.waiters.remove(&ticket);
            }
        }
        Some(inos)
    }

    fn waits_for(&self, ticket: Ticket, ino: Ino, client: ClientId) -> bool {
        self.inodes.get(&ino).and_then(|e| e.waiters.get(&ticket)).is_some_and(|w| w.client == client)
    }

    fn ready(&self, ino: Ino, ready: &mut Vec<Ticket>) {
        if let Some(entry) = self.inodes.get(&ino) {
            ready.extend(
                entry.waiters.keys().filter(|t| !ready.contains(t)).copied().collect::<SmallVec<[_; 8]>>(),
            );
        }
    }

    fn cool(&mut self, now: Millis, ino: Ino) {
        let until = now + self.limits.cool_down.as_millis() as Millis;
        if let Some(entry) = self.inodes.get_mut(&ino) {
            entry.cool_until = until;
            self.cooling.push_back((until, ino));
        }
    }

    fn tidy(&mut self, now: Millis, ino: Ino) {
        if let Some(e) = self.inodes.get_mut(&ino) {
            if e.cool_until <= now {
                e.cool_until = 0;
            }
            if e.is_unused() {
                self.inodes.remove(&ino);
            }
        }
    }

    fn forget(&mut self, client: ClientId) {
        self.held -= 1;
        if let Some(c) = self.clients.get_mut(&client) {
            c.held -= 1;
            if c.held == 0 {
                self.clients.remove(&client);
            }
        }
    }
}

fn conflicts(held: LeaseMode, access: Access) -> bool {
    match access {
        Access::Read => held == LeaseMode::Exclusive,
        Access::Modify => held != LeaseMode::None,
    }
}
