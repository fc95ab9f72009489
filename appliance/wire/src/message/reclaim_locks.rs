//! ReclaimLocks (0x0012): locks held before the daemon's restart; the reply is `Done`.

use crate::codec::List;
use crate::macros::{message, record};
use crate::types::{Ino, LockKind, LockOwner, LockRange, LockSpace};

record! {
    /// A lock that a client holds.
    pub struct HeldLock: 38 {
        /// The inode.
        ino: Ino,
        /// Family of locks.
        space: LockSpace,
        /// Shared or exclusive.
        kind: LockKind,
        /// Bytes covered.
        range: LockRange,
        /// Owner within the client.
        owner: LockOwner,
        /// Process that took it, for F_GETLK.
        pid: u32,
    }
}

message! {
    /// Locks that the client held before the daemon's restart.
    pub struct ReclaimLocks<'a>: 0 {}
    tail {
        /// The locks.
        locks: List<'a, HeldLock> = List<'_, HeldLock>,
    }
}
