//! AcquireLease (0x0119): asks for a lease; the reply is `AttrReply`.

use crate::macros::message;
use crate::types::{Ino, LeaseMode};

message! {
    /// Asks for a lease.
    pub struct AcquireLease: 9 {
        /// The inode.
        ino: Ino,
        /// The mode wanted.
        mode: LeaseMode,
    }
}
