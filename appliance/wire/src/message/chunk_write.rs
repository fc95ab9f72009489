//! ChunkWrite (0x0202): writes the payload within one chunk; the reply is `Written`.

use crate::codec::DecodeError;
use crate::macros::{bits, message};
use crate::types::{CHUNK_SIZE, ChunkKey, Ino};

bits! {
    /// How to write.
    pub struct WriteFlags {
        /// Durable before the reply.
        SYNC = 1;
        /// Clear set-user-ID and set-group-ID.
        KILL_SUIDGID = 2;
    }
}

message! {
    /// Writes the payload within one chunk.
    pub struct ChunkWrite: 28 {
        /// The inode.
        ino: Ino,
        /// The chunk.
        key: ChunkKey,
        /// First byte within the chunk.
        offset: u32,
        /// How.
        flags: WriteFlags,
    }
    check check;
}

impl ChunkWrite {
    fn check(&self) -> Result<(), DecodeError> {
        if u64::from(self.offset) >= CHUNK_SIZE {
            return Err(DecodeError::Value("offset lies beyond the chunk"));
        }
        Ok(())
    }
}
