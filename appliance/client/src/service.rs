//! The file service: what every front end (FUSE, NFS) asks of the file system, and how it hears of recalled leases.
//!
//! Owns the trait [`FileService`] and the plain types in it. Must not know the wire, a kernel or a protocol: names are
//! bytes, handles and lock owners are opaque numbers, errors are `errno(3)`. Everything is single-threaded; futures are
//! `!Send`. Permission checks belong to the front end (the kernel's, for FUSE).
//!
//! How caching stays right: a reply that may be cached carries a lifetime above zero and a [`Hold`]. The front end
//! drops the hold as soon as the reply has been written; a recall waits for the holds of earlier replies, then calls the
//! front end's [`Invalidator`], and gives the lease back after that returned. So a front end must never let the writing
//! of a reply, or the serving of reads and writes, wait for an invalidation.

use crate::cancel::CancelToken;
use crate::hold::Hold;
use hugepages::Bytes;
use smallvec::SmallVec;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
pub use wire::types::{
    Attr, Errno, FileKind, Ino, LockKind, LockOwner, LockRange, LockSpace, LockType, ROOT_INO, SetAttr,
    SetTime, StatFs, Timestamp,
};

/// What a service method returns.
pub type Result<T> = std::result::Result<T, Errno>;

/// A boxed future of one thread.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// Lifetime given to what a lease covers: as good as for ever, ended by an invalidation.
pub const TTL_LEASED: Duration = Duration::from_secs(24 * 3600);

/// Who asks, and how the request is given up.
#[derive(Clone, Debug, Default)]
pub struct Ctx {
    /// User on whose behalf files are made and owned.
    pub uid: u32,
    /// Group likewise.
    pub gid: u32,
    /// Process, as other lockers get to see it (`F_GETLK`).
    pub pid: u32,
    /// Bits taken off a new file's mode where no default ACL says otherwise.
    pub umask: u32,
    /// Gives the request up. [`crate::Interrupt::Signal`] ends a wait for a lock with EINTR and nothing else;
    /// [`crate::Interrupt::Kill`] ends also a wait for a server that does not answer.
    pub cancel: CancelToken,
}

/// An open file of a [`FileService`]; never zero. It stays the same when the service has to open the file anew
/// behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u64);

/// Attributes and how long they may be cached.
#[derive(Clone, Debug)]
pub struct Attrs {
    /// The attributes.
    pub attr: Attr,
    /// Zero, or [`TTL_LEASED`] under a lease of the inode.
    pub ttl: Duration,
    /// Drop once the reply is written.
    pub hold: Hold,
}

/// A name's inode.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Attributes of the inode that the name leads to.
    pub attr: Attr,
    /// How long the attributes may be cached: zero, or [`TTL_LEASED`] under a lease of the inode.
    pub attr_ttl: Duration,
    /// How long the name may be cached: zero, or [`TTL_LEASED`] under an exclusive lease of the directory.
    pub entry_ttl: Duration,
    /// Drop once the reply is written.
    pub hold: Hold,
}

/// Answer to a lookup.
#[derive(Clone, Debug)]
pub enum Found {
    /// The name exists.
    Entry(Entry),
    /// It does not (ENOENT); its absence may be cached for `entry_ttl`.
    Absent {
        /// Zero, or [`TTL_LEASED`] under an exclusive lease of the directory.
        entry_ttl: Duration,
        /// Drop once the reply is written.
        hold: Hold,
    },
}

impl Found {
    /// The entry, or ENOENT, for callers that cache no absence.
    pub fn entry(self) -> Result<Entry> {
        match self {
            Found::Entry(e) => Ok(e),
            Found::Absent { .. } => Err(Errno::ENOENT),
        }
    }
}

/// How a file is opened. Access rights were checked before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// For reading (also for execution).
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// O_APPEND: the front end uses [`FileService::append`].
    pub append: bool,
    /// O_TRUNC: cut to nothing, atomically with the open.
    pub truncate: bool,
    /// O_DIRECT: nothing of this handle is cached.
    pub direct: bool,
    /// With `truncate`: clear set-user-ID and set-group-ID (the caller lacks CAP_FSETID).
    pub kill_suidgid: bool,
}

