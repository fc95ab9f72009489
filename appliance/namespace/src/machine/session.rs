//! Sessions of clients: opening, reclaiming, expiry, fencing, and cleaning up after those who are gone.
//!
//! Must not decide what is logged of a session: the namespace does.

use super::{Action, Machine, Pending, Stage, Work};
use crate::leases::Ticket;
use crate::locks::{LockRecord, Outcome as LockOutcome, Owner, WaiterId};
use crate::sessions::Opening;
use wire::message as m;
use wire::{Body, BodyBuf, ClientId, Errno, FenceReason, Grant, Ino, Opcode, Status};

/// The ticket of fetches for cleaning up; no operation has it.
pub(super) const CLEANING: Ticket = Ticket(0);

/// What the log keeps of a session besides its number: a version, for what may come.
const SESSION_ROW: u8 = 1;

/// Orphans looked at before other work runs.
const ORPHANS_AT_ONCE: usize = 64;

/// Between two ticks this far apart the server itself was suspended: nobody is blamed for silence.
const SUSPENDED_MS: u64 = 2_000;

impl Machine {
    /// Does a request run during the grace window: the ones that end it, and signs of life?
    pub(super) fn runs_in_grace(&self, ticket: Ticket) -> bool {
        let Some(Pending { work: Work::Wire { header, .. }, .. }) = self.pending.get(&ticket) else {
            return false;
        };
        matches!(
            header.op(),
            Some(
                Opcode::OpenSession
                    | Opcode::CloseSession
                    | Opcode::KeepAlive
                    | Opcode::ReclaimLocks
                    | Opcode::ReclaimLeases
                    | Opcode::ReclaimOpens
                    | Opcode::ReclaimDone
                    | Opcode::LeaseReturn
            )
        )
    }

    pub(super) fn opens_session(&self, ticket: Ticket) -> bool {
        matches!(self.pending.get(&ticket), Some(Pending { work: Work::Wire { header, .. }, .. })
            if header.op() == Some(Opcode::OpenSession))
    }

    pub(super) fn open_session(&mut self, ticket: Ticket, client: ClientId, r: &m::OpenSession) {
        if r.flags.has(m::SessionFlags::FRESH) && self.sessions.heard(self.now.mono, client).is_ok() {
            self.end(client, None);
        }
        // What a session of this name left behind must be gone before it begins anew.
        if self.cleaning.contains(&client) || self.forgetting.contains(&client) {
            return self.answer(ticket, 0, Status::Busy);
        }
        let opening = match self.sessions.open(self.now.mono, client) {
            Ok(opening) => opening,
            Err(status) => return self.answer(ticket, 0, status),
        };
        let mut depends = 0;
        if opening == Opening::New {
            let record = self.ns.put_session(client, &[SESSION_ROW]);
            self.log(record);
            depends = self.appended;
        }
        let state = match opening {
            Opening::New => m::SessionPhase::New,
            Opening::Resumed => m::SessionPhase::Resumed,
            Opening::Reclaim => m::SessionPhase::Reclaim,
        };
        if opening == Opening::Resumed {
            // A recall may have been lost with the connection.
            for order in self.leases.recalls_of(client) {
                self.out.push(Action::Recall(order));
            }
        }
        let grace_ms = u32::try_from(self.sessions.grace_left(self.now.mono)).unwrap_or(u32::MAX);
        let mut body = BodyBuf::new();
        m::SessionState { state, boot_epoch: self.boot_epoch, grace_ms }.encode(&mut body);
        self.finish(ticket, depends, Status::Ok, body, Vec::new());
    }

    pub(super) fn close_session(&mut self, ticket: Ticket, client: ClientId) {
        self.end(client, None);
        let depends = self.appended;
        self.answer(ticket, depends, Status::Ok);
    }

    pub(super) fn reclaim_locks(&mut self, ticket: Ticket, client: ClientId, r: &m::ReclaimLocks<'_>) {
        if !self.sessions.reclaiming(client) {
            return self.answer(ticket, 0, Status::Grace);
        }
        let mut status = Status::Ok;
        for l in r.locks.iter() {
            let owner = Owner { client, owner: l.owner };
            let (ino, space, kind, range, pid) = (l.ino, l.space, l.kind, l.range, l.pid);
            if let LockOutcome::Refused(e) =
                self.locks.reclaim(&LockRecord { ino, space, kind, range, owner, pid })
            {
                tracing::warn!(client = client.0, ino = ino.0, error = %e, "a lock could not be reclaimed");
                status = Status::Errno(e);
            }
        }
        self.answer(ticket, 0, status);
    }

    pub(super) fn reclaim_leases(&mut self, ticket: Ticket, client: ClientId, r: &m::ReclaimLeases<'_>) {
        if !self.sessions.reclaiming(client) {
            return self.answer(ticket, 0, Status::Grace);
        }
        let mut granted: Vec<u8> = Vec::new();
        for g in r.leases.iter() {
            let mode = g.mode().unwrap_or_default();
            let grant = self.leases.reclaim(client, g.ino(), mode);
            if grant != Grant::none() {
                granted.extend_from_slice(zerocopy::IntoBytes::as_bytes(&grant));
            }
        }
        let mut body = BodyBuf::new();
        let count = (granted.len() / size_of::<Grant>()) as u16;
        body.put(&count.to_le_bytes());
        body.put(&granted);
        self.finish(ticket, 0, Status::Ok, body, Vec::new());
    }

