//! What each request means: one small file for each group, adapting the protocol to [`FileService`].
//!
//! Must not hold state beyond what the protocol forces on us (who holds locks through which handle, which handles are direct), must not
//! check permissions (the kernel did) and must not touch the device.

mod attrs;
mod data;
mod dirs;
mod files;
pub(crate) mod locks;
mod names;
mod xattrs;

use crate::abi::Op;
use crate::reply::{Answer, Reply};
use crate::session::{Rq, Session};
use client::FileService;
use hugepages::Bytes;
use wire::types::Errno;

/// Outcome of an operation.
pub(crate) type Result = std::result::Result<Answer, Errno>;

/// Requests that have names in them.
fn is_about_names(op: &Op<'_>) -> bool {
    matches!(
        op,
        Op::Lookup { .. }
            | Op::Readlink
            | Op::Symlink { .. }
            | Op::Mknod { .. }
            | Op::Mkdir { .. }
            | Op::Unlink { .. }
            | Op::Rmdir { .. }
            | Op::Rename { .. }
            | Op::Link { .. }
            | Op::Create { .. }
            | Op::Tmpfile(_)
    )
}

impl<S: FileService> Session<S> {
    /// Runs one request. `payload` is that of a WRITE.
    pub(crate) async fn dispatch(&self, rq: &mut Rq, op: Op<'_>, payload: Bytes) -> Result {
        let names = is_about_names(&op);
        let by_name = names || matches!(op, Op::Readdir(_) | Op::Readdirplus(_));
        let result = match op {
            op if names => self.dispatch_name(rq, op).await,
            Op::Write(arg) => self.write(rq, &arg, payload).await,
            op => self.dispatch_node(rq, op).await,
        };
        result.map_err(|e| match e {
            // It tells the kernel never to ask again, which no single failure may do.
            Errno::ENOSYS => Errno::EOPNOTSUPP,
            // It gave way to a recall: the kernel lets go of its locks and tries once more.
            Errno::EDEADLK if names => Errno::ESTALE,
            // In a directory that is gone there are no names.
            Errno::ESTALE if by_name && self.departed.has(rq.ino) => Errno::ENOENT,
            e => e,
        })
    }

    /// Requests that have names in them.
    async fn dispatch_name(&self, rq: &mut Rq, op: Op<'_>) -> Result {
        match op {
            Op::Lookup { name } => self.lookup(rq, name).await,
            Op::Readlink => self.readlink(rq).await,
            Op::Symlink { name, target } => self.symlink(rq, name, target).await,
            Op::Mknod { arg, name } => self.mknod(rq, &arg, name).await,
            Op::Mkdir { arg, name } => self.mkdir(rq, &arg, name).await,
            Op::Unlink { name } => self.unlink(rq, name).await,
            Op::Rmdir { name } => self.rmdir(rq, name).await,
            Op::Rename { newdir, flags, name, new_name } => {
                self.rename(rq, name, newdir, new_name, flags).await
            }
            Op::Link { oldnodeid, name } => self.link(rq, oldnodeid, name).await,
            Op::Create { arg, name } => self.create(rq, &arg, Some(name)).await,
            Op::Tmpfile(arg) => self.create(rq, &arg, None).await,
            _ => Err(Errno::EIO),
        }
    }

    async fn dispatch_node(&self, rq: &mut Rq, op: Op<'_>) -> Result {
        match op {
            Op::Getattr(_) => self.getattr(rq).await,
            Op::Statx(_) => self.statx(rq).await,
            Op::Setattr(arg) => self.setattr(rq, &arg).await,
            Op::Statfs => self.statfs(rq).await,
            Op::Open(arg) => self.open(rq, &arg).await,
            Op::Release(arg) => self.release(rq, &arg).await,
            Op::Flush(arg) => self.flush(rq, &arg).await,
            Op::Fsync(arg) | Op::Fsyncdir(arg) => self.fsync(rq, &arg).await,
            Op::Syncfs(_) => self.syncfs(rq).await,
            Op::Read(arg) => self.read(rq, &arg).await,
            Op::Fallocate(arg) => self.fallocate(rq, &arg).await,
            Op::Lseek(arg) => self.lseek(rq, &arg).await,
            Op::CopyFileRange(arg) => self.copy_range(rq, &arg, false).await,
            Op::CopyFileRange64(arg) => self.copy_range(rq, &arg, true).await,
            Op::Opendir(_) => Ok(Self::opendir()),
            Op::Readdir(arg) => self.readdir(rq, &arg, false).await,
            Op::Readdirplus(arg) => self.readdir(rq, &arg, true).await,
            Op::Releasedir(_) | Op::Destroy => Ok(Reply::Empty.into()),
            Op::Setxattr { arg, ext, name, value } => self.setxattr(rq, &arg, &ext, name, value).await,
            Op::Getxattr { size, name } => self.getxattr(rq, size, name).await,
            Op::Listxattr { size } => self.listxattr(rq, size).await,
            Op::Removexattr { name } => self.removexattr(rq, name).await,
            Op::Getlk(arg) => self.getlk(rq, &arg).await,
            Op::Setlk(arg) => self.setlk(rq, &arg, false).await,
            Op::Setlkw(arg) => self.setlk(rq, &arg, true).await,
            // Answered before a task was made, or unknown.
            _ => Err(Errno::EIO),
        }
    }
}
