//! LockConflict: the answer to GetLock.

use crate::macros::message;
use crate::types::{LockKind, LockRange};

message! {
    /// The lock in the way, if there is one.
    pub struct LockConflict: 22 {
        /// One is in the way; otherwise the rest says nothing.
        found: bool,
        /// Its kind.
        kind: LockKind,
        /// Its bytes.
        range: LockRange,
        /// Its process, 0 for one of another client.
        pid: u32,
    }
}