/// Whether data of a handle may be kept in a page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoMode {
    /// Yes: reads and writes take a lease and recalls invalidate. What an earlier handle cached is still valid.
    #[default]
    Cached,
    /// No: every read and write goes to the service.
    Direct,
}

/// An open file.
#[derive(Clone, Debug)]
pub struct Opened {
    /// For all that follows, until [`FileService::close`].
    pub handle: Handle,
    /// How to read and write through it.
    pub io: IoMode,
    /// Attributes after the open (a truncation included).
    pub attrs: Attrs,
}

/// What to create.
#[derive(Clone, Copy, Debug)]
pub struct Create<'a> {
    /// Kind and permission bits, before the umask.
    pub mode: u32,
    /// Device number (`new_encode_dev` form) of a device node, else 0.
    pub rdev: u32,
    /// Target of a symbolic link, else empty.
    pub target: &'a [u8],
    /// Open it too (regular files).
    pub open: Option<OpenFlags>,
    /// An existing name is EEXIST; without it an existing regular file is opened.
    pub exclusive: bool,
    /// O_TMPFILE: no name is made, `name` is ignored.
    pub tmpfile: bool,
}

/// Answer to a creation.
#[derive(Clone, Debug)]
pub struct Created {
    /// The name and its inode.
    pub entry: Entry,
    /// Handle and mode where an open was asked for.
    pub opened: Option<(Handle, IoMode)>,
    /// The name was there before and was opened.
    pub existed: bool,
}

/// rename(2) beyond the plain one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace what is there.
    #[default]
    Replace,
    /// RENAME_NOREPLACE.
    NoReplace,
    /// RENAME_EXCHANGE.
    Exchange,
}

/// File contents as they came, uncopied. Its total length is what was read.
pub type Data = SmallVec<[Bytes; 2]>;

/// Answer to a read. Shorter than asked only at the end of the file.
#[derive(Clone, Debug)]
pub struct ReadData {
    /// The pieces in file order.
    pub data: Data,
    /// Drop once the reply is written.
    pub hold: Hold,
}

impl ReadData {
    /// Bytes in all pieces.
    #[must_use]
    pub fn len(&self) -> usize {
        self.data.iter().map(Bytes::len).sum()
    }
    /// At or beyond the end of the file.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.data.iter().all(Bytes::is_empty)
    }
    /// A copy in one piece (tests, small replies).
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        self.data.iter().flat_map(|b| b.iter().copied()).collect()
    }
}

/// How a write is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteFlags {
    /// O_SYNC or O_DSYNC: durable before the answer.
    pub sync: bool,
    /// Clear set-user-ID and set-group-ID (the writer lacks CAP_FSETID).
    pub kill_suidgid: bool,
    /// A page cache writes back what a mapping dirtied (FUSE_WRITE_CACHE). Never held back while a lease is recalled,
    /// because the invalidation itself waits for it.
    pub writeback: bool,
}

/// Answer to a write: all of it was taken.
#[derive(Clone, Debug)]
pub struct Written {
    /// Bytes written: all that were given, or fewer where an error stopped a later piece.
    pub len: u32,
    /// Where they are; for an append the end of the file when it ran.
    pub offset: u64,
    /// Drop once the reply is written.
    pub hold: Hold,
}

/// One name of a directory page.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Its inode.
    pub ino: Ino,
    /// Where to go on after it; stable for the life of the name, never reused.
    pub cookie: u64,
    /// Its kind.
    pub kind: FileKind,
    /// The name.
    pub name: Bytes,
    /// Attributes, attribute and entry lifetimes, where asked for and at hand.
    pub plus: Option<(Attr, Duration, Duration)>,
}

/// A page of a directory. Contains no "." and no "..": the front end adds what its protocol wants.
#[derive(Clone, Debug)]
pub struct DirPage {
    /// In cookie order.
    pub entries: Vec<DirEntry>,
    /// Nothing follows.
    pub eof: bool,
    /// Drop once the reply is written.
    pub hold: Hold,
}

