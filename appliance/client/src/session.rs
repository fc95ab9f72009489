//! The session: opened at each connect, reclaimed after a restart of the server, begun anew when it was lost.
//!
//! What is lost with a session: its leases (caches are invalidated), its locks (files that had some fail with EIO until
//! they are closed), and whatever the server did not answer that it may have executed (EIO). Open files are opened
//! anew by inode; where that is gone they are ESTALE. Must not hold a lease longer than the server may count on it: after
//! a silence of a lease time all caches are dropped.

use crate::core::Core;
use crate::leases::Limits;
use crate::opens::{Open, wire_flags};
use crate::rpc::{Events, LocalFuture, Outgoing, Reply, Scope, Verdict};
use crate::service::Ctx;
use crate::stats::add;
use std::rc::Rc;
use std::time::Duration;
use wire::limits::MAX_LIST;
use wire::message::{self, HeldOpen, SessionFlags, SessionPhase};
use wire::types::{Errno, Grant, Status};
use wire::{Call, Request};

/// Pause before the next attempt where the server does not want the session now.
const PAUSE: Duration = Duration::from_millis(100);
/// Sweep of unused leases; [`Limits::idle_sweeps`] counts in it.
const SWEEP: Duration = Duration::from_secs(30);
/// How long forgotten inodes are collected, so that leases go back in batches.
const COLLECT: Duration = Duration::from_millis(500);
/// Leases given back in one go when the table is full.
const EVICT: usize = 256;

/// Why a step of the set-up failed.
enum Failed {
    /// The connection is gone or useless.
    Connection,
    /// The session is gone.
    Session,
}

impl Events for Core {
    fn connected(&self) -> LocalFuture<Verdict> {
        let Some(core) = self.me.upgrade() else { return Box::pin(async { Verdict::Retry }) };
        Box::pin(async move { core.establish().await })
    }
    fn notified(&self, request: &Request<'_>) {
        match request {
            Request::Recall(r) => self.recalled(r.ino, r.keep, r.serial),
            Request::Fenced(f) => {
                tracing::warn!(reason = ?f.reason, "the server has fenced this mount: caches and locks are lost");
                self.session_gone();
            }
            other => tracing::warn!(op = other.opcode().name(), "unexpected notification"),
        }
    }
}

impl Core {
    /// The server does not know the session any more: connect again and begin a new one.
    pub(crate) fn session_gone(&self) {
        if !self.session.lost.replace(true) {
            self.rpc.renew();
        }
    }

    async fn step<'a, C: Call<'a>>(&self, message: C) -> Result<Reply, Failed>
    where
        Request<'a>: From<C>,
    {
        let mut out = Outgoing::new(message);
        out.scope = Scope::Connection;
        let reply = self.rpc.call(&out).reply.await;
        match reply.status {
            Status::Fenced | Status::UnknownSession => Err(Failed::Session),
            Status::Ok | Status::Errno(_) => Ok(reply),
            status => {
                tracing::debug!(op = C::OPCODE.name(), ?status, "session set-up is refused");
                Err(Failed::Connection)
            }
        }
    }

    async fn establish(&self) -> Verdict {
        self.session.set_up.set(false);
        match self.try_establish().await {
            Ok(verdict) => {
                self.session.set_up.set(true);
                self.session.lapsed.set(false);
                verdict
            }
            Err(Failed::Session) => {
                self.session.lost.set(true);
                Verdict::Renew
            }
            Err(Failed::Connection) => {
                self.rpc.sleep(PAUSE).await;
                Verdict::Retry
            }
        }
    }

    async fn try_establish(&self) -> Result<Verdict, Failed> {
        let mut flags = SessionFlags::none();
        if self.options.read_only {
            flags = flags | SessionFlags::READ_ONLY;
        }
        let reply = self.step(message::OpenSession { flags }).await?;
        if reply.status != Status::Ok {
            return Err(Failed::Connection);
        }
        let state = self.decode::<message::OpenSession>(&reply).map_err(|_| Failed::Connection)?;
        match state.state {
            SessionPhase::New if self.session.known.get() && !self.session.lost.get() => {
                // The server forgot the session. Slots that go on would not fit a new one.
                let _ = self.step(message::CloseSession {}).await;
                Err(Failed::Session)
            }
            SessionPhase::New => {
                if self.session.known.replace(true) {
                    self.start_over();
                }
                self.session.lost.set(false);
                Ok(Verdict::Fresh)
            }
            SessionPhase::Resumed => Ok(Verdict::Resume),
            SessionPhase::Reclaim => {
                self.reclaim().await?;
                Ok(Verdict::Resume)
            }
        }
    }

