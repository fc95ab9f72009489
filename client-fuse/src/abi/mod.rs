//! The kernel's FUSE protocol, version 7.45, as plain data: numbers, structures, decoding and packing.
//!
//! Everything here is a fact of `include/uapi/linux/fuse.h`; all integers are in host order. Owns the layouts and the checks that a message is as
//! long as it says. Must not do I/O and must not know any file system. Nothing here panics on whatever bytes arrive.
//!
//! - [`opcode`] names the requests, [`flags`] all bit sets, [`request`] and [`reply`] the structures of either direction;
//! - [`decode`] turns a message into an [`Op`]; [`dirent`] packs directory pages; [`notify`] is what we send unasked.

pub mod decode;
pub mod dirent;
pub mod flags;
pub mod notify;
pub mod opcode;
pub mod reply;
pub mod request;

pub use decode::{DecodeError, Op};
pub use reply::OutHeader;
pub use request::InHeader;

/// Major version of the protocol.
pub const MAJOR: u32 = 7;
/// Newest minor version spoken here (Linux 6.18).
pub const MINOR: u32 = 45;
/// Oldest minor version that every structure here fits.
pub const MINOR_OLDEST: u32 = 31;
/// Node of the mount's root, fixed by the protocol.
pub const ROOT_NODE: u64 = 1;
/// Largest payload of one WRITE or READ: 256 pages, the kernel's default ceiling (`fs.fuse.max_pages_limit`).
pub const MAX_WRITE: u32 = 1 << 20;
/// Pages of the largest payload.
pub const MAX_PAGES: u16 = 256;
/// Header and fixed part of a WRITE request, which precede its payload.
pub const WRITE_PREFIX: usize = size_of::<InHeader>() + size_of::<request::WriteIn>();
/// Smallest buffer with which the device may be read once [`MAX_WRITE`] is negotiated.
pub const READ_BUFFER: usize = WRITE_PREFIX + MAX_WRITE as usize;
/// Longest name in a request (the kernel's FUSE_NAME_MAX).
pub const NAME_MAX: usize = 1024;

const _: () = assert!(MAX_WRITE as usize == MAX_PAGES as usize * 4096);
