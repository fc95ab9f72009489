//! Giving leases back: invalidate what they covered, then tell the server.
//!
//! Drives `leases.rs` and `gate.rs`. The steps of one recall:
//! 1. from its arrival on nothing new is cached, and no reply carries a lifetime (`Table::recall`);
//! 2. replies with a lifetime that are on their way to the kernel arrive there (their holds are dropped);
//! 3. the front end invalidates; reads and writes go on being served, since their pages are locked;
//! 4. what was served meanwhile is invalidated again; in these rounds new reads (later writes, too) wait, but only for
//!    a bounded time, since the invalidation may wait for their pages after all (a large folio, say);
//! 5. LeaseReturn, and when it is answered those that waited go on, under a new lease.
//!
//! Must not hold back anything but reads and writes of the one file, and these only in step 4. What steps 2 and 3 wait for
//! may be a rename of this client's own that waits for another client's lease: it is asked to give way (`changes.rs`).

use crate::core::Core;
use crate::gate::{Closed, Gate};
use crate::leases::{Begin, Job};
use crate::race::{Either, race};
use crate::rpc::{Outgoing, Scope};
use crate::service::{Invalidator, Recall, Stale};
use crate::stats::add;
use reactor::sync::{Notify, oneshot};
use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use wire::limits::MAX_LIST;
use wire::message::{LeaseReturn, Returned};
use wire::types::{Ino, LeaseMode, Status};

/// How long the first round with waiting requests may take, and the longest; a round takes far less than the first
/// unless it waits for one of them.
const ROUND: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(640));

/// Rounds in which only reads wait. Writers in a loop are held back after.
const ROUNDS_FOR_WRITES: u32 = 4;

/// How long own changes of names may hold up an invalidation before they are asked to give way: they take less unless they
/// wait for a lease.
const OWN_FIRST: Duration = Duration::from_millis(5);

/// Turns of that after which all changes are asked, not only those known to be of the directory.
const TURNS_FOR_EVERY: u32 = 5;

/// Recalls of the client's own that run side by side.
const SIDE_BY_SIDE: usize = 64;

/// Pause before a LeaseReturn is sent again while there is no connection.
const RESEND: Duration = Duration::from_millis(20);

struct Item {
    returned: Returned,
    life: u64,
    done: Option<oneshot::Sender<()>>,
}

/// Leases on their way back.
#[derive(Default)]
pub(crate) struct Returns {
    queue: RefCell<Vec<Item>>,
    some: Notify,
}

impl Core {
    /// A recall from the server.
    pub(crate) fn recalled(&self, ino: Ino, keep: LeaseMode, serial: u64) {
        add(&self.stats.events.recalls, 1);
        self.begin(ino, keep, serial);
    }

    fn begin(&self, ino: Ino, keep: LeaseMode, serial: u64) {
        let begin = self.table.borrow_mut().recall(ino, keep, serial);
        match begin {
            Begin::Return(returned) => self.give_back(returned, None),
            Begin::Merged => {}
            Begin::Start => {
                let Some(core) = self.me.upgrade() else { return };
                self.spawn(async move { core.run_recall(ino).await });
            }
        }
    }

    /// Gives back the lease of an inode unasked, whatever is under way on it.
    pub(crate) fn uncache(&self, ino: Ino) {
        let serial = self.table.borrow().serial(ino);
        if let Some(serial) = serial {
            self.begin(ino, LeaseMode::None, serial);
        }
    }

    /// Gives back leases unasked, several at a time.
    pub(crate) async fn return_unused(&self, inodes: Vec<Ino>) {
        let mut begun = Vec::new();
        for ino in inodes {
            let begin = self.table.borrow_mut().recall_own(ino);
            match begin {
                Some(Begin::Return(returned)) => self.give_back(returned, None),
                Some(Begin::Start) => begun.push(ino),
                Some(Begin::Merged) | None => {}
            }
        }
        for lane in self.run_recalls(&begun) {
            // Closed where the client ends.
            let _ = lane.await;
        }
    }

    /// Runs recalls that the table has begun by itself. Each of what is returned tells when its part of them is done.
    pub(crate) fn run_recalls(&self, inodes: &[Ino]) -> Vec<oneshot::Receiver<()>> {
        let mut lanes = Vec::new();
        for first in 0..SIDE_BY_SIDE.min(inodes.len()) {
            let mine: Vec<Ino> = inodes.iter().skip(first).step_by(SIDE_BY_SIDE).copied().collect();
            let Some(core) = self.me.upgrade() else { break };
            let (done, lane) = oneshot::channel();
            lanes.push(lane);
            self.spawn(async move {
                for ino in mine {
                    core.run_recall(ino).await;
                }
                let _ = done.send(());
            });
        }
        lanes
    }

    pub(crate) async fn run_recall(&self, ino: Ino) {
        let invalidator = self.invalidator.borrow().clone();
        loop {
            let Some(job) = self.table.borrow_mut().job(ino) else { return };
            self.patiently(ino, job.replies.drained()).await;
            self.invalidate(ino, &job, invalidator.as_ref()).await;
            let (returned, life) = {
                let mut table = self.table.borrow_mut();
                (table.finish(ino), table.life())
            };
            let Some(returned) = returned else {
                // Nobody may wait while the kernel's locked pages are waited for.
                job.gate.inspect(|g| g.open());
                continue;
            };
            if returned.serial != 0 {
                let (done, answered) = oneshot::channel();
                self.returns.push(Item { returned, life, done: Some(done) });
                // Closed where the session is another by now: then there is nothing to wait for.
                let _ = answered.await;
            }
            if let Some(gate) = job.gate {
                gate.reset();
            }
            return;
        }
    }

