//! RemoveXattr (0x0110): removes an extended attribute; the reply is `Done`.

use crate::codec::XattrName;
use crate::macros::message;
use crate::types::Ino;

message! {
    /// Removes an extended attribute.
    pub struct RemoveXattr<'a>: 8 {
        /// The inode.
        ino: Ino,
    }
    tail {
        /// Full name.
        name: &'a [u8] = XattrName,
    }
}
