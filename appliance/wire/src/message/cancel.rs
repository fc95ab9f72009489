//! Cancel (0x0004, notification): the sender no longer wants a reply.

use crate::macros::message;
use crate::types::Slot;

message! {
    /// Asks to give up a request that has not had its effect; that request is still answered, perhaps with `Cancelled`.
    pub struct Cancel: 10 {
        /// Slot of the request.
        slot: Slot,
        /// Sequence of the request.
        sequence: u64,
    }
}
