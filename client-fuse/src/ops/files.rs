//! OPEN, RELEASE, FLUSH, FSYNC, SYNCFS.

use super::Result;
use crate::abi::flags::{FSYNC_FDATASYNC, OPEN_KILL_SUIDGID, RELEASE_FLOCK_UNLOCK, fopen};
use crate::abi::reply::OpenOut;
use crate::abi::request::{FlushIn, FsyncIn, OpenIn, ReleaseIn};
use crate::convert;
use crate::reply::Reply;
use crate::session::{Rq, Session};
use client::FileService;
use client::service::{Errno, Handle, LockOwner};

impl<S: FileService> Session<S> {
    /// Remembers which handles go around the page cache.
    pub(super) fn note_handle(&self, handle: Handle, open_flags: u32) {
        if open_flags & fopen::DIRECT_IO != 0 {
            self.direct.borrow_mut().insert(handle.0);
        }
    }

    pub(super) async fn open(&self, rq: &Rq, arg: &OpenIn) -> Result {
        let kill = arg.open_flags & OPEN_KILL_SUIDGID != 0;
        let opened = self.service.open(&rq.ctx, rq.ino, convert::open_flags(arg.flags, kill)).await?;
        let open_flags = convert::fopen_flags(arg.flags, opened.io);
        self.note_handle(opened.handle, open_flags);
        let out = OpenOut { fh: opened.handle.0, open_flags, backing_id: 0 };
        Ok(Reply::Open(out).held(opened.attrs.hold))
    }

    pub(super) async fn release(&self, rq: &Rq, arg: &ReleaseIn) -> Result {
        let handle = Handle(arg.fh);
        self.direct.borrow_mut().remove(&arg.fh);
        let owners = self.locks.released(rq.ino, arg.fh);
        let flock = arg.release_flags & RELEASE_FLOCK_UNLOCK != 0;
        let unlocks = flock || !owners.is_empty();
        if unlocks {
            self.releasing.begin(rq.ino);
        }
        for owner in owners {
            // What fails here is freed with the session.
            let _ = self.service.flush(&rq.ctx, rq.ino, handle, LockOwner(owner)).await;
        }
        let owner = flock.then_some(LockOwner(arg.lock_owner));
        let closed = self.service.close(&rq.ctx, rq.ino, handle, owner).await;
        if unlocks {
            self.releasing.end(rq.ino);
        }
        closed?;
        Ok(Reply::Empty.into())
    }

    /// Each close(2): the process's fcntl locks on the file end.
    pub(super) async fn flush(&self, rq: &Rq, arg: &FlushIn) -> Result {
        if self.locks.flushed(rq.ino, arg.lock_owner) {
            self.service.flush(&rq.ctx, rq.ino, Handle(arg.fh), LockOwner(arg.lock_owner)).await?;
        }
        Ok(Reply::Empty.into())
    }

    pub(super) async fn fsync(&self, rq: &Rq, arg: &FsyncIn) -> Result {
        match self.service.fsync(&rq.ctx, rq.ino, arg.fsync_flags & FSYNC_FDATASYNC != 0).await {
            // A removed directory: nothing of it is left to be made durable.
            Err(Errno::ESTALE) if self.departed.has(rq.ino) => {}
            done => done?,
        }
        Ok(Reply::Empty.into())
    }

    /// Linux sends this to virtiofs and block-device servers only; should it ever come, it is meant.
    pub(super) async fn syncfs(&self, rq: &Rq) -> Result {
        self.service.sync(&rq.ctx).await?;
        Ok(Reply::Empty.into())
    }
}
