//! The client of one mount: start, stop, and [`FileService`] by delegation.
//!
//! Thin: each method counts, times and calls the operation in `op_*.rs`.

use crate::core::Core;
use crate::leases::Limits;
use crate::link::{Endpoint, Link};
use crate::rpc::{Outgoing, Rpc, Scope};
use crate::service::*;
use crate::stats::{Op, Snapshot};
use hugepages::Bytes;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use wire::message;
use wire::types::{LeaseMode, LockSpace};

/// How a client behaves. The default suits a read-write mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Nothing will be changed; the server refuses it, too.
    pub read_only: bool,
    /// Reads leave access times alone.
    pub noatime: bool,
    /// Listings leave those of directories alone; `noatime` includes it.
    pub nodiratime: bool,
    /// Bounds of the lease table.
    pub limits: Limits,
}

impl Core {
    /// Runs a task until the client stops.
    fn background(&self, task: impl Future<Output = ()> + 'static) {
        let stop = Rc::clone(&self.stop);
        self.spawn(async move {
            crate::race::race(task, stop.wait()).await;
        });
    }
}

/// How long `shutdown` waits for the server; what is not given back then is fenced in time by the server itself.
const FAREWELL: Duration = Duration::from_secs(5);

/// A mount's client. Clones are handles of the same one. Everything runs on the thread that made it.
#[derive(Clone)]
pub struct Client {
    core: Rc<Core>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// A client over any [`Rpc`]: starts to connect, and to do its housekeeping.
    #[must_use]
    pub fn new(rpc: Rc<dyn Rpc>, options: Options) -> Self {
        let core = Core::new(rpc, options);
        core.background(Rc::clone(&core).send_returns());
        core.background(Rc::clone(&core).invalidate_late());
        core.background(Rc::clone(&core).watch_silence());
        core.background(Rc::clone(&core).housekeep());
        core.rpc.start(Rc::clone(&core) as Rc<dyn crate::rpc::Events>);
        Self { core }
    }

    /// Connects to a server. Runs on a reactor's thread. While the server can't be reached it goes on trying: bound it
    /// with a timeout, and call [`Client::shutdown`] on none.
    ///
    /// # Errors
    /// Where trying again can't help: a wrong key, another protocol version, something that is not a server.
    pub async fn connect(
        endpoint: Endpoint,
        options: Options,
    ) -> std::result::Result<Self, transport::Error> {
        let (link, first) = Link::new(endpoint);
        let client = Self::new(link, options);
        let starting = Starting(Some(client));
        first.await.unwrap_or(Err(transport::Error::Stopped))?;
        starting.done().ok_or(transport::Error::Stopped)
    }

    /// Counters of this moment.
    #[must_use]
    pub fn stats(&self) -> Snapshot {
        let (core, e) = (&self.core, &self.core.stats.events);
        let table = core.table.borrow();
        Snapshot {
            ops: core.stats.ops(),
            read_bytes: e.read_bytes.get(),
            written_bytes: e.written_bytes.get(),
            leases: table.held(),
            names: table.names,
            handles: core.opens.borrow().len(),
            lock_owners: core.locks.borrow().len(),
            recalls: e.recalls.get(),
            rounds: e.rounds.get(),
            uncovered: e.uncovered.get(),
            reclaims: e.reclaims.get(),
            fenced: e.fenced.get(),
            lapses: e.lapses.get(),
            retries: e.retries.get(),
            gave_way: e.gave_way.get(),
        }
    }

