//! The heart of the client: its state, and how a request is asked until there is an answer.
//!
//! Owns retry (grace, busy, lost connections and sessions never reach an application) and giving up. Must not know what
//! the operations mean; those are in `op_*.rs`.

use crate::cancel::Interrupt;
use crate::changes::Changes;
use crate::client::Options;
use crate::hold::{Counter, Hold};
use crate::leases::{Cover, Since, Table};
use crate::locks::Locks;
use crate::opens::Opens;
use crate::race::{Either, race};
use crate::recall::Returns;
use crate::rpc::{LocalFuture, Outgoing, Pending, Reply, Rpc};
use crate::service::{Attrs, Ctx, Entry, Ino, Invalidator, Result, TTL_LEASED};
use crate::stats::{Stats, add};
use reactor::sync::{Event, Notify};
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;
use wire::message::{self, Cred};
use wire::types::{Attr, Errno, Grant, LeaseMode, LockType, Status};
use wire::{Call, Class, Request};

/// First and longest pause before a refused request is asked again: short against a person, long against the server's
/// work on a request.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));

/// Grows from one pause to the next.
pub(crate) struct Backoff(Duration);

impl Backoff {
    pub(crate) fn new() -> Self {
        Self(BACKOFF.0)
    }
    pub(crate) fn next(&mut self) -> Duration {
        let now = self.0;
        self.0 = (now * 2).min(BACKOFF.1);
        now
    }
}

/// Why there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The operation failed.
    Errno(Errno),
    /// The file has another object by now.
    StaleObject,
}

impl From<Refused> for Errno {
    fn from(r: Refused) -> Self {
        match r {
            Refused::Errno(e) => e,
            Refused::StaleObject => Self::ESTALE,
        }
    }
}

/// Where the session stands.
#[derive(Debug, Default)]
pub(crate) struct SessionFlags {
    /// It was opened once: a new one means that all is lost.
    pub(crate) known: Cell<bool>,
    /// The server has given it up.
    pub(crate) lost: Cell<bool>,
    /// Caches were dropped because the server is silent.
    pub(crate) lapsed: Cell<bool>,
    /// The latest connection's set-up has ended well. Before, the server may not know the session yet.
    pub(crate) set_up: Cell<bool>,
    /// `shutdown` has begun.
    pub(crate) stopping: Cell<bool>,
}

/// What is left behind by a request that nobody waits for any more.
enum Orphan {
    Nothing,
    Opened,
    Created,
    Lock(message::SetLock),
}

/// All state of a client.
pub(crate) struct Core {
    pub(crate) me: Weak<Core>,
    pub(crate) rpc: Rc<dyn Rpc>,
    pub(crate) options: Options,
    pub(crate) table: RefCell<Table>,
    pub(crate) opens: RefCell<Opens>,
    pub(crate) locks: RefCell<Locks>,
    pub(crate) stats: Stats,
    pub(crate) invalidator: RefCell<Option<Rc<dyn Invalidator>>>,
    pub(crate) returns: Returns,
    pub(crate) session: SessionFlags,
    /// Operations under way.
    pub(crate) busy: Rc<Counter>,
    pub(crate) forgotten: RefCell<Vec<Ino>>,
    pub(crate) housekeeping: Notify,
    /// Waits for locks that occupy a slot at the server.
    pub(crate) lock_waits: Cell<u16>,
    /// Own changes of names under way.
    pub(crate) changes: Changes,
    /// Rung at the end.
    pub(crate) stop: Rc<Event>,
}

pub(crate) fn cred(ctx: &Ctx) -> Cred {
    Cred { uid: ctx.uid, gid: ctx.gid }
}

impl Core {
    pub(crate) fn new(rpc: Rc<dyn Rpc>, options: Options) -> Rc<Self> {
        Rc::new_cyclic(|me| Self {
            me: me.clone(),
            rpc,
            table: RefCell::new(Table::new(options.limits)),
            options,
            opens: RefCell::default(),
            locks: RefCell::default(),
            stats: Stats::default(),
            invalidator: RefCell::default(),
            returns: Returns::default(),
            session: SessionFlags::default(),
            busy: Rc::default(),
            forgotten: RefCell::default(),
            housekeeping: Notify::new(),
            lock_waits: Cell::new(0),
            changes: Changes::default(),
            stop: Rc::default(),
        })
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.rpc.spawn(Box::pin(task));
    }

    /// Asks until there is an answer that the application may see.
    pub(crate) async fn ask(&self, ctx: &Ctx, out: Outgoing<'_>) -> Result<Reply> {
        self.ask_data(ctx, &out).await.map_err(Errno::from)
    }

