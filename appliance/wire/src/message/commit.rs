//! Commit (0x0115): makes what was acknowledged durable (fsync, syncfs); the reply is `Done`.

use crate::macros::message;
use crate::types::Ino;

message! {
    /// Makes what was acknowledged durable.
    pub struct Commit: 9 {
        /// The inode, 0 for everything.
        ino: Ino,
        /// Times need not be durable (fdatasync).
        data_only: bool,
    }
}
