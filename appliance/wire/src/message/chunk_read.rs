//! ChunkRead (0x0201): file data within one chunk; the reply is `ReadReply` with the data as payload.

use crate::codec::DecodeError;
use crate::macros::{bits, message};
use crate::types::{CHUNK_SIZE, ChunkKey, Ino};

bits! {
    /// How to read.
    pub struct ReadFlags {
        /// Leave the access time alone.
        NOATIME = 1;
    }
}

message! {
    /// Reads file data within one chunk.
    pub struct ChunkRead: 32 {
        /// The inode.
        ino: Ino,
        /// The chunk.
        key: ChunkKey,
        /// First byte within the chunk.
        offset: u32,
        /// Bytes; with `offset` at most a chunk.
        len: u32,
        /// How.
        flags: ReadFlags,
    }
    check check;
}

impl ChunkRead {
    fn check(&self) -> Result<(), DecodeError> {
        if u64::from(self.offset) + u64::from(self.len) > CHUNK_SIZE {
            return Err(DecodeError::Value("range reaches beyond the chunk"));
        }
        Ok(())
    }
}
