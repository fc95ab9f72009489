//! Preallocate (0x0305): reserves every block of a device from what lies below; the reply is `Done` with JSON as payload.

use crate::codec::DevicePath;
use crate::macros::message;

message! {
    /// Reserves every block of a device from what lies below, until the request is cancelled or its connection ends.
    pub struct Preallocate<'a>: 0 {}
    tail {
        /// Path of the device as the daemon knows it.
        device: &'a [u8] = DevicePath,
    }
}
