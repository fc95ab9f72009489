//! ListXattr (0x010F): names of extended attributes; the reply is `Done`, its payload the names, each ended by a NUL.

use crate::macros::message;
use crate::types::Ino;

message! {
    /// Asks for the names of extended attributes.
    pub struct ListXattr: 8 {
        /// The inode.
        ino: Ino,
    }
}
