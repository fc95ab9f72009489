//! StatFsReply: the answer to StatFs.

use crate::macros::message;

message! {
    /// Totals of the file system.
    pub struct StatFsReply: 48 {
        /// The totals.
        stat: crate::types::StatFs,
    }
}
