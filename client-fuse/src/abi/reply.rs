//! Structures that we send in replies.

use super::request::{FileLock, layout};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

layout! {
    /// Starts every reply and notification.
    OutHeader: 16 {
        /// Bytes of the whole message.
        len: u32,
        /// 0, or a negated errno; in a notification its code.
        error: i32,
        /// Identity of the request; 0 in a notification.
        unique: u64,
    }
    /// Attributes of a node.
    Attr: 88 {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32,
        mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    /// A name's node, attributes and how long both hold.
    EntryOut: 128 {
        /// 0 says: no such name, and that may be cached.
        nodeid: u64,
        generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32, attr_valid_nsec: u32,
        attr: Attr,
    }
    /// GETATTR, SETATTR.
    AttrOut: 104 { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    /// Time in a [`Statx`].
    SxTime: 16 { tv_sec: i64, tv_nsec: u32, reserved: i32 }
    /// statx(2).
    Statx: 256 {
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16, spare0: u16,
        ino: u64, size: u64, blocks: u64, attributes_mask: u64,
        atime: SxTime, btime: SxTime, ctime: SxTime, mtime: SxTime,
        rdev_major: u32, rdev_minor: u32, dev_major: u32, dev_minor: u32, spare2: [u64; 14],
    }
    /// STATX.
    StatxOut: 288 { attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: Statx }
    /// OPEN, OPENDIR; follows the entry in CREATE and TMPFILE.
    OpenOut: 16 { fh: u64, open_flags: u32, backing_id: i32 }
    /// CREATE, TMPFILE.
    CreateOut: 144 { entry: EntryOut, open: OpenOut }
    /// WRITE, COPY_FILE_RANGE.
    WriteOut: 8 { size: u32, padding: u32 }
    /// COPY_FILE_RANGE_64.
    CopyFileRangeOut: 8 { bytes_copied: u64 }
    /// STATFS.
    StatfsOut: 80 {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64,
        bsize: u32, namelen: u32, frsize: u32, padding: u32, spare: [u32; 6],
    }
    /// GETXATTR and LISTXATTR where the caller asked for the size.
    GetxattrOut: 8 { size: u32, padding: u32 }
    /// GETLK.
    LkOut: 24 { lk: FileLock }
    /// INIT.
    InitOut: 64 {
        major: u32, minor: u32, max_readahead: u32, flags: u32,
        max_background: u16, congestion_threshold: u16, max_write: u32,
        /// Granularity of times in nanoseconds.
        time_gran: u32,
        max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32,
        request_timeout: u16, unused: [u16; 11],
    }
    /// LSEEK.
    LseekOut: 8 { offset: u64 }
    /// BMAP.
    BmapOut: 8 { block: u64 }
    /// IOCTL.
    IoctlOut: 16 { result: i32, flags: u32, in_iovs: u32, out_iovs: u32 }
    /// IOCTL: a piece of memory to fetch or fill.
    IoctlIovec: 16 { base: u64, len: u64 }
    /// POLL.
    PollOut: 8 { revents: u32, padding: u32 }
    /// Head of a directory entry; the name follows, padded to 8 bytes.
    Dirent: 24 { ino: u64, off: u64, namelen: u32, kind: u32 }
    /// First reply of a character device in user space (never sent by us).
    CuseInitOut: 72 {
        major: u32, minor: u32, unused: u32, flags: u32, max_read: u32, max_write: u32,
        dev_major: u32, dev_minor: u32, spare: [u32; 10],
    }
}
