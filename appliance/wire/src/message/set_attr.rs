//! SetAttr (0x0103): changes attributes, truncation included; the reply is `AttrReply`.

use super::Cred;
use crate::macros::message;
use crate::types::Ino;

message! {
    /// Changes attributes.
    pub struct SetAttr: 72 {
        /// The inode.
        ino: Ino,
        /// What to change.
        set: crate::types::SetAttr,
        /// Who asks; decides ownership and what privileges a change of contents takes away.
        cred: Cred,
    }
}
