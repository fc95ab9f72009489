//! Challenge: the server's answer to Hello; its layout is frozen for all versions.

use crate::macros::message;

message! {
    /// Answers Hello: version chosen, the server's proof and its nonce.
    pub struct Challenge: 89 {
        /// The version that this connection will speak.
        version: u8,
        /// Fresh random bytes.
        nonce: [u8; 32],
        /// The server's proof of the key (see `docs/wire.md`, Handshake).
        proof: [u8; 32],
        /// The server's lasting identity.
        server_uuid: [u8; 16],
        /// Set of optional features that the server offers; none is defined in version 1.
        features: u64,
    }
}
