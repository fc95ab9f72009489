//! SeekReply: the answer to Seek.

use crate::macros::message;

message! {
    /// Where the next data or hole begins.
    pub struct SeekReply: 8 {
        /// The byte found.
        offset: u64,
    }
}
