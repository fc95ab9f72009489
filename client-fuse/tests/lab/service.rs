//! The in-memory service with what it lacks for a mount's tests: lifetimes, locks, and a server that can be made to hang.

use client::memory::Memory;
use client::service::*;
use client::{FileService, Interrupt};
use hugepages::Bytes;
use reactor::sync::Notify;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
struct Held {
    ino: Ino,
    lock: LockRequest,
    kind: LockKind,
}

#[derive(Default)]
pub struct Lab {
    pub memory: Memory,
    /// Lifetime of names and attributes.
    pub ttl: Cell<Duration>,
    /// Opens are direct.
    pub direct: Cell<bool>,
    pub invalidator: RefCell<Option<Rc<dyn Invalidator>>>,
    /// Names of the methods called, with how often.
    pub calls: RefCell<std::collections::BTreeMap<&'static str, u64>>,
    locks: RefCell<Vec<Held>>,
    changed: Notify,
    hanging: Cell<bool>,
    revived: Notify,
}

/// The first of two futures.
async fn either<A>(a: impl Future<Output = A>, b: impl Future) -> Option<A> {
    let (mut a, mut b) = (pin!(a), pin!(b));
    poll_fn(|cx| match (a.as_mut().poll(cx), b.as_mut().poll(cx)) {
        (Poll::Ready(value), _) => Poll::Ready(Some(value)),
        (_, Poll::Ready(_)) => Poll::Ready(None),
        _ => Poll::Pending,
    })
    .await
}

impl Lab {
    pub fn hang(&self, on: bool) {
        self.hanging.set(on);
        self.revived.notify_all();
    }
    pub fn calls_of(&self, name: &str) -> u64 {
        self.calls.borrow().get(name).copied().unwrap_or(0)
    }
    pub fn locks_held(&self) -> usize {
        self.locks.borrow().len()
    }
    pub async fn recall(&self, recall: Recall) {
        let invalidator = self.invalidator.borrow().clone().expect("mounted");
        invalidator.invalidate(recall).await;
    }
    /// Each call passes here: counted, and stopped while the server hangs.
    async fn gate(&self, ctx: &Ctx, name: &'static str) -> Result<()> {
        *self.calls.borrow_mut().entry(name).or_default() += 1;
        while self.hanging.get() {
            let dying = ctx.cancel.reached(Interrupt::Kill);
            either(self.revived.notified(), dying).await.ok_or(Errno::EINTR)?;
        }
        Ok(())
    }
    fn conflict(&self, ino: Ino, lock: &LockRequest) -> Option<Held> {
        let LockType::Lock(kind) = lock.kind else { return None };
        let locks = self.locks.borrow();
        let against = |h: &&Held| {
            h.ino == ino
                && h.lock.space == lock.space
                && h.lock.owner != lock.owner
                && h.lock.range.overlaps(&lock.range)
                && (h.kind == LockKind::Write || kind == LockKind::Write)
        };
        locks.iter().find(against).copied()
    }
    fn put_lock(&self, ino: Ino, lock: LockRequest) {
        let mut locks = self.locks.borrow_mut();
        let mut rest = Vec::new();
        for h in locks.drain(..) {
            let same = h.ino == ino && h.lock.space == lock.space && h.lock.owner == lock.owner;
            if !same || !h.lock.range.overlaps(&lock.range) {
                rest.push(h);
                continue;
            }
            let (r, cut) = (h.lock.range, lock.range);
            if r.start < cut.start {
                let range = LockRange { start: r.start, end: cut.start - 1 };
                rest.push(Held { lock: LockRequest { range, ..h.lock }, ..h });
            }
            if r.end > cut.end {
                let range = LockRange { start: cut.end + 1, end: r.end };
                rest.push(Held { lock: LockRequest { range, ..h.lock }, ..h });
            }
        }
        if let LockType::Lock(kind) = lock.kind {
            rest.push(Held { ino, lock, kind });
        }
        *locks = rest;
        drop(locks);
        self.changed.notify_all();
    }
    fn drop_owner(&self, ino: Ino, space: LockSpace, owner: LockOwner) {
        self.locks.borrow_mut().retain(|h| !(h.ino == ino && h.lock.space == space && h.lock.owner == owner));
        self.changed.notify_all();
    }
    fn entry(&self, mut e: Entry) -> Entry {
        e.attr_ttl = self.ttl.get();
        e.entry_ttl = self.ttl.get();
        e
    }
    fn attrs(&self, mut a: Attrs) -> Attrs {
        a.ttl = self.ttl.get();
        a
    }
    fn io(&self, io: IoMode) -> IoMode {
        if self.direct.get() { IoMode::Direct } else { io }
    }
}

