//! Lookup (0x0101): finds a name; the reply is `Entry`.

use crate::codec::Name;
use crate::macros::message;
use crate::types::Ino;

message! {
    /// Finds a name in a directory.
    pub struct Lookup<'a>: 8 {
        /// The directory.
        dir: Ino,
    }
    tail {
        /// Name in `dir`.
        name: &'a [u8] = Name,
    }
}
