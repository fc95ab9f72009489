//! The way in: who has to wait for room in the log, and that nobody gets in any more once the node stops.
//!
//! Owns the bound on records that the database does not have yet, and the door that is shut at a stop. Must not know what an
//! operation does.
//!
//! What is refused at a stop is not answered at all: its client repeats it with the next daemon. Any answer would reach an
//! application.

use crate::meta::{Answer, Meta, Reply};
use chunkstore::BlockDevice;
use namespace::leases::Access;
use namespace::machine::{Admitted, DataOp, Event, OpId};
use reactor::sync::{Event as Flag, Notify, oneshot};
use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use wire::{Class, Header, Opcode, Status};

/// Records that the namespace log may be ahead of the applier before changes wait.
const PRESSURE_RECORDS: usize = 1 << 16;
/// Bytes, likewise.
const PRESSURE_BYTES: usize = 96 << 20;

/// Who waits while the applier is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// Nobody: it makes no record, or it is what others wait for.
    Any,
    /// It gives something back, so it may go on for as long again as others.
    Double,
    /// It makes records.
    Single,
}

impl Room {
    fn of(op: Option<Opcode>) -> Self {
        match op {
            // Locks are in memory alone, and an unlock is what a waiter needs.
            Some(Opcode::SetLock | Opcode::ReleaseOwner) | None => Self::Any,
            Some(Opcode::Close | Opcode::Unlink | Opcode::Rmdir) => Self::Double,
            // Sessions are logged when they are opened: one small record, bounded by their number.
            Some(op) if op.class() != Class::Once => Self::Any,
            Some(_) => Self::Single,
        }
    }

    fn is_there(self, records: usize, bytes: usize) -> bool {
        let times = match self {
            Self::Any => return true,
            Self::Double => 2,
            Self::Single => 1,
        };
        records < PRESSURE_RECORDS * times && bytes < PRESSURE_BYTES * times
    }
}

/// Shut once, at the stop. Counts those who are behind it.
#[derive(Default)]
pub(crate) struct Door {
    shut: Flag,
    inside: Cell<usize>,
    left: Notify,
}

/// Somebody is inside.
pub(crate) struct Visit(Rc<Door>);

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.inside.set(self.0.inside.get() - 1);
        self.0.left.notify_all();
    }
}

impl Door {
    pub(crate) fn is_shut(&self) -> bool {
        self.shut.is_set()
    }

    /// Goes in; never ends where the door is shut.
    pub(crate) async fn enter(self: &Rc<Self>) -> Visit {
        if self.is_shut() {
            std::future::pending::<()>().await;
        }
        self.inside.set(self.inside.get() + 1);
        Visit(Rc::clone(self))
    }

    /// Shuts it, whoever is inside.
    pub(crate) fn slam(&self) {
        self.shut.set();
    }

    /// Shuts it and waits until everybody has left.
    pub(crate) async fn shut(&self) {
        self.slam();
        while self.inside.get() > 0 {
            self.left.notified().await;
        }
    }
}

impl<D: BlockDevice> Meta<D> {
    /// Runs a request of the namespace. `cancelled` tells that its client no longer wants the answer.
    pub(crate) async fn request(
        &self,
        header: Header,
        body: Vec<u8>,
        payload: Vec<u8>,
        cancelled: &Flag,
    ) -> Reply {
        if !self.wait_for_room(Room::of(header.op()), Some(cancelled)).await {
            return Reply::status(Status::Cancelled);
        }
        let (id, answer) = self.expect();
        self.post(Event::Request { id, header, body, payload });
        let (mut answer, mut cancel) = (pin!(answer), pin!(cancelled.wait()));
        let mut told = false;
        let answer = std::future::poll_fn(|cx| {
            if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                return Poll::Ready(answer);
            }
            if !told && cancel.as_mut().poll(cx).is_ready() {
                told = true;
                self.post(Event::Cancel(id));
                return answer.as_mut().poll(cx);
            }
            Poll::Pending
        });
        match answer.await {
            Ok(Answer::Reply(reply)) => reply,
            // A repeat on a new connection took this one's place; nobody reads what is sent here.
            _ => Reply::status(Status::Cancelled),
        }
    }

    /// Lets a data operation in; the guard lets it out.
    pub(crate) async fn admit(&self, mut op: DataOp) -> Result<(Admitted, Inside<D>), Status> {
        let writes = op.parts.iter().any(|p| p.access == Access::Modify);
        self.wait_for_room(if writes { Room::Single } else { Room::Any }, None).await;
        let (id, answer) = self.expect();
        op.id = id;
        let inside = Inside { meta: self.clone(), id };
        self.post(Event::Data(op));
        match answer.await {
            Ok(Answer::Data(Ok(admitted))) => Ok((*admitted, inside)),
            Ok(Answer::Data(Err(status))) => Err(status),
            _ => Err(Status::Cancelled),
        }
    }

    /// A new name, and what brings the answer to it.
    fn expect(&self) -> (OpId, oneshot::Receiver<Answer>) {
        let id = self.new_id();
        let (give, take) = oneshot::channel();
        self.waiting.borrow_mut().insert(id, give);
        (id, take)
    }

    /// Changes wait while the applier is far behind: memory is bounded, not the speed of clients. False where `cancelled`
    /// was set meanwhile.
    async fn wait_for_room(&self, room: Room, cancelled: Option<&Flag>) -> bool {
        loop {
            drop(self.door.enter().await);
            let relief = self.relief.notified();
            let p = self.machine(|m| m.view().pressure());
            if room.is_there(p.records, p.bytes) {
                return true;
            }
            if cancelled.is_some_and(Flag::is_set) {
                return false;
            }
            self.applying.hurry();
            let Some(cancelled) = cancelled else {
                relief.await;
                continue;
            };
            let (mut relief, mut cancel) = (pin!(relief), pin!(cancelled.wait()));
            std::future::poll_fn(|cx| match relief.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(()),
                Poll::Pending => cancel.as_mut().poll(cx),
            })
            .await;
        }
    }

    /// Nothing gets in any more, and nothing that is inside changes anything more. Waits for what the shards are doing.
    pub(crate) async fn shut(&self) {
        self.door.shut().await;
    }
}

/// A data operation that was let in; dropping it lets it out.
pub(crate) struct Inside<D: BlockDevice> {
    meta: Meta<D>,
    id: OpId,
}

impl<D: BlockDevice> Drop for Inside<D> {
    fn drop(&mut self) {
        self.meta.waiting.borrow_mut().remove(&self.id);
        self.meta.post(Event::Cancel(self.id));
        self.meta.post(Event::DataDone(self.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Once everything waited for room in a full log, the calls that make room among them.
    #[test]
    fn only_what_makes_records_waits_for_room() {
        let full = PRESSURE_RECORDS;
        for &op in Opcode::ALL {
            let room = Room::of(Some(op));
            assert!(room.is_there(full - 1, 0), "{op:?} goes on while there is room");
            let waits = !room.is_there(full, 0);
            let session = op as u16 <= Opcode::LeaseReturn as u16;
            let gives_back = matches!(
                op,
                Opcode::SetLock | Opcode::ReleaseOwner | Opcode::Close | Opcode::Unlink | Opcode::Rmdir
            );
            assert_eq!(waits, op.class() == Class::Once && !session && !gives_back, "{op:?}");
        }
        assert!(!Room::Double.is_there(0, PRESSURE_BYTES * 2), "there is a bound on deletions, too");
    }
}
