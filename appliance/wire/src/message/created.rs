//! Created: the answer to Create.

use super::IoMode;
use crate::macros::message;
use crate::types::{Attr, Grant};

message! {
    /// The inode made or found, and its handle.
    pub struct Created: 194 {
        /// Attributes after the operation.
        attr: Attr,
        /// What the client may cache of the directory from now on.
        dir_grant: Grant,
        /// What the client may cache of the inode from now on.
        grant: Grant,
        /// Handle of the open file, 0 where it was not opened.
        handle: u64,
        /// The name existed and nothing was created.
        existed: bool,
        /// How to do I/O on the handle.
        io_mode: IoMode,
    }
}
