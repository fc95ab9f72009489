//! ReadReply: the answer to ChunkRead; the data is the payload, shorter than asked only at the end of the file.

use crate::macros::message;
use crate::types::Grant;

message! {
    /// Data follows as payload.
    pub struct ReadReply: 32 {
        /// Bytes in the file now.
        size: u64,
        /// What the client may cache of the inode from now on.
        grant: Grant,
    }
}
