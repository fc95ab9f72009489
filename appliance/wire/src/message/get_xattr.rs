//! GetXattr (0x010D): value of an extended attribute; the reply is `Done` with the value as payload.

use crate::codec::XattrName;
use crate::macros::message;
use crate::types::Ino;

message! {
    /// Asks for the value of an extended attribute.
    pub struct GetXattr<'a>: 8 {
        /// The inode.
        ino: Ino,
    }
    tail {
        /// Full name, such as `user.comment`.
        name: &'a [u8] = XattrName,
    }
}
