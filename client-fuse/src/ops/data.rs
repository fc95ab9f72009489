//! READ, WRITE, FALLOCATE, LSEEK, COPY_FILE_RANGE.

use super::Result;
use crate::abi::flags::{WRITE_CACHE, WRITE_KILL_SUIDGID};
use crate::abi::reply::{CopyFileRangeOut, LseekOut, WriteOut};
use crate::abi::request::{CopyFileRangeIn, FallocateIn, LseekIn, ReadIn, WriteIn};
use crate::convert;
use crate::reply::Reply;
use crate::session::{Rq, Session};
use client::FileService;
use client::service::{Handle, Place, Seek, WriteFlags};
use hugepages::Bytes;
use wire::types::Errno;

/// fallocate(2) modes that are served: plain, keep size, punch hole, zero range.
const FALLOCATE_MODES: [u32; 5] = [
    0,
    libc::FALLOC_FL_KEEP_SIZE as u32,
    (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32,
    libc::FALLOC_FL_ZERO_RANGE as u32,
    (libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE) as u32,
];

impl<S: FileService> Session<S> {
    pub(super) async fn read(&self, rq: &Rq, arg: &ReadIn) -> Result {
        let read = self.service.read(&rq.ctx, rq.ino, Handle(arg.fh), arg.offset, arg.size).await?;
        if read.len() > arg.size as usize {
            return Err(Errno::EIO);
        }
        Ok(Reply::Data(read.data).held(read.hold))
    }

    /// Answered when the server has acknowledged.
    pub(super) async fn write(&self, rq: &Rq, arg: &WriteIn, data: Bytes) -> Result {
        if arg.size as usize != data.len() {
            return Err(Errno::EIO);
        }
        let handle = Handle(arg.fh);
        // O_SYNC contains the bit of O_DSYNC; either asks for durable data, and metadata travels with it here.
        let flags = WriteFlags {
            sync: convert::has_flag(arg.flags, libc::O_DSYNC),
            kill_suidgid: arg.write_flags & WRITE_KILL_SUIDGID != 0,
            writeback: arg.write_flags & WRITE_CACHE != 0,
        };
        // Pages written back are at their own place, whatever the (guessed) handle's flags are.
        let append = convert::has_flag(arg.flags, libc::O_APPEND) && !flags.writeback;
        let written = if append {
            let written = self.service.append(&rq.ctx, rq.ino, handle, data, flags).await?;
            if written.offset != arg.offset {
                self.appended_elsewhere(rq, arg.fh).await;
            }
            written
        } else {
            self.service.write(&rq.ctx, rq.ino, handle, arg.offset, data, flags).await?
        };
        Ok(Reply::Write(WriteOut { size: written.len.min(arg.size), padding: 0 }).held(written.hold))
    }

    /// The kernel took another size for the file's: what it keeps of the pages about there is wrong.
    async fn appended_elsewhere(&self, rq: &Rq, fh: u64) {
        let dropped = self.notifier.drop_pages(rq.node);
        if self.direct.borrow().contains(&fh) {
            // No page is locked by a direct write, so this can, and must, be done before the writer sees its success.
            dropped.await;
        }
        // O_APPEND that was set after the open (fcntl(2)) writes through the page cache and keeps a page locked until we have
        // answered: the pages go just after that.
    }

    pub(super) async fn fallocate(&self, rq: &Rq, arg: &FallocateIn) -> Result {
        if !FALLOCATE_MODES.contains(&arg.mode) {
            return Err(Errno::EOPNOTSUPP);
        }
        let handle = Handle(arg.fh);
        let got = self.service.fallocate(&rq.ctx, rq.ino, handle, arg.mode, arg.offset, arg.length).await?;
        Ok(Reply::Empty.held(got.hold))
    }

    pub(super) async fn lseek(&self, rq: &Rq, arg: &LseekIn) -> Result {
        let whence = match arg.whence as i32 {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return Err(Errno::EINVAL),
        };
        let offset = self.service.seek(&rq.ctx, rq.ino, Handle(arg.fh), arg.offset, whence).await?;
        Ok(Reply::Seek(LseekOut { offset }).into())
    }

    /// On the server. `wide` is the form with a 64-bit result.
    pub(super) async fn copy_range(&self, rq: &Rq, arg: &CopyFileRangeIn, wide: bool) -> Result {
        if arg.flags != 0 {
            return Err(Errno::EINVAL);
        }
        // The narrow form can't tell more than this; the caller goes on from there.
        let len = if wide { arg.len } else { arg.len.min(u64::from(!0xFFF_u32)) };
        let from = Place { ino: rq.ino, handle: Handle(arg.fh_in), offset: arg.off_in };
        let to =
            Place { ino: self.nodes.ino(arg.nodeid_out), handle: Handle(arg.fh_out), offset: arg.off_out };
        let copied = self.service.copy_range(&rq.ctx, from, to, len).await?;
        Ok(if wide {
            Reply::Copied(CopyFileRangeOut { bytes_copied: copied }).into()
        } else {
            Reply::Write(WriteOut { size: copied as u32, padding: 0 }).into()
        })
    }
}
