//! ReleaseOwner (0x0114): frees all locks of one owner on an inode; the reply is `Done`.

use crate::macros::message;
use crate::types::{Ino, LockOwner, LockSpace};

message! {
    /// Frees all locks of one owner on an inode.
    pub struct ReleaseOwner: 17 {
        /// The inode.
        ino: Ino,
        /// Family of locks.
        space: LockSpace,
        /// Owner within the client.
        owner: LockOwner,
    }
}
