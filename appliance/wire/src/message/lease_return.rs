//! LeaseReturn (0x0021): the client has given up leases; the reply is `Done`.

use crate::codec::List;
use crate::macros::{message, record};
use crate::types::{Ino, LeaseMode};

record! {
    /// A lease given up.
    pub struct Returned: 17 {
        /// The inode.
        ino: Ino,
        /// Serial of the recall, or of the latest grant that the client knows of.
        serial: u64,
        /// What the client keeps.
        keep: LeaseMode,
    }
}

message! {
    /// Leases that the client no longer holds.
    pub struct LeaseReturn<'a>: 0 {}
    tail {
        /// The leases, recalled or given up unasked.
        leases: List<'a, Returned> = List<'_, Returned>,
    }
}