    /// Ends the session: operations under way end first, then leases go back, what was written becomes durable, and the
    /// session is closed. For after the unmount, when no new operation comes. Gives up on a server that does not
    /// answer for 5 s.
    pub async fn shutdown(&self) {
        let core = &self.core;
        let farewell = async {
            core.busy.drained().await;
            // A server that can't any more has its own promise to keep: nothing was left here.
            let _ = core
                .ask(&Ctx::default(), Outgoing::new(message::Commit { ino: Ino(0), data_only: false }))
                .await;
            let held: Vec<Ino> = core.table.borrow().grants().iter().map(wire::Grant::ino).collect();
            core.return_unused(held).await;
            while !core.returns.is_empty() {
                core.rpc.sleep(Duration::from_millis(1)).await;
            }
            let mut out = Outgoing::new(message::CloseSession {});
            out.scope = Scope::Connection;
            let _ = core.rpc.call(&out).reply.await;
        };
        crate::race::race(farewell, core.rpc.sleep(FAREWELL)).await;
        self.stop();
        core.rpc.close().await;
    }

    fn stop(&self) {
        self.core.session.stopping.set(true);
        self.core.stop.set();
    }

    async fn timed<T>(&self, op: Op, work: impl Future<Output = Result<T>>) -> Result<T> {
        let began = self.core.rpc.now();
        let _busy = self.core.busy();
        let result = work.await;
        self.core.stats.record(op, self.core.rpc.now().saturating_sub(began), result.is_ok());
        result
    }
}

/// A client whose first connection is not there yet; ends it where that is given up.
struct Starting(Option<Client>);

impl Starting {
    fn done(mut self) -> Option<Client> {
        self.0.take()
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            client.stop();
            drop(client.core.rpc.close());
        }
    }
}

impl FileService for Client {
    fn set_invalidator(&self, invalidator: Rc<dyn Invalidator>) {
        *self.core.invalidator.borrow_mut() = Some(invalidator);
    }

    async fn lookup(&self, ctx: &Ctx, dir: Ino, name: &[u8]) -> Result<Found> {
        self.timed(Op::Lookup, self.core.lookup(ctx, dir, name)).await
    }
    fn forget(&self, ino: Ino, _: u64) {
        if self.core.table.borrow().cover(ino) != LeaseMode::None {
            self.core.forgotten.borrow_mut().push(ino);
            self.core.housekeeping.notify_one();
        }
    }
    fn uncache(&self, ino: Ino) {
        self.core.uncache(ino);
    }
    async fn getattr(&self, ctx: &Ctx, ino: Ino) -> Result<Attrs> {
        self.timed(Op::GetAttr, self.core.getattr(ctx, ino)).await
    }
    async fn setattr(&self, ctx: &Ctx, ino: Ino, handle: Option<Handle>, set: SetAttr) -> Result<Attrs> {
        self.timed(Op::SetAttr, self.core.setattr(ctx, ino, handle, set)).await
    }
    async fn readlink(&self, ctx: &Ctx, ino: Ino) -> Result<Bytes> {
        self.timed(Op::ReadLink, self.core.readlink(ctx, ino)).await
    }

    async fn create(&self, ctx: &Ctx, dir: Ino, name: &[u8], create: Create<'_>) -> Result<Created> {
        self.timed(Op::Create, self.core.create(ctx, dir, name, create)).await
    }
    async fn link(&self, ctx: &Ctx, ino: Ino, dir: Ino, name: &[u8]) -> Result<Entry> {
        self.timed(Op::Link, self.core.link(ctx, ino, dir, name)).await
    }
    async fn unlink(&self, ctx: &Ctx, dir: Ino, name: &[u8]) -> Result<()> {
        self.timed(Op::Unlink, self.core.remove(ctx, dir, name, false)).await
    }
    async fn rmdir(&self, ctx: &Ctx, dir: Ino, name: &[u8]) -> Result<()> {
        self.timed(Op::Rmdir, self.core.remove(ctx, dir, name, true)).await
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
        self.timed(Op::Rename, self.core.rename(ctx, (dir, name), (new_dir, new_name), mode)).await
    }

