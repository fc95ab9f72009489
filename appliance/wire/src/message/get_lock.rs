//! GetLock (0x0112): which lock is in the way (F_GETLK); the reply is `LockConflict`.

use crate::macros::message;
use crate::types::{Ino, LockKind, LockOwner, LockRange, LockSpace};

message! {
    /// Asks which lock is in the way of another.
    pub struct GetLock: 38 {
        /// The inode.
        ino: Ino,
        /// Family of locks.
        space: LockSpace,
        /// Owner within the client.
        owner: LockOwner,
        /// Lock that would be taken.
        kind: LockKind,
        /// Bytes.
        range: LockRange,
        /// Process that asks.
        pid: u32,
    }
}
