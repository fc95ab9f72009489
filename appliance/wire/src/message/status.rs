//! Status (0x0301): the daemon's state; the reply is `Done` with JSON as payload.

use crate::macros::message;

message! {
    /// Asks for the daemon's state.
    pub struct Status: 0 {}
}
