//! Seek (0x0117): next data or hole; the reply is `SeekReply`.

use crate::macros::{choice, message};
use crate::types::Ino;

choice! {
    /// What lseek(2) looks for; the numbers are Linux's.
    pub enum Whence {
        /// SEEK_DATA.
        Data = 3,
        /// SEEK_HOLE.
        Hole = 4,
    }
}

message! {
    /// Asks for the next data or hole.
    pub struct Seek: 17 {
        /// The inode.
        ino: Ino,
        /// Where to begin.
        offset: u64,
        /// What to find.
        whence: Whence,
    }
}
