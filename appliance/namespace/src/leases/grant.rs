//! When to grant: opportunistic, forced, reclaimed; and what to take back when a bound is reached.

use super::{ClientUse, Entry, Holder, LeaseTable, Millis, Recall, RecallOrder, Recalls, Want};
use wire::{ClientId, Grant, Ino, LeaseMode};

/// The order of grants is swept when it has this many times more entries than leases.
const SWEEP_FACTOR: usize = 4;

impl LeaseTable {
    /// Grants with a reply to an operation that was just admitted, or tells what the client holds already.
    /// Recalls that make room are appended.
    pub fn grant(
        &mut self,
        now: Millis,
        client: ClientId,
        ino: Ino,
        want: Want,
        recalls: &mut Recalls,
    ) -> Grant {
        let full = self.is_full(client);
        let Some(entry) = self.inodes.get(&ino) else {
            if full && want != Want::Forced {
                self.make_room(now, client, recalls);
                return Grant::none();
            }
            let mode = if want == Want::Exclusive { LeaseMode::Exclusive } else { LeaseMode::Shared };
            return self.give(now, client, ino, mode, full, recalls);
        };
        let held = entry.holders.iter().find(|h| h.client == client).copied();
        let others = entry.holders.iter().any(|h| h.client != client);
        let foreign_exclusive =
            entry.holders.iter().any(|h| h.client != client && h.mode == LeaseMode::Exclusive);
        let contended = entry.holders.iter().any(|h| h.recall.is_some())
            || entry.waiters.values().any(|w| w.client != client)
            || entry.changing(client)
            || entry.cool_until > now;
        if let Some(h) = held {
            let upgrade = want == Want::Exclusive && h.mode == LeaseMode::Shared && !others && !contended;
            if !upgrade {
                return Grant::new(ino, h.mode, h.serial);
            }
            return self.give(now, client, ino, LeaseMode::Exclusive, false, recalls);
        }
        if foreign_exclusive {
            return Grant::none();
        }
        let mode = match want {
            Want::Forced => LeaseMode::Shared,
            _ if contended => return Grant::none(),
            Want::Exclusive if !others => LeaseMode::Exclusive,
            Want::Exclusive | Want::Shared => LeaseMode::Shared,
        };
        if full && want != Want::Forced {
            self.make_room(now, client, recalls);
            return Grant::none();
        }
        self.give(now, client, ino, mode, full, recalls)
    }

    /// A client presents a lease that it held before a restart. The answer is what it holds now: the same or nothing.
    pub fn reclaim(&mut self, client: ClientId, ino: Ino, mode: LeaseMode) -> Grant {
        if mode == LeaseMode::None || self.is_full(client) {
            return Grant::none();
        }
        let others = self.inodes.get(&ino).map_or(&[][..], |e| &e.holders[..]);
        let clash = others
            .iter()
            .any(|h| h.client != client && (h.mode == LeaseMode::Exclusive || mode == LeaseMode::Exclusive));
        if clash {
            return Grant::none();
        }
        self.give(0, client, ino, mode, false, &mut Recalls::new())
    }

    fn give(
        &mut self,
        now: Millis,
        client: ClientId,
        ino: Ino,
        mode: LeaseMode,
        full: bool,
        recalls: &mut Recalls,
    ) -> Grant {
        if full {
            self.make_room(now, client, recalls);
        }
        self.serial += 1;
        let serial = self.serial;
        let entry: &mut Entry = self.inodes.entry(ino).or_default();
        let usage: &mut ClientUse = self.clients.entry(client).or_default();
        match entry.holders.iter_mut().find(|h| h.client == client) {
            Some(h) => {
                h.mode = h.mode.max(mode);
                h.serial = serial;
            }
            None => {
                entry.holders.push(Holder { client, mode, serial, recall: None });
                usage.held += 1;
                self.held += 1;
            }
        }
        usage.order.push_back((ino, serial));
        self.stats.granted += 1;
        self.sweep(client);
        Grant::new(ino, mode, serial)
    }

    fn is_full(&self, client: ClientId) -> bool {
        self.held >= self.limits.total
            || self.clients.get(&client).is_some_and(|c| c.held >= self.limits.per_client)
    }

    /// Recalls the oldest lease of the client that is not being recalled yet.
    fn make_room(&mut self, now: Millis, client: ClientId, recalls: &mut Recalls) {
        let Some(usage) = self.clients.get_mut(&client) else { return };
        for _ in 0..usage.order.len() {
            let Some((ino, serial)) = usage.order.pop_front() else { return };
            let holder = self
                .inodes
                .get_mut(&ino)
                .and_then(|e| e.holders.iter_mut().find(|h| h.client == client && h.serial == serial));
            let Some(h) = holder else { continue };
            // It stays in the order until it is back, so that dropping the client finds it.
            usage.order.push_back((ino, serial));
            if h.recall.is_none() {
                h.recall = Some(Recall { keep: LeaseMode::None, since: now });
                self.recalls.insert((now, ino, client), ());
                self.stats.evicted += 1;
                recalls.push(RecallOrder { client, ino, keep: LeaseMode::None, serial });
                return;
            }
        }
    }

    /// Drops entries of the order whose lease was given back since.
    fn sweep(&mut self, client: ClientId) {
        let Some(usage) = self.clients.get_mut(&client) else { return };
        if usage.order.len() < 64 || usage.order.len() < usage.held * SWEEP_FACTOR {
            return;
        }
        let inodes = &self.inodes;
        usage.order.retain(|(ino, serial)| {
            inodes
                .get(ino)
                .is_some_and(|e| e.holders.iter().any(|h| h.client == client && h.serial == *serial))
        });
    }
}
