//! Preallocate (0x0305): writes every block of a device once; the reply is `Done` with JSON as payload.

use crate::codec::DevicePath;
use crate::macros::message;

message! {
    /// Writes every block of a device once.
    pub struct Preallocate<'a>: 0 {}
    tail {
        /// Path of the device as the daemon knows it.
        device: &'a [u8] = DevicePath,
    }
}
