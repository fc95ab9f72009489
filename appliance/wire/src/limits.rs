//! Every bound of the protocol, with its reason. Checked at compile time where one bound rests on another.

use crate::header::HEADER_LEN;

/// Protocol versions that this code speaks, lowest and highest.
pub const VERSIONS: (u8, u8) = (1, 1);

/// Longest body in bytes: a rename of two 255-byte names, a symlink target of 4095 and a page of lists all fit, and a
/// body with its header stays within three 4 KiB pages.
pub const MAX_BODY: usize = 8192;

/// Longest payload in bytes: one whole chunk, and the largest request that the kernel sends through FUSE.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Longest frame in bytes.
pub const MAX_FRAME: usize = HEADER_LEN + MAX_BODY + MAX_PAYLOAD;

/// Longest body before the peer has proved its key: what a stranger can make the server hold is one of these per
/// connection. The largest handshake message (Challenge) has 89 bytes.
pub const MAX_HANDSHAKE_BODY: usize = 128;

/// Longest name of a directory entry in bytes (Linux `NAME_MAX`).
pub const MAX_NAME: usize = 255;

/// Longest symbolic link target in bytes (Linux `PATH_MAX` less its NUL).
pub const MAX_TARGET: usize = 4095;

/// Longest name of an extended attribute in bytes (Linux `XATTR_NAME_MAX`).
pub const MAX_XATTR_NAME: usize = 255;

/// Longest value of an extended attribute in bytes (Linux `XATTR_SIZE_MAX`).
pub const MAX_XATTR_VALUE: usize = 65536;

/// Longest list of extended attribute names in bytes (Linux `XATTR_LIST_MAX`).
pub const MAX_XATTR_LIST: usize = 65536;

/// Longest JSON report in bytes: a report of a few hundred devices with every counter stays far below.
pub const MAX_REPORT: usize = 1 << 20;

/// Items in one list of locks, leases or opens: a body holds as many of up to 51 bytes; the largest today has 38.
pub const MAX_LIST: usize = 160;

/// Slots of a session at most: as many operations that change something may be under way from one mount. Each
/// costs the server one kept reply.
pub const MAX_SLOTS: u16 = 256;

/// Requests in flight on one connection at most, of which each may hold one payload buffer in the server.
pub const MAX_CREDITS: u16 = 256;

const _: () = {
    assert!(MAX_BODY <= u16::MAX as usize, "body_len has 16 bits");
    assert!(MAX_PAYLOAD <= u32::MAX as usize, "payload_len has 32 bits");
    assert!(MAX_XATTR_VALUE <= MAX_PAYLOAD && MAX_XATTR_LIST <= MAX_PAYLOAD && MAX_REPORT <= MAX_PAYLOAD);
    assert!(MAX_TARGET + MAX_NAME + 64 <= MAX_BODY, "Create carries a name and a target");
    assert!(2 + MAX_LIST * 51 <= MAX_BODY, "a full list fits");
    assert!(2 * MAX_NAME + 64 <= MAX_BODY, "Rename carries two names");
    assert!(VERSIONS.0 >= 1 && VERSIONS.0 <= VERSIONS.1, "version 0 is that of the handshake");
};
