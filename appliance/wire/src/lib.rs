//! The wire format: the 64-byte header, one file per message, and the types that messages, namespace and clients share.
//!
//! Owns byte layouts and their validation. Must not do I/O, allocate on the decode path, read a clock or know a
//! socket. `docs/wire.md` is the normative description; the layouts here and the vectors there change together.
#![no_std]

extern crate alloc;

mod codec;
mod crc;
mod header;
pub mod limits;
mod macros;
pub mod message;
mod opcode;
#[cfg(test)]
mod sample;
pub mod types;

pub use codec::{Body, BodyBuf, DecodeError, Field, List, TooLong, check_name};
pub use crc::{crc32c, crc32c_parts};
pub use header::{Flags, HANDSHAKE_VERSION, HEADER_LEN, Header, HeaderError, MAGIC};
pub use opcode::{Call, Class, Opcode, RETIRED, Request};
pub use types::*;
