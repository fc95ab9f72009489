//! Close (0x010B): the last use of a handle is over; the reply is `Done`.

use crate::macros::message;
use crate::types::Ino;

message! {
    /// Gives a handle back.
    pub struct Close: 16 {
        /// The inode.
        ino: Ino,
        /// The handle.
        handle: u64,
    }
}
