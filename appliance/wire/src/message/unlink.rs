//! Unlink (0x0107): removes a name that is not a directory's; the reply is `Removed`.

use crate::codec::Name;
use crate::macros::message;
use crate::types::Ino;

message! {
    /// Removes a name that is not a directory's.
    pub struct Unlink<'a>: 8 {
        /// The directory.
        dir: Ino,
    }
    tail {
        /// Name in `dir`.
        name: &'a [u8] = Name,
    }
}
