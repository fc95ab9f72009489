//! Written: the answer to ChunkWrite.

use crate::macros::message;
use crate::types::{Attr, Grant};

message! {
    /// The data is written.
    pub struct Written: 160 {
        /// Attributes after the operation.
        attr: Attr,
        /// What the client may cache of the inode from now on.
        grant: Grant,
    }
}
