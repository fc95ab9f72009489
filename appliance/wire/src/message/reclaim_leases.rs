//! ReclaimLeases (0x0013): leases held before the daemon's restart; the reply is `Grants`.

use crate::codec::List;
use crate::macros::message;
use crate::types::Grant;

message! {
    /// Leases that the client held before the daemon's restart.
    pub struct ReclaimLeases<'a>: 0 {}
    tail {
        /// What the client held.
        leases: List<'a, Grant> = List<'_, Grant>,
    }
}