    async fn open(&self, ctx: &Ctx, ino: Ino, flags: OpenFlags) -> Result<Opened> {
        self.timed(Op::Open, self.core.open(ctx, ino, flags)).await
    }
    async fn close(&self, ctx: &Ctx, ino: Ino, handle: Handle, flock_owner: Option<LockOwner>) -> Result<()> {
        self.timed(Op::Close, self.core.close(ctx, ino, handle, flock_owner)).await
    }
    async fn flush(&self, ctx: &Ctx, ino: Ino, _: Handle, owner: LockOwner) -> Result<()> {
        self.timed(Op::Flush, self.core.release_owner(ctx, ino, LockSpace::Posix, owner)).await
    }
    async fn fsync(&self, ctx: &Ctx, ino: Ino, data_only: bool) -> Result<()> {
        self.timed(Op::Fsync, self.core.fsync(ctx, ino, data_only)).await
    }
    async fn sync(&self, ctx: &Ctx) -> Result<()> {
        self.timed(Op::Fsync, self.core.fsync(ctx, Ino(0), false)).await
    }

    async fn read(&self, ctx: &Ctx, ino: Ino, handle: Handle, offset: u64, len: u32) -> Result<ReadData> {
        self.timed(Op::Read, self.core.read(ctx, ino, handle, offset, len)).await
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
        self.timed(Op::Write, self.core.write(ctx, ino, handle, offset, data, flags)).await
    }
    async fn append(
        &self,
        ctx: &Ctx,
        ino: Ino,
        handle: Handle,
        data: Bytes,
        flags: WriteFlags,
    ) -> Result<Written> {
        self.timed(Op::Append, self.core.append(ctx, ino, handle, data, flags)).await
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
        self.timed(Op::Fallocate, self.core.fallocate(ctx, ino, handle, mode, offset, len)).await
    }
    async fn seek(&self, ctx: &Ctx, ino: Ino, handle: Handle, offset: u64, whence: Seek) -> Result<u64> {
        self.timed(Op::Seek, self.core.seek(ctx, ino, handle, offset, whence)).await
    }
    async fn copy_range(&self, ctx: &Ctx, from: Place, to: Place, len: u64) -> Result<u64> {
        self.timed(Op::CopyRange, self.core.copy_range(ctx, from, to, len)).await
    }

    async fn readdir(&self, ctx: &Ctx, dir: Ino, cookie: u64, max: u32, plus: bool) -> Result<DirPage> {
        self.timed(Op::ReadDir, self.core.readdir(ctx, dir, cookie, max, plus)).await
    }
    async fn getxattr(&self, ctx: &Ctx, ino: Ino, name: &[u8]) -> Result<Bytes> {
        self.timed(Op::Xattr, self.core.getxattr(ctx, ino, name)).await
    }
    async fn setxattr(
        &self,
        ctx: &Ctx,
        ino: Ino,
        name: &[u8],
        value: Bytes,
        flags: XattrFlags,
    ) -> Result<()> {
        self.timed(Op::Xattr, self.core.setxattr(ctx, ino, name, value, flags)).await
    }
    async fn listxattr(&self, ctx: &Ctx, ino: Ino) -> Result<Bytes> {
        self.timed(Op::Xattr, self.core.listxattr(ctx, ino)).await
    }
    async fn removexattr(&self, ctx: &Ctx, ino: Ino, name: &[u8]) -> Result<()> {
        self.timed(Op::Xattr, self.core.removexattr(ctx, ino, name)).await
    }
    async fn statfs(&self, ctx: &Ctx) -> Result<StatFs> {
        self.timed(Op::StatFs, self.core.statfs(ctx)).await
    }

    async fn getlk(
        &self,
        ctx: &Ctx,
        ino: Ino,
        handle: Handle,
        lock: LockRequest,
    ) -> Result<Option<Conflict>> {
        self.timed(Op::Lock, self.core.getlk(ctx, ino, handle, lock)).await
    }
    async fn setlk(&self, ctx: &Ctx, ino: Ino, handle: Handle, lock: LockRequest, wait: bool) -> Result<()> {
        self.timed(Op::Lock, self.core.setlk(ctx, ino, handle, lock, wait)).await
    }
}