/// setxattr(2) flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XattrFlags {
    /// XATTR_CREATE.
    pub create: bool,
    /// XATTR_REPLACE.
    pub replace: bool,
    /// Setting an access ACL clears set-group-ID (FUSE_SETXATTR_ACL_KILL_SGID).
    pub kill_sgid: bool,
}

/// A lock to take, convert or give back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRequest {
    /// fcntl(2) or flock(2).
    pub space: LockSpace,
    /// Owner, unique within this service.
    pub owner: LockOwner,
    /// Read, write or unlock.
    pub kind: LockType,
    /// Which bytes.
    pub range: LockRange,
    /// Process, for F_GETLK.
    pub pid: u32,
}

/// A lock in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Its kind.
    pub kind: LockKind,
    /// Its bytes.
    pub range: LockRange,
    /// Its process; 0 where that is on another host.
    pub pid: u32,
}

/// lseek(2) within sparse files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// SEEK_DATA.
    Data,
    /// SEEK_HOLE.
    Hole,
}

/// A place in an open file.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The inode.
    pub ino: Ino,
    /// Its handle.
    pub handle: Handle,
    /// Byte offset.
    pub offset: u64,
}

/// Data that a recall takes out of caches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Stale {
    /// None.
    #[default]
    Nothing,
    /// These bytes, in order, not overlapping, aligned to 4 KiB outwards.
    Ranges(SmallVec<[Range<u64>; 4]>),
    /// The whole file.
    All,
}

/// What a rename did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renamed {
    /// The inode that was moved.
    pub moved: Ino,
    /// The inode that the new name led to before, if any; after an exchange it has the old name.
    pub replaced: Option<Ino>,
}

/// What a front end must forget before a lease goes back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recall {
    /// The inode or directory.
    pub ino: Ino,
    /// Its attributes (and ACLs).
    pub attrs: bool,
    /// Its data. Reads and writes of the file must go on being served meanwhile: their pages are locked in the
    /// kernel, which this waits for.
    pub data: Stale,
    /// These names in it, positive or negative. Operations in the directory must go on being served meanwhile.
    pub names: Vec<Box<[u8]>>,
}

/// The front end's side of a recall.
pub trait Invalidator {
    /// Forgets what `recall` names. The future ends when no process can see the old state through a cache any more.
    /// Several may run at once, also for one inode. It must come to an end as long as requests are being answered.
    fn invalidate(&self, recall: Recall) -> LocalFuture<()>;
}

