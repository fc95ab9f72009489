//! The machine: requests and events in, actions out. Where sessions, leases, locks, gates and the namespace meet.
//!
//! Owns the order in which operations run, who waits for whom, and when an answer may leave. Must not see a socket, a
//! clock, a thread or a device: times come with events, effects leave as actions.
//!
//! An operation goes through these steps, and starts again from the first whenever something in its way is gone:
//! 1. its session is known and the grace window is over; a repeat of the slot's last request gets the stored answer;
//! 2. conflicting leases of other clients are recalled ([`crate::leases`]);
//! 3. where it cuts a file, no data operation on that file is under way ([`gates`]);
//! 4. it runs at once and completely, or tells which rows must be fetched;
//! 5. its answer leaves when its record, and every record that it read from, is on the device.
//!
//! Invariant: an answer never leaves before what it depends on is durable, an error included.

mod data;
mod gates;
mod request;
mod session;
#[cfg(test)]
mod tests;
mod types;

pub use data::{Admitted, DataOp, Part};
pub use types::{Action, Event, MachineLimits, Now, OpId};

use crate::leases::{LeaseTable, Millis, Ticket};
use crate::locks::{LockTable, WaiterId};
use crate::machine::gates::Gates;
use crate::op::Effect;
use crate::record::{Record, Seq};
use crate::sessions::Sessions;
use crate::view::{Fetched, Miss};
use crate::{Namespace, leases};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};
use wire::{BodyBuf, ClientId, Header, Ino, ObjectId, Slot, Status};

enum Work {
    Wire { header: Header, body: Vec<u8>, payload: Vec<u8> },
    Data(DataOp),
}

/// Where an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Running,
    Fetching,
    Leases,
    Gate,
    Grace,
    Lock,
    /// Executed; its truncations are under way.
    Cutting(usize),
    /// Its truncations are carried out; waits until the log says so durably.
    Cut,
    /// A data operation inside.
    Inside,
}

struct Pending {
    id: OpId,
    client: ClientId,
    once: Option<(Slot, u64)>,
    work: Work,
    stage: Stage,
    gates: SmallVec<[(Ino, bool); 2]>,
    reply: Option<(Seq, Action)>,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineStats {
    /// Requests taken.
    pub requests: u64,
    /// Data operations taken.
    pub data: u64,
    /// Answers from the exactly-once table.
    pub replayed: u64,
    /// Fetches asked for.
    pub fetches: u64,
    /// Sessions fenced.
    pub fenced: u64,
    /// Requests refused because the machine was full.
    pub busy: u64,
}

/// See the module.
pub struct Machine {
    ns: Namespace,
    sessions: Sessions,
    leases: LeaseTable,
    locks: LockTable,
    limits: MachineLimits,
    gates: Gates,
    now: Now,
    next: u64,
    pending: BTreeMap<Ticket, Pending>,
    by_id: FxHashMap<OpId, Ticket>,
    slots: FxHashMap<(ClientId, Slot), (u64, Ticket)>,
    changes: leases::Changes,
    woken: Vec<WaiterId>,
    cleaning: BTreeSet<ClientId>,
    /// Sessions that ended, of whose requests the shards still have something.
    forgetting: BTreeSet<ClientId>,
    /// Orphans above this one are still to be looked at.
    orphans: Option<Ino>,
    ticked: Millis,
    held: BTreeMap<Seq, Vec<Action>>,
    /// Carried out truncations whose entries of the free list can't be taken off it before rows are fetched.
    unlisted: Vec<(Ticket, u64)>,
    /// Truncations that are not carried out: bodies of data with their entries. One that failed stays here, and nothing is
    /// written to its body: the next start carries it out and would cut what was written.
    uncut: BTreeSet<(ObjectId, u64)>,
    /// Truncations that leave when this record is durable.
    cut: BTreeMap<Seq, Vec<Ticket>>,
    appended: Seq,
    durable: Seq,
    boot_epoch: u64,
    failed: bool,
    stats: MachineStats,
    out: Vec<Action>,
    /// Answers that are put together now may carry grants.
    granting: bool,
}

impl Machine {
    /// A machine over a namespace that was replayed and started. `durable` is the last record on the device, `epoch` the
    /// boot epoch, `logged` the sessions of the life before.
    #[must_use]
    pub fn new(
        ns: Namespace,
        limits: MachineLimits,
        now: Now,
        epoch: u64,
        durable: Seq,
        logged: impl IntoIterator<Item = ClientId>,
    ) -> Self {
        let sessions = Sessions::new(now.mono, limits.sessions, logged);
        // Without a grace window nobody can come back for an orphan.
        let orphans = (!sessions.in_grace()).then_some(Ino(0));
        Self {
            ns,
            sessions,
            leases: LeaseTable::new(limits.leases, epoch << 40),
            locks: LockTable::new(limits.locks),
            limits,
            gates: Gates::default(),
            now,
            next: 0,
            pending: BTreeMap::new(),
            by_id: FxHashMap::default(),
            slots: FxHashMap::default(),
            changes: leases::Changes::default(),
            woken: Vec::new(),
            cleaning: BTreeSet::new(),
            forgetting: BTreeSet::new(),
            orphans,
            ticked: now.mono,
            held: BTreeMap::new(),
            unlisted: Vec::new(),
            uncut: BTreeSet::new(),
            cut: BTreeMap::new(),
            appended: durable,
            durable,
            boot_epoch: epoch,
            failed: false,
            stats: MachineStats::default(),
            out: Vec::new(),
            granting: true,
        }
    }

