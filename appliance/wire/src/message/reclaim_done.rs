//! ReclaimDone (0x0015): nothing more to reclaim; the reply is `Done`.

use crate::macros::message;

message! {
    /// The client has nothing more to reclaim.
    pub struct ReclaimDone: 0 {}
}