/// A file system, as front ends see it. Dropping the future of a call that changes something leaves open whether it
/// happens.
#[expect(async_fn_in_trait, reason = "everything runs on one thread; no Send bound is wanted")]
pub trait FileService: 'static {
    /// Who is told of recalls. To be set before the first operation; without one nothing gets a lifetime above zero.
    fn set_invalidator(&self, invalidator: Rc<dyn Invalidator>);

    /// Finds a name. "." and ".." are not names here (EINVAL).
    async fn lookup(&self, ctx: &Ctx, dir: Ino, name: &[u8]) -> Result<Found>;
    /// A hint: the front end forgot `n` of the entries it was given for this inode; its lease may go back.
    fn forget(&self, ino: Ino, n: u64);
    /// The front end holds `ino` in a form that it can't keep: what it was given a lifetime for is to be taken back soon.
    fn uncache(&self, ino: Ino);
    /// Attributes, as stat(2).
    async fn getattr(&self, ctx: &Ctx, ino: Ino) -> Result<Attrs>;
    /// Changes attributes, atomically.
    async fn setattr(&self, ctx: &Ctx, ino: Ino, handle: Option<Handle>, set: SetAttr) -> Result<Attrs>;
    /// Target of a symbolic link.
    async fn readlink(&self, ctx: &Ctx, ino: Ino) -> Result<Bytes>;

    /// Makes an inode of any kind, and opens it if asked.
    async fn create(&self, ctx: &Ctx, dir: Ino, name: &[u8], create: Create<'_>) -> Result<Created>;
    /// Another name for an inode.
    async fn link(&self, ctx: &Ctx, ino: Ino, dir: Ino, name: &[u8]) -> Result<Entry>;
    /// Removes a name that is no directory.
    async fn unlink(&self, ctx: &Ctx, dir: Ino, name: &[u8]) -> Result<()>;
    /// Removes an empty directory.
    async fn rmdir(&self, ctx: &Ctx, dir: Ino, name: &[u8]) -> Result<()>;
    /// Moves a name.
    async fn rename(
        &self,
        ctx: &Ctx,
        dir: Ino,
        name: &[u8],
        new_dir: Ino,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<Renamed>;

    /// Opens a file; it lives until the last close, names or not.
    async fn open(&self, ctx: &Ctx, ino: Ino, flags: OpenFlags) -> Result<Opened>;
    /// Ends a handle, and gives back the flock(2) locks of `flock_owner`. The handle is gone in any case; operations
    /// begun on it before are done first.
    async fn close(&self, ctx: &Ctx, ino: Ino, handle: Handle, flock_owner: Option<LockOwner>) -> Result<()>;
    /// A file descriptor was closed: gives back the fcntl(2) locks of `owner`.
    async fn flush(&self, ctx: &Ctx, ino: Ino, handle: Handle, owner: LockOwner) -> Result<()>;
    /// Makes durable what was written to the inode (directories too).
    async fn fsync(&self, ctx: &Ctx, ino: Ino, data_only: bool) -> Result<()>;
    /// Makes everything durable.
    async fn sync(&self, ctx: &Ctx) -> Result<()>;

    /// Reads up to `len` bytes.
    async fn read(&self, ctx: &Ctx, ino: Ino, handle: Handle, offset: u64, len: u32) -> Result<ReadData>;
    /// Writes all of `data`.
    async fn write(
        &self,
        ctx: &Ctx,
        ino: Ino,
        handle: Handle,
        offset: u64,
        data: Bytes,
        flags: WriteFlags,
    ) -> Result<Written>;
    /// Writes at the end of the file, wherever that is when the server runs it.
    async fn append(
        &self,
        ctx: &Ctx,
        ino: Ino,
        handle: Handle,
        data: Bytes,
        flags: WriteFlags,
    ) -> Result<Written>;
    /// fallocate(2); `mode` holds FALLOC_FL_* bits.
    async fn fallocate(
        &self,
        ctx: &Ctx,
        ino: Ino,
        handle: Handle,
        mode: u32,
        offset: u64,
        len: u64,
    ) -> Result<Attrs>;
    /// Finds data or a hole.
    async fn seek(&self, ctx: &Ctx, ino: Ino, handle: Handle, offset: u64, whence: Seek) -> Result<u64>;
    /// copy_file_range(2), on the server. May copy less.
    async fn copy_range(&self, ctx: &Ctx, from: Place, to: Place, len: u64) -> Result<u64>;

    /// A page of a directory, from `cookie` on (0: the start), of about `max` bytes of names at most.
    async fn readdir(&self, ctx: &Ctx, dir: Ino, cookie: u64, max: u32, plus: bool) -> Result<DirPage>;
    /// Value of an extended attribute.
    async fn getxattr(&self, ctx: &Ctx, ino: Ino, name: &[u8]) -> Result<Bytes>;
    /// Sets an extended attribute.
    async fn setxattr(&self, ctx: &Ctx, ino: Ino, name: &[u8], value: Bytes, flags: XattrFlags)
    -> Result<()>;
    /// Names of the extended attributes, each ended by a NUL.
    async fn listxattr(&self, ctx: &Ctx, ino: Ino) -> Result<Bytes>;
    /// Removes an extended attribute.
    async fn removexattr(&self, ctx: &Ctx, ino: Ino, name: &[u8]) -> Result<()>;
    /// Totals.
    async fn statfs(&self, ctx: &Ctx) -> Result<StatFs>;

    /// The first lock in the way of `lock`, if any.
    async fn getlk(&self, ctx: &Ctx, ino: Ino, handle: Handle, lock: LockRequest)
    -> Result<Option<Conflict>>;
    /// Takes, converts or gives back a lock. Without `wait` a conflict is EAGAIN; with it, it waits until
    /// `ctx.cancel` fires (EINTR).
    async fn setlk(&self, ctx: &Ctx, ino: Ino, handle: Handle, lock: LockRequest, wait: bool) -> Result<()>;
}
