//! Rmdir (0x0108): removes an empty directory; the reply is `Removed`.

use crate::codec::Name;
use crate::macros::message;
use crate::types::Ino;

message! {
    /// Removes an empty directory.
    pub struct Rmdir<'a>: 8 {
        /// The directory.
        dir: Ino,
    }
    tail {
        /// Name in `dir`.
        name: &'a [u8] = Name,
    }
}
