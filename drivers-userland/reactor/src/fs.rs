//! Files, block devices, pipes and character devices.

use crate::core::Core;
use crate::op::Op;
use crate::request::{Parts, Request};
use hugepages::{Buf, Bytes};
use rustix::fs::{FallocateFlags, FileType, FlockOperation, Mode, OFlags, SeekFrom};
use std::cell::{Cell, OnceCell};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

/// The file's own position, for pipes and character devices.
const CURRENT: u64 = u64::MAX;
/// After a read that found nothing, this many wait for data first: a turn of the loop less for each message of
/// an idle device. Then one tries without, so that a busy device is read at once.
const DRY_READS: u8 = 15;

/// A descriptor with its slot in the ring's file table. Operations in flight keep it open.
pub(crate) struct Handle {
    fd: OwnedFd,
    /// Reactor and slot.
    slot: Option<(u64, u32)>,
}

impl Handle {
    pub(crate) fn new(fd: OwnedFd) -> Rc<Handle> {
        let slot = Core::try_current().and_then(|core| Some((core.id(), core.add_file(fd.as_raw_fd())?)));
        Rc::new(Handle { fd, slot })
    }

    /// Slot in this core's file table.
    pub(crate) fn slot(&self, core: &Core) -> Option<u32> {
        self.slot.filter(|(id, _)| *id == core.id()).map(|(_, slot)| slot)
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let (Some((id, slot)), Some(core)) = (self.slot, Core::try_current())
            && core.id() == id
        {
            core.remove_file(slot);
        }
    }
}

/// How to open a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// Make it where it is missing, with mode 0600.
    pub create: bool,
    /// Make it, or fail where it exists.
    pub create_new: bool,
    /// Cut it to nothing.
    pub truncate: bool,
    /// O_DIRECT: offsets, lengths and addresses in whole blocks, past the page cache.
    pub direct: bool,
    /// O_DSYNC: a write has ended when its data is stable.
    pub dsync: bool,
    /// O_NONBLOCK.
    pub nonblock: bool,
    /// O_EXCL on a block device: fail with EBUSY where it is mounted or held by another.
    pub exclusive: bool,
    /// Further flags of open(2).
    pub custom_flags: i32,
}

impl OpenOptions {
    /// Nothing chosen.
    pub fn new() -> OpenOptions {
        OpenOptions::default()
    }

    fn flags(self) -> i32 {
        let access = match (self.read, self.write) {
            (_, false) => OFlags::RDONLY,
            (false, true) => OFlags::WRONLY,
            (true, true) => OFlags::RDWR,
        };
        let choices = [
            (self.create || self.create_new, OFlags::CREATE),
            (self.create_new || self.exclusive, OFlags::EXCL),
            (self.truncate, OFlags::TRUNC),
            (self.direct, OFlags::DIRECT),
            (self.dsync, OFlags::DSYNC),
            (self.nonblock, OFlags::NONBLOCK),
        ];
        let chosen =
            choices.iter().filter(|(chosen, _)| *chosen).fold(access, |flags, (_, flag)| flags | *flag);
        chosen.bits() as i32 | self.custom_flags
    }
}

/// An open file of any type. Operations may overlap; each keeps the file open and its buffer alive until
/// the kernel has finished, even where its future is dropped.
///
/// A buffer of a registered arena goes by READ_FIXED and WRITE_FIXED in the positioned calls.
pub struct File {
    handle: Rc<Handle>,
    /// Second descriptor of a block device, which holds it exclusively.
    lock: OnceCell<OwnedFd>,
    /// Reads to come that wait for data first.
    dry: Cell<u8>,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File").field("fd", &self.handle.raw()).finish()
    }
}

impl File {
    /// Opens `path`.
    ///
    /// # Errors
    /// As open(2).
    pub async fn open(path: impl AsRef<Path>, options: &OpenOptions) -> io::Result<File> {
        let path = CString::new(path.as_ref().as_os_str().as_bytes())?;
        let mode = if options.create || options.create_new { 0o600 } else { 0 };
        let done = Op::new(Core::current(), Request::open(path, options.flags(), mode)).await;
        let fd = crate::ring::own_fd(done.count()? as RawFd);
        Ok(File::wrap(fd))
    }