    /// Takes an event. The actions are appended to `out`, in the order in which they must begin.
    pub fn apply(&mut self, now: Now, event: Event, out: &mut Vec<Action>) {
        self.now = now;
        match event {
            Event::Request { id, header, body, payload } => self.request(id, header, body, payload),
            Event::Data(op) => self.data(op),
            Event::DataDone(id) => self.data_done(id),
            Event::Fetched { ticket, rows } => self.fetched(ticket, rows),
            Event::FetchFailed(ticket) => {
                let waits = self.pending.get(&ticket).is_some_and(|p| p.stage == Stage::Fetching);
                if waits {
                    self.answer(ticket, 0, Status::Errno(wire::Errno::EIO));
                }
                for entry in self.take_unlisted(ticket) {
                    self.truncated(ticket, entry, true);
                }
            }
            Event::Durable(seq) => self.on_durable(seq),
            Event::LogFailed => self.on_log_failed(),
            Event::Truncated { ticket, entry, failed } => self.truncated(ticket, entry, failed),
            Event::Cancel(id) => self.cancel(id),
            // An unknown one learns it with its next request.
            Event::Heard(client) => drop(self.sessions.heard(now.mono, client)),
            Event::Forgotten(client) => drop(self.forgetting.remove(&client)),
            Event::Tick => self.tick(),
        }
        self.settle();
        out.append(&mut self.out);
    }

    /// The namespace, for what the shell does with data: prepare, wrote, commit, free list.
    pub fn namespace(&mut self) -> &mut Namespace {
        &mut self.ns
    }
    /// The namespace, to look at.
    #[must_use]
    pub fn view(&self) -> &Namespace {
        &self.ns
    }
    /// Sessions, for reports.
    #[must_use]
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }
    /// Leases, for reports.
    #[must_use]
    pub fn leases(&self) -> &LeaseTable {
        &self.leases
    }
    /// Locks, for reports.
    #[must_use]
    pub fn locks(&self) -> &LockTable {
        &self.locks
    }
    /// A truncation that a start could not carry out: its body of data takes no writes.
    pub fn left_uncut(&mut self, object: ObjectId, entry: u64) {
        self.uncut.insert((object, entry));
    }

