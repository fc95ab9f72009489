//! Exactly once: the last request of each slot, and its answer.
//!
//! Owns what a repeat is told. Answers stand in the log in the same record as the effect, so a restart knows them too. Must
//! not execute anything.

use crate::kv::Key;
use crate::layout::{LAYOUT, ReplayRow};
use crate::ns::Namespace;
use crate::op::{OpCtx, Outcome, Reply};
use crate::record::Seq;
use crate::reply;
use crate::view::Miss;
use wire::{Errno, Ino, RequestId, Slot};
use zerocopy::IntoBytes;

/// What the namespace knows of a request's slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// Not seen: execute it.
    New,
    /// Executed before: this was the answer. Send it when everything up to `depends_on` is on the device.
    Repeat {
        /// The answer.
        outcome: Box<Outcome>,
        /// As [`crate::Executed::depends_on`].
        depends_on: Seq,
    },
    /// Older than the slot's last: a stray.
    Bad,
}

#[derive(Clone, Debug)]
pub(crate) struct SlotState {
    pub(crate) sequence: u64,
    /// `None`: a data operation, whose answer is kept elsewhere until it has several chunks' effect behind it.
    pub(crate) outcome: Option<Outcome>,
    pub(crate) depends_on: Seq,
    /// A row stands for it.
    pub(crate) logged: bool,
}

/// The row that keeps an answer.
pub(crate) fn row(request: RequestId, outcome: Result<&Reply, Errno>) -> (Key, Option<Box<[u8]>>) {
    let head = ReplayRow { layout: LAYOUT.into(), zero: [0; 6], sequence: request.sequence.into() };
    let mut value = head.as_bytes().to_vec();
    reply::encode(outcome, &mut value);
    (Key::replay(request.client, request.slot), Some(value.into()))
}

/// Handle and inode that an answer gave out.
pub(crate) fn opened_by(outcome: &Outcome) -> Option<(u64, Ino)> {
    match outcome {
        Ok(Reply::Created { attr, handle: Some(h), .. }) | Ok(Reply::Opened { attr, handle: h }) => {
            Some((*h, attr.ino()))
        }
        _ => None,
    }
}

impl Namespace {
    pub(crate) fn remember(&mut self, ctx: &OpCtx, outcome: &Outcome, depends_on: Seq, logged: bool) {
        let RequestId { client, slot, sequence } = ctx.request;
        if slot == Slot::IDEMPOTENT {
            return;
        }
        let at = (client, slot);
        // A row of an older sequence still has to be deleted when the session ends.
        let logged = logged || self.slots.get(&at).is_some_and(|s| s.logged);
        self.slots.insert(at, SlotState { sequence, outcome: Some(outcome.clone()), depends_on, logged });
    }

    /// Was this request executed before? A new one on the slot acknowledges the reply to the last.
    pub fn replayed(&mut self, request: RequestId) -> Replayed {
        let at = (request.client, request.slot);
        if request.slot == Slot::IDEMPOTENT {
            return Replayed::New;
        }
        let Some(state) = self.slots.get(&at) else { return Replayed::New };
        if request.sequence < state.sequence {
            return Replayed::Bad;
        }
        let (Some(outcome), true) = (&state.outcome, request.sequence == state.sequence) else {
            return Replayed::New;
        };
        let (outcome, depends_on) = (Box::new(outcome.clone()), state.depends_on);
        if let Some((handle, ino)) = opened_by(&outcome) {
            // The client learns of the handle only now.
            let flags = self.opens.get(request.client, handle).map_or(0, |o| o.1);
            self.opens.add(request.client, handle, ino, flags);
        }
        Replayed::Repeat { outcome, depends_on }
    }

    /// The attributes in a stored answer are as old as the operation, but the grant beside them is of now: a client would
    /// believe them. Puts today's in, and in `depends_on` what these wait for.
    pub fn renew(&mut self, outcome: &mut Outcome, depends_on: &mut Seq) -> Result<(), Miss> {
        let Ok(
            Reply::Attr(attr) | Reply::Entry(attr) | Reply::Created { attr, .. } | Reply::Opened { attr, .. },
        ) = outcome
        else {
            return Ok(());
        };
        let key = Key::inode(attr.ino());
        let (value, seq) = self.view.get(&key)?;
        match value.map(crate::layout::inode) {
            Some(Ok(now)) => {
                *attr = now.attr(attr.ino());
                *depends_on = seq.max(*depends_on);
            }
            // It is gone: the last that is known of it.
            None => {}
            Some(Err(why)) => {
                self.damaged(crate::layout::BadRow { key: format!("{key:?}"), why });
                *outcome = Err(Errno::EIO);
            }
        }
        Ok(())
    }

    /// A data operation uses the slot now; its reply is kept with the data. Also acknowledges what was there.
    pub fn slot_used(&mut self, request: RequestId) {
        if request.slot == Slot::IDEMPOTENT {
            return;
        }
        let logged = self.slots.get(&(request.client, request.slot)).is_some_and(|s| s.logged);
        let state = SlotState { sequence: request.sequence, outcome: None, depends_on: 0, logged };
        self.slots.insert((request.client, request.slot), state);
    }

    /// Handle known only from the stored reply of a slot that is used again: the client never took it. To be closed.
    pub fn stale_open(&mut self, request: RequestId) -> Option<(Ino, u64)> {
        let handle = self.opens.take_tentative(request.client, request.slot)?;
        self.opens.get(request.client, handle).map(|(ino, _)| (ino, handle))
    }
}
