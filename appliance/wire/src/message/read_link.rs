//! ReadLink (0x0104): target of a symbolic link; the reply is `Done` with the target as payload.

use crate::macros::message;
use crate::types::Ino;

message! {
    /// Asks for the target of a symbolic link.
    pub struct ReadLink: 8 {
        /// The inode.
        ino: Ino,
    }
}
