//! CloseSession (0x0011): frees everything that the session holds; the reply is `Done`.

use crate::macros::message;

message! {
    /// Ends the session and frees everything that it holds.
    pub struct CloseSession: 0 {}
}
