//! Locks: taken, waited for and given back at the server, mirrored here to reclaim them.
//!
//! A wait ends with EINTR when it is interrupted; a grant that won the race is given back. After a lost session, owners
//! that had locks get ENOLCK until they have given back what they believe to hold.

use crate::cancel::Interrupt;
use crate::core::Core;
use crate::race::{Either, race};
use crate::rpc::{Outgoing, Pending, Reply};
use crate::service::{Conflict, Ctx, Handle, Ino, LockOwner, LockRequest, Result};
use wire::message;
use wire::types::{Errno, LockKind, LockSpace, LockType, Status};

/// How long a flock that conflicts with another client's is asked for again before that counts: long against a close's way to
/// the server, short for a person.
const LATE_CLOSE: std::time::Duration = std::time::Duration::from_millis(50);

/// One of the slots that waits for locks may occupy: half of all, so that the unlock which ends the wait finds one.
struct WaitSlot<'a>(&'a Core);

impl<'a> WaitSlot<'a> {
    fn take(core: &'a Core) -> Option<Self> {
        let most = core.rpc.terms().map_or(1, |t| t.slots / 2);
        let taken = core.lock_waits.get();
        (taken < most).then(|| {
            core.lock_waits.set(taken + 1);
            Self(core)
        })
    }
}

impl Drop for WaitSlot<'_> {
    fn drop(&mut self) {
        self.0.lock_waits.set(self.0.lock_waits.get() - 1);
    }
}

impl Core {
    pub(crate) async fn getlk(
        &self,
        ctx: &Ctx,
        ino: Ino,
        handle: Handle,
        lock: LockRequest,
    ) -> Result<Option<Conflict>> {
        let (_open, _busy) = self.handle(ino, handle)?;
        let kind = match lock.kind {
            LockType::Lock(kind) => kind,
            LockType::Unlock => LockKind::Read,
        };
        let LockRequest { space, owner, range, pid, .. } = lock;
        let request = message::GetLock { ino, space, owner, kind, range, pid };
        let reply = self.ask(ctx, Outgoing::new(request)).await?;
        let got = self.decode::<message::GetLock>(&reply)?;
        Ok(got.found.then_some(Conflict { kind: got.kind, range: got.range, pid: got.pid }))
    }

    pub(crate) async fn setlk(
        &self,
        ctx: &Ctx,
        ino: Ino,
        handle: Handle,
        lock: LockRequest,
        wait: bool,
    ) -> Result<()> {
        let LockRequest { space, owner, kind, range, pid } = lock;
        let unlock = kind == LockType::Unlock;
        if self.locks.borrow().is_lost(ino, space, owner) {
            // Giving back what is gone works; taking more under the old belief does not.
            return if unlock { Ok(()) } else { Err(Errno::ENOLCK) };
        }
        let _busy = if unlock { None } else { Some(self.handle(ino, handle)?) };
        let request = message::SetLock { ino, space, owner, lock: kind, range, pid, wait };
        if let LockType::Lock(kind) = kind
            && space == LockSpace::Flock
            && self.locks.borrow().converts(ino, owner, kind)
        {
            // A flock that is converted is given up first (flock(2)), whatever becomes of the new one. As a step of its own, so
            // that what is reclaimed after a restart is what is held.
            self.release_owner(ctx, ino, space, owner).await?;
        }
        if wait && !unlock {
            match WaitSlot::take(self) {
                Some(_slot) => self.wait_for_lock(ctx, request).await?,
                None => self.poll_for_lock(ctx, message::SetLock { wait: false, ..request }).await?,
            }
        } else {
            self.try_lock(ctx, request).await?;
        }
        self.locks.borrow_mut().apply(ino, space, owner, kind, range, pid);
        Ok(())
    }

    /// A flock that another client's close(2) has freed may not be free at the server yet: close(2) does not wait for it. So a
    /// conflict counts only if it lasts.
    async fn try_lock(&self, ctx: &Ctx, request: message::SetLock) -> Result<()> {
        let mut backoff = crate::core::Backoff::new();
        let end = self.rpc.now() + LATE_CLOSE;
        loop {
            match self.ask(ctx, Outgoing::new(request)).await {
                Err(Errno::EAGAIN)
                    if request.space == LockSpace::Flock
                        && self.rpc.now() < end
                        && !self.locks.borrow().blocks_flock(request.ino, request.owner, request.lock) => {}
                other => return other.map(|_| ()),
            }
            let pause = self.rpc.sleep(backoff.next());
            if let Either::Right(_) = race(pause, ctx.cancel.reached(Interrupt::Signal)).await {
                return Err(Errno::EINTR);
            }
        }
    }

