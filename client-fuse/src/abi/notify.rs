//! Messages that we send unasked: an [`OutHeader`](super::OutHeader) with `unique` 0 and the code in `error`.

use super::request::layout;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Readiness changed.
pub const POLL: i32 = 1;
/// Drop attributes and pages of a node.
pub const INVAL_INODE: i32 = 2;
/// Drop or expire a name.
pub const INVAL_ENTRY: i32 = 3;
/// Put data into the page cache.
pub const STORE: i32 = 4;
/// Take data out of the page cache.
pub const RETRIEVE: i32 = 5;
/// A name was removed.
pub const DELETE: i32 = 6;
/// Send unanswered requests again.
pub const RESEND: i32 = 7;
/// All names of the mount are to be looked up anew.
pub const INC_EPOCH: i32 = 8;
/// Drop unused nodes.
pub const PRUNE: i32 = 9;

layout! {
    /// POLL.
    PollWakeupOut: 8 { kh: u64 }
    /// INVAL_INODE.
    InvalInodeOut: 24 {
        ino: u64,
        /// First byte; negative keeps the pages and drops attributes only.
        off: i64,
        /// Bytes; 0 or less goes to the end.
        len: i64,
    }
    /// INVAL_ENTRY; name and a NUL follow.
    InvalEntryOut: 16 { parent: u64, namelen: u32, flags: u32 }
    /// DELETE; name and a NUL follow.
    DeleteOut: 24 { parent: u64, child: u64, namelen: u32, padding: u32 }
    /// STORE; data follows.
    StoreOut: 24 { nodeid: u64, offset: u64, size: u32, padding: u32 }
    /// RETRIEVE.
    RetrieveOut: 32 { notify_unique: u64, nodeid: u64, offset: u64, size: u32, padding: u32 }
    /// PRUNE; node numbers follow.
    PruneOut: 16 { count: u32, padding: u32, spare: u64 }
}
