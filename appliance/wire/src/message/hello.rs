//! Hello (0x0001): the client's first frame, its layout frozen for all versions.

use crate::codec::DecodeError;
use crate::macros::{choice, message};
use crate::types::ClientId;

choice! {
    /// What the connecting side is.
    pub enum Role {
        /// A mount or gateway.
        Client = 1,
        /// A tool that asks for status and gives orders.
        Admin = 2,
        /// Another node.
        Node = 3,
    }
}

message! {
    /// the client's first frame, its layout frozen for all versions.
    pub struct Hello: 51 {
        /// Lowest protocol version that the client speaks.
        min_version: u8,
        /// Highest protocol version that the client speaks.
        max_version: u8,
        /// What it wants to be.
        role: Role,
        /// Which key it will prove: the first 8 bytes of the key's public fingerprint.
        key_id: [u8; 8],
        /// Its identity, the same over reconnects of one session.
        client: ClientId,
        /// Fresh random bytes.
        nonce: [u8; 32],
    }
    check check;
}

impl Hello {
    fn check(&self) -> Result<(), DecodeError> {
        if self.min_version == 0 || self.min_version > self.max_version {
            return Err(DecodeError::Value("range of versions is empty or begins at zero"));
        }
        if self.client == ClientId(0) { Err(DecodeError::Value("client identity is zero")) } else { Ok(()) }
    }
}