    pub(super) fn reclaim_opens(&mut self, ticket: Ticket, client: ClientId, r: &m::ReclaimOpens<'_>) {
        if !self.sessions.reclaiming(client) {
            return self.answer(ticket, 0, Status::Grace);
        }
        let mut status = Status::Ok;
        for o in r.opens.iter() {
            let flags = o.flags.bits() & crate::op::open_flags::ALL;
            match self.ns.reclaim_open(client, o.ino, o.handle, flags) {
                Ok(true) => {
                    self.sessions.opened(client, o.handle, o.ino, o.flags.has(m::OpenFlags::WRITE));
                }
                Ok(false) => status = Status::Errno(Errno::ESTALE),
                Err(miss) => return self.miss(ticket, miss),
            }
        }
        self.answer(ticket, 0, status);
    }

    pub(super) fn reclaim_done(&mut self, ticket: Ticket, client: ClientId) {
        self.sessions.reclaimed(client);
        self.answer(ticket, 0, Status::Ok);
        self.end_grace();
    }

    pub(super) fn tick(&mut self) {
        let now = self.now.mono;
        if now.saturating_sub(self.ticked) > SUSPENDED_MS {
            tracing::warn!(ms = now - self.ticked, "the server was suspended: silent clients are forgiven");
            self.sessions.forgive(now);
            self.leases.extend_recalls(now);
        }
        self.ticked = now;
        self.leases.tick(now);
        self.end_grace();
        for client in self.sessions.expired(now) {
            self.end(client, Some(FenceReason::Expired));
        }
        for client in self.leases.overdue(now) {
            self.end(client, Some(FenceReason::RecallTimeout));
        }
        self.clean();
    }

    fn end_grace(&mut self) {
        let mut late = Vec::new();
        if !self.sessions.end_grace(self.now.mono, &mut late) {
            return;
        }
        for client in late {
            self.end(client, Some(FenceReason::Expired));
        }
        let waiting = self.pending.iter().filter(|(_, p)| p.stage == Stage::Grace);
        self.changes.ready.extend(waiting.map(|(t, _)| *t));
        self.orphans = Some(Ino(0));
        self.clean();
    }

    /// A session is over: everything it held is free.
    pub(super) fn end(&mut self, client: ClientId, fence: Option<FenceReason>) {
        if self.sessions.end(client, fence.is_some()).is_none() {
            return;
        }
        self.forgetting.insert(client);
        match fence {
            Some(reason) => {
                self.stats.fenced += 1;
                tracing::warn!(client = format_args!("{:016x}", client.0), ?reason, "client fenced");
                self.out.push(Action::Fence { client, reason });
            }
            None => self.out.push(Action::Ended(client)),
        }
        self.leases.drop_client(self.now.mono, client, &mut self.changes.ready);
        for WaiterId(t) in self.locks.release_client(client, &mut self.woken) {
            self.answer(Ticket(t), 0, Status::Fenced);
        }
        // Whatever of it waits is run again and finds its session gone.
        let mine = self.pending.iter().filter(|(_, p)| p.client == client);
        self.changes.ready.extend(mine.map(|(t, _)| *t));
        self.cleaning.insert(client);
        self.clean();
    }

    /// Frees opens, orphans and stored replies of clients that are gone, a record at a time.
    pub(super) fn clean(&mut self) {
        while let Some(&client) = self.cleaning.first() {
            if self.failed {
                return;
            }
            match self.ns.end_session(client, self.now.wall) {
                Ok(Some(step)) => self.cleaned(step),
                Ok(None) => drop(self.cleaning.remove(&client)),
                Err(miss) => return self.fetch_for_cleaning(miss),
            }
        }
        while let Some(after) = self.orphans {
            if self.failed {
                return;
            }
            let inos = match self.ns.orphans(after, ORPHANS_AT_ONCE) {
                Ok(inos) => inos,
                Err(miss) => return self.fetch_for_cleaning(miss),
            };
            for &ino in &inos {
                match self.ns.reap_orphan(ino, self.now.wall) {
                    Ok(Some(step)) => self.cleaned(step),
                    Ok(None) => {}
                    Err(miss) => return self.fetch_for_cleaning(miss),
                }
                self.orphans = Some(ino);
            }
            if inos.len() < ORPHANS_AT_ONCE {
                self.orphans = None;
            }
        }
    }

    fn cleaned(&mut self, step: crate::Executed) {
        if let Some(record) = step.record {
            self.log(record);
        }
        self.effects(CLEANING, self.appended, &step.effects);
    }

    fn fetch_for_cleaning(&mut self, miss: crate::Miss) {
        self.stats.fetches += 1;
        self.out.push(Action::Fetch { ticket: CLEANING, miss });
    }
}
