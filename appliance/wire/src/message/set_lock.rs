//! SetLock (0x0113): takes, converts or gives back a lock; the reply is `Done`.

use crate::macros::message;
use crate::types::{Ino, LockOwner, LockRange, LockSpace, LockType};

message! {
    /// Takes, converts or gives back a lock.
    pub struct SetLock: 39 {
        /// The inode.
        ino: Ino,
        /// Family of locks.
        space: LockSpace,
        /// Owner within the client.
        owner: LockOwner,
        /// What to do.
        lock: LockType,
        /// Bytes.
        range: LockRange,
        /// Process that asks.
        pid: u32,
        /// Wait until it is to be had; otherwise EAGAIN.
        wait: bool,
    }
}
