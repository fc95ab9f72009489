//! Grants: the answer to ReclaimLeases.

use crate::codec::List;
use crate::macros::message;
use crate::types::Grant;

message! {
    /// Leases that the client holds from now on.
    pub struct Grants<'a>: 0 {}
    tail {
        /// What the client holds now; what is missing here is lost.
        grants: List<'a, Grant> = List<'_, Grant>,
    }
}