    /// Asks again and again, where too many waits occupy slots already.
    async fn poll_for_lock(&self, ctx: &Ctx, request: message::SetLock) -> Result<()> {
        let mut backoff = crate::core::Backoff::new();
        loop {
            match self.ask(ctx, Outgoing::new(request)).await {
                Err(Errno::EAGAIN) => {}
                other => return other.map(|_| ()),
            }
            let pause = self.rpc.sleep(backoff.next());
            if let Either::Right(_) = race(pause, ctx.cancel.reached(Interrupt::Signal)).await {
                return Err(Errno::EINTR);
            }
        }
    }

    /// Waits at the server, which answers when the lock is granted.
    async fn wait_for_lock(&self, ctx: &Ctx, request: message::SetLock) -> Result<()> {
        let mut backoff = crate::core::Backoff::new();
        loop {
            if ctx.cancel.state() != Interrupt::None {
                return Err(Errno::EINTR);
            }
            let out = Outgoing::new(request);
            let Pending { id, mut reply } = self.rpc.call(&out);
            let answer: Reply = match race(&mut reply, ctx.cancel.reached(Interrupt::Signal)).await {
                Either::Left(answer) => answer,
                Either::Right(_) => {
                    self.rpc.cancel(id);
                    match race(&mut reply, ctx.cancel.reached(Interrupt::Kill)).await {
                        Either::Left(answer) => return self.interrupted(request, &answer).await,
                        Either::Right(_) => {
                            self.abandon(&out, reply);
                            return Err(Errno::EINTR);
                        }
                    }
                }
            };
            match answer.status {
                Status::Ok => return Ok(()),
                Status::Errno(e) => return Err(e),
                Status::Cancelled => return Err(Errno::EINTR),
                Status::Fenced | Status::UnknownSession => {
                    self.session_gone();
                    if answer.attempts > 1 {
                        return Err(Errno::EIO);
                    }
                }
                Status::Grace | Status::Busy | Status::StaleEpoch | Status::Expired => {}
                status => {
                    tracing::error!(?status, "the server refuses to lock; see its log");
                    return Err(Errno::EIO);
                }
            }
            let pause = self.rpc.sleep(backoff.next());
            race(pause, ctx.cancel.reached(Interrupt::Signal)).await;
        }
    }

    /// The answer came after the interrupt. A lock that was granted all the same is given back, unless the owner held
    /// part of it before: then giving back would take more than was taken, and the grant stands.
    async fn interrupted(&self, request: message::SetLock, answer: &Reply) -> Result<()> {
        match answer.status {
            Status::Ok if self.locks.borrow().concerns(request.ino, request.space, request.owner) => Ok(()),
            Status::Ok => {
                let undo = message::SetLock { lock: LockType::Unlock, wait: false, ..request };
                self.ask(&Ctx::default(), Outgoing::new(undo)).await?;
                Err(Errno::EINTR)
            }
            Status::Errno(e) if e != Errno::EINTR => Err(e),
            // Whether it was granted just before is not known: giving back is right in both cases.
            _ if !self.locks.borrow().concerns(request.ino, request.space, request.owner) => {
                let undo = message::SetLock { lock: LockType::Unlock, wait: false, ..request };
                self.ask(&Ctx::default(), Outgoing::new(undo)).await?;
                Err(Errno::EINTR)
            }
            _ => Err(Errno::EINTR),
        }
    }

    /// All of an owner's locks go back, if there are any.
    pub(crate) async fn release_owner(
        &self,
        ctx: &Ctx,
        ino: Ino,
        space: LockSpace,
        owner: LockOwner,
    ) -> Result<()> {
        let (concerned, lost) = {
            let locks = self.locks.borrow();
            (locks.concerns(ino, space, owner), locks.is_lost(ino, space, owner))
        };
        if !concerned {
            return Ok(());
        }
        // Before the server knows: the process believes them free from now on, so a restart must not bring them back.
        self.locks.borrow_mut().release(ino, space, owner);
        if !lost {
            self.ask(ctx, Outgoing::new(message::ReleaseOwner { ino, space, owner })).await?;
        }
        Ok(())
    }
}