impl FileService for Lab {
    fn set_invalidator(&self, invalidator: Rc<dyn Invalidator>) {
        *self.invalidator.borrow_mut() = Some(invalidator);
    }
    async fn lookup(&self, ctx: &Ctx, dir: Ino, name: &[u8]) -> Result<Found> {
        self.gate(ctx, "lookup").await?;
        Ok(match self.memory.lookup(ctx, dir, name).await? {
            Found::Entry(e) => Found::Entry(self.entry(e)),
            Found::Absent { hold, .. } => Found::Absent { entry_ttl: self.ttl.get(), hold },
        })
    }
    fn forget(&self, ino: Ino, n: u64) {
        self.memory.forget(ino, n);
    }
    async fn getattr(&self, ctx: &Ctx, ino: Ino) -> Result<Attrs> {
        self.gate(ctx, "getattr").await?;
        self.memory.getattr(ctx, ino).await.map(|a| self.attrs(a))
    }
    async fn setattr(&self, ctx: &Ctx, ino: Ino, handle: Option<Handle>, set: SetAttr) -> Result<Attrs> {
        self.gate(ctx, "setattr").await?;
        self.memory.setattr(ctx, ino, handle, set).await.map(|a| self.attrs(a))
    }
    async fn readlink(&self, ctx: &Ctx, ino: Ino) -> Result<Bytes> {
        self.gate(ctx, "readlink").await?;
        self.memory.readlink(ctx, ino).await
    }
    async fn create(&self, ctx: &Ctx, dir: Ino, name: &[u8], create: Create<'_>) -> Result<Created> {
        self.gate(ctx, "create").await?;
        let mut made = self.memory.create(ctx, dir, name, create).await?;
        made.opened = made.opened.map(|(handle, io)| (handle, self.io(io)));
        made.entry = self.entry(made.entry);
        Ok(made)
    }
    async fn link(&self, ctx: &Ctx, ino: Ino, dir: Ino, name: &[u8]) -> Result<Entry> {
        self.gate(ctx, "link").await?;
        self.memory.link(ctx, ino, dir, name).await.map(|e| self.entry(e))
    }
    async fn unlink(&self, ctx: &Ctx, dir: Ino, name: &[u8]) -> Result<()> {
        self.gate(ctx, "unlink").await?;
        self.memory.unlink(ctx, dir, name).await
    }
    async fn rmdir(&self, ctx: &Ctx, dir: Ino, name: &[u8]) -> Result<()> {
        self.gate(ctx, "rmdir").await?;
        self.memory.rmdir(ctx, dir, name).await
    }
    fn uncache(&self, ino: Ino) {
        self.memory.uncache(ino);
    }
    async fn rename(
        &self,
        ctx: &Ctx,
        dir: Ino,
        name: &[u8],
        new_dir: Ino,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<Renamed> {
        self.gate(ctx, "rename").await?;
        self.memory.rename(ctx, dir, name, new_dir, new_name, mode).await
    }
    async fn open(&self, ctx: &Ctx, ino: Ino, flags: OpenFlags) -> Result<Opened> {
        self.gate(ctx, "open").await?;
        let mut opened = self.memory.open(ctx, ino, flags).await?;
        opened.io = self.io(opened.io);
        Ok(opened)
    }
    async fn close(&self, ctx: &Ctx, ino: Ino, handle: Handle, flock_owner: Option<LockOwner>) -> Result<()> {
        if let Some(owner) = flock_owner {
            self.drop_owner(ino, LockSpace::Flock, owner);
        }
        self.memory.close(ctx, ino, handle, flock_owner).await
    }
    async fn flush(&self, _: &Ctx, ino: Ino, _: Handle, owner: LockOwner) -> Result<()> {
        *self.calls.borrow_mut().entry("flush").or_default() += 1;
        self.drop_owner(ino, LockSpace::Posix, owner);
        Ok(())
    }
    async fn fsync(&self, ctx: &Ctx, ino: Ino, data_only: bool) -> Result<()> {
        self.gate(ctx, if data_only { "fdatasync" } else { "fsync" }).await?;
        self.memory.fsync(ctx, ino, data_only).await
    }
    async fn sync(&self, ctx: &Ctx) -> Result<()> {
        self.gate(ctx, "sync").await
    }
    async fn read(&self, ctx: &Ctx, ino: Ino, handle: Handle, offset: u64, len: u32) -> Result<ReadData> {
        self.gate(ctx, "read").await?;
        self.memory.read(ctx, ino, handle, offset, len).await
    }
    async fn write(
        &self,
        ctx: &Ctx,
        ino: Ino,
        handle: Handle,
        offset: u64,
        data: Bytes,
        flags: WriteFlags,
    ) -> Result<Written> {
        self.gate(ctx, if flags.sync { "write_sync" } else { "write" }).await?;
        self.memory.write(ctx, ino, handle, offset, data, flags).await
    }
    async fn append(
        &self,
        ctx: &Ctx,
        ino: Ino,
        handle: Handle,
        data: Bytes,
        flags: WriteFlags,
    ) -> Result<Written> {
        self.gate(ctx, "append").await?;
        self.memory.append(ctx, ino, handle, data, flags).await
    }
    async fn fallocate(
        &self,
        ctx: &Ctx,
        ino: Ino,
        handle: Handle,
        mode: u32,
        offset: u64,
        len: u64,
    ) -> Result<Attrs> {
        self.gate(ctx, "fallocate").await?;
        self.memory.fallocate(ctx, ino, handle, mode, offset, len).await.map(|a| self.attrs(a))
    }
    async fn seek(&self, ctx: &Ctx, ino: Ino, handle: Handle, offset: u64, whence: Seek) -> Result<u64> {
        self.gate(ctx, "seek").await?;
        self.memory.seek(ctx, ino, handle, offset, whence).await
    }
    async fn copy_range(&self, ctx: &Ctx, from: Place, to: Place, len: u64) -> Result<u64> {
        self.gate(ctx, "copy_range").await?;
        self.memory.copy_range(ctx, from, to, len).await
    }
    async fn readdir(&self, ctx: &Ctx, dir: Ino, cookie: u64, max: u32, plus: bool) -> Result<DirPage> {
        self.gate(ctx, if plus { "readdirplus" } else { "readdir" }).await?;
        self.memory.readdir(ctx, dir, cookie, max, plus).await
    }
    async fn getxattr(&self, ctx: &Ctx, ino: Ino, name: &[u8]) -> Result<Bytes> {
        self.gate(ctx, "getxattr").await?;
        self.memory.getxattr(ctx, ino, name).await
    }
    async fn setxattr(
        &self,
        ctx: &Ctx,
        ino: Ino,
        name: &[u8],
        value: Bytes,
        flags: XattrFlags,
    ) -> Result<()> {
        self.gate(ctx, "setxattr").await?;
        self.memory.setxattr(ctx, ino, name, value, flags).await
    }
    async fn listxattr(&self, ctx: &Ctx, ino: Ino) -> Result<Bytes> {
        self.gate(ctx, "listxattr").await?;
        self.memory.listxattr(ctx, ino).await
    }
    async fn removexattr(&self, ctx: &Ctx, ino: Ino, name: &[u8]) -> Result<()> {
        self.gate(ctx, "removexattr").await?;
        self.memory.removexattr(ctx, ino, name).await
    }
    async fn statfs(&self, ctx: &Ctx) -> Result<StatFs> {
        self.gate(ctx, "statfs").await?;
        self.memory.statfs(ctx).await
    }
    async fn getlk(&self, _: &Ctx, ino: Ino, _: Handle, lock: LockRequest) -> Result<Option<Conflict>> {
        let found = self.conflict(ino, &lock);
        Ok(found.map(|h| Conflict { kind: h.kind, range: h.lock.range, pid: h.lock.pid }))
    }
    async fn setlk(&self, ctx: &Ctx, ino: Ino, _: Handle, lock: LockRequest, wait: bool) -> Result<()> {
        while self.conflict(ino, &lock).is_some() {
            if !wait {
                return Err(Errno::EAGAIN);
            }
            *self.calls.borrow_mut().entry("lock_wait").or_default() += 1;
            let cancelled = ctx.cancel.reached(Interrupt::Signal);
            either(self.changed.notified(), cancelled).await.ok_or(Errno::EINTR)?;
        }
        self.put_lock(ino, lock);
        Ok(())
    }
}
