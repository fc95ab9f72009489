//! Recall (0x0020, notification to the client): give back what goes beyond `keep`.

use crate::macros::message;
use crate::types::{Ino, LeaseMode};

message! {
    /// Takes back a lease. The client invalidates first, then answers with LeaseReturn.
    pub struct Recall: 17 {
        /// The inode.
        ino: Ino,
        /// Highest serial of a grant that this takes back; later grants stand.
        serial: u64,
        /// What may be kept.
        keep: LeaseMode,
    }
}
