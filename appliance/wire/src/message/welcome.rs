//! Welcome: the server's answer to Prove, with what this connection is allowed.

use crate::codec::DecodeError;
use crate::limits::{MAX_CREDITS, MAX_PAYLOAD, MAX_SLOTS};
use crate::macros::message;

message! {
    /// The connection stands; these are its terms.
    pub struct Welcome: 52 {
        /// Requests in flight on this connection at most.
        credits: u16,
        /// Slots of the session: `0..slots` are valid.
        slots: u16,
        /// Shards of the device, for [`crate::shard_of`].
        shards: u16,
        /// Must be zero.
        zero: u16,
        /// Longest payload in bytes.
        max_payload: u32,
        /// Bytes of file data per chunk.
        chunk_size: u32,
        /// Milliseconds within which a recall must be answered.
        lease_ms: u32,
        /// Milliseconds of silence after which the client sends KeepAlive; after three times as many the peer is dead.
        keepalive_ms: u32,
        /// Which run of the daemon this is.
        incarnation: u32,
        /// Grows at each start of the daemon.
        boot_epoch: u64,
        /// Identity of the file system.
        fs_uuid: [u8; 16],
    }
    check check;
}

impl Welcome {
    fn check(&self) -> Result<(), DecodeError> {
        if self.credits == 0 || self.slots == 0 || self.slots > MAX_SLOTS || self.credits > MAX_CREDITS {
            return Err(DecodeError::Value("credits or slots are zero or above their limits"));
        }
        if self.zero != 0 || self.keepalive_ms == 0 || self.max_payload as usize > MAX_PAYLOAD {
            return Err(DecodeError::Value("terms of the connection are out of range"));
        }
        Ok(())
    }
}