    /// Is there a truncation of it that could not be carried out?
    #[must_use]
    pub fn is_uncut(&self, object: ObjectId) -> bool {
        self.uncut.range((object, 0)..=(object, u64::MAX)).next().is_some()
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> MachineStats {
        self.stats
    }
    /// Requests inside, and gates in use.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        (self.pending.len(), self.gates.len())
    }
    /// Requests inside that only other clients can let go on: they wait for leases, locks, or the end of the grace window.
    #[must_use]
    pub fn waiting_for_others(&self) -> usize {
        let waits = |p: &&Pending| matches!(p.stage, Stage::Leases | Stage::Lock | Stage::Grace);
        self.pending.values().filter(waits).count()
    }
    /// The boot epoch.
    #[must_use]
    pub fn boot_epoch(&self) -> u64 {
        self.boot_epoch
    }
    /// Are changes refused because the log failed?
    #[must_use]
    pub fn failed(&self) -> bool {
        self.failed
    }
    /// Is nothing inside and nothing waiting for the log?
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.held.is_empty()
    }

    /// Hands a record that the shell got from the namespace to the log, in order with all others.
    pub fn append(&mut self, record: Record, out: &mut Vec<Action>) {
        self.log(record);
        out.append(&mut self.out);
    }

    fn log(&mut self, record: Record) {
        debug_assert_eq!(record.seq(), self.appended + 1, "records leave no gap");
        self.appended = record.seq();
        self.out.push(Action::Append(record));
    }

    fn ticket(&mut self) -> Ticket {
        self.next += 1;
        Ticket(self.next)
    }

    /// Runs whatever a change let through, in the order of tickets, until nothing is left to run.
    fn settle(&mut self) {
        let mut rounds = 0;
        loop {
            rounds += 1;
            debug_assert!(rounds < 64 + 16 * self.pending.len(), "operations wake each other for ever");
            for order in std::mem::take(&mut self.changes.recalls) {
                self.out.push(Action::Recall(order));
            }
            for WaiterId(t) in std::mem::take(&mut self.woken) {
                self.lock_granted(Ticket(t));
            }
            let mut ready = std::mem::take(&mut self.changes.ready);
            if ready.is_empty() {
                break;
            }
            ready.sort_unstable();
            ready.dedup();
            for ticket in ready {
                self.run(ticket);
            }
        }
    }

    fn run(&mut self, ticket: Ticket) {
        let Some(p) = self.pending.get_mut(&ticket) else { return };
        match p.stage {
            Stage::Running | Stage::Fetching | Stage::Leases | Stage::Gate | Stage::Grace => {}
            Stage::Lock | Stage::Cutting(_) | Stage::Cut | Stage::Inside => return,
        }
        p.stage = Stage::Running;
        let client = p.client;
        if self.sessions.in_grace() && !self.runs_in_grace(ticket) {
            self.stage(ticket, Stage::Grace);
            return;
        }
        if let Err(status) = self.sessions.heard(self.now.mono, client)
            && !self.opens_session(ticket)
        {
            return self.answer(ticket, 0, status);
        }
        let is_data = matches!(self.pending.get(&ticket), Some(Pending { work: Work::Data(_), .. }));
        if is_data {
            self.run_data(ticket);
        } else {
            self.run_request(ticket);
        }
    }

    fn stage(&mut self, ticket: Ticket, stage: Stage) {
        if let Some(p) = self.pending.get_mut(&ticket) {
            p.stage = stage;
        }
    }

    fn miss(&mut self, ticket: Ticket, miss: Miss) {
        self.stats.fetches += 1;
        self.stage(ticket, Stage::Fetching);
        self.out.push(Action::Fetch { ticket, miss });
    }

    fn fetched(&mut self, ticket: Ticket, rows: Fetched) {
        // An outdated snapshot leaves the rows missing; running again asks for them again.
        let _ = self.ns.fetched(rows);
        for entry in self.take_unlisted(ticket) {
            self.truncated(ticket, entry, false);
        }
        if self.pending.get(&ticket).is_some_and(|p| p.stage == Stage::Fetching) {
            self.changes.ready.push(ticket);
        } else if ticket == session::CLEANING {
            self.clean();
        }
    }

    /// Tries to enter the gates; false where it waits now.
    fn enter(&mut self, ticket: Ticket, inos: &[(Ino, bool)]) -> bool {
        // A place in the line is kept: giving it up would let the others try, and they would do the same.
        let same = self.pending.get(&ticket).is_some_and(|p| p.gates[..] == *inos);
        if !(same && self.gates.waits(ticket, inos)) {
            self.leave_gates(ticket);
        }
        if inos.is_empty() {
            return true;
        }
        let free = self.gates.enter(ticket, inos);
        if let Some(p) = self.pending.get_mut(&ticket) {
            p.gates = SmallVec::from_slice(inos);
            if !free {
                p.stage = Stage::Gate;
            }
        }
        free
    }

    fn leave_gates(&mut self, ticket: Ticket) {
        let Some(p) = self.pending.get_mut(&ticket) else { return };
        let inos = std::mem::take(&mut p.gates);
        self.gates.leave(ticket, &inos, &mut self.changes.ready);
    }

    /// Ends an operation without a body.
    fn answer(&mut self, ticket: Ticket, depends: Seq, status: Status) {
        self.finish(ticket, depends, status, BodyBuf::new(), Vec::new());
    }

    fn finish(&mut self, ticket: Ticket, depends: Seq, status: Status, body: BodyBuf, payload: Vec<u8>) {
        self.keep_lock_answer(ticket, status);
        let Some(p) = self.pending.get(&ticket) else { return };
        let action = match &p.work {
            Work::Wire { .. } => Action::Reply { id: p.id, status, body, payload },
            Work::Data(op) => Action::Data { id: op.id, admitted: Err(status) },
        };
        self.close(ticket);
        self.release(depends, action);
    }

    /// Takes an operation out of every queue.
    fn close(&mut self, ticket: Ticket) {
        self.leave_gates(ticket);
        self.leases.leave(self.now.mono, ticket, &mut self.changes.ready);
        let Some(p) = self.pending.remove(&ticket) else { return };
        self.by_id.remove(&p.id);
        if let Some((slot, _)) = p.once {
            self.slots.remove(&(p.client, slot));
        }
    }

    /// Lets an answer out as soon as what it depends on is durable. After the log failed, what would show a record that
    /// never reached the device is EIO: the next start does not have it.
    fn release(&mut self, depends: Seq, action: Action) {
        if depends <= self.durable {
            self.out.push(action);
        } else if self.failed {
            self.out.push(fail(action));
        } else {
            self.held.entry(depends).or_default().push(action);
        }
    }

    fn on_durable(&mut self, seq: Seq) {
        self.durable = self.durable.max(seq);
        let later = self.held.split_off(&(self.durable + 1));
        for (_, actions) in std::mem::replace(&mut self.held, later) {
            self.out.extend(actions);
        }
        let later = self.cut.split_off(&(self.durable + 1));
        for (_, tickets) in std::mem::replace(&mut self.cut, later) {
            tickets.into_iter().for_each(|t| self.leave_cut(t));
        }
    }

    fn on_log_failed(&mut self) {
        self.failed = true;
        for (_, tickets) in std::mem::take(&mut self.cut) {
            tickets.into_iter().for_each(|t| self.leave_cut(t));
        }
        for (_, actions) in std::mem::take(&mut self.held) {
            self.out.extend(actions.into_iter().map(fail));
        }
    }

    fn truncated(&mut self, ticket: Ticket, entry: u64, failed: bool) {
        let mut listed = 0;
        // A long map takes several records.
        while !failed && !self.failed {
            match self.ns.freed(entry) {
                Ok(Some(record)) => {
                    listed = record.seq();
                    self.log(record);
                }
                Ok(None) => break,
                Err(miss) => {
                    self.unlisted.push((ticket, entry));
                    self.stats.fetches += 1;
                    self.out.push(Action::Fetch { ticket, miss });
                    return;
                }
            }
        }
        if !failed && !self.failed {
            self.uncut.retain(|(_, e)| *e != entry);
        }
        let Some(p) = self.pending.get_mut(&ticket) else { return };
        let Stage::Cutting(left) = p.stage else { return };
        if let Some((depends, action)) = p.reply.take() {
            p.reply = Some(if failed { (depends, fail(action)) } else { (depends.max(listed), action) });
        }
        if left > 1 {
            p.stage = Stage::Cutting(left - 1);
            return;
        }
        // A start that finds the entry cuts again: nothing may be written behind the cut before it is gone for good.
        let depends = p.reply.as_ref().map_or(listed, |(depends, _)| *depends);
        if depends <= self.durable || self.failed {
            self.leave_cut(ticket);
        } else {
            p.stage = Stage::Cut;
            self.cut.entry(depends).or_default().push(ticket);
        }
    }

    fn take_unlisted(&mut self, ticket: Ticket) -> Vec<u64> {
        self.unlisted.extract_if(.., |(t, _)| *t == ticket).map(|(_, entry)| entry).collect()
    }

    fn leave_cut(&mut self, ticket: Ticket) {
        let reply = self.pending.get_mut(&ticket).and_then(|p| p.reply.take());
        self.close(ticket);
        if let Some((depends, action)) = reply {
            self.release(depends, action);
        }
    }

    fn effects(&mut self, ticket: Ticket, record: Seq, effects: &[Effect]) -> usize {
        let mut cuts = 0;
        for effect in effects {
            match *effect {
                Effect::Truncate { entry, ino, object, from, to } => {
                    cuts += 1;
                    self.uncut.insert((object, entry));
                    self.out.push(Action::Truncate { ticket, entry, ino, object, from, to, record });
                }
                Effect::Free { .. } => self.out.push(Action::FreeWork),
                Effect::Gone { ino } => {
                    self.leases.drop_ino(ino, &mut self.changes.ready);
                    for WaiterId(t) in self.locks.release_ino(ino) {
                        self.answer(Ticket(t), 0, Status::Errno(wire::Errno::ESTALE));
                    }
                }
            }
        }
        cuts
    }

    fn cancel(&mut self, id: OpId) {
        let Some(&ticket) = self.by_id.get(&id) else { return };
        let Some(p) = self.pending.get(&ticket) else { return };
        let waits =
            matches!(p.stage, Stage::Fetching | Stage::Leases | Stage::Gate | Stage::Grace | Stage::Lock);
        if !waits {
            return;
        }
        self.locks.cancel(WaiterId(ticket.0));
        self.answer(ticket, 0, Status::Cancelled);
    }
}

/// The same answer as a failure of the device.
fn fail(action: Action) -> Action {
    match action {
        Action::Reply { id, .. } => Action::Reply {
            id,
            status: Status::Errno(wire::Errno::EIO),
            body: BodyBuf::new(),
            payload: Vec::new(),
        },
        Action::Data { id, .. } => Action::Data { id, admitted: Err(Status::Errno(wire::Errno::EIO)) },
        other => other,
    }
}
