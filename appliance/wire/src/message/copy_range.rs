//! CopyRange (0x0118): copies between files on the server; the reply is `Copied`.

use crate::macros::message;
use crate::types::Ino;

message! {
    /// Copies between files on the server.
    pub struct CopyRange: 40 {
        /// File to read.
        src: Ino,
        /// First byte there.
        src_offset: u64,
        /// File to write.
        dst: Ino,
        /// First byte there.
        dst_offset: u64,
        /// Bytes at most.
        len: u64,
    }
}
