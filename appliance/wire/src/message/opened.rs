//! Opened: the answer to Open.

use crate::macros::{choice, message};
use crate::types::{Attr, Grant};

choice! {
    /// How the kernel should do I/O on an open file.
    pub enum IoMode {
        /// Through its page cache.
        Cached = 0,
        /// Past it: others write the file at the same time.
        Direct = 1,
    }
}

message! {
    /// The file is open.
    pub struct Opened: 169 {
        /// Attributes after the operation.
        attr: Attr,
        /// What the client may cache of the inode from now on.
        grant: Grant,
        /// Names the open file in Close and ReclaimOpens.
        handle: u64,
        /// How to do I/O on the handle.
        io_mode: IoMode,
    }
}
