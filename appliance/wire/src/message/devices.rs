//! Devices (0x0303): lists the devices; the reply is `Done` with JSON as payload.

use crate::macros::message;

message! {
    /// Asks for the list of devices.
    pub struct Devices: 0 {}
}
