//! Changes of ranges of many chunks: noted before the first chunk is touched, taken off with their answer.
//!
//! Owns what a start has to carry to its end before anybody is served. Must not touch data: the shell does.
//!
//! Invariant: an inode has at most one intent, and from its record to that of its answer nobody else is inside the gate of that
//! inode. So when a start finds one, nothing was read or written there since, and doing all of it anew gives what the first
//! run would have given.

use crate::kv::Key;
use crate::layout::{self, IntentRow, LAYOUT};
use crate::ns::Namespace;
use crate::once::{self, SlotState};
use crate::op::Outcome;
use crate::record::Record;
use crate::txn::Writes;
use wire::{ClientId, Ino, ObjectId, RequestId, Slot};
use zerocopy::IntoBytes;

/// What is done to the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// fallocate(2) with this mode.
    Allocate(u32),
    /// The bytes of another range, or of another file's.
    Copy {
        /// Where from.
        src: Ino,
        /// Its body of data.
        object: ObjectId,
        /// Where in it.
        offset: u64,
    },
}

/// A change of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Who asked; client 0 where nobody waits for the answer any more.
    pub request: RequestId,
    /// The file that is changed.
    pub ino: Ino,
    /// Its body of data.
    pub object: ObjectId,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// What is done.
    pub change: Change,
}

/// Asks for nothing: its client is gone.
const NOBODY: ClientId = ClientId(0);

impl Intent {
    fn row(&self) -> IntentRow {
        let (kind, mode, src, object, offset) = match self.change {
            Change::Allocate(mode) => (IntentRow::ALLOCATE, mode, Ino(0), ObjectId(0), 0),
            Change::Copy { src, object, offset } => (IntentRow::COPY, 0, src, object, offset),
        };
        IntentRow {
            layout: LAYOUT.into(),
            kind: kind.into(),
            slot: self.request.slot.0.into(),
            zero: [0; 2],
            mode: mode.into(),
            zero2: [0; 4],
            client: self.request.client.0.into(),
            sequence: self.request.sequence.into(),
            object: self.object.into(),
            offset: self.offset.into(),
            len: self.len.into(),
            src: src.into(),
            src_object: object.into(),
            src_offset: offset.into(),
        }
    }

    pub(crate) fn decode(ino: Ino, value: &[u8]) -> Result<Self, &'static str> {
        let r = layout::intent(value)?;
        let change = if r.kind.get() == IntentRow::COPY {
            Change::Copy { src: r.src.into(), object: r.src_object.into(), offset: r.src_offset.get() }
        } else {
            Change::Allocate(r.mode.get())
        };
        let (client, slot) = (ClientId(r.client.get()), Slot(r.slot.get()));
        Ok(Self {
            request: RequestId { client, slot, sequence: r.sequence.get() },
            ino,
            object: r.object.into(),
            offset: r.offset.get(),
            len: r.len.get(),
            change,
        })
    }
}

impl Namespace {
    /// Notes a change of a range. The inode must be marked ([`Namespace::prepare_write`]) and held alone; the first chunk is
    /// touched when the record is on the device, and [`Namespace::answered`] follows in any case.
    pub fn intend(&mut self, intent: Intent) -> Record {
        let done = self.intents.insert(intent.ino, intent);
        debug_assert!(done.is_none(), "an inode is changed by one at a time");
        self.log(vec![(Key::intent(intent.ino), Some(intent.row().as_bytes().into()))])
    }

    /// What a start found, in order of the inodes.
    #[must_use]
    pub fn intents(&self) -> Vec<Intent> {
        self.intents.values().copied().collect()
    }

    /// The change of a range is over: its answer, in one record with the attributes that it left.
    pub fn answered(&mut self, ino: Ino, outcome: &Outcome) -> Record {
        let mut writes = self.lazy_rows(ino);
        writes.push((Key::intent(ino), None));
        // A session that has ended since left nobody to ask again.
        let asked = self.intents.remove(&ino).map(|i| i.request).filter(|r| self.has_session(r.client));
        if let Some(request) = asked {
            writes.push(once::row(request, outcome.as_ref().map_err(|e| *e)));
        }
        let record = self.log(writes);
        if let Some(RequestId { client, slot, sequence }) = asked {
            let outcome = Some(outcome.clone());
            let state = SlotState { sequence, outcome, depends_on: record.seq(), logged: true };
            self.slots.insert((client, slot), state);
        }
        record
    }

    /// A session ends: what it began is carried to its end, but another session of its name must not get the answers.
    pub(crate) fn disown_intents(&mut self, client: ClientId) -> Writes {
        let mut writes = Writes::new();
        for intent in self.intents.values_mut().filter(|i| i.request.client == client) {
            intent.request.client = NOBODY;
            writes.push((Key::intent(intent.ino), Some(intent.row().as_bytes().into())));
        }
        writes
    }
}