    /// As [`Core::ask`], for requests that name a data object.
    pub(crate) async fn ask_data(
        &self,
        ctx: &Ctx,
        out: &Outgoing<'_>,
    ) -> std::result::Result<Reply, Refused> {
        let once = out.request.opcode().class() == Class::Once;
        let mut backoff = Backoff::new();
        loop {
            if self.session.stopping.get() {
                return Err(Refused::Errno(Errno::EIO));
            }
            let gives_way = out.gives_way.as_ref().is_some_and(|e| e.is_set());
            if gives_way {
                return Err(Refused::Errno(Errno::EDEADLK));
            }
            let reply = self.send(ctx, out, once).await?;
            match reply.status {
                Status::Ok => return Ok(reply),
                Status::Errno(e) => return Err(Refused::Errno(e)),
                Status::StaleObject => return Err(Refused::StaleObject),
                Status::Fenced | Status::UnknownSession => {
                    self.session_gone();
                    if once && reply.attempts > 1 {
                        // Whether it was executed can't be known any more.
                        return Err(Refused::Errno(Errno::EIO));
                    }
                }
                Status::Grace | Status::Busy | Status::StaleEpoch | Status::Expired => {}
                Status::Cancelled if out.gives_way.as_ref().is_some_and(|e| e.is_set()) => {
                    return Err(Refused::Errno(Errno::EDEADLK));
                }
                Status::Cancelled => return Err(Refused::Errno(Errno::EINTR)),
                Status::Unsupported => return Err(Refused::Errno(Errno::EOPNOTSUPP)),
                Status::BadSequence | Status::Denied | Status::Malformed | Status::Unknown(_) => {
                    let op = out.request.opcode().name();
                    tracing::error!(op, status = ?reply.status, "the server refuses a request; see its log");
                    return Err(Refused::Errno(Errno::EIO));
                }
            }
            add(&self.stats.events.retries, 1);
            self.pause(ctx, backoff.next()).await?;
        }
    }

    /// Waits; ends early with EINTR where the process is about to die.
    pub(crate) async fn pause(&self, ctx: &Ctx, time: Duration) -> std::result::Result<(), Refused> {
        match race(self.rpc.sleep(time), ctx.cancel.reached(Interrupt::Kill)).await {
            Either::Left(()) => Ok(()),
            Either::Right(_) => Err(Refused::Errno(Errno::EINTR)),
        }
    }

    async fn send(&self, ctx: &Ctx, out: &Outgoing<'_>, once: bool) -> std::result::Result<Reply, Refused> {
        let Pending { id, mut reply } = self.rpc.call(out);
        if let Some(event) = &out.gives_way {
            let asked = race(event.wait(), ctx.cancel.reached(Interrupt::Kill));
            match race(&mut reply, asked).await {
                Either::Left(answer) => return Ok(answer),
                // Whether it ran, its answer tells.
                Either::Right(Either::Left(())) => self.rpc.cancel(id),
                Either::Right(Either::Right(_)) => {}
            }
        }
        match race(&mut reply, ctx.cancel.reached(Interrupt::Kill)).await {
            Either::Left(answer) => Ok(answer),
            Either::Right(_) => {
                if once {
                    self.abandon(out, reply);
                }
                Err(Refused::Errno(Errno::EINTR))
            }
        }
    }

    /// Lets a request that changes something run to its end, and undoes what would be left over.
    pub(crate) fn abandon(&self, out: &Outgoing<'_>, reply: LocalFuture<Reply>) {
        let orphan = match &out.request {
            Request::Open(_) => Orphan::Opened,
            Request::Create(_) => Orphan::Created,
            Request::SetLock(lock) if lock.lock != LockType::Unlock => Orphan::Lock(*lock),
            _ => Orphan::Nothing,
        };
        let changed: [Option<Ino>; 2] = match &out.request {
            Request::SetAttr(r) => [Some(r.ino), None],
            Request::SetXattr(r) => [Some(r.ino), None],
            Request::RemoveXattr(r) => [Some(r.ino), None],
            Request::Fallocate(r) => [Some(r.ino), None],
            Request::ChunkWrite(r) => [Some(r.ino), None],
            Request::Append(r) => [Some(r.ino), None],
            Request::CopyRange(r) => [Some(r.dst), None],
            Request::Link(r) => [Some(r.ino), Some(r.dir)],
            Request::Create(r) => [Some(r.dir), None],
            Request::Unlink(r) => [Some(r.dir), None],
            Request::Rmdir(r) => [Some(r.dir), None],
            Request::Rename(r) => [Some(r.dir), Some(r.new_dir)],
            _ => [None, None],
        };
        let keep = out.keep.clone();
        let Some(core) = self.me.upgrade() else { return };
        self.spawn(async move {
            let reply = reply.await;
            drop(keep);
            // Nobody took in what it changed, so nothing of that may stay cached.
            changed.into_iter().flatten().for_each(|ino| core.uncache(ino));
            if reply.status == Status::Ok {
                core.undo(orphan, &reply).await;
            }
        });
    }