    /// Takes an open descriptor. Pipes and character devices (not terminals) are set to O_NONBLOCK: a read
    /// that lost the race for data must wait in the ring, not block the reactor.
    ///
    /// # Errors
    /// As fstat(2) and fcntl(2).
    pub fn from_fd(fd: OwnedFd) -> io::Result<File> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
        if matches!(kind, FileType::Fifo | FileType::CharacterDevice) && !io::IsTerminal::is_terminal(&fd) {
            let flags = rustix::fs::fcntl_getfl(&fd)?;
            rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        }
        Ok(File::wrap(fd))
    }

    fn wrap(fd: OwnedFd) -> File {
        File { handle: Handle::new(fd), lock: OnceCell::new(), dry: Cell::new(0) }
    }

    /// Reads up to `buf.len()` bytes at `offset`; fewer at the end of the file.
    pub async fn read_at(&self, buf: Buf, offset: u64) -> (io::Result<usize>, Buf) {
        let core = Core::current();
        let all = 0..buf.len();
        let request = Request::read(&core, &self.handle, buf, all, offset, true);
        let done = Op::new(core, request).await;
        (done.count(), done.hold.into_buf())
    }

    /// Writes `data` at `offset`; the count may fall short, as with pwrite(2).
    pub async fn write_at(&self, data: Bytes, offset: u64) -> (io::Result<usize>, Bytes) {
        let core = Core::current();
        let request = Request::write(&core, &self.handle, data, 0, offset, true);
        let done = Op::new(core, request).await;
        (done.count(), done.hold.into_bytes())
    }

    /// Reads from a pipe, a socket or a character device, waiting in the ring until there is something.
    /// Several reads may be outstanding; each message goes to one of them.
    pub async fn read(&self, mut buf: Buf) -> (io::Result<usize>, Buf) {
        let dry = self.dry.get();
        self.dry.set(dry.saturating_sub(1));
        let mut wait_first = dry > 0;
        loop {
            if wait_first && let Err(error) = self.readable().await {
                return (Err(error), buf);
            }
            let core = Core::current();
            let all = 0..buf.len();
            let request = Request::read(&core, &self.handle, buf, all, CURRENT, false);
            let done = Op::new(core, request).await;
            let count = done.count();
            buf = done.hold.into_buf();
            if !would_block(&count) {
                return (count, buf);
            }
            if !wait_first {
                self.dry.set(DRY_READS);
            }
            wait_first = true;
        }
    }

    /// Writes to a pipe or character device, waiting in the ring until it takes something.
    pub async fn write(&self, mut data: Bytes) -> (io::Result<usize>, Bytes) {
        loop {
            let core = Core::current();
            let request = Request::write(&core, &self.handle, data, 0, CURRENT, false);
            let done = Op::new(core, request).await;
            let count = done.count();
            data = done.hold.into_bytes();
            if !would_block(&count) {
                return (count, data);
            }
            if let Err(error) = self.poll(libc::POLLOUT as u32).await {
                return (Err(error), data);
            }
        }
    }

    /// Writes all parts in one call, as a device that takes whole messages wants it; the count may fall short.
    ///
    /// # Errors
    /// As writev(2).
    pub async fn write_parts(&self, parts: impl Into<Parts>) -> io::Result<usize> {
        let parts = parts.into();
        loop {
            let count = self.write_vectored(&parts, CURRENT).await;
            if !would_block(&count) {
                return count;
            }
            self.poll(libc::POLLOUT as u32).await?;
        }
    }

    /// Writes all parts at `offset` in one call; the count may fall short.
    ///
    /// # Errors
    /// As pwritev(2).
    pub async fn write_parts_at(&self, parts: impl Into<Parts>, offset: u64) -> io::Result<usize> {
        self.write_vectored(&parts.into(), offset).await
    }

    async fn write_vectored(&self, parts: &[Bytes], offset: u64) -> io::Result<usize> {
        let core = Core::current();
        let request = Request::write_parts(&core, &self.handle, parts, 0, offset);
        let done = Op::new(Rc::clone(&core), request).await;
        let count = done.count();
        core.reuse(done.hold);
        count
    }

    /// Waits until a read would find something.
    ///
    /// # Errors
    /// As poll(2).
    pub async fn readable(&self) -> io::Result<()> {
        // Of several that wait, one is roused for each message: see EPOLLEXCLUSIVE in epoll_ctl(2).
        self.poll(libc::POLLIN as u32 | libc::EPOLLEXCLUSIVE as u32).await
    }

    async fn poll(&self, events: u32) -> io::Result<()> {
        let core = Core::current();
        let request = Request::poll(&core, &self.handle, events);
        Op::new(core, request).await.count().map(drop)
    }

    async fn plain(&self, make: impl FnOnce(&Core, &Rc<Handle>) -> Request) -> io::Result<()> {
        let core = Core::current();
        let request = make(&core, &self.handle);
        Op::new(core, request).await.count().map(drop)
    }

    /// Makes written data stable, with the metadata that reading it back needs.
    ///
    /// # Errors
    /// As fdatasync(2).
    pub async fn fdatasync(&self) -> io::Result<()> {
        self.plain(|core, handle| Request::sync(core, handle, true)).await
    }

    /// Makes data and metadata stable.
    ///
    /// # Errors
    /// As fsync(2).
    pub async fn fsync(&self) -> io::Result<()> {
        self.plain(|core, handle| Request::sync(core, handle, false)).await
    }

    /// Allocates, zeroes or punches a range.
    ///
    /// # Errors
    /// As fallocate(2); EOPNOTSUPP where the file system or device can't.
    pub async fn fallocate(&self, mode: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
        self.plain(|core, handle| Request::fallocate(core, handle, mode.bits(), offset, len)).await
    }

    /// Tells the device that a range is unused: punches a hole in a file, discards on a block device.
    /// Contents are undefined afterwards.
    ///
    /// # Errors
    /// As fallocate(2) or the BLKDISCARD ioctl, which blocks the reactor while the device works.
    pub async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.is_block_device()? {
            return crate::sys::discard(self.handle.fd(), offset, len);
        }
        self.fallocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len).await
    }

    /// Length of a file, size of a block device, in bytes.
    ///
    /// # Errors
    /// As lseek(2).
    pub fn capacity(&self) -> io::Result<u64> {
        if self.is_block_device()? {
            return Ok(rustix::fs::seek(self.handle.fd(), SeekFrom::End(0))?);
        }
        Ok(u64::try_from(rustix::fs::fstat(self.handle.fd())?.st_size).unwrap_or(0))
    }

    /// Sets a file's length.
    ///
    /// # Errors
    /// As ftruncate(2).
    pub fn set_len(&self, len: u64) -> io::Result<()> {
        Ok(rustix::fs::ftruncate(self.handle.fd(), len)?)
    }

    /// Whether it is a block device.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn is_block_device(&self) -> io::Result<bool> {
        let mode = rustix::fs::fstat(self.handle.fd())?.st_mode;
        Ok(FileType::from_raw_mode(mode) == FileType::BlockDevice)
    }

    /// Keeps others out until the file is closed: flock on a file, O_EXCL on a block device.
    ///
    /// # Errors
    /// `WouldBlock` or `ResourceBusy` where another process, mount or volume manager holds it.
    pub fn lock_exclusive(&self) -> io::Result<()> {
        if !self.is_block_device()? {
            return Ok(rustix::fs::flock(self.handle.fd(), FlockOperation::NonBlockingLockExclusive)?);
        }
        if self.lock.get().is_none() {
            let path = format!("/proc/self/fd/{}", self.handle.raw());
            let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty())?;
            let _ = self.lock.set(fd);
        }
        Ok(())
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.fd()
    }
}

fn would_block<T>(result: &io::Result<T>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}
