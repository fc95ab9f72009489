//! Removed: the answer to Unlink and Rmdir.

use crate::macros::message;
use crate::types::{Grant, Ino};

message! {
    /// A name is gone.
    pub struct Removed: 36 {
        /// The inode that lost a name.
        ino: Ino,
        /// Names that it still has.
        nlink: u32,
        /// What the client may cache of the directory from now on.
        dir_grant: Grant,
    }
}
