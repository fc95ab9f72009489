//! The 64 bytes that begin every frame, their checksum and their validation.
//!
//! A frame is header, body, payload. `header_crc` is the CRC-32C of header bytes 4..64 followed by the body;
//! `payload_crc` that of the payload, where [`Flags::PAYLOAD_CRC`] is set. The layout is frozen for all versions.

use crate::crc::crc32c_parts;
use crate::limits::{MAX_BODY, MAX_PAYLOAD, VERSIONS};
use crate::{ClientId, Opcode, RequestId, ShardId, Slot, Status};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian as le};

/// Bytes of a header.
pub const HEADER_LEN: usize = 64;

/// `"CFS1"` in memory order.
pub const MAGIC: u32 = u32::from_le_bytes(*b"CFS1");

/// `version` of handshake frames (Hello, Challenge, Prove, Welcome and their refusals); those never change.
pub const HANDSHAKE_VERSION: u8 = 0;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    header_crc: le::U32,
    payload_crc: le::U32,
    magic: le::U32,
    version: u8,
    flags: u8,
    opcode: le::U16,
    client: le::U64,
    sequence: le::U64,
    channel: le::U16,
    shard: le::U16,
    status: le::U16,
    body_len: le::U16,
    payload_len: le::U32,
    deadline: le::U32,
    epoch: le::U64,
    incarnation: le::U32,
    zero: le::U32,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Raw>() == HEADER_LEN);
    assert!(offset_of!(Raw, payload_crc) == 4 && offset_of!(Raw, magic) == 8);
    assert!(offset_of!(Raw, version) == 12 && offset_of!(Raw, flags) == 13 && offset_of!(Raw, opcode) == 14);
    assert!(offset_of!(Raw, client) == 16 && offset_of!(Raw, sequence) == 24);
    assert!(offset_of!(Raw, channel) == 32 && offset_of!(Raw, shard) == 34);
    assert!(offset_of!(Raw, status) == 36 && offset_of!(Raw, body_len) == 38);
    assert!(offset_of!(Raw, payload_len) == 40 && offset_of!(Raw, deadline) == 44);
    assert!(
        offset_of!(Raw, epoch) == 48 && offset_of!(Raw, incarnation) == 56 && offset_of!(Raw, zero) == 60
    );
};

/// The `flags` byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u8);

impl Flags {
    /// A reply to the request of the same channel and sequence.
    pub const REPLY: Self = Self(1);
    /// The kernel's page cache will hold what the reply carries: a Shared grant is needed with it.
    pub const NEED_LEASE: Self = Self(2);
    /// No reply follows.
    pub const NOTIFY: Self = Self(4);
    /// `payload_crc` is that of the payload; otherwise it is zero.
    pub const PAYLOAD_CRC: Self = Self(8);
    const KNOWN: u8 = 15;

    /// No flag.
    #[must_use]
    pub const fn none() -> Self {
        Self(0)
    }
    /// Both sets.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    /// Are all of `other` set?
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
    /// The byte on the wire.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }
}

/// A header in host form. `body_len` is filled in when a frame is made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// CRC-32C of the payload where `flags` says so, else 0.
    pub payload_crc: u32,
    /// Protocol version of this frame.
    pub version: u8,
    /// What kind of frame.
    pub flags: Flags,
    /// Number of an [`Opcode`]; kept as it came, so that an unknown one can be answered.
    pub opcode: u16,
    /// The session; zero for a peer without one.
    pub client: ClientId,
    /// Number of the request on its slot, or within the connection for [`Slot::IDEMPOTENT`].
    pub sequence: u64,
    /// The slot; field `channel` on the wire.
    pub slot: Slot,
    /// The shard addressed, 0 where none is.
    pub shard: ShardId,
    /// [`Status::Ok`] in requests.
    pub status: Status,
    /// Bytes of body.
    pub body_len: u16,
    /// Bytes of payload.
    pub payload_len: u32,
    /// Milliseconds that the sender still waits; 0 for no limit.
    pub deadline_ms: u32,
    /// The boot epoch that the sender believes in.
    pub epoch: u64,
    /// Which run of the daemon answers; 0 in requests.
    pub incarnation: u32,
}

