//! ReclaimOpens (0x0014): files that were open before the daemon's restart; the reply is `Done`.

use super::OpenFlags;
use crate::codec::List;
use crate::macros::{message, record};
use crate::types::Ino;

record! {
    /// A file that a client has open.
    pub struct HeldOpen: 20 {
        /// The inode.
        ino: Ino,
        /// Handle that the server gave.
        handle: u64,
        /// How it was opened.
        flags: OpenFlags,
    }
}

message! {
    /// Files that the client had open before the daemon's restart.
    pub struct ReclaimOpens<'a>: 0 {}
    tail {
        /// The open files.
        opens: List<'a, HeldOpen> = List<'_, HeldOpen>,
    }
}
