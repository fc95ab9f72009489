//! SessionState: the answer to OpenSession.

use crate::macros::{choice, message};

choice! {
    /// What the client must do next.
    pub enum SessionPhase {
        /// Nothing: the session is new and holds nothing.
        New = 0,
        /// Nothing: the session is known and holds what it held.
        Resumed = 1,
        /// Reclaim opens, locks and leases, then send ReclaimDone: the daemon was restarted.
        Reclaim = 2,
    }
}

message! {
    /// What the server knows of the session.
    pub struct SessionState: 13 {
        /// What the server knows of the session.
        state: SessionPhase,
        /// Grows at each start of the daemon.
        boot_epoch: u64,
        /// Milliseconds left to reclaim; 0 outside a grace window.
        grace_ms: u32,
    }
}