    async fn undo(&self, orphan: Orphan, reply: &Reply) {
        let request = match orphan {
            Orphan::Nothing => return,
            Orphan::Lock(lock) => {
                Request::from(message::SetLock { lock: LockType::Unlock, wait: false, ..lock })
            }
            Orphan::Opened => match self.decode::<message::Open>(reply) {
                Ok(o) => message::Close { ino: o.attr.ino(), handle: o.handle }.into(),
                Err(_) => return,
            },
            Orphan::Created => match self.decode::<message::Create<'_>>(reply) {
                Ok(c) if c.handle != 0 => message::Close { ino: c.attr.ino(), handle: c.handle }.into(),
                _ => return,
            },
        };
        // An error leaves nothing that could be done: the handle or lock is gone with the session at the latest.
        let _ = self.ask(&Ctx::default(), Outgoing::new(request)).await;
    }

    /// Body of an answer.
    pub(crate) fn decode<'r, C: Call<'r>>(&self, reply: &'r Reply) -> Result<C::Reply<'r>> {
        reply.decode::<C>().map_err(|error| {
            let op = C::OPCODE.name();
            tracing::error!(op, %error, "the server's answer is malformed; do both sides run the same version?");
            Errno::EIO
        })
    }

    /// May anything be given a lifetime?
    pub(crate) fn caches(&self) -> bool {
        self.invalidator.borrow().is_some()
    }

    /// Takes a reply's attributes and grant; tells what covers them.
    pub(crate) fn learn(&self, attr: &Attr, since: Since, grant: &Grant) -> Cover {
        let mut table = self.table.borrow_mut();
        let cover = table.settle(attr.ino(), since, grant);
        let sure = table.store(attr, since, cover);
        if table.is_full() {
            self.housekeeping.notify_one();
        }
        if sure { cover } else { LeaseMode::None }
    }

    /// As [`Core::learn`], of an own change: what was known before it must go where the reply's attributes are not kept.
    pub(crate) fn learn_change(&self, attr: &Attr, since: Since, grant: &Grant) -> Cover {
        let cover = self.learn(attr, since, grant);
        if cover == LeaseMode::None {
            self.table.borrow_mut().forget_attr(attr.ino());
        }
        cover
    }

    /// Attributes for a front end.
    pub(crate) fn attrs(&self, attr: Attr, cover: Cover) -> Attrs {
        if cover == LeaseMode::None || !self.caches() {
            return Attrs { attr, ttl: Duration::ZERO, hold: Hold::none() };
        }
        let out = self.table.borrow_mut().attrs_out(attr.ino());
        Attrs { attr, ttl: TTL_LEASED, hold: Hold::new(Some(out), None) }
    }

    /// A name's inode for a front end. `named` is the directory where the name may have a lifetime.
    pub(crate) fn entry(&self, attr: Attr, cover: Cover, named: Option<Ino>) -> Entry {
        let mut table = self.table.borrow_mut();
        let inode = (cover != LeaseMode::None && self.caches()).then(|| table.attrs_out(attr.ino()));
        let dir = named.map(|dir| table.names_out(dir));
        Entry {
            attr,
            attr_ttl: if inode.is_some() { TTL_LEASED } else { Duration::ZERO },
            entry_ttl: if dir.is_some() { TTL_LEASED } else { Duration::ZERO },
            hold: Hold::new(inode, dir),
        }
    }

    /// Attributes as the server has them now, or surely cached ones.
    pub(crate) async fn fresh_attr(&self, ctx: &Ctx, ino: Ino) -> Result<(Attr, Cover, bool)> {
        let (cached, since) = {
            let mut table = self.table.borrow_mut();
            (table.attr(ino).map(|a| (a, table.cover(ino))), table.since(ino))
        };
        if let Some((attr, cover)) = cached {
            return Ok((attr, cover, true));
        }
        let reply = self.ask(ctx, Outgoing::new(message::GetAttr { ino })).await?;
        let got = self.decode::<message::GetAttr>(&reply)?;
        let cover = self.learn(&got.attr, since, &got.grant);
        Ok((got.attr, cover, false))
    }
}
