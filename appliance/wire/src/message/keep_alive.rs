//! KeepAlive (0x0003): shows that both sides live; the reply is `Done`.

use crate::macros::message;

message! {
    /// Shows that both sides live.
    pub struct KeepAlive: 0 {}
}
