//! Grow (0x0304): takes a device's new space into use; the reply is `Done` with JSON as payload.

use crate::codec::DevicePath;
use crate::macros::message;

message! {
    /// Takes a device's new space into use.
    pub struct Grow<'a>: 0 {}
    tail {
        /// Path of the device as the daemon knows it.
        device: &'a [u8] = DevicePath,
    }
}
