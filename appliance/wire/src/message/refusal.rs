//! Refusal: body of the error reply to a handshake frame; its layout is frozen for all versions.

use crate::macros::{choice, message};

choice! {
    /// Why a server refuses a connection.
    pub enum RefusalReason {
        /// No version in common.
        Version = 1,
        /// The key is not the server's, or does not allow this role. It says no more than that.
        Key = 2,
        /// The server has as many connections as it may have.
        Full = 3,
        /// The frame is not the one that the handshake expects.
        Protocol = 4,
        /// The server is going down.
        Stopping = 5,
    }
}

message! {
    /// Why the server closes the connection now.
    pub struct Refusal: 3 {
        /// Lowest protocol version that the server speaks.
        min_version: u8,
        /// Highest protocol version that the server speaks.
        max_version: u8,
        /// Why.
        reason: RefusalReason,
    }
}
