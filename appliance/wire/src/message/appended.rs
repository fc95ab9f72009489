//! Appended: the answer to Append.

use crate::macros::message;
use crate::types::{Attr, Grant};

message! {
    /// The data is appended.
    pub struct Appended: 176 {
        /// Where in the file the data went.
        offset: u64,
        /// Bytes appended: fewer than were sent where space ran out, or somebody else came in between after a crash.
        len: u64,
        /// Attributes after the operation.
        attr: Attr,
        /// What the client may cache of the inode from now on.
        grant: Grant,
    }
}
