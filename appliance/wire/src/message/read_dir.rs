//! ReadDir (0x010C): one page of a directory; the reply is `DirPage`.

use crate::macros::message;
use crate::types::Ino;

message! {
    /// Asks for one page of a directory.
    pub struct ReadDir: 22 {
        /// The directory.
        dir: Ino,
        /// Where to go on: 0 to begin, else the last entry's cookie.
        cookie: u64,
        /// Bytes of payload at most.
        max: u32,
        /// With attributes and grants.
        plus: bool,
        /// Leave the directory's access time alone.
        noatime: bool,
    }
}
