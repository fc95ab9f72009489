//! Who has which inode open. In memory: clients name their opens again after a restart, orphans are logged.
//!
//! Owns handles. Must not decide what a last close means.

use crate::limits;
use std::collections::{BTreeMap, HashMap};
use wire::{ClientId, Ino, Slot};

#[derive(Clone, Copy, Debug)]
struct Open {
    ino: Ino,
    flags: u32,
}

/// All opens of all clients.
#[derive(Debug, Default)]
pub(crate) struct Opens {
    clients: HashMap<ClientId, BTreeMap<u64, Open>>,
    count: HashMap<Ino, u32>,
    /// Known only from a stored reply, which the client may never have seen: they live until the slot is used again.
    tentative: HashMap<(ClientId, Slot), u64>,
    next: u64,
}

impl Opens {
    /// Handles are unique over restarts: the boot epoch is their upper half.
    pub(crate) fn start(&mut self, boot: u64) {
        self.next = (boot << 32) + 1;
    }
    /// The handle that the next open gets.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }
    pub(crate) fn is_open(&self, ino: Ino) -> bool {
        self.count.contains_key(&ino)
    }
    pub(crate) fn is_full(&self, client: ClientId) -> bool {
        self.clients.get(&client).is_some_and(|o| o.len() >= limits::CLIENT_OPENS_MAX)
    }
    /// Inode and flags of a handle.
    pub(crate) fn get(&self, client: ClientId, handle: u64) -> Option<(Ino, u32)> {
        self.clients.get(&client)?.get(&handle).map(|o| (o.ino, o.flags))
    }
    /// Opens of a client: handle, inode, flags.
    pub(crate) fn of(&self, client: ClientId) -> impl Iterator<Item = (u64, Ino, u32)> {
        self.clients.get(&client).into_iter().flatten().map(|(h, o)| (*h, o.ino, o.flags))
    }
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.clients.values().map(BTreeMap::len).sum()
    }

    /// Marks a handle as given out.
    pub(crate) fn used(&mut self, handle: u64) {
        self.next = self.next.max(handle + 1);
    }
    /// Adds an open that is known only from a stored reply.
    pub(crate) fn add_tentative(&mut self, client: ClientId, slot: Slot, handle: u64, ino: Ino) {
        self.add(client, handle, ino, 0);
        self.tentative.insert((client, slot), handle);
    }

    /// Adds an open; naming one again confirms it.
    pub(crate) fn add(&mut self, client: ClientId, handle: u64, ino: Ino, flags: u32) {
        if !self.tentative.is_empty() {
            self.tentative.retain(|(c, _), h| (*c, *h) != (client, handle));
        }
        let open = Open { ino, flags };
        match self.clients.entry(client).or_default().insert(handle, open) {
            Some(old) if old.ino == ino => {}
            Some(old) => {
                self.uncount(old.ino);
                *self.count.entry(ino).or_default() += 1;
            }
            None => *self.count.entry(ino).or_default() += 1,
        }
    }
    fn uncount(&mut self, ino: Ino) {
        if let Some(n) = self.count.get_mut(&ino) {
            *n -= 1;
            if *n == 0 {
                self.count.remove(&ino);
            }
        }
    }
    /// Closes a handle; gives its inode.
    pub(crate) fn remove(&mut self, client: ClientId, handle: u64) -> Option<Ino> {
        let opens = self.clients.get_mut(&client)?;
        let open = opens.remove(&handle)?;
        if opens.is_empty() {
            self.clients.remove(&client);
        }
        self.uncount(open.ino);
        Some(open.ino)
    }
    /// Would closing this handle leave the inode without any open?
    pub(crate) fn is_last(&self, client: ClientId, handle: u64) -> Option<Ino> {
        let (ino, _) = self.get(client, handle)?;
        (self.count.get(&ino) == Some(&1)).then_some(ino)
    }
    /// The handle that is known only from this slot's stored reply; asked when the slot is used again.
    pub(crate) fn take_tentative(&mut self, client: ClientId, slot: Slot) -> Option<u64> {
        if self.tentative.is_empty() { None } else { self.tentative.remove(&(client, slot)) }
    }
    /// Any handle of a client.
    pub(crate) fn any(&self, client: ClientId) -> Option<u64> {
        self.clients.get(&client)?.keys().next().copied()
    }
}
