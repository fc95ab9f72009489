//! Cred: who an operation is done for.

use crate::macros::record;

record! {
    /// User and group of the process; permission checks are the client kernel's.
    pub struct Cred: 8 {
        /// File-system user.
        uid: u32,
        /// File-system group.
        gid: u32,
    }
}
