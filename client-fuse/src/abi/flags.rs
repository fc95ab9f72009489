//! Every bit set of the protocol.

/// Capabilities, `INIT`; the kernel transports bits 32 and up in `flags2`.
pub mod init {
    /// Reads of one file run in parallel.
    pub const ASYNC_READ: u64 = 1 << 0;
    /// fcntl locks are ours.
    pub const POSIX_LOCKS: u64 = 1 << 1;
    /// Unused by the kernel.
    pub const FILE_OPS: u64 = 1 << 2;
    /// OPEN carries O_TRUNC.
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    /// LOOKUP of "." and ".." on any node: mounts can be exported, handles opened.
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    /// Writes above 4 KiB.
    pub const BIG_WRITES: u64 = 1 << 5;
    /// The kernel leaves the umask to us.
    pub const DONT_MASK: u64 = 1 << 6;
    /// splice to the device.
    pub const SPLICE_WRITE: u64 = 1 << 7;
    /// Pages may move.
    pub const SPLICE_MOVE: u64 = 1 << 8;
    /// splice from the device.
    pub const SPLICE_READ: u64 = 1 << 9;
    /// flock locks are ours.
    pub const FLOCK_LOCKS: u64 = 1 << 10;
    /// IOCTL on directories.
    pub const HAS_IOCTL_DIR: u64 = 1 << 11;
    /// A changed mtime or size drops cached pages.
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    /// READDIRPLUS.
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    /// READDIRPLUS only where it pays.
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    /// Direct I/O is sent without waiting for each piece.
    pub const ASYNC_DIO: u64 = 1 << 15;
    /// The kernel owns sizes and times and writes back later.
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    /// OPEN may be answered ENOSYS.
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    /// LOOKUP and READDIR of one directory in parallel.
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    /// We clear set-id bits, version 1.
    pub const HANDLE_KILLPRIV: u64 = 1 << 19;
    /// POSIX ACLs in the kernel's permission check.
    pub const POSIX_ACL: u64 = 1 << 20;
    /// Reading the device of an aborted mount gives ECONNABORTED.
    pub const ABORT_ERROR: u64 = 1 << 21;
    /// `max_pages` of the INIT reply counts.
    pub const MAX_PAGES: u64 = 1 << 22;
    /// Link targets are cached.
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    /// OPENDIR may be answered ENOSYS.
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    /// Cached pages are dropped only when told.
    pub const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    /// `map_alignment` of the INIT reply counts.
    pub const MAP_ALIGNMENT: u64 = 1 << 26;
    /// Submounts.
    pub const SUBMOUNTS: u64 = 1 << 27;
    /// We clear set-id bits when asked to by flag.
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    /// The long form of `setxattr_in`.
    pub const SETXATTR_EXT: u64 = 1 << 29;
    /// `flags2` counts.
    pub const INIT_EXT: u64 = 1 << 30;
    /// Security context at creation.
    pub const SECURITY_CTX: u64 = 1 << 32;
    /// DAX per inode.
    pub const HAS_INODE_DAX: u64 = 1 << 33;
    /// Supplementary group at creation.
    pub const CREATE_SUPP_GROUP: u64 = 1 << 34;
    /// Entries can be expired without being dropped.
    pub const HAS_EXPIRE_ONLY: u64 = 1 << 35;
    /// Shared mmap of direct files.
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    /// Passthrough to backing files.
    pub const PASSTHROUGH: u64 = 1 << 37;
    /// No handles at all.
    pub const NO_EXPORT_SUPPORT: u64 = 1 << 38;
    /// Requests can be sent again.
    pub const HAS_RESEND: u64 = 1 << 39;
    /// Idmapped mounts.
    pub const ALLOW_IDMAP: u64 = 1 << 40;
    /// Requests over io_uring.
    pub const OVER_IO_URING: u64 = 1 << 41;
    /// `request_timeout` of the INIT reply counts.
    pub const REQUEST_TIMEOUT: u64 = 1 << 42;
}

/// Flags in the reply to OPEN, CREATE, OPENDIR.
pub mod fopen {
    /// Around the page cache.
    pub const DIRECT_IO: u32 = 1 << 0;
    /// Keep the pages cached before this open.
    pub const KEEP_CACHE: u32 = 1 << 1;
    /// No seeking.
    pub const NONSEEKABLE: u32 = 1 << 2;
    /// The listing may be cached.
    pub const CACHE_DIR: u32 = 1 << 3;
    /// No position at all.
    pub const STREAM: u32 = 1 << 4;
    /// No FLUSH at close.
    pub const NOFLUSH: u32 = 1 << 5;
    /// Direct writes of one inode in parallel.
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
    /// To a backing file.
    pub const PASSTHROUGH: u32 = 1 << 7;
}

/// Which fields of a SETATTR count.
pub mod fattr {
    /// `mode`.
    pub const MODE: u32 = 1 << 0;
    /// `uid`.
    pub const UID: u32 = 1 << 1;
    /// `gid`.
    pub const GID: u32 = 1 << 2;
    /// `size`.
    pub const SIZE: u32 = 1 << 3;
    /// `atime`.
    pub const ATIME: u32 = 1 << 4;
    /// `mtime`.
    pub const MTIME: u32 = 1 << 5;
    /// `fh`.
    pub const FH: u32 = 1 << 6;
    /// The server's clock for `atime`.
    pub const ATIME_NOW: u32 = 1 << 7;
    /// The server's clock for `mtime`.
    pub const MTIME_NOW: u32 = 1 << 8;
    /// `lock_owner`.
    pub const LOCKOWNER: u32 = 1 << 9;
    /// `ctime`.
    pub const CTIME: u32 = 1 << 10;
    /// Clear set-id bits.
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// GETATTR: `fh` counts.
pub const GETATTR_FH: u32 = 1 << 0;
/// Locks: flock(2), not fcntl(2).
pub const LK_FLOCK: u32 = 1 << 0;
/// WRITE: from the page cache, the handle is a guess.
pub const WRITE_CACHE: u32 = 1 << 0;
/// WRITE: `lock_owner` counts.
pub const WRITE_LOCKOWNER: u32 = 1 << 1;
/// WRITE: clear set-id bits.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// READ: `lock_owner` counts.
pub const READ_LOCKOWNER: u32 = 1 << 1;
/// OPEN and CREATE: clear set-id bits.
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// RELEASE: flush first.
pub const RELEASE_FLUSH: u32 = 1 << 0;
/// RELEASE: drop the owner's flock.
pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// FSYNC: data only.
pub const FSYNC_FDATASYNC: u32 = 1 << 0;
/// SETXATTR: clear set-group-ID with the ACL.
pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
/// Entry invalidation: expire, do not drop.
pub const EXPIRE_ONLY: u32 = 1 << 0;
/// The identifier of an INTERRUPT is that of its request with this bit.
pub const INTERRUPT_BIT: u64 = 1;
