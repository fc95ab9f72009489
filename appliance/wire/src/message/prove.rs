//! Prove (0x0002): the client's proof of the key.

use crate::macros::message;

message! {
    /// The client's proof of the key.
    pub struct Prove: 32 {
        /// See `docs/wire.md`, Handshake.
        proof: [u8; 32],
    }
}
