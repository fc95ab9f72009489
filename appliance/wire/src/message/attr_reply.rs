//! AttrReply: attributes and a grant, for GetAttr, SetAttr, Fallocate and AcquireLease.

use crate::macros::message;
use crate::types::{Attr, Grant};

message! {
    /// Attributes and a grant.
    pub struct AttrReply: 160 {
        /// Attributes after the operation.
        attr: Attr,
        /// What the client may cache of the inode from now on.
        grant: Grant,
    }
}
