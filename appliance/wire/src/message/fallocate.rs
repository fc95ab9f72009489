//! Fallocate (0x0116): reserves, zeroes or frees a range; the reply is `AttrReply`.

use super::Cred;
use crate::macros::message;
use crate::types::Ino;

message! {
    /// Reserves, zeroes or frees a range.
    pub struct Fallocate: 36 {
        /// The inode.
        ino: Ino,
        /// `FALLOC_FL_*` of fallocate(2); others than KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE get EOPNOTSUPP.
        mode: u32,
        /// First byte.
        offset: u64,
        /// Bytes, not zero.
        len: u64,
        /// Who asks; decides ownership and what privileges a change of contents takes away.
        cred: Cred,
    }
}
