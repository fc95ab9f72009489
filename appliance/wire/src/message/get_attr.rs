//! GetAttr (0x0102): attributes of an inode; the reply is `AttrReply`.

use crate::macros::message;
use crate::types::Ino;

message! {
    /// Asks for attributes.
    pub struct GetAttr: 8 {
        /// The inode.
        ino: Ino,
    }
}