/// Why 64 bytes are not a header, or a body or payload not the one it speaks of. The connection is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not our protocol at all.
    #[error(
        "frame begins with magic {0:#010x} instead of {MAGIC:#010x}: the peer does not speak this protocol"
    )]
    Magic(u32),
    /// A version outside [`VERSIONS`] and not that of the handshake.
    #[error("frame has protocol version {0}; this side speaks {low} to {high}", low = VERSIONS.0, high = VERSIONS.1)]
    Version(u8),
    /// Flags that this version does not know.
    #[error("frame has unknown flags {0:#04x}")]
    Flags(u8),
    /// Reserved bytes are in use.
    #[error("reserved bytes of the header are not zero")]
    Reserved,
    /// `body_len` is above [`MAX_BODY`].
    #[error("body of {0} bytes is longer than {MAX_BODY}")]
    Body(u16),
    /// `payload_len` is above [`MAX_PAYLOAD`].
    #[error("payload of {0} bytes is longer than {MAX_PAYLOAD}")]
    Payload(u32),
    /// A notification cannot be a reply, a request cannot have a status.
    #[error("flags and status of the frame contradict each other")]
    Kind,
    /// Header and body do not match `header_crc`.
    #[error("header and body fail their checksum ({found:#010x}, frame says {stated:#010x})")]
    HeaderCrc {
        /// In the frame.
        stated: u32,
        /// Of the bytes received.
        found: u32,
    },
    /// The payload does not match `payload_crc`.
    #[error("payload fails its checksum ({found:#010x}, frame says {stated:#010x})")]
    PayloadCrc {
        /// In the frame.
        stated: u32,
        /// Of the bytes received.
        found: u32,
    },
}

impl Header {
    /// A request of `opcode` with everything else zero or none; the caller fills in what it needs.
    #[must_use]
    pub const fn request(opcode: Opcode) -> Self {
        Self {
            payload_crc: 0,
            version: VERSIONS.1,
            flags: Flags::none(),
            opcode: opcode as u16,
            client: ClientId(0),
            sequence: 0,
            slot: Slot::IDEMPOTENT,
            shard: ShardId(0),
            status: Status::Ok,
            body_len: 0,
            payload_len: 0,
            deadline_ms: 0,
            epoch: 0,
            incarnation: 0,
        }
    }

    /// The reply to this request with `status` and no payload.
    #[must_use]
    pub const fn reply(&self, status: Status) -> Self {
        Self {
            payload_crc: 0,
            flags: Flags::REPLY,
            status,
            body_len: 0,
            payload_len: 0,
            deadline_ms: 0,
            incarnation: 0,
            ..*self
        }
    }

    /// Identity of the request that this header belongs to.
    #[must_use]
    pub const fn id(&self) -> RequestId {
        RequestId { client: self.client, slot: self.slot, sequence: self.sequence }
    }

    /// The operation, `None` where this version does not know it.
    #[must_use]
    pub fn op(&self) -> Option<Opcode> {
        Opcode::from_u16(self.opcode)
    }

    /// Bytes of body and payload that follow.
    #[must_use]
    pub const fn rest_len(&self) -> usize {
        self.body_len as usize + self.payload_len as usize
    }

    /// The 64 bytes before `body`, checksum filled in. `body_len` is taken from `body`.
    #[must_use]
    pub fn encode(&self, body: &[u8]) -> [u8; HEADER_LEN] {
        debug_assert!(body.len() <= MAX_BODY && self.payload_len as usize <= MAX_PAYLOAD);
        let mut raw = Raw {
            header_crc: 0.into(),
            payload_crc: self.payload_crc.into(),
            magic: MAGIC.into(),
            version: self.version,
            flags: self.flags.0,
            opcode: self.opcode.into(),
            client: self.client.into(),
            sequence: self.sequence.into(),
            channel: self.slot.0.into(),
            shard: self.shard.0.into(),
            status: self.status.to_u16().into(),
            body_len: (body.len() as u16).into(),
            payload_len: self.payload_len.into(),
            deadline: self.deadline_ms.into(),
            epoch: self.epoch.into(),
            incarnation: self.incarnation.into(),
            zero: 0.into(),
        };
        raw.header_crc = crc32c_parts([&raw.as_bytes()[4..], body]).into();
        zerocopy::transmute!(raw)
    }

    /// Checks all that can be checked before the body has come; [`Header::verify`] does the rest.
    ///
    /// # Errors
    /// The reason, see [`HeaderError`]. Lengths of an accepted header are within their limits.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, HeaderError> {
        let raw: Raw = zerocopy::transmute!(*bytes);
        raw.validate()?;
        Ok(Self {
            payload_crc: raw.payload_crc.get(),
            version: raw.version,
            flags: Flags(raw.flags),
            opcode: raw.opcode.get(),
            client: raw.client.into(),
            sequence: raw.sequence.get(),
            slot: Slot(raw.channel.get()),
            shard: ShardId(raw.shard.get()),
            status: Status::from_u16(raw.status.get()),
            body_len: raw.body_len.get(),
            payload_len: raw.payload_len.get(),
            deadline_ms: raw.deadline.get(),
            epoch: raw.epoch.get(),
            incarnation: raw.incarnation.get(),
        })
    }

    /// Compares the checksum in `bytes` with that of `bytes` and `body`.
    ///
    /// # Errors
    /// [`HeaderError::HeaderCrc`].
    pub fn verify(bytes: &[u8; HEADER_LEN], body: &[u8]) -> Result<(), HeaderError> {
        let raw: Raw = zerocopy::transmute!(*bytes);
        let (stated, found) = (raw.header_crc.get(), crc32c_parts([&bytes[4..], body]));
        if stated == found { Ok(()) } else { Err(HeaderError::HeaderCrc { stated, found }) }
    }

    /// Compares `payload` with the checksum in this header, where it has one.
    ///
    /// # Errors
    /// [`HeaderError::PayloadCrc`].
    pub fn verify_payload(&self, payload: &[u8]) -> Result<(), HeaderError> {
        if !self.flags.has(Flags::PAYLOAD_CRC) {
            return Ok(());
        }
        let (stated, found) = (self.payload_crc, crate::crc32c(payload));
        if stated == found { Ok(()) } else { Err(HeaderError::PayloadCrc { stated, found }) }
    }
}