    async fn invalidate(&self, ino: Ino, job: &Job, invalidator: Option<&Rc<dyn Invalidator>>) {
        let names = if job.keep < LeaseMode::Exclusive {
            self.table.borrow_mut().take_names(ino)
        } else {
            Vec::new()
        };
        let Some(invalidator) = invalidator else { return };
        if let Some(gate) = job.gate.as_ref().filter(|_| job.data) {
            gate.track();
        }
        if job.attrs || job.data || !names.is_empty() {
            let data = if job.data { Stale::All } else { Stale::Nothing };
            let named = !names.is_empty();
            let work = invalidator.invalidate(Recall { ino, attrs: job.attrs, data, names });
            if named { self.patiently(ino, work).await } else { work.await }
        }
        if let Some(gate) = job.gate.as_ref().filter(|_| job.data && job.keep == LeaseMode::None) {
            self.rounds(ino, gate, invalidator).await;
        }
    }

    /// Waits for what may wait for own changes of names of `dir` in turn; these are asked to give way then.
    async fn patiently(&self, dir: Ino, work: impl Future<Output = ()>) {
        let mut work = pin!(work);
        for turn in 1_u32.. {
            if let Either::Left(()) = race(work.as_mut(), self.rpc.sleep(OWN_FIRST)).await {
                return;
            }
            self.changes.give_way(dir, turn >= TURNS_FOR_EVERY);
        }
    }

    /// Invalidates what was served meanwhile. When it returns, reads and writes wait and nothing is cached.
    async fn rounds(&self, ino: Ino, gate: &Rc<Gate>, invalidator: &Rc<dyn Invalidator>) {
        let mut limit = ROUND.0;
        for round in 0_u32.. {
            gate.close(if round < ROUNDS_FOR_WRITES { Closed::Reads } else { Closed::All });
            gate.drained().await;
            let dirty = gate.take_dirty();
            if dirty.is_empty() {
                return;
            }
            add(&self.stats.events.rounds, 1);
            let data = Stale::Ranges(dirty.into_inner());
            let mut work = invalidator.invalidate(Recall { ino, data, ..Recall::default() });
            if let Either::Right(()) = race(&mut work, self.rpc.sleep(limit)).await {
                gate.open();
                work.await;
                limit = (limit * 2).min(ROUND.1);
            }
        }
    }

    /// Queues a LeaseReturn.
    pub(crate) fn give_back(&self, returned: Returned, done: Option<oneshot::Sender<()>>) {
        let life = self.table.borrow().life();
        self.returns.push(Item { returned, life, done });
    }

    /// Task: sends what is given back, in batches.
    pub(crate) async fn send_returns(self: Rc<Self>) {
        loop {
            self.returns.some.notified().await;
            loop {
                let batch: Vec<Item> = {
                    let mut queue = self.returns.queue.borrow_mut();
                    let n = queue.len().min(MAX_LIST);
                    queue.drain(..n).collect()
                };
                if batch.is_empty() {
                    break;
                }
                self.send_batch(batch).await;
            }
        }
    }

    /// What an earlier life of the session held is of no interest to a restarted server.
    async fn send_batch(&self, mut batch: Vec<Item>) {
        loop {
            let life = self.table.borrow().life();
            batch.retain(|item| item.life == life);
            if batch.is_empty() {
                return;
            }
            let leases: Vec<Returned> = batch.iter().map(|item| item.returned).collect();
            let mut out = Outgoing::new(LeaseReturn { leases: leases.as_slice().into() });
            out.scope = Scope::Connection;
            let set_up = self.session.set_up.get();
            let reply = self.rpc.call(&out).reply.await;
            match reply.status {
                // It came before the session was opened on a new connection. Whether it is lost, the opening tells.
                Status::UnknownSession if !set_up => self.rpc.sleep(RESEND).await,
                Status::Cancelled | Status::Busy | Status::Grace | Status::StaleEpoch | Status::Expired => {
                    self.rpc.sleep(RESEND).await;
                }
                Status::Fenced | Status::UnknownSession => {
                    self.session_gone();
                    self.rpc.sleep(RESEND).await;
                }
                _ => break,
            }
        }
        for done in batch.into_iter().filter_map(|item| item.done) {
            // The recall may have been given up with its client.
            let _ = done.send(());
        }
    }

    /// Task: invalidates what was cached without a lease.
    pub(crate) async fn invalidate_late(self: Rc<Self>) {
        let late = self.table.borrow().late();
        loop {
            for (ino, range) in late.next().await {
                add(&self.stats.events.uncovered, 1);
                let Some(invalidator) = self.invalidator.borrow().clone() else { continue };
                let data = Stale::Ranges([range].into_iter().collect());
                let work = invalidator.invalidate(Recall { ino, data, ..Recall::default() });
                self.spawn(work);
            }
        }
    }
}

impl Returns {
    fn push(&self, item: Item) {
        self.queue.borrow_mut().push(item);
        self.some.notify_one();
    }
    /// Nothing waits to be sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.borrow().is_empty()
    }
}
