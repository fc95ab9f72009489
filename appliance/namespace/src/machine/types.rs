//! What goes into the machine and comes out of it: names, times, bounds, events, actions.
//!
//! Owns the vocabulary between machine and shell. Must not hold behaviour.

use super::{Admitted, DataOp};
use crate::leases::{LeaseLimits, Millis, RecallOrder, Ticket};
use crate::locks::LockLimits;
use crate::record::{Record, Seq};
use crate::sessions::SessionLimits;
use crate::view::{Fetched, Miss};
use wire::{BodyBuf, ClientId, FenceReason, Header, Ino, ObjectId, Status, Timestamp};

/// The shell's name for a request; chosen by it, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(pub u64);

/// The time of an event: the one that only grows, and the one on the wall.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Milliseconds since some moment; leases and sessions.
    pub mono: Millis,
    /// For time stamps of files.
    pub wall: Timestamp,
}

/// Bounds of the machine.
#[derive(Clone, Copy, Debug)]
pub struct MachineLimits {
    /// Sessions and their times.
    pub sessions: SessionLimits,
    /// Leases.
    pub leases: LeaseLimits,
    /// Locks.
    pub locks: LockLimits,
    /// Requests inside the machine, waiting or not; beyond it Busy. One costs its body and about 300 bytes.
    pub pending: usize,
}

impl Default for MachineLimits {
    fn default() -> Self {
        Self {
            sessions: SessionLimits::default(),
            leases: LeaseLimits::default(),
            locks: LockLimits::default(),
            pending: 1 << 16,
        }
    }
}

/// What happens to the machine.
#[derive(Debug)]
pub enum Event {
    /// A request of a client; everything but file data and administration.
    Request {
        /// The shell's name for it.
        id: OpId,
        /// Its header.
        header: Header,
        /// Its body.
        body: Vec<u8>,
        /// Its payload (values of extended attributes).
        payload: Vec<u8>,
    },
    /// A data operation asks to be let in.
    Data(DataOp),
    /// An admitted data operation is over.
    DataDone(OpId),
    /// Rows that an action asked for.
    Fetched {
        /// As the action said.
        ticket: Ticket,
        /// The rows.
        rows: Fetched,
    },
    /// Rows that an action asked for can't be read.
    FetchFailed(Ticket),
    /// The log is on the device up to and including this record.
    Durable(Seq),
    /// The log can't be written any more: whatever waits for it is answered EIO, changes are refused from now on.
    LogFailed,
    /// A truncation was carried out on the chunks.
    Truncated {
        /// As the action said.
        ticket: Ticket,
        /// Entry of the free list that is done with.
        entry: u64,
        /// It failed: the answer is EIO, the entry stays for the next start.
        failed: bool,
    },
    /// The client no longer wants an answer. That the connection of a request with a slot is gone says no such thing: its
    /// client will ask again.
    Cancel(OpId),
    /// A connection of this client stands.
    Heard(ClientId),
    /// Nothing is stored any more of the requests of a client whose session ended.
    Forgotten(ClientId),
    /// Time has passed.
    Tick,
}

/// What the shell has to do.
#[derive(Debug)]
pub enum Action {
    /// Answer a request.
    Reply {
        /// Which.
        id: OpId,
        /// How it ended.
        status: Status,
        /// Body, empty unless the status is Ok.
        body: BodyBuf,
        /// Payload.
        payload: Vec<u8>,
    },
    /// Append to the log; actions come in the order of `Record::seq`.
    Append(Record),
    /// Fetch rows, then [`Event::Fetched`].
    Fetch {
        /// To be given back.
        ticket: Ticket,
        /// What is missing.
        miss: Miss,
    },
    /// Send a recall to a client.
    Recall(RecallOrder),
    /// A client is thrown out: tell it, drop its connections, forget its requests in the shards, then [`Event::Forgotten`].
    Fence {
        /// Whom.
        client: ClientId,
        /// Why.
        reason: FenceReason,
    },
    /// A session ended in good order: forget its requests in the shards, then [`Event::Forgotten`].
    Ended(ClientId),
    /// Flush, then cut chunks, then [`Event::Truncated`].
    Truncate {
        /// To be given back.
        ticket: Ticket,
        /// Entry of the free list.
        entry: u64,
        /// The inode.
        ino: Ino,
        /// Its body of data.
        object: ObjectId,
        /// Size before.
        from: u64,
        /// Size now.
        to: u64,
        /// The record to be flushed first.
        record: Seq,
    },
    /// The free list has work after the next flush.
    FreeWork,
    /// Answer to [`Event::Data`].
    Data {
        /// Which.
        id: OpId,
        /// In, or why not.
        admitted: Result<Box<Admitted>, Status>,
    },
}
