//! Letting data operations in and out: leases first, then the gate, both held until the shell says that it is done.
//!
//! Must not touch data: the shell reads and writes chunks between [`Admitted`] and `Event::DataDone`.

use super::{Action, Event, Machine, OpId, Pending, Stage, Work};
use crate::leases::{Access, Admission, Need, Ticket, Want};
use crate::op::{Op, OpCtx, Reply};
use smallvec::SmallVec;
use wire::{Attr, ClientId, Errno, FileKind, Grant, Ino, ObjectId, RequestId, Status};

/// One file of a data operation.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// The inode.
    pub ino: Ino,
    /// Whether it is read or written.
    pub access: Access,
    /// The body of data that the client believes in; a different one is [`Status::StaleObject`].
    pub object: Option<ObjectId>,
    /// No other data operation on it meanwhile: appends, fallocate, copies onto it.
    pub alone: bool,
    /// The client's kernel will cache what it gets: a Shared grant is certain.
    pub cache: bool,
}

/// A data operation that asks to be let in.
#[derive(Clone, Debug)]
pub struct DataOp {
    /// The shell's name for it.
    pub id: OpId,
    /// Who asks; a slot that is not idempotent makes a repeat during the operation join it.
    pub request: RequestId,
    /// Its files: one, or source and target of a copy.
    pub parts: SmallVec<[Part; 2]>,
}

/// A data operation is inside.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// Attributes of each part as they are now.
    pub attrs: SmallVec<[Attr; 2]>,
    /// What the client was granted with each part.
    pub grants: SmallVec<[Grant; 2]>,
    /// The record that the attributes wait for: no answer before it is durable.
    pub depends_on: u64,
}

impl Machine {
    pub(super) fn data(&mut self, op: DataOp) {
        self.stats.data += 1;
        if self.pending.len() >= self.limits.pending {
            self.stats.busy += 1;
            self.out.push(Action::Data { id: op.id, admitted: Err(Status::Busy) });
            return;
        }
        let ticket = self.ticket();
        self.by_id.insert(op.id, ticket);
        let pending = Pending {
            id: op.id,
            client: op.request.client,
            once: None,
            work: Work::Data(op),
            stage: Stage::Running,
            gates: SmallVec::new(),
            reply: None,
        };
        self.pending.insert(ticket, pending);
        self.run(ticket);
    }

    pub(super) fn run_data(&mut self, ticket: Ticket) {
        let Some(Pending { work: Work::Data(op), client, .. }) = self.pending.get(&ticket) else { return };
        let (op, client) = (op.clone(), *client);
        let mut attrs = SmallVec::new();
        let mut depends_on = 0;
        for part in &op.parts {
            match self.data_attr(client, part) {
                Ok(Ok((attr, seq))) => {
                    attrs.push(attr);
                    depends_on = depends_on.max(seq);
                }
                Ok(Err(status)) => return self.answer(ticket, 0, status),
                Err(miss) => return self.miss(ticket, miss),
            }
        }
        let need = |p: &Part| Need { ino: p.ino, access: p.access, cache: p.cache };
        let needs: SmallVec<[Need; 2]> = op.parts.iter().map(need).collect();
        if self.leases.admit(self.now.mono, client, ticket, &needs, false, &mut self.changes)
            == Admission::Wait
        {
            self.leave_gates(ticket);
            return self.stage(ticket, Stage::Leases);
        }
        let gates: SmallVec<[(Ino, bool); 2]> = op.parts.iter().map(|p| (p.ino, p.alone)).collect();
        // Before it counts as under way for leases: it would hold up those whom the gate waits for.
        if !self.enter(ticket, &gates) {
            return;
        }
        let admitted = self.leases.admit(self.now.mono, client, ticket, &needs, true, &mut self.changes);
        debug_assert_eq!(admitted, Admission::Go, "nothing happened since it was asked");
        // Within the gate no truncation is under way: this one failed.
        let writes = |(p, a): (&Part, &Attr)| p.access == Access::Modify && self.is_uncut(a.object());
        if op.parts.iter().zip(&attrs).any(writes) {
            return self.answer(ticket, depends_on, Status::Errno(Errno::EIO));
        }
        let mut grants = SmallVec::new();
        for part in &op.parts {
            let want = if part.cache { Want::Forced } else { Want::Shared };
            let recalls = &mut self.changes.recalls;
            grants.push(self.leases.grant(self.now.mono, client, part.ino, want, recalls));
        }
        self.stage(ticket, Stage::Inside);
        self.out
            .push(Action::Data { id: op.id, admitted: Ok(Box::new(Admitted { attrs, grants, depends_on })) });
    }

    fn data_attr(
        &mut self,
        client: ClientId,
        part: &Part,
    ) -> Result<Result<(Attr, u64), Status>, crate::view::Miss> {
        let ctx = OpCtx::plain(client, self.now.wall);
        let done = self.ns.execute(&ctx, &Op::GetAttr { ino: part.ino })?;
        let attr = match done.outcome {
            Ok(Reply::Attr(attr)) => attr,
            Ok(_) => return Ok(Err(Status::Errno(Errno::EIO))),
            Err(e) => return Ok(Err(Status::Errno(e))),
        };
        Ok(match attr.kind() {
            Some(FileKind::Regular) if part.object.is_some_and(|o| o != attr.object()) => {
                Err(Status::StaleObject)
            }
            Some(FileKind::Regular) => Ok((attr, done.depends_on)),
            Some(FileKind::Directory) => Err(Status::Errno(Errno::EISDIR)),
            _ => Err(Status::Errno(Errno::EINVAL)),
        })
    }

    pub(super) fn data_done(&mut self, id: OpId) {
        if let Some(&ticket) = self.by_id.get(&id) {
            self.close(ticket);
        }
    }
}

impl From<DataOp> for Event {
    fn from(op: DataOp) -> Self {
        Self::Data(op)
    }
}
