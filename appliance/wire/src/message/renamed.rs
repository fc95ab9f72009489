//! Renamed: the answer to Rename.

use crate::macros::message;
use crate::types::{Grant, Ino};

message! {
    /// A name has moved.
    pub struct Renamed: 64 {
        /// The inode moved.
        moved: Ino,
        /// The inode that had the new name (replaced or exchanged), 0 for none.
        replaced: Ino,
        /// What the client may cache of the old directory.
        dir_grant: Grant,
        /// What the client may cache of the new directory.
        new_dir_grant: Grant,
    }
}
