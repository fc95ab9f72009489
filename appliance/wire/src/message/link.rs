//! Link (0x0106): gives an inode one more name; the reply is `Entry`.

use crate::codec::Name;
use crate::macros::message;
use crate::types::Ino;

message! {
    /// Gives an inode one more name.
    pub struct Link<'a>: 16 {
        /// The inode.
        ino: Ino,
        /// The directory.
        dir: Ino,
    }
    tail {
        /// Name in `dir`.
        name: &'a [u8] = Name,
    }
}
