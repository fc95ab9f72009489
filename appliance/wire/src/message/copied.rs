//! Copied: the answer to CopyRange.

use crate::macros::message;
use crate::types::{Attr, Grant};

message! {
    /// How much was copied.
    pub struct Copied: 168 {
        /// Bytes copied; may be fewer than asked.
        len: u64,
        /// Attributes of the written file.
        attr: Attr,
        /// What the client may cache of the written file.
        grant: Grant,
    }
}
