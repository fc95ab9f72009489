//! StatFs (0x0111): totals of the file system; the reply is `StatFsReply`.

use crate::macros::message;

message! {
    /// Asks for the totals of the file system.
    pub struct StatFs: 0 {}
}
