//! A file or a kernel block device through the reactor's ring.
//!
//! O_DIRECT, one lock per device: a second process is told that it is in use. The file is opened once; each
//! core makes a device of its own from the handle.

use super::BlockDevice;
use crate::error::DeviceError;
use crate::layout::{BLOCK, BLOCK_BYTES};
use hugepages::{Buf, Bytes};
use reactor::{FallocateFlags, File};
use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

/// How a device is opened.
#[derive(Clone, Copy, Debug)]
pub struct FileOptions {
    /// For writing too.
    pub write: bool,
    /// Bypass the page cache. Off only where the file system has no O_DIRECT: then acknowledged data survives a
    /// killed process, as before, but every block is cached twice.
    pub direct: bool,
    /// Trim freed space. On a block device it is discarded; on a file holes are punched, which makes later writes
    /// about half as fast on ext4.
    pub trim: bool,
}

impl Default for FileOptions {
    fn default() -> Self {
        FileOptions { write: true, direct: true, trim: false }
    }
}

#[derive(Debug)]
struct Opened {
    fd: OwnedFd,
    path: PathBuf,
    block_device: bool,
    trim: bool,
}

/// An opened, locked device; cores share it.
#[derive(Clone, Debug)]
pub struct FileHandle(Arc<Opened>);

impl FileHandle {
    /// Opens and locks a device.
    pub fn open(path: &Path, options: FileOptions) -> Result<FileHandle, DeviceError> {
        let shown = || path.display().to_string();
        let failed = |e: rustix::io::Errno| match e {
            rustix::io::Errno::BUSY => DeviceError::InUse { path: shown() },
            e => DeviceError::Open { path: shown(), source: e.into() },
        };
        let mut flags = if options.write { OFlags::RDWR } else { OFlags::RDONLY } | OFlags::CLOEXEC;
        if options.direct {
            flags |= OFlags::DIRECT;
        }
        let kind = rustix::fs::stat(path).map(|s| FileType::from_raw_mode(s.st_mode)).map_err(failed)?;
        let block_device = kind == FileType::BlockDevice;
        if !block_device && kind != FileType::RegularFile {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "neither a file nor a block device");
            return Err(DeviceError::Open { path: shown(), source });
        }
        if block_device && options.write {
            // On a block device O_EXCL fails where it is mounted or part of another volume.
            flags |= OFlags::EXCL;
        }
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
        let lock = if options.write {
            FlockOperation::NonBlockingLockExclusive
        } else {
            FlockOperation::NonBlockingLockShared
        };
        match rustix::fs::flock(&fd, lock) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(DeviceError::InUse { path: shown() }),
            Err(e) => return Err(DeviceError::Open { path: shown(), source: e.into() }),
        }
        let opened = Opened { fd, path: path.to_path_buf(), block_device, trim: options.trim };
        Ok(FileHandle(Arc::new(opened)))
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The device as this thread's reactor sees it.
    pub fn attach(&self) -> io::Result<FileDevice> {
        let file = File::from_fd(self.0.fd.try_clone()?)?;
        Ok(FileDevice { handle: self.clone(), file: Rc::new(file) })
    }

    fn size(&self) -> io::Result<u64> {
        // A block device has no length of its own; the end is where seeking ends.
        Ok(rustix::fs::seek(&self.0.fd, rustix::fs::SeekFrom::End(0))?)
    }
}

/// A file or block device on one reactor.
#[derive(Clone)]
pub struct FileDevice {
    handle: FileHandle,
    file: Rc<File>,
}

/// Bytes written at a time when a device is filled with zeros.
const FILL: usize = 1 << 20;

impl FileDevice {
    /// Writes zeros over all space from `from` on, so that later writes find written blocks; `progress` gets
    /// bytes done and in all. For a fresh device only.
    pub async fn preallocate(&self, from: u64, mut progress: impl FnMut(u64, u64)) -> io::Result<()> {
        let end = self.capacity() / BLOCK_BYTES * BLOCK_BYTES;
        let zeros = Buf::heap(FILL).freeze();
        let mut at = from.next_multiple_of(BLOCK_BYTES);
        while at < end {
            let len = (end - at).min(FILL as u64) as usize;
            self.write(at, zeros.slice(..len)).await?;
            at += len as u64;
            progress(at - from, end - from);
        }
        self.flush().await
    }
}

impl BlockDevice for FileDevice {
    fn capacity(&self) -> u64 {
        self.handle.size().unwrap_or(0)
    }

    async fn read(&self, offset: u64, mut buf: Buf) -> (io::Result<()>, Buf) {
        let want = buf.len();
        let (mut result, back) = self.file.read_at(buf, offset).await;
        buf = back;
        let mut done = match result {
            Ok(n) => n,
            Err(e) => return (Err(e), buf),
        };
        // A short read of a regular file is rare; the rest goes through a buffer of its own.
        while done < want {
            if done == 0 || !done.is_multiple_of(BLOCK) {
                return (Err(io::ErrorKind::UnexpectedEof.into()), buf);
            }
            let (next, rest) = self.file.read_at(Buf::heap(want - done), offset + done as u64).await;
            result = next;
            match result {
                Ok(0) => return (Err(io::ErrorKind::UnexpectedEof.into()), buf),
                Ok(n) => {
                    buf[done..done + n].copy_from_slice(&rest[..n]);
                    done += n;
                }
                Err(e) => return (Err(e), buf),
            }
        }
        (Ok(()), buf)
    }

    async fn write(&self, offset: u64, data: Bytes) -> io::Result<()> {
        let mut data = data;
        let mut at = offset;
        while !data.is_empty() {
            let (result, back) = self.file.write_at(data, at).await;
            let n = result?;
            if n == 0 || !n.is_multiple_of(BLOCK) {
                return Err(io::ErrorKind::WriteZero.into());
            }
            at += n as u64;
            data = back.slice(n..);
        }
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        self.file.fdatasync().await
    }

    async fn trim(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.handle.0.block_device {
            return self.file.discard(offset, len).await;
        }
        self.file.fallocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len).await
    }

    async fn reserve(&self, offset: u64, len: u64) -> io::Result<bool> {
        if self.handle.0.block_device {
            return Ok(false);
        }
        // KEEP_SIZE: a file that someone cuts meanwhile does not grow back under us.
        self.file.fallocate(FallocateFlags::KEEP_SIZE, offset, len).await.map(|()| true)
    }

    fn reserved(&self) -> io::Result<Option<u64>> {
        if self.handle.0.block_device {
            return Ok(None);
        }
        // stat(2): st_blocks counts units of 512 bytes whatever the file system's own block.
        let blocks = rustix::fs::fstat(&self.handle.0.fd)?.st_blocks;
        Ok(Some(u64::try_from(blocks).unwrap_or(0).saturating_mul(512)))
    }

    fn wants_trim(&self) -> bool {
        self.handle.0.trim
    }
}

impl FileHandle {
    /// Whether it is a block device rather than a file.
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        self.0.block_device
    }
}