    /// The server was restarted and asks what this client held.
    async fn reclaim(&self) -> Result<(), Failed> {
        add(&self.stats.events.reclaims, 1);
        let locks = self.locks.borrow().list();
        for page in locks.chunks(MAX_LIST) {
            let reply = self.step(message::ReclaimLocks { locks: page.into() }).await?;
            if let Status::Errno(error) = reply.status {
                tracing::error!(%error, "the server does not give locks back: files with locks fail until closed");
                self.lose_locks();
                break;
            }
        }
        let grants = self.table.borrow().grants();
        let mut accepted: Vec<Grant> = Vec::with_capacity(grants.len());
        for page in grants.chunks(MAX_LIST) {
            let reply = self.step(message::ReclaimLeases { leases: page.into() }).await?;
            if reply.status == Status::Ok {
                let got =
                    self.decode::<message::ReclaimLeases<'_>>(&reply).map_err(|_| Failed::Connection)?;
                accepted.extend(got.grants.iter());
            }
        }
        let opens: Vec<HeldOpen> = self.opens.borrow().all().iter().filter_map(|o| held_open(o)).collect();
        for page in opens.chunks(MAX_LIST) {
            let reply = self.step(message::ReclaimOpens { opens: page.into() }).await?;
            if let Status::Errno(error) = reply.status {
                tracing::error!(%error, "the server does not take open files back; deleted ones may be lost");
            }
        }
        // Before the server counts the session as whole: if the answer is lost, the next connection is asked for nothing.
        let lost = self.table.borrow_mut().reclaimed(&accepted);
        self.run_recalls(&lost);
        self.step(message::ReclaimDone {}).await?;
        tracing::info!(
            leases = accepted.len(),
            locks = locks.len(),
            opens = opens.len(),
            "session reclaimed"
        );
        Ok(())
    }

    /// Nothing of the old session is left.
    fn start_over(&self) {
        add(&self.stats.events.fenced, 1);
        tracing::warn!("the session is lost and a new one begins: locks held before are gone");
        let lost = self.table.borrow_mut().lose_all();
        self.run_recalls(&lost);
        self.lose_locks();
        let opens = self.opens.borrow().all();
        opens.iter().for_each(|o| o.remote.set(0));
        let Some(core) = self.me.upgrade() else { return };
        self.spawn(async move {
            for open in opens {
                core.reopen(&open).await;
            }
        });
    }

    /// Files whose locks are lost must not go on as if they had them.
    fn lose_locks(&self) {
        let mut locks = self.locks.borrow_mut();
        locks.lose_all();
        for open in self.opens.borrow().all() {
            if locks.is_lost_on(open.ino) {
                open.dead.set(Some(Errno::EIO));
            }
        }
    }

    async fn reopen(&self, open: &Rc<Open>) {
        if open.closed.get() || open.remote.get() != 0 {
            return;
        }
        let request = message::Open { ino: open.ino, flags: wire_flags(open.flags, true), cred: open.cred };
        let result = match self.ask(&Ctx::default(), Outgoing::new(request)).await {
            Ok(reply) => self.decode::<message::Open>(&reply),
            Err(e) => Err(e),
        };
        match result {
            Ok(opened) => {
                open.object.set(opened.attr.object());
                open.remote.set(opened.handle);
                if open.closed.get() {
                    let close = message::Close { ino: open.ino, handle: opened.handle };
                    // Nobody is left to hear of an error.
                    let _ = self.ask(&Ctx::default(), Outgoing::new(close)).await;
                }
            }
            Err(error) => {
                tracing::warn!(ino = open.ino.0, %error, "an open file could not be opened anew: it is stale");
                if open.dead.get().is_none() {
                    open.dead.set(Some(Errno::ESTALE));
                }
            }
        }
    }

    /// Task: drops all caches where the server is silent for longer than a lease, since it may have given others what
    /// they hold.
    pub(crate) async fn watch_silence(self: Rc<Self>) {
        loop {
            let lease = self.rpc.terms().map_or(Duration::from_secs(10), |t| t.lease);
            self.rpc.sleep((lease / 8).max(Duration::from_millis(10))).await;
            if self.rpc.silence() <= lease || !self.session.known.get() {
                continue;
            }
            if !self.session.lapsed.replace(true) {
                add(&self.stats.events.lapses, 1);
                tracing::warn!("nothing heard from the server for a lease time: caches are dropped");
                let lost = self.table.borrow_mut().lose_all();
                self.run_recalls(&lost);
            }
        }
    }

    /// Task: keeps the table within its bounds and gives back what is unused.
    pub(crate) async fn housekeep(self: Rc<Self>) {
        let mut swept = self.rpc.now();
        loop {
            let next = self.rpc.sleep(SWEEP);
            crate::race::race(self.housekeeping.notified(), next).await;
            if self.rpc.now() - swept >= SWEEP {
                swept = self.rpc.now();
                let idle = self.table.borrow_mut().sweep(Limits::default().inodes);
                self.return_unused(idle).await;
            }
            if !self.forgotten.borrow().is_empty() {
                self.rpc.sleep(COLLECT).await;
                let forgotten = self.forgotten.take();
                self.return_unused(forgotten).await;
            }
            while self.table.borrow().is_full() {
                let old = self.table.borrow_mut().evict(EVICT);
                if old.is_empty() {
                    break;
                }
                self.return_unused(old).await;
            }
        }
    }
}

fn held_open(open: &Open) -> Option<HeldOpen> {
    let handle = open.remote.get();
    (handle != 0).then(|| HeldOpen { ino: open.ino, handle, flags: wire_flags(open.flags, true) })
}
