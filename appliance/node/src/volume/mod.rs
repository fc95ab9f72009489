//! The namespace volume: a byte array on ordinary chunks, kept twice, under the namespace's checkpoint database.
//!
//! The database blocks and has threads of its own; the chunk store lives on reactors. [`Volume`] is the database's end
//! (redb's `StorageBackend`), [`Server`] the reactor's; a bounded mailbox lies between. A write is queued and
//! returns; what went wrong with it is told by the next `sync_data`, as a disk's cache does.
//!
//! Each byte stands in two objects. Reads take the first copy; where that is damaged or lost they take the second and
//! write it back over the first, counted in [`Counters`]. After an unclean stop the copies may differ in what was not
//! synced yet, so [`Server::resync`] makes the second equal to the first.
//!
//! Must not know the namespace's keys, nor how chunks reach their shards ([`CopyStore`] does).

mod backend;
mod copies;
mod server;
#[cfg(test)]
mod tests;

pub use backend::Volume;
pub use copies::{CopyStore, Counters, StoreError};
pub use server::{Request, Server};

use wire::ObjectId;

/// The two objects of the volume; files are numbered from 1 on and never come this far.
pub const COPIES: [ObjectId; 2] = [ObjectId(u64::MAX - 1), ObjectId(u64::MAX - 2)];

/// Requests waiting between the database and the reactor; the database's threads block beyond it.
pub const QUEUE: usize = 64;
/// Writes under way at once; bounds the memory of queued writes to this many pages of the database.
const WRITES: usize = 64;

/// A mailbox for a volume: the database's end and the reactor's.
pub fn channel() -> (Volume, reactor::mail::Receiver<Request>) {
    let (sender, receiver) = reactor::mail::channel(QUEUE);
    let send = move |request| sender.send_blocking(request).map_err(|_| backend::gone());
    (Volume::new(send), receiver)
}
