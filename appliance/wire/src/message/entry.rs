//! Entry: a name's inode, for Lookup and Link.

use crate::macros::message;
use crate::types::{Attr, Grant};

message! {
    /// The inode that a name stands for.
    pub struct Entry: 184 {
        /// Attributes after the operation.
        attr: Attr,
        /// What the client may cache of the directory from now on.
        dir_grant: Grant,
        /// What the client may cache of the inode from now on.
        grant: Grant,
    }
}
