//! Fenced (0x0022, notification to the client): the session is no more.

use crate::macros::message;
use crate::types::FenceReason;

message! {
    /// Everything that the session held is gone; the client opens a new one.
    pub struct Fenced: 1 {
        /// Why.
        reason: FenceReason,
    }
}