impl Raw {
    fn validate(&self) -> Result<(), HeaderError> {
        if self.magic.get() != MAGIC {
            return Err(HeaderError::Magic(self.magic.get()));
        }
        if self.version != HANDSHAKE_VERSION && !(VERSIONS.0..=VERSIONS.1).contains(&self.version) {
            return Err(HeaderError::Version(self.version));
        }
        if self.flags & !Flags::KNOWN != 0 {
            return Err(HeaderError::Flags(self.flags));
        }
        let flags = Flags(self.flags);
        if self.zero.get() != 0 || (self.payload_crc.get() != 0 && !flags.has(Flags::PAYLOAD_CRC)) {
            return Err(HeaderError::Reserved);
        }
        if usize::from(self.body_len.get()) > MAX_BODY {
            return Err(HeaderError::Body(self.body_len.get()));
        }
        if self.payload_len.get() as usize > MAX_PAYLOAD {
            return Err(HeaderError::Payload(self.payload_len.get()));
        }
        let reply = flags.has(Flags::REPLY);
        if (reply && flags.has(Flags::NOTIFY)) || (!reply && self.status.get() != 0) {
            return Err(HeaderError::Kind);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Header {
        Header {
            flags: Flags::NEED_LEASE,
            client: ClientId(1),
            sequence: 9,
            slot: Slot(3),
            payload_len: 5,
            epoch: 2,
            ..Header::request(Opcode::GetAttr)
        }
    }

    fn with(at: usize, bytes: &[u8]) -> [u8; HEADER_LEN] {
        let mut out = sample().encode(b"");
        out[at..at + bytes.len()].copy_from_slice(bytes);
        out
    }

    #[test]
    fn each_reason_is_named() {
        assert_eq!(Header::decode(&with(8, b"HTTP")), Err(HeaderError::Magic(u32::from_le_bytes(*b"HTTP"))));
        assert_eq!(Header::decode(&with(12, &[9])), Err(HeaderError::Version(9)));
        assert_eq!(Header::decode(&with(13, &[0x80])), Err(HeaderError::Flags(0x80)));
        assert_eq!(Header::decode(&with(60, &[1])), Err(HeaderError::Reserved));
        assert_eq!(Header::decode(&with(4, &[1])), Err(HeaderError::Reserved));
        assert_eq!(Header::decode(&with(38, &[1, 0x20])), Err(HeaderError::Body(8193)));
        assert_eq!(Header::decode(&with(40, &[1, 0, 16, 0])), Err(HeaderError::Payload(1_048_577)));
        assert_eq!(Header::decode(&with(36, &[1])), Err(HeaderError::Kind));
        assert_eq!(Header::decode(&with(13, &[5])), Err(HeaderError::Kind));
    }

    #[test]
    fn checksums_cover_header_body_and_payload() {
        let bytes = sample().encode(b"body");
        assert_eq!(Header::verify(&bytes, b"body"), Ok(()));
        assert!(matches!(Header::verify(&bytes, b"bodY"), Err(HeaderError::HeaderCrc { .. })));
        for bit in 0..HEADER_LEN * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::verify(&bad, b"body").is_err(), "bit {bit} goes unnoticed");
        }
        let crc = crate::crc32c(b"12345");
        let header = Header { payload_crc: crc, flags: Flags::PAYLOAD_CRC, ..sample() };
        assert_eq!(header.verify_payload(b"12345"), Ok(()));
        assert!(header.verify_payload(b"12346").is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_decode_to_themselves_or_fail(bytes: [u8; HEADER_LEN], mend: bool) {
            let mut bytes = bytes;
            if mend {
                bytes[8..14].copy_from_slice(&[b'C', b'F', b'S', b'1', 1, 1]);
                bytes[38..44].fill(0);
                bytes[4..8].fill(0);
                bytes[60..].fill(0);
            }
            let header = Header::decode(&bytes);
            prop_assert!(header.is_ok() || !mend);
            if let Ok(header) = header
                && header.body_len == 0
            {
                prop_assert_eq!(&header.encode(b"")[4..], &bytes[4..]);
            }
        }
    }
}
