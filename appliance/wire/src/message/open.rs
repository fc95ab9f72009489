//! Open (0x010A): opens a file; the reply is `Opened`.

use super::Cred;
use crate::macros::{bits, message};
use crate::types::Ino;

bits! {
    /// How a file is opened.
    pub struct OpenFlags {
        /// For reading.
        READ = 1;
        /// For writing.
        WRITE = 2;
        /// Writes go to the end.
        APPEND = 4;
        /// Cut to nothing first.
        TRUNC = 8;
        /// Truncation clears set-user-ID and set-group-ID.
        KILL_SUIDGID = 16;
        /// O_DIRECT: no page cache.
        DIRECT = 32;
        /// Nobody else may have it open for reading (NFSv4 OPEN4_SHARE_DENY_READ).
        DENY_READ = 64;
        /// Nobody else may have it open for writing (NFSv4 OPEN4_SHARE_DENY_WRITE).
        DENY_WRITE = 128;
    }
}

message! {
    /// Opens a file.
    pub struct Open: 20 {
        /// The inode.
        ino: Ino,
        /// How.
        flags: OpenFlags,
        /// Who asks; decides ownership and what privileges a change of contents takes away.
        cred: Cred,
    }
}
