//! Append (0x0203): writes the payload at the end of a file; the reply is `Appended`.

use super::WriteFlags;
use crate::macros::message;
use crate::types::Ino;

message! {
    /// Writes the payload at the end of a file.
    pub struct Append: 12 {
        /// The inode.
        ino: Ino,
        /// How.
        flags: WriteFlags,
    }
}
